"""Terms of invoice lines for usage without meters at Stripe: at which prices. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.customer_overrides import overridden_label, overrides_at
from meterkit.decisions.customer_state import bounds_of, effective_plan, entitlements_of, entitlements_on
from meterkit.decisions.item_prices import prices_by_meter
from meterkit.decisions.keys import meter_token
from meterkit.decisions.price_segments import NOT_BILLED, sent_price, unit_cents
from meterkit.decisions.subscription import ENDED
from meterkit.outbox.late_usage_prices import UNKNOWN, invoice_terms
from meterkit.outbox.meters_or_lines import has_metered_periods, line_switches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from meterkit.catalog import Catalog, Entitlement, Meter
    from meterkit.decisions.customer_overrides import Overrides
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.views import CustomerView

LINES_MOST: Final = 200
"""Largest number of lines of a period; beyond it, the prices of each meter are summed: see group_lines.lua.

Stripe takes 250 items on an invoice (https://docs.stripe.com/api/invoiceitems/create). The rest is for items
of the subscription, prorations and items that other programs add.
"""


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
    subscription, overrides = state.subscription, overrides_at(state.overrides, at_ms)
    if subscription is not None and _is_of(subscription, period.begins_ms):
        named = _billed_plan(state, subscription, at_ms)
        plan = catalog.plans.get(named)
        given: Mapping[str, Entitlement] = {}
        if plan is not None:
            given = entitlements_on(plan, state, catalog, at_ms)
        return {
            "subscription": subscription.id,
            "free": subscription.is_usage_free_of(period.begins_ms, ends_ms),
            "meters": _price_labels(given, state.prices_on(named, at_ms), reported, catalog, overrides),
        }
    effective = effective_plan(state, catalog, at_ms)
    is_free = subscription is not None and (
        subscription.is_trial_of(period.begins_ms) or subscription.is_paused_from(period.begins_ms)
    )
    given = entitlements_of(effective, catalog)
    labels = _price_labels(given, effective.prices, reported, catalog, overrides)
    return {"subscription": "", "free": is_free, "meters": labels}


def _billed_plan(state: CustomerState, subscription: SubscriptionState, at_ms: int) -> str:
    """Key of the plan whose prices bill usage of an instant; empty: none is known.

    A plan set by hand wins. It ends with the subscription: one set since then bills no usage before.
    """
    by_hand = None if subscription.status in ENDED else state.plan
    return by_hand or subscription.plan_at(at_ms) or ""


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
