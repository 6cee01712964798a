"""The price table of the package ``genai-prices``, where that is installed: its models and providers.

https://github.com/pydantic/genai-prices
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class LlmUsageError(Exception):
    """Base of the errors of this package."""


@cache
def installed_table() -> Any:
    """The providers and models of the package, which is large to import; None: it is not installed."""
    try:
        return import_module("genai_prices.data_snapshot").get_snapshot()
    except ImportError:
        return None


def read_table() -> Any:
    """The providers and models of the package.

    Raises:
        LlmUsageError: it is not installed.
    """
    table = installed_table()
    if table is None:
        raise LlmUsageError("prices need the package genai-prices; install it with: pip install genai-prices")
    return table


@cache
def table_version() -> str:
    """The version of the price table, for example ``genai-prices/0.2.3``.

    Raises:
        LlmUsageError: the package ``genai-prices`` is not installed.
    """
    read_table()
    return f"genai-prices/{import_module('genai_prices').__version__}"


@cache
def read_units() -> dict[str, dict[str, Any]]:
    """Unit to its definition: the name of its price, for how many units that is, and its dimensions."""
    read_table()
    found: dict[str, dict[str, Any]] = import_module("genai_prices.data_units").unit_data
    return found


@cache
def unit_dimensions() -> Mapping[str, frozenset[tuple[str, str]]]:
    """Unit to its dimensions: a unit with more of them is a part of those with fewer.

    Raises:
        LlmUsageError: the package ``genai-prices`` is not installed.
    """
    return {unit: frozenset(known["dimensions"].items()) for unit, known in read_units().items()}


@cache
def listed_providers() -> Sequence[str]:
    """The providers of the table, sorted; empty: it is not installed."""
    table = installed_table()
    return () if table is None else sorted(provider.id for provider in table.providers)


_WILD: Final = "*?["
_ENDS: Final = "*-.:@/"


@lru_cache(1024)
def is_listed(pattern: str) -> bool | None:
    """Whether the price table has a model whose name a pattern matches; None: it is not installed."""
    table, folded = installed_table(), pattern.casefold()
    if table is None:
        return None
    names = dict.fromkeys((folded, folded.rstrip(_ENDS)))
    literal = [name for name in names if name and not any(mark in name for mark in _WILD)]
    return any(
        fnmatchcase(model.id.casefold(), folded) for provider in table.providers for model in provider.models
    ) or any(
        provider.find_model(name, all_providers=table.providers) is not None
        for provider in table.providers
        for name in literal
    )
