"""Anthropic's Messages API.

https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from meterkit.tokens.calls import EventUsage
from meterkit.tokens.json_values import dig, paths, read_counts, rows, table, text
from meterkit.tokens.providers.api import Api, cache_included

if TYPE_CHECKING:
    from meterkit.tokens.json_values import Counts, Paths, Table

_ITERATED: Final = paths(
    input_tokens="input_tokens",
    output_tokens="output_tokens",
    cached_input_tokens="cache_read_input_tokens",
    cache_write_tokens="cache_creation_input_tokens",
)
_PATHS: Final[Paths] = {**_ITERATED, **paths(reasoning_tokens="output_tokens_details.thinking_tokens")}
_OF_ITERATIONS: Final = "iterated_"
_STREAMED: Final = ("message_start", "message_delta", "message_stop")
_TYPES: Final = (*_STREAMED, "content_block_start", "content_block_delta", "content_block_stop")


def _settle(counts: Counts) -> Counts:
    # The sum of the iterations also has those that the figure itself leaves out.
    largest: dict[str, int] = {}
    for key, count in counts.items():
        name = key.removeprefix(_OF_ITERATIONS)
        largest[name] = max(count, largest.get(name, 0))
    return cache_included(largest)


def _iterations(usage: Table) -> tuple[dict[str, int], bool]:
    sums = Counter[str]()
    refused = False
    for entry in filter(None, map(table, rows(usage.get("iterations")))):
        counts, odd = read_counts(entry, _ITERATED)
        refused |= odd
        sums.update({_OF_ITERATIONS + name: count for name, count in counts.items()})
    return sums, refused


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    kind = event.get("type")
    if kind in ("message_start", "message_stop"):
        holder = table(event.get("message"))
    elif kind in ("message", "message_delta") or not strict:
        holder = event
    else:
        return None
    usage = None if holder is None else table(holder.get("usage"))
    if holder is None or usage is None or "output_tokens" not in usage:
        return None
    is_delta = kind == "message_delta"
    if not (is_delta or "input_tokens" in usage):
        return None
    counts, refused = read_counts(usage, _PATHS)
    iterated, odd = _iterations(usage)
    return EventUsage(
        counts={**counts, **iterated},
        settle=_settle,
        provider="anthropic",
        refused=refused or odd,
        call_id=None if is_delta else text(holder.get("id")),
        model=text(holder.get("model")),
        opens=kind == "message_start",
        final=dig(event, ("delta", "stop_reason")) is not None if is_delta else kind != "message_start",
    )


def _recognises(event: Table) -> bool:
    kind = event.get("type")
    return isinstance(event.get("content"), list) if kind == "message" else kind in _TYPES


ANTHROPIC: Final = Api(name="anthropic", provider="anthropic", usage_in=_usage_in, recognises=_recognises)
