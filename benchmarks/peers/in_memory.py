"""Limiters in the memory of one process, whose counts no other process knows and a restart loses.

They are called synchronously, which costs them least.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from limits import RateLimitItemPerHour
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from rust_py_rate_limit import RateLimiter
from throttled import RateLimiterType, Throttled, store

from peers.bare import LIMIT_PER_HOUR, LIMIT_PER_MONTH, starlette_app
from peers.gate import LocalGate

if TYPE_CHECKING:
    from starlette.types import ASGIApp

RATE = RateLimitItemPerHour(LIMIT_PER_HOUR)


def build_limits(_redis_url: str) -> ASGIApp:
    return LocalGate(starlette_app(), partial(FixedWindowRateLimiter(MemoryStorage()).hit, RATE))


def build_throttled(_redis_url: str) -> ASGIApp:
    throttle = Throttled(
        using=RateLimiterType.FIXED_WINDOW.value, quota=f"{LIMIT_PER_HOUR}/h", store=store.MemoryStore()
    )
    return LocalGate(starlette_app(), lambda customer: not throttle.limit(customer).limited)


def build_rust(_redis_url: str) -> ASGIApp:
    return LocalGate(starlette_app(), RateLimiter(limit=LIMIT_PER_HOUR, window_seconds=3600).allow)


def build_composite(_redis_url: str) -> ASGIApp:
    """A rate, and a counter of usage that is the quota's, too."""
    is_below_rate = partial(SlidingWindowCounterRateLimiter(MemoryStorage()).hit, RATE)
    usage: Counter[tuple[str, str]] = Counter()

    def admit(customer: str) -> bool:
        month = customer, f"{datetime.now(UTC):%Y-%m}"
        if not is_below_rate(customer) or usage[month] >= LIMIT_PER_MONTH:
            return False
        usage[month] += 1
        return True

    return LocalGate(starlette_app(), admit)
