"""A statement as CSV: a row for each line, followed by a row for each of its events; page by page."""

from __future__ import annotations

from contextlib import aclosing
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.periods import iso
from meterkit.safe_text import csv_text

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
    *("event", "recorded_at", "occurred_at", "included", "granted", "credited", "overage", "over_cap"),
    *("billed", "late"),
    *("price_micros", "price_per", "model", "provider", "why", "subjects", "event_id"),
)
COLUMNS: Final = ("row", "line", *_OF_LINE, *_OF_EVENT)
_EMPTY: Final = dict.fromkeys(COLUMNS)


async def csv_of(
    statement: Statements, customer: str, period: datetime | str | None = None, *, line_end: str = "\r\n"
) -> AsyncGenerator[str]:
    """Yield the CSV in parts, for a stream; the first part comes once the statement is known.

    Raises:
        MeterkitError: as of ``kit.statement``.
    """
    shown: str | None = None
    async with aclosing(statement.pages(customer, period)) as pages:
        async for line in pages:
            rows: list[dict[str, object]] = []
            if line.id != shown:
                told = {name: getattr(line, name) for name in _OF_LINE}
                price = Decimal(line.unit_amount) if line.unit_amount else None
                rows.append({**_EMPTY, "row": "line", "line": line.id, **told, "unit_amount": price})
            rows += [_event_row(line.id, event) for event in line.events]
            yield csv_text(COLUMNS, rows, head=shown is None, line_end=line_end)
            shown = line.id
    if shown is None:
        yield csv_text(COLUMNS, [], head=True, line_end=line_end)


def _event_row(line: str, event: StatementEvent) -> dict[str, object]:
    shown: dict[str, Any] = {name: getattr(event, name) for name in ("kind", "meter", "quantity", *_OF_EVENT)}
    for name in ("recorded_at", "occurred_at"):
        shown[name] = None if shown[name] is None else iso(shown[name])
    shown["subjects"] = " ".join(f"{kind}:{subject}" for kind, subject in event.subjects.items())
    return {**_EMPTY, "row": "event", "line": line, **shown}
