"""Terms of invoice lines for usage without meters at Stripe: at which prices. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from meterkit.decisions.keys import meter_token
from meterkit.decisions.price_segments import sent_price
from meterkit.decisions.subscription_periods import renewals_of
from meterkit.outbox.billed_usage_terms import has_metered_periods, line_switches
from meterkit.outbox.late_usage_terms import invoice_terms, subscribed_entitlements

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Entitlement
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.views import CustomerView

_ALL: Final = 2**53
LINES_MOST: Final = 200
"""Largest number of lines of a period; beyond it, the prices of each meter are summed: see group_lines.lua.

Stripe takes 250 items on an invoice (https://docs.stripe.com/api/invoiceitems/create). The rest is for items
of the subscription, prorations and items that other programs add.
"""


def line_product(meter: str, title: str) -> dict[str, str]:
    """Product at Stripe that a meter's lines name; its id is made of the meter's name."""
    return {"id": f"meterkit_meter_{meter}", "name": title}


def _free_before_ms(subscription: SubscriptionState | None, now_ms: int) -> int:
    """Instant before which periods are free: they are of a trial, or older than the subscription."""
    if subscription is None:
        return 0
    if subscription.status_at(now_ms) == "paused":  # The invoice after the pause bills earlier usage.
        return max(subscription.created_ms or subscription.start_ms, subscription.trial_end_ms or 0)
    renewals = renewals_of(subscription, now_ms)
    return _ALL if renewals is None else renewals.since_ms


def line_terms(view: CustomerView, now_ms: int) -> str:
    """Argument of ``queue_lines.lua``, as JSON; with the terms of late usage that metered prices bill."""
    catalog, state = view.cache.catalog, view.state
    subscription = state.subscription
    given: Mapping[str, Entitlement] | None = None
    if subscription is not None:
        given = subscribed_entitlements(view, subscription.plan_at(now_ms), now_ms)
    given = given or view.entitlements
    meters = {
        meter_token(name): (name, label, meter_token(priced))
        for name, meter in catalog.meters.items()
        if meter.stripe is not None and meter.kind == "counter"
        for label, priced in (sent_price(name, given, catalog.meters),)
    }
    item = {
        "stripe": state.stripe_customer or "",
        "subscription": "" if subscription is None else subscription.id,
        "currency": catalog.currency,
        "metered": "",
    }
    terms: dict[str, object] = {
        "by_lines": 1,
        "switches": line_switches(state, catalog),
        "since": _free_before_ms(subscription, now_ms),
        "meters": meters,
        "item": item,
        "most": LINES_MOST,
    }
    late = invoice_terms(view, now_ms) if has_metered_periods(state, catalog) else ""
    return json.dumps({**terms, "late": json.loads(late)} if late else terms)
