"""``meters:``, ``features:``, ``prices:`` and ``credits:``: what can be counted, had and paid with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from meterkit.catalog.amount_texts import MICRO_UNIT
from meterkit.catalog.errors import RefusedError, unknown
from meterkit.catalog.model_prices import Credit, ModelPrices, ProviderPrices
from meterkit.catalog.models import Meter, Report, StripeEvent
from meterkit.catalog.shapes import Choice, Key, MapOf, Scalar, Table, kept
from meterkit.catalog.top_ups import TopUpTable, build_top_ups
from meterkit.catalog.value_parsers import (
    COST,
    NAME,
    PRICE,
    PRICES,
    TABLE_OF_PRICES,
    parse_integer,
    percent,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog.document import Text
    from meterkit.catalog.errors import Place, Problems

EVENT_NAME_MAX: Final = 100
CHARGED: Final = "_charged"
"""Ends the name of the meter that counts what a credit of money is charged."""
MICRO_USD: Final = f"{MICRO_UNIT}USD"
ALL: Final = "all"
Kind = Literal["counter", "gauge"]
_KINDS: Final[Choice[Kind]] = Choice(("counter", "gauge"))
_REPORTS: Final[Choice[Report]] = Choice(("overage", "usage", "none"))
_BYTES: Final = frozenset({"byte", "bytes"})


class StripeTable(Table, what="a Stripe event"):
    """``stripe:`` of a meter."""

    event_name = Key(text(EVENT_NAME_MAX), "The event name of the meter at Stripe.", required=True)
    report = Key(_REPORTS, "Which part Stripe is sent: overage (default), usage or none.")


class MeterTable(Table, what="a meter"):
    """One of ``meters:``."""

    unit = Key(NAME, "What one is: request, token, byte, seat, …", required=True)
    title = Key(text(128), "The name that customers see on invoices; default: made of the key.", name="name")
    kind: Key[Kind] = Key(_KINDS, "counter (default) adds up over a period; gauge holds a level.")
    stripe = Key(StripeTable, "The Stripe meter event that carries the billable usage.")
    source = Key(NAME, "The counter that this meter is a part of.", name="from")
    where = Key(
        MapOf(NAME, text(256), "dimensions and patterns", 1), "Which part: dimension to pattern with *."
    )


class ModelPricesTable(Table, what="prices by model"):
    """One of ``prices:``."""

    default = Key(
        COST, "What units cost of models that no pattern matches, and without a model.", required=True
    )
    models = Key(
        MapOf(text(256), COST, "patterns of model names and prices", 1),
        "Pattern with * of a model's name to the price; the first one that matches counts.",
        required=True,
    )


_PROVIDER_PRICES: Final = "provider_prices"
_TOKENS: Final = "tokens"
_MARKUP: Final = "markup"
_MARKUP_LEAST: Final = -100
_MARKUP_MAX: Final = 1_000
_PERCENT: Final = re.compile(r"(?P<sign>-?)(?P<number>[0-9_]+) ?%")


@dataclass(frozen=True, slots=True)
class _Markup:
    percent: int


def _parse_cost(written: str) -> int | str | ProviderPrices | _Markup:
    if written == _PROVIDER_PRICES:
        return ProviderPrices()
    if written.startswith(PRICES):
        return TABLE_OF_PRICES.parse(written)
    if (found := _PERCENT.fullmatch(written)) is not None:
        found_percent = int(f"{found['sign']}{parse_integer(found['number'])}")
        if not _MARKUP_LEAST <= found_percent <= _MARKUP_MAX:
            raise RefusedError(f"allowed: a markup from {_MARKUP_LEAST}% to {_MARKUP_MAX:_}%")
        return _Markup(found_percent)
    try:
        return COST.parse(written)
    except RefusedError as error:
        reason = f"{error.reason}, or `prices.NAME`"
        raise RefusedError(reason, meant=error.meant) from None


_Cost = int | str | ProviderPrices | _Markup
_COST_OR_PRICES: Final[Scalar[_Cost]] = Scalar(
    _parse_cost,
    f"{COST.allowed}, or `prices.NAME`",
    {
        "anyOf": [
            COST.schema(),
            TABLE_OF_PRICES.schema(),
            {"const": _PROVIDER_PRICES},
            {"type": "string", "pattern": "^-?[0-9_]+ *%$"},
        ]
    },
)
"""A cost, or the name of a table of costs; of money: providers' prices, or a markup."""
_COSTS: Final[MapOf[_Cost]] = MapOf(NAME, _COST_OR_PRICES, "meters and costs", 1)
_PRICED: Final = Choice(
    (
        *("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"),
        "requests",
    )
)


