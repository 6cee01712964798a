"""Stands in for a connection to a cluster: each request goes to the node that has its shard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from meterkit.cancellation import start_task
from meterkit.errors import MeterkitError, StoreError
from meterkit.redis.breaker import Reconnector
from meterkit.redis.connection import ReplyError, fail
from meterkit.redis.discovery import redirection_of, slot_of

if TYPE_CHECKING:
    from meterkit.decisions.keys import Keys
    from meterkit.redis.breaker import AnyConnection
    from meterkit.redis.connection import Call, Connection, OnEnd
    from meterkit.redis.discovery import Find, Slots
    from meterkit.redis.url import Place

_log = logging.getLogger("meterkit.store")

ConnectTo = Callable[["Place", "OnEnd"], Awaitable["Connection"]]

_TRY_AGAIN_S: Final = 0.01
# If a node is away, every call wants to know which node has its slots now; limit how often that is asked.
_FIND_PAUSE_S: Final = 0.1
_RETIRE_S: Final = 1.0


class _Node:
    """A node: how it is reached, and which shards it has."""

    def __init__(self, place: Place, link: Reconnector) -> None:
        self.place = place
        self.link = link
        self.shards = set[int]()


class ClusterConnection:
    """The nodes of a cluster that have shards, one connection each, made anew by itself where it ends.

    Args:
        slots: where the slots are; found anew where a node is away or sends elsewhere.
        connect_to: opens a connection to a node.
        find: asks where the slots are; gets the nodes to ask first.
        keys: names of keys.
        timeout_s: how long a call may wait, for a connection and for its reply together.

    Attributes:
        on_place: told of each shard that another node has now, or whose node's connection has changed.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        connect_to: ConnectTo,
        find: Find,
        keys: Keys,
        timeout_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect_to = connect_to
        self._find = find
        self._timeout_s = timeout_s
        self._nodes: dict[Place, _Node] = {}
        self._slot_of = [slot_of(keys.shard(shard, "")) for shard in range(keys.shards)]
        self._node_of: dict[int, _Node] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_wanted = self._is_finding = False
        self.on_place: Callable[[int], None] = lambda _shard: None
        self.open, self.is_unfit, self.silent_s = True, False, 0.0
        self._use(slots)

    async def begin(self) -> None:
        """Connect to all nodes, or try it for a while.

        Raises:
            SettingsError: the store cannot be used with these settings.
        """
        await asyncio.gather(*(start_task(node.link.reach(self._timeout_s)) for node in self._nodes.values()))

    def call(self, call: Call, future: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Send a request followed by the clock; see :class:`meterkit.redis.lane.Lane`."""
        try:
            return self._at(call.view.shard).link.call(call, future)
        except MeterkitError as error:
            if future is None:
                raise
            fail(future, error)
            return future

    def ask(self, *parts: str | int | bytes) -> asyncio.Future[Any]:
        """Send a plain command to all nodes that are there; the future's result is their replies."""
        connections = [node.link.connection for node in self._nodes.values()]
        asked = [connection.ask(*parts) for connection in connections if connection is not None]
        return asyncio.gather(*asked, return_exceptions=True)

    def post(self, packed: object, receiver: object) -> None:
        """Nothing is posted to a cluster, but to the node that has a shard."""
        raise NotImplementedError

    def at(self, shard: int) -> AnyConnection | None:
        """The connection to the node that has a shard; None while that is away."""
        node = self._node_of.get(shard)
        return None if node is None else node.link.connection

    @property
    def is_away(self) -> bool:
        """Whether no request waits for one of the nodes."""
        return any(node.link.is_open for node in self._nodes.values())

    @property
    def opened(self) -> int:
        """How often the nodes that there are now were away."""
        return sum(node.link.opened for node in self._nodes.values())

    async def connected(self, shard: int) -> AnyConnection:
        """Wait for a connection to the node that has a shard, whichever that is by then."""
        while (connection := self.at(shard)) is None:
            await self._changed.wait()
        return connection

    async def follow(
        self,
        shard: int,
        reply: Any,
        ask: Callable[[AnyConnection], Awaitable[Any]],
        load: Callable[[AnyConnection], None],
    ) -> Any:
        """Where a node did not execute a request and says why, ask who can; for one timeout in all.

        Args:
            shard: which shard the request is about.
            reply: what came back.
            ask: sends the request again, over a connection of our choice, and waits for its reply.
            load: has the server of a connection know the scripts that it has lost.

        Returns:
            The last reply; an error if no node executed it.

        Raises:
            StoreError: the last reply did not come.
        """
        node, is_asking = self._at(shard), False
        try:
            async with asyncio.timeout(self._timeout_s):
                while isinstance(reply, ReplyError):
                    match reply.code:
                        case "MOVED":
                            self._place(shard, redirection_of(str(reply), node.place))
                            self.find()
                            node, is_asking = self._at(shard), False
                        case "ASK":
                            node, is_asking = self._node(redirection_of(str(reply), node.place)), True
                        case "TRYAGAIN":
                            await asyncio.sleep(_TRY_AGAIN_S)
                            node, is_asking = self._at(shard), False
                        case "NOSCRIPT":
                            load(await node.link.connected())
                        case code:
                            if code == "CLUSTERDOWN":
                                self.find()
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
    def gone(self) -> bool:
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

    def find(self) -> None:
        """Find out in the background who has which slot now."""
        self._is_wanted = True
        if not self._is_finding and self.open:
            self._is_finding = True
            self._spawn(self._find_slots())

    async def _find_slots(self) -> None:
        try:
            while self._is_wanted:
                self._is_wanted = False
                there = [place for place, node in self._nodes.items() if node.link.connection is not None]
                with suppress(StoreError):
                    self._use(await self._find((*there, *self._nodes)))
                await asyncio.sleep(_FIND_PAUSE_S)
        finally:
            self._is_finding = False

    def _use(self, slots: Slots) -> None:
        for shard, slot in enumerate(self._slot_of):
            place = slots.of(slot)
            if place is not None:
                self._place(shard, place)
        for place, node in tuple(self._nodes.items()):
            if not node.shards:
                del self._nodes[place]
                self._spawn(self._retire(node))

    async def _retire(self, node: _Node) -> None:
        """Leave a node that has no shards any more, once it has answered."""
        connection = node.link.connection
        try:
            if connection is not None:
                with suppress(StoreError, TimeoutError):
                    async with asyncio.timeout(_RETIRE_S):
                        await connection.ask("PING")
        finally:
            await node.link.stop()

    def _at(self, shard: int) -> _Node:
        node = self._node_of.get(shard)
        if node is None:
            raise StoreError(f"no node of the cluster has the slot of shard {shard}", executed=False)
        return node

    def _node(self, place: Place) -> _Node:
        node = self._nodes.get(place)
        if node is None:
            link = Reconnector(
                partial(self._connect, place),
                timeout_s=self._timeout_s,
                on_change=lambda _: self._tell(self._nodes.get(place)),
            )
            node = self._nodes[place] = _Node(place, link)
            link.begin()
        return node

    def _place(self, shard: int, place: Place) -> None:
        before, node = self._node_of.get(shard), self._node(place)
        if before is node:
            return
        if before is not None:
            before.shards.discard(shard)
        node.shards.add(shard)
        self._node_of[shard] = node
        self.on_place(shard)
        self._changed.set()
        self._changed.clear()

    def _tell(self, node: _Node | None) -> None:
        if node is not None:
            for shard in node.shards:
                self.on_place(shard)
        self._changed.set()
        self._changed.clear()

    async def _connect(self, place: Place, on_end: OnEnd) -> Connection:
        try:
            return await self._connect_to(place, on_end)
        except StoreError:
            self.find()
            raise

    def _spawn(self, work: Any) -> None:
        task = start_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("looking after the nodes of the cluster failed", exc_info=error)
