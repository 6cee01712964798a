"""The statement of a customer as CSV: its columns, and the rows of lines and of events."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from meterkit.csv_text import csv_text
from meterkit.decisions.periods import iso

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from datetime import datetime

    from meterkit.catalog import Catalog
    from meterkit.insights.statement.lines import StatementEvent, StatementLine
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
    "event",
    "recorded_at",
    "occurred_at",
    "included",
    "granted",
    "credited",
    "overage",
    "over_cap",
    "billed",
    "late",
    "price_micros",
    "price_per",
    "model",
    "provider",
    "why",
    "subjects",
    "event_id",
)
COLUMNS: Final = ("row", "line", *_OF_LINE, *_OF_EVENT)
_EMPTY: Final = dict.fromkeys(COLUMNS)


async def csv_of(
    statement: Statements,
    customer: str,
    period: datetime | str | None,
    catalog: Catalog,
    *,
    line_end: str = "\r\n",
    subjects: bool = True,
) -> AsyncGenerator[str]:
    """Yield the CSV in parts; the first part follows the complete read of the statement.

    ``catalog``: names the meters of events. ``subjects``: with those of events.

    Raises:
        MeterkitError: as ``kit.statement``.
    """
    names = read_titles(catalog)
    shown: str | None = None
    async with aclosing(statement.pages(customer, period)) as pages:
        async for page in pages:
            line = page if subjects else hide_subjects(page)
            rows: list[dict[str, object]] = []
            if line.id != shown:
                fields = {name: getattr(line, name) for name in _OF_LINE}
                price = Decimal(line.unit_amount) if line.unit_amount else None
                rows.append({**_EMPTY, "row": "line", "line": line.id, **fields, "unit_amount": price})
            rows += [_event_row(line.id, event, names) for event in line.events]
            yield csv_text(COLUMNS, rows, head=shown is None, line_end=line_end)
            shown = line.id
    if shown is None:
        yield csv_text(COLUMNS, [], head=True, line_end=line_end)


def hide_subjects(line: StatementLine) -> StatementLine:
    """Leave the subjects of events out of a line."""
    return replace(line, events=tuple(replace(event, subjects={}) for event in line.events))


def _event_row(line: str, event: StatementEvent, names: Mapping[str, str]) -> dict[str, object]:
    shown: dict[str, Any] = {name: getattr(event, name) for name in ("kind", "meter", "quantity", *_OF_EVENT)}
    for name in ("recorded_at", "occurred_at"):
        shown[name] = None if shown[name] is None else iso(shown[name])
    shown["subjects"] = " ".join(f"{kind}:{subject}" for kind, subject in event.subjects.items())
    description = names.get(event.meter, event.meter)
    return {**_EMPTY, "row": "event", "line": line, "description": description, **shown}


def read_titles(catalog: Catalog) -> dict[str, str]:
    """Names of meters as invoices show them."""
    return {name: meter.title for name, meter in catalog.meters.items()}
