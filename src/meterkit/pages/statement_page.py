"""The statement of a customer: a page, the same as JSON, and as CSV in a stream."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from starlette.responses import StreamingResponse

from meterkit.answers import ProblemDocument, ProblemType
from meterkit.decisions.periods import from_ms, to_ms
from meterkit.insights.statement.lines import PlaceError
from meterkit.pages.rendering import HEADERS
from meterkit.pages.statement_csv import csv_of
from meterkit.subscriptions.billing_routes import period_in
from meterkit.subscriptions.problem_documents import ProblemDocumentError, invalid

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.responses import Response

    from meterkit.insights.statement.lines import Statement
    from meterkit.pages.figures import PagesKit
    from meterkit.pages.rendering import Pages

_MORE: Final = 1_000
_NOT_AUDITED: Final = ProblemDocument(
    kind=ProblemType(404, "about:blank", "Not Found"),
    detail=(
        "This service makes no statements. Its operator turns them on with an audit log: set"
        " METERKIT_AUDIT_URL."
    ),
)


async def answer_statement(request: Request, kit: PagesKit, pages: Pages, customer: str) -> Response:
    """Answer with the statement of a period, or of one ``line`` of it.

    Raises:
        ProblemDocumentError: there is no audit log, or no such period or line.
        MeterkitError: a database or Stripe does not answer.
    """
    found = await _read(request, kit, customer)
    shown = {
        **asdict(found),
        "previous_period": f"{from_ms(to_ms(found.period_start) - 1):%Y-%m-%d}",
        "is_one": "line" in request.query_params,
    }
    return pages.answer(request, "statement.html", shown, asdict(found))


async def _read(request: Request, kit: PagesKit, customer: str) -> Statement:
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


async def answer_csv(request: Request, kit: PagesKit, customer: str) -> Response:
    """Answer with the CSV of the asked period; raises as :func:`answer_statement` does."""
    _check_audited(kit)
    at_ms = period_in(request.query_params)
    parts = csv_of(kit.statement, customer, None if at_ms is None else from_ms(at_ms))
    first = await anext(parts)  # What fails at once has an answer of its own.

    async def stream() -> AsyncGenerator[str]:
        yield first
        async for part in parts:
            yield part

    headers = {**HEADERS, "content-disposition": 'attachment; filename="statement.csv"'}
    return StreamingResponse(stream(), headers=headers, media_type="text/csv")


def _check_audited(kit: PagesKit) -> None:
    if kit.settings.audit_url is None:
        raise ProblemDocumentError(_NOT_AUDITED)
