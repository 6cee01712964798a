"""Requests in the corners: trailers, doubt, failing readers, large bodies, coroutines that are collected."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from drivers.app import PLANS, hello, http_scope, no_more, served
from drivers.llm_apps import PLANS as LLM_PLANS
from drivers.llm_apps import PROMPT, PROMPT_TOKENS, metered, openai_stream, tokens
from faults.refusals import Client, eventually, kit_at, settled, stopped, used
from faults.refusals import metered as behind
from meterkit import MeterKit, MeterMiddleware, record
from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.types import Message, Receive, Scope, Send

    from servers.stores import Server


pytestmark = pytest.mark.anyio


async def ignore(message: Message) -> None:
    del message


@pytest.mark.parametrize("kind", ["body", "pathsend"])
async def test_with_trailers_a_response_is_over_when_they_are_sent(kind: str, store_url: str) -> None:
    """F-87: settling before the trailers."""
    settled_before: list[tuple[int, int]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        last = {"body": b"y"} if kind == "body" else {"path": "/f"}
        await send({"type": f"http.response.{kind}", **last})
        await settled(at.kit)
        settled_before.append(await at.counted())
        await send({"type": "http.response.trailers", "headers": [], "more_trailers": False})
        await settled(at.kit)
        settled_before.append(await at.counted())

    async with served(app, redis_url=store_url) as at:
        await at.app(http_scope("/v1/x"), no_more, ignore)
        assert settled_before == [(0, 1), (1, 0)]


@pytest.mark.parametrize("path", ["/attempt", "/v1/x"])
async def test_i3_what_a_thread_records_at_the_end_counts_once(
    path: str, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, over = threading.Event(), threading.Event()
    checks = 0

    def check(quantity: int) -> int:
        nonlocal checks
        checks += 1
        begun.set()  # Of what it adds up to: it is about to be kept.
        assert over.wait(60)
        return quantity

    monkeypatch.setattr(
        "meterkit.asgi.exchange.check_quantity", check
    )  # The moment is hit by no other means.
    recording: list[asyncio.Task[None]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        recording.append(asyncio.create_task(asyncio.to_thread(record, tokens=7)))
        await asyncio.to_thread(begun.wait, 20)
        await hello(scope, receive, send)

    async with served(app, redis_url=store_url) as at:
        await at.app(http_scope(path), no_more, ignore)
        over.set()
        await asyncio.gather(*recording)
        await settled(at.kit)
        assert checks == 1
        assert await at.counted(meter="tokens") == (7, 0)
        assert await at.counted() == (1, 0)


async def test_in_doubt_a_request_is_billed_by_its_outcome_like_any(valkey: Server) -> None:
    """F-87: in-doubt requests were billed whatever their outcome, and no test failed."""

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with kit_at(valkey.url, store_timeout=0.2) as kit:
        await kit.record("acme", "tokens", 1)
        await settled(kit)
        with stopped(valkey):
            assert await Client(behind(kit, fails)).get("acme") == 500
        await settled(kit)
        await eventually(lambda: nothing_held(kit))
        assert await used(kit, "acme") == (0, 0)


async def nothing_held(kit: Any) -> bool:
    return (await used(kit, "acme"))[1] == 0


async def test_a_route_that_reads_usage_wants_one_token_left(store_url: str) -> None:
    """F-87: with nothing left of a meter that the answer is counted on, the model is not asked."""
    plans = LLM_PLANS.replace("{rate: 1_000_000_000/hour}", "{included: 10, overage: deny}")
    assert plans != LLM_PLANS
    async with metered(hello, store_url, plans=plans) as at:
        await at.kit.record("acme", "output_tokens", 9)
        assert (await at.client.post("/auto")).status_code == 200
        await at.kit.record("acme", "output_tokens", 1)
        refused = await at.client.post("/auto")
        assert (refused.status_code, refused.json()["violated-policies"]) == (429, ["output_tokens-period"])
        assert (await at.client.post("/none")).status_code == 200
        assert await at.counted() == (2, 0)


async def test_a_customer_and_an_anonymous_namesake_are_two(store_url: str) -> None:
    """F-87: in one process, in either order, as in the store."""
    plans = PLANS.replace("meters:\n  requests", "anonymous: {plan: free, by: ip}\nmeters:\n  requests", 1)

    def who(scope: Scope) -> str | None:
        return "127.0.0.1" if (b"x-named", b"1") in scope["headers"] else None

    for first in ("0", "1"):
        async with served(hello, plans=plans, who=who, redis_url=store_url) as at:
            for named in (first, "0" if first == "1" else "1"):
                for _ in range(5):
                    assert (await at.client.get("/v1/x", headers={"x-named": named})).status_code == 200
                assert (await at.client.get("/v1/x", headers={"x-named": named})).status_code == 429
            assert await at.counted("127.0.0.1") == (5, 0)


async def test_a_reader_that_fails_does_not_make_a_hang_up_free(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-87."""

    def breaks(*_: object) -> None:
        raise RuntimeError("a bug of the reader")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": openai_stream("x" * 300)[0], "more_body": True})
        await receive()

    said: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": PROMPT}]

    async def receive() -> Message:
        return said.pop()

    monkeypatch.setattr("meterkit.tokens.response.ResponseReader.read", breaks)
    async with metered(app, store_url) as at:
        await at.app(http_scope("/auto", method="POST"), receive, ignore)
        found = await tokens(at.kit)
        assert found[0] == PROMPT_TOKENS
        assert found[1] >= 1
        assert await at.counted() == (1, 0)


