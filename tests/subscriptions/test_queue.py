"""The queue of Stripe customers to be read, over all shards; the sweep and the night, which fill it."""
# Internals: the queue's leases, and one turn of the night at a time.

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from drivers import top_ups
from drivers.delivery import CATALOG
from drivers.webhooks import DAY, NOW, hooked, hooked_kit
from meterkit import CustomerError, MeterKit, StoreError, StripeError, StripeUnavailableError
from meterkit.decisions.keys import shard_of
from meterkit.insights.store_readings import read_webhooks
from meterkit.store.sharded_queue import read_waiting_syncs
from meterkit.subscriptions.webhooks.periodic_sync import EventSweeper, NightlyTurn, due_shards
from meterkit.subscriptions.webhooks.stripe_events import EventNote, SyncHint
from meterkit.subscriptions.webhooks.sync_queue import LEASE_MS, SyncEntry, SyncQueue
from meterkit.subscriptions.webhooks.sync_worker import ATTEMPTS_MAX, RetryDecision, decide_retry
from meterkit.testing import Clock
from servers.clusters import Cluster, spawn_cluster

pytestmark = pytest.mark.anyio

MS = timedelta(milliseconds=1)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
ALARM = "v1.billing.meter.no_meter_found"


def note_of(name: str) -> EventNote:
    return EventNote(name=name, kind="payment.failed", data={"invoice": name})


def hint(event: str, customer: str = "cus_1", note: str | None = None) -> SyncHint:
    return SyncHint(event=event, stripe_customer=customer, note=None if note is None else note_of(note))


@asynccontextmanager
async def kit_of(url: str, clock: Clock | None = None, **settings: Any) -> AsyncGenerator[MeterKit]:
    given: dict[str, Any] = {"shards": 16, "store_timeout": 10.0, "flush": False} | settings
    async with MeterKit(CATALOG, redis_url=url, clock=clock or Clock(NOW), **given) as kit:
        yield kit


async def one(queue: SyncQueue) -> SyncEntry:
    (entry,) = await queue.lease_due(10)
    return entry


def names(entries: list[SyncEntry]) -> list[str]:
    return sorted(entry.stripe_customer for entry in entries)


def notes(entry: SyncEntry) -> list[str]:
    return [note.name for note in entry.notes]


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def queue(any_store_url: str, clock: Clock) -> AsyncGenerator[SyncQueue]:
    async with kit_of(any_store_url, clock, shards=4) as kit:
        yield SyncQueue(kit.store)


@pytest.mark.each_store
async def test_an_event_is_noted_once_taken_once_and_done(queue: SyncQueue) -> None:
    assert await queue.add(hint("evt_1", note="in_1")) == "new"
    assert await queue.add(hint("evt_1", note="in_1")) == "duplicate"
    entry = await one(queue)
    assert (entry.stripe_customer, entry.cause, entry.attempts) == ("cus_1", "evt_1", 0)
    assert (entry.notes, await queue.lease_due(10)) == ((note_of("in_1"),), [])
    assert await queue.complete(entry, entry.notes)
    assert not await queue.complete(entry)
    assert (await queue.read_backlog()).entries == 0
    # It is known for longer than Stripe repeats it.
    assert await queue.add(hint("evt_1")) == "duplicate"


async def test_a_hint_during_a_look_causes_another_look(queue: SyncQueue) -> None:
    await queue.add(hint("evt_1", note="in_1"))
    entry = await one(queue)
    await queue.add(hint("evt_2", note="in_2"))
    assert await queue.lease_due(10) == []  # Not by two at once.
    assert await queue.complete(entry, entry.notes)
    again = await one(queue)
    assert (again.cause, notes(again)) == ("evt_2", ["in_2"])
    assert await queue.complete(again, again.notes)
    assert await queue.lease_due(10) == []


