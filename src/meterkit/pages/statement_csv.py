"""A statement as CSV: a row for each line, followed by a row for each of its events; page by page."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Protocol

from meterkit.decisions.periods import iso
from meterkit.pages.listing import Column, as_csv

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import datetime

    from meterkit.insights.statement.lines import Statement

_AT_ONCE: Final = 1_000
_OF_LINE: Final = (
    "invoice",
    "kind",
    "description",
    "meter",
    "quantity",
    "unit_amount",
    "amount_cents",
    "note",
)
_OF_EVENT: Final = (
    *("event", "recorded_at", "occurred_at", "included", "granted", "credited", "overage", "billed", "late"),
    *("price_micros", "price_per", "model", "provider", "why"),
)
COLUMNS: Final = [Column(name, name) for name in ("row", "line", *_OF_LINE, *_OF_EVENT)]
_EMPTY: Final = dict.fromkeys(column.name for column in COLUMNS)


class StatementOf(Protocol):
    """``kit.statement``."""

    async def __call__(
        self,
        customer: str,
        period: datetime | str | None = None,
        *,
        line: str | None = None,
        after: str = "",
        most: int = ...,
    ) -> Statement:
        """The statement of a period."""
        ...


async def csv_of(
    read: StatementOf, customer: str, period: datetime | str | None = None
) -> AsyncGenerator[str]:
    """The CSV in parts, for a stream; the first part is there once the statement is known.

    Raises:
        MeterkitError: as of ``kit.statement``.
    """
    found = await read(customer, period, most=0)
    head = True
    for line in found.lines:
        of_line = asdict(line)
        told: dict[str, Any] = {"row": "line", "line": line.id, **{name: of_line[name] for name in _OF_LINE}}
        yield as_csv(COLUMNS, [{**_EMPTY, **told}], head=head)
        head, after, left = False, "", bool(line.event_count)
        while left:
            page = await read(customer, found.period_id, line=line.id, after=after, most=_AT_ONCE)
            (same,) = page.lines
            yield as_csv(COLUMNS, [_event_row(line.id, asdict(one)) for one in same.events], head=False)
            after = same.after
            left = bool(after)
    if head:
        yield as_csv(COLUMNS, [], head=True)


def _event_row(line: str, event: dict[str, Any]) -> dict[str, object]:
    shown = {name: event[name] for name in ("kind", "meter", "quantity", *_OF_EVENT)}
    for name in ("recorded_at", "occurred_at"):
        shown[name] = None if shown[name] is None else iso(shown[name])
    return {**_EMPTY, "row": "event", "line": line, **shown}
