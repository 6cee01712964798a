"""``meters:`` and ``features:``: their tables and checks, also of the names that the app gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from meterkit.catalog.errors import quoted, unknown
from meterkit.catalog.models import QUANTITY_MAX, Meter, Report, StripeEvent
from meterkit.catalog.value_parsers import MICRO_UNIT, NAME, text
from meterkit.catalog.value_shapes import Key, MapOf, Table, WordChoice, drop_refused
from meterkit.catalog.yaml_tree import Items, Text
from meterkit.errors import MeterkitError, QuantityError, UnknownFeatureError, UnknownMeterError
from meterkit.safe_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from meterkit.catalog.errors import FilePlace, Problems
    from meterkit.catalog.models import Entitlement, Plan
    from meterkit.catalog.yaml_tree import Node

EVENT_NAME_MAX: Final = 100
CHARGED: Final = "_charged"
"""Ends the name of the meter that counts what a credit of money is charged."""
MICRO_USD: Final = f"{MICRO_UNIT}USD"
ALL: Final = "all"
Kind = Literal["counter", "gauge"]
_KINDS: Final[WordChoice[Kind]] = WordChoice(("counter", "gauge"))
_REPORTS: Final[WordChoice[Report]] = WordChoice(("overage", "usage", "none"))
_BYTES: Final = frozenset({"byte", "bytes"})
_SIZE: Final = re.compile(r"[0-9] ?[kKMGTP]?i?B\b")


class StripeTable(Table, what="a Stripe event"):
    """``stripe:`` of a meter."""

    event_name = Key(text(EVENT_NAME_MAX), "The event name of the meter at Stripe.", required=True)
    report = Key(_REPORTS, "Which part is sent to Stripe: overage (default), usage or none.")


class MeterTable(Table, what="a meter"):
    """One of ``meters:``."""

    unit = Key(NAME, "What one is: request, token, byte, seat, …", required=True)
    title = Key(text(128), "The name that customers see on invoices; default: made of the key.", name="name")
    kind: Key[Kind] = Key(_KINDS, "counter (default) adds up over a period; gauge holds a level.")
    stripe = Key(StripeTable, "The Stripe meter event that carries the billable usage.")
    source = Key(NAME, "The counter that this meter is a part of.", name="from")
    where = Key(
        MapOf(WordChoice(("model", "provider")), text(256), "dimensions and patterns", 1),
        "Which part: model, provider or both, each to a pattern with *.",
    )


Meters = dict[str, "Meter | None"]


def build_meters(read: Mapping[str, MeterTable | None]) -> Meters:
    """The meters by name; None where a definition was refused, so that only its name is known."""
    meters: Meters = {
        name: None if values is None else _build_meter(name, values) for name, values in read.items()
    }
    _refuse_event_names_used_twice(read)
    for name, values in drop_refused(read).items():
        if values.source is not None:
            _check_source(name, values, read)
    return meters


def counts_bytes(meter: Meter) -> bool:
    """Whether quantities of the meter may be written as sizes."""
    return meter.unit in _BYTES


def refuse_sizes(nodes: Iterable[Node], counted: Meter | str, problems: Problems) -> None:
    """Refuse quantities and rates that are written as sizes where no bytes are counted.

    Args:
        nodes: each a quantity or a rate, or a list or map of such.
        counted: the meter that they are of; or what is counted, in words.
        problems: gets what is wrong.
    """
    if isinstance(counted, Meter):
        if counts_bytes(counted):
            return
        counted = f"{counted.name} counts {counted.unit}"
    for node in nodes:
        if not isinstance(node, Text):
            refuse_sizes(node.items if isinstance(node, Items) else node.values.values(), counted, problems)
        elif _SIZE.search(node.text):
            message = f"found the size {quoted(node.text)}, but {counted}; allowed: a whole number"
            problems.refuse(node.place, message)


def counts_tokens(meter: Meter) -> bool:
    """Whether a meter is a counter of its own, in tokens."""
    unit = meter.unit.casefold().removesuffix("s")
    return unit == "token" and meter.kind == "counter" and meter.source is None


def _build_meter(name: str, values: MeterTable) -> Meter | None:
    unit = values.unit
    kind: Kind = values.kind or "counter"
    source = values.source
    stripe = values.stripe
    if kind == "gauge" and values.has("stripe"):
        message = (
            "a gauge is not sent to Stripe; seats are billed with a plan's `seat_price`: remove `stripe`"
        )
        values.refuse("stripe", message)
    if source is None and values.has("where") and not values.has("source"):
        values.refuse("where", "`where` needs `from`: the meter that this one is a part of")
    if source is not None and not values.has("where"):
        values.refuse("source", "`from` needs `where`: which part of that meter this one is")
    is_event_missing = stripe is not None and stripe.event_name is None
    if unit is None or is_event_missing or values.is_refused("kind") or values.is_refused("stripe"):
        return None
    event = StripeEvent(**stripe.given()) if stripe else None
    return Meter(
        name=name,
        title=values.title or default_title(name),
        unit=unit,
        kind=kind,
        stripe=event,
        source=source,
        where=drop_refused(values.where),
    )


def default_title(name: str) -> str:
    """The name that customers see of a meter without a ``name``."""
    return name[:1].upper() + name[1:].replace("_", " ")


def is_titled(meter: Meter, meters: Mapping[str, Meter]) -> bool:
    """Whether the plans file gives the name that customers see of a meter; of a row, that of its source."""
    named = meters[meter.source] if meter.is_row and meter.source else meter
    return named.title != default_title(named.name)


def _refuse_event_names_used_twice(read: Mapping[str, MeterTable | None]) -> None:
    first: dict[str, str] = {}
    for name, values in drop_refused(read).items():
        event = values.stripe
        event_name = event and event.event_name
        if event and event_name and (owner := first.setdefault(event_name, name)) != name:
            message = f"{event_name!r} already carries the meter {owner}; allowed: an event name per meter"
            event.refuse("event_name", message)


def refuse_reported_usage(read: Iterable[MeterTable]) -> None:
    """Refuse ``report: usage``: a line has what a period owes, and no tiers of Stripe's."""
    for values in read:
        if values.stripe is not None and values.stripe.report == "usage":
            message = (
                "found 'usage', and `billing: {usage: lines}`: meterkit writes the lines, and included units"
                " are on none of them; allowed: overage (default) or none"
            )
            values.stripe.refuse("report", message)


