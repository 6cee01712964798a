"""A statement as CSV: a row for each line, followed by a row for each of its events; page by page."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.periods import iso
from meterkit.pages.listing import Column, as_csv

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import datetime

    from meterkit.insights.statement.lines import StatementEvent
    from meterkit.insights.statement.statements import Statements

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
    *("price_micros", "price_per", "model", "provider", "why", "subjects"),
)
COLUMNS: Final = [Column(name, name) for name in ("row", "line", *_OF_LINE, *_OF_EVENT)]
_EMPTY: Final = dict.fromkeys(column.name for column in COLUMNS)


async def csv_of(
    statement: Statements, customer: str, period: datetime | str | None = None
) -> AsyncGenerator[str]:
    """The CSV in parts, for a stream; the first part is there once the statement is known.

    Raises:
        MeterkitError: as of ``kit.statement``.
    """
    shown: str | None = None
    async with aclosing(statement.pages(customer, period)) as pages:
        async for line in pages:
            rows: list[dict[str, object]] = []
            if line.id != shown:
                told = {name: getattr(line, name) for name in _OF_LINE}
                rows.append({**_EMPTY, "row": "line", "line": line.id, **told})
            rows += [_event_row(line.id, event) for event in line.events]
            yield as_csv(COLUMNS, rows, head=shown is None)
            shown = line.id
    if shown is None:
        yield as_csv(COLUMNS, [], head=True)


def _event_row(line: str, event: StatementEvent) -> dict[str, object]:
    shown: dict[str, Any] = {name: getattr(event, name) for name in ("kind", "meter", "quantity", *_OF_EVENT)}
    for name in ("recorded_at", "occurred_at"):
        shown[name] = None if shown[name] is None else iso(shown[name])
    shown["subjects"] = " ".join(f"{kind}:{subject}" for kind, subject in event.subjects.items())
    return {**_EMPTY, "row": "event", "line": line, **shown}
