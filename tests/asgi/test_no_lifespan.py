"""Where no lifespan is run: the first request starts all of the kit, and the end of its loop ends it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.app import HEADERS, hello, http_scope, no_more
from drivers.delivery import RunningClock, kit_for, until
from drivers.llm_apps import listening
from faults.refusals import eventually, loop_clock
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import ASGIApp, Message

pytestmark = pytest.mark.anyio

STARTED = "no lifespan has started meterkit"


async def ignore(message: Message) -> None:
    del message


def wrapped(kit: MeterKit) -> MeterMiddleware:
    return MeterMiddleware(hello, kit=kit, identify=identify.header("x-customer-id"))


def living(kit: MeterKit) -> MeterMiddleware:
    """With a lifespan."""
    app = Starlette(routes=[Mount("/", hello)])
    return MeterMiddleware(app, kit=kit, identify=identify.header("x-customer-id"))


def started(caplog: pytest.LogCaptureFixture) -> int:
    return sum(STARTED in record.getMessage() for record in caplog.records)


@asynccontextmanager
async def selling(store_url: str, **settings: Any) -> AsyncGenerator[tuple[MeterKit, StripeEmulator]]:
    """A kit that nobody starts, which would deliver at once; the customer is linked."""
    clock = RunningClock()
    emulator = StripeEmulator(clock=clock)
    emulator.add_meter("api_requests")
    emulator.add_customer("cus_acme")
    async with emulator.serve() as url:
        given: dict[str, Any] = {"flush": None, "flush_interval": 0.05} | settings
        kit = kit_for(store_url, url, clock=clock, **given)
        # A kit of its own, in another loop: what links customers is seldom the app.
        await asyncio.to_thread(lambda: asyncio.run(link(kit_for(store_url, url, clock=clock))))
        try:
            yield kit, emulator
        finally:
            await kit.stop()


async def link(kit: MeterKit) -> None:
    async with kit:
        await kit.customers.link("acme", "cus_acme")


@pytest.mark.parametrize("how", ["mounted", "lifespan off"])
async def test_the_first_request_starts_the_flusher_too(
    how: str, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-4: usage was counted, and never delivered, and nothing said so."""
    async with selling(store_url) as (kit, emulator):
        app: ASGIApp = wrapped(kit)
        if how == "mounted":
            app = Starlette(routes=[Mount("/app", app)])
        async with (
            listening(app, lifespan="on" if how == "mounted" else "off") as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client,
        ):
            for _ in range(3):
                assert (await client.get("/app/x")).status_code == 200
            await until(lambda: emulator.accepted("cus_acme", "api_requests") == 3)
    assert started(caplog) == 1
    assert "delivers to Stripe" in caplog.text


async def test_many_first_requests_at_once_start_it_once(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-4: the store of this loop may be connected although nothing has started the kit."""
    before = asyncio.all_tasks()
    async with selling(store_url) as (kit, emulator):
        assert (await kit.consume("acme", "requests")).allowed
        assert kit.store.lanes
        app = wrapped(kit)
        await asyncio.gather(*(app(http_scope(), no_more, ignore) for _ in range(50)))
        flushers = [task for task in asyncio.all_tasks() - before if task.get_name() == "meterkit flush"]
        assert len(flushers) == 1
        await until(lambda: emulator.accepted("cus_acme", "api_requests") == 51)
    assert started(caplog) == 1


async def test_later_starts_and_stops_balance(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """F-4: whoever starts the kit later stops only what is theirs."""
    async with selling(store_url, flush=False) as (kit, _):
        app = wrapped(kit)
        async with kit:
            await app(http_scope(), no_more, ignore)
        assert started(caplog) == 0
        await app(http_scope(), no_more, ignore)
        lane = kit.store.lanes[asyncio.get_running_loop()]
        for _ in range(2):
            async with kit:
                await app(http_scope(), no_more, ignore)
            async with listening(living(kit), lifespan="on"):
                await app(http_scope(), no_more, ignore)
            assert kit.store.lanes == {asyncio.get_running_loop(): lane}
        await eventually(lambda: lane.unsettled == 0)
        assert (await kit.usage("acme"))["meters"]["requests"]["recorded"] == 6
    assert started(caplog) == 1
    assert not kit.store.lanes


async def test_several_loops_each_start_it_and_take_it_along(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-4."""
    async with selling(store_url) as (kit, emulator):
        barrier = threading.Barrier(3)

        async def serve() -> None:
            await wrapped(kit)(http_scope(), no_more, ignore)
            barrier.wait()  # All three loops serve at once.

        threads = [threading.Thread(target=lambda: asyncio.run(serve())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert not kit.store.lanes
        assert started(caplog) == 1
        # What their ends left is delivered by whoever is next.
        await wrapped(kit)(http_scope(), no_more, ignore)
        await until(lambda: emulator.accepted("cus_acme", "api_requests") == 4)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_i9_the_first_request_waits_no_longer_for_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F-4: a start may try for seconds; a request may not."""
    monkeypatch.setattr("meterkit.redis.event_loops._DRAIN_S", 0.01)
    kit = kit_for("redis://127.0.0.1:1/0", "http://127.0.0.1:1", clock=time.time, store_timeout=0.05)
    async with loop_clock() as passed_s:
        await wrapped(kit)(http_scope(), no_more, ignore)
        assert passed_s() < 4
    await kit.stop()
