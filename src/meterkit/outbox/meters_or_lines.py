"""Ways of usage onto invoices, by period: metered prices at Stripe, or lines with metadata. Pure.

The plans file decides for new subscriptions. Present ones keep their way until they are moved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions.customer_state import is_billed_by_lines, line_switches
from meterkit.decisions.item_prices import NO_PRICES, ItemPrice, line_prices
from meterkit.decisions.keys import meter_token
from meterkit.decisions.price_segments import NOT_BILLED
from meterkit.decisions.subscription import (
    ENDED,
    NEVER_MS,
    known_line_switches,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.decisions.transitions import TermsInForce

CUSTOMER_KEY: Final = "meterkit_customer"
"""Key in metadata at Stripe for the app's own id of a customer."""
LINE_KEY: Final = "meterkit_line"
"""Key in the metadata of a line for its identifier in the queue."""
USAGE_KEY: Final = "meterkit_usage"
"""Key in the metadata of a line, and of an invoice of our own, for the hash of customer, meter and period."""
METER_KEY: Final = "meterkit_meter"
"""Key in the metadata of a line for the name of its meter."""


def must_move(state: CustomerState, catalog: Catalog) -> bool:
    """Whether a subscription's usage is not billed as the plans file has it, and no move is scheduled."""
    subscription = state.subscription
    if subscription is None or subscription.status in ENDED:
        return False
    return is_billed_by_lines(state, catalog, NEVER_MS) != catalog.billing.is_by_lines


def with_usage_billed(catalog: Catalog, *, by_lines: bool) -> Catalog:
    """Plans file for a customer whose usage is not billed as the file has it, until it is moved."""
    if catalog.billing.is_by_lines == by_lines:
        return catalog
    usage: Literal["lines", "meters"] = "lines" if by_lines else "meters"
    billing = replace(catalog.billing, usage=usage)
    others = {code: replace(one, billing=billing) for code, one in catalog.other_currencies.items()}
    return replace(catalog, billing=billing, other_currencies=others)


def keep_line_terms(
    subscription: SubscriptionState,
    before: CustomerState,
    catalog: Catalog,
    *,
    planned_ms: int | None,
    prices: Mapping[str, str],
) -> SubscriptionState:
    """Give a fetched subscription the terms of usage without metered prices.

    Args:
        subscription: as fetched.
        before: the stored state of its customer.
        catalog: the plans file.
        planned_ms: when its schedule adds or removes all metered items; None: never.
        prices: those at which its plan was sold: event name to label; empty: it does not show them.
    """
    by_lines, pending_ms = _read_carrier(subscription, before, catalog, planned_ms)
    changed = replace(subscription, by_lines=by_lines, pending_lines_ms=pending_ms)
    return _keep_line_prices(changed, before.subscription, catalog, prices) if by_lines else changed


def _read_carrier(
    subscription: SubscriptionState, before: CustomerState, catalog: Catalog, planned_ms: int | None
) -> tuple[bool, int | None]:
    """Compare the known switches with the items that Stripe shows.

    A period has one way. Once all metered items are gone, lines bill the open period. New metered items bill
    from the next period on.

    Returns:
        Whether lines bill the current period, and when that changes; None: never.
    """
    start_ms, has_items = subscription.start_ms, _has_metered_items(subscription)
    known, by_file = before.subscription, catalog.billing.is_by_lines
    by_lines, was_planned = by_file and not has_items, False
    if known is not None:
        found = [at_ms for at_ms in known_line_switches(known, before.terms) if at_ms <= start_ms]
        by_lines, was_planned = len(found) % 2 == 1, planned_ms == known.pending_lines_ms
        is_same = known.id == subscription.id
        was_canceled = is_same and bool(known.metered) == has_items and found[-1:] == [start_ms]
        if by_lines and has_items and is_same and not was_canceled:
            return True, subscription.end_ms if planned_ms is None else None
        if by_lines == has_items and (was_canceled or has_items or by_file):
            by_lines = not by_lines
    if planned_ms is None or planned_ms <= start_ms or by_lines == has_items:
        return by_lines, None
    # Where the file says `meters`, a plan without metered prices bills no usage.
    return by_lines, planned_ms if by_file or not has_items or was_planned else None


def _has_metered_items(subscription: SubscriptionState) -> bool:
    """Whether a fetched subscription has metered items of the plans file; also if that is not known."""
    prices = subscription.prices
    return bool(subscription.metered) and (not prices or any(one.meter for one in prices))