async def test_the_entry_of_a_lost_worker_is_taken_by_the_next(queue: SyncQueue, clock: Clock) -> None:
    await queue.add(hint("evt_1", note="in_1"))
    lost = await one(queue)
    clock.advance(LEASE_MS / 2 * MS)
    assert await queue.renew(lost)
    clock.advance((LEASE_MS - 1) * MS)
    assert await queue.lease_due(10) == []
    clock.advance(MS)
    found = await one(queue)
    assert found.notes == lost.notes
    # The one before has no say any more.
    renewed, done = await queue.renew(lost), await queue.complete(lost)
    assert (renewed, done, await queue.give_up(lost, "x")) == (False, False, False)
    assert not await queue.retry(lost, "x", delay_ms=0, counts=True)
    assert await queue.complete(found)


async def test_a_failed_look_is_retried_later_with_its_notes(queue: SyncQueue, clock: Clock) -> None:
    await queue.add(hint("evt_1", note="in_1"))
    await queue.retry(await one(queue), "no answer", delay_ms=5_000, counts=True)
    await queue.add(hint("evt_2", note="in_2"))
    assert await queue.lease_due(10) == []
    clock.advance(5 * SECOND)
    entry = await one(queue)
    assert (entry.attempts, notes(entry)) == (1, ["in_1", "in_2"])
    await queue.retry(entry, "held back", delay_ms=0, counts=False)
    entry = await one(queue)
    assert (entry.attempts, notes(entry)) == (1, ["in_1", "in_2"])
    await queue.complete(entry, entry.notes)
    await queue.add(hint("evt_3"))
    assert (await one(queue)).attempts == 0


async def test_a_named_entry_is_taken_unless_a_worker_has_it(queue: SyncQueue) -> None:
    assert await queue.lease_one("cus_1") == "gone"
    await queue.request("cus_1", "reconcile", delay_ms=3_600_000)
    assert await queue.lease_due(10) == []
    entry = await queue.lease_one("cus_1")
    assert isinstance(entry, SyncEntry)
    assert (entry.cause, await queue.lease_one("cus_1")) == ("reconcile", "taken")
    await queue.complete(entry)
    assert await queue.lease_one("cus_1") == "gone"


@pytest.mark.each_store
async def test_what_is_given_up_is_kept_and_can_be_tried_again(queue: SyncQueue, clock: Clock) -> None:
    await queue.add(hint("evt_1", note="in_1"))
    await queue.give_up(await one(queue), "linked elsewhere")
    await queue.add(hint("evt_2", "cus_2"))
    clock.advance(SECOND)
    await queue.give_up(await one(queue), "refused")
    dead = await queue.list_dead()
    assert [(entry.stripe_customer, entry.why, entry.cause, entry.notes) for entry in dead] == [
        ("cus_1", "linked elsewhere", "evt_1", ("in_1",)),
        ("cus_2", "refused", "evt_2", ()),
    ]
    assert dead[1].at_ms - dead[0].at_ms == 1000
    waiting = await queue.read_backlog()
    assert (waiting.entries, waiting.dead) == (0, 2)
    await queue.redrive(["cus_1"])
    entry = await one(queue)
    assert (entry.cause, entry.attempts, len(entry.notes)) == ("operator", 0, 1)
    assert [entry.stripe_customer for entry in await queue.list_dead()] == ["cus_2"]


async def test_a_hint_during_the_last_attempt_is_not_given_up(queue: SyncQueue) -> None:
    """The data read of Stripe was older: it may be mended by then."""
    await queue.add(hint("evt_1", note="in_1"))
    entry = await one(queue)
    await queue.add(hint("evt_2", note="in_2"))
    assert not await queue.give_up(entry, "linked elsewhere")
    assert await queue.list_dead() == []
    again = await one(queue)
    assert (again.cause, again.attempts, notes(again)) == ("evt_2", 0, ["in_1", "in_2"])
    assert await queue.give_up(again, "linked elsewhere")
    assert [(entry.cause, entry.notes) for entry in await queue.list_dead()] == [("evt_2", ("in_1", "in_2"))]


BAD_NOTE = '{"n":1,"noted":1,"attempts":0,"since":0,"token":"","cause":"evt_1","why":"","notes":{"in_1":7}}'
DAMAGES = pytest.mark.parametrize(
    "damage", ["{", "7", "{}", BAD_NOTE], ids=["text", "number", "empty", "note"]
)


