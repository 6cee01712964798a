"""Listings of buckets: merged with what is known, on disk instead of in memory; through boto3 from moto."""
# Internals: the merge of two sorted streams and its files, and one turn of the worker's tasks at a time.

from __future__ import annotations

import asyncio
import json
import re
import sys
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import httpx
import pytest

from drivers.delivery import NOW
from meterkit import MeterKit, metrics_app
from meterkit.catalog import loads
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.errors import MeterkitError, StoreError
from meterkit.health.worker_queues import check_stored_objects
from meterkit.storage.aws import Aws, ListingPage, Version
from meterkit.storage.object_owners import ObjectRecord
from meterkit.storage.recalculation import BucketListing, ListedVersion, VersionDifference, find_differences
from meterkit.storage.service import ObjectStorage
from meterkit.store.task_lease import StorageUpkeep, TaskLease
from meterkit.testing import Clock
from storage.moto_bucket import BOTO3
from storage.objects import Happened
from storage.test_histories import PLANS

pytestmark = pytest.mark.anyio

NOW_MS: Final = int(NOW.timestamp() * 1000)
OLD_MS: Final = 1_600_000_000_000  # Long before: moto answers with the time of this host.
A, B = "ada/images/a.png", "ada/images/b.png"


def kit_at(url: str, clock: Clock | None = None, plans: str = PLANS, **settings: Any) -> MeterKit:
    return MeterKit(loads(plans), clock=clock or Clock(NOW), redis_url=url, flush=False, **settings)


class Objects:
    """A bucket of these objects with their sizes, listed so many minutes after noon."""

    def __init__(self, objects: Mapping[str, int], minutes: int | None = None) -> None:
        self._objects, self._at_ms = objects, None if minutes is None else NOW_MS + minutes * 60_000

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[ListingPage]:
        del bucket
        found = [(key, size) for key, size in self._objects.items() if key.startswith(prefix)]
        yield ListingPage([Version(key, "null", size) for key, size in found], self._at_ms)


class Nowhere:
    """A bucket that cannot be listed."""

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[ListingPage]:
        raise MeterkitError(f"nothing is there: {bucket}/{prefix}")
        yield


class Large:
    """A bucket with pages of a thousand objects."""

    def __init__(self, pages: int) -> None:
        self._pages = pages

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[ListingPage]:
        del bucket
        for page in range(self._pages):
            keys = (f"{prefix}ada/images/{page}/{number}" for number in range(1000))
            yield ListingPage([Version(key, "null", 7) for key in keys], None)


async def stored(kit: MeterKit, key: str, size: int, minutes: int = 0, bucket: str = "uploads") -> None:
    """Count the event of an upload so many minutes after noon."""
    put = Happened.put(key, size, NOW_MS + minutes * 60_000, 1 + minutes)
    await kit.storage.count(put.as_body("s3", bucket).decode())


def puts_of(customers: Sequence[str]) -> str:
    """The message of an upload by each, an hour after noon."""
    puts = [Happened.put(f"{name}/images/b", 3, NOW_MS + 3_600_000) for name in customers]
    records = [json.loads(put.as_body("s3", "uploads"))["Records"][0] for put in puts]
    return json.dumps({"Records": records})


@pytest.fixture
async def far(address: str, clock: Clock) -> AsyncIterator[MeterKit]:
    """A kit whose buckets are moto's."""
    async with kit_at("memory://", clock, storage_endpoint=address) as kit:
        yield kit


def test_two_sorted_streams_are_merged() -> None:
    there = ObjectRecord(is_there=True, size=1, at_ms=0, type="a")
    gone = ObjectRecord(is_there=False, size=1, at_ms=0, type="a")
    listed = [("b", 1, "a"), ("c", 1, "a"), ("d", 2, "a"), ("e", 1, "a")]
    assert list(find_differences(listed, [("a", there), ("b", there), ("c", gone), ("d", there)])) == [
        VersionDifference("a", None, there),
        VersionDifference("c", (1, "a"), gone),
        VersionDifference("d", (2, "a"), there),
        VersionDifference("e", (1, "a"), None),
    ]


