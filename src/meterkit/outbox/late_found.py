"""Late usage that code under a flush finds: a context variable carries it into the report of that flush.

A flush syncs customers, and compares with Stripe, far below itself. Each of these may make usage late.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

REPORTED: Final = {"is_reported": True}
"""Marks what is logged and told by the report of a flush, too: who shows the report need not show both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LateUsage:
    """Usage that was not delivered before its invoice was final, or before its price ended at Stripe.

    Attributes:
        meter: its name, or that of an earlier plans file.
        quantity: in the meter's unit.
        period: the first instant of its billing period, in ISO 8601.
        is_billed: whether the invoice of the period that is open now bills it; else no invoice does.
        by_item: whether an invoice item bills it, at the price at which it was recorded.
    """

    customer: str
    meter: str
    quantity: int
    period: str
    is_billed: bool
    by_item: bool = False


_found: ContextVar[list[LateUsage] | None] = ContextVar("late usage of this flush", default=None)


@contextmanager
def collecting_late(found: list[LateUsage]) -> Generator[None]:
    """Add to a list all late usage that is found in this block, and in tasks that begin there."""
    token = _found.set(found)
    try:
        yield
    finally:
        _found.reset(token)


def collect_late(late: Iterable[LateUsage]) -> dict[str, bool] | None:
    """Add late usage to the report of the flush that runs; the mark for its lines of the log, if one does."""
    found = _found.get()
    if found is None:
        return None
    found += late
    return REPORTED
