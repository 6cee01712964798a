"""Checkout and portal sessions are made, refused, paid and expired as Stripe does it."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from drivers.emulated_shop import offer, refused, told
from drivers.emulated_times import DAY, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

TAXED = pytest.mark.parametrize("opened", [{"tax_percent": Decimal(10)}], indirect=True)


def line(price: str, quantity: int | None = 1) -> dict[str, Any]:
    return {"price": price} if quantity is None else {"price": price, "quantity": quantity}


async def test_a_session_offers_prices_for_a_day(client: Any) -> None:
    """https://docs.stripe.com/api/checkout/sessions/object; open for 24 hours unless told otherwise."""
    sessions = client.checkout.sessions
    made = await sessions.create(
        **offer(
            line_items=[line("price_20"), line("price_seat", 3), line("price_tokens", None)],
            client_reference_id="ada",
            customer="cus_1",
            cancel_url="https://app.example/back",
        )
    )
    assert made.id.startswith("cs_test_")
    assert (made.status, made.payment_status, made.mode) == ("open", "unpaid", "subscription")
    assert (made.amount_total, made.currency) == (2_000 + 3 * 900, "usd")
    assert (made.client_reference_id, made.customer) == ("ada", "cus_1")
    assert (made.created, made.expires_at) == (SECOND, SECOND + DAY)
    assert (made.subscription, made.invoice) == (None, None)
    assert made.url.endswith(f"/c/pay/{made.id}")
    items = (await sessions.line_items.list(made.id)).data
    shown = [(item.description, item.quantity, item.amount_total) for item in items]
    assert shown == [("Pro", 1, 2_000), ("Seat", 3, 2_700), ("price_tokens", None, 0)]
    assert items[0].price.unit_amount == 2_000
    seen = await sessions.retrieve(made.id, expand=["line_items"])
    assert [item.id for item in seen.line_items.data] == [item.id for item in items]
    assert [made.id] == [each.id for each in (await sessions.list(customer="cus_1")).data]
    assert (await sessions.list(status="complete")).data == []
    await refused(sessions.retrieve("cs_none"), r"No such checkout\.session: 'cs_none'")


KNOWN = {"customer": "cus_1"}
TAX = {"automatic_tax": {"enabled": True}}
A_COUPON = [{"coupon": "A"}]


@TAXED
@pytest.mark.parametrize(
    ("change", "message", "param"),
    [
        ({"mode": "setup"}, "modes payment and subscription only", "mode"),
        ({"success_url": None}, "Missing required param: success_url", "success_url"),
        ({"success_url": "/done"}, "Not a valid URL", "success_url"),
        ({"customer": "cus_none"}, "No such customer: 'cus_none'", "customer"),
        ({**KNOWN, "customer_email": "a@x"}, "You may only specify one of", "customer"),
        ({"client_reference_id": "x" * 201}, "at most 200 characters", "client_reference_id"),
        ({"line_items": [line("price_once")]}, "at least one recurring price", "line_items"),
        ({"line_items": [line("price_20", None)]}, r"Add `quantity` to `line_items\[0\]`", "line_items"),
        (
            {"line_items": [line("price_tokens")]},
            r"where usage_type is `metered`. Remove quantity from `line_items\[0\]`",
            "line_items[0][quantity]",
        ),
        ({"line_items": [line("price_20"), line("price_euro")]}, "same currency", "line_items"),
        ({"expires_at": SECOND + 1_799}, "at least 30 minutes", "expires_at"),
        ({"expires_at": SECOND + DAY}, "less than 24 hours", "expires_at"),
        ({"subscription_data": {"items": "x"}}, "unknown parameter", "subscription_data[items]"),
        ({"customer_update": {"name": "auto"}}, "can only be used with `customer`", "customer_update"),
        ({**KNOWN, "customer_update": {"email": "auto"}}, "unknown parameter", "customer_update[email]"),
        ({**KNOWN, "customer_update": {"name": "always"}}, "one of auto, never", "customer_update[name]"),
        ({**KNOWN, "tax_id_collection": {"enabled": True}}, "business name", "tax_id_collection"),
        ({**KNOWN, **TAX}, "requires a valid address", "automatic_tax"),
        (
            {"allow_promotion_codes": True, "discounts": A_COUPON},
            "only specify one of these parameters: allow_promotion_codes, discounts",
            "allow_promotion_codes",
        ),
        ({"discounts": A_COUPON * 2}, "up to one discount", "discounts"),
        ({"invoice_creation": {"enabled": True}}, "`payment` mode", "invoice_creation"),
        ({"payment_intent_data": {"description": "a"}}, "`subscription` mode", "payment_intent_data"),
        ({"mode": "payment"}, "recurring price", "line_items"),
    ],
)
async def test_what_stripe_refuses(
    client: Any, emulator: StripeEmulator, change: Any, message: str, param: str
) -> None:
    """https://docs.stripe.com/api/checkout/sessions/create; the words on quantities:
    invertase/stripe-firebase-extensions#134, stripe-java#1584; on the life of a session:
    skillrecordings/products#344, alexmorrisnz/moodle-paygw_stripe#72."""
    emulator.add_price(5_000, price_id="price_once", interval=None)
    emulator.add_price(2_500, price_id="price_euro", currency="eur")
    await client.coupons.create(id="A", percent_off=10)
    wanted: Any = {name: value for name, value in offer(**change).items() if value is not None}
    assert (await refused(client.checkout.sessions.create(**wanted), message)).param == param


