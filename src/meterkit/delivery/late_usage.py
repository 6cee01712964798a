"""Alerts about usage that was too late for the invoice of its period: one for each customer and period."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meterkit.decisions.periods import from_ms, iso
from meterkit.delivery.report import REPORTED, LateUsage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.delivery.report import FlushReport
    from meterkit.store.event_names import Counted
    from meterkit.store.sealing import LateUnits

__all__ = ["late_in_words", "report_late"]

_logger = logging.getLogger("meterkit.delivery")


def report_late(report: FlushReport, late: Iterable[LateUnits], meters: Mapping[str, Counted]) -> None:
    """Put late usage into a report, and log it.

    Args:
        report: of the flush that has found it.
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
        )
        report.late.append(usage)
        groups.setdefault((one.customer, one.period_ms), []).append(usage)
    for (customer, _), found in groups.items():
        _logger.error(
            "late usage of customer %r: the invoice of its period from %s was final before it was delivered;"
            " %s (billing.late_usage)",
            *(customer, found[0].period, late_in_words(found)),
            extra=REPORTED,
        )


def late_in_words(found: list[LateUsage]) -> str:
    """How much is late of one customer and period, and what becomes of it."""
    billed, lost = ([one for one in found if one.is_billed is is_so] for is_so in (True, False))
    parts = [f"{_units(billed)}: the invoice of the open period bills it"] * bool(billed)
    return "; ".join(parts + [f"{_units(lost)}: no invoice bills it"] * bool(lost))


def _units(found: list[LateUsage]) -> str:
    return ", ".join(f"{one.quantity} of {one.meter}" for one in found)
