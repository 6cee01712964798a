"""The whole plans file: its keys, its JSON Schema, its checks, and the catalog it becomes."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.catalog.addons import AddonTable, build_addons
from meterkit.catalog.billing import (
    ALLOTMENTS,
    ANONYMOUS_SHAPE,
    ENFORCEMENTS,
    HEADERS,
    STORE_FAILURES,
    AnonymousTable,
    BillingTable,
    DunningTable,
    build_anonymous,
    build_dunning,
)
from meterkit.catalog.budgets import build_budgets
from meterkit.catalog.credits import (
    CreditTable,
    ModelPricesTable,
    build_charged_meters,
    build_credits,
    build_model_prices,
    check_prices_by_currency,
)
from meterkit.catalog.currencies import (
    CURRENCIES_SHAPE,
    CURRENCY,
    refuse_repeated_currencies,
    written_currencies,
)
from meterkit.catalog.errors import FilePlace, Problems, nearest, unknown
from meterkit.catalog.meters import MeterTable, build_meters, check_features, refuse_reported_usage
from meterkit.catalog.models import Billing, Catalog, Enforcement, Plan, PlanGrant, Route
from meterkit.catalog.notes import (
    note_addons_in_trials,
    note_anonymous_plan,
    note_billing_lines,
    note_default_plan,
    note_equal_ranks,
    note_idle_addons,
    note_repeated_tiers,
    note_unfed_meters,
    note_unlisted_addons,
    note_unpriced_models,
    note_webhook_lines,
)
from meterkit.catalog.notify import NotifyTable, build_notify
from meterkit.catalog.plans import (
    DeclaredNames,
    PlanTable,
    build_plans,
    build_price_rows,
    find_overage_tables,
    find_price_tables,
    with_inheritance,
)
from meterkit.catalog.route_notes import (
    asked_meters,
    note_client_choices,
    note_unasked_limits,
    note_unfed_reserves,
    note_unfilled_token_meters,
    note_unheld_money,
    note_unpaid_meters,
)
from meterkit.catalog.routes import RouteTable, build_routes, note_shadowed_prices, reads_tokens
from meterkit.catalog.routes_by_model import check_quantities_fit, mark_model_readers, refuse_unsaid_models
from meterkit.catalog.storage import StorageTable, build_storage
from meterkit.catalog.value_parsers import NAME
from meterkit.catalog.value_shapes import Key, ListOf, MapOf, Table, WordChoice, drop_refused
from meterkit.catalog.yaml_tree import SIZE_MAX, Fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.catalog.credit_values import Credit
    from meterkit.catalog.errors import Note
    from meterkit.catalog.models import Meter

# Where the file lies, how a route's match is spaced, what there is to note, and what follows from the rest
# change nothing.
_SPELLING: Final[Mapping[type, tuple[str, ...]]] = {
    Catalog: ("source", "content_hash", "notes", "has_amounts", "former_plans", "former_addons"),
    Route: (
        "match",
        "is_plain",
        "is_buffered",
        "is_poll",
        "further_features",
        "reads_model",
        "keeps_request",
        "refuses_unpriced",
    ),
}
# What files without these keys say is the meaning that they had before there were such keys.
_NEWER: Final[Mapping[type, Mapping[str, object]]] = {
    Catalog: {"addons": {}, "other_currencies": {}},
    Plan: {"addons": (), "bought": ()},
    PlanGrant: {"every": "period", "rollover": None},
    Route: {"paths": None},
}


def digest(catalog: Catalog) -> Catalog:
    """The catalog with its ``content_hash``."""
    meaning = json.dumps(catalog, default=to_plain_value, sort_keys=True, separators=(",", ":"))
    return replace(catalog, content_hash=hashlib.blake2b(meaning.encode(), digest_size=8).hexdigest())


def to_plain_value(value: Any) -> object:
    """Convert sets, fractions and dataclasses of :mod:`meterkit.catalog.models` to JSON values."""
    if isinstance(value, frozenset):
        return sorted(cast("frozenset[str]", value))
    if isinstance(value, Fraction):
        return str(value)
    kind = cast("type[object]", type(value))
    spelling, newer = _SPELLING.get(kind, ()), _NEWER.get(kind, {})
    found = {one.name: getattr(value, one.name) for one in fields(value) if one.name not in spelling}
    return {name: given for name, given in found.items() if name not in newer or given != newer[name]}


class PlansFile(Table, what="a plans file"):
    """The keys of the top level."""

    version = Key(WordChoice(("1",)), "Version of the file's format: 1.", name="schema", required=True)
    currencies = Key(
        CURRENCIES_SHAPE,
        "Currency of all prices; or a list of currencies, the first one the default: each amount is then a"
        " map with all of them.",
        name=CURRENCY,
        required=True,
    )
    default_plan = Key(NAME, "The plan of customers never seen before.", required=True)
    anonymous = Key(ANONYMOUS_SHAPE, "Requests without a customer: deny (default) or a plan.")
    meters = Key(MapOf(NAME, MeterTable, "meters"), "What is counted.", required=True)
    features = Key(ListOf(NAME, "features"), "What a plan has or does not have.")
    prices = Key(
        MapOf(NAME, ModelPricesTable, "prices by model"), "What units cost by model; credits name them."
    )
    credits = Key(MapOf(NAME, CreditTable, "credits"), "Prepaid units that meters may be paid with.")
    routes = Key(ListOf(RouteTable, "routes"), "How requests are decided; the first match wins.")
    plans = Key(MapOf(NAME, PlanTable, "plans", 1), "What each plan costs and gives.", required=True)
    addons = Key(MapOf(NAME, AddonTable, "add-ons"), "What customers may buy beside a plan.")
    billing = Key(BillingTable, "What is billed, and when changes take effect.")
    dunning = Key(DunningTable, "What happens after failed payments.")
    storage = Key(StorageTable, "Stored objects that count for a gauge.")
    notify = Key(NotifyTable, "Events that are sent by webhook and by e-mail.")
    enforcement = Key(ENFORCEMENTS, "on (default) or shadow: decide, but never deny.")
    on_store_failure = Key(STORE_FAILURES, "allow (default) or deny.")
    headers = Key(HEADERS, "ietf (default), x-ratelimit, both or none.")
    allotment = Key(ALLOTMENTS, "How long requests may be admitted in advance: off (default) or 250ms.")


def json_schema() -> dict[str, object]:
    """A JSON Schema (draft 2020-12) of plans files.

    It knows every key, word and spelling; what names must exist and which quantities fit each
    other only :func:`meterkit.catalog.load` knows.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:meterkit:schema:plans:1",
        "title": "meterkit plans file",
        "description": "What a service counts, how its routes are decided, and what its plans give.",
        **PlansFile.schema(),
    }


