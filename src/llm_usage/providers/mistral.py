"""Mistral: OpenAI's shape, and endpoints with a shape of their own.

https://docs.mistral.ai/api/
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_usage.json_values import dig, paths, read_counts, rows, short_id, table, text
from llm_usage.providers.openai import OPENAI
from llm_usage.providers.reader_interface import ProviderApi, UsageShape
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from llm_usage.json_values import Table

_PROVIDER: Final = "mistral_ai"
_PAGES: Final = paths(input_document_pages="usage_info.pages_processed")
_SECONDS: Final = "prompt_audio_seconds"
_STREAMED: Final = (
    "conversation.response.",
    "message.output.",
    "transcription.text.",
    "transcription.language",
    "transcription.segment",
)
"""Beginnings of the types of events."""
_HEARD: Final = paths(
    input_tokens="prompt_tokens",
    output_tokens="completion_tokens",
    total="total_tokens",
    audio_seconds=_SECONDS,
    input_audio_seconds=_SECONDS,
)

_SHAPES: Final = (
    UsageShape("scanned documents", "", _PAGES),
    UsageShape("transcriptions and moderations", "usage", _HEARD),
)


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    found = _mistral_usage_in(event, strict) or OPENAI.usage_in(event, strict)
    if found is None or found.provider != OPENAI.provider:
        return found
    others = tuple(replace(other, provider=_PROVIDER) for other in found.others)
    return replace(found, provider=_PROVIDER, others=others)


def _mistral_usage_in(event: Table, _: bool) -> EventUsage | None:
    if _is_scan(event):
        counts, refused = read_counts(event, _PAGES)
        pages = counts.get("input_document_pages")
        if pages is not None and _is_annotated(event):
            counts["input_annotated_document_pages"] = pages
        return _event_usage(event, counts, refused=refused)
    if not _is_heard_or_moderated(event):
        return None
    usage = {name: value for name, value in (table(event.get("usage")) or {}).items() if table(value) is None}
    counts, refused = read_counts(usage, _HEARD)  # Seconds are an empty object where there is no sound.
    if not counts and not refused:
        return None
    if "input_tokens" in counts:
        counts.setdefault("output_tokens", 0)
        # Sound is part of the input, and only the total counts it.
        counts["input_tokens"] = max(counts["input_tokens"], counts.get("total", 0) - counts["output_tokens"])
    return _event_usage(event, counts, refused=refused)


def _event_usage(event: Table, counts: dict[str, int], *, refused: bool) -> EventUsage:
    return EventUsage(
        counts=counts,
        provider=_PROVIDER,
        refused=refused,
        call_id=short_id(event.get("id")),
        model=text(event.get("model")),
        opens=True,
        final=True,
    )


def _is_scan(event: Table) -> bool:
    """Whether it is the text of a scanned document."""
    return dig(event, ("usage_info", "pages_processed")) is not None and "pages" in event


def _is_annotated(event: Table) -> bool:
    """Whether the document or an image in it is described, which has a price of its own."""
    images = [image for page in rows(event.get("pages")) for image in rows(dig(page, ("images",)))]
    described = [event.get("document_annotation"), *(dig(image, ("image_annotation",)) for image in images)]
    return any(isinstance(annotation, str) for annotation in described)


def _is_heard_or_moderated(event: Table) -> bool:
    """Whether it is a transcription or a moderation of Mistral's."""
    usage = table(event.get("usage")) or {}
    if "prompt_tokens" not in usage and _SECONDS not in usage:
        return False
    moderated = rows(event.get("results"))
    is_moderation = bool(moderated) and dig(moderated[0], ("category_scores",)) is not None
    return is_moderation or (_SECONDS in usage and isinstance(event.get("text"), str))


def _recognises(event: Table) -> bool:
    return OPENAI.recognises(event) or _recognises_mistral(event)


def _recognises_mistral(event: Table) -> bool:
    kind = event.get("type")
    if isinstance(kind, str) and kind.startswith(_STREAMED):
        return True
    return _is_scan(event) or _is_heard_or_moderated(event)


MISTRAL: Final = ProviderApi(
    name="mistral", provider=_PROVIDER, usage_in=_usage_in, recognises=_recognises, shapes=_SHAPES
)
MISTRAL_ALONE: Final = ProviderApi(
    name="mistral",
    provider=_PROVIDER,
    usage_in=_mistral_usage_in,
    recognises=_recognises_mistral,
    marks=(b'"conversation.response.', b'"message.output.'),
)
"""Those endpoints of Mistral's that no other API has."""
