"""API calls about coupons and promotion codes."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from stripe_emulator.call import Call, Params
from stripe_emulator.call_table import PAGING, CallTable, list_newest
from stripe_emulator.coupons import DURATIONS, Coupon, PromotionCode
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter, new_id

if TYPE_CHECKING:
    from stripe_emulator.account import Account

CALLS: Final = CallTable()
CODE: Final = re.compile(r"[A-Za-z0-9-]{1,500}")
CODE_LENGTH: Final = 8


@CALLS(
    "POST /v1/coupons",
    "amount_off applies_to currency duration duration_in_months id max_redemptions"
    " metadata name percent_off redeem_by",
)
def _create_coupon(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/coupons/create."""
    params = call.params
    percent, amount = params.decimal("percent_off"), params.at_least("amount_off", 1)
    if (percent is None) == (amount is None):
        raise ApiError("You must pass either `percent_off` or `amount_off`, and not both.")
    if percent is not None and not 0 < percent <= Decimal(100):
        raise ApiError("Invalid percent_off: must be larger than 0, and at most 100", param="percent_off")
    if amount is not None and "currency" not in params:
        raise missing_parameter("currency")
    duration = params.choice("duration", DURATIONS) or "once"
    months = params.at_least("duration_in_months", 1)
    if (duration == "repeating") != (months is not None):
        message = "`duration_in_months` is required where `duration` is `repeating`, and only there."
        raise ApiError(message, param="duration_in_months")
    coupon_id = params.nonempty_text("id") or new_id("", length=CODE_LENGTH).removeprefix("_")
    if coupon_id in account.coupons:
        raise ApiError("Coupon already exists.", code="resource_already_exists", param="id")
    coupon = Coupon(
        id=coupon_id,
        created=account.now,
        percent_off=percent,
        amount_off=amount,
        currency=None if amount is None else params.required("currency").lower(),
        duration=duration,
        duration_in_months=months,
        max_redemptions=params.at_least("max_redemptions", 1),
        redeem_by=params.integer("redeem_by"),
        name=params.nonempty_text("name", length_max=40),
        products=_read_products(account, params),
        metadata=params.metadata(),
        livemode=call.livemode,
    )
    account.coupons.add(coupon)
    shown = coupon.to_json(now=account.now)
    account.emit("coupon.created", shown)
    return shown


def _read_products(account: Account, params: Params) -> tuple[str, ...]:
    applies = params.hash("applies_to")
    named = [] if applies is None else applies.listed("products")
    return tuple(account.products.find(each, param="applies_to[products]").id for each in named)


@CALLS("GET /v1/coupons/{id}")
def _retrieve_coupon(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/coupons/retrieve."""
    return account.coupons.find(call.object_id).to_json(now=account.now)


@CALLS("DELETE /v1/coupons/{id}", expandable=())
def _delete_coupon(account: Account, call: Call) -> JsonObject:
    """Delete a coupon; customers who redeemed it keep their discount (https://docs.stripe.com/api/coupons/delete)."""
    coupon = account.coupons.find(call.object_id)
    account.coupons.delete(coupon)
    account.emit("coupon.deleted", coupon.to_json(now=account.now))
    return {"id": coupon.id, "object": "coupon", "deleted": True}


@CALLS(
    "POST /v1/promotion_codes",
    "active code customer expires_at max_redemptions metadata promotion restrictions",
)
def _create_promotion_code(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/promotion_codes/create."""
    params = call.params
    promotion = params.hash("promotion")
    if promotion is None:
        raise missing_parameter("promotion")
    promotion.only("coupon type")
    promotion.required_choice("type", ("coupon",))
    coupon = account.coupons.find(promotion.required("coupon"), param="promotion[coupon]")
    customer = account.customers.read_param(params)
    most = params.at_least("max_redemptions", 1)
    if most is not None and coupon.max_redemptions is not None and most > coupon.max_redemptions:
        message = "`max_redemptions` cannot be greater than that of the coupon."
        raise ApiError(message, param="max_redemptions")
    restrictions = params.hash("restrictions") or Params("")
    restrictions.only("first_time_transaction minimum_amount minimum_amount_currency")
    if "minimum_amount" in restrictions:
        restrictions.required("minimum_amount_currency")
    code = PromotionCode(
        id=new_id("promo_1", length=23),
        created=account.now,
        code=_read_code(account, params, customer=customer),
        coupon=coupon.id,
        active=params.boolean("active") is not False,
        customer=customer,
        expires_at=params.integer("expires_at"),
        max_redemptions=most,
        metadata=params.metadata(),
        livemode=call.livemode,
        first_time=restrictions.boolean("first_time_transaction", default=False),
        minimum_amount=restrictions.at_least("minimum_amount", 1),
        minimum_currency=restrictions.nonempty_text("minimum_amount_currency"),
    )
    account.promotion_codes.add(code)
    shown = code.to_json(coupon, now=account.now)
    account.emit("promotion_code.created", shown)
    return shown


def _read_code(account: Account, params: Params, *, customer: str | None) -> str:
    """Return a code that is unique "across all active promotion codes for a specific customer"."""
    text = params.nonempty_text("code") or new_id("", length=CODE_LENGTH).removeprefix("_").upper()
    if not CODE.fullmatch(text):
        message = "Valid characters of `code` are letters (a-z, A-Z), digits (0-9), and dashes (-)."
        raise ApiError(message, param="code")
    for other in account.promotion_codes:
        is_active = other.is_active(account.coupons.get(other.coupon), now=account.now)
        shared = other.customer == customer or None in {other.customer, customer}
        if is_active and shared and other.code.lower() == text.lower():
            raise ApiError(f"An active promotion code with `code: {text}` already exists.", param="code")
    return text


@CALLS("GET /v1/promotion_codes/{id}")
def _retrieve_promotion_code(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/promotion_codes/retrieve."""
    return _promotion_code_to_json(account, account.promotion_codes.find(call.object_id))


@CALLS("POST /v1/promotion_codes/{id}", "active metadata")
def _update_promotion_code(account: Account, call: Call) -> JsonObject:
    """Update metadata, or switch a code on or off (https://docs.stripe.com/api/promotion_codes/update)."""
    params, code = call.params, account.promotion_codes.find(call.object_id)
    with account.updating("promotion_code.updated", lambda: _promotion_code_to_json(account, code)):
        params.update_metadata("metadata", code.metadata)
        code.active = params.boolean("active", default=code.active)
    return _promotion_code_to_json(account, code)


@CALLS("GET /v1/promotion_codes", "active code coupon created customer", PAGING)
def _list_promotion_codes(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/promotion_codes/list."""
    text, active = call.params.text("code"), call.params.boolean("active")
    return list_newest(
        account.promotion_codes,
        call,
        "coupon",
        "customer",
        where=lambda code: (
            (text is None or text.lower() == code.code.lower())
            and active in {None, code.is_active(account.coupons.get(code.coupon), now=account.now)}
        ),
        show=lambda code: _promotion_code_to_json(account, code),
    )


def _promotion_code_to_json(account: Account, code: PromotionCode) -> JsonObject:
    return code.to_json(account.coupons.get(code.coupon), now=account.now)