async def test_an_open_session_expires_in_time(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """``checkout.session.expired``, and no page any more (https://docs.stripe.com/api/checkout/sessions)."""
    sessions = client.checkout.sessions
    whole = await sessions.create(**offer())
    short = await sessions.create(**offer(expires_at=SECOND + 1_800))
    clock.advance(timedelta(days=1, seconds=-1))
    assert (await sessions.retrieve(whole.id)).status == "open"
    clock.advance(timedelta(hours=5))
    over = await sessions.retrieve(whole.id)
    assert (over.status, over.url) == ("expired", None)
    ends = [(event.object["id"], event.created) for event in emulator.webhook_events[-2:]]
    assert ends == [(short.id, SECOND + 1_800), (whole.id, SECOND + DAY)]
    with pytest.raises(ValueError, match="is expired: only an open one"):
        emulator.complete_checkout(whole.id)


async def test_only_an_open_session_is_expired(client: Any, emulator: StripeEmulator) -> None:
    """The words: Sylius/PayumStripePlugin#70."""
    made = await client.checkout.sessions.create(**offer())
    assert (await client.checkout.sessions.expire(made.id)).status == "expired"
    only = r'Only Checkout Sessions with a status in \["open"\].*status of `expired`'
    await refused(client.checkout.sessions.expire(made.id), only)
    assert told(emulator)[-1] == "checkout.session.expired"


MISSING = r"Missing required param: flow_data\[subscription_cancel\]"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"return_url": "https://x"}, "Missing required param: customer"),
        ({**KNOWN, "return_url": "x"}, "Not a valid URL"),
        ({**KNOWN, "flow_data": {"type": "dance"}}, "must be one of customer_update"),
        ({**KNOWN, "flow_data": {"type": "subscription_cancel"}}, MISSING),
        (
            {**KNOWN, "flow_data": {"type": "subscription_cancel", "subscription_cancel": {"offer": "x"}}},
            rf"{MISSING}\[subscription\]",
        ),
    ],
)
async def test_portal_sessions_need_what_they_need(client: Any, params: Any, message: str) -> None:
    await refused(client.billing_portal.sessions.create(**params), message)


async def fifth_off(client: Any, **params: Any) -> str:
    coupon = await client.coupons.create(percent_off=20, duration="forever")
    promotion = {"type": "coupon", "coupon": coupon.id}
    return str((await client.promotion_codes.create(promotion=promotion, code="SAVE20", **params)).id)


async def test_a_person_types_a_promotion_code_where_allowed(client: Any, emulator: StripeEmulator) -> None:
    code = await fifth_off(client, max_redemptions=1)
    closed = await client.checkout.sessions.create(**offer())
    with pytest.raises(ValueError, match="takes no promotion codes"):
        emulator.complete_checkout(closed.id, promotion_code="SAVE20")
    made = await client.checkout.sessions.create(**offer(allow_promotion_codes=True))
    assert (made.allow_promotion_codes, made.amount_total) == (True, 2000)
    with pytest.raises(ValueError, match="'NONE' is no promotion code that is active"):
        emulator.complete_checkout(made.id, promotion_code="NONE")
    done = emulator.complete_checkout(made.id, promotion_code="save20")
    assert (done["status"], done["amount_total"]) == ("complete", 1600)
    assert done["discounts"] == [{"coupon": None, "promotion_code": code}]
    assert (await client.promotion_codes.retrieve(code)).times_redeemed == 1