def _check_source(name: str, values: MeterTable, read: Mapping[str, MeterTable | None]) -> None:
    source = values.source or ""
    if source not in read:
        values.refuse("source", unknown("meter", source, read))
        return
    line = [name]
    while source and source not in line:
        line.append(source)
        following = read.get(source)
        source = (following and following.source) or ""
    if source:
        circle = line[line.index(source) :]
        if name == next(meter for meter in read if meter in circle):
            message = f"meters are parts of each other in a circle: {' → '.join([*circle, source])}"
            values.refuse("source", message)
        return
    whole = read[line[1]]
    if "gauge" in {values.kind, whole and whole.kind}:
        values.refuse(
            "source", "only a counter has parts, and they are counters; remove `from` or `kind: gauge`"
        )
    units = {meter.unit for meter in (values, whole) if meter is not None} - {None}
    if len(units) > 1:
        values.refuse("unit", f"a part has the unit of its whole; {line[1]} counts {whole and whole.unit}")
    if values.has("stripe") and whole is not None and whole.source is not None:
        message = (
            f"{line[1]} is itself a part of {whole.source}, and a part of a part has no Stripe event; remove"
            f" `stripe`, or write `from: {whole.source}` with all of `where`"
        )
        values.refuse("stripe", message)


def check_features(items: Iterable[Text], problems: Problems) -> None:
    """Refuse the word ``all`` and features listed twice."""
    seen: set[str] = set()
    for item in items:
        if item.text == ALL:
            problems.refuse(item.place, "'all' means every feature in a plan; choose another name")
        elif item.text in seen:
            problems.refuse(item.place, f"{item.text!r} is listed twice; keep one")
        seen.add(item.text)


def check_meter(name: str, meters: Meters, place: FilePlace, problems: Problems) -> Meter | None:
    """The meter of that name; a name that is not declared is refused at ``place``."""
    if name not in meters:
        written = [known for known, meter in meters.items() if meter is None or not meter.is_row]
        problems.refuse(place, unknown("meter", name, written))
        return None
    return meters[name]


def is_sold(plan: Plan) -> bool:
    """Whether customers can subscribe to a plan: it names a price at Stripe, or costs something."""
    price = plan.price
    charges = any(given.overage.amount_cents is not None for given in plan.entitlements.values())
    has_extras = plan.seat_price is not None or bool(plan.addons)
    return price.stripe_price is not None or price.amount_cents > 0 or has_extras or charges


def bills_usage(given: Entitlement, meter: Meter) -> bool:
    """Whether usage of a meter can be owed; beyond what is unlimited there is none, except by Stripe's tiers.

    Args:
        given: of the meter, or of the meter that it is a part of.
        meter: whose usage Stripe gets.
    """
    if given.overage.mode != "bill" or meter.stripe is None or meter.stripe.report == "none":
        return False
    return given.included is not None or meter.stripe.report == "usage"


def billed_as(plan: Plan, meter: Meter) -> Entitlement | None:
    """Entitlement by which a plan bills a meter's reported units; None if it bills none.

    Of a derived meter the units are sent that its source bills, after what its source includes. Its own price
    goes before that of its source.
    """
    own = plan.entitlements[meter.name]
    if meter.is_row and own.overage.mode != "bill":
        return None  # Another plan's price.
    whole = plan.entitlements.get(meter.source or "")
    if whole is None or whole.overage.mode != "bill":
        return own if own.overage.mode == "bill" else None
    if whole.included is None:
        return None
    has_price = own.overage.mode == "bill" and own.overage.amount_cents is not None
    return replace(own, included=whole.included, overage=own.overage if has_price else whole.overage)


