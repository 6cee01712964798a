"""Replay of left spools for a flush of everything, and what a flush leaves to deliver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.delivery.report import FlushReport
from meterkit.outbox.late_items import LateItems
from meterkit.outbox.outbox import Outbox

if TYPE_CHECKING:
    from meterkit.store.store import Store

__all__ = ["count_undelivered", "replay_spools"]


async def replay_spools(store: Store) -> FlushReport:
    """Record usage that lies in spools, and count what waits for delivery; Stripe is not asked.

    Raises:
        StoreError: the store does not answer.
    """
    sent = await store.send_spools()
    return await count_undelivered(store, FlushReport(spooled=sent.sent, spools_left=list(sent.refused)))


async def count_undelivered(store: Store, report: FlushReport) -> FlushReport:
    """Add to a report what is not delivered now.

    Raises:
        StoreError: the store does not answer.
    """
    outbox = Outbox(store, await store.admin())
    report.left = sum(item.dirty + item.outbox for item in await outbox.work(due_ms=None))
    report.left += await LateItems(store, await store.admin()).count()
    report.unlinked = await outbox.unlinked()
    report.undelivered = await outbox.undelivered()
    return report
