"""What settlements of the same meters have in common, so that it is worked out once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.policies import TOKEN_BUCKET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.decisions.audit_terms import PaidPrice
    from meterkit.store.views import CustomerView

THRESHOLD_NUMBERS: Final = 4


class Entry(NamedTuple):
    """One meter of a settlement.

    ``quantity_of`` names the meter whose quantity it is: its own, or for a derived meter its source's.
    ``terms`` are the included quantity (-1: no limit), whether included units and overage are sent, and under
    whose event.
    """

    meter: str
    quantity_of: str
    terms: tuple[int, int, int, int]


class Rated(NamedTuple):
    """One rate of a settlement; ``source`` is set for the rates of derived meters only."""

    field: str
    meter: str
    source: str | None
    terms: tuple[int, int, int]
    is_corrected: bool

    def unleaked(self, quantity: int, passed_ms: int) -> int:
        """What a bucket still has of a quantity that long ago; a window goes by when that was."""
        kind, window, refill = self.terms
        if kind != TOKEN_BUCKET:
            return quantity
        return max(0, quantity - max(0, passed_ms) * refill // window)


class Shape(NamedTuple):
    """What settlements of the same meters have in common, packed as far as it can be.

    Attributes:
        head: the request up to the producer's key, where there is no event.
        names: the keys behind that, without the one of an event id.
        audit: those of the audit log; empty: there is none.
        fields: the fields that are read, ``width`` of them.
        has_more: whether the keys of grants and of notices are among the names.
        paying: what grants and credits pay, as JSON; empty: nothing.
        prices: what units cost that are paid for, for the audit log.
    """

    head: bytes
    names: bytes
    audit: bytes
    fields: bytes
    width: int
    has_more: bool
    counts: tuple[int, int, int, int]
    entries: tuple[Entry, ...]
    rates: tuple[Rated, ...]
    thresholds: tuple[int, ...]
    paying: str
    prices: Mapping[str, PaidPrice]


def thresholds_of(view: CustomerView, entries: Sequence[Entry]) -> tuple[int, ...]:
    """Of each threshold of what is included: its meter's place, the quantity, the percentage, all of it."""
    found: list[int] = []
    for place, entry in enumerate(entries, start=2):  # From 2, behind the head.
        entitlement = view.entitlements[entry.meter]
        for quantity, percent in () if view.anonymous else entitlement.thresholds:
            found += (place, quantity, percent, entitlement.included or 0)
    return tuple(found)
