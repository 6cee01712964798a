"""A listing of a large bucket: compared by a sorted merge, and kept on disk instead of in memory."""
# Internals: the merge of two sorted streams, and its files.

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import NOW
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.errors import MeterkitError, StoreError
from meterkit.storage.aws import Page, Version
from meterkit.storage.recalculation import Difference, Listed, Listing, differences
from meterkit.storage.shelf import Known
from meterkit.testing import Clock
from storage.objects import Happened
from storage.test_histories import PLANS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

pytestmark = pytest.mark.anyio


def test_two_sorted_streams_are_merged() -> None:
    there = Known(is_there=True, size=1, at_ms=0, type="a")
    gone = Known(is_there=False, size=1, at_ms=0, type="a")
    listed = [("b", 1, "a"), ("c", 1, "a"), ("d", 2, "a"), ("e", 1, "a")]
    assert list(differences(listed, [("a", there), ("b", there), ("c", gone), ("d", there)])) == [
        Difference("a", None, there),
        Difference("c", (1, "a"), gone),
        Difference("d", (2, "a"), there),
        Difference("e", (1, "a"), None),
    ]


class Large:
    """A bucket with pages of a thousand objects."""

    def __init__(self, pages: int) -> None:
        self._pages = pages

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[Page]:
        del bucket
        for page in range(self._pages):
            keys = (f"{prefix}ada/images/{page}/{number}" for number in range(1000))
            yield Page([Version(key, "null", 7) for key in keys], None)


class Empty:
    """A store of objects without any."""

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[Page]:
        del bucket, prefix
        yield Page([], None)


def record(bucket: str, key: str, size: int) -> dict[str, object]:
    return {
        "eventVersion": "2.1",
        "eventTime": NOW.isoformat(),
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": size, "sequencer": "0A"}},
    }


async def test_objects_of_a_bucket_that_is_named_no_more_are_taken_out(store_url: str) -> None:
    moved = PLANS.replace("bucket: uploads", "bucket: moved")
    records = [record("uploads", "ada/images/a.png", 700), record("uploads", "bob/images/b.png", 40)]

    def kit_of(plans: str) -> MeterKit:
        return MeterKit(loads(plans), clock=Clock(NOW), redis_url=store_url, flush=False)

    async with kit_of(PLANS) as kit:
        await kit.storage.count(json.dumps({"Records": records}))
        assert await kit.gauges.get("ada", "storage") == 700
    async with kit_of(moved) as kit:
        await kit.storage.count(json.dumps({"Records": [record("moved", "ada/images/c.png", 5)]}))
        assert await kit.storage.recalculate(dry_run=True, lister=Empty()) == {"ada": -700, "bob": -40}
        assert await kit.storage.recalculate("bob", lister=Empty()) == {"bob": -40}
        assert await kit.storage.recalculate(lister=Empty()) == {"ada": -700}
        assert await kit.storage.recalculate(lister=Empty()) == {}
        assert await kit.gauges.get("ada", "storage") == 5  # An event of just now: no listing has it yet.
        assert await kit.gauges.get("bob", "storage") == 0


class Small:
    """A bucket of some objects with their sizes."""

    def __init__(self, objects: Mapping[str, int]) -> None:
        self._objects = objects

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[Page]:
        del bucket
        found = [(key, size) for key, size in self._objects.items() if key.startswith(prefix)]
        yield Page([Version(key, "null", size) for key, size in found], None)


async def test_a_key_under_two_patterns_is_listed_once() -> None:
    objects = (
        'objects: [{bucket: uploads, key: "shared/{customer}/{path:path}"},'
        ' {bucket: uploads, key: "{customer}/{type}/{path:path}"}]'
    )
    plans = PLANS.replace('objects: {bucket: uploads, key: "{customer}/{type}/{path:path}"}', objects)
    small = Small({"shared/ada/a": 5, "ada/images/a": 7, "bob/images/a": 9})
    async with MeterKit(loads(plans), clock=Clock(NOW), redis_url="memory://", flush=False) as kit:
        assert await kit.storage.recalculate(dry_run=True, lister=small) == {"ada": 12, "bob": 9}
        assert await kit.storage.recalculate(lister=small) == {"ada": 12, "bob": 9}
        assert await kit.storage.recalculate(lister=small) == {}


