"""Calls as Stripe's reference describes them, through its SDK: each test's docstring is the page it follows.

Here: customers, products, prices, coupons, subscriptions and schedules. The rest is in
tests/testing/test_documented_bills.py: invoices, money given back, meters and what all calls share.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import DAY, MAY, SECOND, amounts, invoice_of, item_of, refusal, shop, subscribe

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


async def test_customers_create(served: Served) -> None:
    """https://docs.stripe.com/api/customers/create."""
    client, _, _ = served
    made = await client.v1.customers.create_async({"email": "jenny@example.com", "metadata": {"id": "7"}})
    assert made.id.startswith("cus_")
    assert (made.object, made.email, made.balance, made.livemode) == (
        "customer",
        "jenny@example.com",
        0,
        False,
    )
    assert (made.created, _metadata(made)) == (SECOND, {"id": "7"})
    assert made.invoice_settings is not None
    assert made.invoice_settings.default_payment_method is None


async def test_customers_update(served: Served) -> None:
    """https://docs.stripe.com/api/customers/update: parameters that are not given stay."""
    client, _, _ = served
    changed = await client.v1.customers.update_async("cus_1", {"metadata": {"order": "1"}, "balance": -500})
    assert (changed.name, changed.balance, _metadata(changed)) == ("Acme", -500, {"order": "1"})
    unset: Any = {"metadata": {"order": ""}}
    assert _metadata(await client.v1.customers.update_async("cus_1", unset)) == {}


async def test_customers_delete(served: Served) -> None:
    """https://docs.stripe.com/api/customers/delete: its subscriptions are canceled at once."""
    client, _, _ = served
    made = await subscribe(client)
    gone = await client.v1.customers.delete_async("cus_1")
    assert (gone.id, gone.deleted) == ("cus_1", True)
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "canceled"
    shown: Any = await client.v1.customers.retrieve_async("cus_1")
    assert shown.deleted is True


async def test_customers_list(served: Served) -> None:
    """https://docs.stripe.com/api/customers/list: newest first, by e-mail in its own case."""
    client, _, clock = served
    clock.advance(timedelta(seconds=1))
    made = await client.v1.customers.create_async({"email": "Jenny@example.com"})
    assert [one.id for one in (await client.v1.customers.list_async()).data] == [made.id, "cus_1"]
    by_email = client.v1.customers.list_async
    assert [one.id for one in (await by_email({"email": "Jenny@example.com"})).data] == [made.id]
    assert (await by_email({"email": "jenny@example.com"})).data == []


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


async def test_prices_create(served: Served) -> None:
    """https://docs.stripe.com/api/prices/create: up to twelve decimals of a cent."""
    client, _, _ = served
    made = await client.v1.prices.create_async(
        {
            "currency": "usd",
            "product": "prod_pro",
            "unit_amount_decimal": Decimal("0.000125"),
            "recurring": {"interval": "month"},
        }
    )
    assert (str(made.unit_amount_decimal), made.unit_amount, made.type) == ("0.000125", None, "recurring")
    assert made.recurring is not None
    assert (made.recurring.interval, made.recurring.interval_count) == ("month", 1)
    assert (made.recurring.usage_type, made.billing_scheme) == ("licensed", "per_unit")


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


async def test_promotion_codes_create(served: Served) -> None:
    """https://docs.stripe.com/api/promotion_codes/create."""
    client, _, _ = served
    coupon = await client.v1.coupons.create_async({"percent_off": 50})
    wanted: Any = {"promotion": {"type": "coupon", "coupon": coupon.id}, "code": "FALL"}
    made = await client.v1.promotion_codes.create_async(wanted)
    assert (made.code, made.active, made.times_redeemed) == ("FALL", True, 0)
    paid = await subscribe(client, discounts=[{"promotion_code": made.id}])
    assert invoice_of(paid).total == 500


async def test_subscriptions_create(served: Served) -> None:
    """https://docs.stripe.com/api/subscriptions/create."""
    client, _, _ = served
    made = await subscribe(client)
    assert (made.status, made.collection_method, made.currency) == ("active", "charge_automatically", "usd")
    assert (made.start_date, made.billing_cycle_anchor) == (SECOND, SECOND)
    item = item_of(made)
    assert (item.current_period_start, item.current_period_end, item.quantity) == (SECOND, MAY, 1)
    assert (invoice_of(made).status, invoice_of(made).billing_reason) == ("paid", "subscription_create")


