"""Billing modes: which one a subscription has, how classic billing charges, what flexible billing refuses."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import (
    DAY,
    MAY,
    SECOND,
    amounts,
    invoice_of,
    item_of,
    items_of,
    refusal,
    shop,
    subscribe,
)

if TYPE_CHECKING:
    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Any = ["latest_invoice"]
CLASSIC: Any = {"billing_mode": {"type": "classic"}}
HALF = datetime(2026, 4, 16, tzinfo=UTC)


def metered() -> tuple[StripeEmulator, Clock]:
    """The shop, with tokens at 1 and at 2 cents."""
    emulator, clock = shop()
    meter = emulator.add_meter("tokens")
    for cents in (1, 2):
        emulator.add_price(cents, price_id=f"price_tokens_{cents}", meter=meter)
    return emulator, clock


async def use(client: stripe.StripeClient, value: int, *, at: int) -> None:
    payload = {"stripe_customer_id": "cus_1", "value": str(value)}
    await client.v1.billing.meter_events.create_async(
        {"event_name": "tokens", "payload": payload, "timestamp": at}
    )


async def change(
    client: stripe.StripeClient, made: stripe.Subscription, **params: Any
) -> stripe.Subscription:
    wanted: Any = {"expand": LATEST, **params}
    return await client.v1.subscriptions.update_async(made.id, wanted)


def mode_of(found: stripe.Subscription | stripe.SubscriptionSchedule) -> str:
    assert found.billing_mode is not None
    return found.billing_mode.type


async def test_what_is_not_a_mode_is_refused() -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-billing_mode."""
    emulator, _ = metered()
    async with account(emulator) as client:
        for mode, message in (
            ({"type": "rigid"}, "must be one of classic, flexible"),
            ({"type": "classic", "flexible": {"proration_discounts": "itemized"}}, "can only be set where"),
        ):
            with pytest.raises(stripe.InvalidRequestError, match=message):
                await subscribe(client, billing_mode=mode)
        made = await subscribe(
            client, billing_mode={"type": "flexible", "flexible": {"proration_discounts": "itemized"}}
        )
        assert made.billing_mode is not None
        assert made.billing_mode.flexible is not None
        assert made.billing_mode.flexible.proration_discounts == "itemized"


async def test_classic_billing_never_bills_usage_before_a_switch() -> None:
    """ "Usage from January 1 to January 16 isn't billed".

    https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup
    """
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_tokens_1", **CLASSIC)
        assert amounts(invoice_of(made)) == [0]  # "A 0 USD line item", which flexible billing does without.
        await use(client, 500, at=SECOND)
        clock.set(HALF)
        await change(client, made, items=[{"id": item_of(made).id, "price": "price_tokens_2"}])
        await use(client, 100, at=SECOND + 15 * DAY)
        clock.set(datetime(2026, 5, 1, tzinfo=UTC))
        found = await client.v1.subscriptions.retrieve_async(made.id, {"expand": LATEST})
        assert [line.amount for line in invoice_of(found).lines.data if line.amount] == [200]


@pytest.mark.parametrize("at", [SECOND + 15 * DAY, MAY], ids=["inside", "at_the_end"])
@pytest.mark.parametrize("behavior", ["create_prorations", "none"])
async def test_a_phase_in_classic_billing_has_an_invoice_more(at: int, behavior: str) -> None:
    """Usage of a price that a phase lacks is on an invoice of its own.

    https://docs.stripe.com/billing/subscriptions/billing-mode/compare#usage-based-pricing
    """
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_10", "price_tokens_1", **CLASSIC)
        await use(client, 500, at=SECOND)
        schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
        items: Any = [{"price": "price_10"}, {"price": "price_tokens_1"}]
        now: Any = {"start_date": SECOND, "end_date": at, "items": items}
        then: Any = {"items": [{"price": "price_10"}], "proration_behavior": behavior}
        await client.v1.subscription_schedules.update_async(schedule.id, {"phases": [now, then]})
        clock.set(datetime(2026, 5, 1, tzinfo=UTC))
        listed = (await client.v1.invoices.list_async({"subscription": made.id})).data
        extra = [] if behavior == "none" else [[500]]
        assert [amounts(invoice) for invoice in listed] == [[1000], *extra, [1000, 0]]


@pytest.mark.parametrize(("mode", "anchored"), [("classic", True), ("flexible", False)])
async def test_a_first_price_moves_the_anchor_in_classic_billing(mode: str, anchored: bool) -> None:
    """From free to paid (the same page)."""
    emulator, clock = metered()
    emulator.add_price(0, price_id="price_free")
    async with account(emulator) as client:
        made = await subscribe(client, "price_free", billing_mode={"type": mode})
        clock.set(HALF)
        changed = await change(client, made, items=[{"id": item_of(made).id, "price": "price_10"}])
        assert changed.billing_cycle_anchor == (int(HALF.timestamp()) if anchored else SECOND)
        seat: Any = {"items": [{"price": "price_seat"}]}
        assert (await change(client, changed, **seat)).billing_cycle_anchor == changed.billing_cycle_anchor


async def migrate(
    client: stripe.StripeClient, subscription: str, to: str = "flexible"
) -> stripe.Subscription:
    wanted: Any = {"billing_mode": {"type": to}}
    return await client.v1.subscriptions.migrate_async(subscription, wanted)


