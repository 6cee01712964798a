"""Units of usage, under the names of the price table of the package ``genai-prices``.

https://github.com/pydantic/genai-prices (`genai_prices.data_units`)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FIGURE_MAX: Final = 10**15 - 1
"""The largest figure that is read."""

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
