"""Figures of the operator page that are read with each visit: what waits or failed, of all customers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.insights.deliveries import read_deliveries
from meterkit.insights.webhooks import read_webhooks
from meterkit.pages.operator_figures import Figure, Section
from meterkit.store.messages import CHANNELS, MessageQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.store.store import Store

__all__ = ["live_sections"]


async def live_sections(store: Store) -> Sequence[Section]:
    """What waits or failed, in a few round trips whatever the number of customers.

    Raises:
        StoreError: the store does not answer.
    """
    waiting, webhooks = await read_deliveries(store), await read_webhooks(store)
    messages = [await MessageQueue(store, channel).waiting() for channel in CHANNELS]
    outbox = [
        Figure(state, f"Deliveries {state}", waiting[state].items, opens="outbox", of=opened)
        # In the store's outbox are those that are being sent, too.
        for state, opened in (("queued", ""), ("parked", "parked"), ("dead", "dead"))
    ]
    waits = sum(found["due"] + found["later"] for found in messages)
    return [
        Section("outbox", "Usage on its way to Stripe", outbox),
        Section(
            "webhooks",
            "Webhooks of Stripe",
            [Figure("dead", "Dead webhooks", webhooks["dead"].items, opens="webhooks")],
        ),
        Section(
            "messages",
            "Messages to customers",
            [
                Figure("waiting", "Messages that wait", waits, opens="messages", of="waiting"),
                Figure(
                    "dead",
                    "Dead messages",
                    sum(found["dead"] for found in messages),
                    opens="messages",
                    of="dead",
                ),
            ],
        ),
    ]
