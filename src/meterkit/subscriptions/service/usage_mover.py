"""Move the usage of subscriptions from metered prices to invoice lines at a period's end, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meterkit.customers.states import CustomerStates
from meterkit.decisions.periods import from_ms
from meterkit.decisions.subscription import ENDED
from meterkit.errors import NoSubscriptionError
from meterkit.outbox.meters_or_lines import must_move
from meterkit.subscriptions.service.change_lease import hold_change_lease
from meterkit.subscriptions.service.terms_writer import TermsWriter
from meterkit.subscriptions.stripe_objects import persistently

if TYPE_CHECKING:
    from datetime import datetime

    from meterkit.store.store import Store
    from meterkit.subscriptions.service.subscription_changer import SubscriptionChanger


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

    async def move(self, customer: str, *, dry_run: bool) -> datetime | None:
        """Move a customer's usage at the end of its period. Idempotent.

        Returns:
            When the move takes effect; None: the usage is moved already, or the move was scheduled before.
        """
        if dry_run:
            _, state = await CustomerStates(self.store).read(customer)
            known = state.subscription
            if known is None or known.status in ENDED:
                raise NoSubscriptionError(customer)
            return from_ms(known.end_ms) if must_move(state, self.store.catalog) else None
        async with hold_change_lease(self.store, customer):
            return await self.move_leased(customer)

    async def move_leased(self, customer: str) -> datetime | None:
        """Move a customer's usage while the caller holds the lease of its changes."""
        moved_at = await persistently(lambda again: self._schedule_move(customer, again))
        await self.changer.fetch(customer)
        return moved_at

    async def _schedule_move(self, customer: str, again: int) -> datetime | None:
        live, known, _ = await self.changer.fetch_payable(customer, again)
        _, state = await CustomerStates(self.store).read(customer)
        if not must_move(state, self.store.catalog):
            return None
        writer = TermsWriter(self.store, self.changer.api, state)
        by_lines = self.store.catalog.billing.is_by_lines
        await writer.move_usage(live, known, by_lines=by_lines)
        return from_ms(known.end_ms)
