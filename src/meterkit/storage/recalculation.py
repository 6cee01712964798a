"""Recalculation: list buckets into a temporary database, and correct the stored objects."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from meterkit.catalog import OTHER_TYPE
from meterkit.customers.temporary_tables import TemporaryTables
from meterkit.errors import StoreError
from meterkit.storage.object_events import TAG_LENGTH, bucket_tag, object_field, owner_of
from meterkit.storage.object_records import AT_ONCE, REMOVED, STORED, Correction, Known, Window, shelve
from meterkit.store.input_checks import is_customer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Storage
    from meterkit.storage.aws import Page
    from meterkit.store.store import Store

_CUSTOMERS_AT_ONCE: Final = 1_000
_TABLES: Final = """
PRAGMA journal_mode = OFF;
PRAGMA temp_store = FILE;
CREATE TABLE listed (customer TEXT, field TEXT, size INTEGER, type TEXT);
CREATE TABLE known
  (field TEXT PRIMARY KEY, is_there INTEGER, size INTEGER, at_ms INTEGER, type TEXT) WITHOUT ROWID;
CREATE TABLE customers (customer TEXT PRIMARY KEY) WITHOUT ROWID;
BEGIN;
"""
_SORTED: Final = """
CREATE INDEX sorted ON listed (customer, field, size, type);
INSERT OR IGNORE INTO customers SELECT DISTINCT customer FROM listed;
BEGIN;
"""


class Listed(NamedTuple):
    """A version of an object in a bucket; ``field`` is its digest."""

    customer: str
    field: str
    size: int
    type: str


class Difference(NamedTuple):
    """A version for which a listing and the store differ; each is None where it is not there."""

    field: str
    listed: tuple[int, str] | None
    known: Known | None


def differences(
    listed: Iterable[tuple[str, int, str]], known: Iterable[tuple[str, Known]]
) -> Iterator[Difference]:
    """Merge a listing with what the store keeps, both sorted by field: where they differ. Pure.

    What the store keeps of a removed version differs from a listing without it: it is not needed any more.
    """
    ours, theirs = iter(known), iter(listed)
    has, lists = next(ours, None), next(theirs, None)
    while True:
        if has is None or (lists is not None and lists[0] < has[0]):
            if lists is None:
                return
            yield Difference(lists[0], lists[1:], None)
            lists = next(theirs, None)
        elif lists is None or has[0] < lists[0]:
            yield Difference(has[0], None, has[1])
            has = next(ours, None)
        else:
            if (True, *lists[1:]) != (has[1].is_there, has[1].size, has[1].type):
                yield Difference(lists[0], lists[1:], has[1])
            has, lists = next(ours, None), next(theirs, None)


class Listing(TemporaryTables):
    """A temporary table of one listing, sorted by customer and field."""

    def __init__(self) -> None:
        super().__init__(_TABLES, "the listing of a bucket")

    async def add(self, page: Sequence[Listed]) -> None:
        """Add a page of the listing."""
        await self.insert("INSERT INTO listed VALUES (?, ?, ?, ?)", page)

    async def add_customers(self, names: Iterable[str]) -> None:
        """Add customers that may have no object in the listing."""
        await self.insert("INSERT OR IGNORE INTO customers VALUES (?)", [(name,) for name in names])

    async def sort(self) -> None:
        """Sort the listing; add no page after that."""
        await self.script(_SORTED)

    async def customers(self) -> AsyncGenerator[str]:
        """All customers, sorted."""
        query = "SELECT customer FROM customers WHERE customer > ? ORDER BY customer LIMIT ?"
        last = ""
        while page := await self.all(query, last, _CUSTOMERS_AT_ONCE):
            for (last,) in page:
                yield last

    async def compare(
        self, customer: str, known: AsyncGenerator[Mapping[str, Known]], *, at_once: int
    ) -> AsyncGenerator[list[Difference]]:
        """Where the listing differs from what the store keeps of a customer's objects.

        Args:
            customer: whose objects.
            known: pages of what the store keeps, by field.
            at_once: how many differences a batch has at most.
        """
        await self.call(lambda: self._database.execute("DELETE FROM known").close())
        async for page in known:
            rows = [(field, *one) for field, one in page.items()]
            await self.insert("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)", rows)
        found = differences(self._listed_of(customer), self._known())
        while batch := await self.call(lambda: list(islice(found, at_once))):
            yield batch

    def _listed_of(self, customer: str) -> Iterator[tuple[str, int, str]]:
        query = "SELECT field, size, type FROM listed WHERE customer = ? ORDER BY field"
        yield from self._database.execute(query, (customer,))

    def _known(self) -> Iterator[tuple[str, Known]]:
        rows: Any = self._database.execute("SELECT * FROM known ORDER BY field")
        yield from ((field, Known(bool(is_there), *rest)) for field, is_there, *rest in rows)


_SKEW_MS: Final = 60_000
"""How far the clocks of an object store's hosts may differ."""
_KEYS_AT_ONCE: Final = 1_000
_FAILED_IN_A_ROW: Final = 10
"""After so many customers in a row the store is away, and no single customer's objects are damaged."""


