"""Paths that lead to several lines of the plans file: what each of them asks for holds. F-201, F-202."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from drivers.app import Served, answering, hello, http_scope, served, staying
from drivers.llm_apps import answering as answering_with
from drivers.llm_apps import tokens
from tokens.recordings import chat, chat_usage, compact

pytestmark = pytest.mark.anyio

PLANS = """
features: [api, export, erase]
meters:
  requests: {unit: request}
  words: {unit: word}
  input_tokens: {unit: token}
  output_tokens: {unit: token}
  storage: {unit: byte, kind: gauge}
plans:
  free: {price: {amount_cents: 0, interval: month}, features: [api], meters: {storage: {included: 10}}}
  pro: {price: {amount_cents: 100, interval: month}, features: [api, export]}
  none: {price: {amount_cents: 100, interval: month}}
routes:
"""
MODEL = answering_with([compact(chat({"content": "hi"}, usage=chat_usage(7, 5)))], "application/json")
CHAT = 'match: "POST /v1/chat", consume: {requests: 1}, usage: auto'


def plans(*lines: str) -> str:
    return PLANS + "".join(f"  - {{{line}}}\n" for line in lines)


async def status_of(at: Served, path: str, method: str = "POST", **headers: str) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = http_scope(path, method=method)
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await at.app({**scope, "headers": [*scope["headers"], *given]}, staying(b"{}"), send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("lines", "spelt"),
    [
        ([CHAT, 'match: "*", feature: api, consume: {requests: 1}'], ["/v1/chat/", "//v1/chat", "/V1/chat"]),
        ([CHAT, 'match: "/{path:path}", feature: api'], ["/v1/chat/", "//v1/chat"]),
        (['match: "/v1/chat/{path:path}", consume: {requests: 1}', CHAT], ["/v1/chat/"]),
        (['match: "/v1/chat/{path:path}"', CHAT], ["/v1/chat/", "//v1/chat"]),
        (['match: "/v1/open/{path:path}", consume: {requests: 1}', CHAT], ["/v1/open/../chat"]),
    ],
)
async def test_a_spelling_makes_no_tokens_free(lines: Sequence[str], spelt: Sequence[str]) -> None:
    """A gate further down, or the first of two lines, decided alone."""
    async with served(MODEL, plans=plans(*lines)) as at:
        for nth, path in enumerate(("/v1/chat", *spelt), 1):
            assert await status_of(at, path) == 200
            assert await tokens(at.kit) == (7 * nth, 5 * nth), path
        await at.kit.customers.set_plan("acme", "none")
        is_gated = any("feature" in line for line in lines)
        assert [await status_of(at, path) for path in spelt] == [403 if is_gated else 200] * len(spelt)


async def test_a_spelling_gets_around_no_rate_of_a_route() -> None:
    async with served(hello, plans=plans('match: "/v1/x", rate: 1/hour', 'match: "*", feature: api')) as at:
        assert [await status_of(at, path) for path in ("/v1/x/", "/v1/x", "//v1/x")] == [200, 429, 429]


async def test_a_spelling_teaches_another_route_no_meter() -> None:
    """All its requests would be refused for want of words."""
    lines = ['match: "/v1/x", records: [words]', 'match: "*", consume: {requests: 1}']
    async with served(hello, plans=plans(*lines)) as at:
        assert [await status_of(at, path) for path in ("/v1/x", "/v1/x/")] == [200, 200]
        assert await at.counted() == (0, 0)


async def proxy(_: Any) -> Response:
    return Response("what an upstream server answers, by a path that the client library has resolved")


PROXIES: Sequence[ASGIApp] = (hello, Starlette(routes=[Route("/{path:path}", proxy, methods=["PUT"])]))


@pytest.mark.parametrize("app", PROXIES)
async def test_a_crooked_path_takes_the_terms_of_both_routes(app: ASGIApp) -> None:
    crooked = "/open/../own/x"
    for terms, statuses in (
        ("rate: 1/hour, consume: {requests: 1}", [200, 429]),
        ("storage: content-length", [200, 413]),
    ):
        lines = [
            f'match: "/own/{{path:path}}", {terms}',
            'match: "/open/{path:path}", consume: {requests: 1}',
        ]
        for given in (lines, lines[::-1]):
            async with served(app, plans=plans(*given)) as at:
                sizes = ("5", "11")
                found = [await status_of(at, crooked, "PUT", content_length=size) for size in sizes]
                assert found == statuses, given


@pytest.mark.parametrize("app", PROXIES)
async def test_no_idempotency_key_of_another_route_counts(app: ASGIApp) -> None:
    lines = [
        'match: "/open/{path:path}", consume: {requests: 1}, idempotency_header: idempotency-key',
        'match: "/own/{path:path}", consume: {requests: 2}',
    ]
    async with served(app, plans=plans(*lines)) as at:
        for path, used in (("/open/x", 1), ("/open/x", 1), ("/open/../own/x", 3), ("/open/../own/x", 5)):
            assert await status_of(at, path, "PUT", idempotency_key="k") == 200
            assert (await at.kit.usage("acme"))["meters"]["requests"]["used"] == used


async def test_a_gate_of_a_method_holds_beside_another_gate() -> None:
    """Handlers of an unknown app may take every method: PUT and GET got in with the feature of `*`."""
    gates = ('match: "POST /v1/x", feature: export', 'match: "DELETE /v1/x", feature: erase')
    everything = 'match: "*", feature: api'
    async with served(answering(200), plans=plans(gates[0], everything)) as at:
        assert [await status_of(at, "/v1/x", method) for method in ("POST", "PUT", "GET")] == [403] * 3
        await at.kit.customers.set_plan("acme", "pro")
        assert [await status_of(at, "/v1/x", method) for method in ("POST", "PUT", "GET")] == [200] * 3
    async with served(answering(200), plans=plans(*gates, everything)) as at:
        await at.kit.customers.set_plan("acme", "pro")
        assert [await status_of(at, "/v1/x", method) for method in ("POST", "DELETE", "PUT")] == [
            200,
            403,
            403,
        ]
        assert await status_of(at, f"/v1/{'x/../' * 300}x", "PUT") == 403
    async with served(answering(200), plans=plans(gates[0], 'match: "/v1/x", feature: api')) as at:
        assert [await status_of(at, "/v1/x", method) for method in ("POST", "PUT")] == [403, 200]
