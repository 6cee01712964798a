"""Invoice lines of periods that were cut short: some of their usage is on the next invoice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.outbox.invoice_ends import read_stripe_edges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.delivery.invoices import Invoiced, Invoices
    from meterkit.delivery.summaries import Summaries
    from meterkit.store.store import Store

_MINUTE_MS: Final = 60_000


async def invoiced_units(
    store: Store,
    customer: str,
    stripe_customer: str,
    event_names: Sequence[str],
    span_ms: tuple[int, int],
    *,
    summaries: Summaries,
    invoices: Invoices,
    counted: int,
    stops_ms: int,
) -> Invoiced:
    """Read the units of event names that invoices have of a period.

    A period that was cut short ends, in our books, behind all minutes that its deliveries were stamped with.
    Stripe's next invoice has the units of these minutes: they count for the period that recorded them. After
    a subscription's last period, no invoice has them.

    Args:
        store: where the customer is.
        customer: whose.
        stripe_customer: the linked one.
        event_names: of the meter at Stripe, former ones too.
        span_ms: start and end of the period.
        summaries: give counted units.
        invoices: give invoice lines.
        counted: by Stripe, in the period.
        stops_ms: when the subscription of the period stops billing usage.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    start_ms, end_ms = span_ms
    edges = await read_stripe_edges(store, customer, start_ms, end_ms)
    meters = [meter for event_name in event_names for meter in summaries.meter_ids(event_name)]
    span_s = start_ms // 1000, edges.end_ms // 1000
    found = await invoices.invoiced(stripe_customer, meters, *span_s, counted=counted)
    if found.state in {"none", "unknown"}:
        return found

    async def units(from_ms: int, until_ms: int) -> int:
        first_s, end_s = -(-from_ms // _MINUTE_MS) * 60, until_ms // _MINUTE_MS * 60
        if first_s >= end_s:
            return 0
        found = [
            await summaries.counted(event_name, stripe_customer, first_s, end_s) for event_name in event_names
        ]
        return int(sum(filter(None, found)))

    on_the_next = await units(edges.end_ms, end_ms) if edges.end_ms < stops_ms else 0
    of_the_former = await units(edges.start_ms, start_ms)
    return replace(found, quantity=found.quantity + on_the_next - of_the_former)
