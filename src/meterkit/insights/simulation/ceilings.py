"""Usage under ceilings alone: who would have been refused, where no rate, grant or credit has a say. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.insights.simulation.log import Event
    from meterkit.insights.simulation.terms import Terms

__all__ = ["Tried", "refuse_beyond"]


class Tried(NamedTuple):
    """What the usage of a period came to under other terms.

    Attributes:
        overage: meter to the units beyond what is included, that neither a grant nor a credit paid.
        refused: meter to the units of the events that would have been refused.
        first_ms: when the first of them was; None: none was.
    """

    overage: Mapping[str, int]
    refused: Mapping[str, int]
    first_ms: int | None


def refuse_beyond(terms: Terms, events: Iterable[Event]) -> Tried:
    """Go through the events of a customer in their order, and refuse what goes beyond a ceiling.

    A refused event counts nowhere, so that a smaller one after it may still fit. Units that were taken back
    make room.
    """
    used, refused, first_ms = Counter[str](), Counter[str](), None
    for event in events:
        if any(_is_beyond(terms, meter, used[meter], units) for meter, units in event.quantities.items()):
            refused.update(event.quantities)
            first_ms = event.at_ms if first_ms is None else first_ms
        else:
            used.update(event.quantities)
    return Tried(terms.overage(used), dict(refused), first_ms)


def _is_beyond(terms: Terms, meter: str, used: int, units: int) -> bool:
    most = terms.ceilings.get(meter)
    return most is not None and units > 0 and used + terms.needed(meter, units) > most
