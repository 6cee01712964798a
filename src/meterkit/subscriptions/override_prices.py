"""Prices that overrides give one customer: compared with Stripe's, found there or created."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog import override
from meterkit.catalog.meters import billed_as, billed_meters, meters_billed_by_tiers
from meterkit.decisions.customer_overrides import has_price
from meterkit.errors import SubscriptionError
from meterkit.stripe.idempotency_keys import key_of
from meterkit.stripe.prices import PRICES, fetch_price, shown_in
from meterkit.subscriptions.plan_prices import prices_by_key, prices_of
from meterkit.subscriptions.stripe_objects import (
    LOOKUP_MARK,
    OVERRIDE_PRICE,
    id_in,
    text_in,
)
from meterkit.subscriptions.wanted_prices import (
    WantedPrice,
    metered_price,
    params_of,
    product_params,
    shape_of,
    why_split_wrong,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog import Catalog, Meter, Plan
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.item_changes import PlanPrices

    Given = Mapping[str, Mapping[str, object]]

_PRODUCTS: Final = "/v1/products"


def override_prices(catalog: Catalog, plan: Plan, given: Given) -> dict[str, WantedPrice]:
    """The usage prices of a customer's overrides on a plan, by event name.

    A derived meter without a price has that of its source. Prices that :func:`why_unbilled` refuses are left
    out.
    """
    priced = [
        name for name in given if has_price(given[name]) and why_unbilled(catalog, plan, given, name) is None
    ]
    if not priced:
        return {}
    own = _with_overrides(catalog, plan, {name: given[name] for name in priced})
    found: dict[str, WantedPrice] = {}
    for meter in billed_meters(catalog.meters, own):
        if meter.name not in priced and _overage_price(own, meter) == _overage_price(plan, meter):
            continue
        price = _wanted_price(catalog, own, meter)
        if isinstance(price, WantedPrice) and meter.stripe is not None:
            found[meter.stripe.event_name] = price
    return found


def why_unbilled(catalog: Catalog, plan: Plan, given: Given, name: str) -> str | None:
    """Reason why no price at Stripe can bill an override's price of a meter; None: one can."""
    meter, own = catalog.meters.get(name), _with_overrides(catalog, plan, given)
    if meter is None:
        return "the plans file has no such meter"
    if plan.entitlements[name].overage.rows is not None:
        return f"plan {plan.key} has prices by model for it, which one price cannot replace"
    if meter.stripe is None or meter.stripe.report == "none":
        return "its usage is not sent to Stripe (`report: none`)"
    if (reason := why_split_wrong(catalog, own, meter)) is not None:
        return reason
    before, after = _wanted_price(catalog, plan, meter), _wanted_price(catalog, own, meter)
    if any(isinstance(one, WantedPrice) and one.shape.free for one in (before, after)):
        return (
            "Stripe gets all of it (`report: usage`), and its free tier restarts at each change of price;"
            " write `report: overage`, or `included: 0`"
        )
    return after[0] if isinstance(after, tuple) and after[1] else None


def why_unlike_tiers(catalog: Catalog, plan: Plan, given: Given, meters: Iterable[str]) -> str | None:
    """Reason why an invoice would ignore the included quantity of overrides; None: it would not.

    Args:
        catalog: the plans file.
        plan: the customer's plan.
        given: all overrides of the customer.
        meters: those that are being overridden.
    """
    own, named = override(catalog, plan, given), set(meters)
    for meter in meters_billed_by_tiers(catalog.meters, plan):
        name = catalog.meters[meter].source or meter
        before, after = plan.entitlements[name].included, own[name].included
        if name in named and before != after:
            found = "unlimited" if after is None else after
            return (
                f"override of {name}: found `included: {found}`; Stripe gets all units of {meter} (`report:"
                f" usage`) and its price includes {before}, so invoices would go by that. To give more, grant"
                " units with `kit.grants.add`. To include other quantities, write `report: overage` for it"
            )
    return None


def compared_prices(
    prices: PlanPrices, catalog: Catalog, given: Given, shown: Iterable[Mapping[str, Any]]
) -> PlanPrices:
    """Prices of a plan with those of a customer's overrides, for a comparison, without requests to Stripe.

    A price that no item has yet has its description in place of its id.

    Args:
        prices: of the plan.
        catalog: the plans file.
        given: the present overrides.
        shown: the prices of the customer's items, as Stripe shows them.
    """
    own, listed = dict[str, str](), list(shown)
    if catalog.billing.is_by_lines:
        return prices
    for event, wanted in override_prices(catalog, catalog.plans[prices.plan], given).items():
        meter = _find_meter_id(prices, event)
        if meter is not None:
            own[meter] = _find_matching(listed, wanted, meter) or wanted.shape.describe(wanted.unit)
    return with_metered(prices, own)


