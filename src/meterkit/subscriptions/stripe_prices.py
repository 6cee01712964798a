"""The prices at Stripe of each sold plan, by id or lookup key, cached for an hour."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.meters import billed_meters, is_sold
from meterkit.decisions.customer_state import seat_meter
from meterkit.errors import StripeError, UnknownPlanError
from meterkit.subscriptions.change_rules import sells_seats
from meterkit.subscriptions.item_changes import PlanPrices, metered_among
from meterkit.subscriptions.stripe_objects import (
    base_key,
    id_in,
    is_override_price,
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
    from meterkit.subscriptions.item_changes import Item


PRICES: Final = "/v1/prices"
LOOKUP_KEYS_MAX: Final = 10
"""So many lookup keys a list of prices takes (https://docs.stripe.com/api/prices/list#list_prices-lookup_keys)."""
METERS: Final = "/v1/billing/meters"


async def prices_of(api: StripeApi, catalog: Catalog, plan: Plan) -> PlanPrices:
    """The prices of a plan that is sold.

    Base price and seat price are those that the plans file names, else those with the plan's lookup keys. A
    meter's price is the one with its lookup key, else that of the product of the base price.

    Raises:
        UnknownPlanError: Stripe has no price with a lookup key that the plan needs.
        StripeError: Stripe refuses, or does not answer.
    """
    # A plan may inherit the price of another; customers who subscribe to it have that other plan.
    plan = catalog.plans[
        plan_of_price(plan.price.stripe_price or "", base_key(plan.key), catalog) or plan.key
    ]
    keyed = await prices_by_key(api, _keys(catalog, plan))
    base = await _base(api, plan, keyed)
    seat = _seat(catalog, plan, keyed)
    of_product = await api.list(PRICES, {"product": id_in(base, "product"), "active": True})
    metered = metered_among(keyed.values(), base)
    beside = metered_among((price for price in of_product if not is_override_price(price)), base)
    metered |= {price: meter for price, meter in beside.items() if meter not in metered.values()}
    return PlanPrices(
        plan=plan.key,
        base=base["id"],
        seat=seat,
        metered=metered,
        meters=meters_of_file(await api.list(METERS), catalog),
    )


async def is_of_another_plan(api: StripeApi, catalog: Catalog, item: Item, plan: str) -> bool:
    """Whether the metered price of an item, which has no lookup key, is another plan's by its product.

    So it is after the base price alone was switched in the dashboard. Raises StripeError.
    """
    listed = await api.list(PRICES, {"product": item.product, "active": True})
    bases = {plan_of_price(price["id"], key_in(price), catalog): price for price in listed}
    others = [base for key, base in bases.items() if key not in {None, plan}]
    return any(plan not in bases or item.price in metered_among(listed, base) for base in others)


async def prices_by_key(
    api: StripeApi, keys: Sequence[str], *, expand: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """The active prices with these lookup keys, by key. Raises StripeError."""
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(keys), LOOKUP_KEYS_MAX):
        page = list(keys[start : start + LOOKUP_KEYS_MAX])
        asked: dict[str, Parameter] = {"lookup_keys": page, "active": True, "expand": list(expand)}
        found |= {text_in(price, "lookup_key"): price for price in await api.list(PRICES, asked)}
    return found


def _keys(catalog: Catalog, plan: Plan) -> list[str]:
    keys = [meter_key(plan.key, meter.name) for meter in billed_meters(catalog.meters, plan)]
    if plan.price.stripe_price is None:
        keys.append(base_key(plan.key))
    if plan.seat_price is not None and plan.seat_price.stripe_price is None:
        keys.append(seat_key(plan.key))
    return keys


async def _base(api: StripeApi, plan: Plan, keyed: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if plan.price.stripe_price is not None:
        return await api.get(f"{PRICES}/{plan.price.stripe_price}")
    return _found(plan, base_key(plan.key), keyed)


def _seat(catalog: Catalog, plan: Plan, keyed: Mapping[str, Mapping[str, Any]]) -> str | None:
    if plan.seat_price is None or not sells_seats(plan, seat_meter(catalog.meters)):
        return None
    return plan.seat_price.stripe_price or str(_found(plan, seat_key(plan.key), keyed)["id"])


def _found(plan: Plan, key: str, keyed: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if key not in keyed:
        raise UnknownPlanError(
            plan.key,
            f"plan: {plan.key!r:.80} cannot be subscribed to yet: Stripe has no active price with the lookup"
            f" key {key!r:.200}; `meterkit stripe sync` makes it",
        )
    return keyed[key]


def meters_of_file(meters: Sequence[Mapping[str, Any]], catalog: Catalog) -> dict[str, str]:
    """The event names of the meters that carry a meter of the plans file, by id; active ones first."""
    names = {meter.stripe.event_name for meter in catalog.meters.values() if meter.stripe is not None}
    ordered = sorted(meters, key=lambda meter: meter.get("status") != "active")
    return {str(one["id"]): one["event_name"] for one in ordered if one.get("event_name") in names}


_LASTS_MS: Final = 3_600_000


class PriceBook:
    """Remembers what the plans cost at Stripe, for looks at many customers.

    Args:
        store: whose plans file is meant.
        api: the way to Stripe.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._api = api
        self._known: dict[str, tuple[Plan, int, PlanPrices | None]] = {}

    async def of(self, plan: Plan, *, within_ms: int = _LASTS_MS) -> PlanPrices | None:
        """The prices of a plan; None: Stripe does not have its base price.

        Args:
            plan: a plan that is sold.
            within_ms: how old what is remembered may be.

        Raises:
            StripeError: Stripe refuses, or does not answer.
        """
        now_ms = self._store.now_ms()
        known, at_ms, prices = self._known.get(plan.key, (None, 0, None))
        if known is not plan or not at_ms <= now_ms < at_ms + within_ms:
            prices = await self._asked(plan)
            self._known[plan.key] = plan, now_ms, prices
        return prices

    async def all(self) -> dict[str, PlanPrices | None]:
        """The prices of each plan that is sold, by its key, as they are now. Raises StripeError."""
        sold = filter(is_sold, self._store.catalog.plans.values())
        return {plan.key: await self.of(plan, within_ms=0) for plan in sold}

    async def _asked(self, plan: Plan) -> PlanPrices | None:
        try:
            return await prices_of(self._api(), self._store.catalog, plan)
        except UnknownPlanError:
            return None
        except StripeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