def billed_meters(meters: Mapping[str, Meter], plan: Plan) -> list[Meter]:
    """The meters whose usage a plan bills through Stripe, in the order of the plans file."""
    return [
        meter
        for meter in meters.values()
        if meter.stripe is not None and meter.stripe.report != "none" and billed_as(plan, meter) is not None
    ]


def meters_billed_by_tiers(meters: Mapping[str, Meter], plan: Plan) -> list[str]:
    """The names of the meters that a plan bills by a price that does its own tiers (``report: usage``)."""
    return [
        meter.name
        for meter in billed_meters(meters, plan)
        if meter.stripe is not None and meter.stripe.report == "usage"
    ]


def check_feature(name: str, features: Collection[str]) -> str:
    """Return the name of a feature of the plans file, as a plain text.

    Raises:
        UnknownFeatureError: it has not.
    """
    if name not in features:
        raise UnknownFeatureError.of(name, features)
    return plain_text(name)


def check_quantity(quantity: object) -> int:
    """Return the quantity.

    Raises:
        QuantityError: it is not an integer from 0 to 10^15 - 1; a bool or a float is none.
    """
    return _check_integer(quantity, 0)


def check_change(quantity: object) -> int:
    """Return by how much a level changes.

    Raises:
        QuantityError: it is not an integer of at most 15 digits; a bool or a float is none.
    """
    return _check_integer(quantity, -QUANTITY_MAX)


def _check_integer(quantity: object, least: int) -> int:
    if type(quantity) is int and least <= quantity <= QUANTITY_MAX:
        return quantity
    found = (
        repr(quantity) if isinstance(quantity, int | float) else f"a value of type {type(quantity).__name__}"
    )
    raise QuantityError(f"quantity: found {found:.40}; allowed is an integer from {least} to {QUANTITY_MAX}")


def check_quantities(quantities: Mapping[str, int], meters: Mapping[str, Meter]) -> dict[str, int]:
    """Return the quantities, each of a counter of the app's, named by a plain text.

    Raises:
        UnknownMeterError: a meter is not there, or is a gauge or derived.
        QuantityError: a quantity is not an integer from 0 to 10^15 - 1.
    """
    return {check_counter(name, meters): check_quantity(quantity) for name, quantity in quantities.items()}


def collect_quantities(
    meter: str | Mapping[str, int], quantity: int | None, meters: Mapping[str, Meter]
) -> dict[str, int]:
    """Return quantities by meter, from a meter with its quantity or from a mapping.

    Raises:
        MeterkitError: a mapping is empty, or comes with a quantity.
        UnknownMeterError, QuantityError: as of :func:`check_quantities`.
    """
    if not isinstance(meter, Mapping):
        return {check_counter(meter, meters): check_quantity(quantity)}
    if quantity is not None:
        raise MeterkitError(
            f"quantity: found {quantity!r:.40} beside a mapping of meters to quantities; leave it out"
        )
    if not meter:
        raise MeterkitError("quantities: found none; name at least one meter")
    return check_quantities(meter, meters)


def check_counter(name: object, meters: Mapping[str, Meter]) -> str:
    """Return the name of a meter that an app can count on, as a plain text.

    Raises:
        UnknownMeterError: there is none, or it is a gauge or derived.
    """
    countable = counters_of(meters)
    if not isinstance(name, str):
        raise UnknownMeterError.of(name, countable)
    if name not in countable:
        meter = meters.get(name)
        if meter is not None and meter.kind == "gauge":
            raise UnknownMeterError(
                name,
                f"meter: {name} is a gauge and cannot be counted; kit.gauges.set and kit.gauges.adjust"
                " change its level",
            )
        raise UnknownMeterError.of(name, countable)
    return plain_text(name)


def check_gauge(name: str, meters: Mapping[str, Meter]) -> str:
    """Return the name of a gauge, as a plain text.

    Raises:
        UnknownMeterError: there is none, or it is a counter.
    """
    gauges = [meter.name for meter in meters.values() if meter.kind == "gauge"]
    if name in gauges:
        return plain_text(name)
    if not gauges:
        raise UnknownMeterError(name, f"meter: found {name!r:.80}; the plans file has no gauges")
    raise UnknownMeterError.of(name, gauges, allowed="the gauges")


def counters_of(meters: Mapping[str, Meter]) -> frozenset[str]:
    """The meters that can be counted on: no gauges, none that are derived from another, nor what is spent."""
    return frozenset(
        name
        for name, meter in meters.items()
        if meter.kind == "counter" and meter.source is None and not meter.is_spend
    )
