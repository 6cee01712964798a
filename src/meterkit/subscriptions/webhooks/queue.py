"""The sync queue: a work queue of Stripe customers in the store, shared by all processes.

Several hints at one customer are one entry and need one sync. A worker that takes an entry has it alone
for a while: that is the lock by which no two processes look at a customer at once, and no look that began
earlier is taken for the newer one.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

from meterkit.errors import StoreError
from meterkit.store.counting import count_at
from meterkit.store.hints import due_keys, read_alarms, read_dead, read_hints
from meterkit.subscriptions.webhooks.hint_scripts import LEASE_MS, HintScripts, Place, home_of
from meterkit.subscriptions.webhooks.older_queue import OlderQueue

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.store.store import Store
    from meterkit.subscriptions.webhooks.hint_scripts import Entry, What
    from meterkit.subscriptions.webhooks.stripe_events import Hint, Note

_logger = logging.getLogger("meterkit.subscriptions")
_REPEAT: Final = 0
_NO_ROOM: Final = 2
_SHARDS_AT_ONCE: Final = 32
"""Of a cluster, whose shards are asked one by one."""
_AGAIN_MS: Final = 1_000
_shuffle = SystemRandom().shuffle


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookBacklog:
    """How much there is.

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
        why: what failed last.
        cause: what had hinted at it.
        at_ms: when it was given up.
        notes: names of what was to be done besides.
    """

    stripe_customer: str
    why: str
    cause: str
    at_ms: int
    notes: tuple[str, ...]


class HookQueue:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: where the queue is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._scripts = HintScripts(store)
        self._older = OlderQueue(store, self._scripts)
        self._wakes: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Event] = WeakKeyDictionary()
        self._near = set[int]()  # Shards that may have something due, as far as this process knows.
        self._next_shard = 0

    async def add(self, hint: Hint, *, alarm: str = "") -> Literal["new", "duplicate", "full"]:
        """Queue an event, in one round trip; ``full``: it is queued without its action.

        Args:
            hint: of the event.
            alarm: the event's type, where it is one.
        """
        note, place = hint.note, home_of(self._store.keys, hint.stripe_customer or hint.event)
        reply = await self._scripts.hint(
            place,
            hint.stripe_customer or "",
            hint.event,
            is_event=True,
            alarm=alarm,
            name="" if note is None else note.name,
            note="" if note is None else note.dump(),
        )
        if reply == _REPEAT:
            return "duplicate"
        if hint.stripe_customer is not None:
            self._near.add(place.shard)
            self.wake()
        return "full" if reply == _NO_ROOM else "new"

    async def look(self, stripe_customer: str, cause: str, *, delay_ms: int = 0) -> None:
        """Have a Stripe customer looked at again, for another reason than an event."""
        place = self._home(stripe_customer)
        await self._scripts.hint(place, stripe_customer, cause, delay_ms=delay_ms)
        if not delay_ms:
            self._near.add(place.shard)

    async def take(self, most: int) -> list[Entry]:
        """Take what is due, for :data:`LEASE_MS`: of each shard the longest first, the shards in any order.

        On a cluster each call looks at some of the shards, and at those that this process was hinted at.
        """
        taken: list[Entry] = []
        failed: StoreError | None = None
        for shard in await self._due():
            free = most - len(taken)
            if not free:
                break
            try:
                found = await self._scripts.take(Place(self._store.keys, shard), most=free)
                for entry in found:
                    locked = None if entry is None else await self._with_older(entry)
                    taken += [] if locked is None else [locked]
            except StoreError as error:  # Of one node of a cluster: the shards of the others go on.
                failed = error
        if failed is not None and not taken:
            raise failed
        return taken

    async def take_one(self, stripe_customer: str) -> Entry | Literal["taken", "gone"]:
        """Take one entry, whenever it is due; ``taken``: another worker has it; ``gone``: it is done."""
        found = await self._scripts.take(self._home(stripe_customer), stripe_customer=stripe_customer)
        if not found:
            return "gone"
        return (None if found[0] is None else await self._with_older(found[0])) or "taken"

    def look_everywhere(self) -> None:
        """Have the next calls of :meth:`take` look at all shards, also on a cluster."""
        self._near.update(range(self._store.keys.shards))

    async def keep(self, entry: Entry) -> bool:
        """Keep an entry for :data:`LEASE_MS` from now; whether it is still ours."""
        return await self._finish(entry, "kept", span_ms=LEASE_MS)

    async def done(self, entry: Entry, notes: Iterable[Note] = ()) -> bool:
        """Give an entry back that is done; what was hinted at meanwhile is due. Whether it was ours."""
        return await self._finish(entry, "done", notes=notes)

    async def later(
        self, entry: Entry, why: str, *, delay_ms: int, counts: bool, notes: Iterable[Note] = ()
    ) -> bool:
        """Give an entry back to be tried again after a while; whether it was still ours.

        Args:
            entry: as it was taken.
            why: what has failed.
            delay_ms: when it is due again, from now.
            counts: whether it counts as an attempt.
            notes: what of it is done.
        """
        return await self._finish(entry, "later", span_ms=delay_ms, counts=counts, why=why, notes=notes)

    async def give_up(self, entry: Entry, why: str, notes: Iterable[Note] = ()) -> bool:
        """Put an entry with the dead ones; whether it was still ours."""
        return await self._finish(entry, "dead", why=why, notes=notes)

    async def dead(self) -> list[DeadWebhook]:
        """The Stripe customers that are given up, the longest first."""
        found = [_dead(name, kept) for name, kept in (await read_dead(self._store)).items()]
        return sorted(found, key=lambda entry: (entry.at_ms, entry.stripe_customer))

    async def redrive(self, stripe_customers: Iterable[str]) -> None:
        """Have Stripe customers that were given up looked at again, at once."""
        is_older = await self._older.is_open()
        for stripe_customer in stripe_customers:
            if is_older:  # An entry that was given up there begins anew with its notes.
                await self._scripts.hint(self._older.place, stripe_customer, "operator")
            await self.look(stripe_customer, "operator")
        self.wake()

    async def seen_by_older(self, events: Sequence[str]) -> set[str]:
        """Those of some events that a process of an older release has queued, within 35 days."""
        return await self._older.seen(events)

    async def waiting(self) -> WebhookBacklog:
        """How much there is."""
        found = await read_hints(self._store)
        alarms = await read_alarms(self._store)
        return WebhookBacklog(entries=found.due + found.later, dead=len(found.dead), alarms=alarms)

    def wake(self) -> None:
        """Have the worker of the running event loop look at once."""
        self._wake_here().set()

    async def woken(self, within_s: float) -> None:
        """Wait until there may be something to do, at most for a while."""
        wake = self._wake_here()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await wake.wait()
        wake.clear()

    def _wake_here(self) -> asyncio.Event:
        return self._wakes.setdefault(asyncio.get_running_loop(), asyncio.Event())

    def _home(self, stripe_customer: str) -> Place:
        return home_of(self._store.keys, stripe_customer)

    async def _due(self) -> list[int]:
        """Shards that have something due, in any order."""
        store, admin = self._store, await self._store.admin()
        shards, is_older = self._in_turn(), await self._older.is_open()
        homes = due_keys(store.keys)
        keys = [homes[shard] for shard in shards]
        keys += [self._older.place.key("due")] if is_older else []
        self._near.difference_update(shards)  # Before they are asked: what comes meanwhile is kept.
        counted = await count_at(store, admin, keys, limit=store.now_ms())
        due = {shards[nth] for nth in counted if nth < len(shards)}
        if len(shards) in counted:
            for stripe_customer, cause in await self._older.announce():
                place = self._home(stripe_customer)
                await self._scripts.hint(place, stripe_customer, cause)
                due.add(place.shard)
        self._near.update(due)
        found = list(due)
        _shuffle(found)  # So workers do not all begin at the same one.
        return found

    def _in_turn(self) -> list[int]:
        """The shards to ask: all, or on a cluster some of them and those that may have something due."""
        shards = self._store.keys.shards
        if self._store.address.kind != "cluster" or shards <= _SHARDS_AT_ONCE:
            return list(range(shards))
        first, self._next_shard = self._next_shard, (self._next_shard + _SHARDS_AT_ONCE) % shards
        turn = {(first + nth) % shards for nth in range(_SHARDS_AT_ONCE)}
        return list(turn | self._near)

    async def _with_older(self, entry: Entry) -> Entry | None:
        """Lock the Stripe customer for processes of older releases, too; None: one of them has it."""
        if not await self._older.is_open():
            return entry
        older = await self._older.lock(entry.stripe_customer, entry.cause)
        if older is None:
            await self._finish(entry, "later", span_ms=_AGAIN_MS)
            return None
        notes = {note.name: note for note in (*older.notes, *entry.notes)}
        return replace(entry, older=older, notes=tuple(notes[name] for name in sorted(notes)))

    async def _finish(
        self, entry: Entry, what: What, *, span_ms: int = 0, notes: Iterable[Note] = (), **more: Any
    ) -> bool:
        """Report what became of an entry, under the older keys first: then no other worker has taken it."""
        done, home, is_ours = tuple(notes), self._home(entry.stripe_customer), True
        if entry.older is not None:
            end = what
            if what == "dead":
                await self._bring_home(entry, entry.older, {note.name for note in done})
                end = "done"
            is_ours = await self._scripts.finish(
                self._older.place, entry.older, end, span_ms=span_ms, notes=done, **more
            )
        is_ours &= await self._scripts.finish(home, entry, what, span_ms=span_ms, notes=done, **more)
        if what != "kept" and not span_ms:
            self._near.add(home.shard)
        return is_ours

    async def _bring_home(self, entry: Entry, older: Entry, done: set[str]) -> None:
        """Have the notes under the older keys where the entry is given up."""
        for note in older.notes:
            if note.name not in done:
                reply = await self._scripts.hint(
                    self._home(entry.stripe_customer),
                    entry.stripe_customer,
                    entry.cause,
                    name=note.name,
                    note=note.dump(),
                )
                if reply == _NO_ROOM:
                    _logger.error(
                        "%s of Stripe customer %s is not sent to handlers: 200 wait already",
                        note.name,
                        entry.stripe_customer,
                    )


def _dead(name: str, found: Mapping[str, Any]) -> DeadWebhook:
    return DeadWebhook(
        stripe_customer=name,
        why=found["why"],
        cause=found["cause"],
        at_ms=int(found["at"]),
        notes=tuple(sorted(dict(found["notes"]))),
    )
