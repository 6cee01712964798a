"""The scripts of the sync queue: ``hint``, ``take`` and ``finish`` on the keys of one shard.

All keys of a Stripe customer's entry lie in the shard of its id, so each script works on one server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions.keys import HOOKS_SHARD, shard_of
from meterkit.redis.connection import ReplyError, pack_each
from meterkit.subscriptions.webhooks.stripe_events import Note

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.decisions.keys import Keys
    from meterkit.store.store import Store

LEASE_MS: Final = 60_000
"""For how long an entry is one worker's. Work on it ends sooner, or keeps it."""

What = Literal["done", "later", "dead", "kept"]
"""What became of an entry that was taken."""


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
        older: the entry of the same Stripe customer under the keys of older releases, taken as well.
    """

    stripe_customer: str
    token: str
    hinted: int
    attempts: int
    cause: str
    notes: tuple[Note, ...]
    older: Entry | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where entries are: one set of keys in one shard.

    Attributes:
        keys: of the store.
        shard: which of its shards.
        is_older: whether the keys are those of older releases, which have all entries in one shard.
    """

    keys: Keys
    shard: int
    is_older: bool = False

    def key(self, part: str) -> str:
        """One of its keys, for example that of ``entries``."""
        return self.keys.hooks(part) if self.is_older else self.keys.hints(self.shard, part)


def home_of(keys: Keys, name: str) -> Place:
    """The place of a Stripe customer, or of an event without one."""
    return Place(keys, shard_of(name, keys.shards))


def older_place(keys: Keys) -> Place:
    """The place of all entries of older releases."""
    return Place(keys, HOOKS_SHARD, is_older=True)


class HintScripts:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: where the entries are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def hint(
        self,
        place: Place,
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
        keys = [place.key(part) for part in ("entries", "due", "dead", "alarms")]
        keys += [place.key(f"event:{cause}"), place.key(f"note:{name}")]
        arguments = (stripe_customer, cause, int(is_event), alarm, name, note, delay_ms)
        call = _Call(place.shard, ("EVALSHA", self._store.scripts["hint"].sha, len(keys), *keys, *arguments))
        lane = await self._store.lane()
        reply: Any = await lane.ask(call)
        if isinstance(reply, ReplyError):
            reply = await lane.again(call, reply)
        return int(reply)

    async def take(self, place: Place, *, most: int = 1, stripe_customer: str = "") -> list[Entry | None]:
        """Take entries of a place; None: another worker has that of the Stripe customer."""
        admin, token = await self._store.admin(), token_hex(8)
        keys = [place.key(part) for part in ("entries", "due")]
        script = self._store.scripts["take"]
        reply = await admin.run(script, keys, token, LEASE_MS, most, stripe_customer)
        return [None if len(found) == 1 else _entry(*found) for found in reply]

    async def finish(
        self,
        place: Place,
        entry: Entry,
        what: What,
        *,
        span_ms: int = 0,
        counts: bool = False,
        why: str = "",
        notes: Iterable[Note] = (),
    ) -> bool:
        """Report what became of an entry; whether it was still this worker's."""
        admin = await self._store.admin()
        keys = [place.key(part) for part in ("entries", "due", "dead")]
        arguments = (entry.stripe_customer, entry.token, what, entry.hinted, span_ms, int(counts), why)
        done = (note.name for note in notes)
        return bool(await admin.run(self._store.scripts["finish"], keys, *arguments, *done))


class _Call:
    """A request to the shard that has an entry."""

    def __init__(self, shard: int, parts: Sequence[str | int]) -> None:
        self.view = _Shard(shard)
        # Behind these: the clock.
        self.packed = (b"*%d\r\n%b" % (len(parts) + 1, pack_each(parts)),)

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Leave it: Stripe sends an event again that it got no answer to."""


@dataclass(slots=True)
class _Shard:
    shard: int


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
