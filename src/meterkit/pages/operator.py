"""The operator pages, an ASGI app: figures over all customers, lists behind them, and redrives.

Posts of other origins are refused.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from meterkit.allowed_origins import SendingPage
from meterkit.csv_text import csv_text
from meterkit.errors import CustomerError, MeterkitError, SettingsError
from meterkit.http_bodies import read_body
from meterkit.insights.overview.overview import CustomerOverview
from meterkit.pages.attention import HealthReader, attention_items
from meterkit.pages.operator_figures import (
    FIGURE_COLUMNS,
    Section,
    activity_sections,
    customer_sections,
    delivered_section,
    figure_rows,
    figures_json,
    live_sections,
    revenue_sections,
    trend_tiles,
)
from meterkit.pages.operator_lists import (
    DAY_MINUTES,
    MINUTE_MS,
    PageRequest,
    Rows,
    as_of,
    book_lists,
    customer_lists,
    revenue_lists,
)
from meterkit.pages.operator_queues import QUEUES, queue_lists, redrive
from meterkit.pages.rendering import (
    HEADERS,
    NO_PAGE,
    PageRenderer,
    as_json,
    json_answer,
    problem_answer,
    static_routes,
    wants_json,
)
from meterkit.problem_types import ProblemDocument, ProblemDocumentError, ProblemType
from meterkit.store.daily_counts import DEGRADED_DAYS
from meterkit.store.input_checks import check_text, is_customer
from meterkit.subscriptions.billing_problems import invalid

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import Scope

    from meterkit.insights.overview.tables import OverviewSnapshot
    from meterkit.pages.operator_figures import TrendTile
    from meterkit.pages.operator_lists import OperatorList, Row
    from meterkit.pages.rendering import Brand
    from meterkit.pages.usage_figures import PagesKit

_BYTES_MAX: Final = 1 << 20
_FIELDS_MAX: Final = 12_000
_FORM: Final = "application/x-www-form-urlencoded"


async def form_of(request: Request) -> Mapping[str, Sequence[str]]:
    """The fields of a form, each with its values.

    Raises:
        ProblemDocumentError: the body is no form, or is too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM:
        raise _refusal("media-type-not-supported", f"Send a form, as {_FORM}.")
    body = await read_body(request.scope, request.receive, most=_BYTES_MAX)
    if body is None:
        raise _refusal("request-too-large", f"Send at most {_BYTES_MAX} bytes.", limit=_BYTES_MAX)
    try:
        return parse_qs(body.decode(), max_num_fields=_FIELDS_MAX, errors="strict")
    except ValueError:
        raise _refusal("request-invalid", "The form cannot be read.") from None


def _refusal(code: str, detail: str, **members: object) -> ProblemDocumentError:
    return ProblemDocumentError(ProblemDocument.of(code, detail, members))


def _invalid(field: str, message: str) -> ProblemDocumentError:
    return ProblemDocumentError(invalid([{"field": field, "message": message}]))


_ROWS: Final = 100
_REFUSED_MAX: Final = 5
_AGAIN_S: Final = 10
_FORBIDDEN: Final = ProblemType(403, "about:blank", "Forbidden")
_MEDIA: Final = {"csv": "text/csv", "json": "application/json"}


def operator_pages(
    kit: PagesKit,
    *,
    allowed: Callable[[Scope], str | Awaitable[str | None] | None],
    brand: Brand | None = None,
) -> Starlette:
    """Make the pages on which operators see all customers, an ASGI app.

    ``Mount("/operator", app=operator_pages(kit, allowed=…))``. The pages are at ``/operator/``; with
    ``Accept: application/json`` they give the same figures. In the plans file their line needs ``exempt``:
    an operator is not a customer.

    Args:
        kit: has the customers.
        allowed: returns the operator's name for a request's ASGI scope, or None: the response is 403. Sync
            or async; the app handles its exceptions. Actions are recorded with the name.
        brand: name, logo and accent colour of the app.

    Raises:
        MeterkitError: ``allowed`` is missing, or jinja2 is not installed.
    """
    if not callable(allowed):
        raise MeterkitError(
            f"allowed: found {allowed!r:.80}; allowed is a callable that returns the operator's name for an"
            " ASGI scope, or None for all others"
        )
    pages = _OperatorPages(kit, PageRenderer(brand))
    endpoints = (
        ("/", "GET", "operator", pages.overview),
        ("/figures.{format}", "GET", "operator figures", pages.figures),
        ("/redrive", "POST", "operator redrive", pages.redrive),
        ("/{name}.{format}", "GET", "operator export", pages.export),
        ("/{name}", "GET", "operator list", pages.listing),
    )
    routes = [
        Route(path, partial(_answer_operator, allowed, answer), methods=[method], name=name)
        for path, method, name, answer in endpoints
    ]
    return Starlette(routes=[*static_routes(brand), *routes])


