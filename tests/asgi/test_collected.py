"""Requests and lifespans that nobody ends: their coroutines are closed by the collector."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

import pytest

from drivers.app import PLANS, http_scope, no_more, served
from faults.refusals import eventually
from meterkit import MeterKit, MeterMiddleware
from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.types import Message, Receive, Scope, Send

pytestmark = pytest.mark.anyio


def close(coroutine: Coroutine[Any, Any, None]) -> None:
    """As the collector does: in whatever context it runs."""
    contextvars.Context().run(coroutine.close)


async def ignore(message: Message) -> None:
    del message


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