async def customer_prices(
    api: StripeApi, catalog: Catalog, plan: Plan, given: Given, shown: Iterable[Mapping[str, Any]] = ()
) -> PlanPrices:
    """Fetch the prices of a plan with those of a customer's overrides; create missing ones of these.

    Args:
        api: the Stripe client.
        catalog: the plans file.
        plan: the sold plan.
        given: the present overrides.
        shown: the prices of the customer's items, as Stripe shows them: one that charges the same stays.

    Raises:
        UnknownPlanError: Stripe has no price with a lookup key that the plan needs.
        SubscriptionError: Stripe has no meter that an override's price needs.
        StripeError: Stripe refuses, or does not answer.
    """
    prices = await prices_of(api, catalog, plan)
    if catalog.billing.is_by_lines:
        return prices
    own, listed = dict[str, str](), list(shown)
    for event, wanted in override_prices(catalog, catalog.plans[prices.plan], given).items():
        meter = _find_meter_id(prices, event)
        if meter is None:
            raise SubscriptionError(
                f"override of {wanted.line}: Stripe has no meter with the event name {event!r}, which its"
                " price needs; `meterkit stripe sync` makes it"
            )
        own[meter] = _find_matching(listed, wanted, meter) or await _create_price(api, prices, wanted, meter)
    return with_metered(prices, own)


async def _create_price(api: StripeApi, prices: PlanPrices, wanted: WantedPrice, meter: str) -> str:
    """Create the price of an override, or find the one that charges the same."""
    of_plan = next((price for price, billed in prices.metered.items() if billed == meter), None)
    shown = None if of_plan is None else await fetch_price(api, of_plan)
    shown = shown or {}
    product = id_in(shown, "product") or await _find_or_create_product(api, wanted)
    currency = wanted.shape.currency
    tax = text_in(shown_in(shown, currency) or shown, "tax_behavior")
    identity = [product, meter, currency, wanted.shape.interval, f"{wanted.shape.unit:f}", tax]
    key = f"{OVERRIDE_PRICE}{blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()}"
    named = replace(wanted, key=key, name=f"{wanted.name}, by override")
    params = params_of(named, product=product, meter=meter, like=shown)

    found = (await prices_by_key(api, [key])).get(key)
    if found is None or _find_matching([found], wanted, meter) is None:
        found = await api.post(PRICES, params, idempotency_key=key_of("override-price", params))
    return str(found["id"])


async def _find_or_create_product(api: StripeApi, wanted: WantedPrice) -> str:
    """The product of a meter that the plan does not bill: from ``stripe sync``, or a new one."""
    key = wanted.product.key
    for product in await api.list(_PRODUCTS, {"active": True}):
        if product["metadata"].get(LOOKUP_MARK) == key:
            return str(product["id"])
    params = product_params(wanted.product)
    return str((await api.post(_PRODUCTS, params, idempotency_key=key_of("product", params)))["id"])


def _find_meter_id(prices: PlanPrices, event: str) -> str | None:
    return next((meter for meter, name in prices.meters.items() if name == event), None)


def _find_matching(shown: Iterable[Mapping[str, Any]], wanted: WantedPrice, meter: str) -> str | None:
    """Find the price that charges the wanted amount on the meter; None if there is none."""
    shape = replace(wanted.shape, meter=meter)
    flat = (price for price in shown if price.get("billing_scheme") != "tiered")
    return next((str(price["id"]) for price in flat if shape_of(price) == shape), None)


def with_metered(prices: PlanPrices, own: Mapping[str, str]) -> PlanPrices:
    """Replace the prices of some meters (meter's id to the price)."""
    kept = {price: meter for price, meter in prices.metered.items() if meter not in own}
    metered = {**kept, **{price: meter for meter, price in own.items()}}
    return replace(prices, metered=metered, overridden=prices.overridden | frozenset(own.values()))


def _with_overrides(catalog: Catalog, plan: Plan, given: Given) -> Plan:
    return replace(plan, entitlements=override(catalog, plan, given))


def _wanted_price(catalog: Catalog, plan: Plan, meter: Meter) -> WantedPrice | tuple[str, bool] | None:
    """The price of a meter's usage on a plan, or the reason why there is none; None if it is not billed."""
    entitlement = billed_as(plan, meter)
    return None if entitlement is None else metered_price(catalog, plan, meter, entitlement)


def _overage_price(plan: Plan, meter: Meter) -> tuple[int | None, int | None]:
    entitlement = billed_as(plan, meter)
    return (
        (None, None) if entitlement is None else (entitlement.overage.per, entitlement.overage.amount_cents)
    )
