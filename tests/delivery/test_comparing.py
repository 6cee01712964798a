"""Our books against Stripe's, and what Stripe may have and nobody knows of: compared, and delivered once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

from drivers.delivery import NOW, RENAMED, Desk, api_of, have_at_stripe, kit_for
from meterkit import FlushReport, HistoryEntry, MeterkitError, Reconciled, StripeError

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)
TEN_MINUTES = timedelta(minutes=10)


async def lose_an_answer(at: Desk, *, when: Literal["before", "after"]) -> None:
    """Have an answer lost, before or after Stripe has counted the request; it is 24 hours later."""
    await at.use("acme", requests=6)
    at.emulator.fail_next("drop", when=when)
    await at.flush(everything=True, timeout_s=0)
    await at.flush(everything=True, timeout_s=0, after=24 * HOUR)
    (intent,) = await at.kit.outbox.list()
    assert (intent.state, intent.first_attempt_at) == ("parked", NOW)
    assert intent.compared_at is not None
    assert abs(intent.compared_at - (NOW + 26 * HOUR)) < timedelta(seconds=1)


async def have_a_repeat_refused(at: Desk, *, when: Literal["before", "after"]) -> None:
    """Have Stripe fail, before or after it has counted a request, and refuse its repeat."""
    await at.use("acme", requests=6)
    at.emulator.fail_next("error", when=when, status=500)
    await at.flush(everything=True, timeout_s=0)
    at.emulator.fail_next("error", when="before", status=400)
    report = await at.flush(everything=True, timeout_s=0, after=timedelta(minutes=1))
    assert (report.parked, report.dead) == (1, 0)


async def looks(at: Desk, times: int = 2) -> None:
    """Flush at 26 hours, and each ten minutes later."""
    at.clock.set(NOW + 26 * HOUR + timedelta(seconds=1))
    await at.flush_times(times, every=TEN_MINUTES)


async def entry_of(at: Desk) -> HistoryEntry:
    (found,) = [entry for entry in await at.kit.customers.history("acme") if entry.kind == "intent"]
    return found


def asked(at: Desk) -> int:
    return sum("event_summaries" in request.path for request in at.emulator.requests)


async def test_i6_a_refusal_after_a_lost_answer_may_be_counted(at: Desk) -> None:
    await have_a_repeat_refused(at, when="after")
    (intent,) = await at.kit.outbox.list()
    assert (intent.state, intent.compared_at) == ("parked", NOW + 26 * HOUR)
    assert "compared with Stripe's summary" in intent.why
    await looks(at)
    assert (at.accepted("acme"), await at.places()) == (6, {"delivered": 6})


async def test_i6_a_refused_uncounted_unit_is_sent_anew(at: Desk) -> None:
    await have_a_repeat_refused(at, when="before")
    at.emulator.fail_next("error", when="before", status=400)
    await looks(at, 3)
    # Refused under its new identifier, of which there was no other try: Stripe has nothing of it.
    assert (at.accepted("acme"), await at.places()) == (0, {"dead": 6})


async def test_i6_a_unit_counted_despite_a_lost_answer_is_delivered(at: Desk) -> None:
    await lose_an_answer(at, when="after")
    await at.flush(everything=True, timeout_s=0)
    assert asked(at) == 0  # Not before 26 hours.
    await looks(at, 1)
    assert (asked(at), await at.places()) == (1, {"parked": 6})
    await at.flush(everything=True, timeout_s=0, after=timedelta(seconds=-2))
    assert asked(at) == 1  # And ten minutes later.
    report = await at.flush(everything=True, after=timedelta(seconds=2))
    assert (report.delivered, report.is_complete) == (1, True)
    assert (asked(at), await at.places()) == (2, {"delivered": 6})
    entry = await entry_of(at)
    assert entry.cause == "reconcile"
    assert entry.after == "delivered: Stripe's summary of its minute said 6, twice"
    assert at.accepted("acme") == 6


async def test_i6_an_uncounted_unit_is_sent_under_a_new_identifier(at: Desk) -> None:
    await lose_an_answer(at, when="before")
    (before,) = await at.kit.outbox.list()
    await looks(at, 1)
    assert (at.accepted("acme"), await at.places()) == (0, {"parked": 6})
    assert (await at.flush(everything=True)).is_complete
    assert await at.places() == {"delivered": 6}
    (event,) = at.emulator.events
    assert event.identifier != before.identifier
    assert (int(event.value), event.timestamp) == (6, int(before.minute.timestamp()))
    entry = await entry_of(at)
    assert entry.before == f"parked: 6 of api_requests at 2031-06-10T12:00Z, {before.identifier}"
    assert entry.after == f"queued as {event.identifier}: Stripe's summary of its minute said 0, twice"


async def test_i6_units_counted_in_other_minutes_are_another_matter(at: Desk) -> None:
    await lose_an_answer(at, when="before")
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
    at: Desk, fault: dict[str, Any], asked_before: int, caplog: pytest.LogCaptureFixture
) -> None:
    await lose_an_answer(at, when="before")
    at.emulator.fail_next(**fault, path="*", skip=asked_before, times=None)
    await looks(at, 1)
    at.emulator.clear_faults()
    assert await at.places() == {"parked": 6}
    assert "not compared with Stripe's summaries" in caplog.text
    (intent,) = await at.kit.outbox.list()
    assert intent.compared_at is not None
    assert intent.compared_at > at.clock.now() - timedelta(seconds=5)
    await looks(at, 3)
    assert (await at.flush(everything=True)).is_complete
    assert at.accepted("acme") == 6


async def test_i6_a_foreign_clock_compares_nothing(at: Desk, caplog: pytest.LogCaptureFixture) -> None:
    await lose_an_answer(at, when="before")
    # This host's clock is hours ahead: the first try is not as long ago as it says.
    at.emulator.clock = lambda: at.clock() - 3 * 3_600
    await looks(at, 3)
    assert (await at.places(), asked(at), at.accepted("acme")) == ({"parked": 6}, 0, 0)
    assert "the store's clock and Stripe's differ by 10800 s" in caplog.text
    at.emulator.clock = at.clock
    await at.flush_times(3, every=TEN_MINUTES)
    assert await at.places() == {"delivered": 6}


async def test_a_damaged_customer_holds_up_nobody(at: Desk, caplog: pytest.LogCaptureFixture) -> None:
    await lose_an_answer(at, when="after")
    admin = await at.kit.store.admin()
    totals = at.kit.store.keys.customer("acme").totals
    counted: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(totals))
    (parked,) = (name for name, value in counted.items() if name.endswith(b"k") and value == b"6")
    await admin.ask(admin.client.hset(totals, mapping={parked: "six"}))
    await looks(at)  # Flushes, and does not raise.
    assert "of customer 'acme' cannot be compared" in caplog.text
    await admin.ask(admin.client.hset(totals, mapping={parked: "6"}))
    await at.flush_times(2, every=TEN_MINUTES)
    assert await at.places() == {"delivered": 6}


async def test_i6_a_flusher_in_the_background_compares_by_itself(at: Desk) -> None:
    await lose_an_answer(at, when="after")
    at.clock.set(NOW + 26 * HOUR + timedelta(seconds=1))
    reports: list[FlushReport] = []
    async with at.kit.flusher() as flusher:

        def told(report: FlushReport) -> None:
            reports.append(report)
            at.clock.advance(TEN_MINUTES)
            if len(reports) == 2:
                flusher.stop()

        await flusher.run(every_s=0.01, told=told)
    assert await at.places() == {"delivered": 6}


JULY = datetime(2031, 7, 1, tzinfo=UTC)


async def of_acme(at: Desk, *, repair: bool = False) -> Reconciled:
    (found,) = await at.kit.reconcile("acme", repair=repair)
    return found


async def test_what_was_delivered_is_what_stripe_has_counted(at: Desk) -> None:
    await at.link("acme", "zeta")
    await at.kit.record("acme", "requests", 7)
    await at.kit.record("acme", "tokens", 130)
    await at.kit.record("zeta", "requests", 5)
    await at.record_and_flush(2, "nobody")
    await at.kit.record("acme", "requests", 4)
    found = {(one.customer, one.meter): one for one in await at.kit.reconcile()}
    assert {*found} == {("acme", "tokens"), *((who, "requests") for who in ("acme", "zeta", "nobody"))}
    one = found["acme", "requests"]
    assert (one.recorded, one.delivered, one.confirmed, one.difference, one.waiting) == (11, 7, 7, 0, 4)
    assert (one.stripe_customer, one.event_name, one.is_closed) == ("cus_acme", "api_requests", False)
    assert (one.agrees, one.advice) == (True, "")
    tokens = found["acme", "tokens"]
    assert (tokens.recorded, tokens.delivered, tokens.confirmed) == (130, 30, 30)
    # Who is not linked has nothing at Stripe, and nothing was delivered.
    assert (found["nobody", "requests"].confirmed, found["nobody", "requests"].agrees) == (None, True)


async def test_a_period_that_is_over_has_its_close_report(at: Desk) -> None:
    await at.use("acme", requests=7)
    at.clock.set(JULY + timedelta(minutes=10))
    await at.kit.record("acme", "requests", 3)
    await at.kit.record("acme", "requests", 2, occurred_at=NOW)
    await at.flush(everything=True)
    (june,) = await at.kit.reconcile("acme", at=NOW)
    july = await of_acme(at)
    assert (june.recorded, june.delivered, june.confirmed, june.late) == (7, 7, 7, 2)
    assert (june.period_start, june.period_end) == (NOW.replace(day=1, hour=0, second=0), JULY)
    assert june.is_closed
    assert (july.recorded, july.delivered, july.confirmed, july.late, july.agrees) == (5, 5, 5, 0, True)


async def test_accepted_uncounted_units_are_a_difference(at: Desk) -> None:
    await at.use("acme", requests=7)
    at.emulator.fail_next("lose")
    await at.flush(everything=True)
    found = await of_acme(at)
    assert (found.delivered, found.confirmed, found.difference, found.agrees) == (7, 0, -7, False)
    assert "counted 7 less than it accepted" in found.advice


async def test_a_meter_of_which_all_was_taken_back_is_compared(at: Desk) -> None:
    await at.use("acme", requests=1)
    await at.flush(everything=True)
    await at.kit.correct("acme", {"requests": 1}, reason="a loop", correction_id="c-1")
    at.emulator.fail_next("lose")
    await at.flush(everything=True)
    found = await of_acme(at)
    assert (found.recorded, found.delivered, found.confirmed, found.difference) == (0, 0, 1, 1)
    assert (found.agrees, "1 were taken back there" in found.advice) == (False, True)


@pytest.mark.parametrize("is_lost", [False, True])
async def test_i6_deliveries_under_a_former_name_are_compared(at: Desk, is_lost: bool) -> None:
    await at.use("acme", requests=6)
    if is_lost:
        at.emulator.fail_next("lose")
    await at.flush(everything=True)
    async with kit_for(at.store_url, at.url, clock=at.clock, catalog=RENAMED) as renamed:
        await renamed.record("acme", "calls", 4)
        await renamed.flush(everything=True)
        found = {one.meter: one for one in await renamed.reconcile("acme")}
    books = {name: (one.delivered, one.recorded) for name, one in found.items()}
    assert books == {"calls": (4, 4), "requests": (6, 6)}
    expected = (4, -6, False) if is_lost else (10, 0, True)
    assert {(one.confirmed, one.difference, one.agrees) for one in found.values()} == {expected}


async def test_units_of_a_meter_that_was_made_anew_are_compared(at: Desk) -> None:
    await at.use("acme", requests=6)
    await at.flush(everything=True)
    async with api_of(at.kit) as api:
        for meter in await api.list("/v1/billing/meters"):
            if meter["event_name"] == "api_requests":
                await api.post(f"/v1/billing/meters/{meter['id']}/deactivate")
    at.emulator.add_meter("api_requests")
    await at.kit.record("acme", "requests", 4)
    await at.flush(everything=True)
    found = await of_acme(at)
    assert (found.delivered, found.confirmed, found.agrees) == (10, 10, True)


async def test_a_repair_delivers_parked_units_that_stripe_has(at: Desk) -> None:
    await at.use("acme", requests=7)
    at.emulator.fail_next("error", status=500, when="after")
    await at.flush(everything=True, timeout_s=0)
    (intent,) = await at.kit.outbox.list()
    await at.kit.outbox.park(intent.identifier)  # By hand: nothing compares it by itself.
    at.clock.advance(timedelta(hours=30))
    found = await of_acme(at)
    assert (found.delivered, found.confirmed, found.difference, found.parked) == (0, 7, 7, 7)
    assert (found.agrees, "7 are parked, and Stripe may have 7 of these" in found.advice) == (False, True)
    assert (await of_acme(at)).parked == 7  # Looking changes nothing.
    assert (await of_acme(at, repair=True)).parked == 7
    at.clock.advance(timedelta(minutes=10))
    found = await of_acme(at, repair=True)
    assert (found.delivered, found.confirmed, found.parked, found.agrees) == (7, 7, 0, True)


async def test_units_of_a_former_link_are_compared_there(at: Desk) -> None:
    await at.use("acme", requests=7)
    await at.flush(everything=True)
    at.emulator.add_customer("cus_other")
    await at.kit.customers.unlink("acme")
    for linked in (True, False):
        if linked:
            await at.kit.customers.link("acme", "cus_other", force=True)
        else:
            await at.kit.customers.unlink("acme")
        found = await of_acme(at)
        assert (found.confirmed, found.difference, found.advice) == (7, 0, "")


async def test_a_difference_beside_a_new_link_names_it(at: Desk) -> None:
    await at.use("acme", requests=7)
    await at.use("bob", requests=3)
    await at.flush(everything=True)
    for customer in ("acme", "bob"):
        await at.kit.customers.unlink(customer)
    await at.kit.customers.link("acme", "cus_bob", force=True)
    found = await of_acme(at)
    assert (found.difference, "the link has changed" in found.advice) == (3, True)


async def test_without_stripe_there_is_nothing_to_compare_with(at: Desk) -> None:
    at.emulator.fail_next("error", status=401, path="/v1/billing/meters", times=None)
    with pytest.raises(StripeError):
        await at.kit.reconcile()
    with pytest.raises(MeterkitError, match="naive"):
        await at.kit.reconcile(at=datetime(2031, 6, 1))  # noqa: DTZ001 - what is refused
