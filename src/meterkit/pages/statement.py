"""The statement of a customer as a page, as JSON, and as streamed CSV."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

from starlette.responses import StreamingResponse

from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.decisions.periods import from_ms
from meterkit.insights.statement.lines import PlaceError
from meterkit.pages.rendering import HEADERS
from meterkit.pages.statement_csv import csv_of, hide_subjects, read_titles
from meterkit.pages.usage_figures import last_second_before, read_name
from meterkit.problem_types import ProblemDocument, ProblemDocumentError, ProblemType
from meterkit.subscriptions.billing_problems import invalid
from meterkit.subscriptions.billing_routes import period_in

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.responses import Response

    from meterkit.insights.statement.lines import Statement
    from meterkit.pages.rendering import PageRenderer
    from meterkit.pages.usage_figures import PagesKit

_MORE: Final = 1_000
_NOT_AUDITED: Final = ProblemDocument(
    kind=ProblemType(404, "about:blank", "Not Found"),
    detail=("This service makes no statements. To enable them, its operator sets METERKIT_AUDIT_URL."),
)


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
