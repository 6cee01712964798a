"""I13: usage is billed at the price in force when it was recorded, whoever changes it afterwards."""
# Internals: the lease that another call for a customer holds.

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import anyio
import anyio.lowlevel
import pytest

from drivers.delivery import kit_for
from drivers.priced_shop import CATALOG, PLANS, item_lines, metered_lines, renewed, sell
from drivers.sampled import whole
from drivers.shop import END, HALF, START, Shop, shop
from drivers.sync_queue import queue_sync
from faults.inner_steps import failing
from meterkit import SubscriptionChanged
from meterkit.catalog import loads
from meterkit.errors import StoreError, StripeUnavailableError
from meterkit.subscriptions.service.change_lease import hold_change_lease
from subscriptions.looks import known, synced

pytestmark = pytest.mark.anyio


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=CATALOG, selling=sell) as opened:
        yield opened


async def switch(at: Shop, plan: str = "cheaper") -> None:
    """Change the price from 5 to 3 cents, or to none, past the kit, of which no webhook tells."""
    (begun,) = await at.stripe_list("/v1/subscriptions")
    items = {item["price"]["id"]: item["id"] for item in begun["items"]["data"]}
    changed = {"items[0][id]": items["price_basic"], "items[0][price]": f"price_{plan}"}
    changed["items[1][id]"] = items["price_basic_tokens"]
    metered = {"items[1][price]": "price_cheaper_tokens"}
    changed |= metered if plan == "cheaper" else {"items[1][deleted]": "true"}
    await at.stripe_change(f"/v1/subscriptions/{begun['id']}", **changed)


async def late(at: Shop) -> tuple[int, int]:
    """Units of the period that are late; of those of tokens that are pending or on their way."""
    tokens = (await at.kit.usage("acme"))["meters"]["tokens"]
    return tokens["late"], tokens["pending"]


async def billed_late(at: Shop) -> list[tuple[int, int]]:
    """Units and cents of invoice items for late usage."""
    return [(units, cents) for _, units, cents in await item_lines(at)]


@pytest.mark.parametrize(
    ("plan", "to", "lines"),
    [
        ("basic", "cheaper", [("price_basic_tokens", 1_000, 5), ("price_cheaper_tokens", 70, 3)]),
        ("basic", "other", [("price_basic_tokens", 1_000, 5)]),
        ("cheaper", "basic", [("price_cheaper_tokens", 1_000, 3), ("price_basic_tokens", 70, 5)]),
    ],
)
async def test_i13_usage_pending_at_an_upgrade_has_the_old_price(
    store_url: str, plan: str, to: str, lines: list[tuple[str, int, int]]
) -> None:
    """And at a downgrade at once."""
    catalog = loads(PLANS.replace("plans:\n  free:", "billing: {changes: {downgrade: now}}\nplans:\n  free:"))
    async with shop(store_url, catalog=catalog, selling=sell) as at:
        await at.subscribed(plan=plan)
        at.clock.set(HALF)
        await at.kit.record("acme", "tokens", 1_100)
        change = await at.kit.subscriptions.change_plan("acme", to)
        assert (change.confirmed, change.subscription.plan) == (True, to)
        await at.kit.record("acme", "tokens", 70)
        await renewed(at)
        assert await metered_lines(at) == lines


async def test_i13_overage_costs_what_it_cost_when_recorded(at: Shop) -> None:
    await at.subscribed(plan="basic")
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 160)
    assert (await at.kit.usage("acme"))["meters"]["tokens"]["overage_cents"] == 300
    await at.kit.subscriptions.change_plan("acme", "cheaper")
    await at.kit.record("acme", "tokens", 20)
    assert (await at.kit.usage("acme"))["meters"]["tokens"]["overage_cents"] == 360
    await at.kit.customers.set_plan("acme", "basic")
    await at.kit.record("acme", "tokens", 1)
    # A plan that is set by hand changes no item at Stripe: that bills 3 cents a unit.
    assert (await at.kit.usage("acme"))["meters"]["tokens"]["overage_cents"] == 363


