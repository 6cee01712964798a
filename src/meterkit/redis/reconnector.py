"""Reconnector and circuit breaker: one connection to the store, reopened whenever it ends.

Calls wait for a connection, but not for long. The breaker opens once the store has been down for one timeout.
It closes with the next connection, which is used only after the server has taken a write: that is the probe.
A store that was never reached is not down yet: until the first connection calls wait for the start timeout.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from meterkit.cancellation import start_task
from meterkit.errors import MeterkitError, SettingsError, StoreError
from meterkit.redis.connection import fail_future

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from meterkit.redis.connection import OnEnd, Receiver, StoreCall, Unsent

_log = logging.getLogger("meterkit.store")

_PAUSE_FIRST_S: Final = 0.05
# With the time that a connection takes to be made, usage is on its way within a second of the store's return.
_PAUSE_MAX_S: Final = 0.5
# For a server that answers at times the pause grows until a connection has lasted.
_STEADY_S: Final = 1.0
_LOG_EVERY_S: Final = 60.0
_ENDED_MAX: Final = 8


class AnyConnection(Protocol):
    """Connection to a server, to the in-memory store, or to all nodes of a cluster.

    Attributes:
        open: whether it takes requests.
        is_unfit: whether it ended because its server does not serve: it is silent, or refuses.
        is_used: whether its handshake is over, so that any refusal ends it.
        silent_s: time that the oldest reply was due when it ended.
    """

    open: bool
    is_unfit: bool
    is_used: bool
    silent_s: float

    def call(self, call: StoreCall, future: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Send a request followed by the clock; the reply is the future's result, or a new one's."""
        ...

    def post(self, packed: Sequence[bytes], receiver: Receiver) -> None:
        """Send a request followed by the clock; the reply goes to ``receiver``."""

    def ask(self, *parts: str | int | bytes) -> asyncio.Future[Any]:
        """Send a plain command; the reply is the future's result."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether no late reply can come any more."""
        ...

    async def close(self) -> None:
        """Close at once and wait until that is done."""

    def drop(self) -> None:
        """Close without waiting."""


Connector: TypeAlias = "Callable[[OnEnd], Awaitable[AnyConnection]]"
"""Opens a connection, which calls ``on_end`` when it ends. Raises StoreError if it cannot."""


