"""Units of the price table: the counters of a model call that have prices, and meters that bear their names.

https://github.com/pydantic/genai-prices (`genai_prices.data_units`)
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

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
