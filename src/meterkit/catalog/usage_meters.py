"""The meters that the usage of model calls feeds, and the providers that a plans file may name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from llm_usage.price_table import listed_providers
from llm_usage.units import UNITS
from meterkit.catalog.errors import listed, quoted, suggestion
from meterkit.catalog.value_parsers import text

TOKEN_METERS: Final = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "total_tokens",
)
"""The usual meters of token usage."""

USAGE_METERS: Final = frozenset((*TOKEN_METERS, *UNITS))
"""The meters that `usage:` and reports of model calls feed, where the file declares them."""

_SYNONYMS: Final = {
    "cached": "cache_read",
    "creation": "write",
    "prompt": "input",
    "completion": "output",
    "thinking": "reasoning",
}
"""Words of providers' APIs, each with the word of the price table."""
_NEAR: Final = 0.8
"""So alike two names must be, of 1."""


def nearest_usage_meter(name: str) -> str | None:
    """The meter that ``usage:`` feeds and that ``name`` was probably meant to be, or None.

    Words may stand in another order, or be those of a provider's API.
    """
    if name in USAGE_METERS:
        return None
    found = get_close_matches(_in_order(name), _BY_WORDS, n=1, cutoff=_NEAR)
    return _BY_WORDS[found[0]] if found else None


def _in_order(name: str) -> str:
    """The words of a name in the table's language, sorted."""
    words = (_SYNONYMS.get(word, word) for word in name.lower().split("_"))
    return "_".join(sorted("_".join(words).split("_")))


_BY_WORDS: Final = {words: meter for meter in sorted(USAGE_METERS) for words in (_in_order(meter), meter)}
"""The meters by their words, in order and as they are."""


PROVIDER_SHAPE: Final = text(
    64,
    pattern=r"[a-z0-9][a-z0-9._-]*",
    allowed="a provider as the price table names it, such as openai, anthropic, google, aws, azure or x-ai",
)


def unknown_provider(name: str) -> str | None:
    """The message for a provider that the price table does not have; None: it has it, or is not installed."""
    known = listed_providers()
    if not known or name in known:
        return None
    return f"the price table has no provider {quoted(name)}; it has: {listed(known)}{suggestion(name, known)}"
