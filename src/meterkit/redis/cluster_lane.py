"""The lane where the store is a cluster: each shard's requests and settlements go to the node that has it."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from meterkit.errors import StoreError
from meterkit.redis.cluster_connection import ClusterConnection
from meterkit.redis.lane import Lane, waited_for

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Sequence

    from meterkit.redis.breaker import AnyConnection
    from meterkit.redis.connection import Call, ReplyError
    from meterkit.redis.settling import QueueLane, Spooling


class ClusterLane(Lane):
    """The store, as one event loop reaches it, by one connection a node."""

    def lane_of(self, shard: int) -> QueueLane:
        """What the settlements of a shard are sent by."""
        return _ShardLane(self, shard)

    @property
    def is_away(self) -> bool:
        """Whether the breaker is open: no request waits for the store. Of a cluster, for one of its nodes."""
        cluster = self._connection
        return super().is_away or (isinstance(cluster, ClusterConnection) and cluster.is_away)

    @property
    def opened(self) -> int:
        """How often the breaker has opened; of a cluster, those of the nodes that it has now included."""
        cluster = self._connection
        return super().opened + (cluster.opened if isinstance(cluster, ClusterConnection) else 0)

    async def again(self, call: Call, reply: ReplyError) -> Any:
        """Answer an error reply to a call: where another node can execute it, send it there.

        Raises:
            StoreError: the store cannot serve; the call was not executed.
        """
        if isinstance(self._connection, ClusterConnection):

            async def ask(connection: AnyConnection) -> Any:
                return await waited_for(call, connection.call(call))

            found = await self._connection.follow(call.view.shard, reply, ask, self.load)
            if not isinstance(found, type(reply)):
                return found
            reply = found
        raise StoreError(f"the store refuses: {reply}", executed=False)

    async def fence_at(self, shard: int, key: str) -> int:
        """Fence a producer at the node that has its shard; the last number it applied."""

        async def ask() -> Any:
            connection = await self.connected_to(shard)
            reply = await self.ask_to_fence(connection, key)
            if isinstance(self._connection, ClusterConnection):
                again = partial(self.ask_to_fence, key=key)
                reply = await self._connection.follow(shard, reply, again, self.load)
            return reply

        return await self.fenced(ask)

    async def connected_to(self, shard: int) -> AnyConnection:
        """Wait for a connection to the node that has a shard."""
        cluster = await self._reconnector.connected()
        return await cluster.connected(shard) if isinstance(cluster, ClusterConnection) else cluster

    def at(self, shard: int) -> AnyConnection | None:
        """The connection to the node that has a shard; None while that is away."""
        cluster = self._connection
        return cluster.at(shard) if isinstance(cluster, ClusterConnection) else None

    def _on_connection(self, connection: AnyConnection | None) -> None:
        super()._on_connection(connection)
        if isinstance(connection, ClusterConnection):
            # Settlements sent to a shard's former node may still be applied: fencing has the last word.
            connection.on_place = self._on_place

    def _on_place(self, shard: int) -> None:
        self.queues[shard].disconnected()
        if self.at(shard) is None:
            return
        self.queues[shard].compare()
        if self.spool is not None:
            self.spool.connected()


class _ShardLane:
    """The way of one shard's settlements."""

    __slots__ = ("_lane", "_shard")

    def __init__(self, lane: ClusterLane, shard: int) -> None:
        self._lane = lane
        self._shard = shard

    @property
    def post(self) -> Callable[[Sequence[bytes], Any], None] | None:
        """Sends a request whose reply goes to a receiver; None while the shard's node is away."""
        connection = self._lane.at(self._shard)
        return None if connection is None else connection.post

    @property
    def stopping(self) -> bool:
        """Whether nothing that begins now will be ended."""
        return self._lane.stopping

    @property
    def spool(self) -> Spooling | None:
        """Where settlements go that cannot be sent."""
        return self._lane.spool

    async def fence(self, key: str) -> int:
        """Fence a producer; the last number it applied."""
        return await self._lane.fence_at(self._shard, key)

    async def replies(self) -> None:
        """Wait for a connection if there is none, and until all that was sent on it is answered."""
        connection = await self._lane.connected_to(self._shard)
        with suppress(StoreError):
            await connection.ask("PING")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run in the background until the lane stops; None where it has stopped."""
        return self._lane.spawn(work)

    def later(self, after_s: float, do: Callable[[], None]) -> asyncio.TimerHandle:
        """Have something done after some seconds."""
        return self._lane.later(after_s, do)

    def warn(self, message: str) -> None:
        """Say what goes wrong, but not again and again."""
        self._lane.warn(message)

    def compare_all(self) -> None:
        """Have all queues of the lane compare what the store had acknowledged with what it has."""
        self._lane.compare_all()
