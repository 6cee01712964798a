"""Drift: differences between a customer's subscriptions at Stripe and the plans file, found and logged.

A person can change a subscription in Stripe's dashboard, and a subscription may be older than the plans file.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.drift_records import Drift, DriftRecords
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_overrides import has_price, overrides_at
from meterkit.decisions.customer_state import is_billed_by_lines, seat_meter
from meterkit.errors import StripeError
from meterkit.outbox.meters_or_lines import must_move, with_new_models, with_usage_billed
from meterkit.subscriptions.change_rules import sells_seats
from meterkit.subscriptions.item_changes import (
    addons_in,
    items_of,
    missing_method_action,
    prices_in,
    trial_settings_change,
    updates,
)
from meterkit.subscriptions.metered_prices import NO_FACTS, PriceFactsReader, inexact_prices
from meterkit.subscriptions.override_prices import compared_prices
from meterkit.subscriptions.plan_prices import PriceBook
from meterkit.subscriptions.service.change_lease import due_prices
from meterkit.subscriptions.stripe_objects import (
    addon_in,
    addon_of_price,
    is_override_price,
    part_of,
    plan_of_price,
    sells_seats_of,
    text_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Bought
    from meterkit.customers.drift_records import DriftKind
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.item_changes import LiveItem, PlanPrices
    from meterkit.subscriptions.metered_prices import InexactPrice, PriceFacts

    Difference = tuple[DriftKind, str]


LIVE: Final = frozenset({"active", "trialing", "past_due", "unpaid", "paused"})
"""Statuses of a subscription that bills usage, or may do so again."""


def plan_in(items: Iterable[LiveItem], catalog: Catalog) -> Plan | None:
    """The plan of items; with base prices of several plans, the one of the highest rank."""
    return max(_plans_in(items, catalog), key=lambda plan: plan.rank, default=None)


def paid_seats_in(items: Iterable[LiveItem], plan: Plan, catalog: Catalog) -> int:
    """Number of seats of a plan among items, beyond those that its base price covers."""
    if plan.seat_price is None or not sells_seats(plan, seat_meter(catalog.meters)):
        return 0
    price = plan.seat_price.stripe_price
    sold = (item for item in items if item.price == price or sells_seats_of(item.key, plan.key, catalog))
    return sum(item.quantity or 0 for item in sold)


def allowed_addons_in(items: Iterable[LiveItem], plan: Plan, catalog: Catalog) -> Bought:
    """Add-ons among items that a plan lists; others give nothing."""
    return tuple(bought for bought in addons_in(items, catalog) if bought[0] in plan.addons)


def bills_here(found: Mapping[str, Any], catalog: Catalog, meters: Mapping[str, str]) -> bool:
    """Whether a live subscription has a plan, or bills usage of the plans file.

    Args:
        found: the subscription as Stripe shows it.
        catalog: the plans file.
        meters: event names of the meters at Stripe that carry one of the plans file, by id.
    """
    if found.get("status") not in LIVE:
        return False
    items = items_of(found)
    return plan_in(items, catalog) is not None or any(item.meter in meters for item in items)


def compare_customer(
    found: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any] | None,
    catalog: Catalog,
    prices: PlanPrices | None,
    facts: PriceFacts = NO_FACTS,
) -> tuple[Drift, ...]:
    """Compare a customer's subscriptions with the plans file; return their differences.

    Args:
        found: all subscriptions of the Stripe customer, with ``latest_invoice`` expanded.
        chosen: the one in effect; None: there is none.
        catalog: the plans file.
        prices: of its plan; None: it has no plan.
        facts: about the prices of its metered items; without them no inexact price is found.
    """
    meters: Mapping[str, str] = {} if prices is None else prices.meters
    billing = [one for one in found if bills_here(one, catalog, meters)]
    drifts: list[Drift] = []
    if len(billing) > 1:
        names = ", ".join(sorted(str(one["id"]) for one in billing))
        counts = billing[0] if chosen is None else chosen
        message = f"its customer has several live subscriptions that bill usage: {names}"
        drifts.append(Drift(subscription=counts["id"], kind="two_subscriptions", message=message))
    if chosen is None:
        live = [one for one in found if one.get("status") in LIVE]
        return (*drifts, *(drift for one in live for drift in compare_subscription(one, catalog, None)))
    if chosen.get("status") in LIVE:
        inexact = [
            Drift(subscription=text_in(chosen, "id"), kind="inexact_price", message=_describe_inexact(one))
            for one in inexact_prices(chosen, facts, catalog)
        ]
        return (*drifts, *compare_subscription(chosen, catalog, prices), *inexact)
    invoice = part_of(chosen, "latest_invoice")
    if invoice.get("status") == "draft" and invoice.get("auto_advance") is False:
        message = (
            f"it has ended, and its last invoice {invoice.get('id')} stays a draft: it is never collected"
        )
        drifts.append(Drift(subscription=chosen["id"], kind="draft_invoice", message=message))
    return tuple(drifts)


def compare_usage(
    found: Mapping[str, Any] | None, state: CustomerState, catalog: Catalog
) -> tuple[Drift, ...]:
    """Compare how a customer's usage gets onto invoices, and its prices by model there, with the plans file.

    Args:
        found: its live subscription; None: there is none.
        state: the customer's.
        catalog: the plans file.
    """
    known = state.subscription
    if found is None or known is None or known.id != found["id"]:
        return ()
    return tuple(
        Drift(subscription=known.id, kind=kind, message=message)
        for kind, message in _find_usage_differences(known, state, catalog)
    )


def _find_usage_differences(
    known: SubscriptionState, state: CustomerState, catalog: Catalog
) -> Iterator[Difference]:
    if must_move(state, catalog):
        ways, usage = {"lines": "metered prices", "meters": "invoice lines"}, catalog.billing.usage
        yield "usage", f"its usage is billed by {ways[usage]}, and the plans file has `usage: {usage}`"
    changed = with_new_models(state, catalog).subscription
    new = {one.meter for one in changed.prices} - {one.meter for one in known.prices} if changed else ()
    if new:
        names = ", ".join(sorted(new))
        yield "new_models", f"{names} cost it the default price: their own prices are newer than it"


def catalog_of_customer(state: CustomerState, catalog: Catalog, now_ms: int) -> Catalog:
    """Plans file with the way in which a customer's usage is billed now, for a comparison of items."""
    return with_usage_billed(catalog, by_lines=is_billed_by_lines(state, catalog, now_ms))


