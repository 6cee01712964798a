"""Calls of models without a price, by model: stored in a hash for each day, for all processes."""

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

_DAY_MS: Final = 86_400_000
_DAYS_KEPT: Final = 2
_SEND_EVERY_S: Final = 5.0
_NAMES_MOST: Final = 100
_NAME_MAX: Final = 100
_OTHER: Final = "other"


class UnpricedCalls:
    """Counts of this process, sent to the store every five seconds; beyond a hundred names: ``other``.

    Args:
        keys: of the store.
        admin: gives a client of the store.
        now_ms: the clock.
    """

    def __init__(self, keys: Keys, admin: Callable[[], Awaitable[Admin]], now_ms: Callable[[], int]) -> None:
        self._keys = keys
        self._admin = admin
        self._now_ms = now_ms
        self._names: set[str] = set()
        self._calls: Counter[str] = Counter()

    def note(self, model: str, calls: int) -> None:
        """Count calls of a model; empty: of no known model."""
        name = model[:_NAME_MAX]
        if name not in self._names:
            name = name if len(self._names) < _NAMES_MOST else _OTHER
            self._names.add(name)
        self._calls[name] += calls

    @property
    def has_noted(self) -> bool:
        """Whether this process has counted any call."""
        return bool(self._names)

    async def run(self) -> None:
        """Send the counts every five seconds, until cancelled; while the store is away they wait."""
        while True:
            if self._calls:
                with suppress(StoreError):  # They are sent again.
                    await self.send()
            await asyncio.sleep(_SEND_EVERY_S)

    async def send(self) -> None:
        """Send the counts.

        Raises:
            StoreError: the store does not answer; they are sent again.
        """
        # Taken first: another event loop of this process may send, too.
        sent, self._calls = self._calls, Counter()
        try:
            admin, key = await self._admin(), self._key(0)
            pipe = admin.client.pipeline(transaction=False)
            for model, calls in sent.items():
                pipe.hincrby(key, model, calls)
            pipe.pexpire(key, _DAYS_KEPT * _DAY_MS)
            await admin.ask(pipe.execute())
        except BaseException:
            self._calls += sent
            raise

    async def read(self) -> Mapping[str, int]:
        """Calls of today and yesterday (UTC) by model, of all processes, the most first.

        Raises:
            StoreError: the store does not answer.
        """
        if self._calls:
            await self.send()
        admin = await self._admin()
        pipe = admin.client.pipeline(transaction=False)
        for back in range(_DAYS_KEPT):
            pipe.hgetall(self._key(back))
        found: Counter[str] = Counter()
        for kept in await admin.ask(pipe.execute()):
            found.update({model.decode(errors="replace"): int(calls) for model, calls in kept.items()})
        return dict(found.most_common())

    def _key(self, days_back: int) -> str:
        day = self._now_ms() // _DAY_MS - days_back
        return self._keys.shard(HOOKS_SHARD, f"unpriced:{day}")
