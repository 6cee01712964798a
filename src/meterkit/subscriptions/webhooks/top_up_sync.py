"""Sync one invoice of a top-up: grant it, reclaim what was returned, and send its events.

Each invoice is an entry of its own in the sync queue. One that cannot be granted delays no other, and no sync
of its Stripe customer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.store.customer_notices import publish_notice
from meterkit.subscriptions.invoice_payments import is_unpaid

if TYPE_CHECKING:
    from meterkit.store.store import Store
    from meterkit.subscriptions.top_up_payments import TopUpPayments
    from meterkit.subscriptions.webhooks.sync_queue import SyncEntry, SyncQueue

INVOICE: Final = "in_"
PAYMENT: Final = "pi_"


class TopUpSyncer:
    """Processes entries of the sync queue that name an invoice, or a payment intent.

    Args:
        store: of the kit.
        queue: the sync queue.
        top_ups: grants and reclaims top-ups.
    """

    def __init__(self, store: Store, queue: SyncQueue, top_ups: TopUpPayments) -> None:
        self._store = store
        self._queue = queue
        self._top_ups = top_ups

    async def sync(self, entry: SyncEntry) -> None:
        """Settle an invoice and send its events; of a payment intent, queue its invoices.

        Raises:
            CustomerError: the top-up is of a customer who is not linked to the invoice's Stripe customer.
            MeterkitError: it cannot be granted; the error says why.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        name = entry.stripe_customer
        if name.startswith(PAYMENT):
            for invoice in await self._top_ups.list_invoices(name):
                await self._queue.request(invoice, entry.cause)
            return
        found = await self._top_ups.fetch_invoice(name)
        is_reported = any(note.kind == "payment.succeeded" for note in entry.notes)
        customer = await self._top_ups.settle_invoice(found, is_reported=is_reported)
        if customer is None:
            return
        for note in entry.notes:
            if note.kind != "payment.failed" or is_unpaid(found):
                await publish_notice(self._store, customer, note.kind, {**note.data, "id": note.name})
