"""``memory://``: in-memory store within this process, on fakeredis, for trials and tests.

Keys expire by real time, set back as far as a test's clock has been behind it: with a clock in the past, each
write would expire at once.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from time import time
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

import fakeredis
from redis.exceptions import RedisError

from meterkit.errors import StoreError
from meterkit.redis.connection import ReplyError, pack, read_numbers, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meterkit.redis.connection import Receiver, StoreCall
    from meterkit.redis.scripts import Script


class _ExpiryClock:
    """Clock of key expiry: real time, less the most that a test's clock has ever been behind it.

    A key written with a past expiry would be gone at once. A clock that jumps ahead ends no key before
    its time, as it does not on a server.
    """

    def __init__(self) -> None:
        self._clocks: WeakSet[Callable[[], float]] = WeakSet()
        self._behind_s = 0.0

    def follow(self, clock: Callable[[], float]) -> None:
        """Set the clock back as far as this one, from now on."""
        if clock is not time:
            self._clocks.add(clock)

    def __call__(self, _: object) -> float:
        now = time()
        self._behind_s = max([self._behind_s, *(now - clock() for clock in list(self._clocks))])
        return now - self._behind_s


def _keep(database: object, now: object) -> None:
    """Ignore a time that fakeredis sets."""


def _new_server(past: _ExpiryClock) -> Any:
    server: Any = fakeredis.FakeServer()
    database = cast("type[Any]", server.dbs[0].__class__)
    # fakeredis writes the system's time into every database before each command.
    going_by: Any = type("PastDatabase", (database,), {"time": property(past, _keep)})
    server.dbs = defaultdict(lambda: going_by(server.lock))
    return server


_past = _ExpiryClock()
_server = _new_server(_past)


class MemoryConnection:
    """Connection to the in-memory store: requests are executed at the end of the tick, in order."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._loop = asyncio.get_running_loop()
        self._client: Any = fakeredis.FakeRedis(server=_server, version=(7, 0))
        self._now = clock
        _past.follow(clock)
        self._queue: list[tuple[bytes, asyncio.Future[Any] | None, Any]] = []
        self.open, self.is_unfit, self.is_used, self.silent_s = True, False, False, 0.0

    def call(self, call: StoreCall, future: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Execute a request followed by the clock; the future's result is the reply."""
        if future is None:
            future = self._loop.create_future()
        self._enqueue_request(b"".join(call.packed) + self._clock(), future, call)
        return future

    def post(self, packed: Sequence[bytes], receiver: Receiver) -> None:
        """Execute a request followed by the clock; the receiver takes the reply."""
        self._enqueue_request(b"".join(packed) + self._clock(), None, receiver)

    def ask(self, *parts: str | int | bytes) -> asyncio.Future[Any]:
        """Execute a plain command; the future's result is the reply."""
        future = self._loop.create_future()
        self._enqueue_request(pack(*parts), future, None)
        return future

    @property
    def is_closed(self) -> bool:
        """Whether no late reply can come any more."""
        return not self.open

    async def close(self) -> None:
        """Execute what waits, and close."""
        self.drop()

    def drop(self) -> None:
        """Execute what waits, and close without waiting."""
        self.open = False
        self._flush()
        self._client.close()

    def _clock(self) -> bytes:
        return b"$13\r\n%013d\r\n" % (self._now() * 1000)

    def _enqueue_request(self, request: bytes, future: asyncio.Future[Any] | None, taker: Any) -> None:
        if not self._queue:
            self._loop.call_soon(self._flush)
        self._queue.append((request, future, taker))

    def _flush(self) -> None:
        queue, self._queue = self._queue, []
        for request, future, taker in queue:
            reply = self._execute(request)
            if future is None:
                taker.received(reply)
                continue
            if taker is not None and isinstance(reply, bytes):
                if not future.done():
                    taker.latest_reply.packed = reply
                reply = read_numbers(reply)
            if not future.done():
                future.set_result(reply)
            elif taker is not None:
                taker.on_unclaimed_reply(reply)

    def _execute(self, request: bytes) -> Any:
        try:
            return self._client.execute_command(*unpack(request))
        except RedisError as error:
            # redis-py takes the code off the message where it has a class for it.
            code = "NOSCRIPT " if type(error).__name__ == "NoScriptError" else ""
            return ReplyError(f"{code}{error}")


async def connect(scripts: Sequence[Script], *, clock: Callable[[], float] = time) -> MemoryConnection:
    """Open a connection to this process's store, all scripts loaded."""
    connection = MemoryConnection(clock)
    for reply in await asyncio.gather(*(connection.ask("SCRIPT", "LOAD", script.text) for script in scripts)):
        if isinstance(reply, ReplyError):
            raise StoreError(f"memory:// does not take a script: {reply}", executed=False)
    return connection


def admin_client(clock: Callable[[], float] = time) -> Any:
    """Make a redis-py client of this process's store, which goes by ``clock``."""
    _past.follow(clock)
    return fakeredis.FakeAsyncRedis(server=_server, version=(7, 0))


def empty() -> None:
    """Empty this process's store."""
    if not any(map(len, _server.dbs.values())):
        return  # A client costs some milliseconds: too much before each of many tests.
    client: Any = fakeredis.FakeRedis(server=_server, version=(7, 0))
    client.flushall()
