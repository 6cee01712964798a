"""Lane: one event loop's access to the store, over one connection that reconnects; renewal of its holds."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from secrets import randbelow
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from meterkit.cancellation import start_task
from meterkit.errors import StoreError
from meterkit.redis.connection import ReplyError, abandon_call
from meterkit.redis.reconnector import Reconnector
from meterkit.redis.settlement_queue import SettlementQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from meterkit.decisions.keys import Keys
    from meterkit.errors import MeterkitError
    from meterkit.metric_tallies import Tallies
    from meterkit.redis.connection import StoreCall
    from meterkit.redis.local_allotments import LocalAllotments
    from meterkit.redis.reconnector import AnyConnection, Connector
    from meterkit.redis.scripts import Script
    from meterkit.redis.settlement_queue import NumberedSettlement, QueueLane, SpoolPort

_log = logging.getLogger("meterkit.store")

_SLOT_MS: Final = 300_000
_TICK_MS: Final = 250
_IDLE_MS: Final = 5_000
# A hold of another slot is due in the slot of now. This process may learn of the store's clock late, so
# neither the slot's first minute is used nor its last. Processes begin up to 40 s apart.
_BEGIN_MS: Final = 60_000
_BEGIN_SPREAD_MS: Final = 40_000
_END_MS: Final = 220_000
_MOST: Final = 200


class Renewable(Protocol):
    """Request in flight with holds.

    Attributes:
        counts_later: whether usage that comes after the kit has stopped is counted nevertheless.
    """

    counts_later: ClassVar[bool]

    def is_due(self) -> bool:
        """Whether its holds are in another slot than the current one."""
        ...

    async def renew(self) -> None:
        """Move its holds to the current slot."""

    def release_hold(self) -> None:
        """Release its holds: the lane is about to stop."""


def tick_portion(due: int, *, at_ms: int, begin_ms: int) -> int:
    """Number of holds to renew in one tick.

    Args:
        due: holds left to renew in this slot.
        at_ms: time since the start of the slot.
        begin_ms: time in a slot at which this process begins.
    """
    if at_ms < begin_ms:
        return 0
    ticks = max(1, (_END_MS - at_ms) // _TICK_MS)
    return min(due, _MOST, -(-due // ticks))


class HoldRenewal:
    """Renews the holds of one event loop's long requests, a few at a time.

    Args:
        spawn: runs a coroutine in the background.
        now_ms: the store's clock, as this process knows it.

    Attributes:
        live: the requests with holds.
    """

    def __init__(
        self, spawn: Callable[[Coroutine[Any, Any, None]], object], now_ms: Callable[[], int]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._spawn = spawn
        self._now_ms = now_ms
        self._begin_ms = _BEGIN_MS + randbelow(_BEGIN_SPREAD_MS)
        self._due: deque[Renewable] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.live: set[Renewable] = set()

    def begin(self) -> None:
        """Renew holds until :meth:`stop`."""
        self.stop()
        self.tick()
        pause_ms = _TICK_MS if self._due else _IDLE_MS
        self._timer = self._loop.call_later(pause_ms / 1000, self.begin)

    def stop(self) -> None:
        """Renew nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def release_all(self) -> None:
        """Release the holds of all requests."""
        holders = tuple(self.live)
        for holder in holders:
            holder.release_hold()
        if cut := sum(not holder.counts_later for holder in holders):
            _log.warning(
                "%d requests or websockets had not ended when the kit stopped: they are settled as they are"
                " now, and what they use from now on is not counted; stop the kit after the last request",
                cut,
            )

    def tick(self) -> None:
        """Renew this tick's portion."""
        at_ms = self._now_ms() % _SLOT_MS
        if at_ms >= self._begin_ms and not self._due:
            # Holds whose renewal failed are among them again.
            self._due.extend(holder for holder in self.live if holder.is_due())
        for _ in range(tick_portion(len(self._due), at_ms=at_ms, begin_ms=self._begin_ms)):
            holder = self._due.popleft()
            if holder in self.live and holder.is_due():
                self._spawn(holder.renew())


