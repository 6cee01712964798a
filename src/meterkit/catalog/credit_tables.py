"""``prices:`` and ``credits:``: what units cost by model, and what they can be paid with."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from meterkit.catalog.document import Fields
from meterkit.catalog.errors import RefusedError, unknown
from meterkit.catalog.meters import CHARGED, MICRO_USD, check_meter
from meterkit.catalog.model_prices import Credit, ModelPrices, ProviderPrices
from meterkit.catalog.model_terms import MODEL_TERMS, check_terms
from meterkit.catalog.models import Meter
from meterkit.catalog.shapes import Choice, Key, MapOf, Scalar, Table, kept
from meterkit.catalog.top_ups import TopUpTable, build_top_ups
from meterkit.catalog.value_parsers import (
    COST,
    NAME,
    PRICES,
    TABLE_OF_PRICES,
    parse_integer,
    percent,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.document import Node
    from meterkit.catalog.errors import Place, Problems
    from meterkit.catalog.meters import Meters
    from meterkit.catalog.model_prices import UnknownModel
    from meterkit.catalog.shapes import Json


class _PriceShape:
    """Shape of what units cost of the models of a pattern."""

    def read(self, node: Node, problems: Problems) -> int | None:
        """The cost of a unit; prices by unit and factors are refused."""
        if isinstance(node, Fields):
            message = (
                "found a map; factors and prices by unit are for a credit with `unit: money`, because a price"
                f" at Stripe, or of a credit, is one for all units of a meter; allowed: {COST.allowed}"
            )
            problems.refuse(node.place, message)
            return None
        return COST.read(node, problems)

    def schema(self) -> Json:
        """A cost."""
        return COST.schema()


_UNKNOWN_MODEL: Final[Choice[UnknownModel]] = Choice(("free", "deny"))


class ModelPricesTable(Table, what="prices by model"):
    """One of ``prices:``."""

    default = Key(
        COST,
        "What units cost of models that no pattern matches, and without a model; required without"
        " `unknown_model`.",
    )
    unknown_model = Key(
        _UNKNOWN_MODEL, "Without `default`: models of no pattern cost nothing (free), or are refused (deny)."
    )
    models = Key(
        MapOf(text(256), _PriceShape(), "patterns of model names and prices", 1),
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


class CreditTable(Table, what="a credit"):
    """One of ``credits:``."""

    unit = Key(Choice(("money",)), "money: a balance in the file's currency, which must be usd.")
    costs = Key(
        _COSTS,
        "Meter to credits per units, or to the name of prices by model.",
        required=True,
    )
    models = Key(
        MapOf(text(256), MODEL_TERMS, "patterns of model names", 1),
        "With `unit: money`: pattern with * of a model's name to prices in place of the provider's, and"
        " factors.",
    )
    unknown_model = Key(
        _UNKNOWN_MODEL,
        "With `unit: money`: models without a price cost nothing (free, default), or are refused (deny).",
    )
    low_balance_percent = Key(
        percent(least=1, most=100), "Share of the last grant at which the balance is low.", name="low_balance"
    )
    top_up = Key(TopUpTable, "With `unit: money`: what customers can buy of it.")


def build_model_prices(read: Mapping[str, ModelPricesTable | None]) -> dict[str, ModelPrices | None]:
    """The tables by name; None where one was refused, so that only its name is known."""
    return {name: None if values is None else _build_prices(values) for name, values in read.items()}


def _build_prices(values: ModelPricesTable) -> ModelPrices | None:
    if not values.has("default", "unknown_model"):
        values.problems.refuse(
            replace(values.node.place, path=values.node.place.child("default").path),
            "prices by model need this key: what units cost of models that no pattern matches; or write"
            " `unknown_model: free` (they cost nothing) or `unknown_model: deny` (they are refused)",
        )
    if values.has("default") and values.has("unknown_model"):
        message = "`default` is a price of all other models, so this has no effect; remove one of the two"
        values.problems.note(values.place("unknown_model"), "informs", message)
    if values.is_refused("default") or values.is_refused("unknown_model") or not values.models:
        return None
    return ModelPrices(
        default=values.default or 0,
        models=tuple(kept(values.models).items()),
        **values.given("unknown_model"),
    )


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
    models = kept(values.models)
    for pattern, terms in models.items():
        check_terms(pattern, terms, values.places("models")[pattern], values.problems)
    return ProviderPrices(
        markup_percent=markup,
        models=tuple((pattern, terms.prices) for pattern, terms in models.items()),
        factors={pattern: terms.factors for pattern, terms in models.items() if terms.factors},
        **values.given("unknown_model"),
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
        _refuse_keys_of_money(values)
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


def _refuse_keys_of_money(values: CreditTable) -> None:
    for key, cure in (
        ("top_up", "top-ups are sold in money; add `unit: money` to the credit"),
        ("models", "prices in money need `unit: money`; else name `prices.NAME` under `costs`"),
        ("unknown_model", "this needs `unit: money`; else write it in the `prices.NAME` that `costs` names"),
    ):
        if values.has(key):
            values.refuse(key, cure)


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
            fixed[meter], by_model[meter] = table.default or table.highest, table
    return fixed, by_model
