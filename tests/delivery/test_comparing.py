"""What Stripe may have and nobody knows of: compared with Stripe's summaries, and then delivered, once."""
# Internals: one comparison at a time, and two at once.

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import pytest

from drivers.delivery import NOW, desk, have_at_stripe

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.delivery import Desk
    from meterkit import FlushReport, HistoryEntry

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)
TEN_MINUTES = timedelta(minutes=10)


@asynccontextmanager
async def ambiguous(store_url: str, *, when: Literal["before", "after"]) -> AsyncGenerator[Desk]:
    """A desk 24 hours after a request's answer was lost, before or after Stripe had counted it."""
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        at.emulator.fail_next("drop", when=when)
        await at.flush(everything=True, timeout_s=0)
        at.clock.advance(24 * HOUR)
        await at.flush(everything=True, timeout_s=0)
        (intent,) = await at.kit.outbox.list()
        assert (intent.state, intent.first_attempt_at) == ("parked", NOW)
        assert intent.compared_at is not None
        assert abs(intent.compared_at - (NOW + 26 * HOUR)) < timedelta(seconds=1)
        yield at


@asynccontextmanager
async def refused(store_url: str, *, when: Literal["before", "after"]) -> AsyncGenerator[Desk]:
    """A desk where Stripe had failed, before or after it had counted a request, and refused its repeat."""
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        at.emulator.fail_next("error", when=when, status=500)
        await at.flush(everything=True, timeout_s=0)
        at.emulator.fail_next("error", when="before", status=400)
        at.clock.advance(timedelta(minutes=1))
        report = await at.flush(everything=True, timeout_s=0)
        assert (report.parked, report.dead) == (1, 0)
        yield at


async def looks(at: Desk, times: int = 2) -> None:
    """Flush at 26 hours, and each ten minutes later."""
    at.clock.set(NOW + 26 * HOUR + timedelta(seconds=1))
    for _ in range(times):
        await at.flush(everything=True, timeout_s=0)
        at.clock.advance(TEN_MINUTES)


async def places(at: Desk) -> dict[str, int]:
    """Where acme's requests are, zeros left out."""
    found: Any = (await at.kit.usage("acme"))["meters"]["requests"]
    names = ("pending", "queued", "leased", "parked", "delivered", "dead")
    assert sum(found[name] for name in names) == found["recorded"]
    return {name: found[name] for name in names if found[name]}


async def entries(at: Desk) -> list[HistoryEntry]:
    """What was entered of acme's intents."""
    return [entry for entry in await at.kit.customers.history("acme") if entry.kind == "intent"]


def asked(at: Desk) -> int:
    """How often a summary was asked for."""
    return sum("event_summaries" in request.path for request in at.emulator.requests)


async def test_i6_a_refusal_after_a_lost_answer_may_be_counted(store_url: str) -> None:
    async with refused(store_url, when="after") as at:
        (intent,) = await at.kit.outbox.list()
        assert (intent.state, intent.compared_at) == ("parked", NOW + 26 * HOUR)
        assert "compared with Stripe's summary" in intent.why
        await looks(at)
        assert await places(at) == {"delivered": 6}
        assert at.accepted("acme") == 6


async def test_i6_a_refused_uncounted_unit_is_sent_anew(store_url: str) -> None:
    async with refused(store_url, when="before") as at:
        at.emulator.fail_next("error", when="before", status=400)
        await looks(at, 3)
        # Refused under its new identifier, of which there was no other try: Stripe has nothing of it.
        assert (at.accepted("acme"), await places(at)) == (0, {"dead": 6})


async def test_i6_a_unit_counted_despite_a_lost_answer_is_delivered(store_url: str) -> None:
    async with ambiguous(store_url, when="after") as at:
        await at.flush(everything=True, timeout_s=0)
        assert asked(at) == 0  # Not before 26 hours.
        await looks(at, 1)
        assert (asked(at), await places(at)) == (1, {"parked": 6})
        at.clock.advance(timedelta(seconds=-2))
        await at.flush(everything=True, timeout_s=0)
        assert asked(at) == 1  # And ten minutes later.
        at.clock.advance(timedelta(seconds=2))
        report = await at.flush(everything=True)
        assert (report.delivered, report.is_complete) == (1, True)
        assert (asked(at), await places(at)) == (2, {"delivered": 6})
        (entry,) = await entries(at)
        assert (entry.cause, entry.after) == (
            "reconcile",
            "delivered: Stripe's summary of its minute said 6, twice",
        )
        assert at.accepted("acme") == 6