class Lister(Protocol):
    """As much of an object store as a recalculation uses."""

    def pages(self, bucket: str, prefix: str) -> AsyncIterator[Page]:
        """All versions of all objects whose key begins so, page by page."""
        ...


class Recalculated(NamedTuple):
    """The outcome of a recalculation: by customer, the drift in bytes, and why another was left as it was."""

    drift: Mapping[str, int]
    failed: Mapping[str, StoreError]


async def recalculate(
    store: Store, storage: Storage, lister: Lister, customer: str | None, *, dry_run: bool
) -> Recalculated:
    """List the buckets and correct the levels; see :meth:`ObjectStorage.recalculate`.

    Raises:
        StoreError: the store does not answer.
    """
    drift, failed, in_a_row = Counter[str](), dict[str, StoreError](), 0
    for bucket in dict.fromkeys(pattern.bucket for pattern in storage.objects):
        async with Listing() as listing:
            window = await _list(store, storage, bucket, customer, lister, listing)
            if customer is None:
                async for names in _customers_with_objects(store):
                    await listing.add_customers(names)
            else:
                await listing.add_customers([customer])
            await listing.sort()
            async for name in listing.customers():
                try:
                    if bucket == storage.objects[0].bucket:  # Once for each customer.
                        drift[name] += await _retire(store, storage, name, dry_run=dry_run)
                    tag = bucket_tag(bucket)
                    drift[name] += await _relist(store, storage, name, tag, listing, window, dry_run=dry_run)
                except StoreError as error:
                    failed[name], in_a_row = error, in_a_row + 1
                    if in_a_row == _FAILED_IN_A_ROW:
                        raise
                else:
                    in_a_row = 0
                if not drift[name]:
                    del drift[name]
    return Recalculated(dict(sorted(drift.items())), failed)


async def _list(
    store: Store, storage: Storage, bucket: str, customer: str | None, lister: Lister, listing: Listing
) -> Window:
    """Add size and type of each version of an object in a bucket to a listing; when it was made."""
    since_ms = until_ms = store.now_ms()
    is_first = True
    for prefix in _prefixes(storage, bucket, customer):
        async for page in lister.pages(bucket, prefix):
            until_ms = store.now_ms() if page.at_ms is None else page.at_ms
            since_ms = until_ms if is_first and page.at_ms is not None else since_ms
            is_first = False
            found: list[Listed] = []
            for key, version, size in page.versions:
                owner = owner_of(storage, bucket, key)
                if owner is not None and customer in {None, owner.customer}:
                    field = object_field(bucket, key, version)
                    found.append(Listed(owner.customer, field, size, owner.type))
            await listing.add(found)
    return Window(since_ms - _SKEW_MS, until_ms + _SKEW_MS)


def _prefixes(storage: Storage, bucket: str, customer: str | None) -> list[str]:
    """What all keys begin with that count; each key is listed under one of them."""
    keys = [pattern.key for pattern in storage.objects if pattern.bucket == bucket]
    keys = keys if customer is None else [key.replace("{customer}", customer) for key in keys]
    asked = {key.partition("{")[0] for key in keys}
    return [
        one for one in sorted(asked) if not any(one != other and one.startswith(other) for other in asked)
    ]


