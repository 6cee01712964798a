"""Alerts about usage that the invoice of its period does not have: one for each customer and period."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meterkit.customers.usage import Uninvoiced, note_uninvoiced, uninvoiced
from meterkit.decisions.periods import from_ms, iso
from meterkit.outbox.late_found import LateUsage, collect_late

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.delivery.reconciling import Reconciled
    from meterkit.outbox.sealing import LateUnits
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.event_names import Counted
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.delivery")


def report_late(late: Iterable[LateUnits], meters: Mapping[str, Counted]) -> None:
    """Log late usage; if a flush has found it, put it into the report of that flush.

    Args:
        late: what the seal has counted as late: each unit once.
        meters: the meters that are or were delivered, by token.
    """
    groups: dict[tuple[str, int], list[LateUsage]] = {}
    for one in late:
        counted = meters.get(one.meter_token)
        usage = LateUsage(
            customer=one.customer,
            meter=one.meter_token if counted is None else counted.meter,
            quantity=one.quantity,
            period=iso(from_ms(one.period_ms)),
            is_billed=one.is_billed,
            by_item=one.by_item,
        )
        groups.setdefault((one.customer, one.period_ms), []).append(usage)
    for (customer, _), found in groups.items():
        mark = collect_late(found)
        _logger.error(
            "late usage of customer %r: the invoice of its period from %s was final before it was delivered;"
            " %s (billing.late_usage)",
            customer,
            found[0].period,
            late_in_words(found),
            extra=mark,
        )


async def count_uninvoiced(
    store: Store, usage: CustomerUsage, found: Sequence[Reconciled], *, prices: Mapping[str, str]
) -> bool:
    """Count as late what Stripe has counted in a period and its final invoices lack; whether there was any.

    Args:
        store: where it is counted.
        usage: of a customer in a period whose invoices are final, or that no invoice will be made for.
        found: the comparison with Stripe's books. All of it is delivered.
        prices: by meter, the price to stand behind a quantity.

    Raises:
        StoreError: the store does not answer.
    """
    missing: dict[str, int] = {}
    for one in found:
        if one.difference == 0 and one.invoiced is not None and one.invoice != "draft":
            missing.setdefault(one.event_name, -one.invoiced)
            missing[one.event_name] += one.delivered
    known, late = await uninvoiced(store, usage), list[Uninvoiced]()
    for one in found:
        units = min(one.delivered, missing.get(one.event_name, 0))
        if units > 0:
            missing[one.event_name] -= units
            late.append(Uninvoiced(one.meter, units, known[one.meter], prices[one.meter]))
    if late:
        await note_uninvoiced(store, usage, late)
        _logger.error(
            "late usage of customer %r: Stripe has counted it in the period from %s and has it on no invoice;"
            " %s: no invoice bills it",
            usage["customer"],
            iso(usage["period"]["start"]),
            ", ".join(f"{one.quantity} of {one.meter}{one.price}" for one in late),
        )
    return bool(late)


def late_in_words(found: list[LateUsage]) -> str:
    """How much is late of one customer and period, and what becomes of it."""
    by_item = [one for one in found if one.by_item]
    groups = {
        "the invoice of the open period bills it": [
            one for one in found if one.is_billed and not one.by_item
        ],
        "an invoice item bills it at the price at which it was recorded": by_item,
        "no invoice bills it": [one for one in found if not one.is_billed],
    }
    return "; ".join(f"{_units(group)}: {what}" for what, group in groups.items() if group)


def _units(found: list[LateUsage]) -> str:
    return ", ".join(f"{one.quantity} of {one.meter}" for one in found)