@pytest.mark.parametrize("path", ["/v1/billing/meter_events", "/v1/billing/meters"])
async def test_i13_undeliverable_usage_refuses_the_change(at: Shop, path: str) -> None:
    begun = await at.subscribed(plan="basic")
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 1_100)
    items = await at.items(begun.id)
    at.emulator.fail_next("error", status=503, times=100, path=path)
    with pytest.raises(StripeUnavailableError):
        await at.kit.subscriptions.change_plan("acme", "cheaper")
    assert await at.items(begun.id) == items
    found = await known(at)
    assert (found.plan, found.pending_change) == ("basic", None)
    at.emulator.clear_faults()
    # The customer's own requests were counted meanwhile; they are delivered, and the change goes through.
    await at.kit.record("acme", "tokens", 30)
    at.clock.advance(timedelta(minutes=1))
    await at.kit.flush(everything=True, timeout_s=0)
    assert sum(int(event.value) for event in at.emulator.events) == 1_030
    at.clock.advance(timedelta(minutes=9, seconds=20))
    assert (await at.kit.subscriptions.change_plan("acme", "cheaper")).subscription.plan == "cheaper"
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 1_030, 5)]


async def test_i13_usage_recorded_during_a_change_has_the_new_price(at: Shop) -> None:
    begun = await at.subscribed(plan="basic")
    at.clock.set(HALF + timedelta(seconds=20))
    await at.kit.record("acme", "tokens", 1_100)
    at.emulator.fail_next("delay", delay_s=1.5, skip=2, path=f"/v1/subscriptions/{begun.id}")
    async with anyio.create_task_group() as changing:
        changing.start_soon(at.kit.subscriptions.change_plan, "acme", "cheaper")
        while not at.emulator.events:  # noqa: ASYNC110 - the emulator tells nobody
            await anyio.sleep(0.02)
        await at.kit.record("acme", "tokens", 40)
        await at.kit.flush()
        assert (await at.kit.usage("acme"))["meters"]["tokens"]["pending"] == 40
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 1_000, 5), ("price_cheaper_tokens", 40, 3)]


async def test_i13_a_change_is_of_the_minute_of_stripes_clock(at: Shop) -> None:
    """Stripe's clock is 50 seconds ahead: by the host's clock the change is in the minute before."""
    await at.subscribed(plan="basic")
    at.emulator.clock = lambda: at.clock() + 50
    at.clock.set(HALF + timedelta(seconds=20))
    await at.kit.record("acme", "tokens", 1_100)
    await at.kit.subscriptions.change_plan("acme", "cheaper")
    await at.kit.record("acme", "tokens", 40)
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 1_000, 5), ("price_cheaper_tokens", 40, 3)]


