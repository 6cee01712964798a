"""Queues of webhook messages and e-mails in the store, one for each channel, with leases and retries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions.keys import shard_of
from meterkit.store import replies
from meterkit.store.sharded_queue import DueShards, QueueKeys, read_entry

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meterkit.store.sharded_queue import QueueCounts
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
        shard: of its customer.
        token: of the lease.
        hinted: number of times it was queued; part of the queue's protocol.
        attempts: number of failed attempts before.
        since_ms: time at which it was queued or redriven.
        text: the queued message.
    """

    id: str
    shard: int
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
        self._all_keys = QueueKeys(store, partial(store.keys.messages, channel))
        # The process that queues a message asks its shard at once; retries have time.
        self._due_shards = DueShards(self._all_keys, asks_some=True)

    async def add(self, customer: str, message_id: str, text: str) -> bool:
        """Queue a message, unless one with this id was queued within 35 days; whether it is new."""
        shard = shard_of(customer, self._store.keys.shards)
        reply = await self._queue_message(shard, message_id, "event", text, is_event=True)
        return reply != replies.SYNC_REPEATED

    async def lease(self, most: int) -> list[LeasedMessage]:
        """Lease due messages for :data:`LEASE_MS`."""
        admin = await self._store.admin()

        async def lease_in(shard: int, free: int) -> list[LeasedMessage]:
            keys, script = self._keys(shard, "entries", "due"), self._store.scripts["lease_entries"]
            reply = await admin.run(script, keys, token_hex(8), LEASE_MS, free, "")
            return [_parse_leased(shard, name, kept) for name, kept, _ in reply]

        return await self._due_shards.lease(most, lease_in)

    def check_all_shards(self) -> None:
        """Make the next call of :meth:`lease` ask all shards."""
        self._due_shards.add()

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
        found: list[KeptMessage] = []
        states: tuple[tuple[str, Literal["waiting", "dead"]], ...] = (
            ("entries", "waiting"),
            ("dead", "dead"),
        )
        now_ms = self._store.now_ms()
        for part, state in states:
            for each in await self._all_keys.read_hashes(part):
                found += [_parse_kept(name, read_entry(kept, now_ms), state) for name, kept in each.items()]
        return sorted(found, key=lambda one: (one.state == "dead", one.since_ms, one.id))

    async def redrive(self, message_ids: Collection[str]) -> None:
        """Send dead messages again, from the first attempt on."""
        for shard, dead in enumerate(await self._all_keys.read_hashes("dead")):
            for message_id in map(bytes.decode, dead):
                if message_id in message_ids:
                    await self._queue_message(shard, message_id, "operator")

    async def count(self) -> QueueCounts:
        """Count due, later and dead messages."""
        return await self._all_keys.count()

    async def forget(self, customer: str) -> None:
        """Drop the messages about a customer, whatever their state."""
        admin, shard = await self._store.admin(), shard_of(customer, self._store.keys.shards)
        entries, due, dead = self._keys(shard, "entries", "due", "dead")
        waiting, given_up = await admin.ask_all([("hgetall", entries), ("hgetall", dead)])
        own = [name for name, kept in {**waiting, **given_up}.items() if _customer_of(kept) == customer]
        if own:
            await admin.ask_all([("hdel", entries, *own), ("hdel", dead, *own), ("zrem", due, *own)])

    def _keys(self, shard: int, *parts: str) -> list[str]:
        return [self._all_keys.name_key(shard, part) for part in parts]

    async def _queue_message(
        self, shard: int, message_id: str, cause: str, text: str = "", *, is_event: bool = False
    ) -> int:
        admin = await self._store.admin()
        parts = ("entries", "due", "dead", "alarms", f"event:{message_id}", f"text:{message_id}")
        keys = self._keys(shard, *parts)
        note = _NOTE if text else ""
        reply = await admin.run(
            self._store.scripts["queue_sync"], keys, message_id, cause, int(is_event), "", note, text, 0
        )
        self._due_shards.add(shard)
        return int(reply)

    async def _end_lease(
        self, message: LeasedMessage, outcome: _Outcome, *, span_ms: int, why: str, counts: bool = False
    ) -> bool:
        admin = await self._store.admin()
        keys = self._keys(message.shard, "entries", "due", "dead")
        arguments = (message.id, message.token, outcome, message.hinted, span_ms, int(counts), why)
        done = (_NOTE,) if outcome == "done" else ()
        return bool(await admin.run(self._store.scripts["finish_entry"], keys, *arguments, *done))


async def forget_messages(store: Store, customer: str) -> None:
    """Drop the waiting and dead messages about a customer.

    Raises:
        StoreError: the store does not answer.
    """
    for channel in CHANNELS:
        await MessageQueue(store, channel).forget(customer)


def _customer_of(kept: bytes) -> str | None:
    try:
        return str(json.loads(json.loads(kept)["notes"][_NOTE])["customer"])
    except (ValueError, LookupError, TypeError):
        return None


def _parse_leased(shard: int, name: bytes, kept: bytes) -> LeasedMessage:
    found: dict[str, Any] = json.loads(kept)
    return LeasedMessage(
        id=name.decode(),
        shard=shard,
        token=found["token"],
        hinted=int(found["n"]),
        attempts=int(found["attempts"]),
        since_ms=int(found["since"]),
        text=str(dict(found["notes"]).get(_NOTE, "")),
    )


def _parse_kept(name: bytes, found: Mapping[str, Any], state: Literal["waiting", "dead"]) -> KeptMessage:
    return KeptMessage(
        id=name.decode(),
        state=state,
        attempts=found["attempts"],
        since_ms=found["at"] if state == "dead" else found["since"],
        why=found["why"],
        text=str(found["notes"].get(_NOTE, "")),
    )
