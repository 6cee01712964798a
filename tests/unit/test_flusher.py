"""What a flush counts, and when a flusher in the background flushes and compares."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import NOW_MS, PERIOD_MS, STAMP_S, keep, kit_alone, subscription
from drivers.stripe_objects import Counted
from faults.refusals import eventually
from meterkit.customers.states import States
from meterkit.decisions.customer_state import CustomerState
from meterkit.delivery.flusher import Flusher
from meterkit.delivery.outcomes import Outcome
from meterkit.errors import StripeUnavailableError
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit import FlushReport, MeterKit
    from meterkit.outbox.intents import Sealed

pytestmark = pytest.mark.anyio


class Takes:
    """A transport by which Stripe takes everything."""

    most = 1

    async def ready(self) -> Outcome | None:
        return None

    async def send(self, *intents: Sealed) -> Outcome:
        assert intents
        return Outcome(kind="delivered", detail="")

    async def close(self) -> None:
        pass


class TakesRepeats(Takes):
    """A transport by which Stripe is too busy for the first call."""

    calls = 0

    async def send(self, *intents: Sealed) -> Outcome:
        self.calls += 1
        busy = Outcome(kind="not_done", detail="HTTP 429", refused=True)
        return busy if self.calls == 1 else await super().send(*intents)


SUBSCRIBED: Final = subscription(plan=None, metered="mtr_1=price_1")


@asynccontextmanager
async def flushing() -> AsyncGenerator[tuple[MeterKit, Flusher]]:
    async with kit_alone() as kit:
        await kit.customers.link("acme", "cus_acme", force=True)
        yield kit, Flusher(kit.store, Takes(), summaries=Counted({}))


async def test_what_is_sealed_and_delivered_is_counted() -> None:
    async with flushing() as (kit, flusher):
        await kit.record("acme", "requests", 5)
        report = await flusher.flush(everything=True, timeout_s=0)
        assert (report.sealed, report.delivered, report.left) == (1, 1, 0)


async def test_a_flusher_in_the_background_compares_at_once_and_pauses_between_passes() -> None:
    async with flushing() as (kit, flusher):
        kept = await keep(kit, "one", 5, restored=f"{STAMP_S * 1000}-{STAMP_S * 1000 + 60_000}")
        admin, reports, is_told = await kit.store.admin(), list[object](), asyncio.Event()
        await admin.ask(admin.client.zadd(kit.store.keys.shard(0, "compare"), {kept.identifier: 1}))

        def told(report: FlushReport) -> None:
            reports.append(report)
            is_told.set()

        running = asyncio.create_task(flusher.run(every_s=60, told=told))
        async with asyncio.timeout(60):
            await is_told.wait()
        await asyncio.sleep(0.05)
        flusher.stop()
        await running
        assert (len(reports), [one.state for one in await kit.outbox.list()]) == (1, [])


@pytest.mark.parametrize(("waited_s", "looks"), [(119, []), (120, ["acme"]), (3600, ["acme"])])
async def test_what_has_waited_two_minutes_is_sent_after_a_look_at_its_subscription(
    waited_s: int, looks: list[str]
) -> None:
    clock, looked = Clock(NOW), list[str]()

    async def look(customer: str) -> None:
        looked.append(customer)
        for intent in await kit.outbox.list():
            await kit.outbox.park(intent.identifier, reason="the price has changed")

    async with kit_alone(clock=clock) as kit:
        linked = CustomerState(stripe_customer="cus_acme", subscription=SUBSCRIBED)
        await States(kit.store).change("acme", lambda _: linked)
        await keep(kit, "one", 5, state="queued")
        clock.advance(timedelta(seconds=waited_s))
        report = await Flusher(kit.store, Takes(), summaries=Counted({}), look=look).flush()
        assert (looked, report.delivered) == (looks, 0 if looks else 1)


async def test_usage_that_has_waited_is_not_sent_while_its_customer_cannot_be_looked_at() -> None:
    async def look(_: str) -> None:
        raise StripeUnavailableError("Stripe is away")

    clock = Clock(NOW)
    async with kit_alone(clock=clock) as kit:
        linked = CustomerState(stripe_customer="cus_acme", subscription=SUBSCRIBED)
        await States(kit.store).change("acme", lambda _: linked)
        await keep(kit, "one", 5, state="queued")
        clock.advance(timedelta(hours=1))
        report = await Flusher(kit.store, Takes(), look=look).flush()
        assert (report.delivered, [one.state for one in await kit.outbox.list()]) == (0, ["queued"])


@pytest.mark.parametrize(("everything", "calls"), [(False, 1), (True, 2)])
async def test_what_is_due_again_is_sent_again_by_the_next_flush_or_where_everything_is_to_go(
    everything: bool, calls: int
) -> None:
    clock, transport = Clock(NOW), TakesRepeats()
    async with kit_alone(clock=clock) as kit:
        await keep(kit, "one", 5, state="queued")
        flusher = Flusher(kit.store, transport)
        flushing = asyncio.create_task(flusher.flush(everything=everything, timeout_s=60))
        await eventually(lambda: flusher.report.retried == 1)
        clock.advance(timedelta(hours=1))
        assert ((await flushing).delivered, transport.calls) == (calls - 1, calls)


async def test_what_follows_a_page_of_late_intents_is_sent_by_the_same_flush(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meterkit.delivery.flusher._INTENTS_PER_PAGE", 1)
    since_may = subscription(metered="mtr_1=price_1", created_ms=PERIOD_MS - 31 * 86_400_000)
    async with kit_alone() as kit:
        linked = CustomerState(stripe_customer="cus_acme", subscription=since_may)
        await States(kit.store).change("acme", lambda _: linked)
        may_s = PERIOD_MS // 1000 - 86_400
        await keep(kit, "1 of May", 5, state="queued", time=may_s, first=NOW_MS - 60_000, attempts=1)
        await keep(kit, "2 of June", 7, state="queued")
        report = await Flusher(kit.store, Takes()).flush()
        assert (report.parked, report.delivered) == (1, 1)
