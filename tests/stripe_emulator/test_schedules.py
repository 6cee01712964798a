"""Schedules with phases of their own: a subscription that begins with the first of them, now or later."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any, Final, cast

import pytest
import stripe
from stripe.params import _subscription_schedule_modify_params as types

from drivers.emulated_shop import amounts, current, invoice_of, items_of, refused, subscribe
from drivers.emulated_times import DAY, MAY, SECOND
from drivers.sdk_parameters import sample
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Final = ["latest_invoice"]
MONTH: Final = timedelta(days=30)  # April.


def phase(price: str, **more: Any) -> dict[str, Any]:
    return {"items": [{"price": price}], **more}


async def schedule(client: Any, *phases: Any, **params: Any) -> Any:
    return await client.subscription_schedules.create(customer="cus_1", phases=list(phases), **params)


async def latest(client: Any, made: Any) -> Any:
    assert isinstance(made.subscription, str)
    return await current(client, made.subscription)


async def test_its_phases_follow_each_other(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/subscription-schedules."""
    first = phase("price_10", duration={"interval": "month", "interval_count": 1})
    made = await schedule(client, first, phase("price_20"), end_behavior="cancel")
    assert (made.phases[0].start_date, made.phases[0].end_date) == (SECOND, MAY)
    assert invoice_of(await latest(client, made)).status == "draft"
    clock.advance(timedelta(hours=1))
    assert invoice_of(await latest(client, made)).status == "paid"
    clock.advance(MONTH)
    found = await latest(client, made)
    assert [item.price.id for item in items_of(found)] == ["price_20"]
    assert amounts(invoice_of(found)) == [2000]
    clock.advance(timedelta(days=31))
    assert (await latest(client, made)).status == "canceled"
    assert (await client.subscription_schedules.retrieve(made.id)).status == "completed"


@pytest.mark.parametrize("kept", [False, True])
async def test_the_end_it_sets_is_shown_and_may_stay(client: Any, kept: bool) -> None:
    """https://docs.stripe.com/api/subscription_schedules/release#release_subscription_schedule-preserve_cancel_date."""
    first = phase("price_10", duration={"interval": "month", "interval_count": 1})
    made = await schedule(client, first, end_behavior="cancel")
    assert (await latest(client, made)).cancel_at == MAY
    await client.subscription_schedules.update(made.id, end_behavior="release")
    assert (await latest(client, made)).cancel_at is None
    await client.subscription_schedules.update(made.id, end_behavior="cancel")
    assert (await latest(client, made)).cancel_at == MAY
    await client.subscription_schedules.release(made.id, preserve_cancel_date=kept)
    assert (await latest(client, made)).cancel_at == (MAY if kept else None)