async def test_objects_of_a_bucket_that_is_named_no_more_are_taken_out(store_url: str) -> None:
    empty = Objects({})
    async with kit_at(store_url) as kit:
        await stored(kit, "ada/images/a.png", 700)
        await stored(kit, "bob/images/b.png", 40)
        assert await kit.gauges.get("ada", "storage") == 700
    async with kit_at(store_url, plans=PLANS.replace("bucket: uploads", "bucket: moved")) as kit:
        await stored(kit, "ada/images/c.png", 5, bucket="moved")
        assert await kit.storage.recalculate(dry_run=True, lister=empty) == {"ada": -700, "bob": -40}
        assert await kit.storage.recalculate("bob", lister=empty) == {"bob": -40}
        assert await kit.storage.recalculate(lister=empty) == {"ada": -700}
        assert await kit.storage.recalculate(lister=empty) == {}
        assert await kit.gauges.get("ada", "storage") == 5  # An event of just now: no listing has it yet.
        assert await kit.gauges.get("bob", "storage") == 0


async def test_another_gauge_gets_all_objects_at_the_next_listing(store_url: str) -> None:
    class Busy(Objects):
        """While it lists, an object is stored that it lacks."""

        async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[ListingPage]:
            async for page in super().pages(bucket, prefix):
                yield page
            await stored(kit, "ada/images/new.png", 77, minutes=35)

    found = Objects({A: 700, "bob/images/b": 40}, 30)
    moved = re.sub(r"(?<![a-z])storage(?=: {|\n  ob)", "space", PLANS)
    async with kit_at(store_url) as kit:
        await stored(kit, A, 700)
        await stored(kit, "bob/images/b", 40)
    async with kit_at(store_url, plans=moved) as kit:
        await stored(kit, B, 5, minutes=1)
        assert await kit.gauges.get("ada", "space") == 5
        assert await kit.storage.recalculate(dry_run=True, lister=found) == {"ada": 695, "bob": 40}
        assert await kit.storage.recalculate("bob", lister=found) == {"bob": 40}
        busy = Busy({A: 700, "bob/images/b": 40}, 30)
        assert await kit.storage.recalculate(lister=busy) == {"ada": 700}
        assert await kit.storage.recalculate(lister=found) == {}
        await stored(kit, A, 600, minutes=40)
        space = (await kit.usage("ada"))["meters"]["space"]
        assert (space["used"], space.get("types")) == (677, {"documents": 0, "images": 677, "other": 0})


async def test_a_level_that_no_object_explains_is_drift(kit: MeterKit) -> None:
    """The app counted before the object store did."""
    await stored(kit, A, 700)
    for name in ("ada", "bob"):
        await kit.gauges.set(name, "storage", 3000)
    await kit.customers.set_plan("bob", "free")
    small = Objects({A: 700}, 30)
    assert await kit.storage.recalculate(dry_run=True, lister=small) == {"ada": -2300, "bob": -3000}
    assert await kit.storage.recalculate(lister=small) == {"ada": -2300, "bob": -3000}
    assert await kit.storage.recalculate(lister=small) == {}
    assert [await kit.gauges.get(name, "storage") for name in ("ada", "bob")] == [700, 0]
    told = [(one.kind, one.before, one.after, one.cause) for one in await kit.customers.history("bob")]
    assert told[-1] == ("storage", "3000 bytes", "0 bytes", "recalculation")


async def test_corrections_of_a_day_are_one_line_of_the_ledger(kit: MeterKit, clock: Clock) -> None:
    """The ledger keeps a thousand lines: which plan was in force decides what a period is billed."""
    for hours, size in ((0, 1), (23, 2), (24, 3)):  # Two calls of the script each.
        sizes = {f"ada/images/{number}": size for number in range(501)} | ({A: 700} if hours else {})
        objects = Objects(sizes, 60 * hours)
        clock.advance(timedelta(hours=hours) - (clock.now() - NOW))
        assert await kit.storage.recalculate(lister=objects) == {"ada": 501}
        await stored(kit, A, 700, 60 * hours + 30)  # What an event told is no correction.
    told = [(one.before, one.after) for one in await kit.customers.history("ada")]
    assert told == [("700 bytes", "1702 bytes"), ("1702 bytes", "2203 bytes")]


