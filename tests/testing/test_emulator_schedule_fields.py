"""Every field that a schedule, its phases and their items can have, seen through the official SDK."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
import stripe
from stripe.params import _subscription_schedule_modify_params as types

from drivers.emulated_account import account
from drivers.emulated_shop import MAY, SECOND, items_of, shop, subscribe
from drivers.sdk_parameters import sample

if TYPE_CHECKING:
    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

OF_ITS_OWN: Final[dict[str, str]] = dict.fromkeys(
    ("start_date", "end_date", "duration", "items", "trial", "trial_end", "default_payment_method"), "own"
)
PHASE: Final = sample(types.SubscriptionScheduleModifyParamsPhase, without=OF_ITS_OWN)
ITEM: Final = sample(types.SubscriptionScheduleModifyParamsPhaseItem, without={"price": "own"})
DEFAULTS: Final = sample(types.SubscriptionScheduleModifyParamsDefaultSettings, without=OF_ITS_OWN)


async def prepared(client: stripe.StripeClient, emulator: StripeEmulator) -> stripe.SubscriptionSchedule:
    """A schedule of a subscription whose customer can be taxed."""
    emulator.add_price(777, price_id="price_once", interval=None)
    await client.v1.customers.update_async("cus_1", {"address": {"country": "DE"}})
    await client.v1.coupons.create_async({"id": "HALF", "percent_off": 50, "duration": "forever"})
    made = await subscribe(client)
    return await client.v1.subscription_schedules.create_async({"from_subscription": made.id})


def taxed() -> tuple[StripeEmulator, Clock]:
    return shop(tax_percent=Decimal(20))


def phase(start: int, **params: Any) -> dict[str, Any]:
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


async def test_every_field_is_stored_and_shown() -> None:
    """https://docs.stripe.com/api/subscription_schedules/update."""
    emulator, _ = taxed()
    async with account(emulator) as client:
        made = await prepared(client, emulator)
        asked: Any = {"phases": [phase(SECOND, **PHASE)], "default_settings": DEFAULTS}
        found = (await client.v1.subscription_schedules.update_async(made.id, asked)).to_dict()
        (shown,) = found["phases"]
        assert {name: shown[name] for name in PHASE} == comparable(PHASE)
        (item,) = shown["items"]
        assert {name: item[name] for name in ITEM} == comparable(ITEM)
        settings = found["default_settings"]
        assert {name: settings[name] for name in DEFAULTS} == comparable(DEFAULTS)


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
async def test_fields_that_no_phase_has_are_refused(where: Any, message: str) -> None:
    emulator, _ = taxed()
    async with account(emulator) as client:
        made = await prepared(client, emulator)
        asked: Any = {"phases": [{**phase(SECOND), **where}]}
        with pytest.raises(stripe.InvalidRequestError, match=message):
            await client.v1.subscription_schedules.update_async(made.id, asked)


async def test_a_phase_sets_its_terms_and_removes_the_rest() -> None:
    """The list of phases is replaced; the reading is the harder one: what is not sent again is gone."""
    emulator, clock = taxed()
    async with account(emulator) as client:
        made = await prepared(client, emulator)
        rich = phase(SECOND, **PHASE, end_date=MAY)
        bare = {"items": [{"price": "price_10"}]}
        asked: Any = {"phases": [rich, bare], "default_settings": {"description": "By default"}}
        await client.v1.subscription_schedules.update_async(made.id, asked)
        found = (await client.v1.subscriptions.retrieve_async(str(made.subscription))).to_dict()
        names = ("application_fee_percent", "billing_thresholds", "on_behalf_of", "transfer_data")
        assert {name: found[name] for name in names} == {name: PHASE[name] for name in names}
        assert (found["collection_method"], found["days_until_due"]) == ("send_invoice", 30)
        assert found["default_tax_rates"] == [{"id": "txr_default", "object": "tax_rate"}]
        assert found["automatic_tax"]["liability"] == {"account": "acct_1", "type": "account"}
        assert found["items"]["data"][0]["tax_rates"] == [{"id": "txr_item", "object": "tax_rate"}]
        clock.advance(timedelta(days=30, hours=2))
        later = (await client.v1.subscriptions.retrieve_async(str(made.subscription))).to_dict()
        assert [later[name] for name in names] == [None] * 4
        assert (later["collection_method"], later["days_until_due"]) == ("charge_automatically", None)
        assert (later["default_tax_rates"], later["automatic_tax"]["enabled"]) == ([], False)
        assert later["items"]["data"][0]["tax_rates"] == []
        assert later["description"] == "By default"


async def test_a_coupon_that_is_sent_again_is_not_redeemed_again() -> None:
    emulator, _ = taxed()
    async with account(emulator) as client:
        made = await prepared(client, emulator)
        asked: Any = {"phases": [phase(SECOND, discounts=[{"coupon": "HALF"}])]}
        first = await client.v1.subscription_schedules.update_async(made.id, asked)
        subscribed = await client.v1.subscriptions.retrieve_async(str(made.subscription))
        await client.v1.subscription_schedules.update_async(made.id, asked)
        again = await client.v1.subscription_schedules.update_async(made.id, asked)
        assert again.phases == first.phases
        found = await client.v1.subscriptions.retrieve_async(str(made.subscription))
        assert found.discounts == subscribed.discounts
        assert items_of(found)[0].discounts == items_of(subscribed)[0].discounts
        assert (await client.v1.coupons.retrieve_async("HALF")).times_redeemed == 2  # And that of the item.
