"""The outbox: leases, states, pages, what is kept for how long, and errors of the server."""
# Internals: the scripts of the outbox with two views of one shard.

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drivers.counters import put_head
from drivers.delivery import CATALOG, NOW, Desk, alerts, desk
from drivers.kept_intents import ObjectsAtStripe
from faults.refusals import counters as shown
from meterkit import MeterKit, StoreError
from meterkit.decisions.keys import FORMAT
from meterkit.delivery.summaries import wait_until_counted
from meterkit.delivery.usage_cutter import count_undelivered_units
from meterkit.outbox.intents import IntentMove, SealedIntent
from meterkit.outbox.outbox import Outbox
from meterkit.redis.admin import Admin
from meterkit.redis.scripts import Script
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

CUSTOMERS = ("acme", "zeta")


@dataclass(frozen=True)
class Bench:
    """One shard, and two flushers' views of it."""

    kit: MeterKit
    clock: Clock
    ours: Outbox
    theirs: Outbox

    async def sealed(self) -> Sequence[SealedIntent]:
        """Have a request of each customer sealed; the intents."""
        for customer in CUSTOMERS:
            await self.kit.record(customer, "requests", 2)
        assert (await self.ours.seal(0, due_ms=None, most=50)).intents == len(CUSTOMERS)
        return await self.ours.due(0, due_ms=None, most=10)

    async def attempted(self) -> Sequence[SealedIntent]:
        intents = await self.sealed()
        await self.ours.lease(0, ttl_ms=60_000)
        await self.ours.attempt(0, intents)
        return intents

    async def states(self, customer: str = "acme") -> dict[str, int]:
        """Where a customer's usage is, zeros left out."""
        meter: Mapping[str, Any] = (await self.kit.usage(customer))["meters"]["requests"]
        parts = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "late", "dead")
        return {part: meter[part] for part in parts if meter[part]}


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Bench]:
    clock = Clock(NOW)
    async with MeterKit(CATALOG, clock=clock, redis_url=store_url, shards=1, store_timeout=10.0) as kit:
        for customer in CUSTOMERS:
            await kit.customers.link(customer, f"cus_{customer}", force=True)
        admin = await kit.store.admin()
        yield Bench(kit, clock, Outbox(kit.store, admin), Outbox(kit.store, admin))


async def test_i6_a_second_try_at_the_same_instant_is_a_second_try(at: Bench) -> None:
    """It would count as never tried once it was refused, and be sent again when Stripe has forgotten it."""
    (sealed, _) = await at.sealed()
    await at.ours.lease(0, ttl_ms=60_000)
    (first,) = await at.ours.attempt(0, [sealed])
    await at.ours.settle(0, [IntentMove(intent=sealed, state="queued")])
    (second,) = await at.ours.attempt(0, [sealed])
    assert (first.attempts, first.first_ms) == (1, 0)
    assert (second.attempts, second.first_ms, second.now_ms) == (2, first.now_ms, first.now_ms)


async def test_without_the_lease_nothing_moves(at: Bench) -> None:
    intents = await at.sealed()
    assert await at.ours.attempt(0, intents) == []
    await at.ours.lease(0, ttl_ms=60_000)
    assert len(await at.ours.attempt(0, intents)) == 2
    await at.ours.lease(0, ttl_ms=0)
    await at.theirs.lease(0, ttl_ms=60_000)
    assert not await at.ours.settle(0, [IntentMove(intent=intents[0], state="delivered")])
    assert await at.states() == {"leased": 2}
    # The new holder takes over what the old one left.
    assert len(await at.theirs.attempt(0, intents)) == 2
    assert await at.theirs.settle(0, [IntentMove(intent=intents[0], state="delivered")])


async def test_units_that_another_process_takes_back_are_undelivered(at: Bench) -> None:
    await at.ours.settle(0, [IntentMove(intent=one, state="delivered") for one in await at.attempted()])
    assert await count_undelivered_units(at.kit.store, "acme") == 0
    await at.kit.correct("acme", {"requests": 2}, reason="a loop", correction_id="c-1")
    assert await count_undelivered_units(at.kit.store, "acme") == 2
    assert len(await at.ours.attempt(0, await at.ours.due(0, due_ms=None, most=10))) == 1
    assert (await at.states())["leased"] == -2
    assert await count_undelivered_units(at.kit.store, "acme") == 2


async def test_units_of_a_periods_first_seconds_are_not_counted_yet(at: Bench) -> None:
    at.clock.set(datetime(2031, 7, 1, 0, 0, 1, tzinfo=UTC))  # It may still be June at Stripe.
    await at.ours.settle(0, [IntentMove(intent=one, state="delivered") for one in await at.attempted()])
    stripe = ObjectsAtStripe({"/v1/billing/meters": [{"id": "mtr_1", "event_name": "api_requests"}]})
    assert await wait_until_counted(at.kit.store, stripe, "acme", "cus_acme", timeout_s=0) == 2


