"""Listings of buckets and queues through boto3, against moto's servers over HTTP."""
# Internals: one turn of the worker's tasks at a time.

from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from drivers.delivery import NOW
from drivers.kit_parts import parts_of
from meterkit import MeterKit, metrics_app
from meterkit.catalog import loads
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.errors import MeterkitError
from meterkit.health.backlogs import look_at_stored_objects
from meterkit.storage import aws
from meterkit.storage.service import ObjectStorage
from meterkit.store.tasks import TaskLease, Upkeep
from meterkit.testing import Clock
from storage.moto_bucket import BOTO3
from storage.objects import Happened
from storage.test_histories import PLANS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio

AT_MS: Final = 1_600_000_000_000  # Long before: moto answers with the time of this host.


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def kit(address: str, clock: Clock) -> AsyncIterator[MeterKit]:
    async with MeterKit(
        loads(PLANS), clock=clock, redis_url="memory://", flush=False, storage_endpoint=address
    ) as kit:
        yield kit


@pytest.fixture
def s3(address: str) -> Iterator[Any]:
    client: Any = BOTO3.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="uploads")
    client.put_bucket_versioning(Bucket="uploads", VersioningConfiguration={"Status": "Enabled"})
    yield client
    found = client.list_object_versions(Bucket="uploads")
    for one in (*found.get("Versions", ()), *found.get("DeleteMarkers", ())):
        client.delete_object(Bucket="uploads", Key=one["Key"], VersionId=one["VersionId"])
    client.delete_bucket(Bucket="uploads")


@pytest.fixture
def queue(address: str, request: pytest.FixtureRequest) -> str:
    client: Any = BOTO3.client("sqs", endpoint_url=address)
    url: str = client.create_queue(QueueName=request.node.name[:80], Attributes={"VisibilityTimeout": "0"})[
        "QueueUrl"
    ]
    return url


async def test_a_recalculation_counts_what_no_event_told_of(kit: MeterKit, s3: Any) -> None:
    for key, size in (("ada/images/a b", 10), ("ada/images/a b", 7), ("ada/x/b", 5), ("bob/documents/c", 3)):
        s3.put_object(Bucket="uploads", Key=key, Body=b"x" * size)
    s3.delete_object(Bucket="uploads", Key="ada/images/a b")  # A marker: both versions remain.
    s3.put_object(Bucket="uploads", Key="nobody", Body=b"x")
    lost = Happened("ObjectCreated:Put", "ada/images/gone", 900, "v9", AT_MS, 5, 5)
    await kit.storage.count(lost.as_body("s3", "uploads"))
    assert await kit.storage.recalculate(dry_run=True) == {"ada": 22 - 900, "bob": 3}
    assert await kit.gauges.get("ada", "storage") == 900
    assert await kit.storage.recalculate("ada") == {"ada": 22 - 900}
    assert [await kit.gauges.get(name, "storage") for name in ("ada", "bob")] == [22, 0]
    assert await kit.storage.recalculate() == {"bob": 3}
    assert await kit.storage.recalculate() == {}
    usage = (await kit.usage("ada"))["meters"]["storage"]
    assert (usage["recorded"], usage.get("types")) == (22, {"documents": 0, "images": 17, "other": 5})
    [entry] = await kit.customers.history("ada")
    told = (entry.kind, entry.before, entry.after, entry.cause)
    assert told == ("storage", "900 bytes", "22 bytes", "recalculation")


async def test_messages_of_a_queue_count_and_go(kit: MeterKit, queue: str, address: str) -> None:
    client: Any = BOTO3.client("sqs", endpoint_url=address)
    put = Happened("ObjectCreated:Put", "ada/images/a", 900, None, AT_MS, 5, 5)
    again = Happened("ObjectCreated:Put", "ada/images/a", 800, None, AT_MS + 1000, 6, 6)
    more = Happened("ObjectCreated:Put", "ada/documents/a", 40, None, AT_MS, 7, 7)
    enveloped = {"Type": "Notification", "Message": again.as_body("s3", "uploads").decode()}
    bodies = (put.as_body("s3", "uploads").decode(), json.dumps(enveloped), "not of an object store")
    for body in (*bodies, more.as_body("eventbridge", "uploads").decode()):
        client.send_message(QueueUrl=queue, MessageBody=body)
    counted = 0
    for _ in range(8):
        counted += await kit.storage.poll(queue, wait_s=0)
    assert counted == 3
    assert await kit.gauges.get("ada", "storage") == 840
    left = client.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]
    assert [message["Body"] for message in left] == ["not of an object store"]


