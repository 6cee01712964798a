"""``meters:``, ``features:`` and ``credits:``: what can be counted, had and paid with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from meterkit.catalog.document import Items, Text
from meterkit.catalog.models import Credit, Meter, Report, StripeEvent
from meterkit.catalog.report import unknown
from meterkit.catalog.scalars import COST, NAME, percent, text
from meterkit.catalog.shapes import Choice, Key, ListOf, MapOf, Table, Values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.document import Node
    from meterkit.catalog.report import Place, Problems

EVENT_NAME_MAX: Final = 100
ALL: Final = "all"
Kind = Literal["counter", "gauge"]
_KINDS: Final[Choice[Kind]] = Choice(("counter", "gauge"))
_REPORTS: Final[Choice[Report]] = Choice(("overage", "usage", "none"))
_BYTES: Final = frozenset({"byte", "bytes"})

EVENT_NAME: Final = Key(
    "event_name", text(EVENT_NAME_MAX), "The event name of the meter at Stripe.", required=True
)
REPORT: Final[Key[Report]] = Key(
    "report", _REPORTS, "Which part Stripe is sent: overage (default), usage or none."
)
STRIPE_TABLE: Final = Table("a Stripe event", (EVENT_NAME, REPORT))

UNIT: Final = Key("unit", NAME, "What one is: request, token, byte, seat, …", required=True)
KIND: Final[Key[Kind]] = Key("kind", _KINDS, "counter (default) adds up over a period; gauge holds a level.")
STRIPE: Final = Key("stripe", STRIPE_TABLE, "The Stripe meter event that carries the billable usage.")
FROM: Final = Key("from", NAME, "The counter of which this meter is a part.")
WHERE: Final = Key(
    "where", MapOf(NAME, text(256), "dimensions and patterns", 1), "Which part: dimension to pattern with *."
)
METER_TABLE: Final = Table("a meter", (UNIT, KIND, STRIPE, FROM, WHERE))
METERS_SHAPE: Final = MapOf(NAME, METER_TABLE, "meters")

COSTS: Final = Key(
    "costs", MapOf(NAME, COST, "meters and costs", 1), "Meter to credits per units.", required=True
)
LOW_BALANCE: Final = Key(
    "low_balance", percent(least=1, most=100), "Share of the last grant at which the balance is low."
)
CREDIT_TABLE: Final = Table("a credit", (COSTS, LOW_BALANCE))
CREDITS_SHAPE: Final = MapOf(NAME, CREDIT_TABLE, "credits")

FEATURES_SHAPE: Final = ListOf(NAME, "features")

Meters = dict[str, "Meter | None"]


def build_meters(read: Mapping[str, Values | None], problems: Problems) -> Meters:
    """The meters by name; None where a definition was refused, so that only its name is known."""
    meters: Meters = {
        name: None if values is None else _build_meter(name, values, problems)
        for name, values in read.items()
    }
    _refuse_event_names_used_twice(read, problems)
    for name, values in read.items():
        if values is not None and values.get(FROM) is not None:
            _check_source(name, values, read, problems)
    return meters


def counts_bytes(meter: Meter) -> bool:
    """Whether quantities of the meter may be written as sizes."""
    return meter.unit in _BYTES


def _build_meter(name: str, values: Values, problems: Problems) -> Meter | None:
    unit = values.get(UNIT)
    kind: Kind = values.get(KIND, "counter")
    source = values.get(FROM)
    where = values.get(WHERE, {})
    stripe = values.get(STRIPE)
    if kind == "gauge" and values.has(STRIPE):
        message = (
            "a gauge is not sent to Stripe; seats are billed with a plan's `seat_price`: remove `stripe`"
        )
        problems.refuse(values.place(STRIPE), message)
    if kind == "gauge":
        message = "a gauge has no effect yet: nothing sets its level, and no limit of it is asked"
        problems.note(values.place(KIND), "without_effect", message)
    if source is None and values.has(WHERE) and not values.has(FROM):
        problems.refuse(values.place(WHERE), "`where` needs `from`: the meter of which this one is a part")
    if source is not None and not values.has(WHERE):
        problems.refuse(values.place(FROM), "`from` needs `where`: which part of that meter this one is")
    event_name = stripe.get(EVENT_NAME) if stripe else None
    if (
        unit is None
        or values.is_refused(KIND)
        or values.is_refused(STRIPE)
        or (stripe and event_name is None)
    ):
        return None
    event = (
        StripeEvent(event_name=event_name, report=stripe.get(REPORT, "overage"))
        if stripe and event_name
        else None
    )
    patterns = {dimension: pattern for dimension, pattern in where.items() if pattern is not None}
    return Meter(name=name, unit=unit, kind=kind, stripe=event, source=source, where=patterns)


def _refuse_event_names_used_twice(read: Mapping[str, Values | None], problems: Problems) -> None:
    first: dict[str, str] = {}
    for name, values in read.items():
        stripe = values.get(STRIPE) if values else None
        event_name = stripe.get(EVENT_NAME) if stripe else None
        if stripe is None or event_name is None:
            continue
        owner = first.setdefault(event_name, name)
        if owner != name:
            message = f"{event_name!r} already carries the meter {owner}; allowed: an event name per meter"
            problems.refuse(stripe.place(EVENT_NAME), message)


def _check_source(name: str, values: Values, read: Mapping[str, Values | None], problems: Problems) -> None:
    place = values.place(FROM)
    source = values.get(FROM) or ""
    if source not in read:
        problems.refuse(place, unknown("meter", source, read))
        return
    line = [name]
    while source and source not in line:
        line.append(source)
        source = _source_of(read.get(source)) or ""
    if source:
        circle = line[line.index(source) :]
        if name == next(meter for meter in read if meter in circle):
            message = f"meters are parts of each other in a circle: {' → '.join([*circle, source])}"
            problems.refuse(place, message)
        return
    whole = read[line[1]]
    if "gauge" in {values.get(KIND), whole and whole.get(KIND)}:
        message = "only a counter has parts, and they are counters; remove `from` or `kind: gauge`"
        problems.refuse(place, message)
    units = {meter.get(UNIT) for meter in (values, whole) if meter is not None} - {None}
    if len(units) > 1:
        message = f"a part has the unit of its whole; {line[1]} counts {whole and whole.get(UNIT)}"
        problems.refuse(values.place(UNIT), message)


def _source_of(values: Values | None) -> str | None:
    return values.get(FROM) if values else None


def check_features(node: Node | None, problems: Problems) -> None:
    """Refuse the word ``all`` and features listed twice."""
    seen: set[str] = set()
    for item in node.items if isinstance(node, Items) else ():
        if not isinstance(item, Text):
            continue
        if item.text == ALL:
            problems.refuse(item.place, "'all' means every feature in a plan; choose another name")
        elif item.text in seen:
            problems.refuse(item.place, f"{item.text!r} is listed twice; keep one")
        seen.add(item.text)


def build_credits(
    read: Mapping[str, Values | None], places: Mapping[str, Place], meters: Meters, problems: Problems
) -> dict[str, Credit]:
    """The credits by name."""
    built: dict[str, Credit] = {}
    paid: dict[str, str] = {}
    for name, values in read.items():
        if name in meters:
            message = f"{name!r} is also a meter, and grants must tell them apart; choose another name"
            problems.refuse(places[name], message)
        if values is None:
            built[name] = Credit(name=name, costs={}, low_balance_percent=None)
            continue
        for meter_name, place in values.places(COSTS).items():
            meter = check_meter(meter_name, meters, place, problems)
            if meter is not None:
                _check_payable(meter, place, problems)
            other = paid.setdefault(meter_name, name)
            if other != name:
                problems.refuse(
                    place, f"{meter_name} is paid with the credit {other} already; a meter has one"
                )
        costs = {meter: cost for meter, cost in values.get(COSTS, {}).items() if cost is not None}
        built[name] = Credit(name=name, costs=costs, low_balance_percent=values.get(LOW_BALANCE))
    return built


def _check_payable(meter: Meter, place: Place, problems: Problems) -> None:
    if meter.kind == "gauge":
        problems.refuse(place, f"{meter.name} is a gauge; credits pay for counters only")
    elif meter.source is not None:
        problems.refuse(place, f"{meter.name} is a part of {meter.source}; give the cost of {meter.source}")


def check_meter(name: str, meters: Meters, place: Place, problems: Problems) -> Meter | None:
    """The meter of that name; a name that is not declared is refused at ``place``."""
    if name not in meters:
        problems.refuse(place, unknown("meter", name, meters))
        return None
    return meters[name]
