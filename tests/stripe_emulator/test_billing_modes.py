"""Billing modes: which one a subscription has, how classic billing charges, what flexible billing refuses."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from drivers.emulated_shop import (
    amounts,
    current,
    invoice_of,
    item_of,
    items_of,
    offer,
    refused,
    subscribe,
    use,
)
from drivers.emulated_times import DAY, MAY, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

CLASSIC: Any = {"billing_mode": {"type": "classic"}}
HALF = datetime(2026, 4, 16, tzinfo=UTC)


async def test_what_is_not_a_mode_is_refused(client: Any) -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-billing_mode."""
    for mode, message in (
        ({"type": "rigid"}, "must be one of classic, flexible"),
        ({"type": "classic", "flexible": {"proration_discounts": "itemized"}}, "can only be set where"),
    ):
        await refused(subscribe(client, billing_mode=mode), message)
    itemized = {"type": "flexible", "flexible": {"proration_discounts": "itemized"}}
    made = await subscribe(client, billing_mode=itemized)
    assert made.billing_mode.flexible.proration_discounts == "itemized"


async def test_classic_billing_never_bills_usage_before_a_switch(client: Any, clock: Clock) -> None:
    """ "Usage from January 1 to January 16 isn't billed".

    https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup
    """
    made = await subscribe(client, "price_tokens_1", **CLASSIC)
    assert amounts(invoice_of(made)) == [0]  # "A 0 USD line item", which flexible billing does without.
    await use(client, 500, at=SECOND)
    clock.set(HALF)
    await client.subscriptions.update(made.id, items=[{"id": item_of(made).id, "price": "price_tokens_2"}])
    await use(client, 100, at=SECOND + 15 * DAY)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    found = await current(client, made.id)
    assert [line.amount for line in invoice_of(found).lines.data if line.amount] == [200]


@pytest.mark.parametrize("at", [SECOND + 15 * DAY, MAY], ids=["inside", "at_the_end"])
@pytest.mark.parametrize("behavior", ["create_prorations", "none"])
async def test_a_classic_phase_adds_an_invoice(client: Any, clock: Clock, at: int, behavior: str) -> None:
    """Usage of a price that a phase lacks is on an invoice of its own.

    https://docs.stripe.com/billing/subscriptions/billing-mode/compare#usage-based-pricing
    """
    made = await subscribe(client, "price_10", "price_tokens_1", **CLASSIC)
    await use(client, 500, at=SECOND)
    schedule = await client.subscription_schedules.create(from_subscription=made.id)
    items = [{"price": "price_10"}, {"price": "price_tokens_1"}]
    now = {"start_date": SECOND, "end_date": at, "items": items}
    then = {"items": [{"price": "price_10"}], "proration_behavior": behavior}
    await client.subscription_schedules.update(schedule.id, phases=[now, then])
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    listed = (await client.invoices.list(subscription=made.id)).data
    extra = [] if behavior == "none" else [[500]]
    assert [amounts(invoice) for invoice in listed] == [[1000], *extra, [1000, 0]]


@pytest.mark.parametrize(("mode", "anchored"), [("classic", True), ("flexible", False)])
async def test_a_first_price_moves_the_anchor_in_classic_billing(
    client: Any, emulator: StripeEmulator, clock: Clock, mode: str, anchored: bool
) -> None:
    """From free to paid (the same page)."""
    emulator.add_price(0, price_id="price_free")
    made = await subscribe(client, "price_free", billing_mode={"type": mode})
    clock.set(HALF)
    items = [{"id": item_of(made).id, "price": "price_10"}]
    changed = await client.subscriptions.update(made.id, items=items)
    assert changed.billing_cycle_anchor == (int(HALF.timestamp()) if anchored else SECOND)
    seated = await client.subscriptions.update(made.id, items=[{"price": "price_seat"}])
    assert seated.billing_cycle_anchor == changed.billing_cycle_anchor


async def migrate(client: Any, subscription: str, to: str = "flexible") -> Any:
    return await client.subscriptions.migrate(subscription, billing_mode={"type": to})


async def test_the_portal_cancels_a_classic_subscription_later(client: Any, emulator: StripeEmulator) -> None:
    """Flexible billing sets `cancel_at` there.

    https://docs.stripe.com/billing/subscriptions/billing-mode/compare#scheduled-subscription-cancellation
    """
    made = await subscribe(client, **CLASSIC)
    portal = await client.billing_portal.sessions.create(customer="cus_1")
    actions: Any = {"cancel": True, "resume": False}
    for action, is_ending in actions.items():
        emulator.use_portal(portal.id, action)
        assert (await client.subscriptions.retrieve(made.id)).cancel_at_period_end is is_ending


