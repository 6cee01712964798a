"""Terms for sealing usage: final invoices, prices of late usage, and prices of invoice lines. Pure."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.catalog.value_parsers import price_text
from meterkit.decisions.compiled_decision import has_flat_price, reported_parts, sends_included
from meterkit.decisions.customer_overrides import next_end_ms, overridden_label
from meterkit.decisions.customer_state import (
    bounds_of,
    effective_plan,
    entitlements_of,
    entitlements_on,
    line_switches,
    overrides_in_force,
)
from meterkit.decisions.free_usage import free_reasons, is_usage_free_of
from meterkit.decisions.item_prices import prices_by_meter
from meterkit.decisions.keys import meter_token
from meterkit.decisions.price_segments import NOT_BILLED, sent_price, unit_cents
from meterkit.decisions.subscription import BILLED, NEVER_MS
from meterkit.decisions.subscription_periods import MARGIN_MS, OWN_HOUR_MS, Renewals, renewals_of
from meterkit.outbox.meters_or_lines import has_metered_periods
from meterkit.store.event_names import find_ended_events
from meterkit.terms.rows import LINK, PLAN, PLAN_BY_HAND, SUBSCRIPTION, in_force

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from meterkit.catalog import Catalog, Entitlement, Meter
    from meterkit.decisions.customer_overrides import Overrides
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.views import CustomerView

UNKNOWN: Final = "-"
"""Label of a price that is unknown, or that has no single unit price."""
LINES_MOST: Final = 200
"""Largest number of lines of a period; beyond it, each meter's prices are summed: see sum_lines_by_meter.lua.