async def test_a_subscription_is_migrated_once() -> None:
    """https://docs.stripe.com/api/subscriptions/migrate: what follows is billed by the new mode."""
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_tokens_1", **CLASSIC)
        schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
        await use(client, 500, at=SECOND)
        clock.set(HALF)
        migrated = await migrate(client, made.id)
        assert mode_of(migrated) == "flexible"
        assert migrated.billing_mode is not None
        assert migrated.billing_mode.updated_at == int(HALF.timestamp())
        assert mode_of(await client.v1.subscription_schedules.retrieve_async(schedule.id)) == "flexible"
        await client.v1.subscription_schedules.release_async(schedule.id)
        await change(client, made, items=[{"id": item_of(made).id, "price": "price_tokens_2"}])
        clock.set(datetime(2026, 5, 1, tzinfo=UTC))
        found = await client.v1.subscriptions.retrieve_async(made.id, {"expand": LATEST})
        assert [line.amount for line in invoice_of(found).lines.data if line.amount] == [500]
        with pytest.raises(stripe.InvalidRequestError, match="`flexible` already"):
            await migrate(client, made.id)
        updated = [
            event for event in emulator.webhook_events if event.type == "customer.subscription.updated"
        ]
        assert any("billing_mode" in (event.previous or {}) for event in updated)


async def test_migrations_that_are_refused() -> None:
    """ "You can't migrate a subscription from flexible billing mode to classic"; nor one that has ended."""
    emulator, _ = metered()
    async with account(emulator) as client:
        made = await subscribe(client, **CLASSIC)
        with pytest.raises(stripe.InvalidRequestError, match="must be one of flexible"):
            await migrate(client, made.id, "classic")
        empty: Any = {}
        with pytest.raises(stripe.InvalidRequestError, match="Missing required param: billing_mode"):
            await client.v1.subscriptions.migrate_async(made.id, empty)
        unpaid = await subscribe(client, payment_behavior="default_incomplete", **CLASSIC)
        await client.v1.subscriptions.cancel_async(made.id)
        for gone, status in ((made, "canceled"), (unpaid, "incomplete")):
            with pytest.raises(stripe.InvalidRequestError, match=f"in the `{status}` status"):
                await migrate(client, gone.id)


async def test_flexible_billing_has_no_clear_usage_and_no_coupon() -> None:
    """https://github.com/laravel/cashier-stripe/issues/1772 has Stripe's words."""
    emulator, _ = metered()
    words = (
        "With `billing_mode.type=flexible` set on a subscription, the following parameters are not "
        "supported: "
    )
    async with account(emulator) as client:
        made = await subscribe(client, "price_10", "price_tokens_1")
        item = items_of(made)[1].id
        error = await refusal(client, made.id, items=[{"id": item, "deleted": True, "clear_usage": True}])
        assert words + "`clear_usage`" in str(error)
        error = await refusal(client, made.id, coupon="half")
        assert words + "`coupon`" in str(error)
        with pytest.raises(stripe.InvalidRequestError, match="not supported: `clear_usage`"):
            await client.v1.subscription_items.delete_async(item, {"clear_usage": True})
        with pytest.raises(stripe.InvalidRequestError, match="not supported: `coupon`"):
            await subscribe(client, coupon="half")
        classic = await subscribe(client, "price_10", "price_tokens_1", **CLASSIC)
        # It has no effect on a price with a meter.
        gone: Any = [{"id": items_of(classic)[1].id, "deleted": True, "clear_usage": True}]
        assert len(items_of(await change(client, classic, items=gone))) == 1


@pytest.mark.parametrize(
    ("other", "mode", "refused"),
    [
        ("price_year", "flexible", False),
        ("price_year", "classic", True),
        ("price_week", "flexible", True),
        ("price_quarters", "flexible", True),
    ],
)
async def test_intervals_are_multiples_of_the_shortest(other: str, mode: str, refused: bool) -> None:
    """https://docs.stripe.com/billing/subscriptions/mixed-interval: not in Checkout."""
    emulator, _ = metered()
    emulator.add_price(100, price_id="price_year", interval="year")
    emulator.add_price(100, price_id="price_week", interval="week")
    emulator.add_price(100, price_id="price_2", recurring={"interval_count": 2})
    emulator.add_price(100, price_id="price_quarters", recurring={"interval_count": 3})
    first = "price_2" if other == "price_quarters" else "price_10"
    how: Any = {"billing_mode": {"type": mode}}
    async with account(emulator) as client:
        phases: Any = [{"items": [{"price": first}, {"price": other}]}]
        scheduled: Any = {"customer": "cus_1", "start_date": "now", "phases": phases, **how}
        alone = await subscribe(client, first, **how)
        if refused:
            for attempt in (
                lambda: subscribe(client, first, other, **how),
                lambda: client.v1.subscription_schedules.create_async(scheduled),
                lambda: change(client, alone, items=[{"price": other}]),
            ):
                with pytest.raises(stripe.InvalidRequestError, match=r"must (be multiples|have the same)"):
                    await attempt()
        else:
            await subscribe(client, first, other, **how)
            await client.v1.subscription_schedules.create_async(scheduled)
            await change(client, alone, items=[{"price": other}])
        page: Any = {
            "mode": "subscription",
            "success_url": "https://app.example/done",
            "line_items": [{"price": price, "quantity": 1} for price in (first, other)],
        }
        with pytest.raises(stripe.InvalidRequestError, match="the same billing interval"):
            await client.v1.checkout.sessions.create_async(page)