async def test_a_subscription_is_migrated_once(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/migrate: what follows is billed by the new mode."""
    made = await subscribe(client, "price_tokens_1", **CLASSIC)
    schedule = await client.subscription_schedules.create(from_subscription=made.id)
    await use(client, 500, at=SECOND)
    clock.set(HALF)
    mode = (await migrate(client, made.id)).billing_mode
    assert (mode.type, mode.updated_at) == ("flexible", int(HALF.timestamp()))
    assert (await client.subscription_schedules.release(schedule.id)).billing_mode.type == "flexible"
    await client.subscriptions.update(made.id, items=[{"id": item_of(made).id, "price": "price_tokens_2"}])
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    found = await current(client, made.id)
    assert [line.amount for line in invoice_of(found).lines.data if line.amount] == [500]
    await refused(migrate(client, made.id), "`flexible` already")
    updated = [event for event in emulator.webhook_events if event.type == "customer.subscription.updated"]
    assert any("billing_mode" in (event.previous or {}) for event in updated)


async def test_migrations_that_are_refused(client: Any) -> None:
    """ "You can't migrate a subscription from flexible billing mode to classic"; nor one that has ended."""
    made = await subscribe(client, **CLASSIC)
    await refused(migrate(client, made.id, "classic"), "must be one of flexible")
    await refused(client.subscriptions.migrate(made.id), "Missing required param: billing_mode")
    unpaid = await subscribe(client, payment_behavior="default_incomplete", **CLASSIC)
    await client.subscriptions.cancel(made.id)
    for gone, status in ((made, "canceled"), (unpaid, "incomplete")):
        await refused(migrate(client, gone.id), f"in the `{status}` status")


async def test_flexible_billing_has_no_clear_usage_and_no_coupon(client: Any) -> None:
    """https://github.com/laravel/cashier-stripe/issues/1772 has Stripe's words."""
    made = await subscribe(client, "price_10", "price_tokens_1")
    gone = {"id": items_of(made)[1].id, "deleted": True, "clear_usage": True}
    error = await refused(client.subscriptions.update(made.id, items=[gone]))
    assert error.user_message == (
        "With `billing_mode.type=flexible` set on a subscription, the following parameters are not "
        "supported: `clear_usage`"
    )
    await refused(client.subscriptions.update(made.id, coupon="half"), "not supported: `coupon`")
    await refused(client.subscription_items.delete(gone["id"], clear_usage=True), "supported: `clear_usage`")
    await refused(subscribe(client, coupon="half"), "not supported: `coupon`")
    classic = await subscribe(client, "price_10", "price_tokens_1", **CLASSIC)
    # It has no effect on a price with a meter.
    gone["id"] = items_of(classic)[1].id
    assert len(items_of(await client.subscriptions.update(classic.id, items=[gone]))) == 1


@pytest.mark.parametrize(
    ("other", "mode", "fits"),
    [
        ("price_year", "flexible", True),
        ("price_year", "classic", False),
        ("price_week", "flexible", False),
        ("price_quarters", "flexible", False),
    ],
)
async def test_intervals_are_multiples_of_the_shortest(
    client: Any, emulator: StripeEmulator, other: str, mode: str, fits: bool
) -> None:
    """https://docs.stripe.com/billing/subscriptions/mixed-interval: not in Checkout."""
    emulator.add_price(100, price_id="price_year", interval="year")
    emulator.add_price(100, price_id="price_week", interval="week")
    emulator.add_price(100, price_id="price_2", recurring={"interval_count": 2})
    emulator.add_price(100, price_id="price_quarters", recurring={"interval_count": 3})
    first = "price_2" if other == "price_quarters" else "price_10"
    how: Any = {"billing_mode": {"type": mode}}
    phases = [{"items": [{"price": first}, {"price": other}]}]
    alone = await subscribe(client, first, **how)
    for attempt in (
        subscribe(client, first, other, **how),
        client.subscription_schedules.create(customer="cus_1", start_date="now", phases=phases, **how),
        client.subscriptions.update(alone.id, items=[{"price": other}]),
    ):
        await (attempt if fits else refused(attempt, r"must (be multiples|have the same)"))
    both = [{"price": price, "quantity": 1} for price in (first, other)]
    await refused(client.checkout.sessions.create(**offer(line_items=both)), "the same billing interval")
