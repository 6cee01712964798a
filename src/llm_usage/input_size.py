"""Size of what a request sends in: bytes of text, tokens given as numbers, and media parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from llm_usage.json_readings import MEMBERS_MAX, Members
from llm_usage.json_values import rows
from llm_usage.layout import utf8_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

MeasureText: TypeAlias = "Callable[[str], tuple[int, int]]"
"""Finds the bytes of text and the media parts within a text."""
_VALUES_MAX: Final = 3_072
_SHORT_CHARS_MAX: Final = 256
_MEDIA: Final = frozenset(
    {
        "image_url",
        "input_audio",
        "inlineData",
        "inline_data",
        "fileData",
        "file_data",
        "file_id",
        "image",
        "images",
        "audio",
        "video",
        "mediaChunks",
        "media_chunks",
    }
)
_MEDIA_SOURCES: Final = ("base64", "url", "file")
_MEDIA_DATA: Final = ("data", "url", "file_id")
_NO_TEXT: Final = frozenset(
    {
        "type",
        "role",
        "id",
        "tool_call_id",
        "tool_use_id",
        "call_id",
        "cache_control",
        "cachePoint",
        "model",
        "user",
    }
)


def measure_plain_text(value: str) -> tuple[int, int]:
    """Measure a text as nothing but text."""
    return utf8_bytes(value), 0


def measure_values(values: list[Any], measure_text: MeasureText) -> tuple[int, int, int]:
    """Bytes of text, tokens given as numbers, and media parts in values of any depth.

    Args:
        values: parsed JSON, its objects as pairs. It keeps the values beyond the bound.
        measure_text: finds the bytes of text and the media parts within a text.
    """
    size = numbers = media = 0
    for _ in range(_VALUES_MAX):
        if not values:
            break
        value = values.pop()
        if isinstance(value, str):
            text_bytes, encoded = measure_text(value)
            size += text_bytes
            media += encoded
        elif isinstance(value, list):
            items = rows(cast("object", value))
            others = [item for item in items if type(item) not in (int, float) or item % 1]
            numbers += len(items) - len(others)
            values += others
        elif isinstance(value, tuple) and len(cast("Members", value)) > MEMBERS_MAX:
            values.append(value)
            break
        elif isinstance(value, tuple):
            media += _count_media(cast("Members", value), values)
    return size, numbers, media


def _count_media(members: Members, values: list[Any]) -> int:
    """Count the media parts of an object; its other members are added to the values."""
    is_source = any(name == "type" and value in _MEDIA_SOURCES for name, value in members)
    media = 0
    for name, value in members:
        if name in _MEDIA or (is_source and name in _MEDIA_DATA):
            media += max(1, len(rows(value)))
        elif name not in _NO_TEXT or not isinstance(value, str) or len(value) > _SHORT_CHARS_MAX:
            values.append(value)
    return media
