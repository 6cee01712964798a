"""Message queues in the store, one for each channel, with leases and retries; streams of customer notices.

Handlers, webhooks and mails of the app are built from notices.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.store import replies

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from meterkit.store.store import Store

Channel = Literal["webhook", "email"]
CHANNELS: Final[tuple[Channel, ...]] = ("webhook", "email")
LEASE_MS: Final = 60_000
"""Lease of a message. Sending it ends sooner."""
_NOTE: Final = "message"
_Outcome = Literal["done", "later", "dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedMessage:
    """A message that this process has leased to send.

    Attributes:
        id: of the message.
        token: of the lease.
        hinted: number of times it was queued; part of the queue's protocol.
        attempts: number of failed attempts before.
        since_ms: time at which it was queued or redriven.
        text: the queued message.
    """

    id: str
    token: str
    hinted: int
    attempts: int
    since_ms: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptMessage:
    """A message in the queue.

    Attributes:
        id: of the message.
        state: ``waiting`` to be sent, or ``dead``: it is sent only after a redrive.
        attempts: number of failed attempts.
        since_ms: time at which it was queued; of a dead one: at which it was given up.
        why: last failure; empty: none.
        text: the queued message.
    """

    id: str
    state: Literal["waiting", "dead"]
    attempts: int
    since_ms: int
    why: str
    text: str


class MessageQueue:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: has the queue.
        channel: of the queue.
    """

    def __init__(self, store: Store, channel: Channel) -> None:
        self._store = store
        self._channel = channel

    async def add(self, message_id: str, text: str) -> bool:
        """Queue a message, unless one with this id was queued within 35 days; whether it is new."""
        return await self._queue_message(message_id, "event", text, is_event=True) != replies.SYNC_REPEATED

    async def lease(self, most: int) -> list[LeasedMessage]:
        """Lease due messages for :data:`LEASE_MS`, the longest overdue first."""
        admin = await self._store.admin()
        keys = [self._key(part) for part in ("entries", "due")]
        reply = await admin.run(self._store.scripts["lease_entries"], keys, token_hex(8), LEASE_MS, most, "")
        return [_parse_leased(*found) for found in reply]

    async def done(self, message: LeasedMessage) -> bool:
        """Remove a sent message; whether this process still had its lease."""
        return await self._end_lease(message, "done", span_ms=0, why="")

    async def retry(self, message: LeasedMessage, why: str, *, delay_ms: int, counts: bool = True) -> bool:
        """Return a message for a retry; whether this process still had its lease."""
        return await self._end_lease(message, "later", span_ms=delay_ms, why=why, counts=counts)

    async def give_up(self, message: LeasedMessage, why: str) -> bool:
        """Move a message to the dead ones; whether this process still had its lease."""
        return await self._end_lease(message, "dead", span_ms=0, why=why)

    async def list_messages(self) -> list[KeptMessage]:
        """Waiting messages, then dead ones; the oldest first."""
        admin = await self._store.admin()
        pipe = admin.client.pipeline(transaction=False)
        pipe.hgetall(self._key("entries"))
        pipe.hgetall(self._key("dead"))
        waiting, dead = await admin.ask(pipe.execute())
        found = [_parse_kept(name, kept, "waiting") for name, kept in waiting.items()]
        found += [_parse_kept(name, kept, "dead") for name, kept in dead.items()]
        return sorted(found, key=lambda one: (one.state == "dead", one.since_ms, one.id))

    async def redrive(self, message_ids: Iterable[str]) -> None:
        """Send dead messages again, from the first attempt on."""
        for message_id in message_ids:
            await self._queue_message(message_id, "operator")

    async def count_messages(self) -> Mapping[str, int]:
        """Number of messages that are ``due``, wait for a retry (``later``), and are ``dead``."""
        admin, now_ms = await self._store.admin(), self._store.now_ms()
        pipe = admin.client.pipeline(transaction=False)
        pipe.zcount(self._key("due"), "-inf", now_ms)
        pipe.zcount(self._key("due"), f"({now_ms}", "+inf")
        pipe.hkeys(self._key("dead"))
        due, later, dead = await admin.ask(pipe.execute())
        return {"due": due, "later": later, "dead": len(dead)}

    async def overdue_ms(self) -> int:
        """Time since the first message became due; 0: none is due."""
        admin, now_ms = await self._store.admin(), self._store.now_ms()
        first = await admin.ask(admin.client.zrange(self._key("due"), 0, 0, withscores=True))
        return max(0, now_ms - int(first[0][1])) if first else 0

    async def forget(self, message_ids: Collection[str]) -> None:
        """Drop messages, whatever their state."""
        if not message_ids:
            return
        admin = await self._store.admin()
        pipe = admin.client.pipeline(transaction=False)
        pipe.hdel(self._key("entries"), *message_ids)
        pipe.hdel(self._key("dead"), *message_ids)
        pipe.zrem(self._key("due"), *message_ids)
        await admin.ask(pipe.execute())

    def _key(self, name: str) -> str:
        return self._store.keys.messages(f"{self._channel}:{name}")

    async def _queue_message(
        self, message_id: str, cause: str, text: str = "", *, is_event: bool = False
    ) -> int:
        admin = await self._store.admin()
        keys = [self._key(part) for part in ("entries", "due", "dead", "alarms")]
        keys += [self._key(f"event:{message_id}"), self._key(f"text:{message_id}")]
        note = _NOTE if text else ""
        reply = await admin.run(
            self._store.scripts["queue_sync"], keys, message_id, cause, int(is_event), "", note, text, 0
        )
        return int(reply)

    async def _end_lease(
        self, message: LeasedMessage, outcome: _Outcome, *, span_ms: int, why: str, counts: bool = False
    ) -> bool:
        admin = await self._store.admin()
        keys = [self._key(part) for part in ("entries", "due", "dead")]
        arguments = (message.id, message.token, outcome, message.hinted, span_ms, int(counts), why)
        done = (_NOTE,) if outcome == "done" else ()
        return bool(await admin.run(self._store.scripts["finish_entry"], keys, *arguments, *done))


