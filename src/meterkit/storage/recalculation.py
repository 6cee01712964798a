"""Recalculation: list buckets, and correct what the store keeps of their objects."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from meterkit.catalog import OTHER_TYPE
from meterkit.errors import StoreError
from meterkit.storage.listing import Listed, Listing
from meterkit.storage.objects import bucket_tag, object_field, owner_of
from meterkit.storage.shelf import AT_ONCE, REMOVED, STORED, Correction, Known, Window, shelve
from meterkit.store.customer_id import is_customer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from meterkit.catalog import Storage
    from meterkit.storage.aws import Page
    from meterkit.storage.listing import Difference
    from meterkit.store.store import Store

__all__ = ["Lister", "Recalculated", "recalculate"]

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
                    drift[name] += await _relist(
                        store, storage, name, bucket, listing, window, dry_run=dry_run
                    )
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
    bucket: str,
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
        await shelve(store, storage, customer, bucket, [], window=window)
    drift = 0
    async for batch in listing.compare(customer, _known(store, customer, bucket), at_once=AT_ONCE):
        if dry_run:
            drift += sum(_drift(one) for one in batch if _is_listed(one, window))
        else:
            found = [_correction(one) for one in batch]
            drift += (await shelve(store, storage, customer, bucket, found, window=window)).moved
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


async def _known(store: Store, customer: str, bucket: str) -> AsyncGenerator[Mapping[str, Known]]:
    """What the store keeps of a customer's objects in a bucket by field, page by page."""
    key = store.keys.customer(customer).objects
    admin, tag = await store.admin(), bucket_tag(bucket)
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