class Reconnector:
    """Keeps one connection to the store open, with growing pauses between attempts; circuit breaker.

    Args:
        connector: opens a connection.
        timeout_s: timeout of a call: for a connection and its reply together.
        on_change: called with each new connection, and with None at its end.
        start_timeout_s: timeout in place of ``timeout_s`` until the first connection.

    Attributes:
        connection: None while there is none.
        is_open: whether the breaker is open: the store is down, and no call waits for it.
        opened: number of times that it has opened.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        timeout_s: float,
        on_change: Callable[[AnyConnection | None], None],
        start_timeout_s: float = 0.0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = connector
        self._timeout_s = timeout_s
        self._patience_s = max(timeout_s, start_timeout_s)
        self._on_change = on_change
        self.connection: AnyConnection | None = None
        self._connected = asyncio.Event()
        self._connected_or_refused = asyncio.Event()
        self._down_since_s = self._loop.time()
        self._why = "the first attempt to connect has not ended yet"
        self._refusal: SettingsError | None = None
        self._attempted, self._attempted_s = asyncio.Event(), self._down_since_s
        self._waiting: list[tuple[float, asyncio.Future[Any], StoreCall]] = []
        self.is_open = False
        self.opened = 0
        self._opening: asyncio.TimerHandle | None = None
        self._quiet_waiters = 0
        self._made_s, self._pause_s = self._down_since_s, 0.0
        self._ended: deque[AnyConnection] = deque()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._end_logged_s = self._outage_logged_s = self._down_since_s - _LOG_EVERY_S
        self._is_end_logged = self._is_outage_logged = False
        self._unlogged_ends = self._logged_opened = 0
        self._outage_log_timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Connect in the background, unless an attempt is running."""
        if self.connection is None and self._task is None and not self._stopped:
            self._open_later()
            self._task = start_task(self._connect())
            self._task.add_done_callback(self._connecting_ended)

    async def reach(self, within_s: float, *, is_own: bool = False, is_logged: bool = True) -> None:
        """Connect; if that fails in time, log why and retry in the background.

        Args:
            within_s: since the store was last reached, or since the first attempt.
            is_own: this process starts the store itself. The time begins when the first attempt has ended:
                a busy machine may need longer to start a store than to reach one that runs.
            is_logged: whether a failure is logged now, not when the breaker opens.

        Raises:
            SettingsError: the store cannot be used with these settings.
        """
        self._quiet_waiters += 1  # No log line yet: a store may start with its apps.
        self.begin()
        try:
            if is_own:
                await self._attempted.wait()
            since = max(self._down_since_s, self._attempted_s) if is_own else self._down_since_s
            async with asyncio.timeout_at(since + within_s):
                # A connection may end before this task has its turn.
                while self.connection is None and self._refusal is None and not self._stopped:
                    await self._connected_or_refused.wait()
        except TimeoutError:
            pass
        finally:
            self._quiet_waiters -= 1
        if self.connection is not None or self._stopped:
            return
        if self._refusal is not None:
            raise self._refusal
        if is_logged:
            self._log_outage()

    @property
    def connection_error(self) -> MeterkitError | None:
        """Error of the last attempt; None if there is a connection."""
        if self.connection is not None:
            return None
        return self._refusal or StoreError(self._why, executed=False)

    def outage_error(self) -> MeterkitError:
        """Error of calls while there is no connection."""
        return self._refusal or StoreError(f"the store is not connected: {self._why}", executed=False)

    async def connected(self) -> AnyConnection:
        """Wait for a connection, however long that takes."""
        while self.connection is None:
            await self._connected.wait()
        return self.connection

    def call(self, call: StoreCall, future: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Send a request as soon as there is a connection; the future's result is its reply.

        The call waits only until the breaker opens: from then on every call fails at once.

        Raises:
            StoreError: the store is down; nothing was sent.
            SettingsError: the store cannot be used with these settings.
        """
        if self.connection is not None:
            return self.connection.call(call, future)
        if self._stopped or self.is_open:
            raise self.outage_error()
        if future is None:
            future = self._loop.create_future()
        self._queue_call(future, call)
        return future

    async def stop(self) -> None:
        """Close all connections; waiting calls fail."""
        self._stopped = True
        self._connected_or_refused.set()  # Releases the waiters.
        self._attempted.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._end_opening()
        if self._outage_log_timer is not None:
            self._outage_log_timer.cancel()
        self._fail_waiting()
        for connection in filter(None, (*self._ended, self.connection)):
            await connection.close()
        self.connection = None
        self._on_change(None)

    async def _connect(self) -> None:
        if self._pause_s:
            await asyncio.sleep(self._pause_s)
        while not self._stopped:
            try:
                connection = await self._connector(self._on_end)
            except Exception as error:  # noqa: BLE001 - any error is retried
                self._note_attempt()
                self._note_failure(error)
            else:
                self._note_attempt()
                if connection.open and not self._stopped:
                    self._use(connection)
                    return
                self._keep_for_late_replies(connection)
            self._pause_s = min(_PAUSE_MAX_S, 2 * self._pause_s or _PAUSE_FIRST_S)
            await asyncio.sleep(self._pause_s)

    def _note_attempt(self) -> None:
        if not self._attempted.is_set():
            self._attempted_s = self._loop.time()
            self._attempted.set()

    def _connecting_ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        # Another party may have cancelled all tasks of the loop: only stopping the lane ends the attempts.
        self.begin()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("connecting to the store failed", exc_info=error)

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, SettingsError):
            if str(error) != self._why:
                _log.critical("%s", error)
            self._refusal = error
            self._connected_or_refused.set()
            self._open()
        elif not isinstance(error, StoreError) and repr(error) != self._why:
            _log.error("connecting to the store failed; trying again until it can", exc_info=error)
        self._why = str(error) if isinstance(error, MeterkitError) else repr(error)

    def _use(self, connection: AnyConnection) -> None:
        now = self._loop.time()
        self._end_opening()
        if self._is_outage_logged:
            _log.warning("the store is back after %.1f s", now - self._down_since_s)
        elif self._is_end_logged:
            _log.warning("the store is connected again")
        self._made_s, self._patience_s = now, self._timeout_s
        self.connection, self._refusal, connection.is_used = connection, None, True
        self._is_end_logged = self._is_outage_logged = self.is_open = False
        self._on_change(connection)
        self._connected.set()
        self._connected_or_refused.set()
        waiting, self._waiting = self._waiting, []
        for until, future, call in waiting:
            if not future.done():
                connection.call(call, future)
                self._loop.call_at(until, self._fail_timed_out, future)

    def _on_end(self, connection: AnyConnection, why: str, unsent: Unsent) -> None:
        """Handle the end of a connection; its unsent calls go over the next one."""
        if self.connection is not connection:
            for future, _ in unsent:
                fail_future(future, StoreError(why, executed=False))
            return
        self.connection = None
        self._why = why
        now = self._loop.time()
        self._down_since_s = now - connection.silent_s
        if now - self._made_s >= _STEADY_S:
            self._pause_s = 0.0
        elif connection.is_unfit:
            self._pause_s = min(_PAUSE_MAX_S, 2 * self._pause_s or _PAUSE_FIRST_S)
        self._connected.clear()
        self._connected_or_refused.clear()
        self._keep_for_late_replies(connection)
        self._on_change(None)
        for future, call in unsent:
            self._queue_call(future, call)
        if self._stopped:
            self._fail_waiting()
        elif not connection.silent_s:
            self._log_end(why)
        self.begin()

    def _keep_for_late_replies(self, connection: AnyConnection) -> None:
        self._ended = deque(ended for ended in (*self._ended, connection) if not ended.is_closed)
        while len(self._ended) > _ENDED_MAX:
            self._ended.popleft().drop()

    def _queue_call(self, future: asyncio.Future[Any], call: StoreCall) -> None:
        self._waiting.append((self._loop.time() + self._patience_s, future, call))

    def _open_later(self) -> None:
        """Open the breaker if there is no connection by the end of the timeout."""
        if self._opening is None and not self.is_open:
            at = self._down_since_s + self._patience_s
            if at <= self._loop.time():
                self._open()
            else:
                self._opening = self._loop.call_at(at, self._open)

    def _open(self) -> None:
        self._end_opening()
        if not self.is_open:
            self.is_open = True
            self.opened += 1
            if not self._quiet_waiters:
                self._log_outage()
        self._fail_waiting()

    def _end_opening(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None

    def _log_end(self, why: str) -> None:
        """Log the end of a connection, at most once a minute."""
        now, before = self._loop.time(), self._unlogged_ends
        if now - self._end_logged_s < _LOG_EVERY_S:
            self._unlogged_ends += 1
            return
        self._end_logged_s, self._is_end_logged, self._unlogged_ends = now, True, 0
        often = f" (and {_times(before)} more since the last such line)" if before else ""
        _log.warning("the store's connection ended: %s; connecting again%s", why, often)

    def _log_outage(self) -> None:
        """Log that the store is down: once, and at most once a minute if it comes and goes."""
        now, due = self._loop.time(), self._outage_logged_s + _LOG_EVERY_S
        if self._is_outage_logged:
            return
        if now < due:
            # A longer outage is logged then, too.
            if self._outage_log_timer is None:
                self._outage_log_timer = self._loop.call_at(due, self._log_repeated_outages)
            return
        before = self.opened - self._logged_opened - 1 if self._logged_opened else 0
        often = f" (it was down {_times(before)} more since the last such line)" if before > 0 else ""
        self._outage_logged_s, self._logged_opened, self._is_outage_logged = now, self.opened, True
        _log.error("%s; trying again until it can%s", self._why, often)

    def _log_repeated_outages(self) -> None:
        """Log a minute later that the store is still down, or how often it was."""
        self._outage_log_timer = None
        if self.is_open:
            self._log_outage()
            return
        now, times = self._loop.time(), _times(self.opened - self._logged_opened)
        past_s = now - self._outage_logged_s
        _log.warning("the store was down again, %s within %.0f s; it is up now", times, past_s)
        self._outage_logged_s, self._logged_opened = now, self.opened

    def _fail_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for _, future, _ in waiting:
            if not future.done():
                fail_future(future, self.outage_error())

    def _fail_timed_out(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            why = f"the store did not answer within {self._timeout_s:g} s"
            fail_future(future, StoreError(why, executed=None))


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"
