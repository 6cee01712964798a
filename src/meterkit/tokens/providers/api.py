"""What a reader of one API provides, and what the readers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.tokens.calls import EventUsage
    from meterkit.tokens.json_values import Counts, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """How one API reports usage.

    Attributes:
        name: the word of the plans file.
        provider: as OpenTelemetry names it; None where each object has its own.
        usage_in: what an event or document says about usage, None where it says nothing. With ``strict`` the
            whole of it must have the API's shape; without, a usage object of the right shape suffices.
        recognises: whether an event or document is certainly the API's, with or without usage.
    """

    name: str
    provider: str | None
    usage_in: Callable[[Table, bool], EventUsage | None]
    recognises: Callable[[Table], bool]


def cache_included(counts: Counts) -> Counts:
    """The figures of an API whose input leaves out what was read from a cache or written to one."""
    if "input_tokens" not in counts:
        return counts
    parts = ("input_tokens", "cached_input_tokens", "cache_write_tokens")
    return {**counts, "input_tokens": sum(counts.get(part, 0) for part in parts)}
