"""Whose an API key is: asked once, and remembered for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable, iscoroutinefunction
from time import monotonic
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, to_thread

__all__ = ["KeyLookup", "KeyOwners"]

KeyLookup = Callable[[str], str | Awaitable[str | None] | None]
T = TypeVar("T")

_KEPT_MAX: Final = 10_000
_THREADS_MAX: Final = 16
_UNOWNED_S_MAX: Final = 5.0
"""A key that was just made should not be refused for long where it was tried too early."""


class KeyOwners:
    """Asks a lookup whose a key is, and remembers what it said; keys are known by their hashes only.

    Requests that ask for the same key at the same time wait for one lookup; what it raises, each of them
    raises, and it is asked again for the next one. What is remembered is bounded: of 10,000 owners the oldest
    half is forgotten, and keys that nobody owns are kept apart, so that no number of them displaces an owner.

    Args:
        lookup: from a key's hash to its customer, or None; one that is not async runs in a thread.
        ttl_s: how long an owner is remembered, in seconds; that nobody owns a key, 5 seconds at most.
    """

    def __init__(self, lookup: KeyLookup, ttl_s: float) -> None:
        self._lookup = lookup
        self._runs_on_the_loop = iscoroutinefunction(lookup) or iscoroutinefunction(
            getattr(lookup, "__call__", None)  # noqa: B004 - an object whose call is async
        )
        self._ttl_s = ttl_s
        self._owned: dict[str, tuple[str, float]] = {}
        self._unowned: dict[str, float] = {}
        self._asked: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[str | None]] = {}
        self._limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter] = WeakKeyDictionary()

    def of(self, key_hash: str) -> str | Awaitable[str | None] | None:
        """The owner of a key; at once where it is remembered."""
        owned = self._owned.get(key_hash)
        if owned is not None and monotonic() < owned[1]:
            return owned[0]
        if monotonic() < self._unowned.get(key_hash, 0.0):
            return None
        return self._ask(key_hash)

    async def _ask(self, key_hash: str) -> str | None:
        loop = asyncio.get_running_loop()
        while (asked := self._asked.get((loop, key_hash))) is not None:
            await asyncio.wait([asked])
            if not asked.cancelled():
                return asked.result()
            # Whoever had asked was cancelled meanwhile; somebody else has to.
        asked = self._asked[loop, key_hash] = loop.create_future()
        try:
            owner = await self._look_up(key_hash)
        except Exception as error:
            asked.set_exception(error)
            asked.exception()  # It is raised here, whether or not anybody else waits for it.
            raise
        except BaseException:
            asked.cancel()
            raise
        else:
            self._remember(key_hash, owner)
            asked.set_result(owner)
            return owner
        finally:
            del self._asked[loop, key_hash]

    async def _look_up(self, key_hash: str) -> str | None:
        if self._runs_on_the_loop:
            found = self._lookup(key_hash)
        else:
            found = await to_thread.run_sync(self._lookup, key_hash, limiter=self._limiter())
        return await found if isawaitable(found) else found

    def _limiter(self) -> CapacityLimiter:
        """Threads of its own: keys that strangers make up must not take those of the app's endpoints."""
        loop = asyncio.get_running_loop()
        limiter = self._limiters.get(loop)
        if limiter is None:
            limiter = self._limiters[loop] = CapacityLimiter(_THREADS_MAX)
        return limiter

    def _remember(self, key_hash: str, owner: object) -> None:
        now = monotonic()
        self._owned.pop(key_hash, None)  # What is put in anew is the youngest.
        self._unowned.pop(key_hash, None)
        if isinstance(owner, str):
            _put(self._owned, key_hash, (owner, now + self._ttl_s))
        elif owner is None:
            _put(self._unowned, key_hash, now + min(self._ttl_s, _UNOWNED_S_MAX))


def _put(kept: dict[str, T], key_hash: str, value: T) -> None:
    if len(kept) >= _KEPT_MAX:
        for oldest in list(kept)[: _KEPT_MAX // 2]:
            kept.pop(oldest, None)  # Another thread may be doing the same.
    kept[key_hash] = value
