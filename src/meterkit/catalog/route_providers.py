"""Providers that routes name, compared with those of the price table where that is installed.

https://github.com/pydantic/genai-prices
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final

from meterkit.catalog.errors import listed, quoted, suggestion
from meterkit.catalog.value_parsers import text

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    try:
        table = import_module("genai_prices.data_snapshot").get_snapshot()
    except ImportError:
        return ()
    return sorted(provider.id for provider in table.providers)