async def test_a_code_with_a_minimum_is_for_larger_pages(client: Any, emulator: StripeEmulator) -> None:
    await fifth_off(client, restrictions={"minimum_amount": 2001, "minimum_amount_currency": "usd"})
    made = await client.checkout.sessions.create(**offer(allow_promotion_codes=True))
    with pytest.raises(ValueError, match="minimum amount is not reached"):
        emulator.complete_checkout(made.id, promotion_code="SAVE20")


@TAXED
async def test_tax_comes_with_the_address_of_a_new_customer(client: Any, emulator: StripeEmulator) -> None:
    taxed = offer(**TAX, tax_id_collection={"enabled": True}, locale="de")
    made = await client.checkout.sessions.create(**taxed)
    assert (made.amount_total, made.automatic_tax.enabled) == (2000, True)
    assert (made.automatic_tax.status, made.locale) == ("requires_location_inputs", "de")
    assert made.tax_id_collection.enabled is True
    done = emulator.complete_checkout(made.id, name="Ada", country="DE", email="ada@example.com")
    assert (done["amount_subtotal"], done["amount_total"]) == (2000, 2200)
    expanded = ["customer", "subscription.latest_invoice"]
    seen = await client.checkout.sessions.retrieve(made.id, expand=expanded)
    for person in (seen.customer, seen.customer_details):
        assert (person.name, person.email, person.address.country) == ("Ada", "ada@example.com", "DE")
    assert (seen.automatic_tax.status, seen.subscription.latest_invoice.total) == ("complete", 2200)


async def test_without_a_sum_to_pay_no_card_is_asked_for(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-payment_method_collection."""
    await client.coupons.create(id="FREE", percent_off=100, duration="forever")
    free = offer(discounts=[{"coupon": "FREE"}], payment_method_collection="if_required")
    done = emulator.complete_checkout((await client.checkout.sessions.create(**free)).id)
    assert (done["amount_total"], done["payment_status"]) == (0, "no_payment_required")
    subscription = await client.subscriptions.retrieve(str(done["subscription"]))
    assert (subscription.status, subscription.default_payment_method) == ("active", None)


@pytest.mark.parametrize(
    ("more", "cards"), [({"payment_intent_data": {"setup_future_usage": "off_session"}}, 1), ({}, 0)]
)
async def test_something_is_bought_once_on_a_checkout_page(
    client: Any, emulator: StripeEmulator, more: dict[str, Any], cards: int
) -> None:
    customer = emulator.add_customer("cus_2")
    session = await client.checkout.sessions.create(
        mode="payment",
        customer=customer,
        line_items=[line(emulator.add_price(1000, interval=None), 2)],
        invoice_creation={"enabled": True, "invoice_data": {"metadata": {"a": "b"}}},
        success_url="https://app.example/paid",
        **more,
    )
    assert (session.mode, session.amount_total, session.invoice) == ("payment", 2000, None)
    emulator.complete_checkout(session.url)
    done = await client.checkout.sessions.retrieve(session.id)
    assert (done.payment_status, done.subscription) == ("paid", None)
    invoice = await client.invoices.retrieve(done.invoice)
    assert (invoice.status, invoice.total, invoice.metadata["a"]) == ("paid", 2000, "b")
    assert len((await client.customers.payment_methods.list(customer)).data) == cards


async def test_a_disputed_payment_is_told_and_shown(client: Any, emulator: StripeEmulator) -> None:
    price = emulator.add_price(1000, interval=None)
    invoice = (await client.invoices.create(customer="cus_1", auto_advance=False)).id
    await client.invoice_items.create(customer="cus_1", invoice=invoice, pricing={"price": price})
    await client.invoices.finalize_invoice(invoice)
    with pytest.raises(ValueError, match="nothing was charged"):
        emulator.dispute_payment(invoice)
    await client.invoices.pay(invoice)
    emulator.dispute_payment(invoice)
    assert told(emulator)[-1] == "charge.dispute.created"
    (payment,) = (await client.invoice_payments.list(invoice=invoice)).data
    intent = await client.payment_intents.retrieve(payment.payment.payment_intent)
    charge = await client.charges.retrieve(intent.latest_charge)
    assert (charge.disputed, charge.amount_refunded) == (True, 0)
