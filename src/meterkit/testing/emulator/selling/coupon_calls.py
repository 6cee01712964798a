"""The calls about coupons and promotion codes."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.expand import expanded
from meterkit.testing.emulator.protocol import ApiError, missing_parameter, missing_resource, new_id
from meterkit.testing.emulator.selling.coupons import DURATIONS, Coupon, PromotionCode

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call, Params
    from meterkit.testing.emulator.protocol import JsonObject

CODE: Final = re.compile(r"[A-Za-z0-9-]{1,500}")
CODE_LENGTH: Final = 8


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/coupons/create."""
    params = call.params
    params.only(
        "amount_off",
        "applies_to",
        "currency",
        "duration",
        "duration_in_months",
        "id",
        "max_redemptions",
        "metadata",
        "name",
        "percent_off",
        "redeem_by",
        expandable=None,
    )
    percent, amount = params.decimal("percent_off"), _positive(params, "amount_off")
    if (percent is None) == (amount is None):
        raise ApiError("You must pass either `percent_off` or `amount_off`, and not both.")
    if percent is not None and not 0 < percent <= Decimal(100):
        raise ApiError("Invalid percent_off: must be larger than 0, and at most 100", param="percent_off")
    if amount is not None and "currency" not in params:
        raise missing_parameter("currency")
    duration = params.choice("duration", DURATIONS) or "once"
    months = _positive(params, "duration_in_months")
    if (duration == "repeating") != (months is not None):
        message = "`duration_in_months` is required where `duration` is `repeating`, and only there."
        raise ApiError(message, param="duration_in_months")
    coupon_id = params.given("id") or new_id("", length=CODE_LENGTH).removeprefix("_")
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
        max_redemptions=_positive(params, "max_redemptions"),
        redeem_by=params.integer("redeem_by"),
        name=params.given("name", length_max=40),
        products=_products(account, params),
        metadata=params.metadata(),
        livemode=call.livemode,
    )
    account.coupons.add(coupon)
    return _told(account, coupon, call, event="coupon.created")


def _positive(params: Params, name: str) -> int | None:
    number = params.integer(name)
    if number is not None and number < 1:
        message = "This value must be greater than or equal to 1."
        raise ApiError(message, code="parameter_invalid_integer", param=params.path(name))
    return number


def _products(account: Account, params: Params) -> tuple[str, ...]:
    applies = params.hash("applies_to")
    named = [] if applies is None else applies.listed("products")
    return tuple(account.products.find(each, param="applies_to[products]").id for each in named)


def _told(account: Account, coupon: Coupon, call: Call, *, event: str) -> JsonObject:
    shown = coupon.to_json(now=account.now)
    account.emit(event, shown)
    return expanded(account, shown, call.params)


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    return expanded(account, account.coupons.find(call.object_id).to_json(now=account.now), call.params)


def _update(account: Account, call: Call) -> JsonObject:
    """Name and metadata only (https://docs.stripe.com/api/coupons/update)."""
    params, coupon = call.params, account.coupons.find(call.object_id)
    params.only("metadata", "name", expandable=None)
    before = coupon.to_json(now=account.now)
    params.amend("metadata", coupon.metadata)
    coupon.name = params.given("name", length_max=40) or coupon.name
    shown = coupon.to_json(now=account.now)
    account.emit("coupon.updated", shown, previous=before)
    return expanded(account, shown, params)


def _delete(account: Account, call: Call) -> JsonObject:
    """Customers who have redeemed it keep their discount (https://docs.stripe.com/api/coupons/delete)."""
    call.params.only()
    coupon = account.coupons.find(call.object_id)
    account.coupons.delete(coupon)
    account.emit("coupon.deleted", coupon.to_json(now=account.now))
    return {"id": coupon.id, "object": "coupon", "deleted": True}


def _list(account: Account, call: Call) -> JsonObject:
    """Newest first (https://docs.stripe.com/api/coupons/list)."""
    params = call.params
    params.only("created", *PAGING, expandable=None)
    is_in = params.span("created")
    found = [
        coupon.to_json(now=account.now)
        for coupon in reversed(tuple(account.coupons))
        if is_in(coupon.created)
    ]
    return expanded(account, params.page(found, url="/v1/coupons"), params)


