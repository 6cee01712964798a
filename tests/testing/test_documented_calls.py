"""Calls as Stripe's reference describes them, through its SDK: each test's docstring is the page it follows.

Here: customers, products, prices, coupons, subscriptions and schedules. The rest is in
tests/testing/test_documented_bills.py: invoices, money given back, meters and what all calls share.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import MAY, SECOND, invoice_of, item_of, refusal, shop, subscribe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

Served = tuple[stripe.StripeClient, "StripeEmulator", "Clock"]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    emulator, clock = shop()
    async with account(emulator) as client:
        yield client, emulator, clock


def _metadata(of: Any) -> dict[str, str]:
    return dict(of.metadata.to_dict())


async def test_payment_methods_detach(served: Served) -> None:
    """https://docs.stripe.com/api/payment_methods/detach: it can be used no longer."""
    client, _, _ = served
    (card,) = (await client.v1.customers.payment_methods.list_async("cus_1")).data
    assert (await client.v1.payment_methods.detach_async(card.id)).customer is None
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.payment_methods.attach_async(card.id, {"customer": "cus_1"})


async def test_products_create(served: Served) -> None:
    """https://docs.stripe.com/api/products/create."""
    client, _, _ = served
    made = await client.v1.products.create_async({"name": "Words", "unit_label": "word"})
    assert (made.object, made.active, made.unit_label, made.type) == ("product", True, "word", "service")


async def test_products_update(served: Served) -> None:
    """https://docs.stripe.com/api/products/update."""
    client, _, _ = served
    changed = await client.v1.products.update_async("prod_pro", {"name": "Pro+", "metadata": {"a": "b"}})
    assert (changed.name, _metadata(changed)) == ("Pro+", {"a": "b"})


async def test_prices_update(served: Served) -> None:
    """https://docs.stripe.com/api/prices/update: what it costs is no parameter."""
    client, _, _ = served
    changed = await client.v1.prices.update_async("price_10", {"active": False, "nickname": "old"})
    assert (changed.active, changed.nickname) == (False, "old")
    dearer: Any = {"unit_amount": 1100}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.prices.update_async("price_10", dearer)
    assert caught.value.code == "parameter_unknown"


async def test_an_inactive_price_takes_no_new_subscriptions(served: Served) -> None:
    """https://docs.stripe.com/api/prices/object#price_object-active."""
    client, _, _ = served
    await client.v1.prices.update_async("price_10", {"active": False})
    with pytest.raises(stripe.InvalidRequestError, match="inactive"):
        await subscribe(client)


async def test_lookup_keys(served: Served) -> None:
    """https://docs.stripe.com/products-prices/manage-prices#lookup-keys: a key moves from price to price."""
    client, _, _ = served
    await client.v1.prices.update_async("price_10", {"lookup_key": "pro"})
    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        await client.v1.prices.update_async("price_20", {"lookup_key": "pro"})
    await client.v1.prices.update_async("price_20", {"lookup_key": "pro", "transfer_lookup_key": True})
    (found,) = (await client.v1.prices.list_async({"lookup_keys": ["pro"]})).data
    assert found.id == "price_20"
    assert (await client.v1.prices.retrieve_async("price_10")).lookup_key is None


async def test_coupons_create(served: Served) -> None:
    """https://docs.stripe.com/api/coupons/create: `duration` is `once` unless it is given."""
    client, _, _ = served
    made = await client.v1.coupons.create_async({"percent_off": 25.5, "id": "SALE"})
    assert (made.id, made.percent_off, made.duration, made.valid) == ("SALE", 25.5, "once", True)
    both: Any = {"percent_off": 10, "amount_off": 100, "currency": "usd"}
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.coupons.create_async(both)


async def test_coupons_delete(served: Served) -> None:
    """https://docs.stripe.com/api/coupons/delete: customers who have it keep it."""
    client, _, clock = served
    half = await client.v1.coupons.create_async({"percent_off": 50, "duration": "forever"})
    await subscribe(client, discounts=[{"coupon": half.id}])
    assert (await client.v1.coupons.delete_async(half.id)).deleted is True
    clock.advance(timedelta(days=30, hours=2))
    assert (await client.v1.invoices.list_async({"limit": 1})).data[0].total == 500


