"""Models of the price table: a search by name and provider, and their prices at an instant.

The prices are those of the package ``genai-prices``, times factors that providers publish. Below, a *listing*
is a provider of that table, and *info* one of its models: both are objects of the package.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm_usage.price_table import installed_table, read_table, read_units
from llm_usage.published_factors import PUBLISHED, factors_of, product_of
from llm_usage.unit_prices import ALWAYS, UnitPrices, highest_prices

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from llm_usage.published_factors import Context, PublishedFactor
    from llm_usage.unit_prices import Tiers

_PROVIDERS: Final[Mapping[str, str]] = {
    "aws.bedrock": "aws",
    "azure.ai.openai": "azure",
    "bedrock": "aws",
    "fireworks_ai": "fireworks",
    "gcp.gemini": "google",
    "gcp.vertex_ai": "google",
    "gemini": "google",
    "mistral_ai": "mistral",
    "moonshot_ai": "moonshotai",
    "together_ai": "together",
    "vertex_ai": "google",
    "x_ai": "x-ai",
    "xai": "x-ai",
}
"""Providers that the table has other names for: OpenTelemetry's names, and LiteLLM's.

https://docs.litellm.ai/docs/providers
"""
_OWN_SERVERS: Final = frozenset({"llama.cpp", "ollama"})
"""Servers that people run themselves: a model of theirs has no list price, whatever it is called."""
_ROUTER: Final = "openrouter"
_FREE: Final = "free"
"""OpenRouter's only variant with a price of its own; others, as in `openai/gpt-5:nitro`, choose a provider.

https://openrouter.ai/docs/guides/routing/model-variants
"""
_MICROS: Final = 10**6
_NAMES_CACHED: Final = 4096
_NAME_CHARS_MAX: Final = 256
_VENDOR_WORDS_MAX: Final = 3
"""Words before a model's name, as in `accounts/fireworks/models/…`."""
_ARN: Final = "arn:"
STANDARD: Final[Context] = ()
"""Context of a call without any special way of processing."""


class _ListedModel(NamedTuple):
    """A model of the table at one price, and the providers that sell it at that.

    Attributes:
        info: the model.
        providers: the table's ids of the providers.
        has_variants: whether it has prices that depend on the context.
        factors: that its provider publishes.
        always: its standard prices; None: they depend on the time.
    """

    info: Any
    providers: tuple[str, ...]
    has_variants: bool
    factors: Sequence[PublishedFactor]
    always: UnitPrices | None


def list_prices(
    provider: str | None, model: str, at: datetime, context: Context = STANDARD
) -> UnitPrices | None:
    """The list prices of a model at an instant; None: the table has no price of it, or several.

    The provider's prices come first. If that has no such model, the name decides among all providers: a
    server may answer in another provider's format. If they have several prices for it, none is used.

    Args:
        provider: as OpenTelemetry or the table names it; None: not known.
        model: as the response or the request names it.
        at: when it was called (aware): prices have dates.
        context: as what it was processed.

    Raises:
        LlmUsageError: the package ``genai-prices`` is not installed.
    """
    found = _find_models(provider, model[:_NAME_CHARS_MAX])
    if not found:
        return None
    prices = _prices_at(found[0], at, context)
    if any(_prices_at(other, at, context).prices != prices.prices for other in found[1:]):
        return None
    return prices


def listed_name(provider: str | None, model: str) -> str | None:
    """The table's name of a model; None: the table has no such model, or is not installed."""
    found = () if installed_table() is None else _find_models(provider, model[:_NAME_CHARS_MAX])
    return str(found[0].info.id) if found else None


def providers_of(model: str) -> Sequence[str]:
    """The table's ids of the providers of a model whose price depends on the provider.

    Empty: the table has one price for the name, or none, or is not installed.
    """
    found = () if installed_table() is None else _find_models(None, model[:_NAME_CHARS_MAX])
    return sorted(provider for one in found for provider in one.providers) if len(found) > 1 else ()


@lru_cache(_NAMES_CACHED)
def _find_models(provider: str | None, model: str) -> tuple[_ListedModel, ...]:
    """Find the models that a name may mean, one for each price; several: the price depends on the provider.

    The provider's model is taken first, otherwise those of all providers. A vendor before the name, as in
    ``openai/gpt-5.4``, is stripped if no model has the whole name.
    """
    if not model or provider in _OWN_SERVERS:
        return ()
    name = model.lower()
    if name.startswith(_ARN):
        name = name.rpartition("/")[2]
    found = _find_at_provider(_find_provider(provider), name) or _find_at_any_provider(name)
    if found:
        return found
    routed, _, variant = name.rpartition(":")
    if routed and not variant.isdigit():
        return _find_models(provider, routed) if provider == _ROUTER and variant != _FREE else ()
    vendor, _, rest = name.partition("/")
    is_known = vendor in _vendors() and name.count("/") <= _VENDOR_WORDS_MAX
    return _find_models(vendor, rest) if rest and is_known else ()


