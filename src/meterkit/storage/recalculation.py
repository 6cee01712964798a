"""Recalculation: list buckets into a temporary database, and correct the stored objects.

As a dictionary, the versions of a large bucket took gigabytes of memory.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from contextlib import aclosing
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from meterkit.catalog import OTHER_TYPE
from meterkit.customers.sorted_customers import TemporaryTables
from meterkit.decisions.gauges import StoredLevel
from meterkit.decisions.packed import unpack_field
from meterkit.errors import StoreError
from meterkit.storage.object_owners import (
    AT_ONCE,
    REMOVED,
    STORED,
    TAG_LENGTH,
    ObjectChange,
    ObjectRecord,
    Window,
    apply_changes,
    bucket_tag,
    find_owner,
    object_field,
)
from meterkit.store.input_checks import is_customer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Storage
    from meterkit.storage.aws import ListingPage
    from meterkit.store.store import Store

_CUSTOMERS_AT_ONCE: Final = 1_000
_CREATE_TABLES: Final = """
PRAGMA journal_mode = OFF;
PRAGMA temp_store = FILE;
CREATE TABLE listed (customer TEXT, field TEXT, size INTEGER, type TEXT);
CREATE TABLE known
  (field TEXT PRIMARY KEY, is_there INTEGER, size INTEGER, at_ms INTEGER, type TEXT) WITHOUT ROWID;
CREATE TABLE customers (customer TEXT PRIMARY KEY) WITHOUT ROWID;
BEGIN;
"""
_SORT_LISTING: Final = """
CREATE INDEX sorted ON listed (customer, field, size, type);
INSERT OR IGNORE INTO customers SELECT DISTINCT customer FROM listed;
BEGIN;
"""


class ListedVersion(NamedTuple):
    """A version of an object in a bucket; ``field`` is its digest."""

    customer: str
    field: str
    size: int
    type: str


class VersionDifference(NamedTuple):
    """A version that differs between a listing and the store; None on the side that lacks it."""

    field: str
    listed: tuple[int, str] | None
    known: ObjectRecord | None


def find_differences(
    listed: Iterable[tuple[str, int, str]], known: Iterable[tuple[str, ObjectRecord]]
) -> Iterator[VersionDifference]:
    """Yield the find_differences between a listing and the store's records, both sorted by field. Pure.

    A record of a removed version is a difference as well: it is no longer needed.
    """
    records, versions = iter(known), iter(listed)
    has, lists = next(records, None), next(versions, None)
    while True:
        if has is None or (lists is not None and lists[0] < has[0]):
            if lists is None:
                return
            yield VersionDifference(lists[0], lists[1:], None)
            lists = next(versions, None)
        elif lists is None or has[0] < lists[0]:
            yield VersionDifference(has[0], None, has[1])
            has = next(records, None)
        else:
            if (True, *lists[1:]) != (has[1].is_there, has[1].size, has[1].type):
                yield VersionDifference(lists[0], lists[1:], has[1])
            has, lists = next(records, None), next(versions, None)


class BucketListing(TemporaryTables):
    """A temporary table of one listing, sorted by customer and field."""

    def __init__(self) -> None:
        super().__init__(_CREATE_TABLES, "the listing of a bucket")

    async def add(self, page: Sequence[ListedVersion]) -> None:
        """Add a page of the listing."""
        await self.insert("INSERT INTO listed VALUES (?, ?, ?, ?)", page)

    async def add_customers(self, names: Iterable[str]) -> None:
        """Add customers that may have no object in the listing."""
        await self.insert("INSERT OR IGNORE INTO customers VALUES (?)", [(name,) for name in names])

    async def sort(self) -> None:
        """Sort the listing; add no page after that."""
        await self.script(_SORT_LISTING)

    async def customers(self) -> AsyncGenerator[str]:
        """Yield all customers, sorted."""
        query = "SELECT customer FROM customers WHERE customer > ? ORDER BY customer LIMIT ?"
        last = ""
        while page := await self.all(query, last, _CUSTOMERS_AT_ONCE):
            for (last,) in page:
                yield last

    async def compare(
        self, customer: str, known: AsyncGenerator[Mapping[str, ObjectRecord]], *, at_once: int
    ) -> AsyncGenerator[list[VersionDifference]]:
        """Yield batches of find_differences between the listing and the store's records of a customer.

        Args:
            customer: the customer's id.
            known: pages of the store's records, by field.
            at_once: the size of a batch.
        """
        await self.call(lambda: self._database.execute("DELETE FROM known").close())
        async for page in known:
            rows = [(field, *one) for field, one in page.items()]
            await self.insert("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)", rows)
        found = find_differences(self._listed_of(customer), self._read_known())
        while batch := await self.call(lambda: list(islice(found, at_once))):
            yield batch

    def _listed_of(self, customer: str) -> Iterator[tuple[str, int, str]]:
        query = "SELECT field, size, type FROM listed WHERE customer = ? ORDER BY field"
        yield from self._database.execute(query, (customer,))

    def _read_known(self) -> Iterator[tuple[str, ObjectRecord]]:
        rows: Any = self._database.execute("SELECT * FROM known ORDER BY field")
        yield from ((field, ObjectRecord(bool(is_there), *rest)) for field, is_there, *rest in rows)


_SKEW_MS: Final = 60_000
"""Clocks of an object store's hosts may differ by this much."""
_KEYS_AT_ONCE: Final = 1_000
_NO_TAG: Final = " "
_FAILED_IN_A_ROW: Final = 10
"""After this many customers in a row the store counts as down: it is not one customer's damaged record."""


