"""Running flushers: no error of the store ends one; killed and suspended ones bill nothing twice."""
# Internals: a transport that sleeps between the lease and the call.

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import pytest

from drivers.delivery import NOW, desk, until
from drivers.sampled import whole
from drivers.workers import workers
from faults.inner_steps import replaced
from meterkit.delivery.flusher import Flusher

if TYPE_CHECKING:
    from collections.abc import Callable

    from drivers.delivery import Desk
    from meterkit.delivery.outcomes import Outcome
    from meterkit.outbox.intents import Sealed
    from servers.stores import Server

pytestmark = pytest.mark.anyio


async def test_i9_a_flusher_unsure_of_the_store_delivers_later(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # R6: what went wrong before the first pass ended it.
    async def fail(_: object) -> None:
        raise RuntimeError("INFO cannot be read")

    replaced(monkeypatch, "the store is asked whether to deliver", fail)
    async with desk(store_url, flush_interval=0.05) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        at.clock.advance(timedelta(seconds=1))
        running = asyncio.create_task(at.flusher.run(every_s=0.01))
        await until(lambda: at.accepted("acme") == 6)
        at.flusher.stop()
        await running
    assert "INFO cannot be read" in caplog.text


async def test_an_error_of_the_callback_ends_the_flusher(store_url: str) -> None:
    # R6: who reads the reports is gone; whoever started it must hear of that.
    def close(_: object) -> None:
        raise BrokenPipeError

    async with desk(store_url) as at:
        with anyio.fail_after(240), pytest.raises(BrokenPipeError):
            await at.flusher.run(every_s=0.01, told=close)


@pytest.mark.usefixtures("valkey")
async def test_a_restarted_store_is_logged_once_for_all_shards(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    customers = [f"c{number}" for number in range(12)]
    async with desk(store_url) as at:
        await at.link(*customers)
        await at.flush()
        admin = await at.kit.store.admin()
        for shard in range(at.kit.store.keys.shards):
            await admin.ask(admin.client.hset(at.kit.store.keys.shard(shard, "life"), "known", "another"))
        for customer in customers:
            await at.kit.record(customer, "requests", 6)
        at.clock.advance(timedelta(minutes=5))
        await at.flush()
        assert caplog.text.count("was restarted, restored or taken over") == 1
        at.emulator.fail_next("error", status=401, times=None, path="*")
        at.clock.advance(timedelta(minutes=10))
        for _ in range(3):
            await at.flush()
        assert caplog.text.count("as Stripe does not say what it has") == 1
        at.emulator.clear_faults()
        await at.flush(everything=True)
        assert [at.accepted(customer) for customer in customers] == [6] * len(customers)


@pytest.mark.dear("a process beside the emulator, killed")
@pytest.mark.parametrize("point", [whole("leased"), "sent", whole("acknowledged")])
async def test_the_next_process_delivers_a_killed_ones_rest_once(
    valkey: Server, store_url: str, point: str
) -> None:
    async with desk(store_url, shards=1) as at:
        await at.link("acme", "zeta")
        await at.kit.record("acme", "requests", 5)
        await at.kit.record("zeta", "requests", 6)
        settings = {"shards": 1}
        options = {"store": store_url, "stripe": at.url, "now": NOW.isoformat(), "settings": settings}
        async with workers(1, **options, crash=point) as (doomed,):
            with pytest.raises(EOFError, match="-9"):
                await doomed.ask("flush")
        leased = [(await at.kit.usage(name))["meters"]["requests"]["leased"] for name in ("acme", "zeta")]
        # The first call of a process is alone.
        assert sum(leased) == 0 if point == "acknowledged" else sum(leased) in {5, 6}

        # Its lease outlives it, for at most a minute.
        assert 0 < valkey.command("PTTL", "mk:{0}:lease") <= 60_000
        before = len(at.emulator.requests)
        assert (await at.flush(everything=True, timeout_s=0)).delivered == 0
        assert len(at.emulator.requests) == before
        valkey.command("PEXPIRE", "mk:{0}:lease", 1)
        await until(lambda: valkey.command("EXISTS", "mk:{0}:lease") == 0)

        report = await at.flush(everything=True)
        assert report.left == 0
        usage = [(await at.kit.usage(name))["meters"]["requests"]["delivered"] for name in ("acme", "zeta")]
        assert usage == [5, 6]
    assert (at.accepted("acme"), at.accepted("zeta")) == (5, 6)
    assert len(at.emulator.events) == 2


class Sleeping:
    """A transport that stops before a call, as where a machine is suspended, and goes on then."""

    def __init__(self, at: Desk) -> None:
        self._transport = at.transport
        self.sleep: Callable[[], None] | None = None

    @property
    def most(self) -> int:
        return self._transport.most

    async def ready(self) -> Outcome | None:
        return await self._transport.ready()

    async def send(self, *intents: Sealed) -> Outcome:
        sleep, self.sleep = self.sleep, None
        if sleep is not None:
            sleep()
        return await self._transport.send(*intents)

    async def close(self) -> None:
        """It is the desk's."""


async def two_to_send(at: Desk) -> tuple[Flusher, Sleeping]:
    """One that Stripe certainly does not have, and behind it one that it has, as no reply has said."""
    way = Sleeping(at)
    flusher = Flusher(at.kit.store, way, calls_at_once=1)
    await at.link("mira", "acme", "zeta")
    await at.kit.record("mira", "requests", 1)
    assert (await flusher.flush(everything=True)).delivered == 1
    at.emulator.fail_next("error", when="after", status=500, customer="cus_acme")
    at.emulator.fail_next("error", status=429, customer="cus_acme")  # Else it is sent after all others.
    at.emulator.fail_next("error", status=429, customer="cus_zeta")
    await at.kit.record("acme", "requests", 6)
    await flusher.flush(everything=True, timeout_s=0)
    at.clock.advance(timedelta(seconds=30))
    # The second try waits longer for the third than a first one for the second.
    await at.kit.record("zeta", "requests", 2)
    await flusher.flush(everything=True, timeout_s=0)
    assert at.emulator.faults == ()
    at.clock.advance(timedelta(minutes=1))
    return flusher, way


async def test_i6_a_lease_before_a_day_of_sleep_sends_nothing(store_url: str) -> None:
    # R7, F-58: the monotonic clock stands still meanwhile, and Stripe forgets the identifier.
    async with desk(store_url, shards=1) as at:
        flusher, way = await two_to_send(at)
        way.sleep = lambda: at.clock.advance(timedelta(hours=25))
        report = await flusher.flush(everything=True)
        assert (report.delivered, report.parked) == (1, 1)
    assert (at.accepted("zeta"), at.accepted("acme")) == (2, 6)


async def test_i6_a_lease_before_a_minute_of_sleep_is_left(store_url: str) -> None:
    # Nobody has the lease now; somebody may have had it, and have sent the other one meanwhile.
    async with desk(store_url, shards=1) as at:
        flusher, way = await two_to_send(at)
        way.sleep, before = lambda: at.clock.advance(timedelta(minutes=1)), len(at.emulator.requests)
        await flusher.flush()
        assert len(at.emulator.requests) == before + 1
        await flusher.flush()
        assert len(at.emulator.requests) == before + 2
    assert (at.accepted("zeta"), at.accepted("acme")) == (2, 6)
