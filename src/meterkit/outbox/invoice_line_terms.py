"""Terms of invoice lines for usage without meters at Stripe: which customers, at which prices. Pure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.catalog.meters import billed_as, billed_meters
from meterkit.decisions.item_prices import ItemPrice
from meterkit.decisions.keys import meter_token
from meterkit.decisions.price_segments import sent_price
from meterkit.decisions.subscription_periods import renewals_of
from meterkit.outbox.late_usage_terms import subscribed_entitlements

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Entitlement
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.views import CustomerView

_ALL: Final = 2**53
LINES_MOST: Final = 200
"""Largest number of lines of a period; beyond it, the prices of each meter are summed: see group_lines.lua.

Stripe takes 250 items on an invoice (https://docs.stripe.com/api/invoiceitems/create). The rest is for items
of the subscription, prorations and items that other programs add.
"""


def is_billed_by_lines(state: CustomerState, catalog: Catalog) -> bool:
    """Whether a customer's usage gets onto invoices by lines: unless its subscription has metered items."""
    return catalog.billing.usage == "lines" and not (state.subscription and state.subscription.metered)


def keep_line_prices(
    subscription: SubscriptionState | None, known: SubscriptionState | None, catalog: Catalog
) -> SubscriptionState | None:
    """Give a subscription the prices of its usage: those that it had on its plan, else the plans file's.

    So a price that is edited in the file is one for new subscribers, as it is where Stripe has the prices.
    """
    plan = None if subscription is None else catalog.plans.get(subscription.plan or "")
    if subscription is None or plan is None or subscription.metered or catalog.billing.usage == "meters":
        return subscription
    kept: dict[str, ItemPrice] = {}
    if known is not None and (known.id, known.plan) == (subscription.id, subscription.plan):
        kept = {one.meter: one for one in known.prices}
    found: list[ItemPrice] = []
    for meter in billed_meters(catalog.meters, plan):
        given = billed_as(plan, meter)
        if given is not None and meter.stripe is not None and given.overage.amount_cents is not None:
            label = f"{given.overage.per or 1}/{given.overage.amount_cents}"
            found.append(kept.get(meter.name) or ItemPrice(meter.name, meter.stripe.event_name, label))
    return replace(subscription, prices=tuple(found))


def line_product(meter: str, title: str) -> dict[str, str]:
    """Product at Stripe that a meter's lines name; its id is made of the meter's name."""
    return {"id": f"meterkit_meter_{meter}", "name": title}


def line_terms(view: CustomerView, now_ms: int) -> str:
    """Argument of ``queue_lines.lua``, as JSON."""
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
    renewals = renewals_of(subscription, now_ms)
    since_ms = 0 if subscription is None else _ALL if renewals is None else renewals.since_ms
    item = {
        "stripe": state.stripe_customer or "",
        "subscription": "" if subscription is None else subscription.id,
        "currency": catalog.currency,
        "metered": "",
    }
    return json.dumps({"by_lines": 1, "since": since_ms, "meters": meters, "item": item, "most": LINES_MOST})
