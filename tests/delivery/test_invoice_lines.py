"""Usage on invoices without meters at Stripe: meterkit writes the lines (`billing: {usage: lines}`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from drivers.delivery import deliver, kit_for
from drivers.period_ends import look_at_closes
from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_lines import end_period, shop_of_lines, usage_lines
from meterkit import MeterUsage
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop_of_lines(store_url) as opened:
        yield opened


async def words(at: Shop, when: datetime | None = None) -> MeterUsage:
    return (await at.kit.usage("acme", period=when))["meters"]["words"]


async def test_usage_of_a_period_is_one_line_of_its_renewal(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    report = await deliver(at.kit, everything=True)
    assert (report.left, report.lines, (await words(at))["pending"]) == (0, 0, 26)
    await end_period(at)
    report = await deliver(at.kit, everything=True)
    assert (report.lines, report.left, report.why) == (1, 0, "")
    assert await usage_lines(at) == [("Words", "26", "4", 104)]
    assert (await words(at, END - timedelta(days=1)))["delivered"] == 26


async def test_a_line_waits_until_stripe_has_made_its_invoice(
    at: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(END + timedelta(seconds=30))
    with monkeypatch.context() as slow:  # Stripe's clock is half a minute behind.
        slow.setattr(at.emulator, "clock", lambda: END.timestamp() - 1)
        report = await deliver(at.kit, everything=True, timeout_s=0)
        asked = len(at.emulator.requests)
        await deliver(at.kit, timeout_s=0)
        assert not [one.path for one in at.emulator.requests[asked:] if "subscriptions" in one.path]
    assert (report.lines, report.left, await usage_lines(at)) == (0, 1, [])
    assert (await deliver(at.kit, everything=True, timeout_s=0)).lines == 1
    assert (await usage_lines(at), (await words(at, HALF))["late"]) == ([("Words", "26", "4", 104)], 0)


async def test_each_price_of_a_period_has_a_line(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.change_plan("acme", "team")
    await at.kit.record("acme", "words", 10)
    await end_period(at)
    assert (await deliver(at.kit, everything=True)).why == ""
    assert sorted(await usage_lines(at)) == [("Words", "10", "7", 70), ("Words", "26", "4", 104)]


async def test_a_draft_waits_for_its_lines_and_is_finalized(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    await end_period(at)
    await deliver(at.kit, everything=True)
    at.clock.advance(timedelta(minutes=10))
    assert (await look_at_closes(at.kit)).confirmed == 1
    at.go(timedelta(hours=2))
    renewal = (await at.invoices())[-1]
    assert (renewal["status"], renewal["total"]) == ("paid", 2900 + 104)
    assert [found.advice for found in await at.kit.reconcile("acme", at=HALF)] == [""]


async def test_usage_after_its_invoice_is_final_is_on_the_next_one(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    at.go(END + timedelta(minutes=3))
    at.go(timedelta(hours=3))
    await at.kit.subscriptions.sync("acme")
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == []
    assert (await words(at, HALF))["late"] == 26
    at.go(END + timedelta(days=31, minutes=3))
    assert await usage_lines(at) == [("Words", "26", "4", 104)]


async def test_a_cancellation_now_bills_its_usage(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.kit.subscriptions.sync("acme")
    await deliver(at.kit, everything=True)
    at.go(timedelta(minutes=15))
    await deliver(at.kit, everything=True)
    at.go(timedelta(hours=2))
    assert await usage_lines(at) == [("Words", "26", "4", 104)]
    assert (await at.invoices())[-1]["status"] == "paid"


async def test_an_invoice_after_the_end_has_the_former_terms(at: Shop) -> None:
    rate = await at.post("/v1/tax_rates", {"display_name": "VAT", "percentage": 25, "inclusive": False})
    subscription = await at.kit.subscriptions.get("acme")
    assert subscription is not None
    terms = {"collection_method": "send_invoice", "days_until_due": 14, "default_tax_rates": [rate["id"]]}
    await at.post(f"/v1/subscriptions/{subscription.id}", terms)
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.kit.subscriptions.sync("acme")
    at.go(timedelta(minutes=15))
    await deliver(at.kit, everything=True)
    at.go(timedelta(hours=2))
    last = (await at.invoices())[-1]
    assert (last["collection_method"], last["status"], last["total"]) == ("send_invoice", "open", 130)
    assert last["due_date"] - last["created"] == 14 * 86_400


async def test_usage_without_a_subscription_gets_an_invoice_of_its_own(at: Shop) -> None:
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    await at.kit.record("bob", "words", 101)
    at.go(END + timedelta(minutes=3))
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "1", "4", 4)]


async def test_a_subscriber_keeps_the_price_that_the_file_had(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    dearer = loads(plans_text("invoice_lines").replace("amount_cents: 4}", "amount_cents: 9}"))
    at.kit.store.use(dearer)
    await at.kit.subscriptions.sync("acme")
    assert (await words(at)).get("price", {}).get("amount_cents") == 4
    await end_period(at)
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "26", "4", 104)]


async def test_units_after_an_override_that_bills_are_not_billed(store_url: str) -> None:
    """The plan denies overage: what is recorded after the override is not pending, and has no price."""
    billed = "{included: 100, overage: {bill: {per: 1, amount_cents: 7}}}"
    text = plans_text("invoice_lines").replace(billed, "{included: 100, overage: deny}")
    async with shop(store_url, catalog=loads(text), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="team")
        at.clock.advance(timedelta(days=1))
        own = {"overage": {"bill": {"per": 1, "amount_cents": 2}}}
        await at.kit.customers.override("acme", {"words": own}, until=HALF)
        await at.kit.record("acme", "words", 126)
        at.clock.set(HALF + timedelta(seconds=1))
        await at.kit.subscriptions.retry_accepted()
        await at.kit.record("acme", "words", 20)
        at.go(END + timedelta(minutes=3))
        await at.kit.subscriptions.sync("acme")
        await deliver(at.kit, everything=True)
        assert await usage_lines(at) == [("Words", "26", "2", 52)]


@pytest.mark.parametrize("edited", [2, 20])
async def test_an_override_leaves_the_period_its_kept_price(at: Shop, edited: int) -> None:
    """A dearer price begins with the next period, whatever the plans file has by now."""
    file = plans_text("invoice_lines").replace("amount_cents: 4}", f"amount_cents: {edited}}}")
    at.kit.store.use(loads(file))
    await at.kit.record("acme", "words", 126)
    await at.kit.customers.override("acme", {"words": {"overage": {"bill": {"per": 1, "amount_cents": 11}}}})
    await at.kit.record("acme", "words", 5)
    await end_period(at)
    assert (await words(at)).get("price", {}).get("amount_cents") == 11
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "31", "4", 124)]


async def test_a_price_by_override_has_a_line_until_it_ends(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.advance(timedelta(days=1))
    cheaper = {"overage": {"bill": {"per": 1, "amount_cents": 1}}}
    await at.kit.customers.override("acme", {"words": cheaper}, until=HALF)
    await at.kit.record("acme", "words", 10)
    at.clock.set(HALF + timedelta(seconds=1))
    await at.kit.subscriptions.retry_accepted()
    await at.kit.record("acme", "words", 5)
    await end_period(at)
    await deliver(at.kit, everything=True)
    assert sorted(await usage_lines(at)) == [("Words", "10", "1", 10), ("Words", "31", "4", 124)]


async def test_a_scheduled_plan_bills_each_period_at_its_price(at: Shop) -> None:
    await at.kit.subscriptions.change_plan("acme", "team")
    await at.kit.record("acme", "words", 102)
    await at.kit.subscriptions.change_plan("acme", "pro")
    at.go(END + timedelta(minutes=3))
    await at.kit.record("acme", "words", 103)
    await at.kit.subscriptions.sync("acme")
    await deliver(at.kit, everything=True)
    at.go(END + timedelta(days=31, minutes=3))
    await at.kit.subscriptions.sync("acme")
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "2", "7", 14), ("Words", "3", "4", 12)]


async def test_a_plan_changed_at_stripe_bills_each_price(at: Shop) -> None:
    await at.kit.record("acme", "words", 102)
    at.clock.set(HALF)
    found = await at.kit.subscriptions.get("acme")
    assert found is not None
    item = (await at.stripe_subscription(found.id))["items"]["data"][0]["id"]
    prices = await at.stripe_list("/v1/prices")
    team = next(price["id"] for price in prices if price["lookup_key"] == "meterkit:team:base")
    await at.post(f"/v1/subscriptions/{found.id}", {"items": [{"id": item, "price": team}]})
    await at.kit.subscriptions.sync("acme")
    await at.kit.record("acme", "words", 10)
    await end_period(at)
    await deliver(at.kit, everything=True)
    assert sorted(await usage_lines(at)) == [("Words", "10", "7", 70), ("Words", "2", "4", 8)]


YEARLY = plans_text("invoice_lines").replace(
    "{amount_cents: 2900, interval: month}", "{amount_cents: 29000, interval: year, included_per: month}"
)


async def test_each_month_of_a_yearly_plan_is_billed(store_url: str) -> None:
    async with shop(store_url, catalog=loads(YEARLY), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 126)
        at.go(END + timedelta(minutes=3))
        await deliver(at.kit, everything=True)
        counts = await words(at, HALF)
        assert (counts["queued"], counts["delivered"]) in {(26, 0), (0, 26)}


async def test_usage_before_a_subscription_has_an_invoice_of_its_own(at: Shop) -> None:
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    await at.kit.record("bob", "words", 126)
    at.clock.set(HALF)
    await at.kit.customers.set_plan("bob", None)
    await at.kit.subscriptions.create("bob", "team")
    await at.kit.subscriptions.sync("bob")
    at.go(END + timedelta(minutes=3))
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "26", "4", 104)]


async def test_usage_of_a_renamed_meter_is_billed_by_a_line(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    renamed = (
        plans_text("invoice_lines")
        .replace("words: {unit", "texts: {unit")
        .replace("words: {included", "texts: {included")
    )
    at.kit.store.use(loads(renamed))
    await end_period(at)
    report = await deliver(at.kit, everything=True)
    assert (report.sealed, report.left) == (1, 0)
    assert [line[1:] for line in await usage_lines(at)] == [("26", "4", 104)]


@pytest.mark.parametrize("later", [False, True])
async def test_a_scheduled_plan_leaves_the_ended_period_its_price(at: Shop, later: bool) -> None:
    await at.kit.subscriptions.change_plan("acme", "team")
    await at.kit.record("acme", "words", 126)
    await at.kit.subscriptions.change_plan("acme", "pro")
    at.go(END + timedelta(seconds=5))
    if later:
        await at.kit.subscriptions.sync("acme")
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "26", "7", 182)]


async def test_a_plan_that_has_left_the_file_keeps_its_prices(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    text = plans_text("invoice_lines")
    at.kit.store.use(loads(text.replace("  pro:\n", "  basic:\n")))
    await at.kit.subscriptions.sync("acme")
    await end_period(at)
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "26", "4", 104)]


@pytest.mark.parametrize("is_last", [False, True])
async def test_i13_a_process_without_the_plan_loses_no_usage_of_others(
    at: Shop, store_url: str, is_last: bool
) -> None:
    """As in a rolling deploy: each process bills what it records at the price of the plan."""
    older = loads(plans_text("invoice_lines").replace("  pro:\n", "  basic:\n"))
    await at.kit.record("acme", "words", 110)
    async with kit_for(store_url, at.url, clock=at.clock, catalog=older) as other:
        for kit in (other, at.kit, other, at.kit, *[other] * is_last):
            at.clock.advance(timedelta(hours=1))
            await kit.subscriptions.sync("acme")
            await at.kit.record("acme", "words", 5)
            await other.record("acme", "words", 1)
        await end_period(replace(at, kit=other))
        await other.flush(everything=True)
    units = 10 + 4 * 6 + 6 * is_last
    assert await usage_lines(at) == [("Words", str(units), "4", 4 * units)]


async def test_overage_that_the_file_denies_now_is_billed_as_recorded(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    denied = plans_text("invoice_lines").replace("{bill: {per: 1, amount_cents: 4}}", "deny")
    at.kit.store.use(loads(denied))
    await end_period(at)
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "26", "4", 104)]


async def month_by_month(at: Shop, months: int = 2) -> None:
    for _ in range(16 * months):
        at.go(timedelta(days=2))
        await at.kit.subscriptions.sync("acme")
        await deliver(at.kit, everything=True, timeout_s=0)


async def subscribe_at_stripe(at: Shop, **terms: int) -> None:
    """Have a person end a subscription in the Dashboard, and make another one."""
    found = await at.kit.subscriptions.get("acme")
    assert found is not None
    await at.stripe_delete(f"/v1/subscriptions/{found.id}")
    linked = (await at.kit.customers.get("acme")).stripe_customer
    assert linked is not None
    at.emulator.add_payment_method(linked)
    prices = {price["lookup_key"]: price["id"] for price in await at.stripe_list("/v1/prices")}
    items = [{"price": prices["meterkit:team:base"]}]
    await at.post("/v1/subscriptions", {"customer": linked, "items": items, **terms})


@pytest.mark.parametrize("terms", [{}, {"trial_period_days": 20}])
async def test_usage_before_a_recreated_subscription_is_billed(at: Shop, terms: dict[str, int]) -> None:
    """The kit sees both at once, and has not sealed the usage of the first one."""
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await subscribe_at_stripe(at, **terms)
    await month_by_month(at)
    assert await usage_lines(at) == [("Words", "26", "4", 104)]


async def test_usage_of_a_trial_stays_free_under_another_subscription(store_url: str) -> None:
    plans = plans_text("invoice_lines").replace("  pro:\n", "  pro:\n    trial: 14d\n")
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 126)
        at.go(timedelta(days=5))
        await subscribe_at_stripe(at)
        await at.kit.subscriptions.sync("acme")
        await at.kit.record("acme", "words", 110)
        at.go(timedelta(days=5))  # The trial would last until now.
        await at.kit.subscriptions.cancel("acme", immediately=True)
        await month_by_month(at, 1)
        assert await usage_lines(at) == [("Words", "10", "7", 70)]


async def test_usage_before_a_trial_in_mid_period_is_billed(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    found = await at.kit.subscriptions.get("acme")
    assert found is not None
    trial = {"trial_end": int(END.timestamp()), "proration_behavior": "none"}
    await at.post(f"/v1/subscriptions/{found.id}", trial)
    await at.kit.subscriptions.sync("acme")
    await at.kit.record("acme", "words", 300)
    await month_by_month(at)
    assert await usage_lines(at) == [("Words", "26", "4", 104)]


async def test_usage_of_a_period_cut_short_is_billed_at_once(at: Shop) -> None:
    found = await at.kit.subscriptions.get("acme")
    assert found is not None
    linked = (await at.kit.customers.get("acme")).stripe_customer
    fee = {"customer": linked, "subscription": found.id, "currency": "usd", "unit_amount_decimal": "500"}
    await at.post("/v1/invoiceitems", {**fee, "description": "Setup"})
    await at.kit.record("acme", "words", 126)
    await deliver(at.kit, everything=True)
    at.clock.set(HALF)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.kit.subscriptions.sync("acme")
    last = (await at.invoices())[-1]
    if last["status"] == "draft":
        await at.stripe_change(f"/v1/invoices/{last['id']}", auto_advance="true")
    at.go(timedelta(minutes=15))
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "26", "4", 104)]
