"""Lane of a cluster: each request and settlement goes to the node that has its shard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from meterkit.cancellation import start_task
from meterkit.errors import MeterkitError, StoreError
from meterkit.redis.connection import ReplyError, fail_future
from meterkit.redis.discovery import redirection_of, slot_of
from meterkit.redis.lane import Lane, await_reply
from meterkit.redis.reconnector import Reconnector

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from meterkit.decisions.keys import Keys
    from meterkit.redis.connection import Connection, OnEnd, StoreCall
    from meterkit.redis.discovery import SlotFinder, Slots
    from meterkit.redis.reconnector import AnyConnection
    from meterkit.redis.settlement_queue import QueueLane, SpoolPort
    from meterkit.redis.url import HostPort

_log = logging.getLogger("meterkit.store")

ConnectTo = Callable[["HostPort", "OnEnd"], Awaitable["Connection"]]

_TRY_AGAIN_S: Final = 0.01
# If a node is down, every call asks for the slots; limit how often they are fetched.
_FIND_PAUSE_S: Final = 0.1
# Until each slot has a node again, without a call that asks.
_NO_NODE_PAUSE_S: Final = 1.0
_RETIRE_S: Final = 1.0


class _Node:
    """Node of a cluster: its connection and its shards."""

    def __init__(self, place: HostPort, link: Reconnector) -> None:
        self.place = place
        self.link = link
        self.shards = set[int]()


class ClusterConnection:
    """Connections to the nodes of a cluster that have shards, one each; each reconnects by itself.

    Args:
        slots: the slots; fetched again if a node is down or redirects.
        connect_to: opens a connection to a node.
        find: fetches the slots; gets the nodes to ask first.
        keys: names of keys.
        timeout_s: how long a call may wait, for a connection and for its reply together.
        start_timeout_s: how long it may wait for the first connection to one of these slots' nodes.

    Attributes:
        on_shard_moved: called for each shard that has another node, or whose node's connection has changed.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        connect_to: ConnectTo,
        find: SlotFinder,
        keys: Keys,
        timeout_s: float,
        start_timeout_s: float = 0.0,
    ) -> None:
        self._connect_to = connect_to
        self._find = find
        self._timeout_s, self._start_timeout_s = timeout_s, start_timeout_s
        self._nodes: dict[HostPort, _Node] = {}
        self._slot_of = [slot_of(keys.shard(shard, "")) for shard in range(keys.shards)]
        self._node_of: dict[int, _Node] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_wanted = self._is_finding = False
        self.on_shard_moved: Callable[[int], None] = lambda _shard: None
        self.open, self.is_unfit, self.is_used, self.silent_s = True, False, False, 0.0
        self._assign_slots(slots)
        self._start_timeout_s = 0.0  # A node that is found later has been missing: that is an outage.

    async def begin(self) -> None:
        """Connect to all nodes, within the timeout.

        Raises:
            SettingsError: the store cannot be used with these settings.
        """
        links = [node.link for node in self._nodes.values()]
        reached = (link.reach(self._timeout_s, is_logged=False) for link in links)
        await asyncio.gather(*map(start_task, reached))

    def call(self, call: StoreCall, future: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Send a request followed by the clock; see :class:`meterkit.redis.lane.Lane`."""
        try:
            return self._node_of_shard(call.view.shard).link.call(call, future)
        except MeterkitError as error:
            if future is None:
                raise
            fail_future(future, error)
            return future

    def ask(self, *parts: str | int | bytes) -> asyncio.Future[Any]:
        """Send a plain command to all connected nodes; the future's result is their replies."""
        connections = [node.link.connection for node in self._nodes.values()]
        asked = [connection.ask(*parts) for connection in connections if connection is not None]
        return asyncio.gather(*asked, return_exceptions=True)

    def post(self, packed: object, receiver: object) -> None:
        """Not supported: a request is posted to the node of its shard."""
        raise NotImplementedError

    def at(self, shard: int) -> AnyConnection | None:
        """Connection to the node that has a shard; None while it is down."""
        node = self._node_of.get(shard)
        return None if node is None else node.link.connection

    @property
    def is_down(self) -> bool:
        """Whether the breaker of a node is open."""
        return any(node.link.is_open for node in self._nodes.values())

    @property
    def opened(self) -> int:
        """Number of times that breakers of the current nodes have opened."""
        return sum(node.link.opened for node in self._nodes.values())

    async def connected(self, shard: int) -> AnyConnection:
        """Wait for a connection to the node that has a shard then."""
        while (connection := self.at(shard)) is None:
            await self._changed.wait()
        return connection

    async def resend_redirected(
        self,
        shard: int,
        reply: Any,
        ask: Callable[[AnyConnection], Awaitable[Any]],
        load: Callable[[AnyConnection], None],
    ) -> Any:
        """Follow a node's error reply: send the request to the node that can execute it, within one timeout.

        Args:
            shard: shard of the request.
            reply: the error reply.
            ask: sends the request again over a connection, and waits for its reply.
            load: loads the scripts that the server of a connection has lost.

        Returns:
            The last reply; an error if no node executed it.

        Raises:
            StoreError: the last reply did not come.
        """
        node, is_asking = self._node_of_shard(shard), False
        try:
            async with asyncio.timeout(self._timeout_s):
                while isinstance(reply, ReplyError):
                    match reply.code:
                        case "MOVED":
                            self._assign_shard(shard, redirection_of(str(reply), node.place))
                            self.refresh_slots()
                            node, is_asking = self._node_of_shard(shard), False
                        case "ASK":
                            node, is_asking = self._node(redirection_of(str(reply), node.place)), True
                        case "TRYAGAIN":
                            await asyncio.sleep(_TRY_AGAIN_S)
                            node, is_asking = self._node_of_shard(shard), False
                        case "NOSCRIPT":
                            load(await node.link.connected())
                        case code:
                            if code == "CLUSTERDOWN":
                                self.refresh_slots()
                            return reply
                    connection = await node.link.connected()
                    if is_asking:
                        connection.ask("ASKING")
                    reply = None
                    reply = await ask(connection)
        except TimeoutError:
            if reply is None:
                why = f"the store did not answer within {self._timeout_s:g} s"
                raise StoreError(why, executed=None) from None
        return reply

    @property
    def is_closed(self) -> bool:
        """Whether no late reply can come any more."""
        return not self.open

    async def close(self) -> None:
        """Close all connections."""
        self.open = False
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in tuple(self._nodes.values()):
            await node.link.stop()

    def drop(self) -> None:
        """Close without waiting until the sockets are gone."""
        self.open = False
        self._spawn(self.close())

    def refresh_slots(self) -> None:
        """Fetch the slots in the background."""
        self._is_wanted = True
        if not self._is_finding and self.open:
            self._is_finding = True
            self._spawn(self._refresh_slots())

    async def _refresh_slots(self) -> None:
        try:
            while self._is_wanted:
                self._is_wanted = False
                there = [place for place, node in self._nodes.items() if node.link.connection is not None]
                with suppress(StoreError):
                    self._assign_slots(await self._find((*there, *self._nodes)))
                is_whole = len(self._node_of) == len(self._slot_of)
                await asyncio.sleep(_FIND_PAUSE_S if is_whole else _NO_NODE_PAUSE_S)
                self._is_wanted = self._is_wanted or not is_whole
        finally:
            self._is_finding = False

    def _assign_slots(self, slots: Slots) -> None:
        for shard, slot in enumerate(self._slot_of):
            self._assign_shard(shard, slots.of(slot))
        for place, node in tuple(self._nodes.items()):
            if not node.shards:
                del self._nodes[place]
                self._spawn(self._retire(node))

    async def _retire(self, node: _Node) -> None:
        """Close the connection of a node without shards, once it has answered."""
        connection = node.link.connection
        try:
            if connection is not None:
                with suppress(StoreError, TimeoutError):
                    async with asyncio.timeout(_RETIRE_S):
                        await connection.ask("PING")
        finally:
            await node.link.stop()

    def _node_of_shard(self, shard: int) -> _Node:
        node = self._node_of.get(shard)
        if node is None:
            self.refresh_slots()
            raise StoreError(f"no node of the cluster has the slot of shard {shard}", executed=False)
        return node

    def _node(self, place: HostPort) -> _Node:
        node = self._nodes.get(place)
        if node is None:
            link = Reconnector(
                partial(self._connect_node, place),
                timeout_s=self._timeout_s,
                start_timeout_s=self._start_timeout_s,
                on_change=lambda _: self._notify_shards(self._nodes.get(place)),
            )
            node = self._nodes[place] = _Node(place, link)
            link.begin()
        return node

    def _assign_shard(self, shard: int, place: HostPort | None) -> None:
        """Assign a shard to the node at a place; None: no node has its slot."""
        before, node = self._node_of.pop(shard, None), None if place is None else self._node(place)
        if node is not None:
            self._node_of[shard] = node
        if before is node:
            return
        if before is not None:
            before.shards.discard(shard)
        if node is not None:
            node.shards.add(shard)
        self.on_shard_moved(shard)
        self._changed.set()
        self._changed.clear()

    def _notify_shards(self, node: _Node | None) -> None:
        if node is not None:
            for shard in node.shards:
                self.on_shard_moved(shard)
        self._changed.set()
        self._changed.clear()

    async def _connect_node(self, place: HostPort, on_end: OnEnd) -> Connection:
        try:
            return await self._connect_to(place, on_end)
        except StoreError:
            self.refresh_slots()
            raise

    def _spawn(self, work: Any) -> None:
        task = start_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("maintaining connections to the nodes of the cluster failed", exc_info=error)


class ClusterLane(Lane):
    """Lane with one connection per node of a cluster."""

    def lane_of(self, shard: int) -> QueueLane:
        """Lane of a shard's settlements."""
        return _ShardLane(self, shard)

    @property
    def is_down(self) -> bool:
        """Whether the breaker of the cluster, or of one of its nodes, is open."""
        cluster = self._connection
        return super().is_down or (isinstance(cluster, ClusterConnection) and cluster.is_down)

    @property
    def opened(self) -> int:
        """Number of times that the breaker has opened, those of the current nodes included."""
        cluster = self._connection
        return super().opened + (cluster.opened if isinstance(cluster, ClusterConnection) else 0)

    async def retry_call(self, call: StoreCall, reply: ReplyError) -> Any:
        """Retry a call after an error reply, at another node if that can execute it.

        Raises:
            StoreError: the store cannot serve; the call was not executed.
        """
        if isinstance(self._connection, ClusterConnection):

            async def ask(connection: AnyConnection) -> Any:
                return await await_reply(call, connection.call(call))

            found = await self._connection.resend_redirected(call.view.shard, reply, ask, self.load)
            if not isinstance(found, type(reply)):
                return found
            reply = found
        raise StoreError(f"the store refuses: {reply}", executed=False)

    async def fence_at(self, shard: int, key: str) -> int:
        """Fence a producer at the node of its shard; the last number it applied."""

        async def ask() -> Any:
            connection = await self.connected_to(shard)
            reply = await self.ask_to_fence(connection, key)
            if isinstance(self._connection, ClusterConnection):
                again = partial(self.ask_to_fence, key=key)
                reply = await self._connection.resend_redirected(shard, reply, again, self.load)
            return reply

        return await self.fence_until_done(ask)

    async def connected_to(self, shard: int) -> AnyConnection:
        """Wait for a connection to the node that has a shard."""
        cluster = await self._reconnector.connected()
        return await cluster.connected(shard) if isinstance(cluster, ClusterConnection) else cluster

    def at(self, shard: int) -> AnyConnection | None:
        """Connection to the node that has a shard; None while it is down."""
        cluster = self._connection
        return cluster.at(shard) if isinstance(cluster, ClusterConnection) else None

    def _on_connection(self, connection: AnyConnection | None) -> None:
        super()._on_connection(connection)
        if isinstance(connection, ClusterConnection):
            # Settlements sent to a shard's former node may still be applied: fencing decides.
            connection.on_shard_moved = self._on_shard_moved

    def _on_shard_moved(self, shard: int) -> None:
        self.queues[shard].disconnected()
        if self.at(shard) is None:
            return
        self.queues[shard].compare()
        if self.spool is not None:
            self.spool.connected()


class _ShardLane:
    """Lane of one shard's settlements."""

    __slots__ = ("_lane", "_shard")

    def __init__(self, lane: ClusterLane, shard: int) -> None:
        self._lane = lane
        self._shard = shard

    @property
    def post(self) -> Callable[[Sequence[bytes], Any], None] | None:
        """Sends a request whose reply goes to a receiver; None while the shard's node is down."""
        connection = self._lane.at(self._shard)
        return None if connection is None else connection.post

    @property
    def stopping(self) -> bool:
        """Whether the lane is stopping."""
        return self._lane.stopping

    @property
    def spool(self) -> SpoolPort | None:
        """Spool of settlements that cannot be sent."""
        return self._lane.spool

    async def fence(self, key: str) -> int:
        """Fence a producer; the last number it applied."""
        return await self._lane.fence_at(self._shard, key)

    async def await_replies(self) -> None:
        """Wait for a connection, and for the replies to all requests sent on it."""
        connection = await self._lane.connected_to(self._shard)
        with suppress(StoreError):
            await connection.ask("PING")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run in the background until the lane stops; None where it has stopped."""
        return self._lane.spawn(work)

    def call_later(self, after_s: float, do: Callable[[], None]) -> asyncio.TimerHandle:
        """Call a function after some seconds."""
        return self._lane.call_later(after_s, do)

    def warn(self, message: str) -> None:
        """Log a warning, throttled."""
        self._lane.warn(message)

    def compare_all(self) -> None:
        """Let all queues compare acknowledged settlements with the store's records."""
        self._lane.compare_all()
