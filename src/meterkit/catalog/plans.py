"""``plans:``: named sets of entitlements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.document import Items, Text
from meterkit.catalog.entitlements import ENTITLEMENT_TABLE, build_entitlement, default_entitlement
from meterkit.catalog.inheritance import EXTENDS
from meterkit.catalog.meters import ALL, Meters, check_meter
from meterkit.catalog.models import CREDITS_MAX, Plan, PlanGrant, Price, SeatPrice
from meterkit.catalog.notes import note_entitlement
from meterkit.catalog.report import unknown
from meterkit.catalog.scalars import NAME, cents, duration, integer, quantity, text
from meterkit.catalog.shapes import Choice, Forms, Key, ListOf, MapOf, Nullable, Shape, Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.models import Credit, Entitlement
    from meterkit.catalog.report import Problems
    from meterkit.catalog.shapes import Values

PRIORITY_DEFAULT: Final = 50
DEFAULT_PLAN_WORD: Final = "default_plan"

_PRICE_ID: Final = text(
    255, pattern=r"\S+", allowed="the id of a price at Stripe, such as price_1Q2w3E4r5T6y7U8i"
)

AMOUNT_CENTS: Final = Key(
    "amount_cents",
    cents(),
    "In minor units of the currency.",
    required=True,
    without_effect="meterkit creates no subscription and charges no price; that is done at Stripe",
    informs=True,
)
INTERVAL: Final = Key(
    "interval", Choice(("month", "year")), "How often it is paid: month or year.", required=True
)
INCLUDED_PER: Final = Key(
    "included_per", Choice(("month", "interval")), "Span of included quantities: month (default) or interval."
)
STRIPE_PRICE: Final = Key(
    "stripe_price",
    Nullable(_PRICE_ID),
    "The id of the price at Stripe.",
    without_effect="meterkit neither creates subscriptions nor reads them",
)
_NO_PRICE: Final[dict[str, Any]] = {"amount_cents": 0, "interval": "month"}  # Where it was refused.
PRICE_TABLE: Final = Table("a price", (AMOUNT_CENTS, INTERVAL, INCLUDED_PER, STRIPE_PRICE), inheritable=True)
SEAT_PRICE_TABLE: Final = Table("a seat price", (AMOUNT_CENTS, STRIPE_PRICE), inheritable=True)

EVERY_WORDS: Final = ("period",)
CREDIT: Final = Key("credit", NAME, "The credit that is granted.")
METER: Final = Key("meter", NAME, "The meter of which a quantity is granted.")
QUANTITY: Final = Key("quantity", quantity(least=1), "How much.", required=True)
EVERY: Final = Key("every", Choice(EVERY_WORDS), "When: with every billing period.", required=True)
PRIORITY: Final = Key("priority", integer(most=1000), "Lower is burned first; default: 50.")
EXPIRES: Final = Key("expires", duration(least=1), "Life of the grant; default: its period.")
GRANT_ID: Final = Key(
    "id", NAME, "What makes it the same grant in other plans and later; default: its priority and expiry."
)
GRANT_TABLE: Final = Table("a grant", (CREDIT, METER, QUANTITY, EVERY, PRIORITY, EXPIRES, GRANT_ID))

PLAN_NAME: Final = Key(
    "name",
    text(128),
    "The name that people see; default: the key.",
    without_effect="meterkit shows the key",
    informs=True,
)
PLAN_EXTENDS: Final = Key(EXTENDS, NAME, "The plan whose entries this one inherits.")
RANK: Final = Key(
    "rank",
    integer(most=1_000_000),
    "Decides upgrade or downgrade; default: 0.",
    without_effect="a change of plan binds at once, whichever it is",
)
PRICE: Final = Key("price", PRICE_TABLE, "What the plan costs; required unless inherited.", required=True)
SEAT_PRICE: Final = Key(
    "seat_price",
    Nullable(SEAT_PRICE_TABLE),
    "What a seat costs per interval.",
    without_effect="seats are neither counted nor charged",
)
TRIAL: Final = Key(
    "trial",
    Nullable(duration(least=1)),
    "Length of the trial.",
    without_effect="nobody is put on trial",
)
_FEATURES_SHAPE: Final[Shape[str | tuple[str, ...]]] = Forms(
    "a list of features, or all",
    scalar=Choice((ALL,), others=", or a list of features"),
    items=ListOf(NAME, "features"),
)
FEATURES: Final = Key(
    "features",
    _FEATURES_SHAPE,
    "The features that the plan has: a list, or all; default: none.",
)
PLAN_METERS: Final = Key(
    "meters", MapOf(NAME, ENTITLEMENT_TABLE, "meters and entitlements"), "What it gives per meter."
)
GRANTS: Final = Key("grants", ListOf(GRANT_TABLE, "grants"), "What it gives every period besides.")
PLAN_TABLE: Final = Table(
    "a plan",
    (PLAN_NAME, PLAN_EXTENDS, RANK, PRICE, SEAT_PRICE, TRIAL, FEATURES, PLAN_METERS, GRANTS),
    inheritable=True,
)
PLANS_SHAPE: Final = MapOf(NAME, PLAN_TABLE, "plans", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What plans and routes may name."""

    meters: Meters
    features: tuple[str, ...]
    credits: Mapping[str, Credit]


