"""What an app passes through to Checkout: codes, tax, tax ids, updates of the customer."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import shop

if TYPE_CHECKING:
    from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio


def offer(**others: Any) -> Any:
    return {
        "mode": "subscription",
        "line_items": [{"price": "price_20", "quantity": 1}],
        "success_url": "https://app.example/done",
        **others,
    }


def taxing() -> StripeEmulator:
    emulator, _ = shop(tax_percent=Decimal(10))
    return emulator


async def fifth_off(client: stripe.StripeClient, **params: Any) -> tuple[str, stripe.PromotionCode]:
    coupon = await client.v1.coupons.create_async({"percent_off": 20, "duration": "forever"})
    wanted: Any = {"promotion": {"type": "coupon", "coupon": coupon.id}, "code": "SAVE20", **params}
    return coupon.id, await client.v1.promotion_codes.create_async(wanted)


@pytest.mark.parametrize(
    ("change", "message", "param"),
    [
        ({"customer_update": {"name": "auto"}}, "can only be used with `customer`", "customer_update"),
        (
            {"customer": "cus_1", "customer_update": {"email": "auto"}},
            "unknown parameter",
            "customer_update[email]",
        ),
        (
            {"customer": "cus_1", "customer_update": {"name": "always"}},
            "one of auto, never",
            "customer_update[name]",
        ),
        ({"customer": "cus_1", "tax_id_collection": {"enabled": True}}, "business name", "tax_id_collection"),
        (
            {"customer": "cus_1", "automatic_tax": {"enabled": True}},
            "requires a valid address",
            "automatic_tax",
        ),
        (
            {"allow_promotion_codes": True, "discounts": [{"coupon": "A"}]},
            "only specify one of these parameters: allow_promotion_codes, discounts",
            "allow_promotion_codes",
        ),
        ({"discounts": [{"coupon": "A"}, {"coupon": "A"}]}, "up to one discount", "discounts"),
        (
            {"subscription_data": {"discounts": [{"coupon": "A"}]}},
            "unknown parameter",
            "subscription_data[discounts]",
        ),
    ],
)
async def test_options_that_stripe_refuses(change: Any, message: str, param: str) -> None:
    """https://docs.stripe.com/api/checkout/sessions/create."""
    async with account(taxing()) as client:
        await client.v1.coupons.create_async({"id": "A", "percent_off": 10})
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await client.v1.checkout.sessions.create_async(offer(**change))
    assert message in str(caught.value)
    assert getattr(caught.value, "param", None) == param


async def test_a_person_types_a_promotion_code_where_allowed() -> None:
    emulator = taxing()
    async with account(emulator) as client:
        _, code = await fifth_off(client, max_redemptions=1)
        closed = await client.v1.checkout.sessions.create_async(offer())
        with pytest.raises(ValueError, match="takes no promotion codes"):
            emulator.complete_checkout(closed.id, promotion_code="SAVE20")
        made = await client.v1.checkout.sessions.create_async(offer(allow_promotion_codes=True))
        assert (made.allow_promotion_codes, made.amount_total) == (True, 2000)
        with pytest.raises(ValueError, match="'NONE' is no promotion code that is active"):
            emulator.complete_checkout(made.id, promotion_code="NONE")
        done = emulator.complete_checkout(made.id, promotion_code="save20")
        assert (done["status"], done["amount_total"]) == ("complete", 1600)
        assert done["discounts"] == [{"coupon": None, "promotion_code": code.id}]
        assert (await client.v1.promotion_codes.retrieve_async(code.id)).times_redeemed == 1


async def test_a_code_with_a_minimum_is_for_larger_pages() -> None:
    emulator = taxing()
    async with account(emulator) as client:
        restrictions = {"minimum_amount": 2001, "minimum_amount_currency": "usd"}
        await fifth_off(client, restrictions=restrictions)
        made = await client.v1.checkout.sessions.create_async(offer(allow_promotion_codes=True))
        with pytest.raises(ValueError, match="minimum amount is not reached"):
            emulator.complete_checkout(made.id, promotion_code="SAVE20")


async def test_tax_comes_with_the_address_of_a_new_customer() -> None:
    emulator = taxing()
    async with account(emulator) as client:
        taxed = offer(automatic_tax={"enabled": True}, tax_id_collection={"enabled": True}, locale="de")
        made = await client.v1.checkout.sessions.create_async(taxed)
        assert (made.amount_total, made.automatic_tax.enabled) == (2000, True)
        assert (made.automatic_tax.status, made.locale) == ("requires_location_inputs", "de")
        assert made.tax_id_collection is not None
        assert made.tax_id_collection.enabled is True
        done = emulator.complete_checkout(made.id, name="Ada", country="DE", email="ada@example.com")
        assert (done["amount_subtotal"], done["amount_total"]) == (2000, 2200)
        seen = await client.v1.checkout.sessions.retrieve_async(
            made.id, {"expand": ["customer", "subscription.latest_invoice"]}
        )
        assert isinstance(seen.customer, stripe.Customer)
        assert isinstance(seen.subscription, stripe.Subscription)
        assert isinstance(seen.subscription.latest_invoice, stripe.Invoice)
        assert seen.customer.address is not None
        assert (seen.customer.name, seen.customer.email, seen.customer.address.country) == (
            "Ada",
            "ada@example.com",
            "DE",
        )
        assert (seen.automatic_tax.status, seen.subscription.latest_invoice.total) == ("complete", 2200)
        assert seen.customer_details is not None
        assert (seen.customer_details.name, seen.customer_details.email) == ("Ada", "ada@example.com")


async def test_without_a_sum_to_pay_no_card_is_asked_for() -> None:
    """https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-payment_method_collection."""
    emulator = taxing()
    async with account(emulator) as client:
        await client.v1.coupons.create_async({"id": "FREE", "percent_off": 100, "duration": "forever"})
        made = await client.v1.checkout.sessions.create_async(
            offer(discounts=[{"coupon": "FREE"}], payment_method_collection="if_required")
        )
        done = emulator.complete_checkout(made.id)
        assert (done["amount_total"], done["payment_status"]) == (0, "no_payment_required")
        subscription = await client.v1.subscriptions.retrieve_async(str(done["subscription"]))
        assert (subscription.status, subscription.default_payment_method) == ("active", None)