async def test_one_that_starts_later_has_no_subscription_until_then(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscription_schedules/object#subscription_schedule_object-status."""
    made = await schedule(client, phase("price_10"), start_date=SECOND + 3 * DAY)
    assert (made.status, made.subscription, made.current_phase) == ("not_started", None, None)
    assert (await client.subscriptions.list()).data == []
    clock.advance(timedelta(days=2))
    assert (await client.subscription_schedules.retrieve(made.id)).status == "not_started"
    clock.advance(timedelta(days=5))
    begun = await client.subscription_schedules.retrieve(made.id)
    found = await latest(client, begun)
    assert (begun.status, found.created) == ("active", SECOND + 3 * DAY)
    assert (found.billing_cycle_anchor, invoice_of(found).status) == (SECOND + 3 * DAY, "paid")


async def test_a_first_phase_may_be_a_trial(client: Any) -> None:
    """https://docs.stripe.com/api/subscription_schedules/create#create_subscription_schedule-phases-trial_end."""
    found = await latest(client, await schedule(client, phase("price_10", trial_end=SECOND + 7 * DAY)))
    assert (found.status, found.trial_end) == ("trialing", SECOND + 7 * DAY)
    assert amounts(invoice_of(found)) == [0]


async def test_one_that_has_not_begun_can_be_canceled(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscription_schedules/cancel."""
    made = await schedule(client, phase("price_10"), start_date=MAY)
    canceled = await client.subscription_schedules.cancel(made.id)
    assert (canceled.status, canceled.canceled_at) == ("canceled", SECOND)
    clock.advance(MONTH)
    assert (await client.subscriptions.list(status="all")).data == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"customer": "cus_none"}, "No such customer: 'cus_none'"),
        ({"phases": []}, "Missing required param: phases"),
        ({"start_date": SECOND - DAY}, "in the past, which backdates a subscription, is not emulated"),
        ({"phases": [phase("price_none")]}, "No such price: 'price_none'"),
        ({"phases": [phase("price_10", end_date=SECOND - 1)]}, "must be in the future and after its start"),
        ({"default_settings": {"automatic_tax": {"enabled": True}}}, "Stripe Tax has not been activated"),
    ],
)
async def test_what_a_schedule_cannot_be(client: Any, params: Any, message: str) -> None:
    """https://docs.stripe.com/api/subscription_schedules/create; nothing is made of what is refused."""
    with pytest.raises(stripe.InvalidRequestError, match=message):
        await client.subscription_schedules.create(
            **{"customer": "cus_1", "phases": [phase("price_10")], **params}
        )
    assert (await client.subscription_schedules.list()).data == []


OF_ITS_OWN: Final[dict[str, str]] = dict.fromkeys(
    ("start_date", "end_date", "duration", "items", "trial", "trial_end", "default_payment_method"), "own"
)
PHASE: Final = sample(types.SubscriptionScheduleModifyParamsPhase, without=OF_ITS_OWN)
ITEM: Final = sample(types.SubscriptionScheduleModifyParamsPhaseItem, without={"price": "own"})
DEFAULTS: Final = sample(types.SubscriptionScheduleModifyParamsDefaultSettings, without=OF_ITS_OWN)


async def prepared(client: Any, emulator: StripeEmulator) -> Any:
    """A schedule of a subscription whose customer can be taxed."""
    emulator.add_price(777, price_id="price_once", interval=None)
    await client.customers.update("cus_1", address={"country": "DE"})
    await client.coupons.create(id="HALF", percent_off=50, duration="forever")
    return await client.subscription_schedules.create(from_subscription=(await subscribe(client)).id)


TAXED: Final = pytest.mark.parametrize("opened", [{"tax_percent": Decimal(20)}], indirect=True)


def rich_phase(start: int, **params: Any) -> dict[str, Any]:
    return {"start_date": start, "items": [{**ITEM, "price": "price_10"}], **params}


def comparable(given: Any) -> Any:
    """Parameters as the response has them: tax rates are objects, and a discount has three names."""
    if isinstance(given, list):
        return [comparable(each) for each in cast("list[object]", given)]
    if not isinstance(given, dict):
        return given
    shown: dict[str, Any] = {name: comparable(value) for name, value in cast("dict[str, Any]", given).items()}
    for name in ("default_tax_rates", "tax_rates"):
        if name in shown:
            shown[name] = [{"id": each, "object": "tax_rate"} for each in shown[name]]
    if "discounts" in shown:
        shown["discounts"] = [
            {"coupon": None, "discount": None, "promotion_code": None, **each} for each in shown["discounts"]
        ]
    return {**shown, "disabled_reason": None} if "liability" in shown else shown


@TAXED
async def test_every_field_is_stored_and_shown(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/api/subscription_schedules/update."""
    made = await prepared(client, emulator)
    asked: Any = {"phases": [rich_phase(SECOND, **PHASE)], "default_settings": DEFAULTS}
    found = (await client.subscription_schedules.update(made.id, **asked)).to_dict()
    (shown,) = found["phases"]
    assert {name: shown[name] for name in PHASE} == comparable(PHASE)
    (item,) = shown["items"]
    assert {name: item[name] for name in ITEM} == comparable(ITEM)
    settings = found["default_settings"]
    assert {name: settings[name] for name in DEFAULTS} == comparable(DEFAULTS)


@TAXED
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"colour": "red"}, r"unknown parameter: phases\[0\]\[colour\]"),
        ({"items": [{"price": "price_10", "id": "si_1"}]}, r"items\]\[0\]\[id"),
        ({"collection_method": "by_pigeon"}, "must be one of charge_automatically, send_invoice"),
        ({"application_fee_percent": 101}, "must be between 0 and 100"),
        ({"currency": "eur"}, "currency of a phase must be that of its prices"),
        ({"default_tax_rates": "txr_1"}, "Invalid array"),
    ],
)
async def test_unknown_fields_fail(client: Any, emulator: StripeEmulator, where: Any, message: str) -> None:
    made = await prepared(client, emulator)
    await refused(
        client.subscription_schedules.update(made.id, phases=[{**rich_phase(SECOND), **where}]), message
    )


@TAXED
async def test_a_phase_replaces_all_terms(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """The list of phases is replaced; the reading is the harder one: what is not sent again is gone."""
    made = await prepared(client, emulator)
    rich = rich_phase(SECOND, **PHASE, end_date=MAY)
    bare = {"items": [{"price": "price_10"}]}
    asked: Any = {"phases": [rich, bare], "default_settings": {"description": "By default"}}
    await client.subscription_schedules.update(made.id, **asked)
    found = (await client.subscriptions.retrieve(made.subscription)).to_dict()
    names = ("application_fee_percent", "billing_thresholds", "on_behalf_of", "transfer_data")
    assert {name: found[name] for name in names} == {name: PHASE[name] for name in names}
    assert (found["collection_method"], found["days_until_due"]) == ("send_invoice", 30)
    assert found["default_tax_rates"] == [{"id": "txr_default", "object": "tax_rate"}]
    assert found["automatic_tax"]["liability"] == {"account": "acct_1", "type": "account"}
    assert found["items"]["data"][0]["tax_rates"] == [{"id": "txr_item", "object": "tax_rate"}]
    clock.advance(timedelta(days=30, hours=2))
    later = (await client.subscriptions.retrieve(made.subscription)).to_dict()
    assert [later[name] for name in names] == [None] * 4
    assert (later["collection_method"], later["days_until_due"]) == ("charge_automatically", None)
    assert (later["default_tax_rates"], later["automatic_tax"]["enabled"]) == ([], False)
    assert (later["items"]["data"][0]["tax_rates"], later["description"]) == ([], "By default")


@TAXED
async def test_a_coupon_sent_again_is_not_redeemed_again(client: Any, emulator: StripeEmulator) -> None:
    made = await prepared(client, emulator)
    asked: Any = {"phases": [rich_phase(SECOND, discounts=[{"coupon": "HALF"}])]}
    first = await client.subscription_schedules.update(made.id, **asked)
    subscribed = await client.subscriptions.retrieve(made.subscription)
    await client.subscription_schedules.update(made.id, **asked)
    assert (await client.subscription_schedules.update(made.id, **asked)).phases == first.phases
    found = await client.subscriptions.retrieve(made.subscription)
    assert found.discounts == subscribed.discounts
    assert items_of(found)[0].discounts == items_of(subscribed)[0].discounts
    assert (await client.coupons.retrieve("HALF")).times_redeemed == 2  # And that of the item.