async def test_of_what_was_delivered_a_line_is_kept_for_36_days(valkey: Server, at: Bench) -> None:
    # F-59: 530 bytes an intent before.
    intents = await at.attempted()
    await at.ours.settle(0, [IntentMove(intent=sealed, state="delivered") for sealed in intents])
    assert valkey.command("HGETALL", "mk:{0}:intents") == {}
    key = f"mk:{{0}}:delivered:{at.clock.now_ms // 86_400_000}"
    kept = {name: json.loads(line) for name, line in valkey.command("HGETALL", key).items()}
    assert kept == {
        one.identifier: [one.customer, one.stripe_customer, "api_requests", str(one.timestamp), "2"]
        for one in intents
    }
    assert 35 * 86_400_000 < valkey.command("PTTL", key) <= 36 * 86_400_000
    line = json.dumps(next(iter(kept.values())))
    valkey.command("HSET", key, *(part for n in range(1000) for part in (f"{n:032x}-1", line)))
    assert valkey.command("MEMORY", "USAGE", key) / 1002 < 200


async def test_the_unlinked_are_named(at: Bench) -> None:
    for customer in ("nobody", "acme", "someone"):
        await at.kit.record(customer, "requests", 1)
    assert await at.ours.unlinked() == ["nobody", "someone"]


async def test_i7_the_unlinked_are_forgotten_with_their_usage(valkey: Server, at: Bench) -> None:
    for days, customer in ((0, "in June"), (21, "in July")):
        at.clock.advance(timedelta(days=days))
        await at.kit.record("each month", "requests", 4)
        await at.kit.record(customer, "requests", 4)
    at.clock.advance(timedelta(days=35))
    assert await at.ours.unlinked() == ["each month", "in July"]
    await at.kit.record("new", "requests", 4)
    assert await at.ours.unlinked() == ["each month", "in July", "new"]
    assert valkey.command("ZCARD", "mk:{0}:unlinked") == 3


async def test_a_host_whose_clock_differs_seals_by_the_stores(store_url: str, valkey: Server) -> None:
    async with MeterKit(CATALOG, redis_url=store_url, shards=1, store_timeout=10.0) as kit:
        await kit.customers.link("acme", "cus_acme", force=True)
        await kit.record("acme", "requests", 1)
        seen = int(shown(valkey, "acme")["t"])
        elsewhere = Admin(kit.store.address, timeout_s=10.0, clock=lambda: seen / 1000 + 3600)
        outbox = Outbox(kit.store, elsewhere)
        found = await outbox.seal(0, due_ms=None, most=50)
        assert (found.intents, abs(found.now_ms - seen) < 60_000) == (1, True)
        await elsewhere.close()


@pytest.mark.parametrize("state", ["leased", "delivered"])
async def test_a_relinked_customer_has_minutes_of_its_own(valkey: Server, at: Bench, state: Any) -> None:
    intents = await at.attempted()
    if state == "delivered":
        await at.ours.settle(0, [IntentMove(intent=sealed, state=state) for sealed in intents])
    await at.kit.customers.unlink("acme")
    # Longer than any delivery: usage of a closed period waits for a link for 35 days.
    counter_ttl_ms = valkey.command("PTTL", at.kit.store.keys.formers("cus_acme"))
    assert 36 * 86_400_000 < counter_ttl_ms <= 40 * 86_400_000
    await at.kit.customers.link("next", "cus_acme", force=True)
    await at.kit.record("next", "requests", 3)
    assert (await at.ours.seal(0, due_ms=None, most=50)).intents == 1
    (sealed,) = (one for one in await at.ours.due(0, due_ms=None, most=10) if one.customer == "next")
    (before,) = (one for one in intents if one.customer == "acme")
    assert (sealed.stripe_customer, before.stripe_customer) == ("cus_acme", "cus_acme")
    assert sealed.timestamp != before.timestamp


async def test_a_lease_that_cannot_be_read_lets_nothing_be_sent(valkey: Server, at: Bench) -> None:
    intents = await at.sealed()
    valkey.command("RPUSH", "mk:{0}:lease", "x")
    with pytest.raises(StoreError, match=r"the store failed: .*WRONGTYPE"):
        await at.ours.attempt(0, intents)
    valkey.command("DEL", "mk:{0}:lease")
    assert await at.states() == {"queued": 2}


