"""Prices at Stripe of each sold plan, by id or lookup key, with those that overrides give one customer."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import blake2b
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog import override
from meterkit.catalog.meters import billed_as, billed_meters, is_sold, meters_billed_by_tiers
from meterkit.decisions.customer_state import seat_meter
from meterkit.errors import StripeError, SubscriptionError, UnknownPlanError
from meterkit.stripe.prices import PRICES, fetch_price, shown_in
from meterkit.subscriptions.change_rules import sells_seats
from meterkit.subscriptions.item_changes import PlanPrices, metered_among
from meterkit.subscriptions.stripe_objects import (
    LOOKUP_MARK,
    OVERRIDE_PRICE,
    addon_key,
    base_key,
    id_in,
    is_override_price,
    key_in,
    key_of,
    meter_key,
    part_of,
    persistently,
    plan_of_price,
    seat_key,
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
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Meter, Plan
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.item_changes import LiveItem

    Given = Mapping[str, Mapping[str, object]]


LOOKUP_KEYS_MAX: Final = 10
"""Most lookup keys in one list of prices (https://docs.stripe.com/api/prices/list#list_prices-lookup_keys)."""
METERS: Final = "/v1/billing/meters"


async def prices_of(
    api: StripeApi, catalog: Catalog, plan: Plan, meters: Sequence[Mapping[str, Any]] | None = None
) -> PlanPrices:
    """Fetch the prices of a sold plan.

    Base price, seat price and prices of add-ons are those that the plans file names, otherwise those with
    their lookup keys. A meter's price has its lookup key, otherwise the product of the base price. An add-on
    without a price is left out. ``meters`` are all meters at Stripe, if they are listed already.

    Raises:
        UnknownPlanError: Stripe has no price with a lookup key that the plan needs.
        StripeError: Stripe refuses, or does not answer.
    """
    # A plan may have the price of another; its subscribers have that other plan.
    plan = catalog.plans[
        plan_of_price(plan.price.stripe_price or "", base_key(plan.key), catalog) or plan.key
    ]
    keyed = await prices_by_key(api, _lookup_keys(catalog, plan))
    base = await _fetch_base_price(api, plan, keyed)
    seat, addons = _find_seat_price(catalog, plan, keyed), _find_addon_prices(catalog, plan, keyed)
    if catalog.billing.is_by_lines:
        return PlanPrices(plan=plan.key, base=base["id"], seat=seat, metered={}, meters={}, addons=addons)
    of_product = await api.list(PRICES, {"product": id_in(base, "product"), "active": True})
    # The file may name a base price of another default currency: those of lookup keys have all currencies.
    metered = metered_among(({**price, "currency": base["currency"]} for price in keyed.values()), base)
    of_base_product = metered_among((price for price in of_product if not is_override_price(price)), base)
    metered |= {price: meter for price, meter in of_base_product.items() if meter not in metered.values()}
    return PlanPrices(
        plan=plan.key,
        base=base["id"],
        seat=seat,
        metered=metered,
        meters=meters_of_file(await api.list(METERS) if meters is None else meters, catalog),
        addons=addons,
    )


async def is_of_another_plan(api: StripeApi, catalog: Catalog, item: LiveItem, plan: str) -> bool:
    """Whether the metered price of an item without a lookup key belongs to another plan, by its product.

    That happens if only the base price was switched in the dashboard. Raises StripeError.
    """
    listed = await api.list(PRICES, {"product": item.product, "active": True})
    bases = {plan_of_price(price["id"], key_in(price), catalog): price for price in listed}
    others = [base for key, base in bases.items() if key not in {None, plan}]
    return any(plan not in bases or item.price in metered_among(listed, base) for base in others)


async def prices_by_key(
    api: StripeApi, keys: Sequence[str], *, expand: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Fetch the active prices with these lookup keys, by key. Raises StripeError."""
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(keys), LOOKUP_KEYS_MAX):
        page = list(keys[start : start + LOOKUP_KEYS_MAX])
        asked: dict[str, Parameter] = {"lookup_keys": page, "active": True, "expand": list(expand)}
        found |= {text_in(price, "lookup_key"): price for price in await api.list(PRICES, asked)}
    return found


def _lookup_keys(catalog: Catalog, plan: Plan) -> list[str]:
    billed = [] if catalog.billing.is_by_lines else billed_meters(catalog.meters, plan)
    keys = [meter_key(plan.key, meter.name) for meter in billed]
    if plan.price.stripe_price is None:
        keys.append(base_key(plan.key))
    if plan.seat_price is not None and plan.seat_price.stripe_price is None:
        keys.append(seat_key(plan.key))
    keys += [addon_key(name) for name in plan.addons if catalog.addons[name].price.stripe_price is None]
    return keys


async def _fetch_base_price(
    api: StripeApi, plan: Plan, keyed: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    if plan.price.stripe_price is not None:
        return await api.get(f"{PRICES}/{plan.price.stripe_price}")
    return _require_price(plan, base_key(plan.key), keyed)


def _find_seat_price(catalog: Catalog, plan: Plan, keyed: Mapping[str, Mapping[str, Any]]) -> str | None:
    if plan.seat_price is None or not sells_seats(plan, seat_meter(catalog.meters)):
        return None
    return plan.seat_price.stripe_price or str(_require_price(plan, seat_key(plan.key), keyed)["id"])


def _find_addon_prices(
    catalog: Catalog, plan: Plan, keyed: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """The prices of the add-ons of a plan, by name, as far as Stripe has them."""
    found: dict[str, str] = {}
    for name in plan.addons:
        price = catalog.addons[name].price.stripe_price or text_in(keyed.get(addon_key(name), {}), "id")
        if price:
            found[name] = price
    return found


def _require_price(plan: Plan, key: str, keyed: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if key not in keyed:
        raise UnknownPlanError(
            plan.key,
            f"plan: {plan.key!r:.80} cannot be subscribed to yet: Stripe has no active price with the lookup"
            f" key {key!r:.200}; `meterkit stripe sync` makes it",
            is_known=True,
        )
    return keyed[key]


def meters_of_file(meters: Sequence[Mapping[str, Any]], catalog: Catalog) -> dict[str, str]:
    """Event names of the meters that carry a meter of the plans file, by id; active ones first."""
    names = {meter.stripe.event_name for meter in catalog.meters.values() if meter.stripe is not None}
    ordered = sorted(meters, key=lambda meter: meter.get("status") != "active")
    return {str(one["id"]): one["event_name"] for one in ordered if one.get("event_name") in names}


_CACHED_MS: Final = 3_600_000


class PriceBook:
    """Caches the prices of plans at Stripe, for checks of many customers.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._api = api
        self._known: dict[tuple[str, str, str], tuple[Plan, int, PlanPrices | None]] = {}

    async def of(
        self, plan: Plan, *, within_ms: int = _CACHED_MS, catalog: Catalog | None = None
    ) -> PlanPrices | None:
        """The prices of a plan; None if Stripe does not have its base price.

        Args:
            plan: a sold plan.
            within_ms: longest age of cached prices.
            catalog: the plans file as it bills the customer's usage (``with_usage_billed``), in the
                customer's currency; None: as it is.

        Raises:
            StripeError: Stripe refuses, or does not answer.
        """
        now_ms, catalog = self._store.now_ms(), catalog or self._store.catalog
        plan = catalog.plans[plan.key]
        name = plan.key, catalog.billing.usage, catalog.currency
        known, at_ms, prices = self._known.get(name, (None, 0, None))
        if known is not plan or not at_ms <= now_ms < at_ms + within_ms:
            prices = await self._fetch_prices(plan, catalog)
            self._known[name] = plan, now_ms, prices
        return prices

    async def all(self, currency: str = "") -> dict[str, PlanPrices | None]:
        """The present prices of each sold plan, by its key. Raises StripeError.

        Args:
            currency: of the plans file; empty: the first one.
        """
        catalog = self._store.catalog.in_currency(currency)
        sold = filter(is_sold, catalog.plans.values())
        return {plan.key: await self.of(plan, within_ms=0, catalog=catalog) for plan in sold}

    async def _fetch_prices(self, plan: Plan, catalog: Catalog) -> PlanPrices | None:
        try:
            return await prices_of(self._api(), catalog, plan)
        except UnknownPlanError:
            return None
        except StripeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise


_PRODUCTS: Final = "/v1/products"


def gives_price(given: Given, meter: str) -> bool:
    """Whether overrides give an overage price of a meter."""
    bill = part_of(part_of(given.get(meter, {}), "overage"), "bill")
    return bill.get("amount_cents") is not None


def override_prices(catalog: Catalog, plan: Plan, given: Given) -> dict[str, WantedPrice]:
    """The usage prices of a customer's overrides on a plan, by event name.

    A derived meter without a price has that of its source. Prices that :func:`why_unbilled` refuses are left
    out.
    """
    priced = [
        name
        for name in given
        if gives_price(given, name) and why_unbilled(catalog, plan, given, name) is None
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

    async def attempt(again: int) -> str:
        found = (await prices_by_key(api, [key])).get(key)
        if found is None or _find_matching([found], wanted, meter) is None:
            asked = key_of("override-price", params, again)
            found = await api.post(PRICES, params, idempotency_key=asked)
        return str(found["id"])

    return await persistently(attempt)


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
