"""``routes:``: how requests of one shape are decided and counted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.billing import CHARGE_ON_SHAPE, ENFORCEMENTS, HEADER_NAME, HEADERS, STORE_FAILURES
from meterkit.catalog.match import MATCH_SHAPE, WEBSOCKET, parse_match
from meterkit.catalog.meters import check_meter, counts_bytes
from meterkit.catalog.models import Reserve, Route
from meterkit.catalog.notes import note_unreachable
from meterkit.catalog.report import unknown
from meterkit.catalog.scalars import FLAG, NAME, quantity, text
from meterkit.catalog.shapes import Choice, Key, ListOf, MapOf, Nullable, Table, Values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meterkit.catalog.plans import Declared
    from meterkit.catalog.report import Place, Problems

USAGE_METERS: Final = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "total_tokens",
)
_USAGE: Final = ("none", "auto", "openai", "anthropic", "gemini", "bedrock", "cohere", "mistral", "ollama")

FIELD: Final = Key(
    "from",
    text(128, pattern=r"[A-Za-z0-9_.-]+", allowed="the name of a field of the JSON body, such as max_tokens"),
    "The field of the JSON request body that names the quantity.",
)
DEFAULT: Final = Key(
    "default", quantity(least=1), "The quantity where the body does not name one.", required=True
)
CEILING: Final = Key("ceiling", quantity(least=1), "The most that is set aside; required with `from`.")
RESERVE_TABLE: Final = Table("a reserve", (FIELD, DEFAULT, CEILING))

_QUANTITIES: Final = MapOf(NAME, quantity(), "meters and quantities", 1)
MATCH: Final = Key("match", MATCH_SHAPE, "Method and path template; * for all else.", required=True)
EXEMPT: Final = Key("exempt", FLAG, "Not identified, not decided, no headers.")
ALWAYS: Final = Key("always", FLAG, "Decided by its rates only.")
FEATURE: Final = Key("feature", NAME, "The feature that the customer's plan must have.")
CONSUME: Final = Key("consume", _QUANTITIES, "Meter to quantity per request.")
PER_MESSAGE: Final = Key(
    "per_message",
    _QUANTITIES,
    "Meter to quantity per message received on a websocket.",
    without_effect="websockets pass undecided and uncounted",
)
GROW: Final = Key(
    "grow",
    _QUANTITIES,
    "Gauge to quantity: asks whether it may grow by it.",
    without_effect="gauges hold nothing, and no request is refused for what it adds to one",
)
STORAGE: Final = Key(
    "storage",
    Choice(("content-length",)),
    "Where the size of what is stored stands.",
    without_effect="gauges hold nothing, and no upload is refused for its size",
)
USAGE: Final = Key(
    "usage", Choice(_USAGE), "Whose token figures are read off the response: none (default), auto, …"
)
RESERVE: Final = Key(
    "reserve", MapOf(NAME, RESERVE_TABLE, "meters and reserves", 1), "What is set aside beforehand."
)
CHARGE_ON: Final = Key("charge_on", CHARGE_ON_SHAPE, "Outcomes that are billed: success, attempt or a list.")
ENFORCEMENT: Final = Key("enforcement", ENFORCEMENTS, "on or shadow.")
ON_STORE_FAILURE: Final = Key("on_store_failure", STORE_FAILURES, "allow or deny.")
ROUTE_HEADERS: Final = Key("headers", HEADERS, "ietf, x-ratelimit, both or none.")
IDEMPOTENCY_HEADER: Final = Key(
    "idempotency_header",
    Nullable(HEADER_NAME),
    "Header that marks a repeat, or null.",
    without_effect="a repeated request is counted and billed again",
)
ROUTE_TABLE: Final = Table(
    "a route",
    (
        MATCH, EXEMPT, ALWAYS, FEATURE, CONSUME, PER_MESSAGE, GROW, STORAGE, USAGE, RESERVE,
        CHARGE_ON, ENFORCEMENT, ON_STORE_FAILURE, ROUTE_HEADERS, IDEMPOTENCY_HEADER,
    ),
)  # fmt: skip
ROUTES_SHAPE: Final = ListOf(ROUTE_TABLE, "routes")


def build_routes(
    read: tuple[Values, ...], declared: Declared, default: Route, problems: Problems
) -> tuple[Route, ...]:
    """The routes in the file's order; ``default`` is one that says nothing of itself."""
    _refuse_unreachable(read, problems)
    matches = [(match, values.place(MATCH)) for values in read if (match := values.get(MATCH)) is not None]
    note_unreachable(matches, problems)
    return tuple(_build_route(values, declared, default, problems) for values in read)


def _refuse_unreachable(read: tuple[Values, ...], problems: Problems) -> None:
    first: dict[tuple[str | None, str | None], Place] = {}
    for values in read:
        match = values.get(MATCH)
        if match is None:
            continue
        key = parse_match(match)
        earlier = first.get((None, None)) or first.get(key)
        if earlier is not None:
            message = (
                f"never reached: the route in line {earlier.line} matches first; move it up or remove it"
            )
            problems.refuse(values.place(MATCH), message)
        first.setdefault(key, values.place(MATCH))


