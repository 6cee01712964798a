"""Store-corrected clock: this host's, plus its difference from the store's, which each event loop measures.

Scripts decide by the server's clock alone. What this process does by a clock must agree with that: periods in
views, renewal of holds, the time in spool records. So a host whose clock is wrong goes by the store's clock.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from statistics import median_low
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.errors import StoreError
from meterkit.log_throttle import HOUR_S, Throttle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

CLOCK_APART_S: Final = 5.0
"""A larger difference between clocks is corrected, logged, and a finding of ``meterkit doctor``."""
CLOCK_JITTER_MS: Final = 1000
"""The store's clock went back if it is behind by more than this; the scripts have it, too (constants.lua)."""
_MEASURE_EVERY_S: Final = 10.0
_log = logging.getLogger("meterkit.store")


class StoreClock:
    """Clock that agrees with the store's.

    Args:
        host: this host's clock, in seconds since the epoch.

    Attributes:
        ahead_s: how far the store's clock is ahead of this host's; 0 up to :data:`CLOCK_APART_S`.
    """

    def __init__(self, host: Callable[[], float]) -> None:
        self._host = host
        self._throttle = Throttle(HOUR_S)
        self._last: tuple[float, float] | None = None
        self.ahead_s = 0.0

    def __call__(self) -> float:
        """Return the seconds since the epoch."""
        return self._host() + self.ahead_s

    async def follow(self, ask_time: Callable[[], Awaitable[Any]]) -> None:
        """Measure the difference again and again.

        Args:
            ask_time: asks the server for its ``TIME``, or each node of a cluster; waits for a connection.
        """
        while True:
            with suppress(StoreError):
                if not await self._measure(ask_time):
                    continue
            await asyncio.sleep(_MEASURE_EVERY_S)

    async def _measure(self, ask_time: Callable[[], Awaitable[Any]]) -> bool:
        """Measure the difference; whether the answer came soon enough to say anything."""
        asked_s, asked_at = self._host(), monotonic()
        readings = _parse_times(await ask_time())
        answered_s, answered_at = self._host(), monotonic()
        if answered_at - asked_at > CLOCK_APART_S:
            return False
        if not readings:
            return True
        store_s = median_low(readings)
        # Where the reading lies between question and answer, there is no difference: the reply was slow.
        ahead_s = min(0.0, store_s - asked_s) or max(0.0, store_s - answered_s)
        self.ahead_s = ahead_s if abs(ahead_s) > CLOCK_APART_S else 0.0
        self._log_difference()
        if (
            self._last is not None
            and self._last[0] + asked_at - self._last[1] - store_s > CLOCK_JITTER_MS / 1000
        ):
            _log.warning(
                "the store's clock went back by %.0f s: rate windows of customers restart, so each may admit"
                " one window's quantity more; synchronize the store's host by NTP",
                self._last[0] + asked_at - self._last[1] - store_s,
            )
        self._last = store_s, answered_at
        return True

    def _log_difference(self) -> None:
        if not self.ahead_s:
            self._throttle.forget()
        elif self._throttle.is_due("apart"):
            _log.warning(
                "this host's clock is %.0f s %s the store's: limits, periods and usage go by the store's"
                " clock; synchronize both hosts by NTP",
                abs(self.ahead_s),
                "behind" if self.ahead_s > 0 else "ahead of",
            )


def _parse_times(reply: Any) -> list[float]:
    """Seconds of a reply to ``TIME``, or of each node's; an error reply has none."""
    if not isinstance(reply, list):
        return []
    replies = cast("Sequence[Any]", reply)
    times = [replies] if replies and isinstance(replies[0], bytes) else replies
    lists = (cast("Sequence[bytes]", time) for time in times if isinstance(time, list))
    return [int(seconds) + int(micros) / 1e6 for seconds, micros in lists]
