"""Models and providers of the price table of the package ``genai-prices``, where that is installed.

https://github.com/pydantic/genai-prices
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.errors import listed, quoted, suggestion
from meterkit.catalog.value_parsers import text

if TYPE_CHECKING:
    from collections.abc import Sequence

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


@cache
def installed_table() -> Any:
    """The providers and models of the package, which is large to import; None: it is not installed."""
    try:
        return import_module("genai_prices.data_snapshot").get_snapshot()
    except ImportError:
        return None


PROVIDER_SHAPE: Final = text(
    64,
    pattern=r"[a-z0-9][a-z0-9._-]*",
    allowed="a provider as the price table names it, such as openai, anthropic, google, aws, azure or x-ai",
)


def unknown_provider(name: str) -> str | None:
    """The message for a provider that the price table does not have; None: it has it, or is not installed."""
    known = _known_providers()
    if not known or name in known:
        return None
    return f"the price table has no provider {quoted(name)}; it has: {listed(known)}{suggestion(name, known)}"


@cache
def _known_providers() -> Sequence[str]:
    table = installed_table()
    return () if table is None else sorted(provider.id for provider in table.providers)
