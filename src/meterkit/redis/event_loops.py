"""Event loops: the lane and the administration client of each, and their end.

``loop.close()`` runs its loop once more to close them: the transports of a closed loop cannot be closed in
any public way.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from time import time
from typing import TYPE_CHECKING, Final

from meterkit.errors import MeterkitError, SettingsError, StoreError
from meterkit.redis import discovery
from meterkit.redis.cluster_lane import ClusterConnection, ClusterLane
from meterkit.redis.daemon_thread import import_in_thread
from meterkit.redis.discovery import master_of
from meterkit.redis.embedded import EmbeddedServer
from meterkit.redis.handshake import check_store_format, connect, inspect_server
from meterkit.redis.lane import Lane
from meterkit.redis.store_clock import StoreClock
from meterkit.redis.url import Address

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping

    from meterkit.decisions.keys import Keys
    from meterkit.metric_tallies import Tallies
    from meterkit.redis.admin import Admin
    from meterkit.redis.connection import Connection, OnEnd
    from meterkit.redis.discovery import Slots
    from meterkit.redis.local_allotments import LocalAllotments
    from meterkit.redis.reconnector import AnyConnection
    from meterkit.redis.scripts import Script
    from meterkit.redis.settlement_queue import SpoolPort
    from meterkit.redis.url import HostPort

_DRAIN_S: Final = 5.0
_CLOSE: Final = "close"


class EventLoops:
    """Connections of all event loops; each loop's are closed with it.

    Args:
        address: where the store is.
        keys: names of keys.
        scripts: all of them, by name.
        timeout_s: how long a request may wait for the store.
        start_timeout_s: how long starting, and the first requests of a process, wait for the store.
        clock: this host's, in seconds since the epoch; a test's replaces the store's.

    Attributes:
        store_clock: agrees with the store's.
        lanes: of each event loop.
        tallies: counters of durations; None: none are counted.
        new_spool: makes the spool of a lane; None: it has none.
        new_allotments: makes the allotments of a lane; None: it asks the store for each request.
        before_stop: awaited in a loop before its connections are closed.

    Raises:
        SettingsError: a file that the address names for TLS cannot be used.
    """

    def __init__(
        self,
        address: Address,
        keys: Keys,
        scripts: Mapping[str, Script],
        *,
        timeout_s: float,
        start_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._address = address
        self._keys = keys
        self._scripts = scripts
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._clock = clock
        is_measured = clock is time and address.kind != "memory"
        self.store_clock = StoreClock(clock) if is_measured else clock
        self._server = EmbeddedServer(address.path) if address.kind == "embedded" else None
        if address.tls is not None:
            _ = address.tls.context  # Reads its files now, not while an event loop waits.
        self.lanes: dict[asyncio.AbstractEventLoop, Lane] = {}
        self._admins: dict[asyncio.AbstractEventLoop, Admin] = {}
        self._guards: dict[asyncio.AbstractEventLoop, AsyncGenerator[None]] = {}
        self._starting: dict[asyncio.AbstractEventLoop, asyncio.Future[str]] = {}
        self._watched: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._forked: list[object] = []
        self._inspected: set[str] = set()
        self._has_ended_down = False
        self.tallies: Tallies | None = None
        self.new_spool: Callable[[Lane], SpoolPort] | None = None
        self.new_allotments: Callable[[Lane], LocalAllotments] | None = None
        self.before_stop: Callable[[], Awaitable[None]] = _do_nothing
        _everywhere.add(self)

    async def start(self) -> Lane:
        """Connect for the running event loop. Idempotent.

        If the store cannot be reached within the start timeout, that is logged, and attempts continue in the
        background.

        Raises:
            MeterkitError: the running event loop is not asyncio's.
            SettingsError: the store belongs to another number of shards or to a newer release, or the
                embedded server cannot be run.
        """
        lane = await self.lane()
        try:
            is_own = self._address.kind in {"memory", "embedded"}
            await lane.start(within_s=self._start_timeout_s, is_own=is_own)
        except SettingsError:
            await self.stop()
            raise
        return lane

    async def lane(self) -> Lane:
        """The running event loop's lane, which connects in the background; does not wait for the store.

        Raises:
            MeterkitError: the running event loop is not asyncio's.
        """
        loop = running_loop()
        lane = self.lanes.get(loop)
        if lane is None:
            kind = ClusterLane if self._address.kind == "cluster" else Lane
            lane = self.lanes[loop] = kind(
                self._connect,
                keys=self._keys,
                scripts=tuple(self._scripts.values()),
                fence=self._scripts["fence_producer"],
                timeout_s=self._timeout_s,
                start_timeout_s=self._patience_s,
                now_ms=lambda: int(self.store_clock() * 1000),
            )
            lane.set_tallies(self.tallies)
            lane.spool = None if self.new_spool is None else self.new_spool(lane)
            lane.allotments = None if self.new_allotments is None else self.new_allotments(lane)
            await self._guard_loop(loop)
            lane.begin()
            if isinstance(self.store_clock, StoreClock):
                lane.spawn(self.store_clock.follow(lane.ask_time))
        return lane

    async def stop(self) -> None:
        """Settle what is left, and close the connections of the running event loop."""
        guard = self._guards.pop(running_loop(), None)
        if guard is not None:
            await guard.aclose()

    async def admin(self) -> Admin:
        """Administration client of the running event loop; it sees all former settlements of this loop.

        Raises:
            MeterkitError: the running event loop is not asyncio's.
        """
        loop = running_loop()
        admin = self._admins.get(loop)
        if admin is None:
            await self._guard_loop(loop)
            address = self._address if self._server is None else await self._find_server()
            new_admin: type[Admin] = (await import_in_thread("meterkit.redis.admin")).Admin
            admin = self._admins.get(loop)  # Another task may have made it meanwhile.
            if admin is None:
                admin = self._admins[loop] = new_admin(
                    address, timeout_s=self._timeout_s, clock=self.store_clock
                )
        lane = self.lanes.get(loop)
        if lane is not None and lane.allotments is not None:
            lane.allotments.flush()
        if lane is not None and lane.connected and lane.unsettled:
            await lane.await_replies()
        return admin

    async def _connect(self, on_end: OnEnd) -> AnyConnection:
        connection: AnyConnection
        if self._address.kind == "cluster":
            return await self._connect_to_cluster()
        if self._address.kind == "memory":
            loaded = tuple(self._scripts.values())
            memory = await import_in_thread("meterkit.redis.memory")  # An extra: fakeredis.
            connection = await memory.connect(loaded, clock=self._clock)
        else:
            connection = await self._connect_to(await self._find_server(), on_end)
        try:
            await check_store_format(connection, self._keys, self._address)
        except BaseException:
            await connection.close()
            raise
        if (admin := self._admins.get(running_loop())) is not None:
            admin.renew()
        return connection

    async def _connect_to(self, address: Address, on_end: OnEnd) -> Connection:
        """Connect to a server; inspect it on the first connection of this process."""
        loaded = tuple(self._scripts.values())
        connection = await connect(
            address,
            loaded,
            timeout_s=self._timeout_s,
            on_end=on_end,
            clock=self._clock,
            is_known=self._is_known,
        )
        try:
            named = address if self._address.places else self._address
            of_cluster = self._address.kind == "cluster"
            if str(named) not in self._inspected and await inspect_server(
                connection, self._keys, named, of_cluster=of_cluster
            ):
                self._inspected.add(str(named))
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def _patience_s(self) -> float:
        """Time that requests of a new connection wait: longer only before this process's first reply."""
        is_outage_known = self._has_ended_down or any(lane.is_down for lane in tuple(self.lanes.values()))
        # A server of this process's own is started again for a new event loop.
        is_known = self._is_known and self._server is None
        return self._timeout_s if is_known or is_outage_known else self._start_timeout_s

    @property
    def _is_known(self) -> bool:
        """Whether this process has been connected before."""
        return bool(self._inspected)

    async def _connect_to_cluster(self) -> AnyConnection:
        patience_s = self._patience_s  # Before its first node is known.
        slots = await self._find(())
        place = slots.of(discovery.slot_of(self._keys.meta))
        if place is None:
            raise StoreError(f"no node of {self._address} has the slot of {self._keys.meta}", executed=False)
        asked = await self._connect_to(self._address.at(place), discovery.ignore_end)
        try:
            await check_store_format(asked, self._keys, self._address)
        finally:
            await asked.close()
        connection = ClusterConnection(
            slots,
            connect_to=lambda place, on_end: self._connect_to(self._address.at(place), on_end),
            find=self._find,
            keys=self._keys,
            timeout_s=self._timeout_s,
            start_timeout_s=patience_s,
        )
        try:
            await connection.begin()
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _find(self, known: Iterable[HostPort]) -> Slots:
        return await discovery.find_slots(
            self._address, known, timeout_s=self._timeout_s, clock=self._clock, is_known=self._is_known
        )

    async def _find_server(self) -> Address:
        """Address of the server itself: started here, or named by the sentinels."""
        if self._address.kind == "sentinel":
            return await master_of(
                self._address, timeout_s=self._timeout_s, clock=self._clock, is_known=self._is_known
            )
        if self._server is None:
            return self._address
        loop = running_loop()
        starting = self._starting.get(loop)
        if starting is None or starting.done():
            # Not a task: if its caller is cancelled, the thread goes on, and the end of the loop waits.
            starting = self._starting[loop] = loop.run_in_executor(None, self._server.start)
        return Address(kind="unix", path=await asyncio.shield(starting))

    async def _guard_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close a loop's connections with the loop, even if the app does not stop the kit."""
        if loop not in self._guards:
            guard = self._guards[loop] = self._guard(loop)
            await anext(guard)
            if loop not in self._watched:
                self._watched.add(loop)
                _stop_before_close(loop, self)

    def stop_for(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections of a loop that is about to be closed: it runs once more for that."""
        guard = self._guards.get(loop)
        if guard is None or loop.is_closed() or loop.is_running():
            return
        # In a thread: where it is closed from within another loop, it could not run in this one.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: loop.run_until_complete(guard.aclose())).result()

    async def _guard(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        # A loop that asyncio.run() closes first closes its asynchronous generators: this is one.
        try:
            yield
        finally:
            self._guards.pop(loop, None)
            # In reverse order. Each step runs even if a cancellation or an error ends the one before.
            async with AsyncExitStack() as steps:
                steps.push_async_callback(self._stop_server, loop)
                steps.push_async_callback(self._close_admin, loop)
                steps.push_async_callback(self._stop_lane, loop)
                await self.before_stop()

    async def _stop_lane(self, loop: asyncio.AbstractEventLoop) -> None:
        lane = self.lanes.get(loop)
        if lane is not None:
            self._has_ended_down = lane.is_down
            try:
                # Late replies find the lane until it is closed, and release their holds.
                await lane.stop(drain_s=_DRAIN_S)
            finally:
                del self.lanes[loop]

    async def _close_admin(self, loop: asyncio.AbstractEventLoop) -> None:
        admin = self._admins.pop(loop, None)
        if admin is not None:
            await admin.close()

    async def _stop_server(self, loop: asyncio.AbstractEventLoop) -> None:
        starting = self._starting.pop(loop, None)
        if starting is not None:
            await asyncio.gather(starting, return_exceptions=True)
        if self._server is not None and not self._guards:
            try:
                await asyncio.to_thread(self._server.stop)
            except RuntimeError:  # The process is about to end: its pools of threads have ended before.
                self._server.stop()

    def after_fork(self) -> None:
        """In a child process: leave the parent's connections to the parent."""
        for lane in self.lanes.values():
            lane.is_of_parent = True
        self._forked += [dict(self.lanes), self._admins, self._guards]
        self.lanes.clear()
        self._admins, self._guards, self._starting = {}, {}, {}
        self._inspected, self._has_ended_down = set(), False
        if self._server is not None:
            self._server = EmbeddedServer(self._address.path)


async def _do_nothing() -> None:
    pass


def running_loop() -> asyncio.AbstractEventLoop:
    """Running event loop.

    Raises:
        MeterkitError: none of asyncio's kind does.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise MeterkitError(
            "meterkit runs on asyncio and uvloop, and neither runs here; trio is not supported: start the"
            " server on one of them (hypercorn: -k asyncio or -k uvloop)"
        ) from None


def _stop_before_close(loop: asyncio.AbstractEventLoop, loops: EventLoops) -> None:
    """Patch ``close()`` of a loop that may be closed with its asynchronous generators still open."""
    close, found = loop.close, weakref.ref(loops)

    def stop_and_close() -> None:
        if (mine := found()) is not None:
            mine.stop_for(loop)
        close()

    # No other hook runs in time: once a loop is closed, its connections cannot be closed any more. A loop
    # that takes no attributes is left alone. Not by vars(): CPython 3.11 reads the attributes of an
    # object whose dictionary was read the slow way, and a loop's are read at each of its steps.
    with suppress(AttributeError):
        setattr(loop, _CLOSE, stop_and_close)


_everywhere: weakref.WeakSet[EventLoops] = weakref.WeakSet()


def _after_fork() -> None:
    for loops in _everywhere:
        loops.after_fork()


os.register_at_fork(after_in_child=_after_fork)
