"""What numbered settlements need: the replies of the settle script, the lane, and the spool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Sequence

    from meterkit.redis.connection import Sharded

OK: Final = 0
DUPLICATE: Final = 1
GAP: Final = 2
STALE: Final = 4
REFUSED: Final = 6
DAMAGED: Final = 7
CONFLICT: Final = 8
"""The event id has counted another quantity."""
PARTLY: Final = 9
"""The event id has counted some of the meters."""


NEVER_SENT: Final = 2**53 - 1
"""The number of a settlement that was never sent. Its record tells only of the producer."""


class Settlement(Protocol):
    """What a request came to, ready to be numbered."""

    waiter: asyncio.Future[None] | None

    @property
    def view(self) -> Sharded:
        """The customer, and so the shard."""
        ...

    @property
    def slot(self) -> int:
        """Of what is given back."""
        ...

    @property
    def customer(self) -> str:
        """Whose it is."""
        ...

    def pack(self) -> tuple[bytes, bytes]:
        """The request up to the producer's key, and from there to its place, by the state in force."""
        ...

    def on_stale(self, reply: list[Any]) -> None:
        """Take the state that the store has come to since."""

    def on_refused(self, field: bytes) -> None:
        """Take word that the store can never apply this."""

    def on_damaged(self, field: bytes) -> None:
        """Take word that the store cannot apply this: what it keeps of the customer is damaged."""

    def on_conflict(self, kept: bytes) -> Exception:
        """Log that the event id has counted another quantity, and make the error for the caller."""
        ...

    def uncounted(self, kept: bytes) -> Self:
        """The part of it that the event id has not counted yet."""
        ...

    def on_notices(self, notices: list[bytes]) -> None:
        """Take word of the credits whose balance has become low by it, and of its being late."""


class Sent(NamedTuple):
    """Under which number a settlement was sent before: fencing that producer tells whether it was applied.

    Attributes:
        producer: the producer's key.
        number: the settlement's; :data:`NEVER_SENT`: it was not sent under that producer.
        acknowledged: how many the store had applied of that producer by its own word.
    """

    producer: str
    number: int
    acknowledged: int


class Spooling(Protocol):
    """Where settlements wait on disk while the store is away."""

    @property
    def kept(self) -> int:
        """Settlements that wait there for this event loop."""
        ...

    @property
    def lost(self) -> int:
        """Those that found no room, or that the store could never apply."""
        ...

    def keep(self, shard: int, settlements: Sequence[tuple[Any, Sent | None]]) -> None:
        """Take settlements of a shard, in order; each waiter is released once its own is on disk."""

    def connected(self) -> None:
        """Take word that the store, or one of its nodes, can be reached: what waits is sent."""

    async def flush(self) -> None:
        """Write what is not written, as far as that can be done."""

    async def close(self) -> Sequence[Settlement]:
        """Leave what waits to the next start; what could not be written, and is lost."""
        ...


class Allotting(Protocol):
    """What one event loop admits without asking the store; see :mod:`meterkit.store.allotment`."""

    granted: int
    returned: int

    @property
    def unused(self) -> int:
        """Units that are there to be used."""
        ...

    def admit(self, decision: Any, route: Any) -> tuple[Any, list[int] | None]:
        """Admit a request by a unit: the decision that it stands for, and a reply; None: there is none."""
        ...

    def settle(self, settlement: Any) -> None:
        """Settle what such a request came to, together with others."""

    def flush(self) -> None:
        """Send what waits to be settled."""

    def close(self) -> None:
        """Give back what is unused and send what waits; from now on nothing is allotted."""


class QueueLane(Protocol):
    """What a queue needs of the lane."""

    @property
    def stopping(self) -> bool:
        """Whether nothing that begins now will be ended."""
        ...

    @property
    def spool(self) -> Spooling | None:
        """Where settlements go that cannot be sent; None: they wait in memory."""
        ...

    @property
    def post(self) -> Callable[[Sequence[bytes], Any], None] | None:
        """Sends a request whose reply goes to a receiver; None while there is no connection."""
        ...

    async def fence(self, key: str) -> int:
        """Fence a producer, waiting for a connection if there is none.

        Returns:
            The last number that it applied; -1 where the store has no record of it.
        """
        ...

    async def replies(self) -> None:
        """Wait for a connection if there is none, and until all that was sent on it is answered."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run in the background until the lane stops; None where it has stopped."""
        ...

    def later(self, after_s: float, do: Callable[[], None]) -> asyncio.TimerHandle:
        """Have something done after some seconds."""
        ...

    def warn(self, message: str) -> None:
        """Say what goes wrong, but not again and again."""

    def compare_all(self) -> None:
        """Have all queues of the lane compare what the store had acknowledged with what it has."""


def resolve(settlement: Settlement, error: Exception | None) -> None:
    """Resolve the waiter of a settlement with its outcome; the first outcome counts."""
    waiter = settlement.waiter
    if waiter is None or waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
