"""Tables of the operator pages: one list of rows, rendered as HTML, CSV and JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from meterkit.decisions.periods import from_ms
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from meterkit.insights.overview.overview import Overview
    from meterkit.insights.overview.tables import Made

Row = dict[str, object]

_EXPORTED_AT_ONCE: Final = 2_000
_PLACE: Final = re.compile(r"[0-9]{1,9}")


class Column(NamedTuple):
    """A column.

    Attributes:
        name: of the value in a row, and in exports.
        heading: on the page.
        kind: how the page shows it; ``micro``: millionths of the smallest unit of the row's currency;
            ``units``: a quantity of the row's ``unit``, which may be money; ``unit``: that unit.
        opens: the list that a value opens, given the value.
    """

    name: str
    heading: str
    kind: Literal["text", "number", "micro", "per_mille", "time", "units", "unit"] = "text"
    opens: str = ""


class Asked(NamedTuple):
    """What a request asks of a list.

    Attributes:
        of: which plan, day or the like; empty: the list needs none.
        after: the place of the last row of the page before; empty: the first page.
        most: at most so many rows.
    """

    of: str
    after: str
    most: int


class Rows(NamedTuple):
    """A page of rows.

    Attributes:
        after: the place of its last row; empty: there are no more.
        note: what the page says besides, such as when they were counted.
    """

    rows: Sequence[Row]
    after: str = ""
    note: str = ""


def as_of(made: Made) -> str:
    """When the snapshot was made, as pages say it."""
    return f"As of {from_ms(made.at_ms):%Y-%m-%d %H:%M} UTC."


async def made_of(overview: Overview) -> Made:
    """The last snapshot.

    Raises:
        MeterkitError: there is none yet, or it cannot be read.
    """
    made = await overview.last()
    if made is None:
        raise MeterkitError("The first figures over all customers are being made. Try again in a minute.")
    return made


def page_of(rows: Sequence[Row], asked: Asked) -> Rows:
    """A page of rows that are all there; the place of a row is how many come before it."""
    first = int(asked.after) if _PLACE.fullmatch(asked.after) else 0
    end = first + asked.most
    return Rows(rows[first:end], str(end) if end < len(rows) else "")


def first_of(rows: Sequence[Row], asked: Asked, is_cut: bool) -> Rows:
    """A page of rows, which says so if there are more than were read."""
    note = f"Only the first {len(rows):,} are listed." if is_cut else ""
    return page_of(rows, asked)._replace(note=note)


@dataclass(frozen=True, slots=True)
class Listing:
    """A list that a figure opens.

    Attributes:
        name: in the address.
        title: on the page; ``{of}`` stands for what was asked.
        columns: of each row.
        read: reads a page of it.
        empty: what the page says where there are no rows.
        action: what can be done to a row, named by its first column; empty: nothing.
        needs_of: whether it is a list of something, such as a plan.
    """

    name: str
    title: str
    columns: Sequence[Column]
    read: Callable[[Asked], Awaitable[Rows]]
    empty: str
    action: str = ""
    needs_of: bool = False

    async def pages(self, of: str) -> AsyncGenerator[Sequence[Row]]:
        """All of it, page by page."""
        after = ""
        while True:
            found = await self.read(Asked(of, after, _EXPORTED_AT_ONCE))
            yield found.rows
            after = found.after
            if not after:
                return
