"""`METERKIT_ENFORCEMENT`: the whole of enforcement by one word, without an edit of the plans file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from drivers.app import HEADERS, PLANS, hello, served
from meterkit import MeterKit, MeterMiddleware, current, identify, record, record_usage, tap
from meterkit.catalog import loads
from servers.stores import free_port

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Scope

    from servers.stores import Server

pytestmark = pytest.mark.anyio

SHADOW = PLANS + "enforcement: shadow\n"


async def statuses(client: httpx.AsyncClient, *paths: str) -> list[int]:
    return [(await client.get(path)).status_code for path in paths]


@pytest.mark.parametrize("given", ["on", "shadow"])
@pytest.mark.parametrize("by", ["keyword", "variable"])
async def test_it_stands_over_the_file_and_its_routes(
    given: str, by: str, monkeypatch: pytest.MonkeyPatch, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"enforcement": given} if by == "keyword" else {}
    if by == "variable":
        monkeypatch.setenv("METERKIT_ENFORCEMENT", given)
    plans = SHADOW if given == "on" else PLANS
    async with served(hello, plans=plans, redis_url=store_url, settings=settings) as at:
        await at.kit.consume("acme", "requests", 5)
        found = await statuses(at.client, "/v1/x", "/shadow", "/full")
        assert found == ([429, 429, 403] if given == "on" else [200, 200, 200])
        assert await at.counted() == ((5, 0) if given == "on" else (8, 0))
        decision = await at.kit.consume("acme", "requests")
        assert (decision.allowed, decision.shadow) == (given == "shadow", given == "shadow")
    said = [line for line in caplog.messages if line.startswith("enforcement is")]
    whole = "enforcement is shadow (the setting enforcement): every request is decided and counted, and none"
    assert said == ([] if given == "on" else [f"{whole} is refused"])


async def test_off_passes_everything_and_needs_no_store(caplog: pytest.LogCaptureFixture) -> None:
    """F-68: there was no switch. The store is away here, and nothing waits for it or fails."""

    async def work(request: Request) -> JSONResponse:
        del request
        record("tokens", 3)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        record_usage({"id": "c1", "object": "chat.completion", "model": "m", "choices": [], "usage": usage})
        chunk: dict[str, Any] = {"object": "chat.completion.chunk", "id": "c2", "model": "m"}
        chunk |= {"choices": [], "usage": usage}
        assert list(tap([chunk])) == [chunk]
        found = current()
        return JSONResponse([found.customer, found.plan, found.decision.allowed, found.decision.reason])

    kit = MeterKit(
        loads(PLANS), redis_url=f"redis://127.0.0.1:{free_port()}", store_timeout=10, enforcement="off"
    )
    app = Starlette(routes=[Route("/{path:path}", work, methods=["GET", "POST"])])
    wrapped = MeterMiddleware(app, kit=kit, identify=identify.header("x-customer-id"))
    transport = httpx.ASGITransport(app=wrapped)
    async with kit, httpx.AsyncClient(transport=transport, base_url="http://app", headers=HEADERS) as client:
        for path in ("/full", "/strict", "/v1/x", "/both"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()) == (200, ["acme", "free", True, None])
            assert not [name for name in answer.headers if "ratelimit" in name]
        nobody = await client.get("/v1/x", headers={"x-customer-id": ""})
        assert nobody.json() == ["unknown", "free", True, None]
        for ask in (kit.check, kit.consume):
            decision = await ask("acme", "requests", 10**6)
            assert (decision.allowed, decision.customer, decision.plan) == (True, "acme", "free")
        await kit.record("acme", "tokens", 7)
        async with kit.reserve("acme", {"tokens": 10**6}) as reservation:
            assert reservation.decision.allowed
            await reservation.capture({"tokens": 5})
    assert [record.getMessage() for record in caplog.records] == [
        "enforcement is off (the setting enforcement): requests pass, and nothing is decided or counted"
    ]


async def test_off_counts_nothing(valkey: Server, store_url: str) -> None:
    async with served(hello, redis_url=store_url, settings={"enforcement": "off"}) as at:
        assert await statuses(at.client, "/v1/x", "/full", "/attempt", "/shadow") == [200] * 4
        await at.kit.consume("acme", "requests")
        await at.kit.record("acme", "tokens", 7)
        async with at.kit.reserve("acme", {"tokens": 2}) as reservation:
            await reservation.capture({"tokens": 2})
        await at.kit.reserve("acme", {"tokens": 2}).__aenter__()
        # What was counted before can still be looked at.
        assert await at.counted() == (0, 0)
    assert not [key for key in valkey.command("KEYS", "*") if ":c:" in key]


def raises(_: Scope) -> str:
    raise LookupError("the directory is away")


@pytest.mark.parametrize("found", [None, "a\nb", 7, raises])
async def test_off_serves_whoever_asks(found: object) -> None:
    def who(scope: Scope) -> object:
        return found(scope) if callable(found) else found

    async with served(hello, who=who, settings={"enforcement": "off"}) as at:
        assert await statuses(at.client, "/v1/x", "/strict") == [200, 200]
