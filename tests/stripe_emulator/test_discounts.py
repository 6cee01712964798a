"""Coupons, promotion codes and what they take off invoices, seen through the official SDK."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drivers.emulated_shop import amounts, invoice_of, item_of, newest_invoice, refused, subscribe
from drivers.emulated_times import DAY, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


async def coupon(client: Any, **params: Any) -> Any:
    return (await client.coupons.create(**{"duration": "forever", **params})).id


async def test_discounts_chain_and_keep_to_their_products(client: Any, emulator: StripeEmulator) -> None:
    tenth = await coupon(client, percent_off=10)
    seats = await coupon(client, percent_off=50, applies_to={"products": [emulator.add_product("Other")]})
    own = await coupon(client, amount_off=300, currency="usd", applies_to={"products": ["prod_pro"]})
    items = [{"price": "price_10"}, {"price": "price_seat", "quantity": 1}]
    wanted = [{"coupon": tenth}, {"coupon": seats}, {"coupon": own}]
    made = await subscribe(client, items=items, discounts=wanted)
    invoice = invoice_of(made)
    off = {each.discount: each.amount for each in invoice.total_discount_amounts}
    assert [off.get(str(each)) for each in made.discounts] == [190, None, 300]
    assert invoice.total == 1900 - 190 - 300


async def test_a_repeating_coupon_ends_in_time(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    twice = await coupon(client, percent_off=50, duration="repeating", duration_in_months=2)
    made = await subscribe(client, discounts=[{"coupon": twice}], expand=["discounts", "latest_invoice"])
    (discount,) = made.discounts
    assert discount.end == int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())
    assert (await client.invoices.create_preview(subscription=made.id)).total == 500
    clock.set(datetime(2026, 5, 1, 2, tzinfo=UTC))
    assert (await newest_invoice(client)).total == 500
    assert (await client.invoices.create_preview(subscription=made.id)).total == 1000
    clock.set(datetime(2026, 6, 1, 2, tzinfo=UTC))
    assert (await newest_invoice(client)).total == 1000
    events = [each.type for each in emulator.webhook_events if ".discount." in each.type]
    assert events == ["customer.discount.created", "customer.discount.deleted"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"discounts": [{"coupon": "NONE"}]}, "No such coupon: 'NONE'"),
        ({"discounts": [{"coupon": "OVER"}]}, "Coupon expired: OVER"),
        ({"discounts": [{"coupon": "USED"}]}, "Coupon USED is used up and cannot be applied."),
        ({"discounts": [{"coupon": "EURO"}]}, "its currency is `eur`"),
        ({"discounts": [{"coupon": "USED", "discount": "di_1"}]}, "exactly one of"),
        ({"discounts": [{"coupon": "FREE"}] * 21}, "at most 20 discounts"),
    ],
)
async def test_unredeemable_coupons_are_refused(client: Any, clock: Clock, params: Any, said: str) -> None:
    """https://docs.stripe.com/error-codes#coupon-expired."""
    await coupon(client, id="OVER", percent_off=10, redeem_by=SECOND + DAY)
    await coupon(client, id="USED", percent_off=10, max_redemptions=1)
    await coupon(client, id="EURO", amount_off=100, currency="eur")
    await coupon(client, id="FREE", percent_off=100)
    made = await subscribe(client, discounts=[{"coupon": "USED"}])
    clock.advance(timedelta(days=2))
    await refused(client.subscriptions.update(made.id, **params), said)
    assert (await client.coupons.retrieve("OVER")).valid is False
    assert (await client.coupons.retrieve("USED")).valid is False
    assert (await client.coupons.retrieve("EURO")).times_redeemed == 0
    assert len((await client.subscriptions.retrieve(made.id)).discounts) == 1


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "either `percent_off` or `amount_off`"),
        ({"percent_off": 10, "amount_off": 10, "currency": "usd"}, "either `percent_off` or `amount_off`"),
        ({"percent_off": 0}, "larger than 0, and at most 100"),
        ({"amount_off": 10}, "Missing required param: currency."),
        ({"percent_off": 10, "duration": "repeating"}, "`duration_in_months` is required"),
        ({"percent_off": 10, "id": "THERE"}, "Coupon already exists."),
    ],
)
async def test_coupons_that_make_no_sense_are_refused(client: Any, params: Any, said: str) -> None:
    await coupon(client, id="THERE", percent_off=10)
    assert said in str(await refused(coupon(client, **params)))


async def code(client: Any, coupon_id: str, **params: Any) -> Any:
    promotion = {"type": "coupon", "coupon": coupon_id}
    return await client.promotion_codes.create(**{"promotion": promotion, **params})