def catalog_of_subscription(found: Mapping[str, Any], catalog: Catalog) -> Catalog:
    """Plans file in the currency of a subscription as Stripe shows it."""
    return catalog.in_currency(text_in(found, "currency"))


def _describe_inexact(one: InexactPrice) -> str:
    return (
        f"{one.meter} is billed at {one.price}, which cannot be computed for a unit: {one.reason}; kit.usage,"
        " budgets and spend limits count its overage at the plans file's price (estimated), and late usage at"
        " it is on no invoice"
    )


def compare_subscription(
    found: Mapping[str, Any], catalog: Catalog, prices: PlanPrices | None
) -> tuple[Drift, ...]:
    """Compare a live subscription with the plans file; return their differences.

    Args:
        found: the subscription as Stripe shows it, with all of its items.
        catalog: the plans file.
        prices: of its plan; None: compare no prices.
    """
    subscription = text_in(found, "id")
    return tuple(
        Drift(subscription=subscription, kind=kind, message=message)
        for kind, message in _find_differences(found, catalog, prices)
    )


def _plans_in(items: Iterable[LiveItem], catalog: Catalog) -> list[Plan]:
    keys = {plan_of_price(item.price, item.key, catalog) for item in items}
    return [plan for plan in catalog.plans.values() if plan.key in keys]