Stripe takes 250 items on an invoice (https://docs.stripe.com/api/invoiceitems/create). The rest is for items
of the subscription, prorations and items that other programs add.
"""


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
    renewals = renewals_of(subscription, now_ms, state.terms) or Renewals(0, 0, 0)
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
    return f" at {price_text(Fraction(overage.amount_cents), overage.per, currency)}"


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
    price for a unit; then 1 if Stripe gets included units, too. Former names of a meter have its terms.
    """
    state = view.state
    catalog, prices = view.cache.catalog.in_currency(state.currency), state.prices_at(now_ms)
    given = subscribed_entitlements(view, plan, now_ms)
    found: dict[str, tuple[str, str, str, str, str, int, int]] = {}
    by_event: dict[str, str] = {}
    own = prices_by_meter(prices, catalog)
    for name, meter in catalog.meters.items():
        if meter.stripe is not None and meter.kind == "counter":
            entitlement = given.get(deciding_meter(name, catalog))
            kind = late_class(entitlement, meter) if is_billed else ""
            label, priced = unit_label(name, given or None, prices, catalog)
            is_flat = int(has_flat_price(given.get(name), meter))
            words = format_overage_price(given.get(name), catalog.currency)
            has_included = int(kind == "overage" and _sends_free_units(given.get(name), meter))
            if has_included and name in own and own[name].is_exact and own[name].free:
                kind, is_flat = "", 1  # The open period's free tier would take the overage: an item bills it.
            found[meter_token(name)] = (kind, name, words, label, meter_token(priced), is_flat, has_included)
            by_event[meter.stripe.event_name] = meter_token(name)
    for token, former in reported.items():
        if token not in found and former.event_name in by_event:
            kind, _, words, label, priced, is_flat, has_included = found[by_event[former.event_name]]
            found[token] = (kind, former.meter, words, label, priced, is_flat, has_included)
    return json.dumps(found, separators=(",", ":"))


def _sends_free_units(entitlement: Entitlement | None, meter: Meter) -> bool:
    """Whether Stripe gets, or got before, the units of a limited included quantity: they cost nothing.

    Which units of a derived meter are included depends on its source, so it is not known of those.
    """
    if entitlement is None or entitlement.included is None or meter.source is not None:
        return False
    return sends_included(entitlement, meter) or sends_included(None, meter)


def subscribed_entitlements(view: CustomerView, plan: str | None, now_ms: int) -> Mapping[str, Entitlement]:
    """Entitlements of the subscription's own plan, which Stripe bills even if another plan is active."""
    state = view.state
    catalog = view.cache.catalog.in_currency(state.currency)
    subscribed = catalog.find_plan(plan)
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


def line_product(meter: str, title: str) -> dict[str, str]:
    """Product at Stripe that a meter's lines name; its id is made of the meter's name."""
    return {"id": f"meterkit_meter_{meter}", "name": title}


def line_products(catalog: Catalog) -> Iterator[tuple[Meter, dict[str, str]]]:
    """Yield each meter that lines may bill, with its product."""
    for meter in catalog.meters.values():
        if meter.stripe is not None and meter.stripe.report != "none":
            yield meter, line_product(meter.name, meter.title)


class EndedPeriod(NamedTuple):
    """A period with pending usage: its first instant, and the first one after it."""

    begins_ms: int
    ends_ms: int


def line_terms(
    view: CustomerView, periods: Iterable[EndedPeriod], reported: Mapping[str, ReportedMeter], now_ms: int
) -> str:
    """Argument of ``queue_lines.lua``, as JSON; with the terms of late usage that metered prices bill.

    Args:
        view: of the customer.
        periods: those that lines may bill now.
        reported: by token, all meters that are or were delivered.
        now_ms: now.
    """
    state = view.state
    catalog = view.cache.catalog.in_currency(state.currency)
    open_ms = bounds_of(state, view.effective.counting, now_ms).start_ms
    terms: dict[str, object] = {
        "by_lines": 1,
        "switches": line_switches(state, catalog),
        "periods": {
            str(period.begins_ms): _period_terms(view, period, reported, min(now_ms, open_ms))
            for period in periods
        },
        "item": {"stripe": state.stripe_customer or "", "currency": catalog.currency, "metered": ""},
        "most": LINES_MOST,
    }
    late = invoice_terms(view, reported, now_ms) if has_metered_periods(state, catalog) else ""
    return json.dumps({**terms, "late": json.loads(late)} if late else terms)


def _period_terms(
    view: CustomerView, period: EndedPeriod, reported: Mapping[str, ReportedMeter], open_ms: int
) -> dict[str, object]:
    """Terms of a period by its last instant: a later change is none of it.

    A subscription bills the periods that began in it; others have an invoice of their own.
    """
    state = view.state
    catalog = view.cache.catalog.in_currency(state.currency)
    is_cut = period.begins_ms < open_ms < period.ends_ms  # The next period began early.
    ends_ms = open_ms if is_cut else period.ends_ms
    at_ms = max(period.begins_ms, ends_ms - 1)
    subscription, overrides = state.subscription, overrides_in_force(state, at_ms)
    facts = in_force(state.terms, at_ms)
    own = subscription if subscription is not None and _is_of(subscription, period.begins_ms) else None
    named = facts[PLAN] if own is None else own.plan_at(at_ms)
    sold = _former_subscription(state, facts) if own is None else own.id
    if sold:
        named = facts[PLAN_BY_HAND] or named or ""
        plan = catalog.find_plan(named)
        given: Mapping[str, Entitlement] = {}
        if plan is not None:
            given = entitlements_on(plan, state, catalog, at_ms)
        return {
            "subscription": sold,
            "free": is_usage_free_of(state, period.begins_ms, ends_ms),
            "meters": _price_labels(given, state.prices_on(named, at_ms), reported, catalog, overrides),
        }
    effective = effective_plan(state, catalog, at_ms)
    is_free = bool(free_reasons(state, period.begins_ms))
    given = entitlements_of(effective, catalog)
    labels = _price_labels(given, effective.prices, reported, catalog, overrides)
    return {"subscription": "", "free": is_free, "meters": labels}


def _former_subscription(state: CustomerState, facts: Mapping[str, Any]) -> str:
    """Id of the subscription by facts; empty: there was none, or it is another Stripe customer's.

    That of the period's last instant: each beginning is heard of later than it was.
    """
    now = in_force(state.terms, NEVER_MS)
    return (facts[SUBSCRIPTION] or "") if facts[LINK] == now[LINK] else ""


def _is_of(subscription: SubscriptionState, begins_ms: int) -> bool:
    made_ms = subscription.created_ms or subscription.start_ms
    return subscription.has_begun and made_ms <= begins_ms < subscription.ends_ms()


def _price_labels(
    given: Mapping[str, Entitlement],
    prices: ItemPrices,
    reported: Mapping[str, ReportedMeter],
    catalog: Catalog,
    overrides: Overrides,
) -> dict[str, tuple[str, str]]:
    """Name and label of the price by token; an empty label: its ended prices alone may be known.

    Where a plan, its overage or a meter has left the plans file, the subscription's own prices still hold,
    and an override's price.
    """
    own, found = prices_by_meter(prices, catalog), dict[str, tuple[str, str]]()
    by_event: dict[str, str] = {}
    for name, meter in catalog.meters.items():
        if meter.stripe is None or meter.kind != "counter":
            continue
        label, priced = sent_price(name, given, catalog.meters) if given else ("", name)
        if unit_cents(label) is None and name in own and own[name].is_exact:
            label = own[name].label
        elif given and priced == name and given[name].overage.mode != "bill":
            label = NOT_BILLED
        found[meter_token(name)] = name, label or UNKNOWN
        if unit_cents(label) is not None:
            by_event[meter.stripe.event_name] = label
    # A meter that has another name by now has the price of its event name.
    by_event |= {one.event_name: one.label for one in prices if one.is_exact}
    for token, known in reported.items():
        if token not in found:
            own_label = overridden_label(overrides, known.meter)
            found[token] = known.meter, own_label or by_event.get(known.event_name, "")
    return found