async def test_promotion_codes_redeem_their_coupon(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/promotion_codes."""
    fifth = await coupon(client, percent_off=20, max_redemptions=3)
    save = await code(client, fifth, code="Save20", max_redemptions=1, expires_at=SECOND + DAY)
    assert (save.active, save.promotion.coupon, save.times_redeemed) == (True, fifth, 0)
    made = await subscribe(
        client, discounts=[{"promotion_code": save.id}], expand=["latest_invoice", "discounts.promotion_code"]
    )
    (discount,) = made.discounts
    assert (discount.promotion_code.code, invoice_of(made).total) == ("Save20", 800)
    await refused(subscribe(client, discounts=[{"promotion_code": save.id}]), "expired or inactive")
    other = await code(client, fifth, code="SAVE20")
    listed = await client.promotion_codes.list(code="save20")
    assert [each.id for each in listed.data] == [other.id, save.id]
    assert [each.id for each in (await client.promotion_codes.list(active=True)).data] == [other.id]
    assert (await client.promotion_codes.update(other.id, active=False)).active is False
    assert (await client.promotion_codes.retrieve(save.id)).active is False
    assert (await client.coupons.retrieve(fifth)).times_redeemed == 1
    late = await code(client, fifth, expires_at=SECOND + DAY)
    assert late.active
    clock.advance(timedelta(days=1))
    assert (await client.promotion_codes.retrieve(late.id)).active is False


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"customer": "cus_2"}, "for another customer"),
        ({"restrictions": {"first_time_transaction": True}}, "has prior transactions"),
        (
            {"restrictions": {"minimum_amount": 1001, "minimum_amount_currency": "usd"}},
            "minimum amount is not",
        ),
        ({"restrictions": {"minimum_amount": 1, "minimum_amount_currency": "eur"}}, "minimum amount is not"),
    ],
)
async def test_promotion_restrictions(client: Any, emulator: StripeEmulator, params: Any, said: str) -> None:
    """https://github.com/stripe/stripe-php/issues/1146."""
    emulator.add_customer("cus_2")
    await subscribe(client)
    made = await code(client, await coupon(client, percent_off=20), **params)
    await refused(subscribe(client, discounts=[{"promotion_code": made.id}]), said)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"code": "no spaces"}, "Valid characters"),
        ({"code": "there"}, "already exists"),
        ({"max_redemptions": 9}, "cannot be greater than that of the coupon"),
        ({"restrictions": {"minimum_amount": 5}}, "minimum_amount_currency"),
        ({"promotion": {"type": "coupon", "coupon": "none"}}, "No such coupon"),
    ],
)
async def test_promotion_codes_that_make_no_sense_are_refused(client: Any, params: Any, said: str) -> None:
    fifth = await coupon(client, percent_off=20, max_redemptions=3)
    await code(client, fifth, code="THERE")
    await refused(code(client, fifth, **params), said)


async def test_a_draft_takes_discounts_of_its_own(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/update#update_invoice-discounts."""
    made = await subscribe(client)
    fifth = await coupon(client, percent_off=20)
    clock.advance(timedelta(days=30, minutes=30))
    draft = await newest_invoice(client)
    wanted: Any = {"discounts": [{"coupon": fifth}]}
    changed = await client.invoices.update(draft.id, **wanted, expand=["discounts"])
    assert (changed.total, len(changed.discounts)) == (800, 1)
    (discount,) = changed.discounts
    assert (discount.invoice, discount.subscription) == (draft.id, None)
    clock.advance(timedelta(hours=1))
    paid = await newest_invoice(client)
    assert (paid.id, paid.status, paid.amount_paid) == (draft.id, "paid", 800)
    await refused(client.invoices.update(draft.id, **wanted), "can't be updated in this way")
    assert (await client.subscriptions.retrieve(made.id)).discounts == []
    assert (await client.coupons.retrieve(fifth)).times_redeemed == 1


async def test_an_amount_is_taken_off_a_proration_whole(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/changelog/clover/2025-09-30/itemize-proration-discount-amounts."""
    off = await coupon(client, amount_off=200, currency="usd")
    once = await coupon(client, percent_off=50, duration="once")
    made = await subscribe(client, discounts=[{"coupon": off}])
    clock.advance(timedelta(days=15))
    change: Any = {
        "items": [{"id": item_of(made).id, "price": "price_20"}],
        "discounts": [{"discount": made.discounts[0]}, {"coupon": once}],
        "proration_behavior": "always_invoice",
        "expand": ["latest_invoice"],
    }
    changed = await client.subscriptions.update(made.id, **change)
    assert amounts(invoice_of(changed)) == [-400, 800]
    assert len(changed.discounts) == 2, "the coupon for once waits for the next charge"
