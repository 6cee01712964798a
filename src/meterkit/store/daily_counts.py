"""Counters of this process, flushed to a hash of the store for each day: degraded minutes, unpriced calls."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import WeakSet

from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.periods import DAY_MS, MINUTE_MS
from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin

_Name = TypeVar("_Name", int, str)

_SEND_EVERY_S: Final = 5.0
DEGRADED_DAYS: Final = 30
"""Days whose degraded minutes and excess units are shown."""


class DailyCounts(ABC, Generic[_Name]):
    """Counts in memory, flushed every five seconds.

    While the store is down they stay in memory: a process that ends in that time loses its counts.

    Args:
        keys: of the store.
        admin: gives a client of the store.
        now_ms: the clock.
    """

    _hash: str
    _days_kept: int

    def __init__(self, keys: Keys, admin: Callable[[], Awaitable[Admin]], now_ms: Callable[[], int]) -> None:
        self._keys = keys
        self._admin = admin
        self._now_ms = now_ms
        self._counts: Counter[_Name] = Counter()
        _everywhere.add(self)

    def forget(self) -> None:
        """Drop the counts: they are those of the parent process, which sends them."""
        self._counts = Counter()

    async def run(self) -> None:
        """Collect and flush the counts every five seconds, until cancelled."""
        while True:
            with suppress(StoreError):  # They are sent again.
                await self.collect()
                if self._counts:
                    await self.send()
            await asyncio.sleep(_SEND_EVERY_S)

    async def collect(self) -> None:
        """Count what is only known by reading the store. Nothing, for most.

        Raises:
            StoreError: the store does not answer.
        """

    async def send(self) -> None:
        """Flush the counts.

        Raises:
            StoreError: the store does not answer; they are sent again, so that some may count twice.
        """
        # Removed first: another event loop of this process may send, too.
        sent, self._counts = self._counts, Counter()
        try:
            admin = await self._admin()
            pipe = admin.client.pipeline(transaction=False)
            keys: dict[str, None] = {}
            for name, count in sent.items():
                key = self._key(self._day_of(name))
                keys[key] = None
                pipe.hincrby(key, str(name), count)
            for key in keys:
                pipe.pexpire(key, self._days_kept * DAY_MS)
            await admin.ask(pipe.execute())
        except BaseException:
            self._counts += sent
            raise

    async def _read_days(self, days: int) -> list[Mapping[bytes, bytes]]:
        """The hashes of today and the days before, ``days`` in all; today's first."""
        admin, today = await self._admin(), self._now_ms() // DAY_MS
        found: list[Mapping[bytes, bytes]] = await admin.ask_all(
            ("hgetall", self._key(today - back)) for back in range(days)
        )
        return found

    def _today(self) -> int:
        """Today's day since 1970."""
        return self._now_ms() // DAY_MS

    @abstractmethod
    def _day_of(self, name: _Name) -> int:
        """The day since 1970 that a count belongs to."""

    def _key(self, day: int) -> str:
        return self._keys.shard(HOOKS_SHARD, f"{self._hash}:{day}")


_everywhere: Final[WeakSet[DailyCounts[Any]]] = WeakSet()


def _after_fork() -> None:
    for counts in _everywhere:
        counts.forget()


os.register_at_fork(after_in_child=_after_fork)


class DegradedMinutes(DailyCounts[int]):
    """Requests decided without the store, by minute since 1970."""

    _hash = "degraded"
    _days_kept = 36
    _MINUTES_MAX: Final = 10_000

    def note(self) -> None:
        """Count a request that is decided without the store."""
        minute = self._now_ms() // MINUTE_MS
        if minute in self._counts or len(self._counts) < self._MINUTES_MAX:
            self._counts[minute] += 1

    async def read(self, days: int) -> Mapping[int, int]:
        """Requests of all processes by minute since 1970, newest first.

        Args:
            days: number of days, today included.

        Raises:
            StoreError: the store does not answer.
        """
        found: dict[int, int] = {}
        for kept in await self._read_days(days):
            found |= {int(minute): int(requests) for minute, requests in kept.items()}
        return dict(sorted(found.items(), reverse=True))

    def _day_of(self, name: int) -> int:
        return name * MINUTE_MS // DAY_MS


class UnpricedCalls(DailyCounts[str]):
    """Calls of models without a price, by model; beyond a hundred names: ``other``."""

    _hash = "unpriced"
    _days_kept = 2
    _NAMES_MAX: Final = 100
    _NAME_LENGTH_MAX: Final = 100
    _OTHER: Final = "other"

    def __init__(self, keys: Keys, admin: Callable[[], Awaitable[Admin]], now_ms: Callable[[], int]) -> None:
        super().__init__(keys, admin, now_ms)
        self._names: set[str] = set()

    def note(self, model: str, calls: int) -> None:
        """Count calls of a model; empty: of no known model."""
        name = model[: self._NAME_LENGTH_MAX]
        if name not in self._names:
            name = name if len(self._names) < self._NAMES_MAX else self._OTHER
            self._names.add(name)
        self._counts[name] += calls

    @property
    def has_noted(self) -> bool:
        """Whether this process has counted any call."""
        return bool(self._names)

    async def read(self) -> Mapping[str, int]:
        """Calls of today and yesterday (UTC) by model, of all processes, the most first.

        Raises:
            StoreError: the store does not answer.
        """
        if self._counts:
            await self.send()
        found: Counter[str] = Counter()
        for kept in await self._read_days(self._days_kept):
            found.update({model.decode(errors="replace"): int(calls) for model, calls in kept.items()})
        return dict(found.most_common())

    def _day_of(self, name: str) -> int:  # noqa: ARG002 - counted on the day that it is sent
        return self._now_ms() // DAY_MS
