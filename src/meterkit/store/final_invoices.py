"""Which pending usage the seal script takes for late: its terms, by the customer's subscription. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from meterkit.catalog import override
from meterkit.catalog.money import money
from meterkit.decisions.customer_overrides import next_end_ms, overrides_at
from meterkit.decisions.finality import MARGIN_MS, OWN_HOUR_MS, renewals_of
from meterkit.decisions.keys import meter_token
from meterkit.decisions.program import reported_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Entitlement, Meter
    from meterkit.store.views import CustomerView

__all__ = ["invoice_terms", "late_class", "price_in_words", "root_meter"]

_BILLED: Final = frozenset({"active", "past_due", "unpaid"})
"""In a trial and while a subscription is paused, usage costs nothing."""


def invoice_terms(view: CustomerView, now_ms: int) -> str:
    """What ``overtake.lua`` is asked with, as JSON; empty: no invoice of the customer is known."""
    renewals = renewals_of(view.state.subscription, now_ms)
    if renewals is None:
        return ""
    subscription = view.state.subscription
    status = "" if subscription is None else subscription.status_at(now_ms)
    plan = None if subscription is None else subscription.plan_at(now_ms)
    is_billed = status in _BILLED and view.cache.catalog.billing.late_usage == "next_period"
    turn_ms = next_end_ms(view.state.overrides, now_ms)
    key = ("late", plan, is_billed, turn_ms)
    meters = view.once(key, lambda: _meters(view, plan, now_ms, is_billed=is_billed))
    return (
        f'{{"since":{renewals.since_ms},"before":{renewals.before_ms},"latest":{renewals.latest_ms},'
        f'"hour":{OWN_HOUR_MS},"margin":{MARGIN_MS},"meters":{meters}}}'
    )


def price_in_words(entitlement: Entitlement | None, currency: str) -> str:
    """What a plan charges for overage, to stand behind a quantity; empty: the plans file does not say."""
    overage = None if entitlement is None else entitlement.overage
    if overage is None or overage.amount_cents is None or overage.per is None:
        return ""
    per = "each" if overage.per == 1 else f"per {overage.per:,}"
    return f" at {money(overage.amount_cents, currency)} {per}"


def late_class(own: Entitlement | None, meter: Meter) -> str:
    """The class that late usage of a meter is recorded in once more; empty: what decides bills none of it.

    Args:
        own: what a plan gives of the meter, or of the source of a derived one; None: nothing.
        meter: the meter.
    """
    included, overage = (0, 0) if own is None else reported_parts(own, meter)
    return "overage" if overage else "included" if included else ""


def _meters(view: CustomerView, plan: str | None, now_ms: int, *, is_billed: bool) -> str:
    """By token: in which class the open period records late usage (empty: in none), the name, the price."""
    catalog = view.cache.catalog
    given = _entitlements(view, plan, now_ms)
    found: dict[str, tuple[str, str, str]] = {}
    for name, meter in catalog.meters.items():
        if meter.stripe is not None and meter.kind == "counter":
            own = given.get(root_meter(name, catalog))
            kind = late_class(own, meter) if is_billed else ""
            found[meter_token(name)] = (kind, name, price_in_words(given.get(name), catalog.currency))
    return json.dumps(found, separators=(",", ":"))


def _entitlements(view: CustomerView, plan: str | None, now_ms: int) -> Mapping[str, Entitlement]:
    """Of the subscription's own plan, which Stripe bills whatever else is in force."""
    catalog = view.cache.catalog
    own = catalog.plans.get(plan or "")
    if own is None:
        return {}
    overrides = overrides_at(view.state.overrides, now_ms).meters
    return override(catalog, own, overrides) if overrides else own.entitlements


def root_meter(name: str, catalog: Catalog) -> str:
    """The meter whose plan decides: the source of a derived one."""
    while (source := catalog.meters[name].source) is not None:
        name = source
    return name
