"""Anthropic's Messages API.

https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.tokens.calls import Sighting
from meterkit.tokens.figures import Figures
from meterkit.tokens.providers.api import Api
from meterkit.tokens.shape import dig, read_counts, rows, table, text

if TYPE_CHECKING:
    from meterkit.tokens.shape import Counts, Paths, Table

__all__ = ["ANTHROPIC"]

_ITERATED: Final[Paths] = {
    "input": (("input_tokens",),),
    "output": (("output_tokens",),),
    "cached": (("cache_read_input_tokens",),),
    "cache_write": (("cache_creation_input_tokens",),),
}
_PATHS: Final[Paths] = {**_ITERATED, "reasoning": (("output_tokens_details", "thinking_tokens"),)}
_TYPES: Final = (
    "message",
    "message_start",
    "message_delta",
    "message_stop",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
)


def _settle(counts: Counts) -> Figures:
    fresh = _largest(counts, "input")
    cached, written = _largest(counts, "cached"), _largest(counts, "cache_write")
    apart = [part for part in (fresh, cached, written) if part is not None]
    return Figures(
        input_tokens=None if fresh is None else sum(apart),
        output_tokens=_largest(counts, "output"),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=counts.get("reasoning"),
    )


def _largest(counts: Counts, name: str) -> int | None:
    """The figure itself, or the sum of the iterations, which also has those that the figure leaves out."""
    found = [value for key in (name, f"iterated_{name}") if (value := counts.get(key)) is not None]
    return max(found) if found else None


def _iterated(usage: Table) -> tuple[dict[str, int], bool]:
    sums: dict[str, int] = {}
    refused = False
    for iteration in rows(usage.get("iterations")):
        entry = table(iteration)
        if entry is None:
            continue
        counts, odd = read_counts(entry, _ITERATED)
        refused |= odd
        for name, count in counts.items():
            key = f"iterated_{name}"
            sums[key] = sums.get(key, 0) + count
    return sums, refused


def _see(event: Table, strict: bool) -> Sighting | None:
    kind = event.get("type")
    if kind in ("message_start", "message_stop"):
        holder = table(event.get("message"))
    elif kind in ("message", "message_delta") or not strict:
        holder = event
    else:
        holder = None
    usage = None if holder is None else table(holder.get("usage"))
    if holder is None or usage is None:
        return None
    if not ("output_tokens" in usage and (kind == "message_delta" or "input_tokens" in usage)):
        return None
    counts, refused = read_counts(usage, _PATHS)
    iterated, odd = _iterated(usage)
    ends = kind == "message_delta" and dig(event, ("delta", "stop_reason")) is not None
    return Sighting(
        counts={**counts, **iterated},
        settle=_settle,
        provider="anthropic",
        refused=refused or odd,
        call_id=None if kind == "message_delta" else text(holder.get("id")),
        model=text(holder.get("model")),
        opens=kind == "message_start",
        final=ends or kind not in ("message_start", "message_delta"),
    )


def _knows(event: Table) -> bool:
    kind = event.get("type")
    if kind == "message":
        return isinstance(event.get("content"), list)
    return kind in _TYPES


ANTHROPIC: Final = Api(name="anthropic", provider="anthropic", see=_see, knows=_knows)
