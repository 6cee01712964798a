"""The price table of the package ``genai-prices``: units, meters that bear their names, models and providers.

Models and providers are looked up where the package is installed: https://github.com/pydantic/genai-prices
(units: `genai_prices.data_units`).
"""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.errors import listed, quoted, suggestion
from meterkit.catalog.value_parsers import text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MODALITIES: Final = ("", "text_", "audio_", "image_", "video_")
_OF_MODALITY: Final = (
    "input_{}tokens",
    "input_{}tool_tokens",
    "cache_{}read_tokens",
    "cache_{}write_tokens",
    "cache_{}write_5m_tokens",
    "cache_{}write_1h_tokens",
    "output_{}tokens",
    "output_{}reasoning_tokens",
    "output_{}citation_tokens",
)
_OTHERS: Final = (
    "audio_seconds",
    "input_audio_seconds",
    "output_audio_seconds",
    "input_characters",
    "input_text_messages",
    "input_pixels",
    "input_document_pages",
    "input_annotated_document_pages",
    "rerank_searches",
    "web_searches",
    "social_searches",
    "storage_searches",
    "code_executions",
)
UNITS: Final = frozenset(
    (*(unit.format(modality) for unit in _OF_MODALITY for modality in _MODALITIES), *_OTHERS)
)
"""Units that responses report. The table's `requests` is not one: every call is one request."""

UNIT_OF: Final[Mapping[str, str]] = {
    "cached_input_tokens": "cache_read_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
}
"""Token meters that the table names otherwise."""

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


def _direction_unit(unit: str) -> str | None:
    if not unit.endswith("_tokens") or unit in {"input_tokens", "output_tokens"}:
        return None
    return "output_tokens" if unit.startswith("output_") else "input_tokens"


WHOLE_OF: Final[Mapping[str, str]] = {
    name: whole
    for name in (*UNITS, *UNIT_OF)
    if (whole := _direction_unit(UNIT_OF.get(name, name))) is not None
}
"""Units and meters of some tokens, each with that of all tokens of its direction."""


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
