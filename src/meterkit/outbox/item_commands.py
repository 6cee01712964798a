"""Operator commands on queued invoice items (``kit.outbox.items``): list, redrive or drop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from meterkit.decisions.periods import from_ms
from meterkit.errors import MeterkitError
from meterkit.outbox.late_items import LateItems, item_cents
from meterkit.store.arguments import check_customer, check_text, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from meterkit.outbox.late_items import LateItem
    from meterkit.store.store import Store

_GONE: Final = (
    "no invoice item that waits has this identifier: it is made, or dropped; `meterkit outbox list` names"
    " them"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedItem:
    """An invoice item for late usage that Stripe does not have yet. It bills at the price of its usage.

    Attributes:
        identifier: its own; Stripe's item has it in its metadata, as ``meterkit_late_item``.
        stripe_customer: whom it is for.
        subscription: the subscription whose next renewal bills it.
        meter: its name in the plans file when the usage became late.
        quantity: in the meter's unit.
        cents: its amount in minor units of ``currency``, rounded as Stripe rounds a line.
        period_start: the first instant of the billing period in which the usage was recorded.
        recorded_until: the first instant after the usage was recorded, at the latest.
        queued_at: when the usage became late.
        age_s: how long ago that is, in seconds.
        due_at: when it is made, or tried again.
        state: ``queued``, always.
    """

    identifier: str
    customer: str
    stripe_customer: str
    subscription: str
    meter: str
    event_name: str
    quantity: int
    cents: int
    currency: str
    period_start: datetime
    recorded_until: datetime
    queued_at: datetime
    age_s: int
    due_at: datetime
    state: Literal["queued"] = "queued"


class QueuedItems:
    """Lists, redrives and drops invoice items for late usage that Stripe does not have yet.

    Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, *, customer: str | None = None, limit: int = 1_000) -> Sequence[QueuedItem]:
        """The items that wait, oldest first.

        Args:
            customer: whose; default: everybody's.
            limit: at most so many.

        Raises:
            CustomerError: the id is not allowed.
        """
        if customer is not None:
            check_customer(customer)
        found = await LateItems(self._store, await self._store.admin()).listed(customer)
        shown_items = [self._as_shown(item, due_ms) for item, due_ms in found]
        return sorted(shown_items, key=lambda one: (one.queued_at, one.identifier))[:limit]

    async def redrive(self, identifier: str) -> QueuedItem:
        """Queue an item for the next flush, also one that Stripe did not take lately.

        Raises:
            MeterkitError: no item that waits has this identifier.
        """
        items, item = await self._find(identifier)
        now_ms = self._store.now_ms()
        await items.postpone(item, until_ms=now_ms)
        return self._as_shown(item, now_ms)

    async def drop(self, identifier: str, *, reason: str, by: str = "api") -> QueuedItem:
        """Give an item up: its units stay late, and no invoice bills them.

        If a flush makes the item meanwhile, Stripe has it, and ``reconcile`` names it.

        Args:
            identifier: of the item.
            reason: for the customer's ledger; required.
            by: who does it, for the ledger.

        Raises:
            MeterkitError: no reason is given, or no item that waits has this identifier.
        """
        check_text("reason", reason, may_be_empty=True)
        check_text("by", by, may_be_empty=True)
        if not reason:
            raise MeterkitError("reason: found none; say why its quantity is never to be billed")
        items, item = await self._find(identifier)
        if not await items.settle(item, "t", after=f"dropped: {reason}", cause=by or "api"):
            raise MeterkitError(f"item: found {shown(identifier)}; {_GONE}")
        return self._as_shown(item, self._store.now_ms())

    async def _find(self, identifier: str) -> tuple[LateItems, LateItem]:
        items = LateItems(self._store, await self._store.admin())
        for item, _ in await items.listed():
            if item.id == identifier:
                return items, item
        raise MeterkitError(f"item: found {shown(identifier)}; {_GONE}")

    def _as_shown(self, item: LateItem, due_ms: int) -> QueuedItem:
        return QueuedItem(
            identifier=item.id,
            customer=item.customer,
            stripe_customer=item.stripe_customer,
            subscription=item.subscription,
            meter=item.meter,
            event_name=item.event_name,
            quantity=item.units,
            cents=item_cents(item.label, item.units),
            currency=item.currency,
            period_start=from_ms(item.period_ms),
            recorded_until=from_ms(item.till_ms),
            queued_at=from_ms(item.queued_ms),
            age_s=max(0, (self._store.now_ms() - item.queued_ms) // 1000),
            due_at=from_ms(due_ms),
        )
