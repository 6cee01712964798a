"""Prices at Stripe of each sold plan, by id or lookup key."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.meters import billed_meters, is_sold
from meterkit.decisions.customer_state import seat_meter
from meterkit.errors import StripeError, UnknownPlanError
from meterkit.stripe.prices import PRICES
from meterkit.subscriptions.change_rules import sells_seats
from meterkit.subscriptions.item_changes import PlanPrices, metered_among
from meterkit.subscriptions.stripe_objects import (
    addon_key,
    base_key,
    id_in,
    is_for_new_customers,
    key_in,
    meter_key,
    plan_of_price,
    seat_key,
    text_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.item_changes import LiveItem


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
    of_base_product = metered_among(filter(is_for_new_customers, of_product), base)
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
    """Fetch the active prices with these lookup keys, by key. Raises StripeError.

    A replaced price may keep its key: its mark says whose it is.
    """
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(keys), LOOKUP_KEYS_MAX):
        page = list(keys[start : start + LOOKUP_KEYS_MAX])
        asked: dict[str, Parameter] = {"lookup_keys": page, "active": True, "expand": list(expand)}
        listed = {text_in(price, "lookup_key"): price for price in await api.list(PRICES, asked)}
        found |= {key: price for key, price in listed.items() if key_in(price) in {"", key}}
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
            is_unpriced=True,
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
