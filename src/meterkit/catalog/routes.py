"""``routes:``: rules of requests to one path, and the meters that such a request can add to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from meterkit.catalog.billing import (
    ALLOTMENTS,
    CHARGE_ON_SHAPE,
    ENFORCEMENTS,
    HEADER_NAME,
    HEADERS,
    STORE_FAILURES,
)
from meterkit.catalog.errors import RefusedError, unknown
from meterkit.catalog.match_lines import MATCH_SHAPE, WEBSOCKET, covers_line, parse_match, parse_mcp
from meterkit.catalog.meters import check_meter, counts_bytes, refuse_sizes
from meterkit.catalog.model_prices import covers_pattern, may_overlap
from meterkit.catalog.models import REQUEST_MODEL, ROUTE, Reserve, Route
from meterkit.catalog.notes import COMPARED_MAX
from meterkit.catalog.rates import RatesShape
from meterkit.catalog.usage_meters import PROVIDER_SHAPE, TOKEN_METERS, USAGE_METERS, unknown_provider
from meterkit.catalog.value_parsers import FLAG, NAME, quantity, text
from meterkit.catalog.value_shapes import (
    AnyForm,
    Key,
    ListOf,
    MapOf,
    MappedShape,
    Nullable,
    Scalar,
    Table,
    ValueShape,
    WordChoice,
    drop_refused,
)
from meterkit.catalog.yaml_tree import Fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog.credits import CreditTable, ModelPricesTable
    from meterkit.catalog.errors import FilePlace, Problems
    from meterkit.catalog.models import Meter
    from meterkit.catalog.plans import DeclaredNames
    from meterkit.catalog.yaml_tree import Node

_USAGE: Final = ("none", "auto", "openai", "anthropic", "gemini", "bedrock", "cohere", "mistral", "ollama")


class ReserveTable(Table, what="a reserve"):
    """One of ``reserve:`` of a route."""

    field = Key(
        text(
            128,
            pattern=r"[A-Za-z0-9_.-]+",
            allowed="the name of a field of the JSON body, such as max_tokens",
        ),
        "The field of the JSON request body with the quantity.",
        name="from",
    )
    default = Key(quantity(least=1), "The quantity where the body does not name one.", required=True)
    ceiling = Key(quantity(least=1), "The most that one request may name and hold; required with `from`.")


def _parse_model(name: str) -> str:
    if name == "any":
        raise RefusedError(
            'allowed: the models that the app chooses from, such as [gpt-5-mini, "claude-*"], or request,'
            " where the client chooses"
        )
    return text(256).parse(name)


_FIELD: Final = text(
    128,
    pattern=r"[A-Za-z0-9_.-]+",
    allowed="a path in the JSON response, such as meta.billed_units.search_units",
)
_PATHS: Final[ValueShape[tuple[str, ...]]] = AnyForm(
    "a path in the JSON response, or a list of paths",
    scalar=MappedShape(_FIELD, lambda path: (path,)),
    items=ListOf(_FIELD, "paths", 1),
)
_MODEL: Final = Scalar(_parse_model, "a model, or a pattern of models", text(256).json)
_OF_MCP: Final[dict[str, Any]] = {"idempotency_header": None}
"""A key of one call would stand for calls of other tools at the same path."""
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_VERBS: Final = ("consume", "per_message", "grow", "reserve")
_QUANTITIES: Final = MapOf(NAME, quantity(), "meters and quantities", 1)


class RouteTable(Table, what="a route"):
    """One of ``routes:``."""

    match = Key(MATCH_SHAPE, "Method and path template; * matches everything.", required=True)
    exempt = Key(FLAG, "The customer is not identified, nothing is decided, no headers.")
    always = Key(FLAG, "Decided by its rates only.")
    rates = Key(
        RatesShape(),
        "Requests of each customer on this route, on any plan: one rate or several.",
        name="rate",
    )
    feature = Key(NAME, "The feature that the customer's plan must have.")
    consume = Key(_QUANTITIES, "Meter to quantity per request.")
    per_message = Key(
        _QUANTITIES,
        "Meter to quantity per message received on a websocket.",
    )
    grow = Key(_QUANTITIES, "Gauge to quantity: asks whether it may grow by it.")
    storage = Key(
        WordChoice(("content-length",)),
        "Where the request states the size to store: asks whether the gauge of bytes may grow by it.",
    )
    usage = Key(WordChoice(_USAGE), "Whose token figures are read from the response: none (default), auto, …")
    usage_fields = Key(
        MapOf(NAME, _PATHS, "meters and fields", 1),
        "Meter to the path of its figure in the JSON of the response, or to a list of paths.",
    )
    records = Key(
        ListOf(NAME, "meters", 1),
        "Meters that the app records in requests of this route; these are refused once nothing is left.",
    )
    reserve = Key(
        MapOf(NAME, ReserveTable, "meters and reserves", 1), "What is held until the true quantity is known."
    )
    model = Key(
        AnyForm(
            "a model, a list of models that the app chooses from, or request",
            scalar=MappedShape(_MODEL, lambda name: (name,)),
            items=ListOf(_MODEL, "models", 1),
        ),
        "The model, or a list of models or patterns, that the app chooses from, whatever the request names;"
        " request: the client chooses it. Required with `reserve` where a model has a price.",
    )
    provider = Key(
        PROVIDER_SHAPE,
        "Whose models the app calls on this route, as the price table genai-prices names the provider.",
    )
    charge_on = Key(CHARGE_ON_SHAPE, "Outcomes that are billed: success, attempt or a list.")
    enforcement = Key(ENFORCEMENTS, "on or shadow.")
    on_store_failure = Key(STORE_FAILURES, "allow or deny.")
    headers = Key(HEADERS, "ietf, x-ratelimit, both or none.")
    allotment = Key(ALLOTMENTS, "off or 250ms; default: the plan's.")
    paths = Key(
        WordChoice(("as_sent",)),
        "as_sent: takes what it matches, also if the path holds dots or encoded slashes, as object keys do.",
    )
    idempotency_header = Key(
        Nullable(HEADER_NAME),
        "Header that marks a repeat, or null.",
    )


def build_routes(
    read: tuple[RouteTable, ...], declared: DeclaredNames, default: Route, problems: Problems
) -> tuple[Route, ...]:
    """The routes in the file's order; ``default`` is one that says nothing of itself."""
    matches = [(match, values.place("match")) for values in read if (match := values.match) is not None]
    _refuse_unreachable(matches, problems)
    note_shadowed_routes(matches, problems)
    return tuple(_build_route(values, declared, default) for values in read)