async def test_a_listing_does_not_undo_one_that_began_later(kit: MeterKit, clock: Clock) -> None:
    class Slow:
        """Lists no object; while it does, one is stored, and another listing finds it."""

        async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[ListingPage]:
            del bucket, prefix
            yield ListingPage([], NOW_MS)
            clock.advance(timedelta(minutes=20))
            assert await kit.storage.recalculate("ada", lister=Objects({A: 700}, 10)) == {"ada": 700}
            yield ListingPage([], NOW_MS + 20 * 60_000)

    assert await kit.storage.recalculate(lister=Slow()) == {}
    assert await kit.gauges.get("ada", "storage") == 700
    clock.advance(timedelta(minutes=20))
    assert await kit.storage.recalculate(lister=Objects({}, 40)) == {"ada": -700}


async def test_a_key_under_two_patterns_is_listed_once() -> None:
    objects = (
        'objects: [{bucket: uploads, key: "shared/{customer}/{path:path}"},'
        ' {bucket: uploads, key: "{customer}/{type}/{path:path}"}]'
    )
    plans = PLANS.replace('objects: {bucket: uploads, key: "{customer}/{type}/{path:path}"}', objects)
    small = Objects({"shared/ada/a": 5, "ada/images/a": 7, "bob/images/a": 9})
    async with kit_at("memory://", plans=plans) as kit:
        assert await kit.storage.recalculate(dry_run=True, lister=small) == {"ada": 12, "bob": 9}
        assert await kit.storage.recalculate(lister=small) == {"ada": 12, "bob": 9}
        assert await kit.storage.recalculate(lister=small) == {}


async def test_damaged_customers_hinder_no_others(kit: MeterKit) -> None:
    """Ten in a row are a store that is away."""
    names = [f"c{number:02}" for number in range(36)]
    damaged = [name for number, name in enumerate(names) if number % 3]
    small = Objects({f"{name}/images/a": 7 for name in names})
    client = (await kit.store.admin()).client
    for name in damaged:
        await client.set(kit.store.keys.customer(name).objects, "no hash")
    with pytest.raises(StoreError, match=r"24 customers could not be recalculated, the first is 'c01'"):
        await kit.storage.recalculate(lister=small)
    whole = sorted({*names} - {*damaged})
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await kit.storage.count(puts_of([*damaged, "c00", "c03"]))
    for name in names[:10]:
        await client.set(kit.store.keys.customer(name).objects, "no hash")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await kit.storage.recalculate(lister=small)
    assert [await kit.gauges.get(name, "storage") for name in whole] == [10, 10, *[7] * 10]


async def test_damaged_levels_hinder_no_other_customers(kit: MeterKit) -> None:
    client = (await kit.store.admin()).client
    await client.set(kit.store.keys.customer("bad").levels, "no hash")
    with pytest.raises(StoreError, match=r"1 customers could not be recalculated, the first is 'bad'"):
        await kit.storage.recalculate(lister=Objects({"ada/images/a": 7}))
    assert await kit.gauges.get("ada", "storage") == 7


