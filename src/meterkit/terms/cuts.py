"""Periods that did not last to their end, and what was used beyond the part that was paid. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from meterkit.terms.rows import CUT, SPENT, in_order

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.terms.rows import Row

INCLUDED: Final = "i:"
"""Before a meter's name: its included quantity, as a target of a cut."""


class Cut(NamedTuple):
    """A period that was cut short: its subscription ended, or another cycle began.

    Or a month without a subscription, in which one has begun.

    Attributes:
        start_ms: first instant of the period.
        cut_ms: instant of the cut.
        end_ms: its end without the cut.
        per: interval of included quantities.
        is_paid: whether the money for its rest was kept.
        units: target of a grant, or ``i:METER`` of an included quantity, to the units used beyond.
        before: part of it from earlier periods.
    """

    start_ms: int
    cut_ms: int
    end_ms: int
    per: Literal["month", "year"]
    is_paid: bool = False
    units: tuple[tuple[str, int], ...] = ()
    before: tuple[tuple[str, int], ...] = ()

    def covers(self, at_ms: int) -> bool:
        """Whether an instant lies in the period as it was before the cut."""
        return self.start_ms <= at_ms < self.end_ms


def cuts_of(terms: Iterable[Row]) -> list[Cut]:
    """The periods of subscriptions that were cut short, the oldest first."""
    return _found(terms, CUT)


def spent_of(terms: Iterable[Row]) -> Cut | None:
    """The latest month in which a subscription has begun, with what was used without one; None: none."""
    return next(reversed(_found(terms, SPENT)), None)


def _found(terms: Iterable[Row], fact: str) -> list[Cut]:
    return [Cut(*value) for row in in_order(terms) for name, value in row.facts if name == fact]