@asynccontextmanager
async def slow(store_url: str, lag_s: int = 60) -> AsyncGenerator[Shop]:
    """A shop with a change of plan that Stripe, which counts what it accepts later, has not confirmed yet."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("meterkit.subscriptions.service.accepted_changes.ANSWER_S", 2.0)
        async with shop(store_url, catalog=CATALOG, selling=sell) as at:
            await at.subscribed(plan="basic")
            at.clock.set(HALF)
            await at.kit.record("acme", "tokens", 1_100)
            at.emulator.summary_lag_s = lag_s
            change = await at.kit.subscriptions.change_plan("acme", "cheaper")
            assert (change.confirmed, change.subscription.plan) == (False, "basic")
            assert change.subscription.pending_change is not None
            assert change.subscription.pending_change.plan == "cheaper"
            yield at


async def retried(at: Shop, minutes: int) -> tuple[str | None, str | None]:
    """The plan and the pending one, so many minutes after the change was asked for."""
    at.clock.set(HALF + timedelta(minutes=minutes))
    await at.kit.subscriptions.retry_accepted()
    found = await known(at)
    return found.plan, found.pending_change.plan if found.pending_change else None


async def test_i13_a_slow_change_goes_on_and_reports_its_outcome(store_url: str) -> None:
    async with slow(store_url) as at:
        told: list[SubscriptionChanged] = []
        at.kit.on("subscription.changed")(told.append)
        assert await retried(at, 3) == ("cheaper", None)
        await renewed(at)
        assert await metered_lines(at) == [("price_basic_tokens", 1_000, 5)]
        with anyio.fail_after(240):
            while not told or told[-1].plan != "cheaper":  # noqa: ASYNC110 - another task tells
                await anyio.sleep(0.05)


async def test_i13_a_change_waits_for_units_of_a_renamed_meter(store_url: str) -> None:
    """Stripe has counted more units under the former name."""
    renamed = loads(PLANS.replace("tokens:", "words:"))
    async with shop(store_url, catalog=CATALOG, selling=sell) as at:
        await at.subscribed(plan="basic")
        at.clock.set(HALF)
        await at.kit.record("acme", "tokens", 600)
        await at.kit.flush(everything=True)
        at.clock.advance(timedelta(minutes=5))
        at.emulator.summary_lag_s = 60
        async with kit_for(store_url, at.url, clock=at.clock, catalog=renamed) as kit:
            await kit.record("acme", "words", 150)
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("meterkit.delivery.usage_cutter._COUNTING_S", 0.0)
                with pytest.raises(StripeUnavailableError, match="has not counted 50 units"):
                    await kit.subscriptions.change_plan("acme", "cheaper")


async def test_a_change_refused_after_acceptance_leaves_the_plan(store_url: str) -> None:
    async with slow(store_url) as at:
        await at.fail_payments()
        assert await retried(at, 3) == ("basic", None)


async def test_a_change_never_confirmed_is_given_up(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.subscriptions.service.accepted_changes._TIMEOUT_S", 0.5)
    async with slow(store_url, lag_s=86_400) as at:
        assert await retried(at, 3) == ("basic", "cheaper")
        assert await retried(at, 20) == ("basic", None)


async def test_an_accepted_change_waits_for_another_call(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was killed amid a change holds its customer for a minute, too."""
    monkeypatch.setattr("meterkit.subscriptions.service.subscriptions_facade.ANSWER_S", 1.0)
    async with slow(store_url) as at:
        async with hold_change_lease(at.kit.store, "acme"):
            assert await retried(at, 3) == ("basic", "cheaper")
        assert await retried(at, 4) == ("cheaper", None)


