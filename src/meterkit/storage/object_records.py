"""What the store keeps of objects: one script takes events and listings of a customer and a bucket."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.catalog import QUANTITY_MAX
from meterkit.decisions.packed import unpack_field
from meterkit.decisions.periods import HOUR_MS
from meterkit.errors import StoreError
from meterkit.storage.object_events import NULL_VERSION, bucket_tag, object_field, owner_of, upload_field
from meterkit.store import replies
from meterkit.store.gauge_levels import run_on_gauge

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.catalog import Storage
    from meterkit.storage.object_events import ObjectEvent, Owner
    from meterkit.store.store import Store

REMOVED: Final = 0
STORED: Final = 1
AT_ONCE: Final = 500
"""How many corrections the script takes at most."""

_WITHOUT_NOTICE: Final = 5
_KNOWN: Final = (int, int, int, bytes, bytes)


class Correction(NamedTuple):
    """A version that a listing has and the store has not, or the reverse; its arguments of the script."""

    field: str
    kind: int
    size: int
    at_ms: int
    sequencer: str
    type: str
    is_single: bool
    upload: str = ""


class Window(NamedTuple):
    """When a listing was made, by the clock of the object store.

    Attributes:
        since_ms: each event before it is in the listing.
        until_ms: no event from then on is in it.
    """

    since_ms: int
    until_ms: int


class Shelved(NamedTuple):
    """What the script has done: by how many bytes the level has moved, and whether to list again."""

    moved: int
    is_unclear: bool


class Known(NamedTuple):
    """What the store keeps of a version."""

    is_there: bool
    size: int
    at_ms: int
    type: str

    @classmethod
    def read(cls, packed: bytes) -> Known:
        """Read a field. Raises ValueError where it is damaged."""
        values: list[Any] = unpack_field(packed)
        if tuple(map(type, values)) != _KNOWN:
            raise ValueError(f"not an object: {packed!r:.80}")
        kind, size, at_ms, _, of_type = values
        return cls(kind != REMOVED, size, at_ms, of_type.decode())


async def count_events(store: Store, storage: Storage, events: Iterable[ObjectEvent]) -> int:
    """Count events, in any order and repeated as they come; how many of them are of no customer's object.

    Raises:
        StoreError: the store does not answer. Which of the events have counted is not known; those that have
            count no second time.
    """
    changes: defaultdict[tuple[str, str], list[Correction]] = defaultdict(list)
    unclear, foreign = set[tuple[str, str]](), 0
    for event in events:
        owner = owner_of(storage, event.bucket, event.key)
        if owner is None:
            foreign += 1
            continue
        place = owner.customer, event.bucket
        if event.change == "unclear":
            unclear.add(place)
            changes[place] += []
        else:
            changes[place].append(_change(event, owner))
    for (customer, bucket), found in changes.items():
        for first in range(0, len(found) or 1, AT_ONCE):
            await shelve(
                store,
                storage,
                customer,
                bucket_tag(bucket),
                found[first : first + AT_ONCE],
                is_unclear=(customer, bucket) in unclear,
            )
    return foreign


def _change(event: ObjectEvent, owner: Owner) -> Correction:
    return Correction(
        object_field(event.bucket, event.key, event.version),
        STORED if event.change == "stored" else REMOVED,
        event.size,
        event.at_ms,
        event.sequencer,
        owner.type,
        event.version != NULL_VERSION,
        upload_field(event.bucket, event.key) if event.change == "stored" else "",
    )


async def shelve(
    store: Store,
    storage: Storage,
    customer: str,
    tag: str,
    changes: Sequence[Correction],
    *,
    window: Window | None = None,
    is_unclear: bool = False,
) -> Shelved:
    """Run the script on changes in the bucket of a tag. Raises StoreError."""
    view, gauge, hour = store.cache.get(customer), storage.gauge, store.now_ms() // HOUR_MS
    names = [
        *(view.keys.levels, view.keys.state, view.keys.notices, view.keys.objects),
        *(store.keys.relist(view.shard), view.keys.history),
        *(store.keys.presigned(customer, hour - 1), store.keys.presigned(customer, hour)),
    ]
    listed = ("", "") if window is None else window
    given = [int(value) if isinstance(value, bool) else value for change in changes for value in change]
    reply = await run_on_gauge(
        store,
        "record_objects",
        names,
        view,
        gauge,
        lambda thresholds: (customer, thresholds, tag, *listed, "relist" if is_unclear else "", *given),
    )
    if reply[0] != replies.ALLOWED:
        raise StoreError(
            f"{gauge} of customer {customer!r}: the level is {reply[2]}, with its objects it would pass"
            f" {QUANTITY_MAX}; nothing is changed",
            executed=False,
        )
    if len(reply) > _WITHOUT_NOTICE:
        view.cache.on_notice(view.shard)
    return Shelved(int(reply[3]), bool(reply[4]))