async def test_what_is_not_paid_in_a_day_expires(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/overview#payment-window: 23 hours."""
    client, _, clock = served
    made = await subscribe(client, payment_behavior="default_incomplete")
    clock.advance(timedelta(hours=23, minutes=1))
    found = await client.v1.subscriptions.retrieve_async(made.id, {"expand": ["latest_invoice"]})
    assert (found.status, invoice_of(found).status) == ("incomplete_expired", "void")


async def test_a_trial_without_a_card_ends_as_it_says(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/trials/free-trials#create-free-trials-without-payment."""
    client, _, clock = served
    (card,) = (await client.v1.customers.payment_methods.list_async("cus_1")).data
    await client.v1.payment_methods.detach_async(card.id)
    ends = {"end_behavior": {"missing_payment_method": "pause"}}
    made = await subscribe(client, trial_period_days=3, trial_settings=ends)
    clock.advance(timedelta(days=3, hours=1))
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "paused"


async def test_a_subscription_has_twenty_items_at_most(served: Served) -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-items."""
    client, emulator, _ = served
    for number in range(21):
        emulator.add_price(100, price_id=f"price_n{number}", product="prod_pro")
    made = await subscribe(client, *(f"price_n{n}" for n in range(20)))
    listed = await client.v1.subscription_items.list_async({"subscription": made.id, "limit": 100})
    assert len(listed.data) == 20
    with pytest.raises(stripe.InvalidRequestError, match="20"):
        await subscribe(client, *(f"price_n{n}" for n in range(21)))


async def test_a_trial_is_ended_now(served: Served) -> None:
    """https://docs.stripe.com/api/subscriptions/update#update_subscription-trial_end: `now`."""
    client, _, clock = served
    made = await subscribe(client, trial_period_days=14)
    clock.advance(timedelta(days=1))
    ended: Any = {"trial_end": "now", "expand": ["latest_invoice"]}
    changed = await client.v1.subscriptions.update_async(made.id, ended)
    assert (changed.status, changed.trial_end) == ("active", clock())
    assert (invoice_of(changed).total, item_of(changed).current_period_start) == (1000, clock())


async def test_an_end_is_planned_and_taken_back(served: Served) -> None:
    """https://docs.stripe.com/api/subscriptions/update#update_subscription-cancel_at_period_end."""
    client, _, clock = served
    made = await subscribe(client)
    ends = await client.v1.subscriptions.update_async(made.id, {"cancel_at_period_end": True})
    assert (ends.cancel_at, ends.status, ends.canceled_at) == (MAY, "active", SECOND)
    stays = await client.v1.subscriptions.update_async(made.id, {"cancel_at_period_end": False})
    assert (stays.cancel_at, stays.canceled_at) == (None, None)
    await client.v1.subscriptions.update_async(made.id, {"cancel_at_period_end": True})
    clock.advance(timedelta(days=30, hours=1))
    ended = await client.v1.subscriptions.retrieve_async(made.id)
    assert (ended.status, ended.ended_at) == ("canceled", MAY)


async def test_an_end_at_a_named_instant(served: Served) -> None:
    """https://docs.stripe.com/changelog/basil/2025-07-30/cancel-at-enums: `min_period_end`."""
    client, _, _ = served
    made = await subscribe(client)
    ends = await client.v1.subscriptions.update_async(made.id, {"cancel_at": "min_period_end"})
    assert ends.cancel_at == MAY


async def test_subscriptions_cancel(served: Served) -> None:
    """https://docs.stripe.com/api/subscriptions/cancel: without proration by default."""
    client, _, clock = served
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    gone = await client.v1.subscriptions.cancel_async(made.id)
    assert (gone.status, gone.canceled_at, gone.ended_at) == ("canceled", clock(), clock())
    assert len((await client.v1.invoices.list_async()).data) == 1
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.subscriptions.cancel_async(made.id)
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


async def test_a_canceled_subscription_changes_no_more(served: Served) -> None:
    """https://docs.stripe.com/api/subscriptions/update: metadata and cancellation details still do."""
    client, _, _ = served
    made = await subscribe(client)
    await client.v1.subscriptions.cancel_async(made.id)
    error = await refusal(client, made.id, items=[{"price": "price_20"}])
    assert error.http_status == 400
    noted = await client.v1.subscriptions.update_async(made.id, {"metadata": {"why": "price"}})
    assert _metadata(noted) == {"why": "price"}


async def test_collection_is_paused(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/pause-payment: invoices go on, and are void."""
    client, _, clock = served
    made = await subscribe(client)
    paused: Any = {"pause_collection": {"behavior": "void"}}
    assert (await client.v1.subscriptions.update_async(made.id, paused)).status == "active"
    clock.advance(timedelta(days=30, hours=2))
    assert (await client.v1.invoices.list_async({"limit": 1})).data[0].status == "void"
    goes_on: Any = {"pause_collection": ""}
    assert (await client.v1.subscriptions.update_async(made.id, goes_on)).pause_collection is None


async def test_subscription_items_create_and_delete(served: Served) -> None:
    """https://docs.stripe.com/api/subscription_items/create, https://docs.stripe.com/api/subscription_items/delete."""
    client, _, _ = served
    made = await subscribe(client)
    added = await client.v1.subscription_items.create_async(
        {"subscription": made.id, "price": "price_seat", "quantity": 3}
    )
    assert (added.quantity, added.subscription) == (3, made.id)
    listed = await client.v1.subscription_items.list_async({"subscription": made.id})
    assert {one.id for one in listed.data} == {item_of(made).id, added.id}
    assert (await client.v1.subscription_items.delete_async(added.id)).deleted is True
    with pytest.raises(stripe.InvalidRequestError, match="at least one"):
        await client.v1.subscription_items.delete_async(item_of(made).id)


async def test_subscription_schedules_create(served: Served) -> None:
    """https://docs.stripe.com/api/subscription_schedules/create: from a subscription, with its one phase."""
    client, _, _ = served
    made = await subscribe(client)
    schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
    assert (schedule.status, schedule.end_behavior, schedule.subscription) == ("active", "release", made.id)
    (phase,) = schedule.phases
    assert (phase.start_date, phase.end_date) == (SECOND, MAY)
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.subscription_schedules.create_async({"from_subscription": made.id})


async def test_subscription_schedules_release(served: Served) -> None:
    """https://docs.stripe.com/api/subscription_schedules/release: the subscription stays as it is."""
    client, _, _ = served
    made = await subscribe(client)
    schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
    released = await client.v1.subscription_schedules.release_async(schedule.id)
    assert (released.status, released.released_subscription) == ("released", made.id)
    found = await client.v1.subscriptions.retrieve_async(made.id)
    assert (found.status, found.schedule) == ("active", None)


async def test_subscription_schedules_cancel(served: Served) -> None:
    """https://docs.stripe.com/api/subscription_schedules/cancel: so is its subscription, at once."""
    client, _, _ = served
    made = await subscribe(client)
    schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
    assert (await client.v1.subscription_schedules.cancel_async(schedule.id)).status == "canceled"
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "canceled"


async def test_subscriptions_migrate(served: Served) -> None:
    """https://docs.stripe.com/api/subscriptions/migrate: from classic to flexible, and not back."""
    client, _, _ = served
    made = await subscribe(client, billing_mode={"type": "classic"})
    moved = await client.v1.subscriptions.migrate_async(made.id, {"billing_mode": {"type": "flexible"}})
    assert moved.billing_mode.type == "flexible"
    back: Any = {"billing_mode": {"type": "classic"}}
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.subscriptions.migrate_async(made.id, back)