async def forget_messages(store: Store, customer: str) -> None:
    """Drop the waiting and dead messages about a customer.

    Raises:
        StoreError: the store does not answer.
    """
    for channel in CHANNELS:
        queue = MessageQueue(store, channel)
        await queue.forget([one.id for one in await queue.list_messages() if _customer_of(one) == customer])


def _customer_of(kept: KeptMessage) -> str | None:
    try:
        return str(json.loads(kept.text)["customer"])
    except (ValueError, LookupError, TypeError):
        return None


def _parse_leased(name: bytes, kept: bytes) -> LeasedMessage:
    found: dict[str, Any] = json.loads(kept)
    return LeasedMessage(
        id=name.decode(),
        token=found["token"],
        hinted=int(found["n"]),
        attempts=int(found["attempts"]),
        since_ms=int(found["since"]),
        text=dict(found["notes"]).get(_NOTE, ""),
    )


def _parse_kept(name: bytes, kept: bytes, state: Literal["waiting", "dead"]) -> KeptMessage:
    found: dict[str, Any] = json.loads(kept)
    return KeptMessage(
        id=name.decode(),
        state=state,
        attempts=int(found["attempts"]),
        since_ms=int(found["at"] if state == "dead" else found["since"]),
        why=found["why"],
        text=dict(found["notes"]).get(_NOTE, ""),
    )


_logger = logging.getLogger("meterkit.notify")
AGAIN_AFTER_MS: Final = 60_000
"""Delay before an unacknowledged notice is delivered again."""
TIMES_MOST: Final = 10
"""Number of deliveries before a notice is given up."""
_PAGE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerNotice:
    """Event of a customer, for handlers.

    Attributes:
        shard: of the customer.
        entry: its id in the stream of the shard.
        times: number of deliveries, including this one.
        group: consumer group: its kind for handlers, otherwise a name before the kind.
        kind: kind that handlers are registered for, for example ``credits.low``.
        customer: the customer's id.
        of: target of a credit, or token of a meter.
        numbers: time of the event, start and end of the period (ms), and numbers of the kind; empty with
            ``data``.
        data: data of a kind without numbers, with an ``id``; see :mod:`meterkit.notify.events`.
    """

    shard: int
    entry: str
    times: int
    group: str
    kind: str
    customer: str
    of: str
    numbers: tuple[int, ...]
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_last(self) -> bool:
        """Whether this is its last delivery."""
        return self.times >= TIMES_MOST


async def read_notices(store: Store, shard: int, kinds: Collection[str]) -> list[CustomerNotice]:
    """Read the next notices of a shard; each is delivered again a minute later until it is acknowledged.

    Notices of another release that cannot be read are left to its processes; none is dropped.

    Args:
        store: has the notices.
        shard: the shard.
        kinds: consumer groups: a kind, or a name before a kind as in ``messages credits.low``.

    Returns:
        Some notices; none if there are no more for now.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    reply = await admin.run(
        store.scripts["lease_notices"], [store.keys.notices(shard)], AGAIN_AFTER_MS, _PAGE, *kinds
    )
    found: list[CustomerNotice] = []
    for group, entry, times, fields in reply:
        try:
            found.append(_parse_notice(shard, group, entry, times, fields))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if times >= TIMES_MOST:
                _logger.error("notice %s of shard %d is given up: it cannot be read: %r", entry, shard, error)  # noqa: TRY400 - the traceback says nothing more
                await admin.ask(admin.client.xack(store.keys.notices(shard), group, entry))
    return found


async def publish_notice(store: Store, customer: str, kind: str, data: Mapping[str, Any]) -> None:
    """Publish an event of a customer to the app's handlers of its kind.

    Args:
        store: stores it until it is acknowledged.
        customer: the customer's id.
        kind: of the event, for example ``payment.failed``.
        data: the event; its ``id`` is the same at each delivery.

    Raises:
        StoreError: the store does not answer; whether they will be delivered is unknown.
    """
    admin, keys = await store.admin(), store.keys.customer(customer)
    await admin.run(store.scripts["report_notice"], [keys.notices], customer, kind, json.dumps(dict(data)))
    store.on_notice(keys.shard)


async def acknowledge_notice(store: Store, notice: CustomerNotice) -> None:
    """Acknowledge a notice: it is not delivered again.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    await admin.ask(admin.client.xack(store.keys.notices(notice.shard), notice.group, notice.entry))


def _parse_notice(shard: int, group: bytes, entry: bytes, times: int, fields: list[Any]) -> CustomerNotice:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return CustomerNotice(
        shard=shard,
        entry=entry.decode(),
        times=times,
        group=group.decode(),
        kind=named[b"kind"].decode(),
        customer=named[b"customer"].decode(),
        of=named[b"of"].decode(),
        numbers=tuple(map(int, named[b"numbers"].split())),
        data=json.loads(named.get(b"data", b"{}")),
    )