def _find_provider(named: str | None) -> Any:
    """A provider of the table; None: it has no such provider."""
    try:
        return read_table().find_provider(None, _PROVIDERS.get(named or "", named), None)
    except LookupError:
        return None


def _find_at_provider(listing: Any, name: str) -> tuple[_ListedModel, ...]:
    """Find the model that a provider uses for a name: by its patterns, otherwise by the id of a model."""
    info = None if listing is None else listing.find_model(name, all_providers=read_table().providers)
    if info is None and listing is not None:  # The patterns of some models do not match their own ids.
        info = next((one for other, one in _listings().get(name, ()) if other is listing), None)
    return () if info is None else (_list_model(listing, info),)


def _find_at_any_provider(name: str) -> tuple[_ListedModel, ...]:
    """Find the models that have a name at any provider, those of one price as one.

    A name means the vendor's model, even if that has another id (``gpt-5-*``): unless another provider has a
    model of this name whose prices differ.
    """
    found: list[_ListedModel] = []
    for listing, info in _listings().get(name, ()):
        entry = _list_model(listing, info)
        at = next((at for at, one in enumerate(found) if _have_same_prices(one, entry)), None)
        if at is None:
            found.append(entry)
        else:
            found[at] = found[at]._replace(providers=(*found[at].providers, *entry.providers))
    # The table's own search of all providers would cache each name for good.
    matching = (one for one in read_table().providers if one.model_match and one.model_match.is_match(name))
    vendor: Any = next(matching, None)
    own = _find_at_provider(vendor, name)
    if not own:
        return tuple(found)
    is_listed = any(vendor.id in entry.providers for entry in found)
    is_meant = is_listed or all(_has_prices_of(own[0], entry) for entry in found)
    return own if is_meant else tuple(found)


def _list_model(listing: Any, info: Any) -> _ListedModel:
    # Some providers use the models of another one, but not its prices by context.
    is_own = any(info is own for own in listing.models)
    has_variants = is_own and bool(info.price_variants)
    always = None if isinstance(info.prices, list) else _compile_prices(info.prices)
    return _ListedModel(info, (listing.id,), has_variants, factors_of(info.id), always)


def _have_same_prices(one: _ListedModel, other: _ListedModel) -> bool:
    variants = [entry.info.price_variants if entry.has_variants else None for entry in (one, other)]
    is_same = bool(one.info.prices == other.info.prices and variants[0] == variants[1])
    return is_same and one.factors == other.factors


def _has_prices_of(one: _ListedModel, other: _ListedModel) -> bool:
    """Whether a model has each price of another one, and maybe more."""
    if one.always is None or other.always is None:
        return False
    return other.always.prices.items() <= one.always.prices.items()


@cache
def _listings() -> Mapping[str, Sequence[tuple[Any, Any]]]:
    """Id of a model in lower case to the providers that have prices of it, each with its model.

    Models without any price are left out: they do not say whether the model is free.
    """
    found: dict[str, list[tuple[Any, Any]]] = {}
    for listing in read_table().providers:
        for info in listing.models:
            prices: Any = info.prices
            if isinstance(prices, list) or any(map(_is_price, prices.__dict__.values())):
                found.setdefault(info.id.lower(), []).append((listing, info))
    return found


def _is_price(value: object) -> bool:
    return value is not None


@cache
def _vendors() -> frozenset[str]:
    """Words that stand before a model's name: vendors in the table's names, providers, and ``models``."""
    table = read_table()
    named = (info.id.lower().partition("/") for listing in table.providers for info in listing.models)
    providers = (listing.id for listing in table.providers)
    return frozenset((*(vendor for vendor, slash, _ in named if slash), *providers, *_PROVIDERS, "models"))


def _prices_at(found: _ListedModel, at: datetime, context: Context) -> UnitPrices:
    if found.always is not None and not (context and (found.has_variants or found.factors)):
        return found.always
    variants = tuple(_active_variants(found.info.price_variants, at, context)) if found.has_variants else ()
    return _compile_prices(found.info.get_prices(at), variants, product_of(found.factors, context, at))


def _active_variants(variants: Iterable[Any], at: datetime, context: Context) -> Iterable[Any]:
    """Yield the prices by context that apply."""
    values = dict(context)
    for variant in variants:
        is_active = variant.constraint is None or variant.constraint.active(at)
        if is_active and all(values.get(key) == value for key, value in variant.when.items()):
            yield variant


_compiled: Final[dict[tuple[Any, ...], UnitPrices]] = {}


