"""One connection to Redis that many callers share: calls of one loop tick leave in one write.

A connection that was given up is read on for ten minutes: a decision whose reply arrives late holds
something, and has to be released.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

import hiredis

from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def pack_each(parts: Iterable[str | int | bytes]) -> bytes:
    """Bulk strings, without the head that counts them."""
    out: list[bytes] = []
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


def pack(*parts: str | int | bytes) -> bytes:
    """A whole request."""
    return b"*%d\r\n%b" % (len(parts), pack_each(parts))


def pack_numbers(numbers: Sequence[int]) -> bytes:
    """Whole numbers below 2^53 as doubles, as the scripts take them."""
    return struct.pack(f"<{len(numbers)}d", *numbers)


read_numbers: Final = struct.Struct("<5q").unpack_from
"""Reads the first numbers of a decision's reply that is a string; see ``decide.lua``."""


def unpack(request: bytes) -> list[bytes]:
    """The parts of a whole request: the inverse of :func:`pack`."""
    end = request.index(b"\r\n")
    parts: list[bytes] = []
    at = end + 2
    for _ in range(int(request[1:end])):
        end = request.index(b"\r\n", at)
        start, length = end + 2, int(request[at + 1 : end])
        parts.append(request[start : start + length])
        at = start + length + 2
    return parts


_log = logging.getLogger("meterkit.store")

# A server that hung may decide late. The hold of that decision lives for two slots of five minutes: for that
# time its reply is awaited, to release the hold if the caller has left.
_LATE_REPLIES_S: Final = 600.0
_LATE_REPLIES_BYTES: Final = 8_388_608
_OF_SCRIPTS: Final = frozenset({"ERR", "WRONGTYPE"})
# Errors about one request: scripts are loaded again, another node has its slot, or counters are damaged.
_OF_REQUESTS: Final = (
    "NOSCRIPT",
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "CROSSSLOT",
    "DAMAGED",
    "CLUSTERDOWN Hash slot not served",
)
# A handshake also tries what a store can do without.
_OPTIONAL: Final = frozenset({"NOPERM", "ERR"})
# Reply of a server that expects TLS.
_TLS_ALERT: Final = b"\x15\x03"
Unsent = list[tuple["asyncio.Future[Any]", "StoreCall"]]
"""Calls that a connection has certainly not sent."""
OnEnd: TypeAlias = "Callable[[Any, str, Unsent], None]"
"""Called when a connection ends: with the reason, and the unsent calls, whose futures must be resolved."""


class ReplyError(Exception):
    """An error reply of the server; the first word is its code."""

    @property
    def code(self) -> str:
        """The code: ``NOSCRIPT``, ``OOM``, ``READONLY`` and so on."""
        return str(self).partition(" ")[0]

    @property
    def of_script(self) -> bool:
        """Whether a script failed with it: on keys of a wrong type, or on unreadable values."""
        return self.code in _OF_SCRIPTS and "script" in str(self)

    @property
    def of_server(self) -> bool:
        """Whether the server does not serve now: it is loading or full, or a right or a quota is missing."""
        return not (self.of_script or str(self).startswith(_OF_REQUESTS))


class ShardMember(Protocol):
    """Data of one shard.

    Attributes:
        shard: its number.
    """

    shard: int


class CustomerMember(ShardMember, Protocol):
    """Data of one customer.

    Attributes:
        is_deleted: whether the customer was deleted since: nothing is settled any more.
    """

    is_deleted: bool