class BucketLister(Protocol):
    """Lists the buckets of an object store."""

    def pages(self, bucket: str, prefix: str) -> AsyncIterator[ListingPage]:
        """Yield all versions of objects with a key prefix, page by page."""
        ...


class RecalculationResult(NamedTuple):
    """Drift in bytes by customer, and the errors of customers that were skipped."""

    drift: Mapping[str, int]
    failed: Mapping[str, StoreError]


async def recalculate(
    store: Store, storage: Storage, lister: BucketLister, customer: str | None, *, dry_run: bool
) -> RecalculationResult:
    """List the buckets and correct the levels; see :meth:`ObjectStorage.recalculate`.

    Raises:
        StoreError: the store does not answer.
    """
    drift, failed, in_a_row = Counter[str](), dict[str, StoreError](), 0
    for bucket in dict.fromkeys(pattern.bucket for pattern in storage.objects):
        async with BucketListing() as listing:
            is_first = bucket == storage.objects[0].bucket
            async for names in _customers_with_bytes(store, storage.gauge, customer):
                await listing.add_customers(names)
                if is_first and not dry_run:
                    await _forget_former(store, storage, names)
            window = await _list_bucket(store, storage, bucket, customer, lister, listing)
            await listing.sort()
            async for name in listing.customers():
                try:
                    counted = await _read_levels(store, storage.gauge, name)
                    if is_first:  # Once for each customer.
                        drift[name] += counted.stored - counted.level
                        drift[name] += await _remove_old_buckets(
                            store, storage, name, counted, dry_run=dry_run
                        )
                    tag = bucket_tag(bucket)
                    drift[name] += await _correct_bucket(
                        store, storage, name, tag, counted, listing, window, dry_run=dry_run
                    )
                except StoreError as error:
                    failed[name], in_a_row = error, in_a_row + 1
                    if in_a_row == _FAILED_IN_A_ROW:
                        raise
                else:
                    in_a_row = 0
                if not drift[name]:
                    del drift[name]
    return RecalculationResult(dict(sorted(drift.items())), failed)


async def _list_bucket(
    store: Store,
    storage: Storage,
    bucket: str,
    customer: str | None,
    lister: BucketLister,
    listing: BucketListing,
) -> Window:
    """Add each version of an object in a bucket to a listing; return the time window of the listing."""
    since_ms = until_ms = store.now_ms()
    is_first = True
    for prefix in _list_prefixes(storage, bucket, customer):
        async for page in lister.pages(bucket, prefix):
            until_ms = store.now_ms() if page.at_ms is None else page.at_ms
            since_ms = until_ms if is_first and page.at_ms is not None else since_ms
            is_first = False
            found: list[ListedVersion] = []
            for key, version, size in page.versions:
                owner = find_owner(storage, bucket, key)
                if owner is not None and customer in {None, owner.customer}:
                    field = object_field(bucket, key, version)
                    found.append(ListedVersion(owner.customer, field, size, owner.type))
            await listing.add(found)
    return Window(since_ms - _SKEW_MS, until_ms + _SKEW_MS)