def _build_route(values: Values, declared: Declared, default: Route, problems: Problems) -> Route:
    method, path = parse_match(values.get(MATCH, "*"))
    _refuse_contradictions(values, method, path, problems)
    if method == WEBSOCKET:
        message = "a `WS` route has no effect yet: websockets pass undecided and uncounted"
        problems.note(values.place(MATCH), "without_effect", message)
    feature = values.get(FEATURE)
    if feature is not None and feature not in declared.features:
        problems.refuse(values.place(FEATURE), unknown("feature", feature, declared.features))
    if values.get(USAGE, "none") != "none" and not any(name in declared.meters for name in USAGE_METERS):
        message = f"token figures go to the meters {', '.join(USAGE_METERS)}; declare at least one of them"
        problems.refuse(values.place(USAGE), message)
    return replace(
        default,
        **values.given(
            *(MATCH, EXEMPT, ALWAYS, FEATURE, STORAGE, USAGE),
            *(CHARGE_ON, ENFORCEMENT, ON_STORE_FAILURE, ROUTE_HEADERS, IDEMPOTENCY_HEADER),
        ),
        method=method,
        path=path,
        consume=_build_quantities(values, CONSUME, declared, problems),
        per_message=_build_quantities(values, PER_MESSAGE, declared, problems),
        grow=_build_quantities(values, GROW, declared, problems),
        storage_meter=_build_storage_meter(values, declared, problems),
        reserve=_build_reserves(values, declared, problems),
    )


def _refuse_contradictions(values: Values, method: str | None, path: str | None, problems: Problems) -> None:
    if values.get(EXEMPT):
        without_effect = [name for name in values.node.places if name not in {MATCH.name, EXEMPT.name}]
        why = "an exempt route is not decided"
    elif values.get(ALWAYS):
        without_effect = [FEATURE.name, GROW.name, STORAGE.name]
        why = "an `always` route is decided by its rates only"
    elif method == WEBSOCKET:
        without_effect = [RESERVE.name, STORAGE.name, USAGE.name]
        why = "a websocket has no request body and no response"
    else:
        without_effect, why = [], ""
    for name in without_effect:
        if name in values.node.places:
            problems.refuse(values.node.places[name], f"{why}, so `{name}` has no effect; remove it")
    if values.has(PER_MESSAGE) and method != WEBSOCKET and path is not None:
        message = f'only websockets have messages; did you mean "{WEBSOCKET} {path}"?'
        problems.refuse(values.place(PER_MESSAGE), message)


def _build_quantities(
    values: Values, key: Key[dict[str, int | None]], declared: Declared, problems: Problems
) -> dict[str, int]:
    for name, place in values.places(key).items():
        if key is GROW:
            meter = check_meter(name, declared.meters, place, problems)
            if meter is not None and meter.kind != "gauge":
                message = f"{name} is a counter and only gauges grow; use `consume: {{{name}: …}}`"
                problems.refuse(place, message)
        else:
            _check_counter(name, place, key.name, declared, problems)
    return {name: written for name, written in values.get(key, {}).items() if written is not None}


def _check_counter(name: str, place: Place, verb: str, declared: Declared, problems: Problems) -> None:
    meter = check_meter(name, declared.meters, place, problems)
    if meter is not None and meter.kind == "gauge":
        cure = "`storage: content-length`" if counts_bytes(meter) else f"`grow: {{{name}: …}}`"
        problems.refuse(
            place, f"{name} is a gauge: it has a level and cannot be counted up by `{verb}`; use {cure}"
        )
    elif meter is not None and meter.source is not None:
        problems.refuse(
            place, f"{name} is a part of {meter.source} and follows it; name {meter.source} in `{verb}`"
        )


def _build_storage_meter(values: Values, declared: Declared, problems: Problems) -> str | None:
    if values.get(STORAGE) is None:
        return None
    gauges = [
        name
        for name, meter in declared.meters.items()
        if meter is not None and meter.kind == "gauge" and counts_bytes(meter)
    ]
    if "storage" in gauges:
        return "storage"
    if len(gauges) == 1:
        return gauges[0]
    if None not in declared.meters.values():
        found = f"{', '.join(gauges)} are several" if gauges else "there is none"
        cure = "declare the meter `storage: {unit: byte, kind: gauge}`"
        message = f"a storage route fills a gauge of bytes, and {found}; {cure}"
        problems.refuse(values.place(STORAGE), message)
    return None


def _build_reserves(values: Values, declared: Declared, problems: Problems) -> tuple[Reserve, ...]:
    for name, place in values.places(RESERVE).items():
        _check_counter(name, place, RESERVE.name, declared, problems)
    read = values.get(RESERVE, {}).items()
    return tuple(_build_reserve(name, written, problems) for name, written in read if written is not None)


def _build_reserve(name: str, values: Values, problems: Problems) -> Reserve:
    default = values.get(DEFAULT, 1)
    ceiling = values.get(CEILING, default)
    if values.has(FIELD) and not values.has(CEILING):
        message = (
            "`from` lets the client name the quantity; add `ceiling`, the most that one request sets aside"
        )
        problems.refuse(values.place(FIELD), message)
    if default > ceiling and not values.is_refused(DEFAULT):
        problems.refuse(
            values.place(DEFAULT),
            f"the default {default} is above the ceiling {ceiling}; lower one or raise the other",
        )
    return Reserve(meter=name, field=values.get(FIELD), default=default, ceiling=ceiling)


def quantities_of(route: Route, values: Values) -> Iterator[tuple[Place, str, str, int]]:
    """Each quantity of a route that is asked for at admission: its place, key and meter."""
    keys: tuple[tuple[Key[Any], Mapping[str, int]], ...] = (
        (CONSUME, route.consume),
        (PER_MESSAGE, route.per_message),
        (GROW, route.grow),
        (RESERVE, {reserve.meter: reserve.default for reserve in route.reserve}),
    )
    for key, quantities in keys:
        places = values.places(key)
        for meter, asked in quantities.items():
            yield places[meter], key.name, meter, asked