async def test_one_process_recalculates_each_hour(
    kit: MeterKit, s3: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    s3.put_object(Bucket="uploads", Key="ada/images/a", Body=b"x" * 7)
    assert await kit.storage.recalculate(dry_run=True) == {"ada": 7}
    assert await kit.storage.recalculate("bob") == {}
    assert (await Upkeep(kit.store).seen()).listed_ms is None
    assert await kit.storage.recalculate_due()
    assert "a listing has corrected 7 bytes of 1 customers" in caplog.text
    seen = await Upkeep(kit.store).seen()
    assert (seen.listed_ms, seen.drift_bytes, seen.drift_customers) == (kit.store.now_ms(), 7, 1)
    s3.put_object(Bucket="uploads", Key="ada/images/b", Body=b"x" * 5)
    clock.advance(timedelta(minutes=59, seconds=59))
    assert not await kit.storage.recalculate_due()
    clock.advance(timedelta(seconds=1))
    other = ObjectStorage(kit.store, kit.settings.reveal(kit.settings.storage_endpoint))
    key = kit.store.keys.shard(HOOKS_SHARD, "storage:lease")
    async with TaskLease(kit.store, key, lasts_ms=1000).held():
        assert not await other.recalculate_due()  # Another process does.
    assert await other.recalculate_due()
    assert await kit.gauges.get("ada", "storage") == 12


async def test_a_worker_without_what_it_needs(kit: MeterKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MeterkitError, match=re.escape("pip install 'meterkit[storage]'")):
        kit.storage.worker_tasks("https://sqs.example/queue")
    with pytest.raises(MeterkitError, match=re.escape("pip install 'meterkit[storage]'")):
        await kit.storage.recalculate()
    with pytest.raises(MeterkitError, match=re.escape("pip install 'meterkit[storage]'")):
        await kit.storage.presign("ada", "ada/images/a", 1)


async def test_what_is_neglected_is_found(kit: MeterKit, clock: Clock) -> None:
    async def problems() -> list[str]:
        _, found = await look_at_stored_objects(parts_of(kit))
        return [one.problem for one in found]

    unlisted = "the buckets of storage.objects were not listed within 7 days: lost events stay lost"
    assert await problems() == [unlisted]
    upkeep = Upkeep(kit.store)
    await upkeep.listed({"ada": -4, "bob": 3})
    await upkeep.read("https://sqs.example/queue")
    clock.advance(timedelta(minutes=15))
    assert await problems() == []
    text = (await scraped(kit)).splitlines()
    assert {"meterkit_storage_drift_bytes 7.0", "meterkit_storage_queue_age_seconds 900.0"} <= {*text}
    assert "meterkit_storage_listed_age_seconds 900.0" in text
    clock.advance(timedelta(hours=3))
    assert await problems() == [
        "the queue of storage events was last read 3 h ago: the events in it do not count",
        "the buckets of storage.objects were not listed for 3 h: lost events stay lost",
    ]
    clock.advance(timedelta(days=7))
    assert await problems() == [unlisted]


async def scraped(kit: MeterKit) -> str:
    transport = httpx.ASGITransport(metrics_app(kit))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return (await client.get("/")).text


async def test_a_listing_goes_on_where_a_page_ends(
    kit: MeterKit, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        s3.put_object(Bucket="uploads", Key="ada/images/a", Body=b"x" * 10**number)
    called: list[dict[str, Any]] = []
    whole = aws._called  # pyright: ignore[reportPrivateUsage]

    async def paged(what: str, call: Any) -> Any:
        call.keywords["MaxKeys"] = 2
        called.append(call.keywords)
        return await whole(what, call)

    monkeypatch.setattr(aws, "_called", paged)
    assert await kit.storage.recalculate() == {"ada": 11111}
    assert len(called) > 1
