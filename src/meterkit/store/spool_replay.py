"""Replay of spools: send each settlement of a spool file to the store; the store applies it once.

A record holds usage, customer and time; the plan active at replay decides the rest.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from meterkit.decisions.keys import shard_of
from meterkit.decisions.packed import EventMark
from meterkit.decisions.periods import iso
from meterkit.errors import StoreError
from meterkit.redis import settlement_queue as replies
from meterkit.redis.connection import ReplyError, pack_each
from meterkit.redis.settlement_queue import NEVER_SENT, SentRecord, pack_sequence
from meterkit.store.script_arguments import parse_holds, serialize_holds
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities, RateCorrection, RepeatMark, UsedQuantities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meterkit.decisions.keys import Keys
    from meterkit.redis.settlement_queue import QueueLane
    from meterkit.store.views import CustomerCache

_NUMBERED_BYTES: Final = 64
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode


class SpoolRecord(NamedTuple):
    """One record of a spool.

    Attributes:
        number: number of its settlement, by the file's producer in its shard.
        settlement: settlement to apply.
        sent: producer and number of an earlier try, which may have been applied; None: none.
    """

    number: int
    settlement: Settlement
    sent: SentRecord | None


def write_record(settlement: Settlement, number: int, at_ms: int, sent: SentRecord | None) -> bytes:
    """Serialize a settlement as a record.

    Args:
        settlement: settlement to apply.
        number: see :class:`SpoolRecord`.
        at_ms: time of the settlement.
        sent: see :class:`SpoolRecord`.
    """
    before = b"" if sent is None else b',"sent":' + _to_json(sent).encode()
    return b'{"n":%d,"at":%d%b,%b' % (
        number,
        at_ms,
        before,
        settlement.spooled or _dump_settlement(settlement),
    )


def estimate_size(settlement: Settlement) -> int:
    """Estimated bytes of its record."""
    return _NUMBERED_BYTES + len(settlement.spooled or _dump_settlement(settlement))


def _dump_settlement(settlement: Settlement) -> bytes:
    """End of a record, cached: it is the same whenever the settlement happens, and most are reused."""
    held, used, correction, mark = settlement.held, settlement.used, settlement.correction, settlement.mark
    event = settlement.event
    found: dict[str, Any] = {"c": settlement.customer}
    more: dict[str, Any] = {
        "anonymous": settlement.view.anonymous,
        "occurred": settlement.occurred_ms,
        "recorded": dict(used.recorded),
        "rated": dict(used.rated),
        "measured": None if used.measured is None else dict(used.measured),
        "dimensions": dict(used.dimensions),
        "costs": dict(used.costs),
        "version": used.version if used.costs else "",
        "units": dict(used.units),
        "held": [dict(held.quantities), held.concurrency, held.slot, dict(held.costs)]
        if held != HeldQuantities()
        else None,
        "correction": [dict(correction.reserved), sorted(correction.rates), correction.at_ms]
        if correction.reserved
        else None,
        "subjects": None if settlement.view.subjects is None else settlement.view.subjects.given,
        "held_of_subjects": serialize_holds(held.subjects),
        "event": None if event is None else event.key,
        "event_id": None if event is None else event.event_id,
        "given": None if event is None else dict(event.quantities),
        "mark": mark,
    }
    # An empty ``measured`` differs from None.
    found.update(
        {name: value for name, value in more.items() if value or (name == "measured" and value is not None)}
    )
    settlement.spooled = end = _to_json(found).encode()[1:]
    return end


def read_record(record: bytes, cache: CustomerCache) -> SpoolRecord:
    """Inverse of :func:`write_record`; the newest state decides its terms when it is sent.

    Raises:
        ValueError, KeyError, TypeError: it is no record of this release.
    """
    from_json = cast("dict[str, Any]", json.loads(record))
    get = from_json.get
    held, correction, mark, sent, key = (
        get(name) for name in ("held", "correction", "mark", "sent", "event")
    )
    settlement = Settlement(
        cache.get(
            from_json["c"],
            anonymous=bool(get("anonymous")),
            subjects=tuple((kind, subject) for kind, subject in get("subjects", ())),
        ),
        held=HeldQuantities()
        if held is None
        else HeldQuantities(held[0], tuple(held[1]), *held[2:])._replace(
            subjects=parse_holds(get("held_of_subjects", {}))
        ),
        used=UsedQuantities(
            *(get("recorded", {}), get("rated", {}), get("dimensions", {}), get("measured")),
            costs=get("costs", {}),
            units=get("units", {}),
            version=get("version", ""),
        ),
        correction=RateCorrection()
        if correction is None
        else RateCorrection(correction[0], frozenset(correction[1]), correction[2]),
        event=None if key is None else EventMark(key, get("event_id", ""), get("given", {})),
        occurred_ms=get("occurred", from_json["at"]),
        rated_ms=from_json["at"],
        mark=None if mark is None else RepeatMark(*mark),
    )
    return SpoolRecord(from_json["n"], settlement, None if sent is None else SentRecord(*sent))


_log = logging.getLogger("meterkit.store")
_WINDOW: Final = 128  # Settlements in flight at once: requests wait behind them.
_PAUSE_FIRST_S: Final = 0.01
_PAUSE_MAX_S: Final = 1.0


class UnknownCounterError(Exception):
    """A record has usage of counters that the plans file of this process lacks."""


class RewindError(Exception):
    """The store has lost the last settlements that it had applied: all are sent again."""


@dataclass(slots=True, eq=False)
class CountedLosses:
    """Losses that are counted: a replay that was interrupted begins again, and counts none twice.

    Attributes:
        single: producer and number of a lost settlement.
        until: by producer, the number up to which all are lost.
    """

    single: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    until: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, producer: str, number: int) -> bool:
        """Count one settlement; whether it is a new loss."""
        is_new = number > self.until.get(producer, 0) and (producer, number) not in self.single
        self.single.add((producer, number))
        return is_new

    def add_until(self, producer: str, number: int) -> int:
        """Count all settlements up to a number; how many of them are new losses."""
        before = self.until.get(producer, 0)
        known = sum(name == producer and before < one <= number for name, one in self.single)
        self.until[producer] = max(before, number)
        return max(0, number - before - known)


@dataclass(slots=True, eq=False)
class _Transfer:
    """A record in flight.

    Attributes:
        unknown: its usage of meters that the plans file lacks, which is not sent.
        begins: whether the producer goes on at its number, although the store has no record of those before.
        is_done: whether it is not sent again, but waits for those before it.
    """

    number: int
    shard: int
    settlement: Settlement
    sent: SentRecord | None
    unknown: Mapping[str, int] = field(default_factory=dict[str, int])
    reply: Any = None
    begins: bool = False
    is_done: bool = False

    @property
    def is_numbered(self) -> bool:
        """Whether its number is used, or may be, by the reply."""
        reply = self.reply
        if isinstance(reply, ReplyError):
            return reply.of_script
        return bool(reply) and reply[0] in replies.NUMBERED

    def received(self, reply: Any) -> None:
        """Store the reply; a plain number is the time at which the settlement was applied."""
        self.reply = [replies.OK, reply] if isinstance(reply, int) else reply

    def make_empty(self) -> _Transfer:
        """Empty settlement with this number."""
        return _Transfer(self.number, self.shard, Settlement(self.settlement.view), None)


@dataclass(eq=False)
class SpoolReplay:
    """Sends the records of one spool.

    The file's producer numbers them from 1 in each shard: settlements applied before are *duplicates*. If a
    settlement was sent before it was spooled, its earlier producer is fenced, which tells whether it was
    applied; then an empty settlement gets its number.

    Args:
        producer: of the file.
        lane_of: the lane of a shard.
        cache: customers by the current plans file.
        keys: names of keys.
        is_same_loop: whether this event loop wrote the records: then its queues count the acknowledged
            settlements that the store has lost.
        counted_losses: those of earlier replays of this process, too.

    Attributes:
        done: last applied number of each shard.
        lost: number of settlements that can never be applied, or that the store has lost.
    """

    producer: str
    lane_of: Callable[[int], QueueLane]
    cache: CustomerCache
    keys: Keys
    is_same_loop: bool = False
    leaves_unknown: bool = False
    counted_losses: CountedLosses = field(default_factory=CountedLosses)
    _fenced: dict[str, int] = field(default_factory=dict[str, int], init=False)
    done: dict[int, int] = field(default_factory=dict[int, int], init=False)
    lost: int = field(default=0, init=False)

    async def send(self, records: Sequence[bytes]) -> None:
        """Send records, in order.

        Raises:
            StoreError: the store is down again; applied settlements stay.
            RewindError: the records before these must be sent again.
            UnknownCounterError: this process leaves the rest to another one.
        """
        for at in range(0, len(records), _WINDOW):
            transfers = [self._read_transfer(record) for record in records[at : at + _WINDOW]]
            await self._apply([await self._skip_applied(transfer) for transfer in transfers])

    def _read_transfer(self, record: bytes) -> _Transfer:
        try:
            number, settlement, sent = read_record(record, self.cache)
            settlement, unknown = settlement.split_unknown()
        except Exception as error:  # noqa: BLE001 - the records behind it must be applied
            found = json.loads(record)
            customer = str(found["c"])
            nothing = Settlement(self.cache.get(customer))
            transfer = _Transfer(found["n"], nothing.view.shard, nothing, None)
            self._lose(transfer, f"that of {customer!r} cannot be read: {error!r}")
            return transfer
        if self.leaves_unknown and any(unknown.values()):
            raise UnknownCounterError(", ".join(sorted(unknown)))
        return _Transfer(number, settlement.view.shard, settlement, sent, unknown)

    async def _skip_applied(self, transfer: _Transfer) -> _Transfer:
        """The transfer, or an empty one if it was applied before it was spooled."""
        sent = transfer.sent
        if sent is None:
            return transfer
        last = self._fenced.get(sent.producer)
        if last is None:
            last = self._fenced[sent.producer] = await self.lane_of(transfer.shard).fence(sent.producer)
            lost = sent.acknowledged - max(0, last)
            is_counted = self.is_same_loop or lost <= 0
            if not is_counted and self.counted_losses.add(sent.producer, sent.acknowledged):
                self._log_lost(lost, "the store lost what it had acknowledged")
        if sent.number == NEVER_SENT:
            return transfer
        if last < 0 < sent.acknowledged:
            # Whether it was applied is unknown: in doubt it is not billed, as in the queue.
            self._lose(transfer, "the store has no record any more of what it had acknowledged")
            return transfer.make_empty()
        return transfer.make_empty() if sent.number <= last else transfer

    async def _apply(self, transfers: list[_Transfer]) -> None:
        pause_s = _PAUSE_FIRST_S
        while transfers:
            before = len(transfers)
            for transfer in transfers:
                if not transfer.is_done:
                    self._post(transfer)
            lanes = {self.lane_of(shard) for shard in {transfer.shard for transfer in transfers}}
            await asyncio.gather(*(lane.await_replies() for lane in lanes))
            transfers = await self._find_unapplied(transfers)
            if len(transfers) >= before:
                await asyncio.sleep(pause_s)
                pause_s = min(_PAUSE_MAX_S, 2 * pause_s)

    def _post(self, transfer: _Transfer) -> None:
        post = self.lane_of(transfer.shard).post
        if post is None:
            raise StoreError("the store is down again", executed=False)
        try:
            head, tail = transfer.settlement.pack()
        except Exception as error:  # noqa: BLE001 - the records behind it must be applied
            self._lose(transfer, f"that of {transfer.settlement.customer!r} cannot be packed: {error!r}")
            transfer.settlement = Settlement(transfer.settlement.view)
            head, tail = transfer.settlement.pack()
        producer = pack_each([self._producer_of(transfer)])
        transfer.reply = None
        number = -transfer.number if transfer.begins else transfer.number
        post((head, producer, tail, pack_sequence(transfer.settlement.slot, number)), transfer)

    async def _find_unapplied(self, transfers: Iterable[_Transfer]) -> list[_Transfer]:
        """Transfers not applied yet: in each shard, all from the first such one."""
        left: list[_Transfer] = []
        behind: set[int] = set()
        for transfer in transfers:
            is_behind = transfer.shard in behind
            if is_behind and not transfer.is_numbered:
                left.append(transfer)
                continue
            retried = [] if transfer.is_done else await self._read_reply(transfer)
            if is_behind:
                # Sent again it would be a duplicate, which does not say what became of it.
                transfer.is_done = not retried
                left += retried or [transfer]
            elif retried:
                behind.add(transfer.shard)
                left += retried
            else:
                self.done[transfer.shard] = transfer.number
        return left

    async def _read_reply(self, transfer: _Transfer) -> list[_Transfer]:
        """Transfers to send again instead of this one; empty: it is done."""
        if isinstance(transfer.reply, ReplyError):
            return await self._handle_error(transfer, transfer.reply)
        settlement = transfer.settlement
        answer: list[Any] | None = transfer.reply
        if not answer:
            raise StoreError("the store is down again", executed=None)
        match answer[0]:
            case replies.OK | replies.DUPLICATE:
                if answer[0] == replies.OK and any(transfer.unknown.values()):
                    self._log_unknown(transfer)
                settlement.on_notices(answer[2:])
            case replies.REFUSED:
                self._lose(transfer, f"that of {settlement.customer!r} can never be recorded")
                settlement.on_refused(answer[1])
            case replies.DAMAGED:
                self._lose(transfer, f"that of {settlement.customer!r} cannot be recorded")
                settlement.on_damaged(answer[1])
            case replies.STALE:
                settlement.on_stale(answer)
                return [transfer]
            case replies.CONFLICT:
                why = f"that of {settlement.customer!r} is refused: its event_id was used otherwise"
                self._lose(transfer, why)
                settlement.on_conflict(answer[2])
            case replies.PARTLY:
                transfer.settlement = settlement.uncounted(answer[2])
                return [transfer]
            case replies.GAP if not answer[1]:
                # The store has lost the producer's number: earlier settlements may be applied, or not.
                lost = self.counted_losses.add_until(self._producer_of(transfer), transfer.number - 1)
                if lost:
                    self._log_lost(lost, "the store has no record any more of what it had applied")
                transfer.begins = True
                return [transfer]
            case replies.GAP:
                raise RewindError
            case _:
                raise StoreError(f"the store does not take what was spooled: {answer}", executed=False)
        return []

    async def _handle_error(self, transfer: _Transfer, reply: ReplyError) -> list[_Transfer]:
        if not reply.of_script:
            # Fencing waits until the store serves, and loads lost scripts.
            await self.lane_of(transfer.shard).fence(self.keys.producer(transfer.shard, f"{self.producer}-0"))
            return [transfer]
        # Sent again it would fail again, or be a duplicate if its number was used.
        self._lose(transfer, f"that of {transfer.settlement.customer!r} failed: {reply}")
        empty = Settlement(self.cache.get(self._find_unused_customer(transfer.shard)))
        return [_Transfer(transfer.number, transfer.shard, empty, None, begins=transfer.begins)]

    def _find_unused_customer(self, shard: int) -> str:
        """Find an unused customer id in a shard, whose counters cannot be damaged.

        An empty settlement leaves an empty counter for it, which expires.
        """
        names = (f"{self.producer}-{nth}" for nth in count())
        return next(name for name in names if shard_of(name, self.keys.shards) == shard)

    def _log_unknown(self, transfer: _Transfer) -> None:
        settlement = transfer.settlement
        at = iso(datetime.fromtimestamp((settlement.occurred_ms or 0) / 1000, UTC))
        self._lose(
            transfer,
            f"{dict(transfer.unknown)!r} of {settlement.customer!r}, used at {at}: this process's plans file"
            " has no such counter; once it has one, record this by hand",
        )

    def _producer_of(self, transfer: _Transfer) -> str:
        return self.keys.producer(transfer.shard, self.producer)

    def _lose(self, transfer: _Transfer, why: str) -> None:
        if self.counted_losses.add(self._producer_of(transfer), transfer.number):
            self._log_lost(1, why)

    def _log_lost(self, number: int, why: str) -> None:
        self.lost += number
        _log.error("settlements of a spool lost: %d: %s", number, why)
