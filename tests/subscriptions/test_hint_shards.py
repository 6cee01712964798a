"""The sync queue over all shards, and beside processes of an older release, which use one shard."""
# Internals: the queue beside processes of an older release, which only its scripts can play.

# pyright: reportPrivateUsage=false
# What an older release does is done by the scripts under its keys; no public name is for that.

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import CATALOG
from meterkit import MeterKit, StoreError
from meterkit.decisions.keys import shard_of
from meterkit.insights.store_readings import read_webhooks
from meterkit.store.hints import read_entries
from meterkit.subscriptions.webhooks.hint_scripts import Entry, HintScripts, older_place
from meterkit.subscriptions.webhooks.older_queue import SIDE_BY_SIDE_MS
from meterkit.subscriptions.webhooks.queue import HookQueue
from meterkit.subscriptions.webhooks.stripe_events import Hint, Note
from meterkit.testing import Clock
from servers.clusters import Cluster, spawn_cluster

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


pytestmark = pytest.mark.anyio

NOW = datetime(2031, 6, 10, 12, tzinfo=UTC)
DAY = timedelta(milliseconds=SIDE_BY_SIDE_MS)
ALARM = "v1.billing.meter.no_meter_found"


def note_of(name: str) -> Note:
    return Note(name=name, kind="payment.failed", data={"invoice": name})


def hint(event: str, customer: str, note: str | None = None) -> Hint:
    return Hint(event=event, stripe_customer=customer, note=None if note is None else note_of(note))


class Older:
    """A process of an older release: the same scripts, on keys that all lie in shard 0."""

    def __init__(self, kit: MeterKit) -> None:
        self.store = kit.store
        self.scripts = HintScripts(kit.store)
        self.place = older_place(kit.store.keys)

    async def add(self, event: str, customer: str, note: str | None = None) -> int:
        named: dict[str, Any] = {} if note is None else {"name": note, "note": note_of(note).dump()}
        return await self.scripts.hint(self.place, customer, event, is_event=True, **named)

    async def take(self, most: int = 100) -> list[Entry]:
        return [entry for entry in await self.scripts.take(self.place, most=most) if entry is not None]

    async def finish(self, entry: Entry, what: Any = "done", **more: Any) -> bool:
        given: dict[str, Any] = {"notes": entry.notes, **more}
        return await self.scripts.finish(self.place, entry, what, **given)


@asynccontextmanager
async def kit_of(url: str, clock: Clock | None = None, **settings: Any) -> AsyncGenerator[MeterKit]:
    given: dict[str, Any] = {"shards": 16, "store_timeout": 10.0, "flush": False} | settings
    async with MeterKit(CATALOG, redis_url=url, clock=clock or Clock(NOW), **given) as kit:
        yield kit


def names(entries: list[Entry]) -> list[str]:
    return sorted(entry.stripe_customer for entry in entries)


async def test_on_a_cluster_every_shard_has_its_turn(cluster: Cluster) -> None:
    customers = [f"cus_{number}" for number in range(300)]
    async with kit_of(cluster.url, shards=128) as kit, kit_of(cluster.url, shards=128) as other:
        queue, far = HookQueue(kit.store), HookQueue(other.store)
        for customer in customers[:-1]:
            await queue.look(customer, "reconcile")
        found = [names(await far.take(1000)) for _ in range(4)]
        assert sorted(name for page in found for name in page) == sorted(customers[:-1])
        assert all(len({shard_of(name, 128) for name in page}) <= 32 for page in found)
        assert [page for page in found if not page] == []
        # The process that took the hint looks at once, whatever its turn is.
        await queue.look(customers[-1], "reconcile")
        assert names(await queue.take(8)) == [customers[-1]]


async def test_a_customer_held_by_an_older_process_is_left_to_it(store_url: str) -> None:
    clock = Clock(NOW)
    async with kit_of(store_url, clock) as kit:
        older, queue = Older(kit), HookQueue(kit.store)
        await older.add("evt_1", "cus_1", "in_1")
        (entry,) = await older.take()
        await queue.add(hint("evt_2", "cus_1", "in_2"))
        assert await queue.take(10) == []
        assert await queue.take_one("cus_1") == "taken"
        assert await older.finish(entry)
        clock.advance(timedelta(seconds=1))
        (found,) = await queue.take(10)
        assert [note.name for note in found.notes] == ["in_2"]
        # And the other way about.
        await older.add("evt_3", "cus_1", "in_3")
        assert await older.take() == []
        assert await queue.done(found, found.notes)
        (entry,) = await older.take()
        assert [note.name for note in entry.notes] == ["in_3"]


async def test_all_shards_and_older_entries_are_counted_once(store_url: str) -> None:
    clock = Clock(NOW)
    async with kit_of(store_url, clock) as kit:
        older, queue = Older(kit), HookQueue(kit.store)
        for number in range(20):
            await queue.add(hint(f"evt_{number}", f"cus_{number}"))
        await older.add("evt_a", "cus_3")
        await older.add("evt_b", "cus_older")
        for number in range(5):
            await queue.add(Hint(event=f"evt_alarm_{number}", alarm="x"), alarm=ALARM)
        await older.scripts.hint(older.place, "", "evt_alarm", is_event=True, alarm=ALARM)
        waiting = await queue.waiting()
        assert (waiting.entries, waiting.dead, waiting.alarms) == (21, 0, {ALARM: 6})
        clock.advance(timedelta(seconds=90))
        seen = await read_webhooks(kit.store)
        assert (seen["due"].items, seen["due"].age_s, seen["later"].items) == (21, 90.0, 0)
        found = [entry for _ in range(2) for entry in await queue.take(100)]
        seen = await read_webhooks(kit.store)
        assert (len(found), seen["due"].items, seen["later"].items) == (21, 0, 21)
        for entry in found:
            await queue.later(entry, f"why {entry.stripe_customer}", delay_ms=1000, counts=True)
        tried = {name: entry["why"] for name, entry in await read_entries(kit.store, 100)}
        assert (len(tried), tried["cus_older"]) == (21, "why cus_older")
        assert len(await read_entries(kit.store, 4)) == 4


async def test_a_node_that_is_away_holds_up_its_own_shards_only() -> None:
    clock = Clock(NOW)
    customers = [f"cus_{number}" for number in range(60)]
    with spawn_cluster("--cluster-require-full-coverage", "no") as cluster:
        async with kit_of(cluster.url, clock, store_timeout=2.0) as kit:
            queue, keys = HookQueue(kit.store), kit.store.keys
            await queue.take(1)
            clock.advance(DAY)
            assert await queue.take(1) == []
            for customer in customers:
                await queue.look(customer, "reconcile")
            lost = next(node for node in cluster.masters if node is not cluster.owner(keys.hooks("due")))
            gone = {
                name for name in customers if cluster.owner(keys.hints(shard_of(name, 16), "due")) is lost
            }
            assert 0 < len(gone) < len(customers)
            lost.stop()
            found = list[Entry]()
            async with asyncio.timeout(240):
                while len(found) < len(customers) - len(gone):
                    found += await queue.take(100)
            assert names(found) == sorted(set(customers) - gone)
            with pytest.raises(StoreError):
                await queue.take(100)
