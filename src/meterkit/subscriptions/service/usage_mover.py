"""Move the usage of subscriptions from metered prices to invoice lines at a period's end, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from meterkit.customers.states import CustomerStates
from meterkit.decisions.periods import from_ms
from meterkit.decisions.subscription import ENDED
from meterkit.errors import NoSubscriptionError
from meterkit.outbox.billed_usage_terms import must_move
from meterkit.subscriptions.service.change_lease import hold_change_lease
from meterkit.subscriptions.service.terms_writer import TermsWriter
from meterkit.subscriptions.stripe_objects import persistently

if TYPE_CHECKING:
    from datetime import datetime

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.store.store import Store
    from meterkit.subscriptions.service.subscription_changer import SubscriptionChanger


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageMove:
    """The way of a customer's usage onto invoices from an instant on.

    Attributes:
        customer: the customer's id.
        subscription: ``sub_…``.
        usage: ``lines``, or ``meters``.
        at: when that begins; None: it is so now.
        is_new: whether this call has scheduled it, or would have.
    """

    customer: str
    subscription: str
    usage: Literal["lines", "meters"]
    at: datetime | None
    is_new: bool


@dataclass(eq=False)
class UsageMover:
    """Moves usage to the way that the plans file has, by a schedule at Stripe.

    The period that is open keeps its way: its metered items bill it, or its invoice lines.

    Args:
        store: of the kit.
        changer: fetches subscriptions.
    """

    store: Store
    changer: SubscriptionChanger

    async def move(self, customer: str, *, dry_run: bool) -> UsageMove:
        """Move a customer's usage at the end of its period. Idempotent."""
        if dry_run:
            return self._describe_move(customer, await self._read(customer), is_new=True)
        async with hold_change_lease(self.store, customer):
            return await self.move_leased(customer)

    async def move_leased(self, customer: str) -> UsageMove:
        """Move a customer's usage while the caller holds the lease of its changes."""
        is_new = await persistently(lambda again: self._schedule_move(customer, again))
        await self.changer.fetch(customer)
        return self._describe_move(customer, await self._read(customer), is_new=is_new)

    async def _schedule_move(self, customer: str, again: int) -> bool:
        live, known, current = await self.changer.fetch_payable(customer, again)
        state = await self._read(customer)
        if not must_move(state, self.store.catalog):
            return False
        terms_of = await self.changer.present_terms(customer, known, current)
        writer = TermsWriter(self.store, self.changer.api, state)
        by_lines = self.store.catalog.billing.usage == "lines"
        await writer.move_usage(live, known, terms_of, by_lines=by_lines)
        return True

    async def _read(self, customer: str) -> CustomerState:
        _, state = await CustomerStates(self.store).read(customer)
        if state.subscription is None or state.subscription.status in ENDED:
            raise NoSubscriptionError(customer)
        return state

    def _describe_move(self, customer: str, state: CustomerState, *, is_new: bool) -> UsageMove:
        known, catalog = state.subscription, self.store.catalog
        if known is None:
            raise NoSubscriptionError(customer)
        is_left = must_move(state, catalog)
        ahead = [at_ms for at_ms in known.line_switches if at_ms > self.store.now_ms()]
        at_ms = known.end_ms if is_left else next(iter(ahead), None)
        return UsageMove(
            customer=customer,
            subscription=known.id,
            usage=catalog.billing.usage,
            at=None if at_ms is None else from_ms(at_ms),
            is_new=is_new and (is_left or at_ms is not None),
        )