def _list_prefixes(storage: Storage, bucket: str, customer: str | None) -> list[str]:
    """Return key prefixes that cover all counted keys, each key once."""
    keys = [pattern.key for pattern in storage.objects if pattern.bucket == bucket]
    keys = keys if customer is None else [key.replace("{customer}", customer) for key in keys]
    prefixes = {key.partition("{")[0] for key in keys}
    return [
        one
        for one in sorted(prefixes)
        if not any(one != other and one.startswith(other) for other in prefixes)
    ]


class _CountedLevels(NamedTuple):
    """Stored bytes of a customer, as the store has them.

    Attributes:
        level: of the gauge.
        stored: the sum of the recorded objects; 0 if they are of another gauge.
        is_former: whether objects were recorded for a gauge that the plans file named before.
    """

    level: int
    stored: int
    is_former: bool


async def _read_levels(store: Store, gauge: str, customer: str) -> _CountedLevels:
    admin, key = await store.admin(), store.keys.customer(customer).levels
    kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(key))
    levels = {name.decode(): packed for name, packed in kept.items()}
    is_former = _has_former(levels, gauge)
    try:
        level, stored = (StoredLevel.read(levels.get(name)).level for name in (gauge, f"{gauge}:"))
    except ValueError as error:
        raise StoreError(f"the level of {gauge} of customer {customer!r} cannot be read: {error}") from error
    return _CountedLevels(level, 0 if is_former else stored, is_former)


def _has_former(levels: Iterable[str], gauge: str) -> bool:
    """Whether fields of levels have sums for another gauge. Pure."""
    return any(":" in name and not name.startswith(f"{gauge}:") for name in levels)


async def _forget_former(store: Store, storage: Storage, customers: Sequence[str]) -> None:
    """Forget objects of customers that were recorded for another gauge; a listing then counts all anew.

    Before it begins: it may lack what events tell from then on.

    Raises:
        StoreError: the store does not answer.
    """
    admin, keys = await store.admin(), [store.keys.customer(name) for name in customers]
    replies = await admin.ask_each(("hkeys", one.levels) for one in keys)
    for one, reply in zip(keys, replies, strict=True):
        # One that cannot be read is found again when its levels are corrected.
        levels = [] if isinstance(reply, Exception) else [name.decode() for name in reply]
        if _has_former(levels, storage.gauge):
            sums = [name for name in levels if ":" in name]
            since = [f"{storage.gauge}:{name}" for name in ("", *storage.types, OTHER_TYPE)]
            pipe = admin.client.pipeline(transaction=True)
            pipe.hdel(one.levels, *sums, *since)
            pipe.delete(one.objects)
            await admin.ask(pipe.execute())


async def _is_listed_later(store: Store, customer: str, tag: str, window: Window) -> bool:
    """Whether a listing that began later was applied; an instant ahead of the clock does not count."""
    admin, key = await store.admin(), store.keys.customer(customer).objects
    packed: bytes | None = await admin.ask(admin.client.hget(key, tag))
    try:
        since_ms = 0 if packed is None else int(unpack_field(packed)[0])
    except (ValueError, IndexError) as error:
        raise StoreError(f"object records of customer {customer!r} cannot be read: {error}") from error
    return window.since_ms < since_ms <= store.now_ms()


async def _correct_bucket(
    store: Store,
    storage: Storage,
    customer: str,
    tag: str,
    counted: _CountedLevels,
    listing: BucketListing,
    window: Window,
    *,
    dry_run: bool,
) -> int:
    """Correct a customer's records of a bucket by a listing; return the drift in bytes.

    Raises:
        StoreError: the store does not answer, or a record is damaged.
    """
    if await _is_listed_later(store, customer, tag, window):
        return 0
    if not dry_run:  # From now on, events cannot change versions of the listing.
        await apply_changes(store, storage, customer, tag, [], window=window)
    drift = 0
    records = _read_records(store, customer, _NO_TAG if dry_run and counted.is_former else tag)
    async for batch in listing.compare(customer, records, at_once=AT_ONCE):
        if dry_run:
            drift += sum(_drift_bytes(one) for one in batch if _is_listed(one, window))
        else:
            found = [_make_correction(one) for one in batch]
            drift += (await apply_changes(store, storage, customer, tag, found, window=window)).moved
    return drift


