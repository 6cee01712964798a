"""Records of stored objects and their owners; one script applies an event or a listing."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections import defaultdict
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.catalog import OTHER_TYPE, QUANTITY_MAX
from meterkit.decisions.packed import unpack_field
from meterkit.decisions.periods import HOUR_MS
from meterkit.errors import CustomerError, StoreError
from meterkit.redis.server import is_key_error
from meterkit.storage.object_events import NULL_VERSION
from meterkit.store import replies
from meterkit.store.gauge_levels import run_on_gauge
from meterkit.store.input_checks import check_customer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.catalog import Storage
    from meterkit.storage.object_events import ObjectEvent
    from meterkit.store.store import Store

REMOVED: Final = 0
STORED: Final = 1
AT_ONCE: Final = 500
"""Changes that one call of the script takes."""

TAG_LENGTH: Final = 4
_WITHOUT_NOTICE: Final = 5
_KNOWN: Final = (int, int, int, bytes, bytes)
_FIELDS: Final = {
    "{customer}": "(?P<customer>[^/]+)",
    "{type}": "(?P<type>[^/]+)",
    "{path:path}": "(?P<path>.+)",
}
_FIELD: Final = re.compile(r"(\{[a-z:]+\})")
_KEY_BYTES_MAX: Final = 1024
_ENCODED_SLASH: Final = "%2f"


@cache
def bucket_tag(bucket: str) -> str:
    """Return the four characters with which the fields of a bucket begin."""
    return urlsafe_b64encode(blake2b(bucket.encode(), digest_size=3).digest()).decode()


def object_field(bucket: str, key: str, version: str) -> str:
    """Return the field of an object's version: a digest, because keys may contain personal data."""
    name = f"{bucket}\0{key}\0{version}".encode("utf-8", "surrogatepass")
    return bucket_tag(bucket) + urlsafe_b64encode(blake2b(name, digest_size=18).digest()).decode()


def upload_field(bucket: str, key: str) -> str:
    """Return the field of a presigned upload, whose version is not known yet."""
    return object_field(bucket, key, "")


class ObjectChange(NamedTuple):
    """A change of one version of an object; the fields are arguments of the script."""

    field: str
    kind: int
    size: int
    at_ms: int
    sequencer: str
    type: str
    is_single: bool
    upload: str = ""


class Window(NamedTuple):
    """The time of a listing, by the clock of the object store.

    Attributes:
        since_ms: the listing has each earlier event.
        until_ms: the listing has no event from then on.
    """

    since_ms: int
    until_ms: int


class AppliedChanges(NamedTuple):
    """The change of the level in bytes, and whether the bucket must be listed again."""

    moved: int
    is_unclear: bool


class ObjectRecord(NamedTuple):
    """The store's record of a version."""

    is_there: bool
    size: int
    at_ms: int
    type: str

    @classmethod
    def read(cls, packed: bytes) -> ObjectRecord:
        """Parse a field. Raises ValueError if it is damaged."""
        values: list[Any] = unpack_field(packed)
        if tuple(map(type, values)) != _KNOWN:
            raise ValueError(f"not an object record: {packed!r:.80}")
        kind, size, at_ms, _, of_type = values
        return cls(kind != REMOVED, size, at_ms, of_type.decode())


async def apply_events(store: Store, storage: Storage, events: Iterable[ObjectEvent]) -> int:
    """Apply events, in any order and repeatedly; return how many belong to no customer's object.

    Raises:
        StoreError: the store does not answer; or one customer's objects cannot be recorded, and the events of
            the others are applied. Repeating them is safe.
    """
    changes: defaultdict[tuple[str, str], list[ObjectChange]] = defaultdict(list)
    unclear, foreign = set[tuple[str, str]](), 0
    for event in events:
        owner = find_owner(storage, event.bucket, event.key)
        if owner is None:
            foreign += 1
            continue
        target = owner.customer, event.bucket
        if event.change == "unclear":
            unclear.add(target)
            changes[target] += []
        else:
            changes[target].append(_make_change(event, owner))
    failed: list[StoreError] = []
    for (customer, bucket), found in changes.items():
        tag, is_unclear = bucket_tag(bucket), (customer, bucket) in unclear
        try:
            for first in range(0, len(found) or 1, AT_ONCE):
                part = found[first : first + AT_ONCE]
                await apply_changes(store, storage, customer, tag, part, is_unclear=is_unclear)
        except StoreError as error:
            if error.__cause__ is not None and not is_key_error(error.__cause__):
                raise  # The store does not answer: each further customer would wait for its timeout.
            failed.append(error)
    if failed:
        raise failed[0]
    return foreign


