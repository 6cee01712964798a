"""Costs of changes of subscriptions: Stripe's preview, or an estimate by the plans file."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from meterkit.decisions.customer_state import seat_meter
from meterkit.errors import CurrencyError, StripeError, StripeUnavailableError
from meterkit.subscriptions.proration import Terms, cost_of, ends_trial
from meterkit.subscriptions.service.invoice_previews import InvoicePreviewer

if TYPE_CHECKING:
    from meterkit.catalog import Plan
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.subscriptions.live_subscription import LiveSubscription
    from meterkit.subscriptions.proration import PreviewedCharges, Proration
    from meterkit.subscriptions.service.applying import Applying

_logger = logging.getLogger("meterkit.subscriptions")
_ESTIMATED: Final = " This is estimated by the prices of the plans file: Stripe gave no preview."


class RequestedChange(NamedTuple):
    """A change of a subscription.

    Attributes:
        current: the plan that it has.
        target: plan and seats that it is to have.
        when: when it gets them.
        later: a scheduled change that stays; None: there is none.
    """

    current: Plan
    target: Terms
    when: Literal["now", "period_end"]
    later: Terms | None = None

    def next_terms(self, known: SubscriptionState) -> Terms | None:
        """Plan and seats from the next period on; None if the subscription is to end."""
        return None if known.cancel_at_ms is not None else self.later or self.target


@dataclass(frozen=True, slots=True)
class ChangePricer:
    """Prices changes of subscriptions.

    Args:
        store: its plans file says what an estimate takes.
    """

    store: Store

    async def price(
        self, live: LiveSubscription, applying: Applying, known: SubscriptionState, change: RequestedChange
    ) -> Proration:
        """Cost of a change by Stripe's preview; an estimate if Stripe refuses to preview it.

        Raises:
            CurrencyError: Stripe bills the customer in another currency.
            StripeUnavailableError: Stripe does not answer.
        """
        later, is_now = change.next_terms(known), change.when == "now"
        now = await applying.changes_of_items(live, change.target) if is_now else []
        then = now if later is change.target and is_now else None
        if later is not None and then is None:
            then = await applying.changes_to_scheduled(live, later)
        try:
            previewed = await InvoicePreviewer(live).preview(
                now,
                then,
                period_end_s=known.end_ms // 1000,
                is_invoiced=change.target.plan.key != change.current.key,
                ends_trial=ends_trial(known, change.current, change.target.plan, self.store.now_ms()),
            )
        except (CurrencyError, StripeUnavailableError):
            raise
        except StripeError as error:
            _logger.warning(
                "Stripe does not preview a change of subscription %s (%s); its cost is estimated by the"
                " prices of the plans file",
                live.id,
                error,
            )
            return self.estimate(known, change)
        return self._cost_of(known, change, previewed)

    def estimate(self, known: SubscriptionState, change: RequestedChange) -> Proration:
        """Cost of a change by the prices of the plans file; its description says so."""
        found = self._cost_of(known, change, None)
        return replace(found, description=f"{found.description}{_ESTIMATED}")

    def _cost_of(
        self, known: SubscriptionState, change: RequestedChange, previewed: PreviewedCharges | None
    ) -> Proration:
        catalog, now_ms = self.store.catalog, self.store.now_ms()
        return cost_of(
            known,
            Terms(plan=change.current, seats=known.seats_at(now_ms)),
            change.target,
            when=change.when,
            seat_meter=seat_meter(catalog.meters),
            currency=catalog.currency,
            now_ms=now_ms,
            next_period=change.next_terms(known),
            previewed=previewed,
        )