class CreditTable(Table, what="a credit"):
    """One of ``credits:``."""

    unit = Key(Choice(("money",)), "money: a balance in the file's currency, which must be usd.")
    costs = Key(
        _COSTS,
        "Meter to credits per units, or to the name of prices by model.",
        required=True,
    )
    models = Key(
        MapOf(text(256), MapOf(_PRICED, PRICE, "tokens and prices", 1), "patterns of model names", 1),
        "With `unit: money`: pattern with * of a model's name to prices in place of the provider's.",
    )
    low_balance_percent = Key(
        percent(least=1, most=100), "Share of the last grant at which the balance is low.", name="low_balance"
    )
    top_up = Key(TopUpTable, "With `unit: money`: what customers can buy of it.")


Meters = dict[str, "Meter | None"]


def build_meters(read: Mapping[str, MeterTable | None]) -> Meters:
    """The meters by name; None where a definition was refused, so that only its name is known."""
    meters: Meters = {
        name: None if values is None else _build_meter(name, values) for name, values in read.items()
    }
    _refuse_event_names_used_twice(read)
    for name, values in kept(read).items():
        if values.source is not None:
            _check_source(name, values, read)
    return meters


def counts_bytes(meter: Meter) -> bool:
    """Whether quantities of the meter may be written as sizes."""
    return meter.unit in _BYTES


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
        title=values.title or name[:1].upper() + name[1:].replace("_", " "),
        unit=unit,
        kind=kind,
        stripe=event,
        source=source,
        where=kept(values.where),
    )


def _refuse_event_names_used_twice(read: Mapping[str, MeterTable | None]) -> None:
    first: dict[str, str] = {}
    for name, values in kept(read).items():
        event = values.stripe
        event_name = event and event.event_name
        if event and event_name and (owner := first.setdefault(event_name, name)) != name:
            message = f"{event_name!r} already carries the meter {owner}; allowed: an event name per meter"
            event.refuse("event_name", message)


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


def build_model_prices(read: Mapping[str, ModelPricesTable | None]) -> dict[str, ModelPrices | None]:
    """The tables by name; None where one was refused, so that only its name is known."""
    return {
        name: None
        if values is None or values.default is None
        else ModelPrices(default=values.default, models=tuple(kept(values.models).items()))
        for name, values in read.items()
    }


def build_charged_meters(
    read: Mapping[str, CreditTable | None], meters: Meters, currency: str | None
) -> Meters:
    """For each credit of money the meter that counts what calls are charged, in micro-units."""
    built: Meters = {}
    for credit, values in read.items():
        if values is None or values.unit != "money":
            continue
        name = f"{credit}{CHARGED}"
        if currency not in {"usd", None}:
            message = f"providers' prices are in US dollars, and this file's currency is {currency}"
            values.refuse("unit", f"{message}; allowed: currency usd")
        if name in meters:
            message = f"what calls are charged is counted on a meter of its own, {name}, which is declared"
            values.refuse("unit", f"{message}; rename that meter or the credit")
            continue
        title = f"{credit[:1].upper()}{credit[1:].replace('_', ' ')} charged"
        built[name] = Meter(
            name=name,
            title=title,
            unit=MICRO_USD,
            kind="counter",
            stripe=None,
            source=None,
            where={},
            charges=_build_charges(values),
        )
    return built


def _build_charges(values: CreditTable) -> ProviderPrices:
    costs, markup = values.costs or {}, 0
    for key, place in values.places("costs").items():
        cost = costs.get(key)
        if key == _TOKENS and not isinstance(cost, ProviderPrices | None):
            values.problems.refuse(place, f"allowed: {_PROVIDER_PRICES}")
        elif key == _MARKUP and isinstance(cost, _Markup):
            markup = cost.percent
        elif key == _MARKUP and cost is not None:
            values.problems.refuse(place, "allowed: a percentage, such as 30%")
        elif key not in {_TOKENS, _MARKUP}:
            message = f"money pays for `{_TOKENS}: {_PROVIDER_PRICES}`, with a `{_MARKUP}`; remove {key}"
            values.problems.refuse(place, message)
    if values.costs and _TOKENS not in costs:
        values.refuse("costs", f"say what money pays for: `{_TOKENS}: {_PROVIDER_PRICES}`")
    models = kept(values.models).items()
    return ProviderPrices(
        markup_percent=markup, models=tuple((pattern, kept(prices)) for pattern, prices in models)
    )