async def _remove_old_buckets(
    store: Store, storage: Storage, customer: str, counted: _CountedLevels, *, dry_run: bool
) -> int:
    """Remove a customer's records of buckets that the plans file no longer names; return the bytes.

    Raises:
        StoreError: the store does not answer, or a record is damaged.
    """
    if counted.is_former:  # No object is recorded any more.
        return 0
    tags = {bucket_tag(pattern.bucket) for pattern in storage.objects}
    now_ms, drift = store.now_ms(), 0
    # Events of such a bucket do not count: its window may end now.
    window = Window(now_ms + _SKEW_MS, now_ms + _SKEW_MS)
    async for page in _read_records(store, customer):
        removed: defaultdict[str, list[VersionDifference]] = defaultdict(list)
        for field, known in page.items():
            if field[:TAG_LENGTH] not in tags:
                removed[field[:TAG_LENGTH]].append(VersionDifference(field, None, known))
        for tag, found in removed.items():
            drift += sum(map(_drift_bytes, found))
            for first in () if dry_run else range(0, len(found), AT_ONCE):
                corrections = [_make_correction(one) for one in found[first : first + AT_ONCE]]
                await apply_changes(store, storage, customer, tag, corrections, window=window)
    return drift


def _make_correction(one: VersionDifference) -> ObjectChange:
    """Return the correction that makes the store agree with a listing. Pure."""
    kind, (size, of_type) = (REMOVED, (0, OTHER_TYPE)) if one.listed is None else (STORED, one.listed)
    return ObjectChange(one.field, kind, size, 0, "", of_type, is_single=False)


def _is_listed(one: VersionDifference, window: Window) -> bool:
    """Whether a difference is older than the listing, which may lack events of its own time. Pure."""
    return one.known is None or one.known.at_ms < window.since_ms


def _drift_bytes(one: VersionDifference) -> int:
    """Return the bytes that the listing has more than the store. Pure."""
    counted = one.known.size if one.known is not None and one.known.is_there else 0
    return (0 if one.listed is None else one.listed[0]) - counted


async def _read_records(
    store: Store, customer: str, tag: str = "????"
) -> AsyncGenerator[Mapping[str, ObjectRecord]]:
    """Yield a customer's records of a bucket, by default of all buckets, page by page."""
    key = store.keys.customer(customer).objects
    cursor: Any = None
    while cursor != 0:
        cursor, page = await store.ask("hscan", key, cursor or 0, match=f"{tag}?*", count=_KEYS_AT_ONCE)
        try:
            yield {field.decode(): ObjectRecord.read(packed) for field, packed in page.items()}
        except ValueError as error:
            raise StoreError(f"object records of customer {customer!r} cannot be read: {error}") from error


async def _customers_with_bytes(store: Store, gauge: str, customer: str | None) -> AsyncGenerator[list[str]]:
    """Yield the ids of customers with objects or a level, page by page, perhaps twice; or that of one.

    Raises:
        StoreError: the store does not answer.
    """
    if customer is not None:
        yield [customer]
        return
    prefix = store.keys.prefix
    pattern = re.compile(rf"{re.escape(prefix)}:\{{\d+\}}:([qv]):(.*)", re.DOTALL)
    admin = await store.admin()
    async with aclosing(admin.scan(f"{prefix}:{{*}}:[qv]:*", _KEYS_AT_ONCE)) as pages:
        async for keys in pages:
            found = (pattern.fullmatch(key.decode("utf-8", "surrogateescape")) for key in keys)
            named = [(name[1], name[2]) for name in found if name is not None and is_customer(name[2])]
            yield [name for kind, name in named if kind == "q"]
            with_levels = [name for kind, name in named if kind == "v"]
            levels = await admin.ask_each(
                ("hget", store.keys.customer(name).levels, gauge) for name in with_levels
            )
            yield [name for name, level in zip(with_levels, levels, strict=True) if level is not None]