async def test_a_customer_changing_while_sealed_waits(at: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await at.kit.record("acme", "requests", 2)
    limits = iter(range(2_000, 3_000))
    admin = (await at.kit.store.admin()).for_delivery()
    ask = admin.ask

    async def ask_late(answer: Any) -> Any:
        await at.kit.customers.override("acme", {"rows": {"included": next(limits)}})
        return await ask(answer)

    monkeypatch.setattr(admin, "ask", ask_late)
    sealing = await at.ours.seal(0, due_ms=None, most=50)
    monkeypatch.undo()
    assert (sealing.intents, sealing.unreadable) == (
        0,
        {"acme": "it changed 5 times while its usage was sealed"},
    )
    assert await at.states() == {"pending": 2}
    at.clock.advance(timedelta(minutes=10))
    assert (await at.ours.seal(0, due_ms=at.clock.now_ms, most=50)).intents == 1


@pytest.mark.leaves_keys("a state that nobody can read")
async def test_a_state_of_any_depth_holds_up_nobody_else(valkey: Server, at: Bench) -> None:
    for customer in CUSTOMERS:
        await at.kit.record(customer, "requests", 2)
    keys = at.kit.store.keys.customer("acme")
    valkey.command("HSET", keys.state, "rev", f"{FORMAT}:deep", "data", "[" * 100_000)
    put_head(valkey, keys.counters, r=f"{FORMAT}:deep")
    sealing = await at.ours.seal(0, due_ms=None, most=50)
    assert (sealing.intents, list(sealing.unreadable)) == (1, ["acme"])
    assert sealing.unreadable["acme"].startswith("its state cannot be read: RecursionError")


async def seal_thirteen(at: Desk) -> Outbox:
    """Twelve intents of one customer, in as many minutes, and one of another behind them."""
    await at.link("acme")
    for _ in range(12):
        await at.kit.record("acme", "requests", 1)
        assert await at.seal() == 1
        at.clock.advance(timedelta(minutes=1))
    await at.use("zeta", requests=7)
    assert await at.seal() == 1
    return Outbox(at.kit.store, await at.kit.store.admin())


@pytest.mark.parametrize(("page", "depth"), [(1, 64), (2, 6)])
async def test_pages_of_few_deliver_all_once_and_in_order(
    store_url: str, monkeypatch: pytest.MonkeyPatch, page: int, depth: int
) -> None:
    # F-87
    monkeypatch.setattr("meterkit.outbox.outbox._PAGE", page)
    monkeypatch.setattr("meterkit.outbox.outbox._DEPTH", depth)
    monkeypatch.setattr("meterkit.delivery.flusher._INTENTS_PER_PAGE", 1)
    async with desk(store_url, shards=1) as at:
        outbox = await seal_thirteen(at)
        found = [intent.customer for intent in await outbox.due(0, due_ms=None, most=64)]
        assert (len(found) <= depth, "zeta" in found) == (True, depth > 12)
        report = await at.flush()
        assert (report.delivered, report.retried, report.left) == (13, 0, 0)
    sent = at.emulator.requests
    assert len(sent) == len({request.identifier for request in sent}) == 13
    stamps = [event.timestamp for event in at.emulator.events]
    assert (sorted(stamps), at.accepted("acme"), at.accepted("zeta")) == (stamps, 12, 7)


@pytest.mark.usefixtures("valkey")
@pytest.mark.parametrize(
    ("said", "is_set_aside"),
    [
        ("READONLY You can't write against a read only replica.", False),
        ("NOPERM this user has no permissions to run the 'evalsha' command", False),
        ("NOSCRIPT No matching script. Please use EVAL.", False),
        ("CLUSTERDOWN Hash slot not served", False),
        ("BUSY Redis is busy running a script.", False),
        ("ERR user_script:50: attempt to index a nil value", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", True),
    ],
)
async def test_nobody_is_set_aside_for_what_a_server_says_of_itself(
    at: Bench, said: str, is_set_aside: bool
) -> None:
    # R8: redis-py cuts most codes off the message, and fifty customers waited ten minutes.
    await at.kit.record("acme", "requests", 6)
    text = f"#!lua\nreturn redis.error_reply([[{said}]])"
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    at.kit.store.scripts["seal"] = Script("seal", text, sha)
    client: Any = (await at.kit.store.admin()).client
    before = await client.zscore("mk:{0}:dirty", "acme")
    if is_set_aside:
        assert list((await at.ours.seal(0, due_ms=None, most=50)).unreadable) == ["acme"]
        assert await client.zscore("mk:{0}:dirty", "acme") >= (NOW.timestamp() + 600) * 1000
    else:
        with pytest.raises(StoreError, match="failed"):
            await at.ours.seal(0, due_ms=None, most=50)
        assert await client.zscore("mk:{0}:dirty", "acme") == before


@pytest.mark.usefixtures("valkey")
async def test_scripts_that_a_server_lost_are_given_to_it_again(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # R8: between the loading of a script and its use.
    def lose(pipe: Any, _text: str) -> None:
        pipe.execute_command("SCRIPT", "FLUSH")

    async with desk(store_url, shards=1) as at:
        await at.use("acme", "zeta", requests=6)
        monkeypatch.setattr("redis.asyncio.client.Pipeline.script_load", lose)
        with pytest.raises(StoreError):
            await at.flush(everything=True, timeout_s=0)
        monkeypatch.undo()
        assert ((await at.flush(everything=True)).delivered, alerts(caplog)) == (2, [])
