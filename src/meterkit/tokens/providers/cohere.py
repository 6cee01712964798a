"""Cohere's Chat API, version 2.

https://docs.cohere.com/v2/reference/chat-stream
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.tokens.calls import Sighting
from meterkit.tokens.figures import Figures
from meterkit.tokens.providers.api import Api
from meterkit.tokens.shape import dig, read_counts, table, text

if TYPE_CHECKING:
    from meterkit.tokens.shape import Counts, Paths, Table

__all__ = ["COHERE"]

_PATHS: Final[Paths] = {
    "input": (("tokens", "input_tokens"),),
    "output": (("tokens", "output_tokens"),),
    "cached": (("cached_tokens",),),
    "billed_input": (("billed_units", "input_tokens"),),
    "billed_output": (("billed_units", "output_tokens"),),
}
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


def _settle(counts: Counts) -> Figures:
    billed_input, billed_output = counts.get("billed_input"), counts.get("billed_output")
    # Where only the billed units are named, they are the best that is known.
    return Figures(
        input_tokens=counts.get("input", billed_input),
        output_tokens=counts.get("output", billed_output),
        cached_input_tokens=counts.get("cached"),
        billed_input_tokens=billed_input,
        billed_output_tokens=billed_output,
    )


def _see(event: Table, strict: bool) -> Sighting | None:
    holder = table(event.get("delta")) if event.get("type") == "message-end" else event
    usage = None if holder is None else table(holder.get("usage"))
    if usage is None or (strict and not _knows(event)):
        return None
    if table(usage.get("tokens")) is None and table(usage.get("billed_units")) is None:
        return None
    counts, refused = read_counts(usage, _PATHS)
    return Sighting(
        counts=counts,
        settle=_settle,
        provider="cohere",
        refused=refused,
        call_id=text(event.get("id")),
        model=text(event.get("model")),
        opens=True,
        final=True,
    )


def _knows(event: Table) -> bool:
    if event.get("type") in _TYPES:
        return True
    return isinstance(event.get("finish_reason"), str) and dig(event, ("message", "role")) == "assistant"


COHERE: Final = Api(name="cohere", provider="cohere", see=_see, knows=_knows)
