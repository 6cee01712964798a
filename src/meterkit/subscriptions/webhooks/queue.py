"""The sync queue: a work queue of Stripe customers in the store, shared by all processes.

Several hints at one customer are one entry and need one sync. A worker that takes an entry has it alone
for a while: that is the lock by which no two processes look at a customer at once, and no look that began
earlier is taken for the newer one.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.redis.connection import ReplyError, pack_each
from meterkit.subscriptions.webhooks.stripe_events import Note

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.store.store import Store
    from meterkit.subscriptions.webhooks.stripe_events import Hint

LEASE_MS: Final = 60_000
"""For how long an entry is one worker's. Work on it ends sooner, or keeps it."""

_What = Literal["done", "later", "dead", "kept"]

_REPEAT: Final = 0
_NO_ROOM: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry: the sync of a Stripe customer, and the worker that does it.

    Attributes:
        stripe_customer: whom to look at.
        token: of who has taken it.
        hinted: how often it was hinted at by then.
        attempts: how often it was tried before, in vain.
        cause: what has hinted at it last: the id of an event, or a word.
        notes: what is to be done besides.
    """

    stripe_customer: str
    token: str
    hinted: int
    attempts: int
    cause: str
    notes: tuple[Note, ...]


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
        self._wakes: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Event] = WeakKeyDictionary()

    async def add(self, hint: Hint, *, alarm: str = "") -> Literal["new", "duplicate", "full"]:
        """Queue an event, in one round trip; ``full``: it is queued without its action.

        Args:
            hint: of the event.
            alarm: the event's type, where it is one.
        """
        note = hint.note
        reply = await self._hint(
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
            self.wake()
        return "full" if reply == _NO_ROOM else "new"

    async def look(self, stripe_customer: str, cause: str, *, delay_ms: int = 0) -> None:
        """Have a Stripe customer looked at again, for another reason than an event."""
        await self._hint(stripe_customer, cause, delay_ms=delay_ms)

    async def take(self, most: int) -> list[Entry]:
        """Take what is due, the longest first, for :data:`LEASE_MS`."""
        found = await self._take(most=most)
        return [entry for entry in found if entry is not None]

    async def take_one(self, stripe_customer: str) -> Entry | Literal["taken", "gone"]:
        """Take one entry, whenever it is due; ``taken``: another worker has it; ``gone``: it is done."""
        found = await self._take(stripe_customer=stripe_customer)
        return "gone" if not found else found[0] or "taken"

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
        admin = await self._store.admin()
        kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(self._key("dead")))
        found = [_dead(name.decode(), json.loads(data)) for name, data in kept.items()]
        return sorted(found, key=lambda entry: (entry.at_ms, entry.stripe_customer))

    async def redrive(self, stripe_customers: Iterable[str]) -> None:
        """Have Stripe customers that were given up looked at again, at once."""
        for stripe_customer in stripe_customers:
            await self.look(stripe_customer, "operator")
        self.wake()

    async def waiting(self) -> WebhookBacklog:
        """How much there is."""
        admin = await self._store.admin()
        pipe = admin.client.pipeline(transaction=False)
        pipe.zcount(self._key("due"), "-inf", "+inf")
        pipe.hkeys(self._key("dead"))
        pipe.hgetall(self._key("alarms"))
        entries, dead, alarms = await admin.ask(pipe.execute())
        counted = {kind.decode(): int(count) for kind, count in alarms.items()}
        return WebhookBacklog(entries=entries, dead=len(dead), alarms=counted)

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

    def _key(self, name: str) -> str:
        return self._store.keys.hooks(name)

    async def _hint(
        self,
        stripe_customer: str,
        cause: str,
        *,
        is_event: bool = False,
        alarm: str = "",
        name: str = "",
        note: str = "",
        delay_ms: int = 0,
    ) -> int:
        """Ask on the lane: many webhooks at once share a write."""
        keys = [self._key(part) for part in ("entries", "due", "dead", "alarms")]
        keys += [self._key(f"event:{cause}"), self._key(f"note:{name}")]
        arguments = (stripe_customer, cause, int(is_event), alarm, name, note, delay_ms)
        call = _Call(("EVALSHA", self._store.scripts["hint"].sha, len(keys), *keys, *arguments))
        lane = await self._store.lane()
        reply: Any = await lane.ask(call)
        if isinstance(reply, ReplyError):
            reply = await lane.again(call, reply)
        return int(reply)

    async def _take(self, *, most: int = 1, stripe_customer: str = "") -> list[Entry | None]:
        admin, token = await self._store.admin(), token_hex(8)
        keys = [self._key(part) for part in ("entries", "due")]
        script = self._store.scripts["take"]
        reply = await admin.run(script, keys, token, LEASE_MS, most, stripe_customer)
        return [None if len(found) == 1 else _entry(*found) for found in reply]

    async def _finish(
        self,
        entry: Entry,
        what: _What,
        *,
        span_ms: int = 0,
        counts: bool = False,
        why: str = "",
        notes: Iterable[Note] = (),
    ) -> bool:
        admin = await self._store.admin()
        keys = [self._key(part) for part in ("entries", "due", "dead")]
        arguments = (entry.stripe_customer, entry.token, what, entry.hinted, span_ms, int(counts), why)
        done = (note.name for note in notes)
        return bool(await admin.run(self._store.scripts["finish"], keys, *arguments, *done))


class _Call:
    """A request to the shard that has the queue."""

    def __init__(self, parts: Sequence[str | int]) -> None:
        self.view = _Shard()
        # Behind these: the clock.
        self.packed = (b"*%d\r\n%b" % (len(parts) + 1, pack_each(parts)),)

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Leave it: Stripe sends an event again that it got no answer to."""


@dataclass(slots=True)
class _Shard:
    shard: int = HOOKS_SHARD


def _entry(name: bytes, kept: bytes) -> Entry:
    found: dict[str, Any] = json.loads(kept)
    return Entry(
        stripe_customer=name.decode(),
        token=found["token"],
        hinted=int(found["n"]),
        attempts=int(found["attempts"]),
        cause=found["cause"],
        notes=tuple(Note.parse(named, data) for named, data in sorted(dict(found["notes"]).items())),
    )


def _dead(name: str, found: Mapping[str, Any]) -> DeadWebhook:
    return DeadWebhook(
        stripe_customer=name,
        why=found["why"],
        cause=found["cause"],
        at_ms=int(found["at"]),
        notes=tuple(sorted(dict(found["notes"]))),
    )
