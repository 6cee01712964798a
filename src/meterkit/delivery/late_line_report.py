"""Reports invoice lines that miss the invoice of their period: once for each customer and period."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meterkit.decisions.periods import from_ms, iso
from meterkit.outbox.sealer import LateUsage, add_late_usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.outbox.invoice_item_queue import InvoiceItemEntry

_logger = logging.getLogger("meterkit.delivery")
_BILLED: Final = "late usage of customer %r: the next invoice bills %s of the period from %s: %s"
_REFUSED: Final = "usage of customer %r: no invoice bills %s of the period from %s: %s"
_SHOWN_MOST: Final = 10


class LateLineReport:
    """Collects late lines of one pass, so that a period with many lines is logged once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int, str, bool], list[InvoiceItemEntry]] = {}

    def add(self, item: InvoiceItemEntry, why: str, *, is_billed: bool) -> None:
        """Add a settled line: the next invoice bills it, or none does, and why."""
        self._found.setdefault((item.customer, item.period_ms, why, is_billed), []).append(item)

    def log(self) -> None:
        """Log the lines, and add them to the report of the running flush; then forget them."""
        for (customer, period_ms, why, is_billed), items in self._found.items():
            period = iso(from_ms(period_ms))
            mark = add_late_usage(
                LateUsage(
                    customer=customer,
                    meter=item.meter,
                    quantity=item.units,
                    period=period,
                    is_billed=is_billed,
                )
                for item in items
            )
            text = _BILLED if is_billed else _REFUSED
            _logger.error(text, customer, _format_lines(items), period, why, extra=mark)
        self._found.clear()


def _format_lines(items: Sequence[InvoiceItemEntry]) -> str:
    shown = [item.in_words() for item in items[:_SHOWN_MOST]]
    more = len(items) - len(shown)
    return ", ".join([*shown, f"and {more} more lines"] if more else shown)