@DAMAGES
async def test_a_damaged_entry_is_synced_and_delays_no_other(
    damage: str, store_url: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with kit_of(store_url, clock, shards=1) as kit:
        queue, client = SyncQueue(kit.store), (await kit.store.admin()).client
        await queue.add(hint("evt_1", note="in_1"))
        await queue.add(hint("evt_2", "cus_2"))
        await client.hset(kit.store.keys.hints(0, "entries"), "cus_1", damage)
        assert len(await read_waiting_syncs(kit.store, 10)) == 2
        entries = await queue.lease_due(10)
        assert (names(entries), [entry.notes for entry in entries]) == (["cus_1", "cus_2"], [(), ()])
        assert "what was queued for cus_1 cannot be read" in caplog.text
        assert [await queue.complete(entry, entry.notes) for entry in entries] == [True, True]
        assert (await queue.read_backlog()).entries == 0


@DAMAGES
async def test_a_damaged_dead_entry_is_listed_and_redriven(damage: str, store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, shards=1) as kit:
        queue, client = SyncQueue(kit.store), (await kit.store.admin()).client
        await client.hset(kit.store.keys.hints(0, "dead"), "cus_1", damage)
        assert [entry.stripe_customer for entry in await queue.list_dead()] == ["cus_1"]
        assert (await read_webhooks(kit.store))["dead"].items == 1
        assert await queue.add(hint("evt_1", note="in_9")) == "new"
        assert (await queue.list_dead(), names(await queue.lease_due(10))) == ([], ["cus_1"])


async def test_beyond_200_notes_a_customer_is_queued_without_more(queue: SyncQueue) -> None:
    added = [await queue.add(hint(f"evt_{number}", note=f"in_{number}")) for number in range(201)]
    assert added == ["new"] * 200 + ["full"]
    entry = await one(queue)
    assert (len(entry.notes), entry.cause) == (200, "evt_200")
    await queue.complete(entry, entry.notes)
    # It had no room, so it was not noted: the same of a later event is.
    await queue.add(hint("evt_later", note="in_200"))
    assert notes(await one(queue)) == ["in_200"]


LAST = ATTEMPTS_MAX - 1


@pytest.mark.parametrize(
    ("error", "attempts", "expected"),
    [
        (
            StripeUnavailableError("x", status=500),
            0,
            RetryDecision(step="later", scope="answer", delay_ms=5_000),
        ),
        (StripeUnavailableError("x"), LAST, RetryDecision(step="later", scope="answer", delay_ms=3_600_000)),
        (TimeoutError(), LAST, RetryDecision(step="later", scope="answer", delay_ms=3_600_000)),
        (
            StripeError("x", status=401),
            LAST,
            RetryDecision(step="later", scope="key", delay_ms=5_000, counts=False),
        ),
        (StripeError("x", status=403), 0, RetryDecision(step="later", scope="right", delay_ms=5_000)),
        (StripeError("x", status=403), LAST, RetryDecision(step="later", scope="right", delay_ms=600_000)),
        (StripeError("x", status=400), 0, RetryDecision(step="later", scope="entry", delay_ms=5_000)),
        (StripeError("x", status=400), LAST, RetryDecision(step="dead", scope="entry")),
        (KeyError("odd"), LAST, RetryDecision(step="dead", scope="entry")),
        (CustomerError("linked elsewhere"), 0, RetryDecision(step="dead", scope="entry")),
    ],
)
def test_what_becomes_of_a_failed_look(error: Exception, attempts: int, expected: RetryDecision) -> None:
    assert decide_retry(error, attempts) == expected


async def test_on_a_cluster_every_shard_has_its_turn(cluster: Cluster) -> None:
    customers = [f"cus_{number}" for number in range(300)]
    async with kit_of(cluster.url, shards=128) as kit, kit_of(cluster.url, shards=128) as other:
        queue, far = SyncQueue(kit.store), SyncQueue(other.store)
        for customer in customers[:-1]:
            await queue.request(customer, "reconcile")
        found = [names(await far.lease_due(1000)) for _ in range(4)]
        assert sorted(name for page in found for name in page) == sorted(customers[:-1])
        assert all(0 < len({shard_of(name, 128) for name in page}) <= 32 for page in found)
        # The process that took the hint looks at once, whatever its turn is.
        await queue.request(customers[-1], "reconcile")
        assert names(await queue.lease_due(8)) == [customers[-1]]


async def test_the_entries_of_all_shards_are_counted(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock) as kit:
        queue = SyncQueue(kit.store)
        for number in range(21):
            await queue.add(hint(f"evt_{number}", f"cus_{number}"))
        for number in range(5):
            await queue.add(SyncHint(event=f"evt_alarm_{number}", alarm="x"), alarm=ALARM)
        alarms = kit.store.keys.hints(shard_of("evt_alarm_0", 16), "alarms")
        await (await kit.store.admin()).client.hset(alarms, "damaged", "x")
        waiting = await queue.read_backlog()
        assert (waiting.entries, waiting.dead, waiting.alarms) == (21, 0, {ALARM: 5})
        clock.advance(90 * SECOND)
        seen = await read_webhooks(kit.store)
        assert (seen["due"].items, seen["due"].age_s, seen["later"].items) == (21, 90.0, 0)
        found = [entry for _ in range(2) for entry in await queue.lease_due(100)]
        seen = await read_webhooks(kit.store)
        assert (len(found), seen["due"].items, seen["later"].items) == (21, 0, 21)
        for entry in found:
            await queue.retry(entry, f"why {entry.stripe_customer}", delay_ms=1000, counts=True)
        tried = {name: entry["why"] for name, entry in await read_waiting_syncs(kit.store, 100)}
        assert (len(tried), tried["cus_20"]) == (21, "why cus_20")
        assert len(await read_waiting_syncs(kit.store, 4)) == 4


async def test_a_node_that_is_away_holds_up_its_own_shards_only(clock: Clock) -> None:
    customers = {f"cus_{number}" for number in range(60)}
    with spawn_cluster("--cluster-require-full-coverage", "no") as cluster:
        async with kit_of(cluster.url, clock, store_timeout=2.0) as kit:
            queue, keys = SyncQueue(kit.store), kit.store.keys
            assert await queue.lease_due(1) == []
            for customer in customers:
                await queue.request(customer, "reconcile")
            lost = next(node for node in cluster.masters if node is not cluster.owner(keys.hooks("due")))
            left = {
                name for name in customers if cluster.owner(keys.hints(shard_of(name, 16), "due")) is not lost
            }
            assert 0 < len(left) < len(customers)
            lost.stop()
            found = list[SyncEntry]()
            async with asyncio.timeout(240):
                while len(found) < len(left):
                    found += await queue.lease_due(100)
            assert names(found) == sorted(left)
            with pytest.raises(StoreError):
                await queue.lease_due(100)


def sweeper(kit: MeterKit) -> EventSweeper:
    webhooks: Any = kit.webhooks
    return EventSweeper(kit.store, webhooks._api, SyncQueue(kit.store))


async def test_an_undelivered_event_is_found_and_processed(store_url: str) -> None:
    async with hooked(store_url) as at:
        at.customer()
        await at.subscribe()
        assert await at.kit.webhooks.sweep() > 0
        await at.kit.webhooks.work_off()
        assert (await at.kit.customers.get("acme")).plan == "pro"
        assert await at.kit.webhooks.sweep() == 0


async def test_a_paid_page_is_found_where_only_top_ups_are_sold(store_url: str) -> None:
    """Without a plan at Stripe no event was looked for: a payment whose webhook was lost granted nothing."""
    async with top_ups.sold(store_url) as at:
        await top_ups.opened(at)
        await top_ups.bought(at, **top_ups.BACK)
        (session,) = (await at.client.v1.checkout.sessions.list_async()).data
        at.emulator.complete_checkout(session.id)
        await sweeper(at.kit).run_once()
        await at.kit.webhooks.work_off()
        assert await top_ups.balance(at) == 10 * top_ups.DOLLAR


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
        for waits, sweeps in ((timedelta(0), 1), (5 * MINUTE - SECOND, 1), (SECOND, 2)):
            at.clock.advance(waits)
            for each in both:
                await each.run_once()
            assert at.asked("/v1/events") == sweeps


async def test_a_failed_sweep_is_logged_once(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with hooked(store_url) as at:
        at.customer()
        await at.subscribe()
        night = sweeper(at.kit)
        at.emulator.fail_next("error", status=500, path="/v1/events", times=None)
        for _ in range(3):
            await night.run_once()
        at.emulator.clear_faults()
        await night.run_once()
        assert (await at.kit.webhooks.backlog()).entries == 1
    assert sum("looked for later" in record.message for record in caplog.records) == 1


@pytest.mark.dear("a night of sixteen turns, with twelve customers")
async def test_every_linked_customer_is_read_once_a_night(store_url: str) -> None:
    clock = Clock(NOW.replace(hour=0) - MINUTE)
    async with hooked(store_url, clock=clock) as at:
        for number in range(12):
            at.customer(f"c{number}")
            await at.kit.customers.link(f"c{number}", f"cus_c{number}", force=True)
            await at.subscribe(f"c{number}", metadata={})
        await at.kit.customers.set_plan("unlinked", "pro")
        night = sweeper(at.kit)
        await night.run_once()  # Yesterday's turn, which no process has done yet, and the swept customers.
        await at.kit.webhooks.work_off()
        clock.advance(360 * MINUTE)
        await at.kit.webhooks.work_off()
        before, seen = at.asked(), list[int]()
        clock.advance(18 * 60 * MINUTE + 2 * MINUTE)
        for _ in range(16):
            await night.run_once()
            await at.kit.webhooks.work_off()
            seen.append(at.asked() - before)
            clock.advance(30 * MINUTE)
        assert seen[-1] == 12
        assert seen[0] <= 6, "not all at once"
        assert len(set(seen)) >= 4
        assert (await at.kit.customers.get("c5")).plan == "pro"


async def test_an_unreadable_state_keeps_no_other_from_its_night(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(NOW.replace(hour=0))
    async with hooked(store_url, clock=clock, shards=1) as at:
        for customer in ("c0", "c1", "c2"):
            at.customer(customer)
            await at.kit.customers.link(customer, f"cus_{customer}", force=True)
        await at.kit.webhooks.work_off()
        client, keys = (await at.kit.store.admin()).client, at.kit.store.keys
        await client.hset(keys.customer("c0").state, "data", "[]")
        await client.set(keys.customer("c1").state, "no hash")
        await sweeper(at.kit).run_once()
        assert (await at.kit.webhooks.backlog()).entries == 1
        assert "the state of customer 'c0' cannot be read" in caplog.text
        assert await at.kit.subscriptions.check() == {}
        await at.kit.stop()


SIX_HOURS_MS = 6 * 3_600_000
DAY_MS = 4 * SIX_HOURS_MS


@pytest.mark.parametrize(
    ("done", "now_ms", "expected"),
    [
        (None, 0, [0]),
        (None, SIX_HOURS_MS // 4, [0, 1]),
        (NightlyTurn(0, 0), SIX_HOURS_MS // 4, [1]),
        (None, DAY_MS - 1, [0, 1, 2, 3]),
        (NightlyTurn(0, 3), DAY_MS, [0]),
        (NightlyTurn(5, 1), DAY_MS, []),
    ],
)
def test_whose_turn_it_is(done: NightlyTurn | None, now_ms: int, expected: list[int]) -> None:
    found = list(due_shards(done, now_ms, 4))
    assert [night.shard for night, _ in found] == expected
    is_late = now_ms % DAY_MS > SIX_HOURS_MS
    assert {span_ms for _, span_ms in found} <= {SIX_HOURS_MS if is_late else SIX_HOURS_MS // 4}
    assert all(night.day == now_ms // DAY_MS for night, _ in found)
