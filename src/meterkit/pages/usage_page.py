"""The usage page of a customer: an ASGI app that answers with HTML or JSON."""

from __future__ import annotations

import inspect
from datetime import timedelta
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import Route

from meterkit.allowed_origins import SendingPage, check_sender, origins_of
from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.meters import MICRO_USD
from meterkit.decisions.periods import DAY_MS, from_ms, to_ms
from meterkit.errors import MeterkitError
from meterkit.pages.other_plans import find_next_plan
from meterkit.pages.refusal_words import refusal_notice
from meterkit.pages.rendering import NO_PAGE, PageRenderer, problem_answer, static_routes, wants_json
from meterkit.pages.statement import answer_csv, answer_statement
from meterkit.pages.subject_figures import subject_bars
from meterkit.pages.usage_cards import budget_cards, meter_cards, shown_invoices, stored_types, total_so_far
from meterkit.pages.usage_figures import beyond_included, read_entitlements, usage_figures
from meterkit.problem_types import ProblemDocumentError
from meterkit.starlette import check_customer_of, without_address
from meterkit.store.customer_usage import hide_delivery_states
from meterkit.subscriptions.billing_problems import problem_of
from meterkit.subscriptions.billing_requests import customer_in
from meterkit.subscriptions.billing_routes import period_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

    from meterkit.allowed_origins import Origin
    from meterkit.catalog import Entitlement
    from meterkit.pages.rendering import Brand
    from meterkit.pages.usage_figures import PagesKit, UsageFigures


def usage_page(
    kit: PagesKit,
    *,
    customer: Callable[[Scope], str | Awaitable[str | None] | None],
    origins: Iterable[str],
    delivery_states: bool = True,
    subjects: bool = True,
    brand: Brand | None = None,
) -> Starlette:
    """Make the page on which customers see their own usage, an ASGI app.

    ``Mount("/usage", app=usage_page(kit, customer=…, origins=["https://app.example"]))``. The page is at
    ``/usage/``; with ``Accept: application/json`` it gives the same figures. In the plans file its line needs
    ``always``, so that a customer without remaining quantities can see it.

    Args:
        kit: has the customers.
        customer: returns the customer's id for a request's ASGI scope, or None: the response is 401. Sync or
            async; the app handles its exceptions.
        origins: of the app, such as ``https://app.example``. Scripts of other origins are refused.
        delivery_states: False leaves the states of delivery to Stripe (``pending`` to ``dead``) out of the
            JSON; the HTML never shows them.
        subjects: False leaves out usage by user, team and other subjects, in the statement too.
        brand: name, logo and accent colour of the app.

    Raises:
        MeterkitError: ``customer`` is missing, an origin is invalid, or jinja2 is not installed.
    """
    check_customer_of(customer, "a callable that returns the customer's id for an ASGI scope")
    pages = PageRenderer(brand)
    respond = partial(_answer_customer, kit=kit, customer=customer, origins=origins_of(origins))
    usage = partial(_answer_usage, kit=kit, pages=pages, delivery_states=delivery_states, subjects=subjects)
    statement = partial(answer_statement, kit=kit, pages=pages, subjects=subjects)
    statement_csv = partial(answer_csv, kit=kit, subjects=subjects)
    return Starlette(
        routes=[
            Route("/", partial(respond, answer=usage), methods=["GET"], name="usage page"),
            Route("/statement", partial(respond, answer=statement), methods=["GET"], name="statement"),
            Route("/statement.csv", partial(respond, answer=statement_csv), methods=["GET"]),
            *static_routes(brand),
        ]
    )


async def _answer_customer(
    request: Request,
    *,
    answer: Callable[..., Awaitable[Response]],
    kit: PagesKit,
    customer: Callable[[Scope], str | Awaitable[str | None] | None],
    origins: frozenset[Origin],
) -> Response:
    found = customer(request.scope)
    who = await found if inspect.isawaitable(found) else found
    try:
        known = without_address(who, kit.store)
        return await answer(request, customer=_customer_of(request, known, origins))
    except ProblemDocumentError as error:
        return problem_answer(error.problem)
    except MeterkitError as error:
        return problem_answer(problem_of(error))


def _customer_of(request: Request, who: object, origins: frozenset[Origin]) -> str:
    sender = SendingPage.of(request.headers)
    if sender.origin is not None:  # Links from other sites are allowed.
        check_sender(sender, origins)
    customer = customer_in(who)
    if any(asked != customer for asked in request.query_params.getlist("customer")):
        # The same response whether or not the other customer exists.
        raise ProblemDocumentError(NO_PAGE)
    return customer


async def _answer_usage(
    request: Request,
    *,
    kit: PagesKit,
    pages: PageRenderer,
    delivery_states: bool,
    subjects: bool,
    customer: str,
) -> Response:
    figures = await usage_figures(kit, customer, period_in(request.query_params), subjects=subjects)
    usage = figures["usage"] if delivery_states else hide_delivery_states(figures["usage"])
    refused = [limit._asdict() for limit in figures["refused_now"]]
    plain = {**figures, "usage": usage, "refused_now": refused}
    given: Mapping[str, Entitlement] = {} if wants_json(request) else await read_entitlements(kit, customer)
    return pages.answer(
        request, "usage.html", lambda: {**_page_values(kit, figures, given), **figures}, plain
    )


def _page_values(kit: PagesKit, figures: UsageFigures, given: Mapping[str, Entitlement]) -> dict[str, object]:
    """Return the values of the HTML besides the figures: display names, units, and cards.

    ``given``: the customer's entitlements.
    """
    usage = figures["usage"]
    catalog = kit.catalog.in_currency(usage["currency"])
    period, storage = usage["period"], figures["storage"]
    now_ms, cost = kit.store.now_ms(), figures["cost"]
    is_now = to_ms(period["start"]) <= now_ms < to_ms(period["end"])
    gauges = {name for name, meter in catalog.meters.items() if meter.kind == "gauge"}
    return {
        "titles": {name: meter.title for name, meter in catalog.meters.items()},
        "unit_of": {name: meter.unit for name, meter in catalog.meters.items()},
        "money_credits": {name: MICRO_USD for name, credit in catalog.credits.items() if credit.is_money},
        "balance_currency": BALANCE_CURRENCY,
        "plan_names": {plan.key: plan.name for plan in catalog.all_plans},
        "addon_names": {addon.key: addon.name for addon in catalog.all_addons},
        "gauges": gauges,
        "notices": [refusal_notice(catalog, one, from_ms(now_ms)) for one in figures["refused_now"]],
        "beyond": {
            name: beyond_included(counts) if name in gauges else counts["overage"]
            for name, counts in usage["meters"].items()
        },
        "portal_url": catalog.billing.portal_url,
        "audited": kit.settings.audit_url is not None,
        "is_now": is_now,
        "budget_cards": budget_cards(figures["budgets"], catalog.currency),
        "shown_invoices": shown_invoices(figures["invoices"]),
        "stored": [] if storage is None else stored_types(usage["meters"][storage["meter"]].get("types", {})),
        "subject_bars": subject_bars(figures["subjects"]),
        "cards": meter_cards(catalog, figures, given) if is_now else [],
        "total_cents": total_so_far(cost, catalog.find_plan(usage["plan"])),
        "next_plan": find_next_plan(catalog, figures["usage"]["plan"], figures["other_plans"]),
        "days_left": ceil((to_ms(period["end"]) - now_ms) / DAY_MS),
        "period_days": (period["end"] - period["start"]) / timedelta(days=1),
    }