def build_credits(
    read: Mapping[str, CreditTable | None],
    places: Mapping[str, Place],
    meters: Meters,
    prices: Mapping[str, ModelPrices | None],
    problems: Problems,
) -> dict[str, Credit]:
    """The credits by name; ``prices`` are those by model that their costs may name."""
    built: dict[str, Credit] = {}
    paid: dict[str, str] = {}
    for name, values in read.items():
        if name in meters:
            message = f"{name!r} is also a meter, and grants must tell them apart; choose another name"
            problems.refuse(places[name], message)
        if values is None:
            built[name] = Credit(name=name, costs={}, low_balance_percent=None)
            continue
        if values.unit == "money":
            charged = f"{name}{CHARGED}"
            if (other := paid.setdefault(_TOKENS, name)) != name:
                values.refuse(
                    "unit", f"tokens are paid with the credit {other} already; a file has one of money"
                )
            low, sold = values.low_balance_percent, values.top_up
            top_up = None if sold is None else build_top_ups(sold)
            if top_up is not None and top_up.auto is not None and low is not None:
                message = "`top_up.auto.below` says when the balance is low; remove this"
                values.refuse("low_balance_percent", message)
            built[name] = Credit(
                name=name, costs={charged: 1}, low_balance_percent=low, is_money=True, top_up=top_up
            )
            continue
        if values.has("top_up"):
            values.refuse("top_up", "top-ups are sold in money; add `unit: money` to the credit")
        if values.has("models"):
            values.refuse(
                "models", "prices in money need `unit: money`; else name `prices.NAME` under `costs`"
            )
        for meter_name, place in values.places("costs").items():
            if isinstance((values.costs or {}).get(meter_name), ProviderPrices | _Markup):
                message = "providers' prices and markups are in money; add `unit: money` to the credit"
                problems.refuse(place, message)
                continue
            meter = check_meter(meter_name, meters, place, problems)
            if meter is not None and meter.kind == "gauge":
                problems.refuse(place, f"{meter.name} is a gauge; credits pay for counters only")
            elif meter is not None and meter.source is not None:
                message = f"{meter.name} is a part of {meter.source}; give the cost of {meter.source}"
                problems.refuse(place, message)
            other = paid.setdefault(meter_name, name)
            if other != name:
                problems.refuse(
                    place, f"{meter_name} is paid with the credit {other} already; a meter has one"
                )
        costs, by_model = _resolve_costs(values.costs, prices, values.places("costs"), problems)
        low = values.low_balance_percent
        built[name] = Credit(name=name, costs=costs, low_balance_percent=low, by_model=by_model)
    return built


def _resolve_costs(
    costs: Mapping[str, _Cost | None] | None,
    prices: Mapping[str, ModelPrices | None],
    places: Mapping[str, Place],
    problems: Problems,
) -> tuple[dict[str, int], dict[str, ModelPrices]]:
    """Costs of meters: each by itself or as the default of its table; and the tables that they name."""
    fixed, by_model = dict[str, int](), dict[str, ModelPrices]()
    for meter, cost in (costs or {}).items():
        if isinstance(cost, int):
            fixed[meter] = cost
        elif not isinstance(cost, str):
            continue
        elif cost not in prices:
            problems.refuse(places[meter], unknown("price table", cost, prices))
        elif (table := prices[cost]) is not None:
            fixed[meter], by_model[meter] = table.default, table
    return fixed, by_model


def check_meter(name: str, meters: Meters, place: Place, problems: Problems) -> Meter | None:
    """The meter of that name; a name that is not declared is refused at ``place``."""
    if name not in meters:
        written = [known for known, meter in meters.items() if meter is None or not meter.is_row]
        problems.refuse(place, unknown("meter", name, written))
        return None
    return meters[name]
