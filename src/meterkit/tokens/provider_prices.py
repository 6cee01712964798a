"""What a provider charges for a call by its list prices, which the package ``genai-prices`` keeps.

https://github.com/pydantic/genai-prices
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

_logger = logging.getLogger("meterkit.tokens")
_PROVIDERS: Final[Mapping[str, str]] = {
    "aws.bedrock": "aws",
    "azure.ai.openai": "azure",
    "gcp.gemini": "google",
    "mistral_ai": "mistral",
}
"""OpenTelemetry's names of providers that the table has other names for."""
_KINDS: Final[Mapping[str, tuple[str, int]]] = {
    "input": ("input_mtok", 1),
    "output": ("output_mtok", 1),
    "cache_read": ("cache_read_mtok", 1),
    "cache_write": ("cache_write_mtok", 1),
    "reasoning": ("output_reasoning_mtok", 1),
    "request": ("requests_kcount", 1000),
}
"""What the table calls prices: dollars of a million or of a thousand, and so many micro-units of one."""
_FIELDS: Final[Mapping[str, str]] = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cached_input_tokens": "cache_read",
    "cache_write_tokens": "cache_write",
    "reasoning_tokens": "reasoning",
    "requests": "request",
}
_KEPT: Final = 4096
_NAME_MAX: Final = 256
_NAMES_LOGGED: Final = 100
_ALWAYS: Final = -1
_prices: Final[dict[int, TokenPrices]] = {}
_unknown: Final[set[tuple[str, str]]] = set()


Tiers = tuple[tuple[int, Fraction], ...]
"""Prices of a token, each with the input tokens from beyond which all tokens of a call cost it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrices:
    """What one token of a kind costs, in micro-units of US dollars; empty: it has no price of its own.

    ``request``: the price of a request, in addition.
    """

    input: Tiers = ()
    output: Tiers = ()
    cache_read: Tiers = ()
    cache_write: Tiers = ()
    reasoning: Tiers = ()
    request: Tiers = ()

    @classmethod
    def of(cls, prices: Mapping[str, Fraction]) -> TokenPrices:
        """The same for any length of the input; by meter of tokens, ``requests``: of a call."""
        return cls(**{_FIELDS[name]: ((_ALWAYS, price),) for name, price in prices.items()})

    def most(self, *, entered: int, left: int) -> Fraction:
        """What a call of so many tokens costs at most, whatever kind they are of."""
        return max(
            self.cost(entered=entered, left=left, cached=cached, written=written, reasoning=reasoning)
            for cached, written in ((0, 0), (entered, 0), (0, entered))
            for reasoning in (0, left)
        )

    def cost(self, *, entered: int, left: int, cached: int, written: int, reasoning: int) -> Fraction:
        """What a call costs; a kind without a price of its own costs what the tokens around it do.

        Args:
            entered: all tokens that went in.
            left: all tokens that came out.
            cached: those of the input that were read from a cache.
            written: those of the input that were written to one.
            reasoning: those of the output that were reasoning.
        """
        parts = self.costs(entered=entered, left=left, cached=cached, written=written, reasoning=reasoning)
        return sum(parts.values(), Fraction(0))

    def costs(
        self, *, entered: int, left: int, cached: int, written: int, reasoning: int
    ) -> dict[str, Fraction]:
        """The same by kind: what costs nothing is left out."""
        read = cached if self.cache_read else 0
        put = written if self.cache_write else 0
        thought = reasoning if self.reasoning else 0
        parts = (
            ("input", self.input, max(0, entered - read - put)),
            ("cache_read", self.cache_read, read),
            ("cache_write", self.cache_write, put),
            ("output", self.output, max(0, left - thought)),
            ("reasoning", self.reasoning, thought),
            ("request", self.request, 1),
        )
        return {kind: cost for kind, tiers, count in parts if (cost := count * _price_at(tiers, entered))}


def _price_at(tiers: Tiers, input_tokens: int) -> Fraction:
    # A tier is for the whole call: with one token more, all of them cost its price.
    return next((price for start, price in reversed(tiers) if input_tokens > start), Fraction(0))


def prices_of(provider: str | None, model: str, at: datetime) -> TokenPrices | None:
    """What a model's tokens cost at an instant; None: the table has no provider of that name.

    A model that the provider has no price of costs the highest prices of all its models; that is logged once.

    Args:
        provider: as OpenTelemetry names it; None: the one whose models have such names.
        model: as the answer names it.
        at: when it was called (aware): prices have dates.

    Raises:
        MeterkitError: the package ``genai-prices`` is not installed.
    """
    known, info = _look_up(provider, model[:_NAME_MAX])
    if known is None:
        return None
    if info is None:
        return _highest(known.id, at.replace(minute=0, second=0, microsecond=0))
    return _read(info.get_prices(at))


@lru_cache(_KEPT)
def _look_up(provider: str | None, model: str) -> tuple[Any, Any]:
    """The provider and the model, as the table has them; None for what it does not have."""
    table, name = _table(), None if provider is None else _PROVIDERS.get(provider, provider)
    try:
        known = table.find_provider(model.lower(), name, None)
    except LookupError:
        return None, None
    info = known.find_model(model, all_providers=table.providers)
    if info is None and len(_unknown) < _NAMES_LOGGED and (known.id, model) not in _unknown:
        _unknown.add((known.id, model))
        message = "no price of model %r of %s is known: it costs the highest prices of its provider"
        _logger.warning(message, model, known.id)
    return known, info


@cache
def _table() -> Any:
    try:
        return import_module("genai_prices.data_snapshot").get_snapshot()
    except ImportError:
        message = "providers' prices need genai-prices; install it with: pip install 'meterkit[prices]'"
        raise MeterkitError(message) from None


@cache
def table_version() -> str:
    """The version of the price table, for example ``genai-prices/0.2.3``.

    Raises:
        MeterkitError: the package ``genai-prices`` is not installed.
    """
    _table()
    return f"genai-prices/{import_module('genai_prices').__version__}"


def is_installed() -> None:
    """See that the prices are there.

    Raises:
        MeterkitError: the package ``genai-prices`` is not installed.
    """
    _table()


def highest_prices(at: datetime) -> TokenPrices:
    """The highest prices of all providers at an instant (aware)."""
    return _highest(None, at.replace(minute=0, second=0, microsecond=0))


@lru_cache(_KEPT)
def _highest(provider: str | None, at: datetime) -> TokenPrices:
    table = _table()
    providers = table.providers if provider is None else [table.find_provider(None, provider, None)]
    every = [_read(model.get_prices(at)) for one in providers for model in one.models]
    return TokenPrices(**{kind: _highest_of(getattr(one, kind) for one in every) for kind in _KINDS})


def _highest_of(tiers: Iterable[Tiers]) -> Tiers:
    prices = [price for one in tiers for _, price in one]
    return ((_ALWAYS, max(prices)),) if prices else ()


def _read(prices: Any) -> TokenPrices:
    found = _prices.get(id(prices))  # The table keeps each of them for good.
    if found is None:
        tiers = {kind: _tiers(getattr(prices, key), factor) for kind, (key, factor) in _KINDS.items()}
        found = _prices[id(prices)] = TokenPrices(**tiers)
    return found


def _tiers(price: Any, factor: int) -> Tiers:
    if price is None:
        return ()
    base = ((_ALWAYS, factor * Fraction(getattr(price, "base", price))),)
    return (*base, *((one.start, factor * Fraction(one.price)) for one in getattr(price, "tiers", ())))
