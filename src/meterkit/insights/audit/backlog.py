"""What waits in the store for the database of the audit log: how many entries, and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from meterkit.errors import StoreError
from meterkit.insights.audit.entries import rows_of
from meterkit.redis.refusals import is_of_a_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.store.store import Store

__all__ = ["Backlog", "Waiting", "backlog_of", "note", "noted", "read_backlog", "waiting_shards"]

_noted: Final[WeakKeyDictionary[Store, Backlog]] = WeakKeyDictionary()


class Waiting(NamedTuple):
    """Entries that wait in a shard.

    Attributes:
        is_full: whether the youngest are added up beside them; see fold.lua.
        trouble: why nobody can say how many there are; empty: there is none.
    """

    shard: int
    entries: int
    is_full: bool
    trouble: str = ""


class Backlog(NamedTuple):
    """What waits in all shards.

    Attributes:
        entries: how many.
        since_ms: when the oldest was entered; None: none waits.
        full_shards: in how many shards the youngest are added up, as too many wait.
    """

    entries: int
    since_ms: int | None
    full_shards: int

    def age_s(self, now_ms: int) -> float:
        """How long the oldest has waited; 0 where none does."""
        return 0.0 if self.since_ms is None else max(0.0, (now_ms - self.since_ms) / 1000)


async def waiting_shards(store: Store) -> Sequence[Waiting]:
    """The shards in which something waits, in one round trip.

    One whose stream is none, as something else has written there, is among them with why: the others go on.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    pipe = admin.client.pipeline(transaction=False)
    for shard in range(store.keys.shards):
        pipe.xlen(store.keys.audit(shard))
        pipe.exists(store.keys.audit_sums(shard))
    found: list[Any] = await admin.ask(pipe.execute(raise_on_error=False))
    waiting: list[Waiting] = []
    for shard, (entries, sums) in enumerate(zip(found[::2], found[1::2], strict=True)):
        for reply in (entries, sums):
            if isinstance(reply, Exception) and not is_of_a_key(reply):
                raise StoreError(f"the store at {admin.address} failed: {reply}") from reply
        if isinstance(entries, Exception):
            waiting.append(Waiting(shard, 0, is_full=False, trouble=str(entries)))
        elif entries or sums:
            waiting.append(Waiting(shard, entries, bool(sums)))
    return waiting


async def backlog_of(store: Store, waiting: Sequence[Waiting]) -> Backlog:
    """The same as one, with the age of the oldest entry, in one more round trip where any waits.

    Raises:
        StoreError: the store does not answer.
    """
    shards = [one.shard for one in waiting if one.entries]
    since_ms: int | None = None
    if shards:
        admin = await store.admin()
        pipe = admin.client.pipeline(transaction=False)
        for shard in shards:
            pipe.xrange(store.keys.audit(shard), count=1)
        pages: list[list[tuple[bytes, Mapping[bytes, bytes]]]] = await admin.ask(pipe.execute())
        since_ms = min(
            (_entered_ms(name.decode(), fields) for page in pages for name, fields in page), default=None
        )
    return Backlog(sum(one.entries for one in waiting), since_ms, sum(one.is_full for one in waiting))


async def read_backlog(store: Store) -> Backlog:
    """All of it, in two round trips.

    Raises:
        StoreError: the store does not answer.
    """
    return await backlog_of(store, await waiting_shards(store))


def note(store: Store, backlog: Backlog) -> None:
    """Keep what was seen of a store, for those who cannot ask it."""
    _noted[store] = backlog


def noted(stores: Iterable[Store]) -> Mapping[Store, Backlog]:
    """What was seen last of some stores; of those that nobody looks at: nothing."""
    found = ((store, _noted.get(store)) for store in stores)
    return {store: backlog for store, backlog in found if backlog is not None}


def _entered_ms(name: str, fields: Mapping[bytes, Any]) -> int:
    """When an entry was entered: by itself, or where that cannot be read, by its name in the stream."""
    try:
        return rows_of(0, name, fields, str)[0].recorded_at_ms
    except (ValueError, LookupError, TypeError, AttributeError):
        return int(name.partition("-")[0])