async def test_events_wait_once_for_a_store_that_is_away(
    kit: MeterKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    async def time_out(*arguments: object) -> None:
        asked.append(arguments)
        raise TimeoutError

    monkeypatch.setattr((await kit.store.admin()).client, "evalsha", time_out)
    with pytest.raises(StoreError):
        await kit.storage.count(puts_of(["ada", "bob"]))
    assert len(asked) == 1


async def test_memory_does_not_grow_with_the_bucket(kit: MeterKit) -> None:
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
    listing = BucketListing()

    async def endless() -> None:
        async with listing:
            await listing.add([ListedVersion("ada", "f0", 1, "a")])
            listed.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(endless())
    await listed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(MeterkitError, match="closed database"):
        await listing.sort()


async def test_an_event_from_before_a_listing_changes_nothing_after_it(kit: MeterKit) -> None:
    """The listing agreed with all that was known, and its bucket has the object no more."""
    await stored(kit, B, 5)
    assert await kit.storage.recalculate(lister=Objects({B: 5}, 30)) == {}
    await stored(kit, A, 900, 10)
    assert (await kit.gauges.get("ada", "storage"), await kit.storage.unclear()) == (5, {})
    await stored(kit, A, 900, 40)  # It was stored anew.
    assert await kit.gauges.get("ada", "storage") == 905


async def test_an_upload_between_two_pages_of_a_listing_counts(kit: MeterKit) -> None:
    class Paged:
        """Lists for half an hour; the first page lacks what is stored after it."""

        async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[ListingPage]:
            del bucket, prefix
            yield ListingPage([Version(B, "null", 5)], NOW_MS + 30 * 60_000)
            yield ListingPage([], NOW_MS + 60 * 60_000)

    assert await kit.storage.recalculate(lister=Paged()) == {"ada": 5}
    await stored(kit, A, 900, 45)
    assert await kit.gauges.get("ada", "storage") == 905


async def test_a_rule_that_removes_all_versions_asks_for_a_listing(kit: MeterKit, clock: Clock) -> None:
    """Of those versions the event names one, and no other event comes with it."""

    class Removing(Objects):
        """Is listed while the rule removes more."""

        async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[ListingPage]:
            assert list(await kit.storage.unclear()) == ["ada"]  # Also for one that ends here.
            clock.advance(timedelta(minutes=1))
            await kit.storage.count(removed.as_body("minio", "uploads"))
            async for page in super().pages(bucket, prefix):
                yield page

    removed = Happened("ObjectRemoved:DeleteAllVersions", A, None, "v1", NOW_MS, 2, 1)
    await stored(kit, A, 900)
    assert await kit.storage.unclear() == {}
    await kit.storage.count(removed.as_body("minio", "uploads"))
    assert list(await kit.storage.unclear()) == ["ada"]
    with pytest.raises(MeterkitError, match="nothing is there"):
        await kit.storage.recalculate(lister=Nowhere())
    assert list(await kit.storage.unclear()) == ["ada"]  # As before: no listing has cleared it up.
    assert await kit.storage.recalculate("ada", lister=Removing({}, 30)) == {"ada": -900}
    assert await kit.storage.unclear() == {"ada": NOW_MS + 60_000}
    assert await kit.storage.recalculate(lister=Objects({}, 31)) == {}
    assert await kit.storage.unclear() == {}


async def test_a_recalculation_counts_what_no_event_told_of(far: MeterKit, s3: Any) -> None:
    for key, size in (("ada/images/a b", 10), ("ada/images/a b", 7), ("ada/x/b", 5), ("bob/documents/c", 3)):
        s3.put_object(Bucket="uploads", Key=key, Body=b"x" * size)
    s3.delete_object(Bucket="uploads", Key="ada/images/a b")  # A marker: both versions remain.
    s3.put_object(Bucket="uploads", Key="nobody", Body=b"x")
    lost = Happened.put("ada/images/gone", 900, OLD_MS, version="v9")
    await far.storage.count(lost.as_body("s3", "uploads"))
    assert await far.storage.recalculate(dry_run=True) == {"ada": 22 - 900, "bob": 3}
    assert await far.gauges.get("ada", "storage") == 900
    assert await far.storage.recalculate("ada") == {"ada": 22 - 900}
    assert [await far.gauges.get(name, "storage") for name in ("ada", "bob")] == [22, 0]
    assert (await far.storage.recalculate(), await far.storage.recalculate()) == ({"bob": 3}, {})
    usage = (await far.usage("ada"))["meters"]["storage"]
    assert (usage["recorded"], usage.get("types")) == (22, {"documents": 0, "images": 17, "other": 5})
    [entry] = await far.customers.history("ada")
    told = (entry.kind, entry.before, entry.after, entry.cause)
    assert told == ("storage", "900 bytes", "22 bytes", "recalculation")


async def test_messages_of_a_queue_count_and_go(far: MeterKit, address: str) -> None:
    client: Any = BOTO3.client("sqs", endpoint_url=address)
    queue = client.create_queue(QueueName="events", Attributes={"VisibilityTimeout": "0"})["QueueUrl"]
    put, again, more = (
        Happened.put(key, size, OLD_MS + number, number)
        for key, size, number in (("ada/images/a", 900, 5), ("ada/images/a", 800, 6), ("ada/x/a", 40, 7))
    )
    enveloped = {"Type": "Notification", "Message": again.as_body("s3", "uploads").decode()}
    bodies = (put.as_body("s3", "uploads").decode(), json.dumps(enveloped), "not of an object store")
    for body in (*bodies, more.as_body("eventbridge", "uploads").decode()):
        client.send_message(QueueUrl=queue, MessageBody=body)
    assert sum([await far.storage.poll(queue, wait_s=0) for _ in range(8)]) == 3
    assert await far.gauges.get("ada", "storage") == 840
    left = client.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]
    assert [message["Body"] for message in left] == ["not of an object store"]