async def test_first_invoices_wait_for_a_payment_that_is_confirmed(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/overview#default-incomplete."""
    client, _, _ = served
    made = await subscribe(client, payment_behavior="default_incomplete")
    assert (made.status, invoice_of(made).status) == ("incomplete", "open")
    secret: Any = invoice_of(made)["confirmation_secret"]
    assert "_secret_" in secret["client_secret"]


async def test_a_subscription_is_made_only_if_it_is_paid(served: Served) -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-payment_behavior: HTTP 402."""
    client, emulator, _ = served
    emulator.fail_payments("cus_1")
    with pytest.raises(stripe.CardError) as caught:
        await subscribe(client, payment_behavior="error_if_incomplete")
    assert caught.value.http_status == 402
    assert (await client.v1.subscriptions.list_async({"customer": "cus_1", "status": "all"})).data == []


async def test_what_is_not_paid_in_a_day_expires(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/overview#payment-window: 23 hours."""
    client, _, clock = served
    made = await subscribe(client, payment_behavior="default_incomplete")
    clock.advance(timedelta(hours=23, minutes=1))
    found = await client.v1.subscriptions.retrieve_async(made.id, {"expand": ["latest_invoice"]})
    assert (found.status, invoice_of(found).status) == ("incomplete_expired", "void")


async def test_a_trial_begins_with_an_invoice_of_nothing(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/trials/free-trials."""
    client, _, _ = served
    made = await subscribe(client, trial_period_days=14)
    assert (made.status, made.trial_start, made.trial_end) == ("trialing", SECOND, SECOND + 14 * DAY)
    assert (invoice_of(made).total, invoice_of(made).status) == (0, "paid")


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


async def test_a_change_is_prorated_by_the_second(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/prorations#how-prorations-work."""
    client, _, clock = served
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    change: Any = {
        "items": [{"id": item_of(made).id, "price": "price_20"}],
        "proration_behavior": "always_invoice",
        "expand": ["latest_invoice"],
    }
    assert amounts(invoice_of(await client.v1.subscriptions.update_async(made.id, change))) == [-500, 1000]


async def test_a_change_without_prorations_is_free_until_renewal(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/prorations#control-proration-behavior: `none`."""
    client, _, clock = served
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    change: Any = {"items": [{"id": item_of(made).id, "price": "price_20"}], "proration_behavior": "none"}
    await client.v1.subscriptions.update_async(made.id, change)
    assert len((await client.v1.invoices.list_async()).data) == 1
    clock.advance(timedelta(days=15, hours=2))
    assert (await client.v1.invoices.list_async({"limit": 1})).data[0].total == 2000


async def test_a_declined_change_may_leave_all_as_it_was(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/pending-updates: the change waits for its payment."""
    client, emulator, _ = served
    made = await subscribe(client)
    emulator.fail_payments("cus_1")
    change: Any = {
        "items": [{"id": item_of(made).id, "price": "price_20"}],
        "payment_behavior": "pending_if_incomplete",
        "proration_behavior": "always_invoice",
    }
    changed = await client.v1.subscriptions.update_async(made.id, change)
    assert changed.pending_update is not None
    assert (item_of(changed).price.id, changed.status) == ("price_10", "active")


async def test_the_cycle_is_begun_anew(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/billing-cycle#reset-the-billing-period-to-the-current-time."""
    client, _, clock = served
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    anew: Any = {"billing_cycle_anchor": {"type": "now"}, "expand": ["latest_invoice"]}
    changed = await client.v1.subscriptions.update_async(made.id, anew)
    assert (changed.billing_cycle_anchor, item_of(changed).current_period_start) == (clock(), clock())
    assert invoice_of(changed).total == 500


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


async def test_subscriptions_list(served: Served) -> None:
    """https://docs.stripe.com/api/subscriptions/list: canceled ones only with a status."""
    client, _, _ = served
    made = await subscribe(client)
    await client.v1.subscriptions.cancel_async(made.id)
    listed = client.v1.subscriptions.list_async
    assert (await listed({"customer": "cus_1"})).data == []
    assert [one.id for one in (await listed({"status": "canceled"})).data] == [made.id]
    assert [one.id for one in (await listed({"status": "all"})).data] == [made.id]


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


async def test_subscription_schedules_update(served: Served) -> None:
    """https://docs.stripe.com/api/subscription_schedules/update: phases that are left out are gone."""
    client, _, clock = served
    made = await subscribe(client)
    schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
    now = {"items": [{"price": "price_10"}], "start_date": SECOND, "end_date": MAY}
    then = {"items": [{"price": "price_20"}]}
    two: Any = {"phases": [now, then]}
    assert len((await client.v1.subscription_schedules.update_async(schedule.id, two)).phases) == 2
    clock.advance(timedelta(days=30, hours=1))
    assert item_of(await client.v1.subscriptions.retrieve_async(made.id)).price.id == "price_20"


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
