"""List prices of model providers, which the package ``genai-prices`` keeps, compiled for exact arithmetic.

https://github.com/pydantic/genai-prices
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache, lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.tokens.genai_table import read_table, read_units
from meterkit.tokens.unit_prices import ALWAYS, UnitPrices, highest_prices

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from meterkit.tokens.unit_prices import Tiers

_PROVIDERS: Final[Mapping[str, str]] = {
    "aws.bedrock": "aws",
    "azure.ai.openai": "azure",
    "gcp.gemini": "google",
    "gcp.vertex_ai": "google",
    "mistral_ai": "mistral",
    "x_ai": "x-ai",
}
"""OpenTelemetry's names of providers that the table has other names for."""
_OWN_SERVERS: Final = frozenset({"ollama"})
"""Servers that people run themselves: a model of theirs has no list price, whatever it is called."""
_MICROS: Final = 10**6
_KEPT: Final = 4096
_NAME_MAX: Final = 256
_ARN: Final = "arn:"

Context = tuple[tuple[str, str], ...]
"""What a call was processed as, beyond its model: ``service_tier``, ``speed``, ``processing``, …; sorted."""
STANDARD: Final[Context] = ()
_PUBLISHED: Final[Mapping[str, Mapping[tuple[str, str], Fraction]]] = {
    "anthropic": {("inference_geo", "us"): Fraction(110, 100)},
}
"""Factors on the prices of all tokens that providers publish and the table lacks; read in November 2026.

https://platform.claude.com/docs/en/manage-claude/data-residency
"""


def list_prices(
    provider: str | None, model: str, at: datetime, context: Context = STANDARD
) -> UnitPrices | None:
    """The list prices of a model at an instant; None: the table has no such model.

    The provider's prices come first. If that has no such model, the provider whose models have such names is
    asked: a server may answer in another provider's format.

    Args:
        provider: as OpenTelemetry or the table names it; None: not known.
        model: as the response or the request names it.
        at: when it was called (aware): prices have dates.
        context: as what it was processed.

    Raises:
        MeterkitError: the package ``genai-prices`` is not installed.
    """
    found = _look_up(provider, model[:_NAME_MAX])
    if found is None:
        return None
    if found.always is not None and not (context and (found.has_variants or found.factors)):
        return found.always
    variants = tuple(_active(found.info.price_variants, at, context)) if found.has_variants else ()
    return _compile(found.info.get_prices(at), variants, _factor(found.factors, context))


def _factor(factors: Mapping[tuple[str, str], Fraction], context: Context) -> Fraction:
    return prod((factors[pair] for pair in context if pair in factors), start=Fraction(1))


def _compile(standard: Any, variants: tuple[Any, ...] = (), factor: Fraction = Fraction(1)) -> UnitPrices:
    """The prices of a model, once for all of its names."""
    key = (factor, id(standard), *map(id, variants))  # The table keeps each of them for good.
    prices = _compiled.get(key)
    if prices is None:
        merged = _read(standard)
        for variant in reversed(variants):  # Of several, the first counts.
            merged |= _read(variant.prices)
        prices = _compiled[key] = UnitPrices(_of_tokens(merged, factor))
    return prices


def _of_tokens(prices: dict[str, Tiers], factor: Fraction) -> dict[str, Tiers]:
    """The prices, those of tokens times a factor."""
    if factor == 1:
        return prices
    return {
        unit: tuple((start, price * factor) for start, price in tiers) if unit.endswith("_tokens") else tiers
        for unit, tiers in prices.items()
    }


class _ListedModel(NamedTuple):
    """A model of the table.

    Attributes:
        info: as the table has it.
        has_variants: whether its prices by context count.
        factors: what its provider publishes besides, by context; see :data:`_PUBLISHED`.
        always: its prices, where they do not depend on the time; else None.
    """

    info: Any
    has_variants: bool
    factors: Mapping[tuple[str, str], Fraction]
    always: UnitPrices | None


_compiled: Final[dict[tuple[Any, ...], UnitPrices]] = {}


@lru_cache(_KEPT)
def _look_up(provider: str | None, model: str) -> _ListedModel | None:
    """The model of the table that is meant by a name."""
    if not model or provider in _OWN_SERVERS:
        return None
    table, name = read_table(), model.lower()
    if name.startswith(_ARN):
        name = name.rpartition("/")[2]
    asked = [] if provider is None else [(None, _PROVIDERS.get(provider, provider))]
    for named, known_as in (*asked, (name, None)):
        try:
            known = table.find_provider(named, known_as, None)
        except LookupError:
            continue
        info = known.find_model(name, all_providers=table.providers)
        if info is not None:
            is_own = any(info is own for own in known.models)
            has_variants = is_own and bool(info.price_variants)
            factors = _PUBLISHED.get(known.id, {}) if is_own else {}
            always = None if isinstance(info.prices, list) else _compile(info.prices)
            return _ListedModel(info, has_variants, factors, always)
    return None


def _active(variants: Iterable[Any], at: datetime, context: Context) -> Iterable[Any]:
    known = dict(context)
    for variant in variants:
        is_active = variant.constraint is None or variant.constraint.active(at)
        if is_active and all(known.get(key) == value for key, value in variant.when.items()):
            yield variant


@cache
def varying_contexts() -> frozenset[tuple[str, str]]:
    """The ways of processing for which some model of the table has prices of its own."""
    return frozenset(
        pair
        for provider in read_table().providers
        for model in provider.models
        for variant in model.price_variants or ()
        for pair in variant.when.items()
    ).union(*_PUBLISHED.values())


def dearest_prices(provider: str | None, at: datetime, context: Context = STANDARD) -> UnitPrices:
    """The highest price of each unit among the models of a provider; of all where it is None or not known."""
    return _dearest(provider, at.replace(minute=0, second=0, microsecond=0), context)


@lru_cache(256)
def _dearest(provider: str | None, at: datetime, context: Context) -> UnitPrices:
    table = read_table()
    try:
        known = [table.find_provider(None, _PROVIDERS.get(provider or "", provider), None)]
    except LookupError:
        known = table.providers
    return highest_prices(
        _of_tokens(_read(prices), _factor(_PUBLISHED.get(one.id, {}), context))
        for one in known
        for model in one.models
        for prices in (
            model.get_prices(at),
            *(variant.prices for variant in _active(model.price_variants or (), at, context)),
        )
    )


def _read(prices: Any) -> dict[str, Tiers]:
    found: dict[str, Tiers] = {}
    for unit, known in read_units().items():
        price = prices.__dict__.get(known["price_key"])
        if price is not None:
            factor = Fraction(_MICROS, known["per"])
            base = (ALWAYS, factor * Fraction(getattr(price, "base", price)))
            tiers = sorted((one.start, factor * Fraction(one.price)) for one in getattr(price, "tiers", ()))
            found[unit] = (base, *tiers)
    return found
