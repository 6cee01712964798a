"""Replay of spools: send each settlement of a spool file to the store; the store applies it once.

A record holds what was used, by which customer and when; the plan in force at replay decides the rest.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from meterkit.decisions.event_marks import EventMark
from meterkit.decisions.keys import shard_of
from meterkit.errors import StoreError
from meterkit.redis import settlement_queue as replies
from meterkit.redis.connection import ReplyError, pack_each
from meterkit.redis.settlement_queue import NEVER_SENT, SentRecord, pack_sequence
from meterkit.store.request_subjects import parse_holds, serialize_holds
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities, RateCorrection, RepeatMark, UsedQuantities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meterkit.decisions.keys import Keys
    from meterkit.redis.settlement_queue import QueueLane
    from meterkit.store.views import CustomerCache

_NUMBERED_BYTES: Final = 64
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode


class SpoolRecord(NamedTuple):
    """One record of a spool.

    Attributes:
        number: that its settlement is sent under, by its shard's producer of the file.
        settlement: what is to be applied.
        sent: under which producer and number it was sent before, if it was: it may have been applied.
    """

    number: int
    settlement: Settlement
    sent: SentRecord | None


def write_record(settlement: Settlement, number: int, at_ms: int, sent: SentRecord | None) -> bytes:
    """A settlement as a record.

    Args:
        settlement: what is to be applied.
        number: see :class:`SpoolRecord`.
        at_ms: when it happened.
        sent: see :class:`SpoolRecord`.
    """
    before = b"" if sent is None else b',"sent":' + _to_json(sent).encode()
    return b'{"n":%d,"at":%d%b,%b' % (number, at_ms, before, settlement.spooled or _unnumbered(settlement))


def estimate_size(settlement: Settlement) -> int:
    """About how many bytes its record takes."""
    return _NUMBERED_BYTES + len(settlement.spooled or _unnumbered(settlement))


def _unnumbered(settlement: Settlement) -> bytes:
    """The end of a record: what is the same whenever the settlement happens. Most happen again and again."""
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
        "spent": dict(settlement.spent or {}),
        "held_of_subjects": serialize_holds(held.subjects),
        "event": None if event is None else event.key,
        "event_id": None if event is None else event.event_id,
        "given": None if event is None else dict(event.quantities),
        "mark": mark,
    }
    # Measured nothing is not the same as not told apart.
    found.update(
        {name: value for name, value in more.items() if value or (name == "measured" and value is not None)}
    )
    settlement.spooled = end = _to_json(found).encode()[1:]
    return end


def read_record(record: bytes, cache: CustomerCache) -> SpoolRecord:
    """The inverse of :func:`write_record`; its terms follow from the state in force when it is sent.

    Raises:
        ValueError, KeyError, TypeError: it is not what this release writes.
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
        spent=get("spent", {}),
        used=UsedQuantities(
            *(get("recorded", {}), get("rated", {}), get("dimensions", {}), get("measured")),
            costs=get("costs", {}),
            units=get("units", {}),
            version=get("version", ""),
        ),
        correction=RateCorrection()
        if correction is None
        else RateCorrection(correction[0], frozenset(correction[1]), correction[2]),
        # A record of an earlier release has the key alone: the id counts once, whatever it is given with.
        event=None if key is None else EventMark(key, get("event_id", ""), get("given", {})),
        occurred_ms=get("occurred", from_json["at"]),
        rated_ms=from_json["at"],
        mark=None if mark is None else RepeatMark(*mark),
    )
    return SpoolRecord(from_json["n"], settlement, None if sent is None else SentRecord(*sent))


_log = logging.getLogger("meterkit.store")
_WINDOW: Final = 128  # Requests wait behind so many at most.
_PAUSE_FIRST_S: Final = 0.01
_PAUSE_MAX_S: Final = 1.0


class RewindError(Exception):
    """The store has lost the last of what it had applied: all is sent again, from the beginning."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A record on its way."""

    number: int
    shard: int
    settlement: Settlement
    sent: SentRecord | None
    reply: Any = None

    def received(self, reply: Any) -> None:
        """Take the store's reply."""
        self.reply = reply

    def blank(self, number: int | None = None) -> _Entry:
        """What takes this one's number, or one before it, and changes nothing."""
        return _Entry(number or self.number, self.shard, Settlement(self.settlement.view), None)


