"""A machine that sleeps between the lease and the call: what it was about to send is looked at again."""
# Internals: a transport that sleeps between the lease and the call.

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import desk
from meterkit.delivery.flusher import Flusher

if TYPE_CHECKING:
    from collections.abc import Callable

    from drivers.delivery import Desk
    from meterkit.delivery.outcomes import Outcome
    from meterkit.outbox.intents import Sealed

pytestmark = pytest.mark.anyio


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
