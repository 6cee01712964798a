"""Sliding windows and token buckets: the wait until there is room, by ``advance_rate.lua``. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meterkit.decisions.policies import PolicyMeasure

EXACT_WINDOW_MS_MAX: Final = 90_000_000  # 25 hours: longer windows move in whole seconds, see constants.lua.
_BUCKET_WAIT_MS_MAX: Final = 34_560_000_000  # 400 days: the longest that a bucket owes.


def bucket_wait_ms(measure: PolicyMeasure, owed: int, rest: int, needed: int) -> int:
    """Wait until a bucket has ``needed`` (ms)."""
    excess = owed * measure.window + rest - (measure.limit - needed) * measure.window
    return min(-(-excess // measure.refill), _BUCKET_WAIT_MS_MAX)


def sliding_wait_ms(measure: PolicyMeasure, counted: int, previous: int, needed: int, now_ms: int) -> int:
    """Wait until a sliding window has ``needed`` left (ms)."""
    limit, window = measure.limit, measure.window
    rest_ms = window - now_ms % window
    if counted + needed <= limit:
        return rest_ms - _most_left(previous, limit - counted - needed, window)
    return rest_ms + window - _most_left(counted, limit - needed, window)


def weighted_count(previous: int, left_ms: int, window_ms: int) -> int:
    """The part of the previous window's count that still counts, rounded up."""
    if window_ms > EXACT_WINDOW_MS_MAX:
        left_ms, window_ms = -(-left_ms // 1000), window_ms // 1000
    return -(-previous * left_ms // window_ms)


def _most_left(previous: int, room: int, window_ms: int) -> int:
    """The longest rest of a window at which no more than ``room`` of the previous count still counts (ms)."""
    if previous <= room:
        return window_ms
    if window_ms > EXACT_WINDOW_MS_MAX:
        return room * (window_ms // 1000) // previous * 1000
    return room * window_ms // previous