def _keep_line_prices(
    subscription: SubscriptionState,
    known: SubscriptionState | None,
    catalog: Catalog,
    shown: Mapping[str, str],
) -> SubscriptionState:
    """Give a subscription the prices of its usage: those that it had on its plan, else the plans file's.

    So a price that is edited in the file is one for new subscribers, as it is where Stripe has the prices.
    A store that does not know the subscription takes the prices that Stripe shows.
    """
    catalog = catalog.in_currency(subscription.currency)
    plan = catalog.find_plan(subscription.plan)
    former = known if known is not None and known.id == subscription.id else None
    if plan is None:  # It may have left the file, or this process has an older one.
        return subscription if former is None else replace(subscription, prices=former.prices)
    own = NO_PRICES
    if former is None:
        own = tuple(ItemPrice("", event_name, label) for event_name, label in shown.items())
    elif former.plan == subscription.plan:
        own = tuple(one for one in former.prices if one.is_exact)
    return replace(subscription, prices=line_prices(plan, catalog, own))


def with_new_models(state: CustomerState, catalog: Catalog) -> CustomerState:
    """Give a subscription that lines bill the prices by model that are newer than it, as a repair does.

    Returns:
        The same state if there are none.
    """
    subscription = state.subscription
    if subscription is None or subscription.status in ENDED:
        return state
    own = catalog.in_currency(subscription.currency)
    plan = own.find_plan(subscription.plan)
    if plan is None or not subscription.by_lines:
        return state
    known = tuple(one for one in subscription.prices if one.is_exact)
    prices = line_prices(plan, own, known, has_new_models=True)
    if prices == line_prices(plan, own, known):
        return state
    return replace(state, subscription=replace(subscription, prices=prices))


def end_dropped_prices(
    labels: Mapping[str, str],
    before: tuple[CustomerState, TermsInForce],
    after: tuple[CustomerState, TermsInForce],
    catalog: Catalog,
) -> dict[str, str]:
    """Add the prices at which lines billed usage until now, and that the plans file at hand does not bill.

    Args:
        labels: of prices that end by the plans file, by token; see :func:`ended_labels`.
        before: the customer's state and terms until now.
        after: those from now on.
        catalog: the plans file.
    """
    (old, then), (new, now) = before, after
    if not is_billed_by_lines(old, catalog, now.at_ms):
        return {**labels}
    ended = _labels_in_force(old.prices_on(then.plan, then.at_ms), old)
    following = _labels_in_force(new.prices_on(now.plan, now.at_ms), new)
    named = old.plan if old.subscription is None else old.subscription.plan_at(then.at_ms)
    is_own = named == then.plan  # Else the plan in force may deny what the subscription's bills.
    lost = {
        token: label
        for token, label in ended.items()
        if (is_own and labels.get(token) == NOT_BILLED) or (token not in following and token not in labels)
    }
    return {**labels, **lost}


def _labels_in_force(prices: ItemPrices, state: CustomerState) -> dict[str, str]:
    """Labels of the prices that the plans file billed when they were written, and no override replaces."""
    return {
        meter_token(one.meter): one.label
        for one in prices
        if one.is_exact and not one.is_dropped and "overage" not in state.overrides.get(one.meter, ())
    }


def has_metered_periods(state: CustomerState, catalog: Catalog) -> bool:
    """Whether metered prices bill, or have billed, usage of a customer."""
    return line_switches(state, catalog) != (0,)


def metadata_of(shown: Mapping[str, Any]) -> Mapping[str, str]:
    """Read the metadata of an object at Stripe."""
    found: Mapping[str, str] = shown.get("metadata") or {}
    return found


def subscription_of(found: Mapping[str, Any]) -> str:
    """Read the subscription of an invoice or a line; empty: it has none."""
    parent: Mapping[str, Any] = found.get("parent") or {}
    details: Mapping[str, Any] = parent.get(str(parent.get("type"))) or {}
    named: object = details.get("subscription") or found.get("subscription")
    return named if isinstance(named, str) else ""


def item_of(line: Mapping[str, Any]) -> str:
    """Read the id of the invoice item of a line; a pending item is shown as itself."""
    parent: Mapping[str, Any] = line.get("parent") or {}
    details: Mapping[str, Any] = parent.get("invoice_item_details") or {}
    return str(details.get("invoice_item") or line["id"])


def is_usage_line(line: Mapping[str, Any]) -> bool:
    """Whether meterkit has written a line for usage of a period."""
    return LINE_KEY in metadata_of(line)


def is_usage_invoice(invoice: Mapping[str, Any], end_ms: int) -> bool:
    """Whether meterkit has made an invoice for the usage alone of a period that ends then."""
    return metadata_of(invoice).get(USAGE_KEY, "").startswith(f"{end_ms}:")
