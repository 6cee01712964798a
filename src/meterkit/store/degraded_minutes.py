"""The minutes in which a process decided without the store: stored afterwards, in a hash for each day."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin

_MINUTE_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
_KEPT_MS: Final = 36 * _DAY_MS
_SEND_EVERY_S: Final = 5.0
_KEPT_MOST: Final = 10_000


class DegradedMinutes:
    """Counts of this process, sent to the store once it answers again.

    They are in memory until then: a process that ends while the store is away takes its counts along.

    Args:
        keys: of the store.
        admin: gives a client of the store.
        now_ms: the clock.
    """

    def __init__(self, keys: Keys, admin: Callable[[], Awaitable[Admin]], now_ms: Callable[[], int]) -> None:
        self._keys = keys
        self._admin = admin
        self._now_ms = now_ms
        self._requests: Counter[int] = Counter()

    def note(self) -> None:
        """Count a request that is decided without the store."""
        minute = self._now_ms() // _MINUTE_MS
        if minute in self._requests or len(self._requests) < _KEPT_MOST:
            self._requests[minute] += 1

    async def run(self) -> None:
        """Send the counts every five seconds, until cancelled; while the store is away they wait."""
        while True:
            if self._requests:
                with suppress(StoreError):  # The outage itself is being counted.
                    await self.send()
            await asyncio.sleep(_SEND_EVERY_S)

    async def send(self) -> None:
        """Send the counts.

        Raises:
            StoreError: the store does not answer; they are sent again, so that a minute may have more.
        """
        # Taken first: another event loop of this process may send, too.
        sent, self._requests = self._requests, Counter()
        try:
            admin = await self._admin()
            pipe = admin.client.pipeline(transaction=False)
            for minute, requests in sent.items():
                key = self._key(minute)
                pipe.hincrby(key, str(minute), requests)
                pipe.pexpire(key, _KEPT_MS)
            await admin.ask(pipe.execute())
        except BaseException:
            self._requests += sent
            raise

    async def read(self, days: int) -> Mapping[int, int]:
        """By minute since 1970 how many requests all processes decided so, the latest first.

        Args:
            days: of so many days, today included.

        Raises:
            StoreError: the store does not answer.
        """
        admin, now = await self._admin(), self._now_ms() // _MINUTE_MS
        pipe = admin.client.pipeline(transaction=False)
        for back in range(days):
            pipe.hgetall(self._key(now - back * _DAY_MS // _MINUTE_MS))
        found: dict[int, int] = {}
        for kept in await admin.ask(pipe.execute()):
            found |= {int(minute): int(requests) for minute, requests in kept.items()}
        return dict(sorted(found.items(), reverse=True))

    def _key(self, minute: int) -> str:
        return self._keys.shard(HOOKS_SHARD, f"degraded:{minute * _MINUTE_MS // _DAY_MS}")
