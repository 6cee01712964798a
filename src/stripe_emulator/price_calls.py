"""API calls about products, prices and tax rates, and the parameters of prices."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from stripe_emulator.call_table import PAGING, CallTable, list_newest
from stripe_emulator.invoice_totals import TAX_RATE_TEXTS, TaxRate
from stripe_emulator.prices import (
    PRODUCT_TEXTS,
    CurrencyOption,
    Price,
    PriceInterval,
    PriceScheme,
    PricingTier,
    Product,
)
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter, missing_resource, new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.call import Call, Params
    from stripe_emulator.meters import Meters

CALLS: Final = CallTable()
PRICE_PARAMS: Final = (
    "active billing_scheme currency currency_options custom_unit_amount lookup_key metadata"
    " nickname recurring tax_behavior tiers tiers_mode transfer_lookup_key transform_quantity"
    " unit_amount unit_amount_decimal"
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
    refuse_unknown_currency(currency, param=params.path("currency"))
    metadata, pricing = params.metadata(), _read_pricing(params)
    return Price(
        id=new_id("price_1", length=23),
        product=product,
        created=account.now,
        currency=currency,
        active=params.boolean("active", default=True),
        pricing=pricing,
        options=_read_currency_options(params, currency, pricing),
        recurring=_read_recurring(params, meters=account.meters),
        lookup_key=params.nonempty_text("lookup_key", length_max=200),
        nickname=params.text("nickname"),
        tax_behavior=_read_tax_behavior(params) or "unspecified",
        metadata=metadata,
    )


def _read_tax_behavior(params: Params) -> str | None:
    return params.choice("tax_behavior", ("exclusive", "inclusive", "unspecified"))


def _kept_tax_behavior(known: str | None, asked: str | None) -> str | None:
    """Once set, it stays (https://docs.stripe.com/api/prices/update#update_price-tax_behavior)."""
    if asked and known not in {None, "unspecified", asked}:
        raise ApiError("You cannot change the `tax_behavior` once it is specified.", param="tax_behavior")
    return asked or known


def refuse_unknown_currency(currency: str, *, param: str) -> None:
    """Refuse what is no code of a currency. Raises ApiError."""
    if len(currency) != CURRENCY_LENGTH:
        raise ApiError(f"Invalid currency: {currency}.", param=param)


def _read_currency_options(params: Params, default: str, pricing: PriceScheme) -> dict[str, CurrencyOption]:
    """Return what a price costs in other currencies.

    https://docs.stripe.com/api/prices/create#create_price-currency_options;
    https://github.com/stripe/stripe-node/issues/1559 has Stripe's words for the price's own currency.

    Args:
        params: of the call.
        default: the price's own currency.
        pricing: in that currency; packages and the mode of tiers are the same in all.
    """
    given = params.hash("currency_options")
    found: dict[str, CurrencyOption] = {}
    for currency in given or ():
        option = params.hash(f"currency_options[{currency}]")
        param = params.path(f"currency_options[{currency}]")
        refuse_unknown_currency(currency, param=param)
        if currency == default:
            message = (
                "You are specifying an update to a currency option that matches the top-level currency for"
                " this price. Please remove this currency option and update the top-level params instead."
            )
            raise ApiError(message, param=param)
        if option is None:
            raise missing_parameter(param)
        option.only("custom_unit_amount tax_behavior tiers unit_amount unit_amount_decimal")
        scheme = (
            replace(pricing, tiers=_read_tiers(option))
            if pricing.tiers
            else replace(pricing, unit_amount=_read_unit_amount(option))
        )
        found[currency] = CurrencyOption(pricing=scheme, tax_behavior=_read_tax_behavior(option))
    return found


def _read_pricing(params: Params) -> PriceScheme:
    transform = params.hash("transform_quantity")
    if params.choice("billing_scheme", ("per_unit", "tiered")) == "tiered":
        if transform is not None:
            message = "`transform_quantity` cannot be combined with `tiers`."
            raise ApiError(message, param=params.path("transform_quantity"))
        if "tiers_mode" not in params:
            raise missing_parameter(params.path("tiers_mode"))
        return PriceScheme(
            tiers=_read_tiers(params), tiers_mode=params.choice("tiers_mode", ("graduated", "volume"))
        )
    unit_amount = _read_unit_amount(params)
    if transform is None:
        return PriceScheme(unit_amount=unit_amount)
    transform.only("divide_by round")
    transform.required("round")
    return PriceScheme(
        unit_amount=unit_amount,
        divide_by=_read_positive(transform, "divide_by"),
        round_up=transform.choice("round", ("up", "down")) == "up",
    )


def _read_unit_amount(params: Params) -> Decimal:
    """Return the amount in minor units, given as an integer or a decimal of 12 places, not both."""
    whole, exact = params.integer("unit_amount"), params.decimal("unit_amount_decimal")
    if "custom_unit_amount" in params:
        message = "`custom_unit_amount` is not emulated: give `unit_amount` or `unit_amount_decimal`."
        raise ApiError(message, param=params.path("custom_unit_amount"))
    params.refuse_both("unit_amount", "unit_amount_decimal", param="unit_amount")
    amount = exact if whole is None else Decimal(whole)
    if amount is None:
        raise ApiError("Prices require an `unit_amount` or `unit_amount_decimal` parameter to be set.")
    if amount < 0:
        message = "Invalid non-negative integer"
        raise ApiError(message, code="parameter_invalid_integer", param=params.path("unit_amount"))
    return amount


def _read_tiers(params: Params) -> tuple[PricingTier, ...]:
    """Return ascending tiers, the last one without end (https://docs.stripe.com/api/prices/create#create_price-tiers)."""
    if "unit_amount" in params or "unit_amount_decimal" in params:
        message = "`unit_amount` cannot be set where `billing_scheme` is `tiered`."
        raise ApiError(message, param=params.path("unit_amount"))
    given = params.hashes("tiers")
    if not given:
        raise missing_parameter(params.path("tiers"))
    tiers = tuple(_read_tier(tier) for tier in given)
    ends: Sequence[int | None] = [tier.up_to for tier in tiers]
    bounded = [end for end in ends if end is not None]
    if ends[-1] is not None or len(bounded) != len(ends) - 1:
        raise ApiError("The last tier, and no other, must have `up_to=inf`.", param=params.path("tiers"))
    if bounded != sorted(set(bounded)):
        raise ApiError("Tiers must be in ascending order of `up_to`.", param=params.path("tiers"))
    return tiers


def _read_tier(params: Params) -> PricingTier:
    params.only("flat_amount flat_amount_decimal unit_amount unit_amount_decimal up_to")
    end = params.required("up_to")
    unit, flat = _read_amount(params, "unit_amount"), _read_amount(params, "flat_amount")
    if unit is None and flat is None:
        message = "Each tier needs an `unit_amount` or a `flat_amount`."
        raise ApiError(message, param=params.path("unit_amount"))
    return PricingTier(
        up_to=None if end == "inf" else _read_positive(params, "up_to"),
        unit_amount=unit,
        flat_amount=flat,
    )


def _read_amount(params: Params, name: str) -> Decimal | None:
    whole = params.integer(name)
    return params.decimal(f"{name}_decimal") if whole is None else Decimal(whole)


def _read_recurring(params: Params, *, meters: Meters) -> PriceInterval | None:
    """Return the interval; a metered price names its meter since 2025-03-31.basil.

    https://docs.stripe.com/changelog/basil/2025-03-31/deprecate-legacy-usage-based-billing
    """
    given = params.hash("recurring")
    if given is None:
        return None
    given.only("interval interval_count meter trial_period_days usage_type")
    interval = given.required_choice("interval", tuple(INTERVALS_MAX))
    count = 1 if "interval_count" not in given else _read_positive(given, "interval_count")
    if count > INTERVALS_MAX[interval]:
        message = "The maximum interval is three years: 3 years, 36 months, 156 weeks or 1095 days."
        raise ApiError(message, param=given.path("interval_count"))
    metered = given.choice("usage_type", ("licensed", "metered")) == "metered"
    meter = given.nonempty_text("meter")
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
    return PriceInterval(interval=interval, interval_count=count, meter=meter)


def _read_positive(params: Params, name: str) -> int:
    params.required(name)
    return params.at_least(name, 1) or 1


PRICE_DATA: Final = "currency product tax_behavior unit_amount unit_amount_decimal"


def resolve_price(account: Account, params: Params, *, currency: str | None, recurs: bool) -> Price:
    """Return the price that a call names by ``price``, or describes by ``price_data``.

    Args:
        account: what it is of.
        params: where it is named.
        currency: what it is charged in; None: its default currency.
        recurs: whether it must be charged again and again, or once.

    Raises:
        ApiError: it does not fit.
    """
    data = params.hash("price_data")
    if data is not None:
        params.refuse_both("price", "price_data", param="price")
        price, where = _read_inline_price(account, data, recurs=recurs), data.path("currency")
    else:
        price, where = account.prices.find_active(params), params.path("price")
        if recurs:
            refuse_archived_product(account, price, param=where)
    kind, other = ("recurring", "one_time") if recurs else ("one_time", "recurring")
    if (price.recurring is not None) != recurs:
        message = (
            f"The price specified is set to `type={other}` but this field only accepts prices with "
            f"`type={kind}`."
        )
        raise ApiError(message, param=where)
    if currency is not None:
        refuse_missing_currency(price, currency, param=where)
    if data is not None:
        account.prices.add(price)
    return price if currency is None else price.in_currency(currency)


def refuse_archived_product(account: Account, price: Price, *, param: str) -> None:
    """Refuse to sell a recurring price of an archived product. Raises ApiError.

    https://github.com/stripe/stripe-go/issues/1031 has the words. Lists show such a price as active.
    """
    if not account.products.find(price.product).active:
        message = (
            f"The product {price.product} is marked as inactive, and thus no new subscriptions can be created"
            f" to any plans of this product. You provided the plan {price.id}."
        )
        raise ApiError(message, param=param)


def refuse_missing_currency(price: Price, currency: str, *, param: str) -> None:
    """Refuse a price that cannot be charged in a currency. Raises ApiError."""
    if currency not in price.currencies:
        supported = ", ".join(f"`{each}`" for each in price.currencies)
        message = (
            f"The price specified only supports {supported}. This doesn't match the expected "
            f"currency: `{currency}`."
        )
        raise ApiError(message, param=param)


def choose_currency(
    account: Account, prices: Sequence[Price], *, asked: str | None, customer: str | None
) -> str | None:
    """Return the currency that several prices are charged in together; None: they share none.

    The requested one, else the customer's, else the default one of the first price
    (https://docs.stripe.com/products-prices/manage-prices).

    Raises:
        ApiError: a price lacks the requested currency.
    """
    if asked is not None:
        refuse_unknown_currency(asked, param="currency")
        for price in prices:
            refuse_missing_currency(price, asked, param="currency")
        return asked
    shared = [each for each in prices[0].currencies if all(each in price.currencies for price in prices)]
    own = None if customer is None else account.customers.find(customer).currency
    return own if own in shared else next(iter(shared), None)


def _read_inline_price(account: Account, data: Params, *, recurs: bool) -> Price:
    """Return an inline price of an existing product, which nothing else can use and no list shows.

    https://docs.stripe.com/api/subscriptions/create#create_subscription-items-price_data; "a list of your
    active prices, excluding inline prices" (https://docs.stripe.com/api/prices/list).
    """
    data.only(PRICE_DATA, *(("recurring",) if recurs else ()))
    product = account.products.find(data.required("product"), param=data.path("product"))
    if not product.active:
        message = f"The product `{product.id}` is marked as inactive, and no new price can be made for it."
        raise ApiError(message, param=data.path("product"))
    recurring = data.hash("recurring")
    if recurring is not None:
        recurring.only("interval interval_count")
    elif recurs:
        raise missing_parameter(data.path("recurring"))
    price = read_price(account, data, product=product.id)
    price.active, price.inline, price.livemode = False, True, product.livemode
    return price


def make_product(account: Account, params: Params, *, call: Call) -> Product:
    """Add the product that ``params`` describe, and return it."""
    now = int(call.now)
    product = Product(
        id=params.nonempty_text("id") or new_id("prod"),
        name=params.required("name"),
        created=now,
        updated=now,
        livemode=call.livemode,
    )
    product.apply(params)
    account.add(account.products, product, "product.created")
    return product


def make_price(account: Account, price: Price, params: Params, *, call: Call, product: Product) -> Price:
    """Add a price that ``params`` describe to a product, and return it.

    Raises:
        ApiError: its lookup key is another's.
        ValueError: the id is taken.
    """
    price.product, price.livemode = product.id, call.livemode
    account.prices.add(price, transfer_lookup_key=params.boolean("transfer_lookup_key", default=False))
    account.emit("price.created", price.to_json())
    return price


@CALLS("POST /v1/prices", "product product_data", PRICE_PARAMS)
def _create_price(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/prices/create."""
    params = call.params
    product_data = params.hash("product_data")
    if ("product" in params) == (product_data is not None):
        message = "You must specify either `product` or `product_data` when creating a price."
        raise ApiError(message, param="product")
    price = read_price(account, params)
    product = (
        account.products.find(params.required("product"), param="product")
        if product_data is None
        else make_product(account, product_data, call=call)
    )
    return make_price(account, price, params, call=call, product=product).to_json()


@CALLS(
    "POST /v1/prices/{id}",
    "active lookup_key metadata nickname tax_behavior transfer_lookup_key currency_options",
)
def _update_price(account: Account, call: Call) -> JsonObject:
    """The amount of a price never changes; other currencies may be added (https://docs.stripe.com/api/prices/update)."""
    params = call.params
    price = account.prices.find(call.object_id)
    tax = _kept_tax_behavior(price.tax_behavior, _read_tax_behavior(params))
    options = price.options | {
        currency: replace(option, tax_behavior=_kept_tax_behavior(known.tax_behavior, option.tax_behavior))
        if (known := price.options.get(currency))
        else option
        for currency, option in _read_currency_options(params, price.currency, price.pricing).items()
    }
    with account.updating("price.updated", price.to_json):
        price.options = options
        params.update_metadata("metadata", price.metadata)
        if "lookup_key" in params:
            price.lookup_key = params.nonempty_text("lookup_key", length_max=200)
            account.prices.claim_lookup_key(price, transfer=params.boolean("transfer_lookup_key") or False)
        price.active = params.boolean("active", default=price.active)
        price.tax_behavior = tax or price.tax_behavior
        price.nickname = params.text("nickname") if "nickname" in params else price.nickname
    return price.to_json()


@CALLS("GET /v1/prices", "active created currency lookup_keys product recurring type", PAGING)
def _list_prices(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/prices/list."""
    params = call.params
    active, keys = params.boolean("active"), params.listed("lookup_keys")
    kind = params.choice("type", ("one_time", "recurring"))
    recurring = params.texts("recurring")
    return list_newest(
        account.prices,
        call,
        "currency",
        "product",
        where=lambda price: (
            not price.inline
            and active in {None, price.active}
            and (not keys or price.lookup_key in keys)
            and kind in {None, "one_time" if price.recurring is None else "recurring"}
            and _matches_recurring(price, recurring)
        ),
    )


def _matches_recurring(price: Price, wanted: dict[str, str]) -> bool:
    recurring: JsonObject = {} if price.recurring is None else price.recurring.to_json()
    return all(recurring.get(name) == value for name, value in wanted.items())


# Accepted and shown nowhere.
PRODUCT_IGNORED: Final = "images marketing_features package_dimensions shippable tax_details"


@CALLS(
    "POST /v1/products", "id name active default_price_data metadata type", *PRODUCT_TEXTS, PRODUCT_IGNORED
)
def _create_product(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/products/create."""
    params = call.params
    data = params.hash("default_price_data")
    price = None if data is None else read_price(account, data)
    product = make_product(account, params, call=call)
    if data is not None and price is not None:
        product.default_price = make_price(account, price, data, call=call, product=product).id
    return product.to_json()


@CALLS("POST /v1/products/{id}", "name active default_price metadata", *PRODUCT_TEXTS, PRODUCT_IGNORED)
def _update_product(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/products/update."""
    params = call.params
    product = account.products.find(call.object_id)
    with account.updating("product.updated", product.to_json):
        product.apply(params)
        wanted = params.nonempty_text("default_price")
        if wanted is not None:
            product.default_price = account.prices.find(wanted, param="default_price").id
        if "name" in params:
            product.name = params.required("name")
        product.updated = int(call.now)
    return product.to_json()


@CALLS("GET /v1/products", "active created ids shippable type url", PAGING)
def _list_products(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/products/list."""
    active, ids = call.params.boolean("active"), call.params.listed("ids")
    return list_newest(
        account.products,
        call,
        where=lambda product: active in {None, product.active} and (not ids or product.id in ids),
    )


@CALLS("POST /v1/tax_rates", "active display_name inclusive metadata percentage", *TAX_RATE_TEXTS)
def _create_tax_rate(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/tax_rates/create."""
    params = call.params
    percentage, inclusive = params.decimal("percentage"), params.boolean("inclusive")
    if percentage is None or inclusive is None:
        raise missing_parameter("percentage" if percentage is None else "inclusive")
    made = TaxRate(
        id=new_id("txr_1", length=23),
        created=account.now,
        display_name=params.required("display_name"),
        percentage=percentage,
        inclusive=inclusive,
        active=params.boolean("active", default=True),
        livemode=call.livemode,
        metadata=params.metadata(),
        texts={name: params.text(name) for name in TAX_RATE_TEXTS if name in params},
    )
    return account.add(account.tax_rates, made, "tax_rate.created")


@CALLS("POST /v1/tax_rates/{id}", "active display_name metadata", *TAX_RATE_TEXTS)
def _update_tax_rate(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/tax_rates/update: the percentage of a rate never changes."""
    params, found = call.params, account.tax_rates.find(call.object_id)
    with account.updating("tax_rate.updated", found.to_json):
        found.active = params.boolean("active", default=found.active)
        found.display_name = params.nonempty_text("display_name") or found.display_name
        found.texts |= {name: params.text(name) or None for name in TAX_RATE_TEXTS if name in params}
        params.update_metadata("metadata", found.metadata)
    return found.to_json()


@CALLS("GET /v1/tax_rates", "active created inclusive", PAGING)
def _list_tax_rates(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/tax_rates/list."""
    wanted = {name: call.params.boolean(name) for name in ("active", "inclusive") if name in call.params}
    return list_newest(
        account.tax_rates,
        call,
        where=lambda rate: all(getattr(rate, name) is value for name, value in wanted.items()),
    )


CALLS.retrieve("/v1/prices/{id}", lambda account: account.prices)
CALLS.retrieve("/v1/products/{id}", lambda account: account.products)
CALLS.retrieve("/v1/tax_rates/{id}", lambda account: account.tax_rates)