def _compile_prices(
    standard: Any, variants: tuple[Any, ...] = (), factor: Fraction = Fraction(1)
) -> UnitPrices:
    """The prices of a model, cached for all of its names."""
    key = (factor, id(standard), *map(id, variants))  # The table keeps the objects, so an id is not reused.
    prices = _compiled.get(key)
    if prices is None:
        merged = _read_tiers(standard)
        for variant in reversed(variants):  # Of several, the first counts.
            merged |= _read_tiers(variant.prices)
        prices = _compiled[key] = UnitPrices(_scale_token_prices(merged, factor))
    return prices


def _scale_token_prices(prices: dict[str, Tiers], factor: Fraction) -> dict[str, Tiers]:
    """Prices of all units, with those of tokens times a factor."""
    if factor == 1:
        return prices
    return {
        unit: tuple((start, price * factor) for start, price in tiers) if unit.endswith("_tokens") else tiers
        for unit, tiers in prices.items()
    }


def _read_tiers(prices: Any) -> dict[str, Tiers]:
    """Unit to its prices by context length, in micro-dollars for one unit."""
    found: dict[str, Tiers] = {}
    for unit, definition in read_units().items():
        price = prices.__dict__.get(definition["price_key"])
        if price is not None:
            factor = Fraction(_MICROS, definition["per"])
            base = (ALWAYS, factor * Fraction(getattr(price, "base", price)))
            tiers = sorted((one.start, factor * Fraction(one.price)) for one in getattr(price, "tiers", ()))
            found[unit] = (base, *tiers)
    return found


@lru_cache(64)
def model_names(provider: str | None) -> Sequence[str]:
    """The names of the models of a provider; of all where it is None or not known."""
    return tuple(dict.fromkeys(model.id for model in _models_of(provider)))


@cache
def varying_contexts() -> frozenset[tuple[str, str]]:
    """The ways of processing for which some model of the table has prices of its own."""
    return frozenset(
        pair
        for provider in read_table().providers
        for model in provider.models
        for variant in model.price_variants or ()
        for pair in variant.when.items()
    ).union(one.way for one in PUBLISHED)


def dearest_prices(
    provider: str | None, at: datetime, contexts: Iterable[Context] = (STANDARD,)
) -> UnitPrices:
    """The highest price of each unit among the models of a provider; of all where it is None or not known.

    Args:
        provider: as OpenTelemetry or the table names it; None: not known.
        at: when the model is called (aware): prices have dates.
        contexts: as what the call may be processed.
    """
    return _highest_listed(provider, half_hour(at), frozenset(contexts))


def half_hour(at: datetime) -> datetime:
    """The beginning of a half hour: the table's prices do not change within one."""
    return at.replace(minute=at.minute // 30 * 30, second=0, microsecond=0)


@lru_cache(256)
def _highest_listed(provider: str | None, at: datetime, contexts: frozenset[Context]) -> UnitPrices:
    varying = (
        _scale_token_prices(_cached_tiers(prices), product_of(one.factors, context, at))
        for one in _varying_models(provider)
        for context in {tuple(pair for pair in context if pair in one.ways) for context in contexts}
        for prices in (
            one.model.get_prices(at),
            *(variant.prices for variant in _active_variants(one.model.price_variants or (), at, context)),
        )
    )
    return highest_prices((_highest_fixed(provider).prices, *varying))


@lru_cache(64)
def _highest_fixed(provider: str | None) -> UnitPrices:
    """The highest price of each unit among the models whose prices never vary."""
    varying = {id(one.model) for one in _varying_models(provider)}
    return highest_prices(
        _read_tiers(model.prices) for model in _models_of(provider) if id(model) not in varying
    )


class _VaryingModel(NamedTuple):
    """A model whose prices depend on the time, or on the ways in which a call is processed."""

    model: Any
    factors: Sequence[PublishedFactor]
    ways: frozenset[tuple[str, str]]


@lru_cache(64)
def _varying_models(provider: str | None) -> Sequence[_VaryingModel]:
    found: list[_VaryingModel] = []
    for model in _models_of(provider):
        factors, variants = factors_of(model.id), model.price_variants or ()
        if isinstance(model.prices, list) or variants or factors:
            ways = frozenset(pair for variant in variants for pair in variant.when.items())
            found.append(_VaryingModel(model, factors, ways.union(one.way for one in factors)))
    return found


_tiers_by_id: Final[dict[int, dict[str, Tiers]]] = {}


def _cached_tiers(prices: Any) -> dict[str, Tiers]:
    """Prices as :func:`_read_tiers` reads them, cached by id: the table keeps the objects."""
    found = _tiers_by_id.get(id(prices))
    if found is None:
        found = _tiers_by_id[id(prices)] = _read_tiers(prices)
    return found


def _models_of(provider: str | None) -> Iterator[Any]:
    """The models of a provider; of all where it is None or not known."""
    found = _find_provider(provider)
    for listing in read_table().providers if found is None else (found,):
        yield from listing.models
