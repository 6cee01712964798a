"""``storage.over``: the store notices stored bytes that pass what a plan includes, once for each passing."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from delivering import NOW
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.decisions.periods import to_ms
from meterkit.store.notices import next_notices
from meterkit.testing import Clock
from storage.objects import Happened
from storage.test_histories import NOW_MS, PLANS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meterkit.store.notices import Notice

pytestmark = pytest.mark.anyio

TOLERANT: Final = PLANS.replace("included: 5MB", "included: 1000, overage: {percent: 5, grace: 7d}").replace(
    "meters: {storage: {unit: byte, kind: gauge}}",
    "meters: {storage: {unit: byte, kind: gauge}, seats: {unit: seat, kind: gauge}}",
)
WEEK_MS: Final = 7 * 86_400_000


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def kit(clock: Clock) -> AsyncIterator[MeterKit]:
    plans = TOLERANT.replace("grace: 7d}}", "grace: 7d}}, seats: {included: 2}")
    async with MeterKit(loads(plans), clock=clock, redis_url="memory://", flush=False, shards=1) as kit:
        yield kit


async def stored(kit: MeterKit, size: int, number: int) -> None:
    event = Happened("ObjectCreated:Put", "ada/images/a", size, None, NOW_MS + number, number, number)
    await kit.storage.count(event.as_body("s3", "uploads"))


async def noticed(kit: MeterKit) -> list[Notice]:
    return await next_notices(kit.store, 0, ["storage.over"])


async def test_stored_bytes_that_pass_what_is_included_are_noticed_once(kit: MeterKit, clock: Clock) -> None:
    await stored(kit, 1000, 1)
    assert await noticed(kit) == []
    await stored(kit, 1001, 2)
    await stored(kit, 1001, 2)
    await stored(kit, 1040, 3)
    [notice] = await noticed(kit)
    assert (notice.customer, notice.of) == ("ada", "storage")
    at_ms, begins_ms, ends_ms, used, included, tolerated, grace_ends_ms = notice.numbers
    assert begins_ms <= at_ms == NOW_MS < ends_ms
    assert (used, included, tolerated, grace_ends_ms) == (1001, 1000, 1050, at_ms + WEEK_MS)
    await stored(kit, 900, 4)
    clock.advance(timedelta(days=1))
    await stored(kit, 5000, 5)
    [again] = await noticed(kit)
    assert (again.numbers[0], again.numbers[3]) == (to_ms(NOW) + 86_400_000, 5000)


async def test_a_level_that_the_app_sets_is_noticed_too(kit: MeterKit) -> None:
    await kit.gauges.set("ada", "storage", 1000)
    await kit.gauges.adjust("ada", "storage", 1)
    [notice] = await noticed(kit)
    assert notice.numbers[3:6] == (1001, 1000, 1050)
    await kit.gauges.set("ada", "seats", 3)  # It counts no bytes.
    await kit.gauges.set("bob", "storage", 1000)
    assert await noticed(kit) == []


async def test_unlimited_storage_is_never_over() -> None:
    plans = loads(PLANS.replace("included: 5MB", "included: unlimited"))
    async with MeterKit(plans, clock=Clock(NOW), redis_url="memory://", flush=False, shards=1) as kit:
        await stored(kit, 10**12, 1)
        assert await noticed(kit) == []
