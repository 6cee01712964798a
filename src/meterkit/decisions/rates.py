"""Rates as the scripts take them, and how long what they count may matter. Pure."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Final

from meterkit.decisions.kinds import FIXED_WINDOW, SLIDING_WINDOW, TOKEN_BUCKET
from meterkit.errors import PlansError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.catalog import Rate

__all__ = ["keep_ms_of", "rate_numbers"]

_KINDS: Final = {"sliding-window": SLIDING_WINDOW, "fixed-window": FIXED_WINDOW, "token-bucket": TOKEN_BUCKET}
_EXACT: Final = 9 * 10**15  # below 2^53: what a Lua number counts exactly
_QUARTER_HOUR_MS: Final = 900_000


def keep_ms_of(rates: Iterable[Rate]) -> int:
    """How long counters of rates live: a quarter of an hour longer than what was counted may matter.

    That is two windows, or until a full bucket has run empty.
    """
    spans = (max(2 * rate.window_ms, -(-rate.burst * rate.window_ms // rate.limit)) for rate in rates)
    return max(spans, default=0) + _QUARTER_HOUR_MS


def rate_numbers(rate: Rate, meter: str) -> tuple[int, int, int, int]:
    """A rate as the scripts take it: kind, window, limit, refill.

    A bucket's refill of ``limit / window_ms`` per ms is reduced to lowest terms, so that no product in the
    script passes 2^53; where that does not suffice it is rounded down, by less than one part in a million.

    Raises:
        PlansError: a bucket so large and so slow that its refill cannot be counted exactly.
    """
    kind = _KINDS[rate.algorithm]
    if kind != TOKEN_BUCKET:
        return kind, rate.window_ms, rate.limit, 0
    shared = gcd(rate.limit, rate.window_ms)
    refill, window = rate.limit // shared, rate.window_ms // shared
    if (rate.burst + 2) * window > _EXACT:
        most = _EXACT // (rate.burst + 2)
        refill, window = refill * most // window, most
        if refill < 10**6:
            message = (
                f"a burst of {rate.burst} at {rate.limit} per {rate.window} cannot be counted exactly; "
                "make the burst smaller or the rate faster"
            )
            raise PlansError([Problem("plans", 0, 0, f"meters.{meter}.rate", message)])
    return kind, window, rate.burst, refill
