"""Random histories of buckets, told badly: the level is exact to the byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from random import Random
from typing import Any, Final

import pytest

from drivers.delivery import NOW
from drivers.plans import plans_text
from drivers.sampled import some
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.stores import Server
from storage.objects import FORMATS, Bucket, Format, Happened, unwrap_queue_message

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("histories")
CUSTOMERS: Final = ("ada", "bob")
TYPES: Final = ("documents", "images", "models")
NOW_MS: Final = int(NOW.timestamp() * 1000)
HISTORIES: Final = 200
SHARES: Final = 20  # Tests, so that several processes may share them.


def live(bucket: Bucket, steps: int) -> None:
    """Put, overwrite, copy, complete multipart uploads, delete, markers, expiry."""
    random = bucket.random
    for _ in range(steps):
        customer, kind = random.choice(CUSTOMERS), random.choice(TYPES)
        key = f"{customer}/{kind}/{random.choice(('a b', 'c+d', 'é'))}"
        what = random.randrange(8)
        if what < 5:
            action = ("Put", "Put", "Post", "Copy", "CompleteMultipartUpload")[what]
            bucket.store(key, random.choice((0, 1, random.randrange(10**5))), action)
        elif what == 5 and bucket.is_versioned and bucket.versions:
            bucket.remove_version(*random.choice(sorted(bucket.versions)))
        else:
            bucket.remove(key, random.choice(("ObjectRemoved", "LifecycleExpiration")))


async def tell(kit: MeterKit, bucket: Bucket, events: Iterable[Happened], form: Format) -> None:
    """Twice, in any order."""
    told = [event.as_body(form, bucket.name) for event in events for _ in range(2)]
    bucket.random.shuffle(told)
    for body in told:
        await kit.storage.count(unwrap_queue_message(body.decode()))


def expected(bucket: Bucket) -> Mapping[str, Counter[str]]:
    """By customer, bytes by type of what the bucket has."""
    found = {customer: Counter[str]() for customer in CUSTOMERS}
    for (key, _), kept in bucket.versions.items():
        if kept is not None:
            customer, kind, _ = key.split("/", 2)
            found[customer]["other" if kind == "models" else kind] += kept[0]
    return found


async def check(kit: MeterKit, bucket: Bucket) -> None:
    for customer, types in expected(bucket).items():
        usage = (await kit.usage(customer))["meters"]["storage"]
        assert usage.get("types") == {name: types[name] for name in ("documents", "images", "other")}
        assert usage["recorded"] == await kit.gauges.get(customer, "storage") == types.total()


def find_bucket(seed: int) -> Bucket:
    return Bucket("uploads", seed % 2 == 1, Random(seed), NOW_MS)  # noqa: S311 - a story, not a secret


async def one_history(kit: MeterKit, bucket: Bucket, form: Format) -> None:
    random = bucket.random
    live(bucket, 25)
    first = list(bucket.happened)
    await tell(kit, bucket, first, form)
    await check(kit, bucket)  # Whatever the order, and told twice.
    bucket.happened.clear()
    if random.random() < 0.3:
        bucket.suspend()
    live(bucket, 25)
    lost = [event for event in bucket.happened if random.random() < 0.1]
    known = [event for event in bucket.happened if event not in lost]
    late = [event for event in known if random.random() < 0.2]
    await tell(kit, bucket, [event for event in known if event not in late], form)
    bucket.now_ms += 120_000
    bucket.happened.clear()

    uploads = bucket

    class Meanwhile:
        """Lists the bucket while the app goes on, and events come."""

        async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[Any]:
            async for page in uploads.pages(bucket, prefix):
                yield page
                before = len(uploads.happened)
                live(uploads, 1)
                if random.random() < 0.5:
                    await tell(kit, uploads, uploads.happened[before:], form)

    await kit.storage.recalculate(lister=Meanwhile())
    live(bucket, 10)
    await tell(kit, bucket, [*first, *late, *bucket.happened], form)
    await check(kit, bucket)
    bucket.now_ms += 120_000
    assert await kit.storage.recalculate(lister=bucket, dry_run=True) == {}
    assert await kit.storage.recalculate(lister=bucket) == {}
    await check(kit, bucket)


@pytest.mark.parametrize("share", some(range(SHARES), {0}))
async def test_a_history_that_is_told_badly_is_counted_to_the_byte(valkey: Server, share: int) -> None:
    catalog = loads(PLANS)
    for seed in range(share, HISTORIES, SHARES):
        prefix = f"history{seed}"
        async with MeterKit(
            catalog, clock=Clock(NOW), redis_url=valkey.url, flush=False, shards=1, key_prefix=prefix
        ) as kit:
            await one_history(kit, find_bucket(seed), FORMATS[seed % len(FORMATS)])
