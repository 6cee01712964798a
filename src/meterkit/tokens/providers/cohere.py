"""Cohere's Chat API, version 2.

https://docs.cohere.com/v2/reference/chat-stream
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.tokens.calls import EventUsage
from meterkit.tokens.json_values import dig, paths, read_counts, table, text
from meterkit.tokens.providers.api import Api

if TYPE_CHECKING:
    from meterkit.tokens.json_values import Counts, Table

_PATHS: Final = paths(
    input_tokens="tokens.input_tokens",
    output_tokens="tokens.output_tokens",
    cached_input_tokens="cached_tokens",
    billed_input_tokens="billed_units.input_tokens",
    billed_output_tokens="billed_units.output_tokens",
)
_BILLED: Final = paths(input_tokens="input_tokens")
_TYPES: Final = (
    *("message-start", "content-start", "content-delta", "content-end", "tool-plan-delta"),
    *("tool-call-start", "tool-call-delta", "tool-call-end", "citation-start", "citation-end"),
    "message-end",
)


def _settle(counts: Counts) -> Counts:
    # Where only the billed units are named, they are the best that is known.
    return {**{name.removeprefix("billed_"): count for name, count in counts.items()}, **counts}


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    holder = table(event.get("delta")) if event.get("type") == "message-end" else event
    if "embeddings" in event or _is_ranking(event):
        return _metered(event)
    usage = None if holder is None else table(holder.get("usage"))
    if usage is None or (strict and not _recognises(event)):
        return None
    if table(usage.get("tokens")) is None and table(usage.get("billed_units")) is None:
        return None
    counts, refused = read_counts(usage, _PATHS)
    return EventUsage(
        counts=counts,
        settle=_settle,
        provider="cohere",
        refused=refused,
        call_id=text(event.get("id")),
        model=text(event.get("model")),
        opens=True,
        final=True,
    )


def _metered(event: Table) -> EventUsage | None:
    """Embeddings, and rankings, which are billed by searches and not by tokens."""
    billed = table(dig(event, ("meta", "billed_units")))
    if billed is None:
        return None
    counts, refused = read_counts(billed, _BILLED)
    return EventUsage(
        counts={**counts, "output_tokens": 0} if counts else {},
        provider="cohere",
        refused=refused,
        call_id=text(event.get("id")),
        opens=True,
        final=True,
    )


def _is_ranking(event: Table) -> bool:
    return "results" in event and table(event.get("meta")) is not None


def _recognises(event: Table) -> bool:
    if event.get("type") in _TYPES or table(dig(event, ("meta", "billed_units"))) is not None:
        return True
    return isinstance(event.get("finish_reason"), str) and dig(event, ("message", "role")) == "assistant"


COHERE: Final = Api(name="cohere", provider="cohere", usage_in=_usage_in, recognises=_recognises)