async def _relist(
    store: Store,
    storage: Storage,
    customer: str,
    tag: str,
    listing: Listing,
    window: Window,
    *,
    dry_run: bool,
) -> int:
    """Correct what is known of a customer's objects in a bucket by a listing; by how many bytes it was wrong.

    Raises:
        StoreError: the store does not answer, or what it keeps is damaged.
    """
    if not dry_run:  # From now on no event may change what the listing has.
        await shelve(store, storage, customer, tag, [], window=window)
    drift = 0
    async for batch in listing.compare(customer, _known(store, customer, tag), at_once=AT_ONCE):
        if dry_run:
            drift += sum(_drift(one) for one in batch if _is_listed(one, window))
        else:
            found = [_correction(one) for one in batch]
            drift += (await shelve(store, storage, customer, tag, found, window=window)).moved
    return drift


async def _retire(store: Store, storage: Storage, customer: str, *, dry_run: bool) -> int:
    """Take out a customer's objects in buckets that the plans file names no more; by how many bytes.

    Raises:
        StoreError: the store does not answer, or what it keeps is damaged.
    """
    tags = {bucket_tag(pattern.bucket) for pattern in storage.objects}
    now_ms, drift = store.now_ms(), 0
    # No event of such a bucket counts: this "listing" has all that there were.
    window = Window(now_ms + _SKEW_MS, now_ms + _SKEW_MS)
    async for page in _known(store, customer):
        retired: defaultdict[str, list[Difference]] = defaultdict(list)
        for field, known in page.items():
            if field[:TAG_LENGTH] not in tags:
                retired[field[:TAG_LENGTH]].append(Difference(field, None, known))
        for tag, found in retired.items():
            drift += sum(map(_drift, found))
            for first in () if dry_run else range(0, len(found), AT_ONCE):
                corrections = [_correction(one) for one in found[first : first + AT_ONCE]]
                await shelve(store, storage, customer, tag, corrections, window=window)
    return drift


def _correction(one: Difference) -> Correction:
    """What the script must do to agree with a listing. Pure."""
    kind, (size, of_type) = (REMOVED, (0, OTHER_TYPE)) if one.listed is None else (STORED, one.listed)
    return Correction(one.field, kind, size, 0, "", of_type, is_single=False)


def _is_listed(one: Difference, window: Window) -> bool:
    """Whether the listing has what events said: those of its own time it may lack. Pure."""
    return one.known is None or one.known.at_ms < window.since_ms


def _drift(one: Difference) -> int:
    """How many bytes the listing has more. Pure."""
    counted = one.known.size if one.known is not None and one.known.is_there else 0
    return (0 if one.listed is None else one.listed[0]) - counted


async def _known(store: Store, customer: str, tag: str = "????") -> AsyncGenerator[Mapping[str, Known]]:
    """What the store keeps of a customer's objects in a bucket, or in all, by field, page by page."""
    key = store.keys.customer(customer).objects
    admin = await store.admin()
    cursor: Any = None
    while cursor != 0:
        cursor, page = await admin.ask(
            admin.client.hscan(key, cursor or 0, match=f"{tag}?*", count=_KEYS_AT_ONCE)
        )
        try:
            yield {field.decode(): Known.read(packed) for field, packed in page.items()}
        except ValueError as error:
            raise StoreError(f"the objects of customer {customer!r} cannot be read: {error}") from error


async def _customers_with_objects(store: Store) -> AsyncGenerator[list[str]]:
    """The ids of all customers with objects, page by page; some come twice. Raises StoreError."""
    prefix = store.keys.prefix
    named = re.compile(rf"{re.escape(prefix)}:\{{\d+\}}:q:(.*)", re.DOTALL)
    admin = await store.admin()
    for server in await admin.servers():
        cursor = None
        while cursor != 0:
            scan = server.client.scan(cursor or 0, match=f"{prefix}:{{*}}:q:*", count=_KEYS_AT_ONCE)
            cursor, keys = await server.ask(scan)
            found = (named.fullmatch(key.decode("utf-8", "surrogateescape")) for key in keys)
            yield [name[1] for name in found if name is not None and is_customer(name[1])]