def _find_differences(
    found: Mapping[str, Any], catalog: Catalog, prices: PlanPrices | None
) -> Iterator[Difference]:
    items, currencies = items_of(found), catalog.currencies
    currency = text_in(found, "currency") or catalog.currency
    catalog = catalog.in_currency(currency)
    plans, plan = _plans_in(items, catalog), plan_in(items, catalog)
    if plan is None:
        yield "unknown_price", f"no plan of the plans file has a base price among {_list_prices(items)}"
        return
    if len(plans) > 1:
        names = ", ".join(one.key for one in plans)
        yield "two_plans", f"it has the base prices of several plans: {names}; {plan.key} counts"
    yield from _compare_quantities(items, plan, catalog)
    yield from _find_lost_addons(items, catalog)
    if prices is not None:
        yield from _compare_items(items, plan, catalog, prices)
    if currency not in currencies:
        yield "currency", f"it is billed in {currency}; the plans file has {', '.join(currencies)}"
    yield from _compare_intervals(found, plan, catalog)
    if part_of(found, "billing_mode").get("type") == "classic":
        message = "its billing mode is classic: when a metered price changes, usage before it is never billed"
        yield "billing_mode", message
    if trial_settings_change(found, plan):
        message = (
            f"without a payment method its trial ends by Stripe's {missing_method_action(found)!r};"
            f" plan {plan.key} has `without_card: {plan.trial_without_card}`"
        )
        yield "trial_settings", message
    paused = part_of(found, "pause_collection")
    if paused:
        yield "collection_paused", f"its invoices are not collected ({paused.get('behavior')})"


def _compare_quantities(items: Iterable[LiveItem], plan: Plan, catalog: Catalog) -> Iterator[Difference]:
    for item in items:
        if plan_of_price(item.price, item.key, catalog) == plan.key and item.quantity != 1:
            message = f"the base price {item.price} has quantity {item.quantity}; the plans file sells 1"
            yield "base_quantity", message


def _find_lost_addons(items: Iterable[LiveItem], catalog: Catalog) -> Iterator[Difference]:
    """Items of add-ons that were sold, and that the plans file has lost since."""
    for item in items:
        named = addon_in(item.key)
        if named and item.quantity and addon_of_price(item.price, item.key, catalog) is None:
            message = (
                f"{item.price} sells {item.quantity} of the add-on {named}, which the plans file does not"
                " have: it gives nothing; remove the item at Stripe, or put the add-on back into the file"
            )
            yield "lost_addon", message


def _compare_items(
    items: Sequence[LiveItem], plan: Plan, catalog: Catalog, prices: PlanPrices
) -> Iterator[Difference]:
    """Describe the changes of items that ``repair`` would make."""
    by_id = {item.id: item for item in items}
    paid, bought = paid_seats_in(items, plan, catalog), allowed_addons_in(items, plan, catalog)
    for change in updates(items, catalog, prices, paid, bought):
        price, item = str(change.get("price", "")), by_id.get(str(change.get("id", "")))
        if item is None:
            if price in prices.metered:
                yield "missing_meter", f"{price} is missing: usage of its meter is on no invoice"
            continue
        if plan_of_price(item.price, item.key, catalog) is not None:
            continue  # A base price: reported above.
        addon = addon_of_price(item.price, item.key, catalog)
        if addon is not None:
            if change.get("deleted"):  # Otherwise it gets the quantity of the one that goes.
                yield "addon", _describe_addon(addon, item, plan)
        elif item.meter is None:
            yield "seats", f"{item.price} sells seats that plan {plan.key} does not have at this price"
        elif price:
            yield "other_price", f"usage is billed at {item.price}; the plan has {price}"
        elif item.meter in prices.metered.values():
            yield "metered_twice", f"{item.price} bills usage that another item bills too"
        else:
            yield "other_item", f"{item.price} bills usage that plan {plan.key} does not sell"


def _describe_addon(addon: str, item: LiveItem, plan: Plan) -> str:
    begins = f"{item.price} sells {item.quantity or 0} of the add-on {addon}"
    if addon not in plan.addons:
        return f"{begins}, which plan {plan.key} does not list: it gives nothing"
    return f"{begins}, and another item sells it too" if item.quantity else begins


