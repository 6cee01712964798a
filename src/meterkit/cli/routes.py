"""``meterkit routes``: match each route of an app with a route of the plans file."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterkit.asgi.app_routes import (
    ANY_METHOD,
    RequestDecider,
    deciders_of,
    match_lines,
    path_lines,
    routes_of,
)
from meterkit.asgi.route_matching import AMBIGUOUS, root_path_of_app
from meterkit.catalog import load
from meterkit.catalog.match_lines import WEBSOCKET, covers
from meterkit.catalog.notes import WEBHOOK_PATH, describe_webhook_refusal
from meterkit.catalog.route_notes import unasked_limits_of
from meterkit.catalog.routes import additions_of
from meterkit.cli.options import WrongUsageError, import_app, plans_path
from meterkit.cli.output import echo, print_note, print_records
from meterkit.cli.session import Session, command
from meterkit.subscriptions.webhooks.webhook_endpoint import WebhookEndpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.asgi.app_routes import RouteLines, UnusedLine
    from meterkit.catalog import Route

commands = typer.Typer()


@command(commands, unused=("redis",))
def routes(
    session: Session,
    app: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The app, as for uvicorn: main:app.")],
    *,
    factory: Annotated[
        bool, typer.Option("--factory", help="APP is a function that takes no arguments and returns the app.")
    ] = False,
    readings: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Show each reading of a path with its plan route: '/files/a/../b' or 'POST /v1/chat/'.",
        ),
    ] = None,
) -> None:
    """Show which plan route meters each route of the app.

    Plan routes are the `routes` of the plans file: that of the app's MeterMiddleware, or --plans if the app
    has none. Also prints limits that no plan route checks, and billing routes and Stripe webhooks that one
    may refuse. Exits 1 if a route is unmetered, or if a plan route matches no route.
    """
    # The store of the app's kit does not matter here.
    logging.getLogger("meterkit").setLevel(logging.ERROR)
    imported = import_app(app, is_factory=factory)
    if not factory and _needs_no_arguments(imported):
        raise WrongUsageError(f"{app} is a function without arguments; if it returns the app, add --factory")
    found = routes_of(imported) if readings is None else []
    deciders = deciders_of(imported)
    otherwise = None
    if not deciders:
        path = plans_path(session.plans)
        otherwise = RequestDecider(load(path), root_path_of_app(imported))
        print_note(
            f"{app} has no MeterMiddleware; these are the plan routes of {path} that its routes would match"
        )
    elif session.plans is not None:
        print_note("--plans is ignored: the app's MeterMiddleware has a plans file")
    if readings is not None:
        _show_readings(session, otherwise or deciders[0], readings)
        return
    taken, idle = match_lines(found, otherwise)
    used = deciders if otherwise is None else [otherwise]
    catalogs = {id(one.catalog): one.catalog for one in used}
    unasked = [str(note) for catalog in catalogs.values() for note in unasked_limits_of(catalog)]
    refused = [note for one in taken if (note := _refused_webhook(one)) is not None]
    unpaid, open_ = _refused_billing(taken), _open_websockets(taken)
    shown = {
        "routes": [_record(one) for one in taken],
        "idle_lines": [_idle_record(one) for one in idle],
        "unasked_limits": unasked,
        "refused_webhooks": refused,
        "refused_billing": unpaid,
        "open_websockets": open_,
    }
    session.show(shown, lambda: _print_routes(taken, idle, [*unasked, *refused, *unpaid, *open_]))
    raise typer.Exit(int(bool(idle) or any(one.line is None for one in taken)))


def _needs_no_arguments(found: Any) -> bool:
    """Whether this is a function that may return the app; an ASGI app takes three arguments."""
    if not inspect.isfunction(found):
        return False
    try:
        inspect.signature(found).bind()
    except TypeError:
        return False
    return True


def _show_readings(session: Session, decider: RequestDecider, request: str) -> None:
    """Print the readings of a path, and what decides the request."""
    method, _, path = request.strip().rpartition(" ")
    method = method.strip().upper() or "GET"
    found, line = path_lines(decider, method, path)
    rows = [
        {
            # A decoded path may contain terminal escapes.
            "path": ascii(one.path)[1:-1],
            "reading": one.reading,
            "line": None if one.line is None else one.line.match,
            "metered": _describe(one.line),
        }
        for one in found
    ]
    is_refused = line is AMBIGUOUS
    shown = {
        "method": method,
        "path": path,
        "line": None if line is None or is_refused else line.match,
        "metered": "refused with 400" if is_refused else _describe(line),
        "readings": rows,
    }
    session.show(shown, lambda: _print_readings(rows, line))


def _describe(line: Route | None) -> str:
    return "passes undecided" if line is None else describe_line(line)


def _print_readings(rows: Sequence[Mapping[str, object]], line: Route | None) -> None:
    print_records([{**row, "line": row["line"] or ""} for row in rows], empty="")
    if line is None:
        typer.echo("no plan route matches: the request passes undecided")
    elif line is AMBIGUOUS:
        typer.echo("the readings match different plan routes: the request is refused with 400")
    else:
        typer.echo(f"decided by: {line.match}")


def _record(taken: RouteLines) -> dict[str, object]:
    return {
        "methods": list(taken.methods),
        "host": taken.route.host,
        "path": taken.route.path,
        "line": None if taken.line is None else taken.line.match,
        "adds": _additions(taken),
        "metered": _metered(taken),
        "parts": [{"line": line.match, "metered": describe_line(line)} for line in taken.parts],
    }


def _additions(taken: RouteLines) -> dict[str, str]:
    """Return the meters that requests of a route can add to, each with the key that says so."""
    decider = taken.route.decider
    if taken.line is None or decider is None:
        return {}
    return dict(additions_of(taken.line, decider.catalog.meters))


def _idle_record(idle: UnusedLine) -> dict[str, object]:
    return {"plans_file": idle.catalog.source, "line": idle.line.match, "why": _why(idle)}


def _metered(taken: RouteLines) -> str:
    if taken.line is not None:
        return describe_line(taken.line)
    return "unmetered" if taken.route.decider is not None else "unmetered: no MeterMiddleware before it"


def _refused_webhook(taken: RouteLines) -> str | None:
    """Name a plan route that may refuse Stripe's webhooks; None: it serves them, or takes none."""
    line, decider = taken.line, taken.route.decider
    if line is None or decider is None or not isinstance(taken.route.app, WebhookEndpoint):
        return None
    anonymous = decider.catalog.anonymous
    path, plan = taken.route.path, None if anonymous is None else anonymous.plan
    refusal = describe_webhook_refusal(line, path, plan)
    return refusal and f"the plan route {line.match!r} takes Stripe's webhooks, and {refusal}"


