"""Which subscription's invoice has the usage of a billing period, also after the customer has another one."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from meterkit.decisions.finality import renewals_of
from meterkit.decisions.periods import from_ms, to_ms
from meterkit.decisions.subscription import ENDED
from meterkit.errors import StripeError
from meterkit.store.final_invoices import price_in_words
from meterkit.store.history import history_of, until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

__all__ = ["Invoicing", "invoicing_of"]


class Invoicing(NamedTuple):
    """How Stripe bills the usage of a period.

    Attributes:
        subscription: the id of the subscription.
        plan: its plan then, by key; None: no plan of the plans file.
        made_ms: when Stripe made the invoice.
        is_last: whether the subscription ended with the period.
    """

    subscription: str
    plan: str | None
    made_ms: int
    is_last: bool

    def price_of(self, meter: str, catalog: Catalog) -> str:
        """What a unit costs, to stand behind a quantity; empty: not known."""
        plan = catalog.plans.get(self.plan or "")
        return "" if plan is None else price_in_words(plan.entitlements.get(meter), catalog.currency)


async def invoicing_of(
    store: Store, api: StripeApi, usage: CustomerUsage, state: CustomerState
) -> Invoicing | None:
    """How a period is billed; None: it costs nothing, as in a trial, or its invoice is not to be made yet.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    start_ms, end_ms = (to_ms(usage["period"][edge]) for edge in ("start", "end"))
    subscription, now_ms = state.subscription, store.now_ms()
    if subscription is None or start_ms >= (subscription.created_ms or subscription.start_ms):
        renewals = renewals_of(subscription, now_ms)
        # By its beginning: where a subscription has ended, its last period may end some minutes later.
        made_ms = None if renewals is None else renewals.invoiced_ms(start_ms, end_ms)
        if subscription is None or made_ms is None:
            return None
        is_last = subscription.status in ENDED and made_ms == subscription.ends_ms()
        return Invoicing(subscription.id, subscription.plan, made_ms, is_last)
    entries = await history_of(store, usage["customer"])
    formers = dict.fromkeys(entry.before for entry in reversed(entries) if entry.kind == "subscription")
    for former in filter(None, formers):
        try:
            found = await api.get(f"/v1/subscriptions/{former}")
        except StripeError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            continue
        if start_ms >= int(found.get("start_date") or 0) * 1000:
            invoicing = _of_former(found, start_ms, end_ms)
            if invoicing is None:
                return None
            ended = until(entries, "plan", from_ms(invoicing.made_ms)) or usage["plan"]
            return invoicing._replace(plan=ended)
    return None


def _of_former(found: Mapping[str, Any], start_ms: int, end_ms: int) -> Invoicing | None:
    """The same for an earlier subscription, as Stripe shows it."""
    since_ms = int(found.get("trial_end") or 0) * 1000
    ended_ms = int(found.get("ended_at") or 0) * 1000
    if start_ms < since_ms or (ended_ms and start_ms >= ended_ms):
        return None
    is_last = bool(ended_ms) and end_ms >= ended_ms
    return Invoicing(str(found["id"]), None, ended_ms if is_last else end_ms, is_last)