def _refuse_unreachable(matches: Iterable[tuple[str, FilePlace]], problems: Problems) -> None:
    first: dict[tuple[object, ...], FilePlace] = {}
    for match, place in matches:
        key = (*parse_match(match), parse_mcp(match))
        earlier = first.get((None, None, None)) or first.get(key)
        if earlier is not None:
            message = (
                f"never reached: the route in line {earlier.line} matches first; move it up or remove it"
            )
            problems.refuse(place, message)
        first.setdefault(key, place)


def _build_route(values: RouteTable, declared: DeclaredNames, default: Route) -> Route:
    method, path = parse_match(values.match or "*")
    mcp = parse_mcp(values.match or "*")
    _refuse_contradictions(values, method, path, is_mcp=mcp is not None)
    feature = values.feature
    if feature is not None and feature not in declared.features:
        values.refuse("feature", unknown("feature", feature, declared.features))
    if values.usage not in {None, "none"} and charging_meters(drop_refused(declared.meters)).isdisjoint(
        declared.meters
    ):
        message = (
            f"token figures go to the meters {', '.join(TOKEN_METERS)}, and to those named as a"
            " unit, such as web_searches; declare at least one of them, or a credit with `unit: money`"
        )
        values.refuse("usage", message)
    if values.rates:
        _check_rates(values, declared)
    if values.has("model") and not values.has("reserve", "usage"):
        values.refuse(
            "model", "`model` says whose price `reserve` and `usage` use; add one of them, or remove it"
        )
    if len(values.model or ()) > 1 and REQUEST_MODEL[0] in (values.model or ()):
        values.refuse("model", "`request` lets the client choose any model; write it alone, or remove it")
    _check_provider(values)
    _check_meters(values, declared)
    _note_unheld_fetch(values, method)
    return replace(
        default,
        **values.given("match", "exempt", "always", "rates", "feature", "storage", "charge_on"),
        **values.given("model", "provider"),
        **_build_usage(values, method),
        records=tuple(dict.fromkeys(values.records or ())),
        **values.given("enforcement", "on_store_failure", "headers", "allotment", "paths"),
        **(values.given("idempotency_header") if mcp is None else _OF_MCP | {"mcp": mcp[1]}),
        method=method,
        path=path,
        consume=drop_refused(values.consume),
        per_message=drop_refused(values.per_message),
        grow=drop_refused(values.grow),
        storage_meter=_build_storage_meter(values, declared),
        reserve=tuple(
            _build_reserve(name, written) for name, written in drop_refused(values.reserve).items()
        ),
    )


def _build_usage(values: RouteTable, method: str | None) -> dict[str, Any]:
    fields, word = drop_refused(values.usage_fields), values.usage or "none"
    if word != "none" and (twice := [name for name in fields if name in USAGE_METERS]):
        message = f"`usage: {word}` feeds {twice[0]} as well; name it in one of the two"
        values.refuse("usage_fields", message)
    return {
        "usage": "fields" if fields and word == "none" else word,
        "usage_fields": fields,
        "is_poll": method in _WITHOUT_BODY and is_fetched(word, method),
    }