async def test_i6_an_uncounted_unit_is_sent_under_a_new_identifier(store_url: str) -> None:
    async with ambiguous(store_url, when="before") as at:
        (before,) = await at.kit.outbox.list()
        await looks(at, 1)
        assert (at.accepted("acme"), await places(at)) == (0, {"parked": 6})
        report = await at.flush(everything=True)
        assert report.is_complete
        assert await places(at) == {"delivered": 6}
        (event,) = at.emulator.events
        assert event.identifier != before.identifier
        assert (int(event.value), event.timestamp) == (6, int(before.minute.timestamp()))
        (entry,) = await entries(at)
        assert entry.before == f"parked: 6 of api_requests at 2031-06-10T12:00Z, {before.identifier}"
        assert entry.after == f"queued as {event.identifier}: Stripe's summary of its minute said 0, twice"


async def test_i6_units_counted_in_other_minutes_are_another_matter(store_url: str) -> None:
    async with ambiguous(store_url, when="before") as at:
        for minutes in (-1, 1):
            await have_at_stripe(at, 6, minute=NOW + timedelta(minutes=minutes))
        await looks(at)
        assert (await at.flush(everything=True)).is_complete
        assert at.accepted("acme") == 3 * 6


@pytest.mark.parametrize(
    ("asked_before", "fault"),
    [(0, {"action": "error", "status": 401}), (1, {"action": "drop"})],
    ids=["meters", "a summary"],
)
async def test_while_stripe_does_not_answer_nothing_is_decided(
    store_url: str, fault: dict[str, Any], asked_before: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with ambiguous(store_url, when="before") as at:
        at.emulator.fail_next(**fault, path="*", skip=asked_before, times=None)
        await looks(at, 1)
        at.emulator.clear_faults()
        assert await places(at) == {"parked": 6}
        assert "not compared with Stripe's summaries" in caplog.text
        (intent,) = await at.kit.outbox.list()
        assert intent.compared_at is not None
        assert intent.compared_at > at.clock.now() - timedelta(seconds=5)
        await looks(at, 3)
        assert (await at.flush(everything=True)).is_complete
        assert at.accepted("acme") == 6


async def test_i6_a_clock_that_is_not_stripes_compares_nothing(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ambiguous(store_url, when="before") as at:
        # This host's clock is hours ahead: the first try is not as long ago as it says.
        at.emulator.clock = lambda: at.clock() - 3 * 3_600
        await looks(at, 3)
        assert await places(at) == {"parked": 6}
        assert (asked(at), at.accepted("acme")) == (0, 0)
        assert "this host's clock and Stripe's differ by 10800 s" in caplog.text
        at.emulator.clock = at.clock
        for _ in range(2):
            await at.flush(everything=True, timeout_s=0)
            at.clock.advance(TEN_MINUTES)
        await at.flush(everything=True)
        assert await places(at) == {"delivered": 6}


async def test_what_is_damaged_of_a_customer_holds_up_nobody(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ambiguous(store_url, when="after") as at:
        admin = await at.kit.store.admin()
        totals = at.kit.store.keys.customer("acme").totals
        counted: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(totals))
        (parked,) = (name for name, value in counted.items() if name.endswith(b"k") and value == b"6")
        await admin.ask(admin.client.hset(totals, mapping={parked: "six"}))
        await looks(at)  # Flushes, and does not raise.
        assert "of customer 'acme' cannot be compared" in caplog.text
        await admin.ask(admin.client.hset(totals, mapping={parked: "6"}))
        await at.flush(everything=True)
        at.clock.advance(TEN_MINUTES)
        await at.flush(everything=True)
        assert await places(at) == {"delivered": 6}


async def test_i6_a_flusher_in_the_background_compares_by_itself(store_url: str) -> None:
    async with ambiguous(store_url, when="after") as at:
        at.clock.set(NOW + 26 * HOUR + timedelta(seconds=1))
        async with at.kit.flusher() as flusher:
            reports: list[FlushReport] = []

            def told(report: FlushReport) -> None:
                reports.append(report)
                at.clock.advance(TEN_MINUTES)
                if len(reports) == 2:
                    flusher.stop()

            await flusher.run(every_s=0.01, told=told)
        assert await places(at) == {"delivered": 6}
