"""Cohere's Chat API, its embeddings and rankings.

https://docs.cohere.com/v2/reference/chat-stream
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_usage.call_usage import figure
from llm_usage.json_values import Paths, dig, paths, read_counts, short_id, table, text
from llm_usage.providers.reader_interface import ProviderApi, UsageShape
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from llm_usage.json_values import Counts, Table

_BILLED: Final = paths(
    rerank_searches="billed_units.search_units",
    input_image_tokens="billed_units.image_tokens",
    input_text_tokens="billed_units.text_tokens",
    input_document_pages="billed_units.pages",
)
_PATHS: Final = Paths(
    {
        **_BILLED,
        **paths(
            input_tokens="tokens.input_tokens",
            output_tokens="tokens.output_tokens",
            cached_input_tokens="cached_tokens",
            billed_input_tokens="billed_units.input_tokens",
            billed_output_tokens="billed_units.output_tokens",
        ),
    }
)
_TYPES: Final = (
    "message-start",
    "content-start",
    "content-delta",
    "content-end",
    "tool-plan-delta",
    "tool-call-start",
    "tool-call-delta",
    "tool-call-end",
    "citation-start",
    "citation-end",
    "message-end",
)
_TYPES_OF_V1: Final = (
    "stream-start",
    "search-queries-generation",
    "search-results",
    "text-generation",
    "citation-generation",
    "tool-calls-chunk",
    "tool-calls-generation",
    "stream-end",
)
_IMAGES: Final = ("billed_units", "images")
_OF_OTHERS: Final = frozenset({"choices", "candidates", "object", "type", "done"})
"""Members that events of other APIs have, and nothing of Cohere's with ``meta``."""


def _settle(counts: Counts) -> Counts:
    # Where only the billed units are named, they are the best that is known.
    return {**{name.removeprefix("billed_"): count for name, count in counts.items()}, **counts}


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    holder = table(event.get("delta")) if event.get("type") == "message-end" else event
    metered = _metered(event, strict)
    if metered is not None:
        return metered
    usage = None if holder is None else table(holder.get("usage"))
    if usage is None or (strict and not _recognises(event)):
        return None
    if not _has_figures(usage):
        return None
    counts, refused = read_counts(usage, _PATHS)
    return _event_usage(event, counts, refused)


def _has_figures(usage: Table) -> bool:
    return any(table(usage.get(name)) is not None for name in ("tokens", "billed_units"))


def _find_meta(event: Table, strict: bool) -> tuple[Table, Table] | None:
    """The part of an event that has the usage in ``meta``, and that.

    Servers repeat what a client calls so, in the events of any API.
    """
    if strict and not _OF_OTHERS.isdisjoint(event):
        return None
    holder = table(event.get("response")) if event.get("event_type") == "stream-end" else event
    meta = None if holder is None else table(holder.get("meta"))
    return None if holder is None or meta is None or not _has_figures(meta) else (holder, meta)


def _metered(event: Table, strict: bool) -> EventUsage | None:
    """Usage in ``meta``: of embeddings, rankings, classifications, parsed documents and Chat v1."""
    found = _find_meta(event, strict)
    if found is None:
        return None
    holder, meta = found
    figures, refused = read_counts(meta, _PATHS)
    if not (figures or refused) and figure(dig(meta, _IMAGES)):
        return None  # Of images the table has no price but that of their tokens: usage is missing.
    counts = dict(_settle(figures))
    parts = [counts[name] for name in ("input_text_tokens", "input_image_tokens") if name in counts]
    if parts:
        counts.setdefault("input_tokens", sum(parts))
    if "input_tokens" in counts:
        counts.setdefault("output_tokens", 0)
    return _event_usage(holder, counts, refused)


def _event_usage(holder: Table, counts: Counts, refused: bool) -> EventUsage:
    return EventUsage(
        counts=counts,
        settle=_settle,
        provider="cohere",
        refused=refused,
        call_id=short_id(holder.get("id")) or short_id(holder.get("generation_id")),
        model=text(holder.get("model")),
        opens=True,
        final=True,
    )


def _recognises(event: Table) -> bool:
    if (
        event.get("type") in _TYPES
        or event.get("event_type") in _TYPES_OF_V1
        or _find_meta(event, True) is not None
    ):
        return True
    return isinstance(event.get("finish_reason"), str) and dig(event, ("message", "role")) == "assistant"


COHERE: Final = ProviderApi(
    name="cohere",
    provider="cohere",
    usage_in=_usage_in,
    recognises=_recognises,
    shapes=(UsageShape("chat, embeddings, rankings, parsed documents", "usage, meta", _PATHS),),
    marks=(b'"message-start"', b'"content-delta"', b'"tool-', b'"stream-start"', b'"text-generation"'),
)
