"""Numbered settlements: usage reaches the store exactly once, whatever happens to connections.

As with Kafka's idempotent producers, each *producer* has an id and numbers its settlements: those of one
shard, from one event loop. The script applies a number only if it follows the last one. So no settlement is
applied twice, and none after a gap. Any reply except *ok*, and any lost connection, ends the producer: it is
*fenced*, which closes it for good and returns the last applied number. Later settlements are sent again by a
new producer, in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from itertools import chain
from secrets import token_hex
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

from meterkit.errors import QuantityError, StoreError
from meterkit.redis.connection import ReplyError, pack_each

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from meterkit.decisions.keys import Keys
    from meterkit.redis.connection import CustomerMember
    from meterkit.redis.overdue_timer import OverdueTimer

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
NUMBERED: Final = frozenset({OK, DUPLICATE, REFUSED, DAMAGED, CONFLICT})
"""The settlement's number is used: it is not sent again."""


NEVER_SENT: Final = 2**53 - 1
"""Number of a settlement that was never sent. Its record is only about the producer."""


class NumberedSettlement(Protocol):
    """Settlement of a request, ready to be numbered."""

    waiter: asyncio.Future[None] | None

    @property
    def view(self) -> CustomerMember:
        """Data of its customer, for the shard."""
        ...

    @property
    def slot(self) -> int:
        """Slot of the released holds."""
        ...

    @property
    def customer(self) -> str:
        """Its customer."""
        ...

    def pack(self) -> tuple[bytes, bytes]:
        """The request up to the producer's key, and from there to its place, by the active state."""
        ...

    def on_stale(self, reply: list[Any]) -> None:
        """Handle a newer state of the customer in the store."""

    def on_refused(self, field: bytes) -> None:
        """Handle a settlement that the store can never apply."""

    def on_damaged(self, field: bytes) -> None:
        """Handle a settlement that the store cannot apply because the customer's data are damaged."""

    def on_conflict(self, kept: bytes) -> Exception:
        """Log that the event id has counted another quantity, and make the error for the caller."""
        ...

    def uncounted(self, kept: bytes) -> Self:
        """The part of it that the event id has not counted yet."""
        ...

    def on_notices(self, notices: list[bytes]) -> None:
        """Handle notices: credits whose balance has become low, and lateness."""


class SentRecord(NamedTuple):
    """Former number of a settlement: fencing that producer shows whether it was applied.

    Attributes:
        producer: the producer's key.
        number: the settlement's; :data:`NEVER_SENT`: it was not sent under that producer.
        acknowledged: number of settlements of that producer that the store had acknowledged.
    """

    producer: str
    number: int
    acknowledged: int


class SpoolPort(Protocol):
    """Write-ahead spool: settlements wait on disk while the store is down.

    Attributes:
        overdue: finds settlements to spool.
    """

    overdue: OverdueTimer

    @property
    def kept(self) -> int:
        """Settlements that wait there for this event loop."""
        ...

    @property
    def lost(self) -> int:
        """Those that found no room, or that the store could never apply."""
        ...

    def keep(self, shard: int, settlements: Sequence[tuple[Any, SentRecord | None]]) -> None:
        """Spool settlements of a shard, in order; each waiter is released once its own is on disk."""

    def connected(self) -> None:
        """Send the spooled settlements: the store, or one of its nodes, can be reached."""

    async def flush(self) -> None:
        """Write unwritten settlements, as far as possible."""

    async def close(self) -> Sequence[NumberedSettlement]:
        """Leave spooled settlements to the next start; the ones that could not be written, and are lost."""
        ...


class QueueLane(Protocol):
    """Lane of a queue: that of the event loop, or of one shard of a cluster."""

    @property
    def stopping(self) -> bool:
        """Whether the lane is stopping."""
        ...

    @property
    def spool(self) -> SpoolPort | None:
        """Spool of settlements that cannot be sent; None: they wait in memory."""
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

    async def await_replies(self) -> None:
        """Wait for a connection, and for the replies to all requests sent on it."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run in the background until the lane stops; None where it has stopped."""
        ...

    def call_later(self, after_s: float, do: Callable[[], None]) -> asyncio.TimerHandle:
        """Call a function after some seconds."""
        ...

    def warn(self, message: str) -> None:
        """Log a warning, throttled."""

    def compare_all(self) -> None:
        """Let all queues compare acknowledged settlements with the store's records."""