async def test_a_retried_change_does_not_undo_a_later_one(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with slow(store_url) as at:
        monkeypatch.setattr("meterkit.subscriptions.service.accepted_changes.ANSWER_S", 600.0)
        at.clock.set(HALF + timedelta(minutes=3))
        before = len(at.emulator.requests)
        async with anyio.create_task_group() as changing:
            changing.start_soon(at.kit.subscriptions.change_plan, "acme", "other")
            while len(at.emulator.requests) == before:
                await anyio.lowlevel.checkpoint()
            await at.kit.subscriptions.retry_accepted()
        found = await known(at)
        assert (found.plan, found.pending_change) == ("other", None)


@pytest.mark.parametrize("queue", ["changes", "prices"])
async def test_damaged_customers_hold_up_no_accepted_change(
    store_url: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with slow(store_url) as at:
        client, keys = (await at.kit.store.admin()).client, at.kit.store.keys
        await client.hset(keys.customer("a0").state, "data", "[]")
        await client.set(keys.customer("a1").state, "no hash")
        await client.zadd(keys.hooks(queue), {"a0": 1, "a1": 2})
        assert await retried(at, 3) == ("cheaper", None)
        # Each is tried again an hour later.
        assert await client.zcount(keys.hooks(queue), "-inf", (HALF.timestamp() + 3_600) * 1000) == 0
        assert await client.zcard(keys.hooks(queue)) == 2
        assert [f"of customer '{name}' cannot be made" in caplog.text for name in ("a0", "a1")] == [
            True,
            True,
        ]


@pytest.mark.parametrize(
    ("plan", "late_usage"),
    [("cheaper", "next_period"), whole("none", "next_period"), ("cheaper", "dead_letter")],
)
async def test_i13_usage_that_missed_a_foreign_change_is_late(
    store_url: str, plan: str, late_usage: str, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = loads(
        PLANS.replace("plans:\n  free:", f"billing: {{late_usage: {late_usage}}}\nplans:\n  free:")
    )
    async with shop(store_url, catalog=catalog, selling=sell) as at:
        await at.subscribed(plan="basic")
        at.clock.set(HALF + timedelta(seconds=20))
        await at.kit.record("acme", "tokens", 600)
        await at.kit.flush(everything=True)
        at.clock.advance(timedelta(minutes=5))
        await at.kit.record("acme", "tokens", 50)
        await switch(at, plan)
        await at.kit.subscriptions.sync("acme")
        assert (await synced(at)).plan == plan  # Looked at again: nothing more is late.
        assert "50 units of tokens that customer 'acme' used at $0.05 each" in caplog.text
        assert await late(at) == (50, 0)
        await renewed(at)
        assert await metered_lines(at) == [("price_basic_tokens", 500, 5)]
        assert await billed_late(at) == ([(50, 250)] if late_usage == "next_period" else [])


GATHERED: Final = timedelta(seconds=310)
LOOKS: Final = "/v1/subscriptions"


@pytest.fixture
async def used(store_url: str) -> AsyncGenerator[Shop]:
    """A shop with a subscriber who has 500 units of overage at 5 cents that Stripe has counted."""
    async with shop(store_url, catalog=CATALOG, selling=sell) as opened:
        await opened.subscribed(plan="basic")
        opened.clock.set(HALF + timedelta(seconds=20))
        await opened.kit.record("acme", "tokens", 600)
        await opened.kit.flush(everything=True)
        opened.clock.advance(timedelta(minutes=5))
        yield opened


async def refused(at: Shop) -> None:
    """What is pending is sealed, and Stripe refuses it for the moment."""
    at.clock.advance(GATHERED)
    at.emulator.fail_next("error", status=429, times=None)
    at.emulator.fail_next("error", status=503, times=None, path=LOOKS)
    await at.kit.flush()
    at.emulator.clear_faults()


async def counted(at: Shop) -> int:
    (begun,) = await at.stripe_list("/v1/subscriptions")
    return int(at.emulator.accepted(begun["customer"], "ai_tokens"))


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_i13_usage_that_has_waited_is_sent_after_a_look(
    used: Shop, is_sealed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await used.kit.record("acme", "tokens", 50)
    if is_sealed:
        await refused(used)
    used.clock.advance(timedelta(minutes=30))
    await switch(used)
    used.clock.advance(timedelta(minutes=30))
    used.emulator.clear_faults()
    await used.kit.flush(everything=True)
    assert "50 units of tokens that customer 'acme' used at $0.05 each were not delivered" in caplog.text
    assert "an invoice item bills them at that price" in caplog.text
    assert await late(used) == (50, 0)
    await renewed(used)
    assert await metered_lines(used) == [("price_basic_tokens", 500, 5)]
    assert await item_lines(used) == [("Tokens, 50 units of 1\N{EN DASH}16 Jun 2031", 50, 250)]


async def sealed_around_a_switch(at: Shop) -> None:
    """Usage from before the change, around it and after it waits until Stripe is asked."""
    for quantity in (50, 20, 7):  # Before the change; around it; after it.
        await at.kit.record("acme", "tokens", quantity)
        if quantity == 20:
            await switch(at)
        await refused(at)


UPDATED: Final = "customer.subscription.updated"


async def test_i13_a_busy_account_is_not_read_through(used: Shop) -> None:
    """Stripe's events of a day have no end in a large account; the one that tells of the change is known."""
    await sealed_around_a_switch(used)
    *_, told = [event.id for event in used.emulator.webhook_events if event.type == UPDATED]
    account: Any = vars(used.emulator)["_account"]
    for nth in range(1_000):
        account.emit(UPDATED, {"id": "sub_other", "nth": nth}, previous={"nth": -1})
    used.clock.advance(GATHERED)
    before = len(used.emulator.requests)
    await queue_sync(used.kit, cause=told)
    looks = [asked for asked in used.emulator.requests[before:] if asked.path.startswith("/v1/events")]
    assert len(looks) <= 5
    await used.kit.flush(everything=True)
    assert await late(used) == (70, 0)


async def test_i13_usage_sealed_after_the_change_has_the_new_price(used: Shop) -> None:
    await sealed_around_a_switch(used)
    used.emulator.clear_faults()
    await used.kit.flush(everything=True)
    assert await late(used) == (70, 0)
    await renewed(used)
    cheaper = sum(units for price, units, _ in await metered_lines(used) if price == "price_cheaper_tokens")
    assert (cheaper, await billed_late(used)) == (7, [(70, 350)])


@pytest.mark.parametrize("stripe_has_it", [True, False])
async def test_i13_usage_in_doubt_is_late_once_its_summary_lacks_it(
    used: Shop, stripe_has_it: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await used.kit.record("acme", "tokens", 50)
    used.clock.advance(GATHERED)
    used.emulator.fail_next("drop", when="after" if stripe_has_it else "before", times=1)
    await used.kit.flush()
    used.clock.advance(timedelta(minutes=30))
    await switch(used)
    await used.kit.subscriptions.sync("acme")
    await used.kit.flush(everything=True, timeout_s=0.1)
    assert await late(used) == (0, 0)  # Nobody knows yet.
    for _ in range(2):
        used.clock.advance(timedelta(hours=26))
        await used.kit.flush(everything=True)
    assert await late(used) == (0 if stripe_has_it else 50, 0)
    assert ("50 units of tokens that customer 'acme' used" in caplog.text) is not stripe_has_it
    await renewed(used)
    assert await metered_lines(used) == [("price_basic_tokens", 550 if stripe_has_it else 500, 5)]
    assert await billed_late(used) == ([] if stripe_has_it else [(50, 250)])


async def test_i13_an_interrupted_look_makes_nothing_late_twice(used: Shop) -> None:
    await used.kit.record("acme", "tokens", 50)
    await switch(used)
    with failing("a state is stored"), pytest.raises(StoreError):
        await used.kit.subscriptions.sync("acme")
    used.clock.advance(timedelta(minutes=3))
    await used.kit.subscriptions.sync("acme")
    assert await late(used) == (50, 0)
    await renewed(used)
    assert await metered_lines(used) == [("price_basic_tokens", 500, 5)]
    assert await billed_late(used) == [(50, 250)]


async def test_a_key_that_may_not_read_subscriptions_holds_nothing_up(used: Shop) -> None:
    await used.kit.record("acme", "tokens", 50)
    used.clock.advance(timedelta(minutes=30))
    used.emulator.fail_next("error", status=403, times=None, path=LOOKS)
    await used.kit.flush()
    used.emulator.clear_faults()
    assert await counted(used) == 550


@pytest.mark.parametrize("ago", [timedelta(hours=1), timedelta(seconds=1), -timedelta(minutes=10)])
async def test_i13_pending_usage_of_a_closed_period_keeps_its_price(used: Shop, ago: timedelta) -> None:
    """F-226: webhook and worker were late, and the draft had the price of the portal, or no line at all."""
    used.clock.set(END - timedelta(minutes=3) - max(ago, timedelta()))
    await used.kit.record("acme", "tokens", 50)
    used.go(END - ago)
    await switch(used)
    used.go(END + timedelta(minutes=20))
    await used.kit.record("acme", "tokens", 10)
    await used.kit.flush(everything=True)
    used.go(END + timedelta(hours=2))
    used.go(END + timedelta(days=31))
    assert await metered_lines(used) == [("price_basic_tokens", 500, 5)]
    assert await billed_late(used) == [(50, 250)]
    assert all(one.agrees for one in await used.kit.reconcile("acme", at=HALF))


async def test_i13_an_unknown_correction_is_undone(used: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """F-222: units were shown as taken back, and their line or their invoice item billed them."""
    await used.kit.record("acme", "tokens", 20)
    await refused(used)
    used.clock.advance(timedelta(minutes=2))
    (first,) = await used.kit.correct("acme", {"tokens": 50}, reason="a loop", correction_id="c-1")
    assert (first.taken_back, first.by_hand) == (50, 0)
    await switch(used)
    used.clock.advance(timedelta(minutes=2))
    await used.kit.subscriptions.sync("acme")
    # Of 50 units Stripe did not have 20, and no invoice bills these.
    usage = (await used.kit.usage("acme"))["meters"]["tokens"]
    assert (usage["overage"], usage["overage_cents"], usage["late"]) == (500, 2_500, 0)
    assert "took back 30 units of tokens that customer 'acme' used at $0.05 each" in caplog.text
    used.clock.advance(timedelta(minutes=5))
    await used.kit.flush(everything=True)
    (again,) = await used.kit.correct("acme", {"tokens": 30}, reason="a loop", correction_id="c-2")
    assert (again.taken_back, again.by_hand, again.by_hand_cents) == (0, 30, 150)
    await renewed(used)
    assert await metered_lines(used) == [("price_basic_tokens", 500, 5)]
    assert await item_lines(used) == []
    assert all(one.agrees for one in await used.kit.reconcile("acme", at=HALF))


async def test_i13_pending_units_that_are_taken_back_are_not_sent(used: Shop) -> None:
    """As many units are pending as a correction takes back that Stripe does not have: neither is sent."""
    (first,) = await used.kit.correct("acme", {"tokens": 30}, reason="a loop", correction_id="c-1")
    assert (first.taken_back, first.by_hand) == (30, 0)
    await used.kit.record("acme", "tokens", 30)
    await switch(used)
    used.clock.advance(timedelta(minutes=2))
    await used.kit.subscriptions.sync("acme")
    assert await late(used) == (0, 0)
    used.clock.advance(timedelta(minutes=5))
    await used.kit.flush(everything=True)
    assert await counted(used) == 500
    await renewed(used)
    assert await metered_lines(used) == [("price_basic_tokens", 500, 5)]
    assert await item_lines(used) == []
    assert all(one.agrees for one in await used.kit.reconcile("acme", at=HALF))


async def test_i13_each_invoice_item_says_its_own_period(used: Shop) -> None:
    used.clock.set(END - timedelta(minutes=3))
    await used.kit.record("acme", "tokens", 50)
    used.go(END + timedelta(minutes=10))
    await used.kit.record("acme", "tokens", 110)
    await switch(used)
    changed = int(used.clock())
    await used.kit.subscriptions.sync("acme")
    used.clock.advance(timedelta(minutes=2))
    await used.kit.flush(everything=True)
    items = await used.stripe_list("/v1/invoiceitems")
    spans = sorted(
        (one["period"]["start"], one["period"]["end"], int(float(one["quantity_decimal"])))
        for one in items
        if one["metadata"].get("meterkit_meter") == "tokens"
    )
    ended, began = int(END.timestamp()), int(START.timestamp())
    assert spans == [(began, ended, 50), (ended, changed, 10)]