def _make_change(event: ObjectEvent, owner: ObjectOwner) -> ObjectChange:
    return ObjectChange(
        object_field(event.bucket, event.key, event.version),
        STORED if event.change == "stored" else REMOVED,
        event.size,
        event.at_ms,
        event.sequencer,
        owner.type,
        event.version != NULL_VERSION,
        upload_field(event.bucket, event.key) if event.change == "stored" else "",
    )


async def apply_changes(
    store: Store,
    storage: Storage,
    customer: str,
    tag: str,
    changes: Sequence[ObjectChange],
    *,
    window: Window | None = None,
    is_unclear: bool = False,
) -> AppliedChanges:
    """Apply changes of objects in one bucket with the script ``record_objects``. Raises StoreError."""
    view, gauge, hour = store.cache.get(customer), storage.gauge, store.now_ms() // HOUR_MS
    names = [
        *(view.keys.levels, view.keys.state, view.keys.notices, view.keys.objects),
        *(store.keys.relist(view.shard), view.keys.history),
        *(store.keys.presigned(customer, hour - 1), store.keys.presigned(customer, hour), view.keys.over),
    ]
    listed = ("", "") if window is None else window
    arguments = [int(value) if isinstance(value, bool) else value for change in changes for value in change]
    reply = await run_on_gauge(
        store,
        "record_objects",
        names,
        view,
        gauge,
        lambda thresholds: (customer, thresholds, tag, *listed, "relist" if is_unclear else "", *arguments),
    )
    if reply[0] != replies.ALLOWED:
        raise StoreError(
            f"{gauge} of customer {customer!r}: the level is {reply[2]}; these objects would raise it above"
            f" {QUANTITY_MAX}; nothing was changed",
            executed=False,
        )
    if len(reply) > _WITHOUT_NOTICE:
        view.cache.on_notice(view.shard)
    return AppliedChanges(int(reply[3]), bool(reply[4]))


class ObjectOwner(NamedTuple):
    """Customer of an object, and its type in the usage."""

    customer: str
    type: str


def find_owner(storage: Storage, bucket: str, key: str) -> ObjectOwner | None:
    """Match a decoded key against the plans file; None: no customer owns it, and it does not count.

    A key with the segment ``..`` or a literal ``%2F`` has no owner: another reader of the key could assign
    it to another customer.
    """
    if ".." in key.split("/") or _ENCODED_SLASH in key.lower():
        return None
    for pattern in storage.objects:
        found = _matcher(pattern.key).fullmatch(key) if pattern.bucket == bucket else None
        if found is not None:
            fields = found.groupdict()
            try:
                customer = check_customer(fields["customer"])
            except CustomerError:
                return None
            kind = fields.get("type")
            return ObjectOwner(customer, kind if kind in storage.types else OTHER_TYPE)
    return None


def find_bucket(storage: Storage, customer: str, key: str) -> str | None:
    """Find the bucket in which a customer owns a key; None: there is none, or S3 refuses the key."""
    try:
        is_key = len(key.encode()) <= _KEY_BYTES_MAX
    except (AttributeError, UnicodeEncodeError):
        is_key = False
    if not is_key:
        return None
    for pattern in storage.objects:
        owner = find_owner(storage, pattern.bucket, key)
        if owner is not None and owner.customer == customer:
            return pattern.bucket
    return None


@cache
def _matcher(template: str) -> re.Pattern[str]:
    parts = (_FIELDS.get(part, re.escape(part)) for part in _FIELD.split(template))
    return re.compile("".join(parts), re.DOTALL)