def resolve(settlement: NumberedSettlement, error: Exception | None) -> None:
    """Resolve the waiter of a settlement with its outcome; the first outcome counts."""
    waiter = settlement.waiter
    if waiter is None or waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)


_log = logging.getLogger("meterkit.store")

_ERROR: Final = -1
_WORDS_AT: Final = 2

_WAITING_MAX: Final = 10_000
_SPILL_AFTER_S: Final = 0.5
"""A settlement that is unacknowledged for two such spans is in the spool, for whatever reason it waits."""
_PAUSE_MAX_S: Final = 1.0
_WINDOW_FIRST: Final = 16
_NO_RECORD: Final = (
    "the store has no record any more of what it had acknowledged: it was restarted without its data, or"
    " evicts keys (its maxmemory-policy must be noeviction)"
)


_TWO_NUMBERS: Final = Struct("<2d")


def pack_sequence(slot: int, sequence: int) -> bytes:
    """Pack a settlement's slot and number: the end of the request before the clock."""
    return b"$16\r\n%b\r\n" % _TWO_NUMBERS.pack(slot, sequence)


@dataclass(slots=True, eq=False)
class Producer:
    """Idempotent producer: numbers settlements until it is fenced.

    Attributes:
        acknowledged: number of settlements that the store has acknowledged.
        inflight: settlements sent and not answered yet.
        unapplied: settlements that the store answered and did not apply, and all sent after them.
        failed: error of the script for one of them, by its position in ``unapplied``.
        answers: reply of each numbered one among them, likewise: numbered ones are not sent again.
        unanswered: settlements sent over a connection that has ended: applied or not.
    """

    queue: SettlementQueue
    key: str
    packed_key: bytes = field(init=False)
    sequence: int = 0
    acknowledged: int = 0
    inflight: deque[NumberedSettlement] = field(default_factory=deque["NumberedSettlement"])
    unapplied: list[NumberedSettlement] = field(default_factory=list["NumberedSettlement"])
    failed: dict[int, str] = field(default_factory=dict[int, str])
    answers: dict[int, list[Any]] = field(default_factory=dict[int, "list[Any]"])
    unanswered: list[NumberedSettlement] = field(default_factory=list["NumberedSettlement"])

    def __post_init__(self) -> None:
        self.packed_key = pack_each([self.key])

    @property
    def unsettled(self) -> list[NumberedSettlement]:
        """Unacknowledged settlements, in the order in which they were sent."""
        return [*self.unapplied, *self.unanswered, *self.inflight]

    def received(self, reply: list[Any] | Exception | bytes | int | None) -> None:
        """Match a reply with the oldest settlement in flight."""
        if not self.inflight:
            return  # An abandoned connection still answers; fencing decides.
        settlement = self.inflight.popleft()
        is_applied = isinstance(reply, int)
        if is_applied and settlement.waiter is None and not self.unapplied:
            # Shortcut: nearly all replies are like this.
            self.acknowledged += 1
            self.queue.pause_s = 0.0
            return
        answer: list[Any] = [OK] if is_applied else reply if isinstance(reply, list) and reply else [_ERROR]
        code = answer[0]
        if self.unapplied or code not in NUMBERED:
            if isinstance(reply, ReplyError) and reply.of_script:
                self.failed[len(self.unapplied)] = str(reply)
            elif code == DAMAGED:
                self.failed[len(self.unapplied)] = f"field {answer[1].decode()} is not a whole number"
            elif code in NUMBERED:
                self.answers[len(self.unapplied)] = answer
            # The remaining meters are sent again in its place.
            self.unapplied.append(settlement.uncounted(answer[2]) if code == PARTLY else settlement)
            if code == STALE:
                self.queue.update_state(settlement, answer)
            self.queue.restart(reply)
            return
        self.acknowledged += 1
        self.queue.pause_s = 0.0
        end_numbered(settlement, answer)