async def test_a_queue_without_a_region_cannot_be_read(
    far: MeterKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # It remembers the region of other tests.
    with pytest.raises(MeterkitError, match=r"the queue of storage events cannot be read: .* region"):
        await far.storage.poll("https://sqs.example/queue", wait_s=0)


async def test_one_process_recalculates_each_hour(
    far: MeterKit, s3: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    s3.put_object(Bucket="uploads", Key="ada/images/a", Body=b"x" * 7)
    assert await far.storage.recalculate(dry_run=True) == {"ada": 7}
    assert await far.storage.recalculate("bob") == {}
    assert (await StorageUpkeep(far.store).read_state()).listed_ms is None
    assert await far.storage.recalculate_due()
    assert "a listing corrected 7 bytes of 1 customers" in caplog.text
    seen = await StorageUpkeep(far.store).read_state()
    assert (seen.listed_ms, seen.drift_bytes, seen.drift_customers) == (far.store.now_ms(), 7, 1)
    s3.put_object(Bucket="uploads", Key="ada/images/b", Body=b"x" * 5)
    clock.advance(timedelta(minutes=59, seconds=59))
    assert not await far.storage.recalculate_due()
    clock.advance(timedelta(seconds=1))
    other = ObjectStorage(far.store, far.settings.reveal(far.settings.storage_endpoint))
    key = far.store.keys.shard(HOOKS_SHARD, "storage:lease")
    async with TaskLease(far.store, key, lasts_ms=1000).held():
        assert not await other.recalculate_due()  # Another process does.
    assert await other.recalculate_due()
    assert await far.gauges.get("ada", "storage") == 12


async def test_a_worker_without_what_it_needs(far: MeterKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    missing = re.escape("pip install 'meterkit[storage]'")
    with pytest.raises(MeterkitError, match=missing):
        far.storage.worker_tasks("https://sqs.example/queue")
    with pytest.raises(MeterkitError, match=missing):
        await far.storage.recalculate()
    with pytest.raises(MeterkitError, match=missing):
        await far.storage.presign("ada", "ada/images/a", 1)


async def test_what_is_neglected_is_found(far: MeterKit, clock: Clock) -> None:
    async def problems() -> list[str]:
        _, found = await check_stored_objects(far)
        return [one.problem for one in found]

    unlisted = "the buckets of storage.objects were not listed within 7 days: lost events stay lost"
    assert await problems() == [unlisted]
    upkeep = StorageUpkeep(far.store)
    await upkeep.record_listing({"ada": -4, "bob": 3})
    await upkeep.record_queue_read("https://sqs.example/queue")
    clock.advance(timedelta(minutes=15))
    assert await problems() == []
    transport = httpx.ASGITransport(metrics_app(far))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        text = (await client.get("/")).text.splitlines()
    assert {"meterkit_storage_drift_bytes 7.0", "meterkit_storage_queue_age_seconds 900.0"} <= {*text}
    assert "meterkit_storage_listed_age_seconds 900.0" in text
    clock.advance(timedelta(hours=3))
    assert await problems() == [
        "the queue of storage events was last read 3 h ago: the events in it do not count",
        "the buckets of storage.objects were not listed for 3 h: lost events stay lost",
    ]
    clock.advance(timedelta(days=7))
    assert await problems() == [unlisted]


async def test_a_listing_goes_page_by_page(far: MeterKit, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        s3.put_object(Bucket="uploads", Key="ada/images/a", Body=b"x" * 10**number)
    called: list[dict[str, Any]] = []
    whole = Aws._call_in_thread  # pyright: ignore[reportPrivateUsage]

    async def paged(self: Aws, what: str, service: str, method: str, **arguments: Any) -> Any:
        called.append(arguments)
        return await whole(self, what, service, method, MaxKeys=2, **arguments)

    monkeypatch.setattr(Aws, "_call_in_thread", paged)
    assert await far.storage.recalculate() == {"ada": 11111}
    assert len(called) > 1