def _compare_intervals(found: Mapping[str, Any], plan: Plan, catalog: Catalog) -> Iterator[Difference]:
    for item, shown in zip(items_of(found), found["items"]["data"], strict=True):
        if plan_of_price(item.price, item.key, catalog) != plan.key:
            continue
        recurring = part_of(shown["price"], "recurring")
        every, count = text_in(recurring, "interval"), recurring.get("interval_count", 1)
        if (every, count) != (plan.price.interval, 1):
            yield (
                "interval",
                f"{item.price} is paid every {count} {every}; the file has {plan.price.interval}",
            )


def _list_prices(items: Iterable[LiveItem]) -> str:
    return ", ".join(item.price for item in items) or "no items"


_logger = logging.getLogger("meterkit.subscriptions")
_PRICES_AGE_MS: Final = 3_600_000
_FRESH_AGE_MS: Final = 60_000
_PRICE_KINDS: Final[frozenset[DriftKind]] = frozenset({"other_price", "other_item", "missing_meter"})
_LOG_EVERY_MS: Final = 3_600_000


class DriftLog:
    """Stores and logs the drift of customers.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._book = PriceBook(store, api)
        self._facts = PriceFactsReader(api)
        self._drifts = DriftRecords(store)
        self._states = CustomerStates(store)
        self._logged_ms = 0
        self._unlogged = 0

    async def compare(
        self, customer: str, found: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None
    ) -> None:
        """Store the drift of a customer, and log it if it is new.

        If Stripe does not show prices now, the stored drift stays.

        Args:
            customer: the customer's id.
            found: all subscriptions of the Stripe customer, with ``latest_invoice`` expanded.
            chosen: the one in effect; None: there is none.

        Raises:
            StoreError: the store does not answer.
        """
        _, state = await self._states.read(customer)
        given = overrides_at(state.overrides, self._store.now_ms()).meters
        catalog = catalog_of_customer(state, self._store.catalog, self._store.now_ms())
        try:
            drifts = await self._find_drifts(found, chosen, given, catalog)
            drifts = (*drifts, *compare_usage(chosen, state, self._store.catalog))
        except StripeError:
            return
        if any(drift.kind in _PRICE_KINDS for drift in drifts) and _has_override_price(chosen, given):
            await due_prices(self._store).put_in(customer, 0)
        new = await self._drifts.put(customer, drifts)
        if new:
            self._log_first(customer, new[0])

    async def _find_drifts(
        self,
        found: Sequence[Mapping[str, Any]],
        chosen: Mapping[str, Any] | None,
        given: Mapping[str, Mapping[str, object]],
        catalog: Catalog,
    ) -> tuple[Drift, ...]:
        plan = None if chosen is None else plan_in(items_of(chosen), catalog)
        if chosen is None or plan is None:
            return compare_customer(found, chosen, catalog, None)
        facts = await self._facts.fetch(chosen)
        drifts, own = tuple[Drift, ...](), catalog_of_subscription(chosen, catalog)
        for within_ms in (_PRICES_AGE_MS, _FRESH_AGE_MS):  # A price may be newer than the cached ones.
            prices = await self._book.of(plan, within_ms=within_ms, catalog=own)
            if prices is not None:
                prices = compared_prices(prices, own, given, prices_in(chosen))
            drifts = compare_customer(found, chosen, catalog, prices, facts)
            if not drifts:
                break
        return drifts

    def _log_first(self, customer: str, drift: Drift) -> None:
        """Log a difference; of many within an hour, which mostly have one cause, the first."""
        now_ms = self._store.now_ms()
        if self._logged_ms <= now_ms < self._logged_ms + _LOG_EVERY_MS:
            self._unlogged += 1
            return
        more = f"; so do those of {self._unlogged} customers since the last line" if self._unlogged else ""
        self._logged_ms, self._unlogged = now_ms, 0
        _logger.warning(
            "subscription %s of customer %r differs from the plans file: %s%s;"
            " `meterkit subscriptions check` lists all",
            drift.subscription,
            customer,
            drift.message,
            more,
        )


def _has_override_price(chosen: Mapping[str, Any] | None, given: Mapping[str, Mapping[str, object]]) -> bool:
    """Whether an override gives a price now, or one that has ended is still on an item."""
    items = () if chosen is None else prices_in(chosen)
    return any(map(has_price, given.values())) or any(map(is_override_price, items))
