"""What changes for a customer is entered once, with its cause, and told; what the clock changes, too."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any

import pytest

from drivers.delivery import NOW
from drivers.plans import completed
from drivers.subscribed_customer import END, PLANS, erase, fetched, recorder, subscription, sweep, tell
from faults.refusals import eventually
from meterkit import CustomerError, MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)
NOW_MS, END_MS = (int(instant.timestamp() * 1000) for instant in (NOW, END))
INVOICE = {"invoice": "in_1", "amount_cents": 2900, "failures": 1}
FAILING: dict[str, Any] = {"status": "past_due", "failures": 1, "failed_at_ms": NOW}


async def lines(kit: MeterKit, customer: str = "acme") -> list[tuple[str, str | None, str | None, str]]:
    return [
        (entry.kind, entry.before, entry.after, entry.cause)
        for entry in await kit.customers.history(customer)
    ]


async def test_the_history_keeps_the_last_thousand_changes(kit: MeterKit, valkey: Server) -> None:
    key = kit.store.keys.customer("acme").history
    await kit.customers.set_plan("acme", "pro")
    (entry,) = valkey.command("LRANGE", key, "0", "-1")
    valkey.command("RPUSH", key, *[entry] * 999)
    await kit.customers.set_plan("acme", "free")
    assert await lines(kit) == [
        *[("plan", "free", "pro", "operator")] * 999,
        ("plan", "pro", "free", "operator"),
    ]


@pytest.mark.parametrize("kind", ["correction", "intent", "late", "rebuilt", "storage"])
async def test_lines_of_units_leave_the_plan_and_the_link(kit: MeterKit, valkey: Server, kind: str) -> None:
    """An app may correct the units of each job that fails; the plan prices its period."""
    await kit.customers.set_plan("acme", "pro")
    await kit.customers.link("acme", "cus_1")
    entry = json.dumps([kind, str(NOW_MS), "1 of requests", "taken back", "api"])
    valkey.command("RPUSH", kit.store.keys.customer("acme").history, *[entry] * 998)
    await kit.customers.set_plan("acme", "free")
    first, second, *corrected, last = [kind for kind, *_ in await lines(kit)]
    assert (first, second, set(corrected), last) == ("plan", "link", {kind}, "plan")
    assert len(corrected) == 897


async def test_each_transition_is_entered_with_its_cause(kit: MeterKit) -> None:
    await kit.customers.set_plan("acme", "pro")
    await kit.customers.link("acme", "cus_1")
    await kit.customers.override("acme", {"requests": {"included": 7}})
    await fetched(kit, subscription(plan="top", seats=12, cancel_at_ms=END), cause="evt_2")
    await fetched(kit, subscription(plan="top", seats=12, cancel_at_ms=END), cause="evt_3")
    pending: dict[str, Any] = {"pending_plan": "pro", "pending_seats": 4, "pending_at_ms": END}
    await fetched(kit, subscription(plan="top", seats=12, **pending), cause="api")
    assert await lines(kit) == [
        ("plan", "free", "pro", "operator"),
        ("link", None, "cus_1", "operator"),
        ("overrides", None, '{"requests": {"included": 7}}', "operator"),
        ("subscription", None, "sub_1", "evt_2"),
        ("status", None, "active", "evt_2"),
        ("plan", "pro", "top", "evt_2"),
        ("seats", None, "12", "evt_2"),
        ("cancellation", None, "2031-06-30T12:00:00Z", "evt_2"),
        ("cancellation", "2031-06-30T12:00:00Z", None, "api"),
        ("scheduled", None, "pro with 4 seats from 2031-06-30T12:00:00Z", "api"),
    ]
    assert {entry.at for entry in await kit.customers.history("acme")} == {NOW}


@pytest.mark.each_store
async def test_two_sweeps_at_once_enter_changes_once(kit: MeterKit, clock: Clock, other: MeterKit) -> None:
    for nth in range(8):
        await fetched(kit, subscription(**FAILING), customer=f"c{nth}")
    before = [await lines(kit, f"c{nth}") for nth in range(8)]
    clock.set(NOW + 7 * DAY)
    await asyncio.gather(*(sweep(one) for one in (kit, other, kit, other)))
    for nth in range(8):
        assert len(await lines(other, f"c{nth}")) == len(before[nth]) + 2
        assert (await erase(kit, f"c{nth}")).history == len(before[nth]) + 2


async def test_handlers_are_told_of_what_has_changed_and_why(kit: MeterKit, clock: Clock) -> None:
    told = recorder(kit, "subscription.changed", "access.changed", "dunning.reminder")
    await fetched(kit, subscription(seats=4, cancel_at_ms=END), cause="evt_1")
    await eventually(lambda: len(told) == 1)
    event = told.pop()
    assert (event.customer, event.at, event.cause) == ("acme", NOW, "evt_1")
    assert (event.plan, event.status, event.seats, event.cancel_at) == ("pro", "active", 4, END)
    assert (event.plan_before, event.status_before, event.seats_before) == ("free", None, 0)
    await fetched(kit, subscription(**FAILING), cause="evt_2")
    await eventually(lambda: len(told) == 2)
    assert sorted(type(event).__name__ for event in told) == ["AccessChanged", "SubscriptionChanged"]
    (access,) = (event for event in told if hasattr(event, "access_before"))
    assert (access.access_before, access.access, access.plan) == ("full", "grace", "pro")
    told.clear()
    await fetched(kit, subscription(**FAILING | {"failures": 2}), cause="evt_3")
    clock.set(NOW + DAY)
    await sweep(kit)
    await eventually(lambda: len(told) == 1)
    reminder = told.pop()
    assert (reminder.failures, reminder.access, reminder.at) == (2, "grace", NOW + DAY)
    assert (reminder.failed_at, reminder.after, reminder.until) == (NOW, DAY, NOW + 7 * DAY)
    clock.set(NOW + 6 * DAY)
    await sweep(kit)
    await eventually(lambda: len(told) == 1)
    assert told.pop().after == 6 * DAY
    clock.set(NOW + 7 * DAY)
    await sweep(kit)
    await eventually(lambda: len(told) == 2)
    assert {(event.cause, event.at) for event in told} == {("clock", NOW + 7 * DAY)}
    assert len({event.id for event in told}) == 2


async def test_what_is_told_again_has_the_same_id(kit: MeterKit) -> None:
    told = recorder(kit, "access.changed")
    for times in (1, 2):
        await fetched(kit, subscription(**FAILING))
        await eventually(lambda: len(told) == times)  # noqa: B023 - it is awaited within
        await erase(kit, "acme")
    assert told[0] == told[1]


async def test_an_unpaid_invoice_is_reminded_of_at_each_span_once(kit: MeterKit, clock: Clock) -> None:
    """F-115: there was one reminder only, at the second failed attempt."""
    told = recorder(kit, "dunning.reminder")
    await fetched(kit, subscription(**FAILING))
    for half_day in range(40):
        clock.advance(DAY / 2)
        await sweep(kit)
        failures = 4 if half_day > 5 else 2
        await fetched(kit, subscription(**FAILING | {"failures": failures, "seats": 2}))
    await eventually(lambda: len(told) == 3)
    assert [(event.at - NOW, event.after, event.access) for event in told] == [
        (1 * DAY, 1 * DAY, "grace"),
        (6 * DAY, 6 * DAY, "restricted"),  # Four attempts have failed.
        (13 * DAY, 13 * DAY, "restricted"),
    ]
    assert {event.failed_at for event in told} == {NOW}
    assert len({event.id for event in told}) == 3


async def test_a_reminder_names_no_end_where_access_stays(kit: MeterKit, clock: Clock) -> None:
    told = recorder(kit, "dunning.reminder")
    await fetched(kit, subscription(**FAILING | {"status": "unpaid"}))
    clock.set(NOW + DAY)
    await sweep(kit)
    await eventually(lambda: len(told) == 1)
    assert (told[0].access, told[0].until) == ("suspended", None)


async def test_a_next_subscription_has_reminders_of_its_own(kit: MeterKit, clock: Clock) -> None:
    """Two of the former one were sent: the first one of the next is no repeat of them."""
    told = recorder(kit, "dunning.reminder")
    await fetched(kit, subscription(**FAILING))
    clock.set(NOW + 6 * DAY)
    await sweep(kit)
    failing_too = FAILING | {"failed_at_ms": NOW + 5 * DAY}
    await fetched(kit, subscription(id="sub_2", **failing_too))
    await eventually(lambda: len(told) == 3)
    assert [(event.failed_at - NOW, event.after) for event in told][2] == (5 * DAY, DAY)


@pytest.fixture
def frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.customers.states._LOOK_EVERY_S", 0.01)


@pytest.mark.usefixtures("frequent_looks")  # Before the kit begins: its task waits after a look.
async def test_the_task_of_the_kit_tells_of_what_the_clock_has_changed(kit: MeterKit, clock: Clock) -> None:
    await fetched(kit, subscription(cancel_at_ms=END))
    clock.set(END)
    told = recorder(kit, "subscription.changed")
    await eventually(lambda: any(event.cause == "clock" for event in told))
    (event,) = (event for event in told if event.cause == "clock")
    assert (event.status, event.plan, event.at, event.cancel_at) == ("canceled", "free", END, None)


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("trial.ending", {"trial_end_ms": END_MS}, {"trial_end": END}),
        (
            "payment.failed",
            {"currency": "usd", "next_attempt_ms": END_MS} | INVOICE,
            {"next_attempt": END} | INVOICE,
        ),
    ],
)
async def test_what_is_told_without_a_change_reaches_its_handlers(
    kit: MeterKit, kind: str, data: dict[str, Any], expected: dict[str, Any]
) -> None:
    told = recorder(kit, kind)
    await tell(kit, "acme", kind, {"id": "evt_1", "at_ms": NOW_MS, **data})
    await eventually(lambda: len(told) == 1)
    found = {name: getattr(told[0], name) for name in expected}
    assert (told[0].id, told[0].customer, told[0].at, found) == ("evt_1", "acme", NOW, expected)


async def test_a_deletion_erases_the_notices_of_all_pages(
    kit: MeterKit, valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.customers.deletion._PAGE", 2)
    for nth in range(5):
        await tell(kit, "acme", "access.changed", {"id": f"evt_{nth}", "at_ms": NOW_MS})
    assert (await erase(kit, "acme")).notices == 5
    assert valkey.command("XLEN", kit.store.keys.customer("acme").notices) == 0


async def test_a_refused_link_leaves_no_claim_with_the_id(kit: MeterKit, valkey: Server) -> None:
    await kit.customers.link("acme", "cus_1")
    with pytest.raises(CustomerError, match="linked to Stripe customer cus_1 already"):
        await kit.customers.link("acme", "cus_2")
    assert [key for key in valkey.command("KEYS", "*") if "cus_2" in str(key)] == []


async def test_a_deleted_customer_leaves_nothing_but_a_report(kit: MeterKit, valkey: Server) -> None:
    await kit.customers.link("acme", "cus_1")
    await fetched(kit, subscription(cancel_at_ms=END))
    await kit.grants.add("acme", {"requests": 5}, grant_id="gift")
    await kit.gauges.set("acme", "seats", 2)
    await kit.consume("acme", "requests", 3)
    await kit.customers.set_plan("globex", "pro")
    deleted = await erase(kit, "acme")
    assert (deleted.state, deleted.link, deleted.gauges, deleted.history, deleted.notices) == (1, 1, 1, 5, 1)
    assert deleted.counters >= 2
    assert deleted.grants >= 1
    # Of the Stripe customer only a tombstone, and in which shard its intents are: both without an id.
    found = [key for key in valkey.command("KEYS", "*") if "acme" in str(key) or "cus_1" in str(key)]
    keys = kit.store.keys
    assert {*found} == {keys.link("cus_1"), keys.formers("cus_1")}
    assert "acme" not in str(valkey.command("GET", keys.link("cus_1")))
    assert "acme" not in str(valkey.command("HGETALL", keys.formers("cus_1")))
    for shard in range(4):
        assert valkey.command("ZSCORE", kit.store.keys.turns(shard), "acme") is None
        assert "acme" not in str(valkey.command("XRANGE", kit.store.keys.notices(shard), "-", "+"))
    assert await lines(kit, "globex") == [("plan", "free", "pro", "operator")]
    again = await erase(kit, "acme")
    assert not any((again.state, again.counters, again.history, again.notices))


async def test_an_unreadable_state_does_not_stop_the_sweep(
    kit: MeterKit, valkey: Server, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for nth in range(3):
        await fetched(kit, subscription(**FAILING), customer=f"c{nth}")
    valkey.command("HSET", kit.store.keys.customer("c1").state, "data", "[]")
    clock.set(NOW + 7 * DAY)
    assert await sweep(kit) == 2
    assert "for customer 'c1' cannot be entered" in caplog.text


async def test_a_damaged_key_of_a_customer_does_not_stop_the_sweep(
    kit: MeterKit, valkey: Server, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for nth in range(3):
        await fetched(kit, subscription(**FAILING), customer=f"c{nth}")
    keys = kit.store.keys.customer("c0")
    valkey.command("SET", keys.history, "no list")
    valkey.command("SET", kit.store.keys.customer("c1").state, "no hash")
    clock.set(NOW + 7 * DAY)
    assert await sweep(kit) == 1
    assert "for customer 'c0' cannot be entered" in caplog.text
    assert "for customer 'c1' cannot be entered" in caplog.text


async def test_a_host_that_is_ahead_enters_nothing_early(store_url: str) -> None:
    catalog, now = loads(completed(PLANS)), datetime.now(UTC)
    begun = now - 10 * DAY
    terms: dict[str, Any] = {"start_ms": begun, "anchor_ms": begun, "created_ms": begun}
    terms |= {"end_ms": now + 20 * DAY, "cancel_at_ms": now + DAY}
    async with MeterKit(catalog, redis_url=store_url, shards=4, flush=False, store_timeout=60.0) as kit:
        await fetched(kit, subscription(**terms))
        kit.store.clock = lambda: time() + 3 * 86_400
        assert await sweep(kit) == 0
        await fetched(kit, subscription(**terms, seats=7))
        assert {cause for *_, cause in await lines(kit)} == {"evt_1"}


# Periods.


async def period_of(kit: MeterKit) -> tuple[Any, int]:
    usage = await kit.usage("acme")
    return usage["period"], usage["meters"]["requests"]["recorded"]


async def test_a_confirmed_renewal_keeps_provisional_counts(kit: MeterKit, clock: Clock) -> None:
    january = datetime(2031, 1, 31, 10, tzinfo=UTC)
    february, march = january.replace(month=2, day=28), january.replace(month=3, day=31)
    clock.set(january + DAY)
    bounds: dict[str, Any] = {"anchor_ms": january, "created_ms": january}
    await fetched(kit, subscription(**bounds, start_ms=january, end_ms=february))
    await kit.record("acme", "requests", 3)
    clock.set(february + timedelta(hours=2))
    await kit.record("acme", "requests", 5)
    period, recorded = await period_of(kit)
    assert (period["start"], period["end"], recorded) == (february, march, 5)
    assert period["provisional"]
    await fetched(kit, subscription(**bounds, start_ms=february, end_ms=march))
    period, recorded = await period_of(kit)
    assert (period["start"], period["end"], recorded) == (february, march, 5)
    assert not period["provisional"]


async def test_a_cancellation_taken_back_gives_included_units_once(kit: MeterKit, clock: Clock) -> None:
    """The counters ended when it would have, and nothing came until then to tell them that they go on."""
    await fetched(kit, subscription(cancel_at_ms=NOW + DAY))
    await kit.record("acme", "requests", 7)
    await fetched(kit, subscription())
    clock.set(NOW + 2 * DAY)
    await kit.record("acme", "requests", 5)
    assert (await kit.usage("acme"))["meters"]["requests"]["used"] == 12