def _create_code(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/promotion_codes/create."""
    params = call.params
    params.only(
        "active",
        "code",
        "customer",
        "expires_at",
        "max_redemptions",
        "metadata",
        "promotion",
        "restrictions",
        expandable=None,
    )
    promotion = params.hash("promotion")
    if promotion is None:
        raise missing_parameter("promotion")
    promotion.only("coupon", "type")
    promotion.required("type")
    promotion.choice("type", ("coupon",))
    coupon = account.coupons.find(promotion.required("coupon"), param="promotion[coupon]")
    customer = params.given("customer")
    if customer is not None and not account.customers.exists(customer):
        raise missing_resource("customer", customer, param="customer")
    most = _positive(params, "max_redemptions")
    if most is not None and coupon.max_redemptions is not None and most > coupon.max_redemptions:
        message = "`max_redemptions` cannot be greater than that of the coupon."
        raise ApiError(message, param="max_redemptions")
    restrictions = params.hash("restrictions")
    if restrictions is not None:
        restrictions.only("first_time_transaction", "minimum_amount", "minimum_amount_currency")
        if "minimum_amount" in restrictions:
            restrictions.required("minimum_amount_currency")
    code = PromotionCode(
        id=new_id("promo_1", length=23),
        created=account.now,
        code=_code(account, params, customer=customer),
        coupon=coupon.id,
        active=params.boolean("active") is not False,
        customer=customer,
        expires_at=params.integer("expires_at"),
        max_redemptions=most,
        metadata=params.metadata(),
        livemode=call.livemode,
    )
    if restrictions is not None:
        code.first_time = restrictions.boolean("first_time_transaction") or False
        code.minimum_amount = _positive(restrictions, "minimum_amount")
        code.minimum_currency = restrictions.given("minimum_amount_currency")
    account.promotion_codes.add(code)
    shown = code.to_json(coupon, now=account.now)
    account.emit("promotion_code.created", shown)
    return expanded(account, shown, params)


def _code(account: Account, params: Params, *, customer: str | None) -> str:
    """Unique, whatever the case, "across all active promotion codes for a specific customer"."""
    text = params.given("code") or new_id("", length=CODE_LENGTH).removeprefix("_").upper()
    if not CODE.fullmatch(text):
        message = "Valid characters of `code` are letters (a-z, A-Z), digits (0-9), and dashes (-)."
        raise ApiError(message, param="code")
    for other in account.promotion_codes:
        is_active = other.is_active(account.coupons.get(other.coupon), now=account.now)
        shared = other.customer == customer or None in {other.customer, customer}
        if is_active and shared and other.code.lower() == text.lower():
            message = f"An active promotion code with `code: {text}` already exists."
            raise ApiError(message, param="code")
    return text


def _retrieve_code(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    return _shown(account, account.promotion_codes.find(call.object_id), call)


def _update_code(account: Account, call: Call) -> JsonObject:
    """Metadata, and on or off (https://docs.stripe.com/api/promotion_codes/update)."""
    params, code = call.params, account.promotion_codes.find(call.object_id)
    params.only("active", "metadata", expandable=None)
    coupon = account.coupons.get(code.coupon)
    before, active = code.to_json(coupon, now=account.now), params.boolean("active")
    params.amend("metadata", code.metadata)
    code.active = code.active if active is None else active
    account.emit("promotion_code.updated", code.to_json(coupon, now=account.now), previous=before)
    return _shown(account, code, call)


def _list_codes(account: Account, call: Call) -> JsonObject:
    """Newest first (https://docs.stripe.com/api/promotion_codes/list)."""
    params = call.params
    params.only("active", "code", "coupon", "created", "customer", *PAGING, expandable=None)
    active, is_in = params.boolean("active"), params.span("created")
    text, coupon, customer = params.text("code"), params.text("coupon"), params.text("customer")
    found = [
        shown
        for code in reversed(tuple(account.promotion_codes))
        if (text is None or text.lower() == code.code.lower())
        and coupon in {None, code.coupon}
        and customer in {None, code.customer}
        and is_in(code.created)
        and (shown := code.to_json(account.coupons.get(code.coupon), now=account.now))["active"]
        in ({True, False} if active is None else {active})
    ]
    return expanded(account, params.page(found, url="/v1/promotion_codes"), params)


def _shown(account: Account, code: PromotionCode, call: Call) -> JsonObject:
    return expanded(account, code.to_json(account.coupons.get(code.coupon), now=account.now), call.params)


COUPON_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/coupons", _create),
    ("GET", "/v1/coupons", _list),
    ("GET", "/v1/coupons/{id}", _retrieve),
    ("POST", "/v1/coupons/{id}", _update),
    ("DELETE", "/v1/coupons/{id}", _delete),
    ("POST", "/v1/promotion_codes", _create_code),
    ("GET", "/v1/promotion_codes", _list_codes),
    ("GET", "/v1/promotion_codes/{id}", _retrieve_code),
    ("POST", "/v1/promotion_codes/{id}", _update_code),
)