async def test_of_a_large_request_a_part_is_kept(store_url: str) -> None:
    """F-87: however much the client sends, one MiB."""
    piece = b"x" * 900_000
    kept: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": piece, "more_body": True}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tracemalloc.start()
        try:
            for _ in range(8):
                await receive()
            kept.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        await hello(scope, receive, send)

    async with metered(app, store_url) as at:
        await at.app(http_scope("/auto", method="POST"), receive, ignore)
    assert 1 << 20 <= kept[0] < 1.3 * (1 << 20)


def close(coroutine: Coroutine[Any, Any, None]) -> None:
    """As the collector does: in whatever context it runs."""
    contextvars.Context().run(coroutine.close)


async def test_a_lifespan_that_is_collected_ends_without_a_word() -> None:
    """F-18: it awaited the kit's end in ``finally``, which nothing can wait for by then."""
    kit = MeterKit(loads(PLANS), redis_url="memory://", flush=False)
    started = asyncio.Event()

    async def receive() -> Message:
        if started.is_set():
            await asyncio.Event().wait()
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        assert message["type"] == "lifespan.startup.complete"
        started.set()

    async def lasting(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()

    app = MeterMiddleware(lasting, kit=kit, identify=lambda _: None)
    serving: Any = app({"type": "lifespan", "state": {}}, receive, send)
    task = asyncio.create_task(serving)
    await started.wait()
    await asyncio.sleep(0)
    close(serving)  # RuntimeError: coroutine ignored GeneratorExit
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert kit.store.lanes
    await kit.stop()
    assert not kit.store.lanes


async def test_a_collected_request_is_settled_and_holds_nothing(store_url: str) -> None:
    """F-18: in another context the request's own cannot be put back."""
    entered = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
        entered.set()
        await asyncio.Event().wait()

    async with served(app, redis_url=store_url) as at:
        serving: Any = at.app(http_scope("/pages"), no_more, ignore)
        task = asyncio.create_task(serving)
        await entered.wait()
        await asyncio.sleep(0)
        close(serving)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        lane = at.kit.store.lanes[asyncio.get_running_loop()]
        await eventually(lambda: lane.unsettled == 0)
        assert await at.counted(meter="pages") == (1, 0)