async def _answer_operator(
    allowed: Callable[[Scope], str | Awaitable[str | None] | None],
    answer: Callable[[Request, str], Awaitable[Response]],
    request: Request,
) -> Response:
    found = allowed(request.scope)
    name = await found if inspect.isawaitable(found) else found
    try:
        return await answer(request, _check_operator_name(name))
    except ProblemDocumentError as error:
        return problem_answer(error.problem)
    except CustomerError:
        return problem_answer(NO_PAGE)
    except SettingsError as error:
        # This deployment has no such figures, and asking again does not help.
        return problem_answer(ProblemDocument(kind=NO_PAGE.kind, detail=str(error)))
    except MeterkitError as error:
        # Operators may see the error: it says what to set, or what does not answer.
        return problem_answer(ProblemDocument.of("temporary-reduced-capacity", str(error), wait_s=_AGAIN_S))


class _OverviewReading(NamedTuple):
    """All figures of the overview; ``made`` is the last snapshot, if there is one."""

    sections: Sequence[Section]
    made: OverviewSnapshot | None
    degraded: Mapping[int, int]


class _OperatorPages:
    """The endpoints of the operator pages."""

    def __init__(self, kit: PagesKit, pages: PageRenderer) -> None:
        self._kit = kit
        self._pages = pages
        self._health = HealthReader(kit)
        self._overview = overview = CustomerOverview(kit.store, kit.settings)
        lists = *customer_lists(kit, overview), *revenue_lists(overview), *book_lists(kit, overview)
        self._lists = {listing.name: listing for listing in (*lists, *queue_lists(kit))}

    async def overview(self, request: Request, name: str) -> Response:
        read = await self._read()
        currencies, currency = self._choose_currency(request, read.sections)
        sections = [one for one in read.sections if one.currency in {"", currency or one.currency}]
        dated = None if wants_json(request) else await self._health.read()
        refused = Rows([])
        if dated is not None and read.made is not None and read.made.figures["customers"]["refused"]:
            refused = await self._lists["refused"].read(PageRequest("", "", _REFUSED_MAX))

        def show() -> Mapping[str, object]:
            report = None if dated is None else dated.report
            return {
                "operator": name,
                "sections": sections,
                "currencies": currencies,
                "currency": currency,
                "refused": refused,
                "attention": attention_items(sections, report),
                "checked": dated,
                "tiles": self._make_tiles(read, currency),
            }

        asked = "currency" in request.query_params
        plain = figures_json(sections if asked else read.sections)
        return self._pages.answer(request, "operator/overview.html", show, plain)

    def _choose_currency(self, request: Request, sections: Sequence[Section]) -> tuple[Sequence[str], str]:
        """Find the currencies that the page can show, and the one that it shows.

        Both are empty for a plans file of one currency without a choice: all figures are shown.
        """
        catalog, asked = self._kit.catalog, request.query_params.get("currency")
        others = sorted({one.currency for one in sections} - {"", *catalog.currencies})
        currencies = (*catalog.currencies, *others)
        if asked is not None and asked not in currencies:
            raise _invalid("currency", f"must be one of {', '.join(currencies)}")
        if asked is None and len(catalog.currencies) == 1:
            return (), ""
        return currencies, asked or catalog.currency

    async def figures(self, request: Request, _: str) -> Response:
        sections = (await self._read()).sections
        if _export_format(request) == "json":
            return json_answer(figures_json(sections))
        body = csv_text([column.name for column in FIGURE_COLUMNS], figure_rows(sections), head=True)
        return Response(body, headers=_download("figures.csv"), media_type=_MEDIA["csv"])

    async def listing(self, request: Request, name: str) -> Response:
        listing, of = self._listing(request)
        page_request = PageRequest(of, request.query_params.get("after", ""), _ROWS)
        found = await listing.read(page_request)
        plain = {"rows": found.rows, "after": found.after}
        shown = {
            "operator": name,
            "listing": listing,
            "title": listing.title.format(of=of),
            "of": of,
            **plain,
            "note": found.note,
            "is_first": not page_request.after,
        }
        return self._pages.answer(request, "operator/list.html", lambda: shown, plain)

    async def export(self, request: Request, _: str) -> Response:
        listing, of = self._listing(request)
        kind = _export_format(request)
        pages = listing.pages(of)
        # Read the first page before the response begins, so that an error can still be a problem document.
        first = await anext(pages)
        write = _csv_parts if kind == "csv" else _json_parts
        return StreamingResponse(
            write(listing, first, pages),
            headers=_download(f"{listing.name}.{kind}"),
            media_type=_MEDIA[kind],
        )

    async def redrive(self, request: Request, name: str) -> Response:
        if not SendingPage.of(request.headers).is_allowed():
            raise _refusal("origin-not-allowed", "Only this page may send this request.")
        form = await form_of(request)
        queue = QUEUES.get(form.get("queue", [""])[0])
        if queue is None:
            raise _invalid("queue", f"must be one of {', '.join(QUEUES)}")
        ids, reason = form.get("id", ()), " ".join(form.get("reason", ()))
        if not ids:
            raise _invalid("id", "is missing: select entries to redrive")
        try:
            check_text("reason", reason, may_be_empty=True)
        except MeterkitError as error:
            raise _invalid("reason", str(error)) from None
        done = await redrive(self._kit, queue, ids, operator=name, reason=reason)
        shown = {"operator": name, "queue": queue, **done._asdict()}
        return self._pages.answer(request, "operator/redriven.html", lambda: shown, done._asdict())

    async def _read(self) -> _OverviewReading:
        """Read the last snapshot, backlogs and failures."""
        made, note = None, "The first figures are being computed. Reload this page in a minute."
        try:
            made = await self._overview.last()
        except SettingsError as error:
            note = f"Figures over all customers are missing: {error}."
        degraded = await self._kit.store.degraded.read(DEGRADED_DAYS)
        sections = [Section("customers", "Customers", (), note)] if made is None else self._sections_of(made)
        sections += await live_sections(self._kit.store, degraded)
        return _OverviewReading(sections, made, degraded)

    def _sections_of(self, made: OverviewSnapshot) -> list[Section]:
        figures, catalog = made.figures, self._kit.catalog
        first, *others = customer_sections(figures["customers"], catalog)
        return [
            first._replace(note=as_of(made)),
            *others,
            *revenue_sections(figures["revenue"], catalog),
            *activity_sections(figures["activity"], catalog),
            delivered_section(figures["customers"]),
        ]

    def _make_tiles(self, read: _OverviewReading, currency: str) -> Sequence[TrendTile]:
        waiting = {
            figure.name: int(figure.value or 0)
            for section in read.sections
            for figure in section.figures
            if section.name == "outbox"
        }
        figures = None if read.made is None else read.made.figures
        today = self._kit.store.now_ms() // (DAY_MINUTES * MINUTE_MS)
        return trend_tiles(figures, read.degraded, waiting, self._kit.catalog, today, currency=currency)

    def _listing(self, request: Request) -> tuple[OperatorList, str]:
        listing = self._lists.get(request.path_params["name"])
        of = request.query_params.get("of", "")
        if listing is None or (listing.needs_of and not of):
            raise ProblemDocumentError(NO_PAGE)
        return listing, of


