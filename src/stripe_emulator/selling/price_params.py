"""Parameters of prices: named by id or described by ``price_data``, and what Stripe refuses."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from stripe_emulator.protocol import ApiError, missing_parameter, missing_resource, new_id
from stripe_emulator.selling.amounts import Pricing, Tier
from stripe_emulator.selling.prices import Price, Recurring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.call import Params
    from stripe_emulator.metering.meters import Meters

PRICE_PARAMS: Final = (
    *("active", "billing_scheme", "currency", "currency_options", "custom_unit_amount", "lookup_key"),
    *("metadata", "nickname", "recurring", "tax_behavior", "tiers", "tiers_mode", "transfer_lookup_key"),
    *("transform_quantity", "unit_amount", "unit_amount_decimal"),
)
# The longest interval: three years (https://docs.stripe.com/api/prices/create#create_price-recurring-interval_count).
INTERVALS_MAX: Final = {"day": 1095, "week": 156, "month": 36, "year": 3}
CURRENCY_LENGTH: Final = 3


def read_price(account: Account, params: Params, *, product: str = "") -> Price:
    """Return the price that ``params`` describe. ``product`` is an id; it may be set later.

    Raises:
        ApiError: Stripe would refuse it (https://docs.stripe.com/api/prices/create).
    """
    currency = params.required("currency").lower()
    if len(currency) != CURRENCY_LENGTH:
        raise ApiError(f"Invalid currency: {currency}.", param=params.path("currency"))
    metadata = params.metadata()
    return Price(
        id=new_id("price_1", length=23),
        product=product,
        created=account.now,
        currency=currency,
        active=params.boolean("active", default=True),
        pricing=_pricing(params),
        recurring=_recurring(params, meters=account.meters),
        lookup_key=params.given("lookup_key", length_max=200),
        nickname=params.text("nickname"),
        tax_behavior=params.choice("tax_behavior", ("exclusive", "inclusive", "unspecified"))
        or "unspecified",
        metadata=metadata,
    )


def _pricing(params: Params) -> Pricing:
    transform = params.hash("transform_quantity")
    if params.choice("billing_scheme", ("per_unit", "tiered")) == "tiered":
        if transform is not None:
            message = "`transform_quantity` cannot be combined with `tiers`."
            raise ApiError(message, param=params.path("transform_quantity"))
        return Pricing(tiers=_tiers(params), tiers_mode=params.choice("tiers_mode", ("graduated", "volume")))
    unit_amount = _unit_amount(params)
    if transform is None:
        return Pricing(unit_amount=unit_amount)
    transform.only("divide_by", "round")
    transform.required("round")
    return Pricing(
        unit_amount=unit_amount,
        divide_by=_positive(transform, "divide_by"),
        round_up=transform.choice("round", ("up", "down")) == "up",
    )


def _unit_amount(params: Params) -> Decimal:
    """Exactly one of the two, in minor units, the decimal one with at most 12 places."""
    whole, exact = params.integer("unit_amount"), params.decimal("unit_amount_decimal")
    if "custom_unit_amount" in params:
        message = "`custom_unit_amount` is not emulated: give `unit_amount` or `unit_amount_decimal`."
        raise ApiError(message, param=params.path("custom_unit_amount"))
    params.refuse_both("unit_amount", "unit_amount_decimal", param="unit_amount")
    amount = exact if whole is None else Decimal(whole)
    if amount is None:
        message = "Prices require an `unit_amount` or `unit_amount_decimal` parameter to be set."
        raise ApiError(message)
    if amount < 0:
        message = "Invalid non-negative integer"
        raise ApiError(message, code="parameter_invalid_integer", param=params.path("unit_amount"))
    return amount


def _tiers(params: Params) -> tuple[Tier, ...]:
    """Ascending, the last one without end (https://docs.stripe.com/api/prices/create#create_price-tiers)."""
    if "tiers_mode" not in params:
        raise missing_parameter(params.path("tiers_mode"))
    if "unit_amount" in params or "unit_amount_decimal" in params:
        message = "`unit_amount` cannot be set where `billing_scheme` is `tiered`."
        raise ApiError(message, param=params.path("unit_amount"))
    given = params.hashes("tiers")
    if not given:
        raise missing_parameter(params.path("tiers"))
    tiers = tuple(_tier(tier) for tier in given)
    ends: Sequence[int | None] = [tier.up_to for tier in tiers]
    bounded = [end for end in ends if end is not None]
    if ends[-1] is not None or len(bounded) != len(ends) - 1:
        message = "The last tier, and no other, must have `up_to=inf`."
        raise ApiError(message, param=params.path("tiers"))
    if bounded != sorted(set(bounded)):
        raise ApiError("Tiers must be in ascending order of `up_to`.", param=params.path("tiers"))
    return tiers


def _tier(params: Params) -> Tier:
    params.only("flat_amount", "flat_amount_decimal", "unit_amount", "unit_amount_decimal", "up_to")
    end = params.required("up_to")
    unit, flat = _either(params, "unit_amount"), _either(params, "flat_amount")
    if unit is None and flat is None:
        message = "Each tier needs an `unit_amount` or a `flat_amount`."
        raise ApiError(message, param=params.path("unit_amount"))
    return Tier(
        up_to=None if end == "inf" else _positive(params, "up_to"),
        unit_amount=unit or Decimal(0),
        flat_amount=flat or Decimal(0),
    )


def _either(params: Params, name: str) -> Decimal | None:
    whole = params.integer(name)
    return params.decimal(f"{name}_decimal") if whole is None else Decimal(whole)


def _recurring(params: Params, *, meters: Meters) -> Recurring | None:
    """A metered price names its meter since 2025-03-31.basil; a licensed one has none.

    https://docs.stripe.com/changelog/basil/2025-03-31/deprecate-legacy-usage-based-billing
    """
    given = params.hash("recurring")
    if given is None:
        return None
    given.only("interval", "interval_count", "meter", "trial_period_days", "usage_type")
    given.required("interval")
    interval = given.choice("interval", tuple(INTERVALS_MAX)) or ""
    count = 1 if "interval_count" not in given else _positive(given, "interval_count")
    if count > INTERVALS_MAX[interval]:
        message = "The maximum interval is three years: 3 years, 36 months, 156 weeks or 1095 days."
        raise ApiError(message, param=given.path("interval_count"))
    metered = given.choice("usage_type", ("licensed", "metered")) == "metered"
    meter = given.given("meter")
    if metered and meter is None:
        message = (
            "`recurring[meter]` is required where `recurring[usage_type]` is `metered`: legacy usage records "
            "are no longer supported."
        )
        raise ApiError(message, code="parameter_missing", param=given.path("meter"))
    if meter is not None and not metered:
        message = "`recurring[meter]` can only be set where `recurring[usage_type]` is `metered`."
        raise ApiError(message, param=given.path("meter"))
    if meter is not None and meter not in meters:
        raise missing_resource("meter", meter, param=given.path("meter"))
    return Recurring(interval=interval, interval_count=count, meter=meter)


def _positive(params: Params, name: str) -> int:
    params.required(name)
    return params.at_least(name, 1) or 1


PRICE_DATA: Final = ("currency", "product", "tax_behavior", "unit_amount", "unit_amount_decimal")


def named_price(account: Account, params: Params, *, currency: str | None, recurs: bool) -> Price:
    """Return the price that a call names by ``price``, or describes by ``price_data``.

    Args:
        account: what it is of.
        params: where it is named.
        currency: what it must be in; None: any.
        recurs: whether it must be charged again and again, or once.

    Raises:
        ApiError: it does not fit.
    """
    data = params.hash("price_data")
    if data is not None:
        params.refuse_both("price", "price_data", param="price")
        price, where = _inline(account, data, recurs=recurs), data.path("currency")
    else:
        where = params.path("price")
        price = account.prices.find(params.required("price"), param=where)
        if not price.active:
            message = "The price specified is inactive. This field only accepts active prices."
            raise ApiError(message, param=where)
    kind, other = ("recurring", "one_time") if recurs else ("one_time", "recurring")
    if (price.recurring is not None) != recurs:
        message = (
            f"The price specified is set to `type={other}` but this field only accepts prices with "
            f"`type={kind}`."
        )
        raise ApiError(message, param=where)
    if currency not in {None, price.currency}:
        message = (
            f"The price specified only supports `{price.currency}`. This doesn't match the expected "
            f"currency: `{currency}`."
        )
        raise ApiError(message, param=where)
    if data is not None:
        account.prices.add(price)
    return price


def _inline(account: Account, data: Params, *, recurs: bool) -> Price:
    """A price of its own, of a product that there is, which nothing else can use and no list shows.

    https://docs.stripe.com/api/subscriptions/create#create_subscription-items-price_data; "a list of your
    active prices, excluding inline prices" (https://docs.stripe.com/api/prices/list).
    """
    data.only(*PRICE_DATA, *(("recurring",) if recurs else ()))
    product = account.products.find(data.required("product"), param=data.path("product"))
    recurring = data.hash("recurring")
    if recurring is not None:
        recurring.only("interval", "interval_count")
    elif recurs:
        raise missing_parameter(data.path("recurring"))
    price = read_price(account, data, product=product.id)
    price.active, price.inline, price.livemode = False, True, product.livemode
    return price