class StoreCall(Protocol):
    """A request with a waiting caller.

    One whose reply is a string keeps it in ``latest_reply``; see :mod:`meterkit.store.remainders`.
    """

    @property
    def view(self) -> ShardMember:
        """Its customer's data; the shard decides the node of a cluster."""
        ...

    @property
    def packed(self) -> Sequence[bytes]:
        """The pieces of the request, without the clock that ends it."""
        ...

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Handle a reply whose caller was cancelled."""


class Receiver(Protocol):
    """Receives the replies of requests whose caller was cancelled."""

    def received(self, reply: Any) -> None:
        """Handle the next reply, in the order of the posted requests."""


class Connection(asyncio.Protocol):
    """Shared connection: one write per loop tick, replies matched in order, one watchdog.

    Args:
        timeout_s: longest time that the oldest request may wait for its reply.
        on_end: called once, when no further request can be taken.
        clock: seconds since the epoch.
    """

    def __init__(self, *, timeout_s: float, on_end: OnEnd, clock: Callable[[], float]) -> None:
        self._now = clock
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        errors: list[ReplyError] = []

        def error(text: str) -> ReplyError:
            errors.append(ReplyError(text))
            return errors[-1]

        # Errors are rare, and collected here, so that replies need no check one by one.
        self._errors = errors
        self._reader = hiredis.Reader(protocolError=StoreError, replyError=error)
        self._late_bytes = 0
        self._out: list[bytes] = []
        self._clock = b""
        self._pending: deque[tuple[asyncio.Future[Any] | None, Any]] = deque()
        self._sent: deque[tuple[float, int]] = deque()
        self._asked = self._answered = 0
        self._watchdog: asyncio.TimerHandle | None = None
        self._closed = self._loop.create_future()
        self.open = self.is_unfit = self.is_used = False
        self.silent_s = 0.0
        self._why = "it was not made yet"

    # Called by users of the lane.

    def call(self, call: StoreCall, future: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Send a request followed by the clock; the reply, or the server's error, is the future's result.

        The future, a new one where none is given, fails with :class:`StoreError` where the connection ends
        between the sending and the reply.
        """
        if future is None:
            future = self._loop.create_future()
        out = self._out
        if not out:
            self._begin()
        out += call.packed
        out.append(self._clock)
        self._pending.append((future, call))
        return future

    def post(self, packed: Sequence[bytes], receiver: Receiver) -> None:
        """Send a request followed by the clock; the reply goes to ``receiver``."""
        out = self._out
        if not out:
            self._begin()
        out += packed
        out.append(self._clock)
        self._pending.append((None, receiver))

    def ask(self, *parts: str | int | bytes) -> asyncio.Future[Any]:
        """Send a plain command; the reply, or the server's error, is the future's result.

        The future fails with :class:`StoreError` where the connection ends first, or has ended before.
        """
        future = self._loop.create_future()
        if not self.open:
            fail_future(future, StoreError(f"the store's connection has ended: {self._why}", executed=False))
            return future
        if not self._out:
            self._begin()
        self._out.append(pack(*parts))
        self._pending.append((future, None))
        return future

    def end(self, why: str) -> None:
        """Take no new requests. The outcome of sent ones is unknown; their replies are still read.

        Args:
            why: one clause for errors and logs.
        """
        if not self.open:
            return
        self.open = False
        self._why = why
        if self._watchdog is not None:
            self._watchdog.cancel()
        unsent = self._pop_unsent(why)
        awaited = False
        for future, taker in self._pending:
            if future is not None:
                awaited = awaited or taker is not None
                if not future.done():
                    fail_future(future, StoreError(why, executed=None))
        self._on_end(self, why, unsent)
        if self._transport is not None and not self._transport.is_closing():
            if awaited:
                self._watchdog = self._loop.call_later(_LATE_REPLIES_S, self._transport.abort)
            else:
                self._transport.abort()

    @property
    def is_closed(self) -> bool:
        """Whether the socket is closed and no late reply can come any more."""
        return self._closed.done()

    def drop(self) -> None:
        """Close without waiting until the socket is gone."""
        self.end("the connection was closed")
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close at once and wait until the socket is gone."""
        self.drop()
        if self._transport is not None:
            await asyncio.shield(self._closed)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # Not every loop derives its transports from asyncio's: uvloop does not.
        self._transport = cast("asyncio.Transport", transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Hand each reply to its caller or receiver."""
        pending, gets = self._pending, self._reader.gets
        self._reader.feed(data)
        try:
            reply = gets()
            while reply is not False:
                future, taker = pending.popleft()
                self._answered += 1
                try:
                    if future is None:
                        taker.received(reply)
                    elif not future.done():
                        if taker is not None and reply.__class__ is bytes:
                            taker.latest_reply.packed = reply
                            reply = read_numbers(reply)
                        future.set_result(reply)
                    elif taker is not None:
                        numbers = read_numbers(reply) if reply.__class__ is bytes else reply
                        taker.on_unclaimed_reply(numbers)
                except Exception:  # noqa: BLE001 - logged with its traceback
                    # A connection serves all customers; the reply was one's.
                    _log.exception("a reply of the store could not be taken")
                reply = gets()
        except (StoreError, IndexError):
            if data.startswith(_TLS_ALERT):
                self._end_now("it answers in TLS")
            else:
                _log.exception("the store sent something that is not RESP; the connection is closed")
                self._end_now("the store sent something that is not RESP")
        if self._errors:
            self._check_errors()
        if not self.open:
            self._late_bytes += len(data)
            if not pending or self._late_bytes > _LATE_REPLIES_BYTES:
                self._end_now("nothing more is awaited")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all waiting callers."""
        self.end(f"the store closed the connection{f': {exc}' if exc else ''}")
        if self._watchdog is not None:
            self._watchdog.cancel()
        if not self._closed.done():
            self._closed.set_result(None)

    def _begin(self) -> None:
        # Always 13 digits, also under a clock that is set to long ago: the length is part of the request.
        self._clock = b"$13\r\n%013d\r\n" % (self._now() * 1000)
        self._loop.call_soon(self._flush)

    def _check_errors(self) -> None:
        allowed = () if self.is_used else _OPTIONAL
        errors = [error for error in self._errors if error.of_server and error.code not in allowed]
        self._errors.clear()
        if errors:
            self.is_unfit = True
            self.end(f"the server that answers does not serve: {errors[0]}")

    def _end_now(self, why: str) -> None:
        self.end(why)
        if self._transport is not None:
            self._transport.abort()

    def _pop_unsent(self, why: str) -> Unsent:
        unsent: Unsent = []
        self._out.clear()
        while len(self._pending) > self._asked - self._answered:
            future, taker = self._pending.pop()
            if future is not None and not future.done():
                if taker is None:
                    fail_future(future, StoreError(why, executed=False))
                else:
                    unsent.append((future, taker))
        unsent.reverse()
        return unsent

    def _flush(self) -> None:
        if not self._out:
            return
        out, self._out = self._out, []
        self._asked = self._answered + len(self._pending)
        now = self._loop.time()
        self._sent.append((now, self._asked))
        if self._watchdog is None and self.open:
            self._watchdog = self._loop.call_later(self._timeout_s, self._watch)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    def _watch(self) -> None:
        self._watchdog = None
        sent = self._sent
        while sent and sent[0][1] <= self._answered:
            sent.popleft()
        if not sent:
            return
        left = sent[0][0] + self._timeout_s - self._loop.time()
        if left > 0:
            self._watchdog = self._loop.call_later(left, self._watch)
        else:
            self.is_unfit, self.silent_s = True, self._timeout_s
            self.end(f"the store did not answer within {self._timeout_s:g} s")


class SetClockConnection(Connection):
    """Connection by a test's clock: it is read for each request, not once per loop tick."""

    def call(self, call: StoreCall, future: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Send a request followed by the clock; see :meth:`Connection.call`."""
        self._read_clock()
        return super().call(call, future)

    def post(self, packed: Sequence[bytes], receiver: Receiver) -> None:
        """Send a request followed by the clock; see :meth:`Connection.post`."""
        self._read_clock()
        super().post(packed, receiver)

    def _read_clock(self) -> None:
        if self._out:
            self._clock = b"$13\r\n%013d\r\n" % (self._now() * 1000)


def abandon_call(call: StoreCall, reply: asyncio.Future[Any]) -> None:
    """Handle a cancelled waiter: hand its reply, if it has arrived, to ``on_unclaimed_reply``."""
    if reply.done() and not reply.cancelled() and reply.exception() is None:
        call.on_unclaimed_reply(reply.result())


def fail_future(future: asyncio.Future[Any], error: Exception) -> None:
    """Fail a future, without asyncio's warning about an exception that was never retrieved."""
    future.set_exception(error)
    future.exception()