def _refuse_contradictions(values: RouteTable, method: str | None, path: str | None, *, is_mcp: bool) -> None:
    if values.exempt:
        without_effect = [name for name in values.node.places if name not in {"match", "exempt"}]
        why = "an exempt route is not decided"
    elif values.always:
        without_effect = ["feature", "grow", "storage"]
        why = "an `always` route is decided by its rates only"
    elif method == WEBSOCKET:
        without_effect = ["reserve", "storage", "usage_fields"]
        why = "a websocket has no request body and no response"
    elif is_mcp:
        without_effect = ["storage", "idempotency_header"]
        why = "an MCP route matches messages, which have no files and no idempotency keys"
    else:
        without_effect, why = [], ""
    for name in without_effect:
        if name in values.node.places:
            values.problems.refuse(values.node.places[name], f"{why}, so `{name}` has no effect; remove it")
    if values.has("per_message") and method != WEBSOCKET and path is not None:
        values.refuse("per_message", f'only websockets have messages; did you mean "{WEBSOCKET} {path}"?')


def _note_unheld_fetch(values: RouteTable, method: str | None) -> None:
    if method in _WITHOUT_BODY and is_fetched(values.usage or "none", method) and values.has("reserve"):
        message = (
            f"a {method} request holds nothing on `usage: auto`, which takes its response for a stored one;"
            " name the API by `usage: NAME` if it calls a model"
        )
        values.problems.note(values.place("reserve"), "informs", message)


def _check_provider(values: RouteTable) -> None:
    """Check that the price table has a provider, and that the route has token usage that it prices."""
    name = values.provider
    if name is None:
        return
    reports = not USAGE_METERS.isdisjoint(values.records or ())
    if not (reports or values.has("reserve") or values.usage not in {None, "none"}):
        message = "`provider` says whose prices apply to token usage; add `usage: auto`, or remove it"
        values.refuse("provider", message)
    elif (message := unknown_provider(name) or "") != "":
        values.refuse("provider", message)


def _check_meters(values: RouteTable, declared: DeclaredNames) -> None:
    """Check that counted meters are counters of their own, and growing ones gauges."""
    places = [(verb, *entry) for verb in (*_VERBS, "usage_fields") for entry in values.places(verb).items()]
    places += [("records", item.text, item.place) for item in values.texts("records")]
    for verb, name, place in places:
        meter = check_meter(name, declared.meters, place, values.problems)
        message = _misuse_message(verb, meter) if meter else None
        if message is not None:
            values.problems.refuse(place, message)
        elif meter:
            refuse_sizes(_written_quantities(values, verb, name), meter, values.problems)


def _written_quantities(values: RouteTable, verb: str, meter: str) -> Sequence[Node]:
    """The quantities of a meter under one of the keys of a route, as written."""
    if verb == "reserve":
        reserve = drop_refused(values.reserve).get(meter)
        return reserve.nodes("default", "ceiling") if reserve else ()
    return [table.values[meter] for table in values.nodes(verb) if isinstance(table, Fields)]


def _misuse_message(verb: str, meter: Meter) -> str | None:
    name = meter.name
    if verb == "grow":
        is_right = meter.kind == "gauge"
        return None if is_right else f"{name} is a counter and only gauges grow; use `consume: {{{name}: …}}`"
    if meter.kind == "gauge":
        cure = "`storage: content-length`" if counts_bytes(meter) else f"`grow: {{{name}: …}}`"
        return f"{name} is a gauge: it has a level and cannot be counted up by `{verb}`; use {cure}"
    if meter.source is not None:
        return f"{name} is a part of {meter.source} and follows it; name {meter.source} in `{verb}`"
    return None


def _build_storage_meter(values: RouteTable, declared: DeclaredNames) -> str | None:
    if values.storage is None:
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
        values.refuse("storage", f"a storage route fills a gauge of bytes, and {found}; {cure}")
    return None


def _check_rates(values: RouteTable, declared: DeclaredNames) -> None:
    if ROUTE in declared.meters:
        message = (
            f"policies of a route's rates and of the meter {ROUTE} would have the same name; rename the meter"
        )
        values.refuse("rates", message)
    refuse_sizes(values.nodes("rates"), "a route's rate counts requests", values.problems)


def _build_reserve(name: str, values: ReserveTable) -> Reserve:
    default = values.default or 1
    ceiling = values.ceiling or default
    if values.has("field") and not values.has("ceiling"):
        message = "`from` lets the client name the quantity; add `ceiling`, the most that one request holds"
        values.refuse("field", message)
    if default > ceiling and not values.is_refused("default"):
        values.refuse(
            "default",
            f"the default {default} is above the ceiling {ceiling}; lower one or raise the other",
        )
    return Reserve(meter=name, field=values.field, default=default, ceiling=ceiling)