def end_numbered(settlement: NumberedSettlement, answer: list[Any]) -> None:
    """Report the outcome of a settlement that the store has numbered, and will not apply again."""
    code = answer[0]
    if code == REFUSED:
        resolve(settlement, QuantityError("not recorded: the period's total would pass 9 * 10^15"))
        settlement.on_refused(answer[1])
    elif code == DAMAGED:
        why = f"not recorded: field {answer[1].decode()} in the store is not a whole number"
        resolve(settlement, StoreError(why, executed=False))
        settlement.on_damaged(answer[1])
    elif code == CONFLICT:
        resolve(settlement, settlement.on_conflict(answer[2]))
    resolve(settlement, None)
    if code == OK and len(answer) > _WORDS_AT:
        settlement.on_notices(answer[_WORDS_AT:])


@dataclass(slots=True, eq=False)
class SettlementQueue:
    """Queue of one shard's settlements from one event loop.

    Attributes:
        lost: settlements that the store acknowledged and then lost, or that the queue had no room for.
        pause_s: pause before the next recovery; it grows while nothing gets through.
    """

    lane: QueueLane
    keys: Keys
    shard: int
    _is_recovering: bool = field(default=False, init=False)
    _recovery: asyncio.Task[None] | None = field(default=None, init=False)
    _is_down: bool = field(default=False, init=False)
    _is_suspect: bool = field(default=False, init=False)
    _spilled: dict[str, int] = field(default_factory=dict[str, int], init=False)
    _is_watched: bool = field(default=False, init=False)
    _oldest: NumberedSettlement | None = field(default=None, init=False)
    lost: int = field(default=0, init=False)
    pause_s: float = field(default=0.0, init=False)
    waiting: deque[NumberedSettlement] = field(default_factory=deque["NumberedSettlement"], init=False)
    producer: Producer = field(init=False)

    def __post_init__(self) -> None:
        self.producer = self._new_producer()

    @property
    def unsettled(self) -> int:
        """Settlements that the store has not acknowledged."""
        producer = self.producer
        return len(self.waiting) + len(producer.inflight) + len(producer.unapplied) + len(producer.unanswered)

    def settle(self, settlement: NumberedSettlement) -> None:
        """Number a settlement and send it, or keep it until it can be sent."""
        lane, spool = self.lane, self.lane.spool
        if settlement.view.is_deleted:
            resolve(settlement, None)
        elif self._is_down and spool is not None and lane.post is None and not lane.stopping:
            # Shortcut: in an outage nearly all are spooled, after those before them.
            spool.keep(self.shard, [(settlement, None)])
        elif not self._is_recovering and self._send(settlement):
            pass
        elif lane.stopping:
            self._drop_settlement(settlement, "it came after the kit was stopped")
        elif len(self.waiting) >= _WAITING_MAX and spool is None:
            self._drop_settlement(
                settlement, f"{_WAITING_MAX} settlements of shard {self.shard} wait for the store"
            )
        else:
            self.waiting.append(settlement)
            if self._is_down or len(self.waiting) > _WAITING_MAX:
                self.spill()
            elif not self._is_watched:
                self._watch()
            self.restart(None)

    def spill(self) -> None:
        """Move unacknowledged settlements to the spool, if there is one."""
        spool, producer = self.lane.spool, self.producer
        if spool is None or not self.unsettled:
            return
        # Its late replies are dropped: fencing decides about those that were not answered.
        sent = [
            (settlement, SentRecord(producer.key, producer.acknowledged + place + 1, producer.acknowledged))
            for place, settlement in enumerate(producer.unsettled)
            if not self._is_ended(producer, place, settlement)
        ]
        kept: list[tuple[NumberedSettlement, SentRecord | None]] = [
            *sent,
            *((settlement, None) for settlement in self.waiting),
        ]
        if producer.acknowledged:
            self._spilled[producer.key] = producer.acknowledged
            if kept and not sent:
                # If this process ends before it can compare, the process that sends the spool compares.
                kept[0] = (kept[0][0], SentRecord(producer.key, NEVER_SENT, producer.acknowledged))
        for left in (producer.inflight, producer.unapplied, producer.unanswered, self.waiting):
            left.clear()
        if producer.sequence:
            self.producer = self._new_producer()
        if self._recovery is not None:
            self._recovery.cancel()
            self._recovery, self._is_recovering = None, False
        spool.keep(self.shard, kept)

    def restart(self, why: Any) -> None:
        """Recover with a new producer."""
        if not self._is_recovering and (self.unsettled or self._is_to_be_compared):
            if isinstance(why, Exception):
                self.lane.warn(f"settlements are sent again: {why}")
            self._recovery = self.lane.spawn(self._recover())
            self._is_recovering = self._recovery is not None

    @property
    def is_comparing(self) -> bool:
        """Whether the store's record is being compared with what it had acknowledged, or is still to be."""
        return self._is_recovering or self._is_to_be_compared

    @property
    def _is_to_be_compared(self) -> bool:
        return self._is_suspect and bool(self.producer.acknowledged or self._spilled)

    def compare(self) -> None:
        """Compare the acknowledged high-water marks with the store's records, and count lost settlements.

        Runs for each new connection, which may lead to a restored store or to another server. Fencing returns
        the last number; a new producer continues.
        """
        if self.producer.acknowledged or self._spilled:
            self._is_suspect = True
            self.restart(None)

    def update_state(self, settlement: NumberedSettlement, reply: list[Any]) -> None:
        """Update the customer's state from a stale reply."""
        try:
            settlement.on_stale(reply)
        except StoreError as error:  # Sent again until the state can be read.
            self.lane.warn(f"usage is recorded later: {error}")

    def disconnected(self) -> None:
        """Handle a lost connection: settlements in flight will not be answered."""
        producer, self._is_down = self.producer, False
        if producer.inflight:
            producer.unanswered += producer.inflight
            producer.inflight.clear()
            self.restart(None)

    def resume(self) -> None:
        """Restart a recovery whose task was cancelled, as at the end of a loop."""
        if self._recovery is not None and self._recovery.done():
            self._is_recovering = False
        if self.waiting or self.producer.unapplied or self.producer.unanswered or self._is_to_be_compared:
            self.restart(None)

    def renew(self) -> None:
        """Renew the producer before its record in the store expires."""
        if self.producer.acknowledged:
            self.compare()
        elif self.unsettled:
            self.restart(None)
        elif self.producer.sequence:
            self.producer = self._new_producer()

    def abandon(self) -> list[NumberedSettlement]:
        """Abandon unacknowledged settlements; returns them."""
        left = [*self.producer.unsettled, *self.waiting]
        for settlement in left:
            resolve(settlement, StoreError("the kit was stopped before the store answered"))
        self.waiting.clear()
        self.producer = self._new_producer()
        return left

    def _send(self, settlement: NumberedSettlement) -> bool:
        post = self.lane.post
        if post is None:
            return False
        try:
            head, tail = settlement.pack()
        except Exception as error:  # noqa: BLE001 - no error may stop later settlements
            self._drop_settlement(settlement, f"it cannot be packed: {error!r}")
            return True
        producer = self.producer
        # Before any other object is made: the garbage collector may end a queue, which settles, too.
        sequence = producer.sequence = producer.sequence + 1
        producer.inflight.append(settlement)
        post((head, producer.packed_key, tail, pack_sequence(settlement.slot, sequence)), producer)
        if not self._is_watched:
            self._watch()
        return True

    def _watch(self) -> None:
        """Register with the event loop's timer, which calls :meth:`spill_if_overdue`."""
        if self.lane.spool is not None:
            self._is_watched = True
            self.lane.spool.overdue.watch(self, after_s=_SPILL_AFTER_S)

    def spill_if_overdue(self) -> None:
        """Spill if the oldest unacknowledged settlement was the oldest at the last look, too."""
        before, self._oldest, self._is_watched = self._oldest, self._find_oldest(), False
        if self._oldest is None or self.lane.stopping:
            return
        if self._oldest is before:
            # While disconnected, settlements are spooled at once from now on.
            self._is_down, self._oldest = self.lane.post is None, None
            self.spill()
        else:
            self._watch()

    def _find_oldest(self) -> NumberedSettlement | None:
        """Oldest unacknowledged settlement; None: all are acknowledged."""
        producer = self.producer
        return next(chain(producer.unapplied, producer.unanswered, producer.inflight, self.waiting), None)

    async def _recover(self) -> None:
        try:
            while True:
                try:
                    await self._send_unsettled()
                except Exception as error:  # noqa: BLE001 - waiting settlements must be retried
                    self.lane.warn(f"settlements could not be sent, they are sent again: {error!r}")
                    await asyncio.sleep(_PAUSE_MAX_S)
                else:
                    return
        finally:
            if self._recovery is asyncio.current_task():
                self._is_recovering = False

    async def _send_unsettled(self) -> None:
        window = _WINDOW_FIRST
        while True:
            for key, acknowledged in list(self._spilled.items()):
                last = await self.lane.fence(key)
                self._spilled.pop(key, None)
                self._count_forgotten(acknowledged, last)
            producer, is_suspect = self.producer, self._is_suspect and self.producer.acknowledged > 0
            self._is_suspect = False
            if producer.unapplied or producer.unanswered or producer.inflight or is_suspect:
                await asyncio.sleep(self.pause_s)
                self.pause_s = min(_PAUSE_MAX_S, 2 * self.pause_s or 0.01)
                # Replies come in order: after this one, all earlier requests are answered.
                self._resolve_fenced(producer, await self.lane.fence(producer.key))
                window = _WINDOW_FIRST
            for _ in range(min(window, len(self.waiting))):
                if not self._send(self.waiting[0]):
                    break
                self.waiting.popleft()
            if not self.waiting and not self._is_to_be_compared:
                return
            # A few at first: if one of them is stale, all after it are sent again.
            await self.lane.await_replies()
            window *= 2

    def _resolve_fenced(self, producer: Producer, last: int) -> None:
        acknowledged = producer.acknowledged
        self.producer = self._new_producer()
        if last < 0 < acknowledged:
            # It is not known whether the rest was applied: in doubt it is not billed.
            unknown = (*producer.unanswered, *producer.inflight)
            retried = [
                settlement
                for place, settlement in enumerate(producer.unapplied)
                if not self._is_ended(producer, place, settlement)
            ]
            self.waiting.extendleft(reversed(retried))
            for settlement in unknown:
                resolve(settlement, StoreError(f"it is not known whether this is recorded: {_NO_RECORD}"))
            self._count_forgotten(acknowledged, last, len(unknown))
            return
        unapplied = producer.unsettled
        applied = max(0, last - acknowledged)
        # Later ones were lost as well: scripts are applied, and lost, in order.
        self._count_forgotten(acknowledged, last)
        retried = list[NumberedSettlement]()
        for place, settlement in enumerate(unapplied):
            if place >= applied and place not in producer.failed:
                retried.append(settlement)
            elif not self._is_ended(producer, place, settlement):
                resolve(settlement, None)
        self.waiting.extendleft(reversed(retried))

    def _is_ended(self, producer: Producer, place: int, settlement: NumberedSettlement) -> bool:
        """Report the outcome of an unsettled settlement, if the store's answer is final."""
        if place in producer.failed:
            # Its number may be used up, and a retry would fail again, before all others.
            self._drop_settlement(
                settlement, f"that of {settlement.customer!r} failed: {producer.failed[place]}"
            )
        elif place in producer.answers:
            end_numbered(settlement, producer.answers[place])
        return place in producer.failed or place in producer.answers

    def _drop_settlement(self, settlement: NumberedSettlement, why: str) -> None:
        resolve(settlement, StoreError(f"not recorded: {why}", executed=False))
        self._count_lost(1, why)

    def _count_forgotten(self, acknowledged: int, last: int, unknown: int = 0) -> None:
        """Count acknowledged settlements of a producer beyond the last number in the store."""
        lost = acknowledged - max(0, last) + unknown
        if lost > 0:
            self._count_lost(lost, _NO_RECORD if last < 0 else "the store lost what it had acknowledged")
            # The store was emptied or restored, maybe under connections that have lasted.
            self.lane.compare_all()

    def _count_lost(self, count: int, why: str) -> None:
        self.lost += count
        _log.error("settlements lost: %d (%d so far from shard %d): %s", count, self.lost, self.shard, why)

    def _new_producer(self) -> Producer:
        return Producer(self, self.keys.producer(self.shard, token_hex(8)))
