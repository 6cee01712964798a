"""Terms for sealing late usage: the final invoices, and the prices that bill it. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from meterkit.catalog.value_parsers import money
from meterkit.decisions.compiled_decision import has_flat_price, reported_parts
from meterkit.decisions.customer_overrides import next_end_ms
from meterkit.decisions.customer_state import entitlements_on
from meterkit.decisions.item_prices import NO_PRICES, prices_by_meter
from meterkit.decisions.keys import meter_token
from meterkit.decisions.price_segments import sent_price
from meterkit.decisions.subscription import BILLED
from meterkit.decisions.subscription_periods import MARGIN_MS, OWN_HOUR_MS, Renewals, renewals_of
from meterkit.store.event_names import find_ended_events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Entitlement, Meter
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.views import CustomerView

UNKNOWN: Final = "-"
"""Label of a price that is unknown, or that has no single unit price."""


def is_billed_at(subscription: SubscriptionState | None, at_ms: int) -> bool:
    """Whether usage of an instant is billed: not in a trial or a pause."""
    return subscription is not None and subscription.status_at(at_ms) in BILLED


def invoice_terms(view: CustomerView, reported: Mapping[str, ReportedMeter], now_ms: int) -> str:
    """Terms for ``seal.lua`` and ``bill_late_usage.lua``, as JSON; empty: there is no subscription.

    Args:
        view: of the customer.
        reported: by token, all meters that are or were delivered.
        now_ms: now.
    """
    state = view.state
    subscription = state.subscription
    if subscription is None:
        return ""
    # In a trial, usage is late only if an invoice is known to be final.
    renewals = renewals_of(subscription, now_ms) or Renewals(0, 0, 0)
    plan = subscription.plan_at(now_ms)
    is_billed = is_billed_at(subscription, now_ms) and view.cache.catalog.billing.late_usage == "next_period"
    is_changed = subscription.pending_at_ms is not None and subscription.pending_at_ms <= now_ms
    key = ("late", plan, is_changed, is_billed, next_end_ms(state.overrides, now_ms), *reported)
    meters = view.memoize(key, lambda: _terms_by_token(view, plan, reported, now_ms, is_billed=is_billed))
    item = item_terms(state, view.cache.catalog) if is_billed else None
    of_items = "" if item is None else f',"item":{json.dumps(item)}'
    former = view.memoize(
        ("former events", is_changed),
        lambda: json.dumps(find_ended_events(state, view.cache.catalog, now_ms)),
    )
    return (
        f'{{"since":{renewals.since_ms},"before":{renewals.before_ms},"latest":{renewals.latest_ms},'
        f'"hour":{OWN_HOUR_MS},"margin":{MARGIN_MS},"meters":{meters},'
        f'"former":{former}{of_items}}}'
    )


def item_terms(state: CustomerState, catalog: Catalog) -> Mapping[str, str] | None:
    """Fields that all invoice items of a customer share; None: no subscription bills them."""
    subscription = state.subscription
    if subscription is None or state.stripe_customer is None:
        return None
    return {
        "stripe": state.stripe_customer,
        "subscription": subscription.id,
        "currency": catalog.in_currency(state.currency).currency,
        "metered": subscription.metered,
    }


def format_overage_price(entitlement: Entitlement | None, currency: str) -> str:
    """Overage price of a plan, as a suffix for a quantity; empty: not in the plans file."""
    overage = None if entitlement is None else entitlement.overage
    if overage is None or overage.amount_cents is None or overage.per is None:
        return ""
    per = "each" if overage.per == 1 else f"per {overage.per:,}"
    return f" at {money(overage.amount_cents, currency)} {per}"


def late_class(entitlement: Entitlement | None, meter: Meter) -> str:
    """Class in which late usage of a meter is recorded again; empty: none of it is billed.

    Args:
        entitlement: the plan's entitlement for the meter, or for the source of a derived meter; None: none.
        meter: the meter.
    """
    included, overage = (0, 0) if entitlement is None else reported_parts(entitlement, meter)
    return "overage" if overage else "included" if included else ""


def _terms_by_token(
    view: CustomerView,
    plan: str | None,
    reported: Mapping[str, ReportedMeter],
    now_ms: int,
    *,
    is_billed: bool,
) -> str:
    """Terms of each meter by token, as JSON: class of late usage (empty: none), name, and price.

    The price is given in words and as a label, with the token of the meter that has it, and 1 if it is one
    price for a unit. Former names of a meter have its terms.
    """
    state = view.state
    catalog, subscription = view.cache.catalog.in_currency(state.currency), state.subscription
    given = subscribed_entitlements(view, plan, now_ms)
    prices = NO_PRICES if subscription is None else subscription.prices_at(now_ms)
    found: dict[str, tuple[str, str, str, str, str, int]] = {}
    by_event: dict[str, str] = {}
    for name, meter in catalog.meters.items():
        if meter.stripe is not None and meter.kind == "counter":
            entitlement = given.get(deciding_meter(name, catalog))
            kind = late_class(entitlement, meter) if is_billed else ""
            label, priced = unit_label(name, given or None, prices, catalog)
            is_flat = int(has_flat_price(given.get(name), meter))
            words = format_overage_price(given.get(name), catalog.currency)
            found[meter_token(name)] = (kind, name, words, label, meter_token(priced), is_flat)
            by_event[meter.stripe.event_name] = meter_token(name)
    for token, former in reported.items():
        if token not in found and former.event_name in by_event:
            kind, _, words, label, priced, is_flat = found[by_event[former.event_name]]
            found[token] = (kind, former.meter, words, label, priced, is_flat)
    return json.dumps(found, separators=(",", ":"))


def subscribed_entitlements(view: CustomerView, plan: str | None, now_ms: int) -> Mapping[str, Entitlement]:
    """Entitlements of the subscription's own plan, which Stripe bills even if another plan is active."""
    state = view.state
    catalog = view.cache.catalog.in_currency(state.currency)
    subscribed = catalog.plans.get(plan or "")
    if subscribed is None:
        return {}
    return entitlements_on(subscribed, state, catalog, now_ms)


def unit_label(
    name: str, given: Mapping[str, Entitlement] | None, prices: ItemPrices, catalog: Catalog
) -> tuple[str, str]:
    """Label of the price that Stripe bills a unit of a meter at, and the meter that has the price.

    Args:
        name: of the meter.
        given: the customer's entitlements by meter; None: no plan of the plans file.
        prices: of the subscription's metered items.
        catalog: has the meters.
    """
    price = prices_by_meter(prices, catalog).get(name)
    if given is None or (price is not None and not price.is_exact):
        return UNKNOWN, name
    return sent_price(name, given, catalog.meters)


def deciding_meter(name: str, catalog: Catalog) -> str:
    """Meter whose entitlement says whether units are billed: for a derived meter, its source.

    A meter that counts a price by model decides itself: another plan may have the source without that price.
    """
    while (source := catalog.meters[name].source) is not None and not catalog.meters[name].is_row:
        name = source
    return name
