"""The usage page of a customer: an ASGI app that answers with HTML or JSON."""

from __future__ import annotations

import inspect
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from meterkit.answers import ProblemDocument, ProblemType
from meterkit.decisions.periods import iso, to_ms
from meterkit.errors import MeterkitError
from meterkit.pages.figures import beyond_included, usage_figures
from meterkit.pages.rendering import HEADERS, STATIC, Pages, wants_json
from meterkit.starlette import check_customer_of
from meterkit.subscriptions.billing_answers import check_sender, customer_in
from meterkit.subscriptions.billing_requests import origins_of
from meterkit.subscriptions.billing_routes import period_in
from meterkit.subscriptions.problem_documents import ProblemDocumentError, problem_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.requests import Request
    from starlette.types import Scope

    from meterkit.pages.figures import PagesKit, UsageFigures
    from meterkit.subscriptions.billing_requests import Origin

_NOT_FOUND: Final = ProblemType(404, "about:blank", "Not Found")


def usage_page(
    kit: PagesKit,
    *,
    customer: Callable[[Scope], str | Awaitable[str | None] | None],
    origins: Iterable[str],
) -> Starlette:
    """Make the page on which customers see their own usage, an ASGI app.

    ``Mount("/usage", app=usage_page(kit, customer=…, origins=["https://app.example"]))``. The page is at
    ``/usage/``; with ``Accept: application/json`` it gives the same figures. In the plans file its line wants
    ``always``, so that a customer who has used everything can see it.

    Args:
        kit: whose customers they are.
        customer: from a request's ASGI scope to the customer's id, or None: then the answer is 401. Sync or
            async; the app answers what it raises.
        origins: of the app, such as ``https://app.example``. Scripts of other origins are refused.

    Raises:
        MeterkitError: ``customer`` is missing, an origin is none, or jinja2 is not installed.
    """
    check_customer_of(customer, "a callable that gives the customer's id for an ASGI scope")
    page = _UsagePage(kit, customer, origins_of(origins), Pages())
    return Starlette(
        routes=[
            Route("/", page.respond, methods=["GET"], name="usage page"),
            Mount("/static", app=StaticFiles(directory=STATIC)),
        ]
    )


class _UsagePage:
    def __init__(
        self,
        kit: PagesKit,
        customer: Callable[[Scope], str | Awaitable[str | None] | None],
        origins: frozenset[Origin],
        pages: Pages,
    ) -> None:
        self._kit = kit
        self._customer = customer
        self._origins = origins
        self._pages = pages

    async def respond(self, request: Request) -> Response:
        found = self._customer(request.scope)
        who = await found if inspect.isawaitable(found) else found
        try:
            return await self._answer(request, who)
        except ProblemDocumentError as error:
            return _told(error.problem)
        except MeterkitError as error:
            return _told(problem_of(error))

    async def _answer(self, request: Request, who: object) -> Response:
        sent_by = request.headers.get("origin")
        if sent_by is not None:
            check_sender(sent_by, request.headers.get("host", ""), self._origins)
        customer = customer_in(who)
        if any(asked != customer for asked in request.query_params.getlist("customer")):
            # The same answer for a customer that exists and one that does not.
            raise ProblemDocumentError(ProblemDocument(kind=_NOT_FOUND, detail="There is no such page."))
        figures = await usage_figures(self._kit, customer, period_in(request.query_params))
        if wants_json(request.headers.get("accept", "")):
            body = json.dumps(figures, separators=(",", ":"), default=iso)
            return Response(body, headers=HEADERS, media_type="application/json")
        shown = {**_wording(self._kit, figures), **figures}
        return Response(self._pages.render("usage.html", shown), headers=HEADERS, media_type="text/html")


def _wording(kit: PagesKit, figures: UsageFigures) -> dict[str, object]:
    """What the HTML says beside the figures: names for people, and what they are names of."""
    catalog, period = kit.catalog, figures["usage"]["period"]
    gauges = {name for name, meter in catalog.meters.items() if meter.kind == "gauge"}
    return {
        "titles": {name: meter.title for name, meter in catalog.meters.items()},
        "unit_of": {name: meter.unit for name, meter in catalog.meters.items()},
        "plan_names": {key: plan.name for key, plan in catalog.plans.items()},
        "gauges": gauges,
        "beyond": {
            name: beyond_included(counts) if name in gauges else counts["overage"]
            for name, counts in figures["usage"]["meters"].items()
        },
        "portal_url": catalog.billing.portal_url,
        "audited": kit.settings.audit_url is not None,
        "is_now": to_ms(period["start"]) <= kit.store.now_ms() < to_ms(period["end"]),
        "period_days": (period["end"] - period["start"]) / timedelta(days=1),
    }


def _told(problem: ProblemDocument) -> Response:
    return Response(problem.body, problem.kind.status, headers={**HEADERS, **problem.headers})