async def test_damaged_customers_hinder_no_others() -> None:
    """Ten in a row are a store that is away."""
    names = [f"c{number:02}" for number in range(36)]
    damaged = [name for number, name in enumerate(names) if number % 3]
    small = Small({f"{name}/images/a": 7 for name in names})
    async with MeterKit(loads(PLANS), clock=Clock(NOW), redis_url="memory://", flush=False) as kit:
        client = (await kit.store.admin()).client
        for name in damaged:
            await client.set(kit.store.keys.customer(name).objects, "no hash")
        with pytest.raises(StoreError, match=r"of 24 customers are not recalculated, 'c01' first"):
            await kit.storage.recalculate(lister=small)
        whole = sorted({*names} - {*damaged})
        for name in names[:10]:
            await client.set(kit.store.keys.customer(name).objects, "no hash")
        with pytest.raises(StoreError, match="WRONGTYPE"):
            await kit.storage.recalculate(lister=small)
        assert [await kit.gauges.get(name, "storage") for name in whole] == [7] * 12


async def test_memory_does_not_grow_with_the_bucket() -> None:
    async with MeterKit(loads(PLANS), clock=Clock(NOW), redis_url="memory://", flush=False) as kit:
        await kit.storage.recalculate(dry_run=True, lister=Large(1))
        tracemalloc.start()
        try:
            assert await kit.storage.recalculate(dry_run=True, lister=Large(16)) == {"ada": 16 * 7000}
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 2_000_000  # 16,000 versions in a dict take 4.5 MB.


async def test_a_listing_that_is_cancelled_frees_the_disk() -> None:
    listed = asyncio.Event()
    listing = Listing()

    async def endless() -> None:
        async with listing:
            await listing.add([Listed("ada", "f0", 1, "a")])
            listed.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(endless())
    await listed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(MeterkitError, match="closed database"):
        await listing.sort()


NOW_MS: Final = int(NOW.timestamp() * 1000)
MINUTE_MS: Final = 60_000


def stored(key: str, size: int, minutes: int, number: int) -> Happened:
    """An upload so many minutes after noon; `number` orders it among those of the same key."""
    return Happened("ObjectCreated:Put", key, size, None, NOW_MS + minutes * MINUTE_MS, number, number)


class Racing:
    """A listing of several pages; events arrive after each of them.

    Args:
        kit: counts the events.
        pages: of each page the minute that it was made, its objects with their sizes, and the events.
    """

    def __init__(self, kit: MeterKit, *pages: tuple[int, dict[str, int], list[Happened]]) -> None:
        self._kit, self._pages = kit, pages

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[Page]:
        del bucket, prefix
        for minute, objects, events in self._pages:
            versions = [Version(key, "null", size) for key, size in objects.items()]
            yield Page(versions, NOW_MS + minute * MINUTE_MS)
            await told(self._kit, *events)


async def told(kit: MeterKit, *events: Happened) -> None:
    for event in events:
        await kit.storage.count(event.as_body("s3", "uploads").decode())


A, B = "ada/images/a.png", "ada/images/b.png"


async def test_an_event_from_before_a_listing_changes_nothing_after_it(store_url: str) -> None:
    """The listing agreed with all that was known, and its bucket has the object no more."""
    async with MeterKit(loads(PLANS), clock=Clock(NOW), redis_url=store_url, flush=False) as kit:
        await told(kit, stored(B, 5, 0, 1))
        assert await kit.storage.recalculate(lister=Racing(kit, (30, {B: 5}, []))) == {}
        await told(kit, stored(A, 900, 10, 1))
        assert await kit.gauges.get("ada", "storage") == 5
        assert await kit.storage.unclear() == {}
        await told(kit, stored(A, 900, 40, 2))  # It was stored anew.
        assert await kit.gauges.get("ada", "storage") == 905


async def test_a_rule_that_removes_all_versions_asks_for_a_listing(store_url: str) -> None:
    """Of those versions the event names one, and no other event comes with it."""
    removed = Happened("ObjectRemoved:DeleteAllVersions", A, None, "v1", NOW_MS, 2, 1)
    async with MeterKit(loads(PLANS), clock=Clock(NOW), redis_url=store_url, flush=False) as kit:
        await told(kit, stored(A, 900, 0, 1))
        assert await kit.storage.unclear() == {}
        await kit.storage.count(removed.as_body("minio", "uploads"))
        assert list(await kit.storage.unclear()) == ["ada"]
        assert await kit.storage.recalculate("ada", lister=Racing(kit, (30, {}, []))) == {"ada": -900}
        assert await kit.storage.unclear() == {}