@dataclass(eq=False)
class SpoolReplay:
    """Sends the records of one spool.

    They are numbered by the file's own producer, in each shard from 1: what was applied before is a
    *duplicate*. Of a settlement that had been sent before it came into the spool, its producer of then is
    fenced first, which tells whether it was applied; its number is taken by one that changes nothing.

    Args:
        producer: the file's.
        lane_of: the way of a shard's settlements.
        cache: the customers, by the plans file of now.
        keys: names of keys.
        is_own: whether this event loop wrote the records: its queues count what the store had acknowledged
            and has lost.

    Attributes:
        done: in each shard, the last number that the store has.
        lost: settlements that it can never apply, or has lost.
    """

    producer: str
    lane_of: Callable[[int], QueueLane]
    cache: CustomerCache
    keys: Keys
    is_own: bool = False
    _fenced: dict[str, int] = field(default_factory=dict[str, int], init=False)
    done: dict[int, int] = field(default_factory=dict[int, int], init=False)
    lost: int = field(default=0, init=False)

    async def send(self, records: Sequence[bytes]) -> None:
        """Have records applied, in order.

        Raises:
            StoreError: the store is away again; what was applied stays.
            RewindError: the records before these are to be sent again.
        """
        for at in range(0, len(records), _WINDOW):
            entries = [self._entry(record) for record in records[at : at + _WINDOW]]
            await self._apply([await self._unless_applied(entry) for entry in entries])

    def _entry(self, record: bytes) -> _Entry:
        try:
            number, settlement, sent = read_record(record, self.cache)
            return _Entry(number, settlement.view.shard, settlement, sent)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others behind it are to be applied
            found = json.loads(record)
            customer = str(found["c"])
            self._lose(1, f"that of {customer!r} cannot be read: {error!r}")
            nothing = Settlement(self.cache.get(customer))
            return _Entry(found["n"], shard_of(customer, self.keys.shards), nothing, None)

    async def _unless_applied(self, entry: _Entry) -> _Entry:
        """An entry, or what takes its number where it was applied before it came into the spool."""
        sent = entry.sent
        if sent is None:
            return entry
        last = self._fenced.get(sent.producer)
        if last is None:
            last = self._fenced[sent.producer] = await self.lane_of(entry.shard).fence(sent.producer)
            if last < sent.acknowledged and not self.is_own:
                self._lose(sent.acknowledged - max(0, last), "the store lost what it had acknowledged")
        if sent.number == NEVER_SENT:
            return entry
        if last < 0 < sent.acknowledged:
            # As in the queue: whether it was applied is unknown, and in doubt it is not billed.
            self._lose(1, "the store has no record any more of what it had acknowledged")
            return entry.blank()
        return entry.blank() if sent.number <= last else entry

    async def _apply(self, entries: list[_Entry]) -> None:
        pause_s = _PAUSE_FIRST_S
        while entries:
            before = len(entries)
            for entry in entries:
                self._post(entry)
            for shard in dict.fromkeys(entry.shard for entry in entries):
                await self.lane_of(shard).await_replies()
            entries = await self._left(entries)
            if len(entries) >= before:
                await asyncio.sleep(pause_s)
                pause_s = min(_PAUSE_MAX_S, 2 * pause_s)

    def _post(self, entry: _Entry) -> None:
        post = self.lane_of(entry.shard).post
        if post is None:
            raise StoreError("the store is away again", executed=False)
        try:
            head, tail = entry.settlement.pack()
        except Exception as error:  # noqa: BLE001 - a meter may be gone from the plans file, for example
            self._lose(1, f"that of {entry.settlement.customer!r} cannot be packed: {error!r}")
            entry.settlement = Settlement(entry.settlement.view)
            head, tail = entry.settlement.pack()
        producer = pack_each([self.keys.producer(entry.shard, self.producer)])
        entry.reply = None
        post((head, producer, tail, pack_sequence(entry.settlement.slot, entry.number)), entry)

    async def _left(self, entries: Iterable[_Entry]) -> list[_Entry]:
        """Settlements not applied yet: in each shard, all from the first such one."""
        left: list[_Entry] = []
        behind: set[int] = set()
        for entry in entries:
            if entry.shard not in behind:
                again = await self._again(entry)
                if not again:
                    self.done[entry.shard] = entry.number
                    continue
                behind.add(entry.shard)
                left += again
            else:
                left.append(entry)
        return left

    async def _again(self, entry: _Entry) -> list[_Entry]:
        """The replacement for the first settlement of its shard that is not done; empty: it is done."""
        if isinstance(entry.reply, ReplyError):
            return await self._failed(entry, entry.reply)
        settlement = entry.settlement
        answer: list[Any] | None = entry.reply
        if not answer:
            raise StoreError("the store is away again", executed=None)
        match answer[0]:
            case replies.OK | replies.DUPLICATE:
                settlement.on_notices(answer[2:])
            case replies.REFUSED:
                self._lose(1, f"that of {settlement.customer!r} can never be recorded")
                settlement.on_refused(answer[1])
            case replies.DAMAGED:
                self._lose(1, f"that of {settlement.customer!r} cannot be recorded")
                settlement.on_damaged(answer[1])
            case replies.STALE:
                settlement.on_stale(answer)
                return [entry]
            case replies.CONFLICT:
                self._lose(1, f"that of {settlement.customer!r} is refused: its event_id was used otherwise")
                settlement.on_conflict(answer[2])
            case replies.PARTLY:
                entry.settlement = settlement.uncounted(answer[2])
                return [entry]
            case replies.GAP if not answer[1]:
                # Its record of the file's producer is gone: what went before may be there, or not.
                self._lose(entry.number - 1, "the store has no record any more of what it had applied")
                return [*(entry.blank(number) for number in range(1, entry.number)), entry]
            case replies.GAP:
                raise RewindError
            case _:
                raise StoreError(f"the store does not take what was spooled: {answer}", executed=False)
        return []

    async def _failed(self, entry: _Entry, reply: ReplyError) -> list[_Entry]:
        if not reply.of_script:
            # Fencing waits until the store serves: where its scripts are gone it loads them.
            await self.lane_of(entry.shard).fence(self.keys.producer(entry.shard, f"{self.producer}-0"))
            return [entry]
        # Another time it would end as it did, or its number is used up and it would seem to be applied.
        self._lose(1, f"that of {entry.settlement.customer!r} failed: {reply}")
        nobody = Settlement(self.cache.get(self._nobody_of(entry.shard)))
        return [_Entry(entry.number, entry.shard, nobody, None)]

    def _nobody_of(self, shard: int) -> str:
        """A customer of a shard without records that may be damaged.

        What takes a number for it leaves an empty counter, which expires.
        """
        names = (f"{self.producer}-{nth}" for nth in count())
        return next(name for name in names if shard_of(name, self.keys.shards) == shard)

    def _lose(self, count: int, why: str) -> None:
        self.lost += count
        _log.error("%d settlements of a spool are lost: %s", count, why)