def requested_quantities(route: Route, values: RouteTable) -> Iterator[tuple[FilePlace, str, str, int]]:
    """Each quantity that a route requests at admission: its place, key and meter."""
    reserved = {reserve.meter: reserve.default for reserve in route.reserve}
    for key, quantities in zip(_VERBS, (route.consume, route.per_message, route.grow, reserved), strict=True):
        places = values.places(key)
        yield from ((places[meter], key, meter, asked) for meter, asked in quantities.items())


AdditionKey: TypeAlias = Literal["consume", "per_message", "usage_fields", "usage", "records", "from"]
"""The key of the route, or of the meter (`from`), that says so."""


def additions_of(
    route: Route, meters: Mapping[str, Meter], models: Sequence[str] = ()
) -> dict[str, AdditionKey]:
    """Each counter that a request of a route can add to, and the key that says so; `consume` is the last.

    Whatever is reserved is held before the app runs, and is not listed for that.

    Args:
        route: the route.
        meters: those of the plans file.
        models: that the request names; none: any model may answer it.
    """
    by_key = _meters_by_key(route, meters).items()
    named: list[tuple[AdditionKey, str]] = [
        (key, name) for key, names in by_key for name in names if _is_counter(name, meters)
    ]
    found: dict[str, AdditionKey] = {}
    for key, name in named:
        found.setdefault(name, key)
    models = models or route.models(())
    # Token usage has a model, so it may count for derived meters; other quantities have none.
    sources = [name for key, name in named if key in {"usage", "records"} and name in USAGE_METERS]
    for name in sources:  # It grows: a derived meter may have parts of its own.
        for part in meters.values():
            if part.source == name and not part.is_row and _may_match(part, models):
                found.setdefault(part.name, "from")
                sources.append(part.name)
    return found


def charging_meters(meters: Mapping[str, Meter]) -> frozenset[str]:
    """The meters that a call of a language model adds to: tokens, and what calls are charged."""
    return USAGE_METERS.union(name for name, meter in meters.items() if meter.charges is not None)


def reads_tokens(route: Route) -> bool:
    """Whether responses of a route are read for the token usage of calls that they answer."""
    return route.usage not in {"none", "fields"} and not route.is_poll


def is_fetched(usage: str, method: str) -> bool:
    """Whether `usage: auto` takes a response for a stored one, unless the request's body asks a model."""
    return usage == "auto" and method not in {"POST", "WS"}


def _meters_by_key(route: Route, meters: Mapping[str, Meter]) -> dict[AdditionKey, Iterable[str]]:
    of_calls = charging_meters(meters)
    return {
        "per_message": route.per_message,
        "usage_fields": route.usage_fields,
        "usage": [name for name in meters if name in of_calls] if reads_tokens(route) else (),
        "records": route.records,
        "consume": route.consume,
    }


def _is_counter(name: str, meters: Mapping[str, Meter]) -> bool:
    return name in meters and meters[name].kind == "counter"


def _may_match(derived: Meter, models: Sequence[str]) -> bool:
    pattern = derived.where.get("model")
    return not models or pattern is None or any(may_overlap(model, pattern) for model in models)


def note_shadowed_routes(matches: Sequence[tuple[str, FilePlace]], problems: Problems) -> None:
    """Say so where an earlier line takes every request of a later one.

    Args:
        matches: the ``match`` lines of the file in its order, with their places.
        problems: the list to add to.
    """
    earlier: list[tuple[str, FilePlace]] = []
    for match, place in matches[:COMPARED_MAX]:
        found = next((line for written, line in earlier if covers_line(written, match)), None)
        if found is not None:
            message = f"never reached: the route in line {found.line} matches all of it; move this one up"
            problems.note(place, "never_reached", message)
        earlier.append((match, place))


def note_shadowed_prices(tables: Iterable[ModelPricesTable | CreditTable], problems: Problems) -> None:
    """Say so where an earlier pattern of a table matches every model of a later one.

    Args:
        tables: those of ``prices:``, and the credits, which may have ``models`` of their own.
        problems: the list to add to.
    """
    for table in tables:
        places = table.places("models")
        for nth, pattern in enumerate(places):
            earlier = list(places)[: min(nth, COMPARED_MAX)]
            found = next((first for first in earlier if covers_pattern(first, pattern)), None)
            if found is not None:
                message = (
                    f"never reached: {found!r} in line {places[found].line} matches all of it;"
                    " move this one up"
                )
                problems.note(places[pattern], "never_reached", message)
