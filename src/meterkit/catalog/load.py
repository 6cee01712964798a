"""The whole plans file: its keys, its JSON Schema, and how it is read, checked and made a catalog."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from meterkit.catalog import billing, meters, plans, routes
from meterkit.catalog.digest import digest
from meterkit.catalog.document import SIZE_MAX, parse
from meterkit.catalog.fit import check_fit
from meterkit.catalog.inheritance import with_inheritance
from meterkit.catalog.models import Anonymous, Catalog, Route
from meterkit.catalog.report import Place, Problems, RefusedError, nearest, unknown
from meterkit.catalog.scalars import NAME, scalar
from meterkit.catalog.shapes import Choice, Key, Table, Values

_CURRENCY: Final = re.compile(r"[a-z]{3}")
_CURRENCY_ALLOWED: Final = "the three small letters of a currency, such as usd"


def _parse_currency(text: str) -> str:
    if not _CURRENCY.fullmatch(text):
        lower = text.lower()
        meant = lower if _CURRENCY.fullmatch(lower) else None
        raise RefusedError(f"allowed: {_CURRENCY_ALLOWED}", meant=meant)
    return text


SCHEMA: Final = Key("schema", Choice(("1",)), "Version of the file's format: 1.", required=True)
CURRENCY: Final = Key(
    "currency",
    scalar(_parse_currency, _CURRENCY_ALLOWED, pattern="^[a-z]{3}$"),
    "Currency of all prices.",
    required=True,
)
DEFAULT_PLAN: Final = Key("default_plan", NAME, "The plan of customers never seen before.", required=True)
ANONYMOUS: Final = Key(
    "anonymous", billing.ANONYMOUS_SHAPE, "Requests without a customer: deny (default) or a plan."
)
METERS: Final = Key("meters", meters.METERS_SHAPE, "What is counted.", required=True)
FEATURES: Final = Key("features", meters.FEATURES_SHAPE, "What a plan has or does not have.")
CREDITS: Final = Key("credits", meters.CREDITS_SHAPE, "Prepaid units that meters may be paid with.")
ROUTES: Final = Key("routes", routes.ROUTES_SHAPE, "How requests are decided; the first match wins.")
PLANS: Final = Key("plans", plans.PLANS_SHAPE, "Named sets of entitlements.", required=True)
BILLING: Final = Key("billing", billing.BILLING_TABLE, "What is billed, and when changes bind.")
DUNNING: Final = Key("dunning", billing.DUNNING_TABLE, "What failed payments lead to.")
ENFORCEMENT: Final = Key(
    "enforcement", billing.ENFORCEMENTS, "on (default) or shadow: decide, but never deny."
)
ON_STORE_FAILURE: Final = Key("on_store_failure", billing.STORE_FAILURES, "allow (default) or deny.")
HEADERS: Final = Key("headers", billing.HEADERS, "ietf (default), x-ratelimit, both or none.")
ROOT: Final = Table(
    "a plans file",
    (
        SCHEMA, CURRENCY, DEFAULT_PLAN, ANONYMOUS, METERS, FEATURES, CREDITS, ROUTES, PLANS,
        BILLING, DUNNING, ENFORCEMENT, ON_STORE_FAILURE, HEADERS,
    ),
)  # fmt: skip


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
        **ROOT.schema(),
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
        problems.refuse(Place(0, 0, ""), f"the plans file cannot be read: {reason}{_looked_for(source)}")
        raise problems.error() from error
    return loads(data, source=source)


def _looked_for(source: str) -> str:
    """Where a relative path led to, as a service is seldom started where its file lies; and what to do."""
    path, where, near = Path(source), "", ""
    try:
        if not path.is_absolute():
            where = f"; looked for in {Path.cwd()}"
        if not path.exists():
            names = {found.stem: found.name for found in islice(path.parent.glob("*.y*ml"), 1000)}
            meant = nearest(path.stem, names)
            near = f"; did you mean {names[meant]!r}?" if meant else ""
    except (OSError, ValueError):
        pass  # The directory is gone, or nobody may look into it; or this is no path at all.
    return f"{where}; --plans or METERKIT_PLANS names another{near}"


def loads(text: str | bytes, *, source: str = "plans.yaml") -> Catalog:
    """The catalog that ``text`` describes; ``source`` names it in messages.

    Raises:
        PlansError: something is wrong; with all that is wrong, in the order of the file.
    """
    problems = Problems(source)
    root = with_inheritance(parse(text, problems=problems), problems)
    values = ROOT.read(root, problems)
    catalog = _build(values, problems) if values else None
    if problems or catalog is None:
        raise problems.error()
    return catalog


def _build(values: Values, problems: Problems) -> Catalog:
    meters.check_features(values.node.values.get(FEATURES.name), problems)
    known = meters.build_meters(values.get(METERS, {}), problems)
    features = values.get(FEATURES, ())
    credits_ = meters.build_credits(values.get(CREDITS, {}), values.places(CREDITS), known, problems)
    declared = plans.Declared(meters=known, features=features, credits=credits_)
    built_plans = plans.build_plans(values.get(PLANS, {}), declared, problems)
    money = billing.build_billing(values.get(BILLING))
    written_routes = values.get(ROUTES, ())
    common = values.given(ENFORCEMENT, ON_STORE_FAILURE, HEADERS)
    default = Route(
        match="*",
        method=None,
        path=None,
        charge_on=money.charge_on,
        idempotency_header=money.idempotency_header,
        **common,
    )
    built_routes = routes.build_routes(written_routes, declared, default, problems)
    check_fit(
        zip(built_routes, written_routes, strict=True), built_plans, credits_=credits_, problems=problems
    )
    default_plan = _check_default_plan(values, problems)
    anonymous = _build_anonymous(values, problems)
    dunning = billing.build_dunning(
        values.get(DUNNING), default_plan=default_plan, plans=values.get(PLANS, {}), problems=problems
    )
    catalog = Catalog(
        source=problems.source,
        content_hash="",
        currency=values.get(CURRENCY, ""),
        default_plan=default_plan,
        anonymous=anonymous,
        meters={name: meter for name, meter in known.items() if meter is not None},
        features=frozenset(features),
        credits=credits_,
        routes=built_routes,
        plans={key: plan for key, plan in built_plans.items() if plan is not None},
        billing=money,
        dunning=dunning,
        **common,
    )
    return digest(replace(catalog, notes=problems.notes))


def _check_default_plan(values: Values, problems: Problems) -> str:
    default_plan = values.get(DEFAULT_PLAN, "")
    known = values.get(PLANS)
    if default_plan and known is not None and default_plan not in known:
        problems.refuse(values.place(DEFAULT_PLAN), unknown("plan", default_plan, known))
    return default_plan


def _build_anonymous(values: Values, problems: Problems) -> Anonymous | None:
    written = values.get(ANONYMOUS)
    if not isinstance(written, Values):
        return None
    return billing.build_anonymous(written, plans=values.get(PLANS, {}), problems=problems)
