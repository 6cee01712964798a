"""Owners of API keys: what a lookup says, remembered for a while under the keys' hashes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable, iscoroutinefunction
from time import monotonic
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, to_thread

from meterkit.asgi.callers import Caller
from meterkit.errors import MeterkitError

Owner = str | Caller
KeyLookup = Callable[[str], Owner | Awaitable[Owner | None] | None]
T = TypeVar("T")

_KEYS_KEPT_MAX: Final = 10_000
_THREADS_MAX: Final = 16
_UNOWNED_S_MAX: Final = 5.0
"""A key that was just made should not be refused for long where it was tried too early."""
_FAILED_TOLD: Final = 5
_logger = logging.getLogger("meterkit.asgi")


class KeyOwners:
    """Asks a lookup whose a key is, and remembers what it said; keys are known by their hashes only.

    Requests that ask for the same key at the same time wait for one lookup; what it raises, each of them
    raises, and it is asked again for the next one. What is remembered is bounded: of 10,000 owners the oldest
    half is forgotten. Keys without an owner are kept apart, so that no number of them displaces an owner.

    Args:
        lookup: from a key to its customer, or None; one that is not async runs in a thread.
        ttl_s: how long an owner is remembered, in seconds; that a key has no owner, 5 seconds at most.
        hashed: whether the lookup gets a key's hash.
    """

    def __init__(self, lookup: KeyLookup, ttl_s: float, *, hashed: bool) -> None:
        self._lookup = lookup
        self._hashed = hashed
        self._failed = 0
        self._runs_on_the_loop = iscoroutinefunction(lookup) or iscoroutinefunction(
            getattr(lookup, "__call__", None)  # noqa: B004 - an object whose call is async
        )
        self._ttl_s = ttl_s
        self._owned: dict[str, tuple[Owner, float]] = {}
        self._unowned: dict[str, float] = {}
        self._asked: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[Owner | None]] = {}
        self._limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter] = WeakKeyDictionary()

    def of(self, key: bytes) -> Owner | Awaitable[Owner | None] | None:
        """The owner of a key; at once where it is remembered."""
        key_hash = digest_of(key)
        owned = self._owned.get(key_hash)
        if owned is not None and monotonic() < owned[1]:
            return owned[0]
        if monotonic() < self._unowned.get(key_hash, 0.0):
            return None
        if self._hashed:
            return self._ask(key_hash, key_hash)
        try:
            return self._ask(key_hash, key.decode())
        except UnicodeDecodeError:
            return None  # Keys are texts.

    async def _ask(self, key_hash: str, asked_for: str) -> Owner | None:
        loop = asyncio.get_running_loop()
        while (asked := self._asked.get((loop, key_hash))) is not None:
            await asyncio.wait([asked])
            if not asked.cancelled():
                return asked.result()
            # The task that looked the owner up was cancelled meanwhile; another one does it.
        asked = self._asked[loop, key_hash] = loop.create_future()
        try:
            owner = await self._look_up(asked_for)
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

    async def _look_up(self, asked_for: str) -> Owner | None:
        try:
            if self._runs_on_the_loop:
                found = self._lookup(asked_for)
            else:
                found = await to_thread.run_sync(self._lookup, asked_for, limiter=self._limiter())
            return await found if isawaitable(found) else found
        except Exception as error:
            if asked_for not in str(error) and asked_for not in repr(error):
                raise
            # Such as a KeyError of the key: the log must not have it.
            said = MeterkitError(f"the lookup of an API key raised {type(error).__name__}")
            raise said.with_traceback(error.__traceback__) from None

    def _limiter(self) -> CapacityLimiter:
        """Threads of its own: keys that strangers make up must not take those of the app's endpoints."""
        loop = asyncio.get_running_loop()
        limiter = self._limiters.get(loop)
        if limiter is None:
            limiter = self._limiters[loop] = CapacityLimiter(_THREADS_MAX)
        return limiter

    def _remember(self, key_hash: str, owner: object) -> None:
        now = monotonic()
        self._note(is_found=owner is not None)
        self._owned.pop(key_hash, None)  # Inserting it again makes it the youngest.
        self._unowned.pop(key_hash, None)
        if isinstance(owner, str | Caller):
            _put_bounded(self._owned, key_hash, (owner, now + self._ttl_s))
        elif owner is None:
            _put_bounded(self._unowned, key_hash, now + min(self._ttl_s, _UNOWNED_S_MAX))

    def _note(self, *, is_found: bool) -> None:
        """Warn once where no key at all has an owner: the lookup may expect another form of it."""
        if is_found:
            self._failed = _FAILED_TOLD  # It works.
        elif self._failed < _FAILED_TOLD:
            self._failed += 1
            if self._failed == _FAILED_TOLD:
                gets = "the SHA-256 of the key, in hex" if self._hashed else "the key as the client sent it"
                _logger.warning(
                    "identify.api_key: the first %d keys had no owner; the lookup gets %s (hashed=%s)",
                    _FAILED_TOLD,
                    gets,
                    self._hashed,
                )


def _put_bounded(kept: dict[str, T], key_hash: str, value: T) -> None:
    if len(kept) >= _KEYS_KEPT_MAX:
        for oldest in list(kept)[: _KEYS_KEPT_MAX // 2]:
            kept.pop(oldest, None)  # Another thread may be doing the same.
    kept[key_hash] = value


def digest_of(key: bytes) -> str:
    """The SHA-256 of a key, in hex."""
    return hashlib.sha256(key).hexdigest()
