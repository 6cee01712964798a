"""Figures of the operator page that are read with each visit: what waits or failed, of all customers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.insights.deliveries import read_deliveries
from meterkit.insights.webhooks import read_webhooks
from meterkit.notify.spike_watch import EVENT as SPIKE
from meterkit.pages.operator_books import DAY_MINUTES, DEGRADED_DAYS, MINUTE_MS
from meterkit.pages.operator_figures import Figure, Section
from meterkit.store.messages import CHANNELS, MessageQueue
from meterkit.store.spikes_today import SpikesToday

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.store.store import Store

__all__ = ["live_sections"]


async def live_sections(store: Store) -> Sequence[Section]:
    """Backlogs and failures, in a few round trips whatever the number of customers.

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
    spikes, degraded = await SpikesToday(store).count(), await store.degraded.read(DEGRADED_DAYS)
    since = store.now_ms() // MINUTE_MS - DAY_MINUTES
    waits = sum(found["due"] + found["later"] for found in messages)
    unconfirmed = Figure(
        "unconfirmed", "Periods that no invoice confirms", waiting["unconfirmed"].items, opens="unconfirmed"
    )
    return [
        Section(
            "spikes",
            "Spikes",
            [Figure("spiking", "Usage far above the usual today", spikes, opens="spiking")],
            ""
            if _looks_for_spikes(store)
            else "To look for spikes, list usage.spike under notify in the plans file.",
        ),
        Section("outbox", "Deliveries to Stripe, and invoices", [*outbox, unconfirmed]),
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
        Section(
            "degraded",
            "Degraded minutes",
            [
                Figure(
                    "day",
                    "In 24 hours",
                    sum(minute > since for minute in degraded),
                    opens="degraded",
                    of="day",
                ),
                Figure("month", f"In {DEGRADED_DAYS} days", len(degraded), opens="degraded"),
            ],
            "Minutes in which a process decided requests without the store.",
        ),
    ]


def _looks_for_spikes(store: Store) -> bool:
    notify = store.catalog.notify
    channels = (notify.webhook, notify.email)
    return any(channel is not None and SPIKE in channel.events for channel in channels)
