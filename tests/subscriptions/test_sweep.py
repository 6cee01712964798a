"""What no webhook has brought is found: by Stripe's list of events, and by a look at everybody each night."""
# Internals: one turn of the nightly sync at a time, and a table of its turns.

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.webhooks import DAY, NOW, hooked, hooked_kit
from meterkit.subscriptions.webhooks.nightly_sync import Night, Sweeper, due_shards
from meterkit.subscriptions.webhooks.queue import HookQueue
from meterkit.testing import Clock

if TYPE_CHECKING:
    from drivers.webhooks import Hooked
    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

MINUTE = timedelta(minutes=1)
DAY_MS = 86_400_000
SIX_HOURS_MS = 6 * 3_600_000


def sweeper(kit: MeterKit) -> Sweeper:
    webhooks: Any = kit.webhooks
    return Sweeper(kit.store, webhooks._api, HookQueue(kit.store))


async def entries(at: Hooked) -> int:
    return (await at.kit.webhooks.backlog()).entries


async def test_an_undelivered_event_is_found_and_processed(store_url: str) -> None:
    async with hooked(store_url) as at:
        at.customer()
        await at.subscribe()
        assert await at.kit.webhooks.sweep() > 0
        await at.kit.webhooks.work_off()
        assert (await at.kit.customers.get("acme")).plan == "pro"
        assert await at.kit.webhooks.sweep() == 0


async def test_the_sweep_goes_on_where_it_was_with_an_overlap(store_url: str) -> None:
    async with hooked(store_url) as at:
        for number in range(3):
            at.customer(f"c{number}")
            await at.subscribe(f"c{number}")
            assert await at.kit.webhooks.sweep() > 0
            # What is listed late, of before the last sweep, is found too.
            late: dict[str, object] = {"id": f"sub_{number}", "customer": f"cus_c{number}"}
            at.emulator.emit("customer.subscription.updated", late)
            at.clock.advance(10 * MINUTE)
        assert await at.kit.webhooks.sweep() == 1
        at.clock.advance(20 * DAY)  # Nobody was there for a while.
        await at.subscribe("c0", price="price_max")
        assert await at.kit.webhooks.sweep() > 0


async def test_one_process_sweeps_at_a_time_and_every_five_minutes(store_url: str) -> None:
    async with hooked(store_url) as at, hooked_kit(store_url, at.url, at.clock) as other:
        both = [sweeper(at.kit), sweeper(other)]
        for each in both:
            await each.turn()
        assert at.asked("/v1/events") == 1
        at.clock.advance(5 * MINUTE - timedelta(seconds=1))
        for each in both:
            await each.turn()
        assert at.asked("/v1/events") == 1
        at.clock.advance(timedelta(seconds=1))
        await both[1].turn()
        assert at.asked("/v1/events") == 2


async def test_a_sweep_without_stripe_is_retried_and_logged_once(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with hooked(store_url) as at:
        at.customer()
        await at.subscribe()
        one = sweeper(at.kit)
        at.emulator.fail_next("error", status=500, path="/v1/events", times=None)
        for _ in range(3):
            await one.turn()
        at.emulator.clear_faults()
        await one.turn()
        assert await entries(at) == 1
    said = [record.message for record in caplog.records if "looked for later" in record.message]
    assert len(said) == 1


@pytest.mark.dear("a night of sixteen turns, with twelve customers")
async def test_every_linked_customer_is_read_once_a_night(store_url: str) -> None:
    midnight = NOW.replace(hour=0)
    clock = Clock(midnight - MINUTE)
    async with hooked(store_url, clock=clock) as at:
        for number in range(12):
            at.customer(f"c{number}")
            await at.kit.customers.link(f"c{number}", f"cus_c{number}", force=True)
            await at.subscribe(f"c{number}", metadata={})
        await at.kit.customers.set_plan("unlinked", "pro")
        one = sweeper(at.kit)
        await one.turn()  # Yesterday's, which nobody has done yet; what was swept comes with it.
        await at.kit.webhooks.work_off()
        clock.advance(6 * timedelta(hours=1))
        await at.kit.webhooks.work_off()
        before, seen = at.asked(), list[int]()
        clock.advance(18 * timedelta(hours=1) + 2 * MINUTE)
        for _ in range(16):
            await one.turn()
            await at.kit.webhooks.work_off()
            seen.append(at.asked() - before)
            clock.advance(30 * MINUTE)
        assert seen[-1] == 12
        assert seen[0] <= 6, "not all at once"
        assert len(set(seen)) >= 4
        assert (await at.kit.customers.get("c5")).plan == "pro"


@pytest.mark.parametrize(
    ("done", "now_ms", "expected"),
    [
        (None, 0, [0]),
        (None, SIX_HOURS_MS // 4, [0, 1]),
        (Night(0, 0), SIX_HOURS_MS // 4, [1]),
        (None, DAY_MS - 1, [0, 1, 2, 3]),
        (Night(0, 3), DAY_MS, [0]),
        (Night(5, 1), DAY_MS, []),
    ],
)
def test_whose_turn_it_is(done: Night | None, now_ms: int, expected: list[int]) -> None:
    found = list(due_shards(done, now_ms, 4))
    assert [night.shard for night, _ in found] == expected
    is_late = now_ms % DAY_MS > SIX_HOURS_MS
    assert {span_ms for _, span_ms in found} <= {SIX_HOURS_MS if is_late else SIX_HOURS_MS // 4}
    assert all(night.day == now_ms // DAY_MS for night, _ in found)
