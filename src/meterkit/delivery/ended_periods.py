"""Usage of periods whose invoices have become final: it is late at once, and not at the next flush."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.delivery.late_intents import LateIntents
from meterkit.delivery.late_usage import report_late
from meterkit.outbox.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store


async def end_usage(store: Store, customer: str, ended: Mapping[int, int]) -> None:
    """Make usage of periods late that Stripe does not have, log it, and begin the next period.

    Args:
        store: where it is counted.
        customer: whose.
        ended: when each period ended at Stripe, and its first instant (ms).

    Raises:
        StoreError: the store does not answer, or the totals of the customer cannot be counted in.
    """
    intents, outbox = LateIntents(store), Outbox(store, await store.admin())
    for at_ms, period_ms in ended.items():
        await intents.recall(customer, period_ms, until_ms=at_ms)
    sealing = await outbox.cut(customer, None)
    report_late(sealing.late, await outbox.meters())
