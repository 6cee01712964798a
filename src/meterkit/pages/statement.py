"""The statement of a customer as a page, as JSON, and as streamed CSV."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import asdict, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import StreamingResponse

from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.csv_text import csv_text
from meterkit.decisions.periods import from_ms, iso
from meterkit.insights.statement.lines import ENTRY_WORDS, PlaceError
from meterkit.pages.rendering import HEADERS
from meterkit.pages.usage_figures import last_second_before, read_name
from meterkit.problem_types import ProblemDocument, ProblemDocumentError, ProblemType
from meterkit.subscriptions.billing_problems import invalid
from meterkit.subscriptions.billing_routes import period_in

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from datetime import datetime

    from starlette.requests import Request
    from starlette.responses import Response

    from meterkit.catalog import Catalog
    from meterkit.insights.statement.lines import Statement, StatementEvent, StatementLine
    from meterkit.insights.statement.statements import Statements
    from meterkit.pages.rendering import PageRenderer
    from meterkit.pages.usage_figures import PagesKit

_MORE: Final = 1_000
_NOT_AUDITED: Final = ProblemDocument(
    kind=ProblemType(404, "about:blank", "Not Found"),
    detail=("This service makes no statements. To enable them, its operator sets METERKIT_AUDIT_URL."),
)
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


async def answer_statement(
    request: Request, kit: PagesKit, pages: PageRenderer, customer: str, *, subjects: bool
) -> Response:
    """Answer with the statement of a period, or of one ``line`` of it; ``subjects``: with those of events.

    Raises:
        ProblemDocumentError: there is no audit log, or no such period or line.
        MeterkitError: a database or Stripe does not answer.
    """
    found = await _read_statement(request, kit, customer)
    if not subjects:
        found = replace(found, lines=tuple(map(hide_subjects, found.lines)))
    shown = {
        **asdict(found),
        "customer_name": await read_name(kit, customer),
        "previous_period": last_second_before(found.period_start),
        "is_one": "line" in request.query_params,
        "balance_currency": BALANCE_CURRENCY,
        "entry_words": ENTRY_WORDS,
        "meter_names": read_titles(kit.catalog),
        "charged": {name for name, meter in kit.catalog.meters.items() if meter.charges is not None},
    }
    return pages.answer(request, "statement.html", lambda: shown, asdict(found))


async def _read_statement(request: Request, kit: PagesKit, customer: str) -> Statement:
    _check_audited(kit)
    query = request.query_params
    at_ms, line = period_in(query), query.get("line")
    period = None if at_ms is None else from_ms(at_ms)
    if line is None:
        return await kit.statement(customer, period)
    known = await kit.statement(customer, period, most=0)
    if line not in {one.id for one in known.lines}:
        raise ProblemDocumentError(invalid([{"field": "line", "message": "must be a line of the statement"}]))
    try:
        return await kit.statement(customer, period, line=line, after=query.get("after", ""), most=_MORE)
    except PlaceError as error:
        raise ProblemDocumentError(invalid([{"field": "after", "message": str(error)}])) from None


async def answer_csv(request: Request, kit: PagesKit, customer: str, *, subjects: bool) -> Response:
    """Answer with the CSV of a period; takes and raises what :func:`answer_statement` does."""
    _check_audited(kit)
    at_ms = period_in(request.query_params)
    period = None if at_ms is None else from_ms(at_ms)
    parts = csv_of(kit.statement, customer, period, kit.catalog, subjects=subjects)
    first = await anext(parts)  # An error of the first part can still be a problem document.

    async def stream() -> AsyncGenerator[str]:
        yield first
        async for part in parts:
            yield part

    headers = {**HEADERS, "content-disposition": 'attachment; filename="statement.csv"'}
    return StreamingResponse(stream(), headers=headers, media_type="text/csv")


def _check_audited(kit: PagesKit) -> None:
    if kit.settings.audit_url is None:
        raise ProblemDocumentError(_NOT_AUDITED)


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
