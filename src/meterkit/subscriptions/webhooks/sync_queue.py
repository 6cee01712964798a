"""The sync queue: a work queue of Stripe customers in the store, shared by all processes.

Several hints at one customer are one entry and need one sync. A worker leases an entry: no two processes sync
a customer at once, and no sync that began earlier overwrites a newer one. All keys of an entry lie in the
shard of its Stripe customer, so each script works on one server.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

from meterkit.decisions.keys import shard_of
from meterkit.redis.connection import ReplyError, pack_each
from meterkit.store import replies
from meterkit.store.sharded_queue import DueShards, read_alarms, sync_keys
from meterkit.store.unreadable_data import UNREADABLE
from meterkit.subscriptions.webhooks.stripe_events import EventNote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.store.store import Store
    from meterkit.subscriptions.webhooks.stripe_events import SyncHint

_logger = logging.getLogger("meterkit.subscriptions")

LEASE_MS: Final = 60_000
"""Lease of an entry. A sync ends sooner, or renews it."""
_Outcome = Literal["done", "later", "dead", "kept"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncEntry:
    """The sync of a Stripe customer, leased by a worker.

    Attributes:
        stripe_customer: ``cus_…``, or what :class:`~.stripe_events.SyncHint` names in its place.
        token: of the lease.
        hinted: number of hints when it was leased.
        attempts: number of failed attempts before.
        cause: the last hint: the id of an event, or a word.
        notes: further actions.
    """

    stripe_customer: str
    token: str
    hinted: int
    attempts: int
    cause: str
    notes: tuple[EventNote, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookBacklog:
    """Counts of the sync queue.

    Attributes:
        entries: waiting Stripe customers.
        dead: those that are given up.
        alarms: of each kind of alarm, how many came in the last 400 days.
    """

    entries: int
    dead: int
    alarms: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadWebhook:
    """A Stripe customer whose sync is given up until an operator or a further event requests it.

    Attributes:
        why: the last error.
        cause: the hint.
        at_ms: when it was given up.
        notes: names of further actions that were not done.
    """

    stripe_customer: str
    why: str
    cause: str
    at_ms: int
    notes: tuple[str, ...]


class SyncQueue:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: of the kit.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wakes: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Event] = WeakKeyDictionary()
        self._all_keys = sync_keys(store)
        self._due_shards = DueShards(self._all_keys)

    async def add(self, hint: SyncHint, *, alarm: str = "") -> Literal["new", "duplicate", "full"]:
        """Queue an event, in one round trip; ``full``: it is queued without its note.

        Args:
            hint: of the event.
            alarm: the event's type, where it is one.
        """
        note, shard = hint.note, self._shard_of(hint.stripe_customer or hint.event)
        reply = await self._queue_sync(
            shard,
            hint.stripe_customer or "",
            hint.event,
            is_event=True,
            alarm=alarm,
            name="" if note is None else note.name,
            note="" if note is None else note.dump(),
        )
        if reply == replies.SYNC_REPEATED:
            return "duplicate"
        if hint.stripe_customer is not None:
            self._due_shards.add(shard)
            self.wake()
        return "full" if reply == replies.SYNC_NO_ROOM else "new"

    async def request(self, stripe_customer: str, cause: str, *, delay_ms: int = 0) -> None:
        """Queue the sync of a Stripe customer for another reason than an event."""
        shard = self._shard_of(stripe_customer)
        await self._queue_sync(shard, stripe_customer, cause, delay_ms=delay_ms)
        if not delay_ms:
            self._due_shards.add(shard)

    async def lease_due(self, most: int) -> list[SyncEntry]:
        """Lease due entries."""

        async def lease_in(shard: int, free: int) -> list[SyncEntry]:
            return [entry for entry in await self._lease_entries(shard, most=free) if entry is not None]

        return await self._due_shards.lease(most, lease_in)

    async def lease_one(self, stripe_customer: str) -> SyncEntry | Literal["taken", "gone"]:
        """Lease one entry, whenever it is due; ``taken``: another worker has it; ``gone``: it is done."""
        found = await self._lease_entries(self._shard_of(stripe_customer), stripe_customer=stripe_customer)
        return (found[0] or "taken") if found else "gone"

    def check_all_shards(self) -> None:
        """Make the next call of :meth:`lease_due` ask all shards, also on a cluster."""
        self._due_shards.add()

    async def renew(self, entry: SyncEntry) -> bool:
        """Renew the lease of an entry for :data:`LEASE_MS`; False if another worker has it."""
        return await self._finish_entry(entry, "kept", span_ms=LEASE_MS)

    async def complete(self, entry: SyncEntry, notes: Iterable[EventNote] = ()) -> bool:
        """Report an entry done; newer hints at it are due. False if another worker has it."""
        return await self._finish_entry(entry, "done", notes=notes)

    async def retry(self, entry: SyncEntry, why: str, *, delay_ms: int, counts: bool) -> bool:
        """Release an entry for a retry; False if another worker has it.

        Args:
            entry: as it was leased.
            why: the error.
            delay_ms: when it is due again, from now.
            counts: whether it counts as an attempt.
        """
        return await self._finish_entry(entry, "later", span_ms=delay_ms, counts=counts, why=why)

    async def give_up(self, entry: SyncEntry, why: str) -> bool:
        """Move an entry to the dead ones; False if another worker has it, or newer hints at it are due."""
        return await self._finish_entry(entry, "dead", why=why)

    async def list_dead(self) -> list[DeadWebhook]:
        """List the Stripe customers that are given up, the longest first."""
        found = [_dead_webhook(name, kept) for name, kept in (await self._all_keys.read_dead()).items()]
        return sorted(found, key=lambda entry: (entry.at_ms, entry.stripe_customer))

    async def redrive(self, stripe_customers: Iterable[str]) -> None:
        """Queue Stripe customers again that were given up; due at once."""
        for stripe_customer in stripe_customers:
            await self.request(stripe_customer, "operator")
        self.wake()

    async def read_backlog(self) -> WebhookBacklog:
        """Count waiting and dead entries, and alarms."""
        found = await self._all_keys.count()
        alarms = await read_alarms(self._store)
        return WebhookBacklog(entries=found.due + found.later, dead=len(found.dead), alarms=alarms)

    def wake(self) -> None:
        """Wake the worker of the running event loop."""
        self._wake_event().set()

    async def wait_for_work(self, within_s: float) -> None:
        """Wait until there may be something due, at most for a while."""
        event = self._wake_event()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await event.wait()
        event.clear()

    def _wake_event(self) -> asyncio.Event:
        return self._wakes.setdefault(asyncio.get_running_loop(), asyncio.Event())

    def _shard_of(self, name: str) -> int:
        """The shard of a Stripe customer, or of an event without one."""
        return shard_of(name, self._store.keys.shards)

    async def _queue_sync(
        self,
        shard: int,
        stripe_customer: str,
        cause: str,
        *,
        is_event: bool = False,
        alarm: str = "",
        name: str = "",
        note: str = "",
        delay_ms: int = 0,
    ) -> int:
        """Queue a sync, over the connection for requests: many webhooks at once share a write."""
        keys = self._keys(shard, "entries", "due", "dead", "alarms", f"event:{cause}", f"note:{name}")
        arguments = (stripe_customer, cause, int(is_event), alarm, name, note, delay_ms)
        sha = self._store.scripts["queue_sync"].sha
        call = _HintCall(shard, ("EVALSHA", sha, len(keys), *keys, *arguments))
        lane = await self._store.lane()
        reply: Any = await lane.ask(call)
        if isinstance(reply, ReplyError):
            reply = await lane.retry_call(call, reply)
        return int(reply)

    async def _lease_entries(
        self, shard: int, *, most: int = 1, stripe_customer: str = ""
    ) -> list[SyncEntry | None]:
        """Lease entries of a shard; None: another worker has that of the Stripe customer."""
        admin, keys = await self._store.admin(), self._keys(shard, "entries", "due")
        script = self._store.scripts["lease_entries"]
        reply = await admin.run(script, keys, token_hex(8), LEASE_MS, most, stripe_customer)
        return [None if len(found) == 1 else _sync_entry(*found) for found in reply]

    async def _finish_entry(
        self,
        entry: SyncEntry,
        outcome: _Outcome,
        *,
        span_ms: int = 0,
        counts: bool = False,
        why: str = "",
        notes: Iterable[EventNote] = (),
    ) -> bool:
        """Report the outcome of an entry; False if another worker has it."""
        admin, shard = await self._store.admin(), self._shard_of(entry.stripe_customer)
        keys = self._keys(shard, "entries", "due", "dead")
        arguments = (entry.stripe_customer, entry.token, outcome, entry.hinted, span_ms, int(counts), why)
        done = (note.name for note in notes)
        is_ours = bool(await admin.run(self._store.scripts["finish_entry"], keys, *arguments, *done))
        if outcome != "kept" and not span_ms:
            self._due_shards.add(shard)
        return is_ours

    def _keys(self, shard: int, *parts: str) -> list[str]:
        return [self._store.keys.hints(shard, part) for part in parts]


class _HintCall:
    """A request to the shard that has an entry."""

    def __init__(self, shard: int, parts: Sequence[str | int]) -> None:
        self.view = _HintShard(shard)
        # Behind these: the clock.
        self.packed = (b"*%d\r\n%b" % (len(parts) + 1, pack_each(parts)),)

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Leave it: Stripe sends an event again that it got no answer to."""


@dataclass(slots=True)
class _HintShard:
    shard: int


def _sync_entry(name: bytes, kept: bytes, is_damaged: int) -> SyncEntry:
    found: dict[str, Any] = json.loads(kept)
    stripe_customer = name.decode()
    notes = list[EventNote]()
    for named, data in sorted(dict(found["notes"]).items()):
        try:
            notes.append(EventNote.parse(named, data))
        except UNREADABLE:
            is_damaged = 1
    if is_damaged:
        _logger.error(
            "what was queued for %s cannot be read: it is synced, but handlers may miss events of it",
            stripe_customer,
        )
    return SyncEntry(
        stripe_customer=stripe_customer,
        token=found["token"],
        hinted=int(found["n"]),
        attempts=int(found["attempts"]),
        cause=found["cause"],
        notes=tuple(notes),
    )


def _dead_webhook(name: str, found: Mapping[str, Any]) -> DeadWebhook:
    return DeadWebhook(
        stripe_customer=name,
        why=found["why"],
        cause=found["cause"],
        at_ms=found["at"],
        notes=tuple(sorted(found["notes"])),
    )
