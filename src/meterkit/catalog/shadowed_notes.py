"""Notes on shadowed entries of a plans file: an earlier one matches all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.catalog.match_lines import covers_line
from meterkit.catalog.model_prices import covers_pattern
from meterkit.catalog.notes import COMPARED_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.catalog.credits import CreditTable, ModelPricesTable
    from meterkit.catalog.errors import FilePlace, Problems


def note_shadowed_routes(matches: Sequence[tuple[str, FilePlace]], problems: Problems) -> None:
    """Say so where an earlier line takes every request of a later one.

    Args:
        matches: the ``match`` lines of the file in its order, with their places.
        problems: the list to add to.
    """
    earlier: list[tuple[str, FilePlace]] = []
    for match, place in matches[:COMPARED_MAX]:
        found = next((line for written, line in earlier if covers_line(written, match)), None)
        if found is not None:
            message = f"never reached: the route in line {found.line} matches all of it; move this one up"
            problems.note(place, "never_reached", message)
        earlier.append((match, place))


def note_shadowed_prices(tables: Iterable[ModelPricesTable | CreditTable], problems: Problems) -> None:
    """Say so where an earlier pattern of a table matches every model of a later one.

    Args:
        tables: those of ``prices:``, and the credits, which may have ``models`` of their own.
        problems: the list to add to.
    """
    for table in tables:
        places = table.places("models")
        for nth, pattern in enumerate(places):
            earlier = list(places)[: min(nth, COMPARED_MAX)]
            found = next((first for first in earlier if covers_pattern(first, pattern)), None)
            if found is not None:
                message = (
                    f"never reached: {found!r} in line {places[found].line} matches all of it;"
                    " move this one up"
                )
                problems.note(places[pattern], "never_reached", message)