def build_plans(
    read: Mapping[str, Values | None], declared: Declared, problems: Problems
) -> dict[str, Plan | None]:
    """The plans by key; None where a plan was refused altogether."""
    plans = {
        key: None if values is None else _build_plan(key, values, declared, problems)
        for key, values in read.items()
    }
    if (values := read.get(DEFAULT_PLAN_WORD)) is not None:
        problems.refuse(values.node.place, "'default_plan' stands for the default plan; choose another key")
    _refuse_prices_used_twice(read, problems)
    return plans


def _build_plan(key: str, values: Values, declared: Declared, problems: Problems) -> Plan:
    price, seat_price = values.get(PRICE), values.get(SEAT_PRICE)
    return Plan(
        key=key,
        name=values.get(PLAN_NAME, key),
        rank=values.get(RANK, 0),
        price=Price(**_NO_PRICE | (price.given(*PRICE_TABLE.keys) if price else {})),
        seat_price=None
        if seat_price is None
        else SeatPrice(
            amount_cents=seat_price.get(AMOUNT_CENTS, 0), stripe_price=seat_price.get(STRIPE_PRICE)
        ),
        trial_ms=values.get(TRIAL),
        features=_build_features(values, declared, problems),
        entitlements=_build_entitlements(values, declared, problems),
        grants=_build_grants(values, declared, problems),
    )


def _build_features(values: Values, declared: Declared, problems: Problems) -> frozenset[str]:
    names = values.get(FEATURES, ())
    if isinstance(names, str):
        return frozenset(declared.features)
    node = values.node.values.get(FEATURES.name)
    for item in node.items if isinstance(node, Items) else ():
        if isinstance(item, Text) and item.text not in declared.features:
            hint = "; write `features: all` for every one" if item.text == ALL else ""
            problems.refuse(item.place, unknown("feature", item.text, declared.features) + hint)
    return frozenset(names)


def _build_entitlements(values: Values, declared: Declared, problems: Problems) -> dict[str, Entitlement]:
    listed = values.get(PLAN_METERS, {})
    for name, place in values.places(PLAN_METERS).items():
        check_meter(name, declared.meters, place, problems)
    built: dict[str, Entitlement] = {}
    for name, meter in declared.meters.items():
        written = listed.get(name)
        if meter is not None and written is not None:
            built[name] = build_entitlement(written, meter, problems)
        elif meter is not None:
            built[name] = default_entitlement(meter)
        if name in built and meter is not None:
            note_entitlement(built[name], meter, written, values.node.place, problems)
    return built


def _build_grants(values: Values, declared: Declared, problems: Problems) -> tuple[PlanGrant, ...]:
    built: list[PlanGrant] = []
    for written in values.get(GRANTS, ()):
        grant = _build_grant(written, declared, problems)
        if grant is None:
            continue
        if grant.id is not None and (grant.name, grant.id) in {(other.name, other.id) for other in built}:
            message = f"{grant.id!r} is the id of another grant of {grant.name} in this plan; choose another"
            problems.refuse(written.place(GRANT_ID), message)
        built.append(grant)
    return tuple(built)


def _build_grant(values: Values, declared: Declared, problems: Problems) -> PlanGrant | None:
    credit, meter_name = values.get(CREDIT), values.get(METER)
    if values.has(CREDIT) == values.has(METER):
        problems.refuse(values.node.place, "a grant names either `credit` or `meter`, one of the two")
        return None
    if credit is not None and credit not in declared.credits:
        hint = f"; for a quantity of a meter write `meter: {credit}`" if credit in declared.meters else ""
        problems.refuse(values.place(CREDIT), unknown("credit", credit, declared.credits) + hint)
    if meter_name is not None:
        meter = check_meter(meter_name, declared.meters, values.place(METER), problems)
        if meter is not None and meter.kind == "gauge":
            message = f"{meter_name} is a gauge: it has a level, which no grant raises; raise its `included`"
            problems.refuse(values.place(METER), message)
        elif meter is not None and meter.source is not None:
            message = f"{meter_name} is a part of {meter.source}; grant {meter.source}"
            problems.refuse(values.place(METER), message)
    if credit is not None and values.get(QUANTITY, 1) > CREDITS_MAX:
        message = f"found {values.get(QUANTITY, 1)}; allowed: at most {CREDITS_MAX} credits"
        problems.refuse(values.place(QUANTITY), message)
    return PlanGrant(
        kind="credit" if credit is not None else "meter",
        name=credit or meter_name or "",
        quantity=values.get(QUANTITY, 1),
        priority=values.get(PRIORITY, PRIORITY_DEFAULT),
        expires_ms=values.get(EXPIRES),
        id=values.get(GRANT_ID),
    )


def _refuse_prices_used_twice(read: Mapping[str, Values | None], problems: Problems) -> None:
    """An inherited price is the same line of the file, so that two lines with one price are a slip."""
    first: dict[str, tuple[int, int]] = {}
    for values in read.values():
        price = values.get(PRICE) if values else None
        price_id = price.get(STRIPE_PRICE) if price else None
        if price is None or price_id is None:
            continue
        place = price.place(STRIPE_PRICE)
        if first.setdefault(price_id, (place.line, place.column)) != (place.line, place.column):
            message = f"{price_id!r} is already used in line {first[price_id][0]}; a price names one plan"
            problems.refuse(place, message)
