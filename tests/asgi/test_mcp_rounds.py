"""Tool calls that ask the user: `resultType: "input_required"`, and the same call again with the answer."""

from __future__ import annotations

import gzip
import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.app import http_scope, served
from drivers.mcp_apps import (
    COMPLETE,
    FAILED,
    INTERIM,
    JSON,
    LARGE,
    LOG,
    PLANS,
    SSE,
    Ran,
    agent,
    event,
    pretty,
    serving,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

pytestmark = pytest.mark.anyio

CALL: Final[dict[str, Any]] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "search_web", "arguments": {"q": "x"}},
}


def saying(*answers: bytes, kind: bytes = JSON, headers: tuple[tuple[bytes, bytes], ...] = ()) -> ASGIApp:
    """A server that gives one answer after the other, each in pieces of 100 bytes or two."""
    left = list(answers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        body = left.pop(0)
        fields = [(b"content-type", kind), *headers]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        step = max(100, len(body) // 2)
        for at in range(0, len(body), step):
            await send({"type": "http.response.body", "body": body[at : at + step], "more_body": True})
        await send({"type": "http.response.body"})

    return app


@pytest.mark.parametrize("name", ["mcp", "fastmcp stateless json"])
async def test_a_call_that_asks_twice_counts_once_but_rates_thrice(name: str) -> None:
    ran: Ran = []
    async with serving(name, ran) as (at, url):
        async with agent(url) as client:
            found = await client.call_tool("book", {})
        assert (found.is_error, found.content[0].text) == (False, "booked True")
        assert (1, 0) == await at.counted(meter="calls")
        left = (await at.kit.check("acme", "calls")).remaining
        assert left == 20 * 3 - 3
    assert ran == ["book"]


async def test_a_call_of_an_older_client_asks_within_one_request() -> None:
    ran: Ran = []
    async with serving("mcp", ran) as (at, url):
        async with agent(url, "legacy") as client:
            assert not (await client.call_tool("book", {})).is_error
        assert (1, 0) == await at.counted(meter="calls")
    assert ran == ["book"]


ROUNDS: Final = {
    "json": partial(saying, INTERIM, INTERIM, COMPLETE),
    "events": partial(saying, event(INTERIM), event(LOG) + event(pretty(INTERIM)), event(COMPLETE), kind=SSE),
    "gzip": partial(
        saying, *map(gzip.compress, (INTERIM, INTERIM, COMPLETE)), headers=((b"content-encoding", b"gzip"),)
    ),
}


@pytest.mark.parametrize("name", ROUNDS)
async def test_a_call_uses_included_quantity_when_it_completes(name: str) -> None:
    """Of three searches that the plan includes, calls that asked twice use one each."""
    app = ROUNDS[name]
    async with served(app(), plans=PLANS) as at:
        for nth, recorded in enumerate([0, 0, 1]):
            answer = await at.client.post("/mcp", json=CALL | {"id": nth})
            assert (answer.status_code, recorded, 0) == (200, *await at.counted(meter="searches"))
        assert (await at.kit.usage("acme"))["meters"]["searches"]["remaining"] == 2
        assert (await at.kit.check("acme", "calls")).remaining == 17


MONEY: Final = PLANS.replace(
    "      calls: {rate: 20/hour}\n",
    "      calls: {included: 0, overage: {bill: {per: 1, amount_cents: 300}}}\n"
    "    budget: {amount_cents: 500}\n",
).replace("{unit: call}", "{unit: call, stripe: {event_name: calls}}")


async def test_rounds_leave_a_budget_alone() -> None:
    async with served(saying(INTERIM, INTERIM, COMPLETE, COMPLETE), plans=MONEY) as at:
        for _ in range(3):
            assert "result" in (await at.client.post("/mcp", json=CALL)).json()
        refused = (await at.client.post("/mcp", json=CALL)).json()["result"]
        assert refused["structuredContent"]["problem"]["spent_cents"] == 300


@pytest.mark.parametrize(
    ("body", "recorded"),
    [(INTERIM, 0), (event(FAILED), 0), (event(COMPLETE), 1)],
)
async def test_leaving_after_an_interim_answer_is_no_success(body: bytes, recorded: int) -> None:
    """Clients may close a stream once they have the response, before the server ends it."""
    kind = SSE if body.startswith(b"event") else JSON

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    left = False

    async def receive() -> Message:
        nonlocal left
        if left:
            return {"type": "http.disconnect"}
        left = True
        return {"type": "http.request", "body": json.dumps(CALL).encode(), "more_body": False}

    async def send(message: Message) -> None:
        del message

    async with served(app, plans=PLANS) as at:
        await at.app(http_scope("/mcp", method="POST"), receive, send)
        assert (recorded, 0) == await at.counted(meter="searches")


@pytest.mark.parametrize(
    ("body", "kind"), [(event(pretty(FAILED), end=b"\r\n"), SSE), (LARGE["server_error"], JSON)]
)
async def test_an_error_in_an_answer_is_passed_on_and_not_billed(body: bytes, kind: bytes) -> None:
    async with served(saying(body, kind=kind), plans=PLANS) as at:
        answer = await at.client.post("/mcp", json=CALL)
        assert answer.content == body
        assert (0, 0) == await at.counted(meter="searches")