def _refused_billing(taken: Sequence[RouteLines]) -> list[str]:
    """Name the plan routes that may refuse the billing routes to a customer who wants to pay."""
    hooks = {one.route.path for one in taken if isinstance(one.route.app, WebhookEndpoint)}
    checkouts = {f"{path.removesuffix(WEBHOOK_PATH)}/checkout" for path in hooks}
    return [
        f"the plan route {line.match!r} takes the billing routes, and may refuse them to customers who have"
        f" used up a limit or owe; {_billing_cure(path.removesuffix('/checkout'))}"
        for one in taken
        if (path := one.route.path) in checkouts and (line := one.line) and not (line.always or line.exempt)
    ]


def _billing_cure(mount: str) -> str:
    always = f'`{{match: "{mount or "/billing"}/{{path:path}}", always: true}}`'
    # At the root that line would free the whole app of its limits.
    return f"write before it {always}" if mount else f"mount them at /billing, and write before it {always}"


def _open_websockets(taken: Sequence[RouteLines]) -> list[str]:
    """Name each websocket below the path of a gated plan route, whose feature does not hold for it."""
    found: list[str] = []
    for one in taken:
        line, decider, path = one.line, one.route.decider, one.route.path
        is_open = line is None or (line.feature is None and not line.exempt)
        if WEBSOCKET not in one.methods or decider is None or not is_open:
            continue
        for gate in decider.catalog.routes:
            if gate.feature and gate.method != WEBSOCKET and covers((None, gate.path), (None, path)):
                cure = f'`{{match: "WS {path}", feature: {gate.feature}}}`'
                found.append(
                    f"the websocket {path} is below the plan route {gate.match!r}, whose feature does not"
                    f" hold for websockets; to gate it, write before it {cure}"
                )
                break
    return found


def _print_routes(taken: Sequence[RouteLines], idle: Sequence[UnusedLine], notes: Sequence[str]) -> None:
    rows = [row for one in taken for row in _rows(one)]
    print_records(rows, empty="the app has no routes")
    for one in idle:
        echo(f"{one.catalog.source}: the plan route {one.line.match!r} matches no route: {_why(one)}")
    for note in notes:
        echo(f"note: {note}")
    unmetered = sum(one.line is None for one in taken)
    if unmetered:
        echo(f'unmetered: {unmetered}; to meter them, end `routes` with a line such as {{match: "*", …}}')


def _rows(taken: RouteLines) -> list[dict[str, object]]:
    methods, path = _methods(taken), f"{taken.route.host or ''}{taken.route.path}"
    parts: list[tuple[Route | None, str]] = [(line, describe_line(line)) for line in taken.parts]
    rows = [*parts, (taken.line, _metered(taken))]
    return [
        {
            "method": methods if not nth else "",
            "path": path if not nth else "",
            "plan route": "" if line is None else line.match,
            "metered": metered,
        }
        for nth, (line, metered) in enumerate(rows)
    ]


def _methods(taken: RouteLines) -> str:
    methods = taken.methods
    if set(methods) == set(ANY_METHOD):
        return "any"
    return ",".join(method for method in methods if method != "HEAD" or "GET" not in methods)


def _why(idle: UnusedLine) -> str:
    if idle.is_covered:
        return "earlier plan routes match all of its requests"
    return "the app has no route for it"


def describe_line(line: Route) -> str:
    """Describe a line in short: ``feature full_ai; consume 1 requests; usage auto``."""
    if line.exempt:
        return "exempt"
    parts = ["always"] if line.always else []
    parts += [f"feature {line.feature}"] if line.feature else []
    for verb, quantities in (
        ("consume", line.consume),
        ("per message", line.per_message),
        ("grow", line.grow),
    ):
        parts += [f"{verb} {_quantities(quantities)}"] if quantities else []
    parts += [f"rate {rate.limit:,} per {rate.window}" for rate in line.rates]
    parts += [f"records {', '.join(line.records)}"] if line.records else []
    parts += [f"usage {line.usage}"] if line.usage != "none" else []
    parts += [f"reserve {', '.join(one.meter for one in line.reserve)}"] if line.reserve else []
    parts += [f"storage {line.storage_meter}"] if line.storage_meter else []
    parts += [line.enforcement] if line.enforcement != "on" else []
    return "; ".join(parts) or "decided, counts nothing"


def _quantities(quantities: Mapping[str, int]) -> str:
    return ", ".join(f"{quantity:,} {meter}" for meter, quantity in quantities.items())
