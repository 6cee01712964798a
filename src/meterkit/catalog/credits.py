"""``prices:`` and ``credits:``: prices by model, terms in money, top-ups, and credits that pay for meters."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llm_usage.price_table import is_listed
from llm_usage.units import UNIT_OF, UNITS, WHOLE_OF
from meterkit.catalog.billing import URL
from meterkit.catalog.credit_values import AutoTopUp, Credit, TopUps
from meterkit.catalog.currencies import BALANCE_CURRENCY, PerCurrency, by_currency
from meterkit.catalog.errors import RefusedError, listed, quoted, suggestion, unknown
from meterkit.catalog.meters import CHARGED, MICRO_USD, check_meter
from meterkit.catalog.model_prices import ModelPrices, ModelTerms, ProviderPrices
from meterkit.catalog.models import Meter
from meterkit.catalog.usage_meters import TOKEN_METERS
from meterkit.catalog.value_parsers import (
    AMOUNT_CENTS_MAX,
    COST,
    MICRO,
    NAME,
    PRICE,
    PRICES,
    TABLE_OF_PRICES,
    integer,
    money,
    parse_integer,
    percent,
    text,
)
from meterkit.catalog.value_shapes import Key, ListOf, MapOf, Scalar, Table, WordChoice, drop_refused
from meterkit.catalog.yaml_tree import Fields, kind_of

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from fractions import Fraction

    from meterkit.catalog.errors import FilePlace, Problems
    from meterkit.catalog.meters import Meters
    from meterkit.catalog.model_prices import UnknownModel
    from meterkit.catalog.value_shapes import Json
    from meterkit.catalog.yaml_tree import Node

FACTORS: Final = ("service_tier", "speed", "inference_geo", "processing")
"""Ways of processing a call that responses name and that change its price."""
_USUAL: Final = (*(name for name in TOKEN_METERS if name != "total_tokens"), "requests")
_UNITS: Final = (*_USUAL, *sorted(UNITS - {*_USUAL}))
_FACTOR_PERCENT: Final = re.compile(r"([0-9][0-9_]*) ?%")
_FACTOR_MAX: Final = 10_000
_WHOLES: Final = ("input_tokens", "output_tokens")
_OF: Final = "prices by unit, such as `input_tokens: 0.15 per 1_000_000`, and factors"


def _parse_factor(written: str) -> int:
    found = _FACTOR_PERCENT.fullmatch(written)
    allowed = f"a whole percentage of the standard price, such as 200%, from 0% to {_FACTOR_MAX:_}%"
    if found is None:
        raise RefusedError(f"allowed: {allowed}")
    return parse_integer(found[1], most=_FACTOR_MAX, allowed=allowed)


_FACTOR: Final = Scalar(
    _parse_factor,
    "a percentage of the standard price, such as 200%",
    {"type": "string", "pattern": "^[0-9][0-9_]* ?%$"},
)
_FACTORS: Final[MapOf[int]] = MapOf(text(64), _FACTOR, "values and percentages", 1)


class _TermsShape:
    """Prices and factors of one pattern of model names."""

    def read(self, node: Node, problems: Problems) -> ModelTerms | None:
        """The prices and factors; units written under two names are refused."""
        if not isinstance(node, Fields) or not node.values:
            found = "an empty map" if isinstance(node, Fields) else kind_of(node)
            problems.refuse(node.place, f"found {found}; allowed: a map of {_OF}")
            return None
        prices: dict[str, Fraction] = {}
        factors: dict[str, Mapping[str, int]] = {}
        written: dict[str, str] = {}
        is_whole = True
        for name, value in node.values.items():
            place = node.places[name]
            if name in FACTORS:
                read = _FACTORS.read(value, problems)
                factors[name] = drop_refused(read)
            elif name not in _UNITS:
                known = (*_UNITS, *FACTORS)
                allowed = f"allowed: {listed(_USUAL)}, the other units of the price table, {listed(FACTORS)}"
                near = suggestion(name, known)
                problems.refuse(place, f"unknown unit or factor {quoted(name)}; {allowed}{near}")
                is_whole = False
            elif (other := written.setdefault(UNIT_OF.get(name, name), name)) != name:
                problems.refuse(place, f"{other} is the same unit; keep one of the two")
            elif (price := PRICE.read(value, problems)) is not None:
                prices[name] = price
            else:
                is_whole = False
        return ModelTerms(prices=prices, factors=factors) if is_whole else None

    def schema(self) -> Json:
        """A map with prices under units, and maps of percentages under factors."""
        return {
            "type": "object",
            "propertyNames": {"enum": [*_UNITS, *FACTORS]},
            "patternProperties": {f"^({'|'.join(FACTORS)})$": _FACTORS.schema()},
            "additionalProperties": PRICE.schema(),
            "minProperties": 1,
        }


MODEL_TERMS: Final = _TermsShape()


def check_terms(pattern: str, terms: ModelTerms, place: FilePlace, problems: Problems) -> None:
    """Refuse prices of only one direction, and factors alone, of models that the price table lacks.

    Args:
        pattern: of the models' names.
        terms: what the file says of them.
        place: where it stands.
        problems: the list to add to.
    """
    priced = {UNIT_OF.get(name, name) for name in terms.prices}
    has_tokens = any(unit in _WHOLES or unit in WHOLE_OF for unit in priced)
    missing = [whole for whole in _WHOLES if whole not in priced]
    if priced and not (has_tokens and missing):
        return
    lacks = " and ".join(missing) if has_tokens else "anything"
    known = is_listed(pattern)
    if known is None:
        message = (
            f"{lacks} has no price here; the price table may have one; install genai-prices:"
            " pip install 'meterkit[prices]'"
        )
        problems.note(place, "informs", message)
    elif not known:
        write = ", ".join(f"`{whole}: … per 1_000_000`" for whole in missing)
        message = (
            f"no price of {lacks}, and the price table has no such model; write {write} as well"
            " (`0 per 1_000_000` if it costs nothing)"
        )
        problems.refuse(place, message)


CHARGE_CENTS_MIN: Final = 50
"""https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts"""
_AT_MOST_MAX: Final = 100
_TIMES: Final = re.compile(r"([1-9][0-9]{0,2}) per month")
_TIMES_ALLOWED: Final = f"a number of top-ups such as 3 per month, at most {_AT_MOST_MAX}"
_CENTS: Final = integer(
    least=CHARGE_CENTS_MIN,
    most=AMOUNT_CENTS_MAX,
    allowed="a whole number of cents such as 2000; Stripe charges 50 at least",
)


def _parse_times(written: str) -> int:
    found = _TIMES.fullmatch(written)
    if found is None or int(found[1]) > _AT_MOST_MAX:
        raise RefusedError(f"allowed: {_TIMES_ALLOWED}")
    return int(found[1])


class AutoTable(Table, what="an automatic top-up"):
    """``auto:`` of ``top_up:``."""

    below_cents = Key(
        _CENTS, "Balance below which a top-up is bought, in cents.", name="below", required=True
    )
    amount_cents = Key(
        _CENTS, "Amount of a top-up, in cents; at least `below`.", name="amount", required=True
    )
    at_most: Key[int] = Key(
        Scalar(_parse_times, _TIMES_ALLOWED, {"type": "string", "pattern": "^[1-9][0-9]{0,2} per month$"}),
        "How many in a calendar month (UTC).",
        required=True,
    )


class TopUpTable(Table, what="top-ups"):
    """``top_up:`` of a credit."""

    packs = Key(ListOf(_CENTS, "amounts", 1), "Amounts that customers can buy, in cents.", required=True)
    auto = Key(AutoTable, "Automatic top-ups, charged to the saved card.")
    url = Key(URL, "Page where customers buy them, named in 402 responses; default: `billing.portal_url`.")


def build_top_ups(values: TopUpTable) -> TopUps | None:
    """Build the top-ups of a credit; None if its table was refused."""
    packs, auto = values.packs or (), values.auto
    if len(set(packs)) < len(packs):
        values.refuse("packs", "an amount is listed twice; keep one")
    if auto is None:
        return TopUps(packs=tuple(sorted(packs)), url=values.url)
    below, amount, at_most = auto.below_cents, auto.amount_cents, auto.at_most
    if below is None or amount is None or at_most is None:
        return None
    if amount < below:
        auto.refuse(
            "amount_cents",
            f"a top-up of {money(amount, 'usd')} leaves a balance of 0 below {money(below, 'usd')}; write at"
            f" least {below}",
        )
    return TopUps(
        packs=tuple(sorted(packs)),
        auto=AutoTopUp(below_cents=below, amount_cents=amount, at_most=at_most),
        url=values.url,
    )


_COST_OR_AMOUNTS: Final = PerCurrency(COST, common=".*")
"""A cost; of overage in a file of several currencies a map of amounts."""


class _PriceShape:
    """Price of a unit for the models of a pattern."""

    def read(self, node: Node, problems: Problems) -> int | None:
        """The cost of a unit; prices by unit and factors are refused."""
        if isinstance(node, Fields) and len(problems.currencies) == 1:
            message = (
                "found a map; factors and prices by unit need a credit with `unit: money`, because other"
                f" prices are the same for all units of a meter; allowed: {COST.allowed}"
            )
            problems.refuse(node.place, message)
            return None
        return _COST_OR_AMOUNTS.read(node, problems)

    def schema(self) -> Json:
        """A cost."""
        return _COST_OR_AMOUNTS.schema()


_UNKNOWN_MODEL: Final[WordChoice[UnknownModel]] = WordChoice(("free", "deny"))


class ModelPricesTable(Table, what="prices by model"):
    """One of ``prices:``."""

    default = Key(
        _COST_OR_AMOUNTS,
        "Price for models that no pattern matches, and for usage without a model; required without"
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
_MARKUP_ALLOWED: Final = "allowed: a whole percentage, such as 30%"
_MARKUP_PERCENT: Final = re.compile(r"(?P<sign>-?)(?P<number>[0-9_]+) ?%")


@dataclass(frozen=True, slots=True)
class _Markup:
    percent: int


def _parse_cost(written: str) -> int | str | ProviderPrices | _Markup:
    if written == _PROVIDER_PRICES:
        return ProviderPrices()
    if written.startswith(PRICES):
        return TABLE_OF_PRICES.parse(written)
    if (found := _MARKUP_PERCENT.fullmatch(written)) is not None:
        found_percent = int(f"{found['sign']}{parse_integer(found['number'])}")
        if not _MARKUP_LEAST <= found_percent <= _MARKUP_MAX:
            raise RefusedError(f"allowed: a markup from {_MARKUP_LEAST}% to {_MARKUP_MAX:_}%")
        return _Markup(found_percent)
    if written.endswith("%"):
        raise RefusedError(_MARKUP_ALLOWED)
    try:
        return COST.parse(written)
    except RefusedError as error:
        reason = f"{error.reason}, or `prices.NAME`"
        raise RefusedError(reason, meant=error.meant) from None


def _meant_percentage(cost: object) -> str:
    """Suggest the percentage that a markup written as a number was meant to be: 25% for 0.25 and for 25."""
    if not isinstance(cost, int):
        return ""
    percent, rest = divmod(cost, MICRO if cost >= MICRO else MICRO // 100)
    return "" if rest or percent > _MARKUP_MAX else f"; did you mean {percent}%?"


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

    unit = Key(WordChoice(("money",)), "money: a balance in US dollars; usd must be a currency of the file.")
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


def check_prices_by_currency(
    read: Mapping[str, ModelPricesTable | None],
    credits_: Mapping[str, CreditTable | None],
    of_overage: Container[str],
    problems: Problems,
) -> None:
    """In a file of several currencies prices of overage have one for each, and costs in credits have none.

    Args:
        read: the tables as written.
        credits_: the credits as written, which may name tables.
        of_overage: names of the tables that price overage.
        problems: the list to add to.
    """
    if len(problems.currencies) <= 1:  # None: they are refused themselves.
        return
    costs = (cost for one in drop_refused(credits_).values() for cost in (one.costs or {}).values())
    of_credits = {cost for cost in costs if isinstance(cost, str)}
    for name, values in drop_refused(read).items():
        default, models = (values.node.values.get(key) for key in ("default", "models"))
        by_model = models.values.values() if isinstance(models, Fields) else ()
        for node in (*by_model, *(() if default is None else (default,))):
            if name in of_overage and not isinstance(node, Fields):
                allowed = by_currency(problems.currencies)
                problems.refuse(node.place, f"found {kind_of(node)}, a price of overage; allowed: {allowed}")
            elif name in of_credits and isinstance(node, Fields):
                message = "a credit has no currency; write a table of its own for overage"
                problems.refuse(node.place, f"found a map, and {message}; allowed: {COST.allowed}")


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
        models=tuple(drop_refused(values.models).items()),
        **values.given("unknown_model"),
    )


def build_charged_meters(
    read: Mapping[str, CreditTable | None], meters: Meters, currencies: tuple[str, ...] | None
) -> Meters:
    """For each credit of money the meter that counts what calls are charged, in micro-units."""
    built: Meters = {}
    for credit, values in read.items():
        if values is None or values.unit != "money":
            continue
        name = f"{credit}{CHARGED}"
        if currencies and BALANCE_CURRENCY not in currencies:
            message = f"providers' prices are in US dollars, and this file's amounts in {listed(currencies)}"
            values.refuse("unit", f"{message}; add usd to `currency`")
        if name in meters:
            message = f"charges are counted on the meter {name}, which this file declares itself"
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
            values.problems.refuse(place, f"{_MARKUP_ALLOWED}{_meant_percentage(cost)}")
        elif key not in {_TOKENS, _MARKUP}:
            message = f"money pays for `{_TOKENS}: {_PROVIDER_PRICES}`, with a `{_MARKUP}`; remove {key}"
            values.problems.refuse(place, message)
    if values.costs and _TOKENS not in costs:
        values.refuse("costs", f"say what money pays for: `{_TOKENS}: {_PROVIDER_PRICES}`")
    models = drop_refused(values.models)
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
    places: Mapping[str, FilePlace],
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
                values.refuse("unit", f"the credit {other} pays for tokens already; a file has one of money")
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
                problems.refuse(place, f"the credit {other} pays for {meter_name} already; a meter has one")
        costs, by_model = _resolve_costs(values.costs, prices, values.places("costs"), problems)
        low = values.low_balance_percent
        built[name] = Credit(name=name, costs=costs, low_balance_percent=low, by_model=by_model)
    return built


def _refuse_keys_of_money(values: CreditTable) -> None:
    for key, cure in (
        ("top_up", "top-ups are sold in money; add `unit: money` to the credit"),
        ("models", "prices in money need `unit: money`; otherwise name `prices.NAME` under `costs`"),
        ("unknown_model", "this needs `unit: money`; otherwise write it in the `prices.NAME` of `costs`"),
    ):
        if values.has(key):
            values.refuse(key, cure)


def _resolve_costs(
    costs: Mapping[str, _Cost | None] | None,
    prices: Mapping[str, ModelPrices | None],
    places: Mapping[str, FilePlace],
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