def load(path: str | os.PathLike[str]) -> Catalog:
    """The catalog that the plans file at ``path`` describes.

    Raises:
        PlansError: the file cannot be read, or something in it is wrong; with all that is wrong.
    """
    source = os.fspath(path)
    problems = Problems(source)
    try:
        with Path(source).open("rb") as file:
            data = file.read(SIZE_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        problems.refuse(
            FilePlace(0, 0, ""), f"the plans file cannot be read: {reason}{_missing_file_hint(source)}"
        )
        raise problems.error() from error
    return loads(data, source=source)


def _missing_file_hint(source: str) -> str:
    """Hint for a missing plans file: the directory searched, a similar name, and the setting."""
    path, where, near = Path(source), "", ""
    try:
        if not path.is_absolute():
            where = f"; looked for in {Path.cwd()}"
        if not path.exists():
            names = {found.stem: found.name for found in islice(path.parent.glob("*.y*ml"), 1000)}
            meant = nearest(path.stem, names)
            near = f"; did you mean {names[meant]!r}?" if meant else ""
    except (OSError, ValueError):
        pass  # The directory is gone or unreadable, or this is no path at all.
    return f"{where}; name another by MeterKit(…) or --plans, or if these name none by METERKIT_PLANS{near}"


def loads(text: str | bytes, *, source: str = "plans.yaml") -> Catalog:
    """The catalog that ``text`` describes; ``source`` names it in messages.

    Raises:
        PlansError: something is wrong; with all that is wrong, in the order of the file.
    """
    from meterkit.catalog.yaml_reader import parse  # noqa: PLC0415 - the first plans file imports PyYAML

    problems = Problems(source)
    root = with_inheritance(parse(text, problems=problems), problems)
    codes = problems.currencies = written_currencies(root)
    problems.currency = codes[0] if codes else ""
    catalog = _read_amounts(root, problems)
    others: dict[str, Catalog | None] = {}
    for code in codes[1:]:
        found = Problems(source, codes, code)
        others[code] = _read_amounts(root, found)
        problems.extend(found)
    if problems or catalog is None:
        raise problems.error()
    return _join_currencies(catalog, drop_refused(others), problems.notes)


def _read_amounts(root: Fields, problems: Problems) -> Catalog | None:
    """The file with its amounts in the currency of ``problems``."""
    values = PlansFile.read(root, problems)
    return _build_catalog(values, problems) if values else None


def _join_currencies(catalog: Catalog, others: Mapping[str, Catalog], notes: tuple[Note, ...]) -> Catalog:
    """The catalog with those of its other currencies, which share all that is not an amount."""
    whole = digest(replace(catalog, other_currencies=others, notes=notes))
    shared = {
        code: replace(
            whole,
            currency=code,
            meters=other.meters,
            plans=other.plans,
            addons=other.addons,
            other_currencies={},
        )
        for code, other in others.items()
    }
    return replace(whole, other_currencies=shared)


def _build_catalog(values: PlansFile, problems: Problems) -> Catalog:
    declared = _declare_names(values, problems)
    known, credits_, addons = declared.meters, declared.credits, drop_refused(declared.addons)
    written_plans = values.plans or {}
    money = _build_billing(values)
    built_plans = build_plans(written_plans, declared, problems, by_lines=money.is_by_lines)
    budgets = {
        key: plan.budget for key, plan in drop_refused(written_plans).items() if plan.budget is not None
    }
    if budgets:
        known, built_plans = build_budgets(budgets, known, built_plans, declared.currency, problems)
    written_routes = values.routes or ()
    common = values.given("enforcement", "on_store_failure", "headers")
    default = Route(
        match="*",
        method=None,
        path=None,
        charge_on=money.charge_on,
        idempotency_header=money.idempotency_header,
        **common,
    )
    plans, meters = drop_refused(built_plans), drop_refused(known)
    built_routes = build_routes(written_routes, declared, default, problems)
    built_routes = mark_model_readers(built_routes, meters, plans.values(), credits_)
    pairs = list(zip(built_routes, written_routes, strict=True))
    refuse_unsaid_models(pairs, meters, plans.values(), credits_)
    check_quantities_fit(pairs, built_plans, credits_=credits_, addons=addons, problems=problems)
    if values.routes is not None:
        _note_routes(values, built_routes, meters, plans, credits_, problems)
    default_plan = values.default_plan or ""
    if default_plan and values.plans is not None and default_plan not in written_plans:
        values.refuse("default_plan", unknown("plan", default_plan, written_plans))
    place = values.place("default_plan")
    note_default_plan(default_plan, plans, meters, problems, currency=declared.currency, place=place)
    if isinstance(values.anonymous, AnonymousTable):
        note_anonymous_plan(values.anonymous, plans, meters, problems, currency=declared.currency)
    note_repeated_tiers(plans.values(), meters, money.changes, values.place("plans"), problems)
    note_equal_ranks(plans, meters, money.changes, values.places("plans"), problems)
    note_unlisted_addons(plans.values(), values.places("addons"), problems)
    note_idle_addons(plans.values(), addons, values.places("plans"), problems)
    note_addons_in_trials(plans.values(), addons, values.places("plans"), problems)
    return Catalog(
        source=problems.source,
        content_hash="",
        currency=declared.currency,
        default_plan=default_plan,
        anonymous=build_anonymous(values.anonymous, plans=written_plans),
        meters=meters,
        features=frozenset(declared.features),
        credits=credits_,
        routes=built_routes,
        plans=plans,
        billing=money,
        dunning=build_dunning(values.dunning, default_plan=default_plan, plans=written_plans),
        addons=addons,
        storage=build_storage(values.storage, known),
        notify=build_notify(values.notify),
        **common,
        **values.given("allotment"),
    )


def _declare_names(values: PlansFile, problems: Problems) -> DeclaredNames:
    """The meters, features, credits, prices and add-ons of the file."""
    check_features(values.texts("features"), problems)
    refuse_repeated_currencies(values.texts("currencies"), problems)
    written_credits, written_prices = values.credits or {}, values.prices or {}
    written_plans = values.plans or {}
    known = build_meters(values.meters or {})
    prices = build_model_prices(written_prices)
    known |= build_charged_meters(written_credits, known, values.currencies)
    credits_ = build_credits(written_credits, values.places("credits"), known, prices, problems)
    note_shadowed_prices(
        [*drop_refused(values.prices).values(), *drop_refused(values.credits).values()], problems
    )
    tables = [
        *find_price_tables(written_plans, prices),
        *(pair for one in credits_.values() for pair in one.by_model.items()),
    ]
    note_unpriced_models(drop_refused(values.meters), tables, problems)
    known |= build_price_rows(written_plans, known, prices)
    of_overage = find_overage_tables(written_plans)
    check_prices_by_currency(written_prices, written_credits, of_overage, problems)
    declared = DeclaredNames(
        meters=known,
        features=values.features or (),
        credits=credits_,
        prices=prices,
        currency=problems.currency,
    )
    return replace(declared, addons=build_addons(values.addons or {}, declared))


def _build_billing(values: PlansFile) -> Billing:
    found = Billing(**values.billing.given()) if values.billing else Billing()
    if found.is_by_lines:
        refuse_reported_usage(drop_refused(values.meters).values())
    return found


def _note_routes(
    values: PlansFile,
    routes: Sequence[Route],
    meters: Mapping[str, Meter],
    plans: Mapping[str, Plan],
    credits_: Mapping[str, Credit],
    problems: Problems,
) -> None:
    """Say what routes leave out."""
    place, written = values.place("routes"), drop_refused(values.plans)
    note_billing_lines(routes, plans.values(), place, problems)
    line_places = [line.place("match") for line in values.routes or ()]
    anonymous = values.anonymous
    anonymous_plan = anonymous.plan if isinstance(anonymous, AnonymousTable) else None
    note_webhook_lines(routes, line_places, plans.values(), problems, anonymous_plan=anonymous_plan)
    named = asked_meters(routes, meters)
    note_unasked_limits(
        named,
        meters,
        plans,
        written,
        credit_places=values.places("credits"),
        stored=values.storage.gauge if values.storage else None,
        problems=problems,
    )
    if any(reads_tokens(route) for route in routes):
        note_unfed_meters(named, meters, values.places("meters"), problems)
    note_unfilled_token_meters(routes, meters, values.places("meters"), problems)
    note_unfed_reserves(zip(routes, values.routes or (), strict=True), meters, problems)
    note_unheld_money(routes, credits_.values(), written.values(), place, problems)
    note_unpaid_meters(named, plans, written, credits_.values(), problems)
    written_routes = zip(routes, values.routes or (), strict=True)
    note_client_choices(
        written_routes,
        drop_refused(values.credits).values(),
        drop_refused(values.prices).values(),
        problems,
    )


def enforced(catalog: Catalog, enforcement: Enforcement | None) -> Catalog:
    """The catalog with this enforcement in place of the file's own and its routes'; None leaves them."""
    if enforcement is None:
        return catalog
    # Where nothing is counted, there is nothing to read, to set aside or to tell either.
    unread = {"reads_model": False, "keeps_request": False, "refuses_unpriced": ()}
    nothing = {"usage": "none", "reserve": (), "headers": "none", **unread}
    off: dict[str, Any] = nothing if enforcement == "off" else {}
    routes = tuple(replace(route, enforcement=enforcement, **off) for route in catalog.routes)
    others = {
        code: replace(one, routes=routes, enforcement=enforcement)
        for code, one in catalog.other_currencies.items()
    }
    return replace(catalog, routes=routes, enforcement=enforcement, other_currencies=others)