def _check_operator_name(found: object) -> str:
    """Check the operator's name, which ledgers record.

    Raises:
        ProblemDocumentError: there is none.
        MeterkitError: it is not a valid name.
    """
    if found is None or found is False:
        raise ProblemDocumentError(ProblemDocument(kind=_FORBIDDEN, detail="This page is for operators."))
    if not is_customer(found):
        raise MeterkitError(
            f"allowed: returned a value of type {type(found).__name__}; an operator's name is a"
            " text of 1 to 256"
            " bytes without control characters"
        )
    return found


def _export_format(request: Request) -> str:
    kind: str = request.path_params["format"]
    if kind not in _MEDIA:
        raise ProblemDocumentError(NO_PAGE)
    return kind


async def _csv_parts(
    listing: OperatorList, first: Sequence[Row], others: AsyncGenerator[Sequence[Row]]
) -> AsyncGenerator[str]:
    names = [column.name for column in listing.columns]
    yield csv_text(names, first, head=True)
    async for rows in others:
        yield csv_text(names, rows, head=False)


async def _json_parts(
    _: OperatorList, first: Sequence[Row], others: AsyncGenerator[Sequence[Row]]
) -> AsyncGenerator[str]:
    yield f"[{as_json(first)[1:-1]}"
    async for rows in others:
        yield f",{as_json(rows)[1:-1]}" if rows else ""
    yield "]"


def _download(name: str) -> dict[str, str]:
    return {**HEADERS, "content-disposition": f'attachment; filename="{name}"'}