_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0
_TRIES = 2
_DRAIN_PAUSE_S = 0.005
_WARN_EVERY_S = 10.0
_RENEW_EVERY_S = 86_400.0
_CUSTOMERS_NAMED_MAX = 10


class Lane:
    """Access of one event loop to the store.

    Args:
        connector: opens a connection with all scripts loaded.
        keys: names of keys.
        scripts: what to load again where the server has lost its scripts.
        fence: the script that closes a producer.
        timeout_s: how long a request may wait for the store.
        start_timeout_s: how long it may wait until the first connection.
        now_ms: the store's clock, as this process knows it.

    Attributes:
        call: sends a request; its reply, or the server's error, is the future's result. Where there is no
            connection, the request waits for one, at most for the store timeout since the last one ended;
            with its reply it waits no longer than the store timeout in all. Raises StoreError where there
            has been no connection for too long, and nothing was sent; SettingsError where the store cannot
            be used with these settings. A cancelled caller calls
            :func:`~meterkit.redis.connection.abandon_call`, or uses :meth:`ask`.
        post: sends a request whose reply goes to a receiver; None while there is no connection.
        queues: the settlements of each shard.
        spool: where settlements wait on disk; None: they wait in memory, and are lost with the process.
        allotments: requests admitted without asking the store; None: none are.
        is_served: whether the kit was started for this event loop, not only its store.
        is_of_parent: whether this process was forked from that of the lane: what it settles is lost.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        keys: Keys,
        scripts: Sequence[Script],
        fence: Script,
        timeout_s: float,
        start_timeout_s: float = 0.0,
        now_ms: Callable[[], int],
    ) -> None:
        self.loop = self._loop = asyncio.get_running_loop()
        self._scripts = tuple(scripts)
        self._fence = fence
        self._reconnector = Reconnector(
            connector,
            timeout_s=timeout_s,
            start_timeout_s=start_timeout_s,
            on_change=self._on_connection,
        )
        self._connection: AnyConnection | None = None
        self._tallies: Tallies | None = None
        self.call: Callable[[StoreCall], asyncio.Future[Any]] = self._reconnector.call
        self.post: Callable[[Sequence[bytes], Any], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.finishing: set[asyncio.Task[None]] = set()
        self._producer_renewal: asyncio.TimerHandle | None = None
        self.renewal = HoldRenewal(self.spawn, now_ms)
        self.live = self.renewal.live
        self.is_served = self.is_of_parent = False
        self._loading: set[AnyConnection] = set()
        self._warned_at = -_WARN_EVERY_S
        self.stopping = False
        self.spool: SpoolPort | None = None
        self.allotments: LocalAllotments | None = None
        self.queues = [SettlementQueue(self.lane_of(shard), keys, shard) for shard in range(keys.shards)]

    def settle(self, settlement: NumberedSettlement) -> None:
        """Apply a settlement exactly once: it is sent now, or queued until it can be sent."""
        self.queues[settlement.view.shard].settle(settlement)

    def lane_of(self, shard: int) -> QueueLane:
        """Lane of a shard's settlements."""
        del shard
        return self

    def begin(self) -> None:
        """Connect in the background."""
        self._reconnector.begin()
        if self._producer_renewal is None:
            self._renew_producers()
            self.renewal.begin()

    async def start(self, *, within_s: float, is_own: bool = False) -> None:
        """Connect; if that fails in time, log why and retry in the background.

        Args:
            within_s: since the store was last reached, or since the first attempt.
            is_own: this process starts the store itself; see :meth:`Reconnector.reach`.

        Raises:
            SettingsError: the store cannot be used with these settings.
        """
        self.begin()
        await self._reconnector.reach(within_s, is_own=is_own)

    async def stop(self, *, drain_s: float) -> None:
        """Release holds, wait until all settlements are acknowledged, then close."""
        self.renewal.release_all()
        if self.allotments is not None:
            self.allotments.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await self._drain()
        finally:  # A cancellation ends the waiting only.
            await self._close()

    async def _close(self) -> None:
        for queue in self.queues:
            queue.spill()
        if self.spool is not None:
            await self.spool.flush()
        self.stopping = True
        self.renewal.stop()
        if self._producer_renewal is not None:
            self._producer_renewal.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        left = [] if self.spool is None else [*await self.spool.close()]
        await self._reconnector.stop()
        left += [settlement for queue in self.queues for settlement in queue.abandon()]
        if left:
            _log_lost(left)

    @property
    def unsettled(self) -> int:
        """Settlements that the store has not acknowledged."""
        waiting = 0 if self.spool is None else self.spool.kept
        return waiting + sum(queue.unsettled for queue in self.queues)

    @property
    def has_unsent_outage(self) -> bool:
        """Whether settlements of an outage wait: in the spool, or in queues that recover."""
        is_spooled = self.spool is not None and self.spool.kept > 0
        return is_spooled or any(queue.is_comparing for queue in self.queues)

    @property
    def lost(self) -> int:
        """Settlements that the store acknowledged and then lost, or that no queue had room for."""
        lost = 0 if self.spool is None else self.spool.lost
        return lost + sum(queue.lost for queue in self.queues)

    @property
    def connected(self) -> bool:
        """Whether a request can be sent now."""
        return self._connection is not None

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open for all requests: none is sent.

        On a cluster this excludes the breakers of its nodes: there each call gets its own error.
        """
        return self._reconnector.is_open

    @property
    def is_down(self) -> bool:
        """Whether the breaker is open; on a cluster, that of any node."""
        return self.is_open

    @property
    def opened(self) -> int:
        """Number of times that the breaker has opened; on a cluster, those of the current nodes included."""
        return self._reconnector.opened

    @property
    def connection_error(self) -> MeterkitError | None:
        """Why no request can be sent; None where one can."""
        return self._reconnector.connection_error

    def outage_error(self) -> MeterkitError:
        """The error of a call while the breaker is open."""
        return self._reconnector.outage_error()

    async def ask(self, call: StoreCall) -> Any:
        """Send a request and wait for its reply; a cancellation releases its holds.

        Raises:
            StoreError: there is no connection, or it ended before the reply came.
        """
        return await await_reply(call, self.call(call))

    async def retry_call(self, call: StoreCall, reply: ReplyError) -> Any:
        """Retry a call after an error reply: if the server has lost the scripts, load them first.

        Raises:
            StoreError: the store cannot serve; the call was not executed.
        """
        for _ in range(_TRIES):
            if reply.code != "NOSCRIPT":
                break
            self.load(self._connection)
            answer = await self.ask(call)
            if not isinstance(answer, ReplyError):
                return answer
            reply = answer
        raise StoreError(f"the store refuses: {reply}", executed=False)

    # Called by queues.

    async def fence(self, key: str) -> int:
        """Fence a producer, waiting for a connection if there is none; the last number it applied."""

        async def ask() -> Any:
            return await self.ask_to_fence(await self._reconnector.connected(), key)

        return await self.fence_until_done(ask)

    async def fence_until_done(self, ask: Callable[[], Awaitable[Any]]) -> int:
        """Fence a producer, retrying until the store does it; the last number it applied."""
        pause = _PAUSE_FIRST_S
        while True:
            with suppress(StoreError):
                reply = await ask()
                if isinstance(reply, int):
                    return reply
                self.warn(f"the store does not take settlements; they are kept and sent again: {reply}")
            await asyncio.sleep(pause)
            pause = min(_PAUSE_MAX_S, 2 * pause)

    async def ask_time(self) -> Any:
        """Ask the server for its ``TIME``, on a cluster each node; waits for a connection."""
        connection = await self._reconnector.connected()
        return await connection.ask("TIME")

    async def await_replies(self) -> None:
        """Wait for a connection, and for the replies to all requests sent on it."""
        connection = await self._reconnector.connected()
        with suppress(StoreError):
            await connection.ask("PING")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run in the background until the lane stops; None where it has stopped."""
        if self.stopping:
            work.close()
            return None
        task = start_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Spawn a task that :meth:`stop` waits for, unless the store is down."""
        task = self.spawn(work)
        if task is not None:
            self.finishing.add(task)
            task.add_done_callback(self.finishing.discard)

    def call_later(self, after_s: float, do: Callable[[], None]) -> asyncio.TimerHandle:
        """Call a function after some seconds."""
        return self._loop.call_later(after_s, do)

    def warn(self, message: str) -> None:
        """Log a warning, at most every ten seconds."""
        now = self._loop.time()
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            _log.warning("%s", message)

    async def ask_to_fence(self, connection: AnyConnection, key: str) -> Any:
        """Ask once to fence a producer; the reply, or an error reply. Raises StoreError where none comes."""
        request = ("EVALSHA", self._fence.sha, 1, key)
        reply = await connection.ask(*request)
        if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT":
            self.load(connection)
            reply = await connection.ask(*request)
        return reply

    def _on_connection(self, connection: AnyConnection | None) -> None:
        self._connection = connection
        self._bind()
        if connection is None:
            for queue in self.queues:
                queue.disconnected()
            return
        self.compare_all()
        if self.spool is not None:
            self.spool.connected()

    def compare_all(self) -> None:
        """Let all queues compare acknowledged settlements with the store's records."""
        for queue in self.queues:
            queue.compare()

    def set_tallies(self, tallies: Tallies | None) -> None:
        """Count the durations of requests in tallies; None: do not count them."""
        self._tallies = tallies
        self._bind()

    def _bind(self) -> None:
        connection = self._connection
        # Bound once: going through the connection costs each request another call.
        call = self._reconnector.call if connection is None else connection.call
        self.call = call if self._tallies is None else self._tallies.time_calls(call)
        self.post = None if connection is None else connection.post

    def load(self, connection: AnyConnection | None) -> None:
        """Load the scripts before the next request, unless they are being loaded."""
        if connection is None or connection in self._loading:
            return
        self._loading.add(connection)
        replies = [connection.ask("SCRIPT", "LOAD", script.text) for script in self._scripts]
        # Refusals of what was sent before may come in several pieces.
        replies[-1].add_done_callback(lambda _: self._loading.discard(connection))

    async def _drain(self) -> None:
        if self.finishing and not self.is_down:
            await asyncio.wait(self.finishing)
        while True:
            for queue in self.queues:
                queue.resume()
            if self._connection is not None:
                await self.await_replies()
            is_comparing = self._connection is not None and any(queue.is_comparing for queue in self.queues)
            if not (self.unsettled or is_comparing) or (self.spool is not None and self.is_down):
                return
            self._reconnector.begin()
            await asyncio.sleep(_DRAIN_PAUSE_S)

    def _renew_producers(self) -> None:
        self._producer_renewal = self._loop.call_later(_RENEW_EVERY_S, self._renew_producers)
        for queue in self.queues:
            queue.renew()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("a background task of the store client failed", exc_info=error)


async def await_reply(call: StoreCall, reply: asyncio.Future[Any]) -> Any:
    """Wait for the reply to a call; a cancellation releases its holds."""
    try:
        return await reply
    except asyncio.CancelledError:
        abandon_call(call, reply)
        raise


def _log_lost(settlements: Sequence[NumberedSettlement]) -> None:
    customers = sorted({settlement.customer for settlement in settlements})
    named = ", ".join(map(ascii, customers[:_CUSTOMERS_NAMED_MAX]))
    more = len(customers) - _CUSTOMERS_NAMED_MAX
    _log.error(
        "settlements lost: %d, unless the store applied them without an answer: it had not acknowledged"
        " them when the kit stopped; their customers: %s%s",
        len(settlements),
        named,
        f" and {more} more" if more > 0 else "",
    )
