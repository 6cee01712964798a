"""Users and teams in the store: races, round trips, expiry, overrides, outages, dead processes."""

# Internals: records of the spool and settlements of subjects are made by hand.

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import NOW
from drivers.worker_process import Holding
from drivers.workers import start
from faults.proxy import TcpProxy
from faults.refusals import evalsha_calls, eventually, lane_of, renew_holds, settled
from meterkit import CustomerError, MeterKit, MeterkitError, PlansError
from meterkit.catalog import loads
from meterkit.decisions.periods import bounds_at, to_ms
from meterkit.redis import producer
from meterkit.redis.settling import Sent
from meterkit.store.hold import Held, Used
from meterkit.store.replay import Replay, read, write
from meterkit.store.settlement import Settlement
from meterkit.store.subject_usage import usage_by
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from drivers.workers import Worker
    from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  calls:  {unit: call}
  pages:  {unit: page}
  words:  {unit: word, stripe: {event_name: words}}
  images: {unit: image}
routes: [{match: "*", consume: {calls: 1}}]
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    meters:
      calls:  {rate: 1000/hour}
      words:  {included: 0, overage: {bill: {per: 1000, amount_cents: 3, cap: 200_000}}}
      images: {included: 1000, overage: deny}
    subjects:
      user:
        calls:  {rate: {limit: 10/hour, algorithm: fixed-window}}
        pages:  {concurrency: 2}
        words:  {included: 90_000}
        budget: {amount_cents: 200}
      team:
        calls:  {included: 100}
"""
USER: Final = {"user": "u_7"}
BUDGET: Final = 2_000_000
WORD: Final = 30
"""Micro-dollars of a word."""
ABOVE: Final = 100_000


def kit_of(url: str, clock: Any = None, plans: str = PLANS, **settings: Any) -> MeterKit:
    given: dict[str, Any] = {"flush": False, "shards": 4, "store_timeout": 10.0} | settings
    return MeterKit(loads(plans), redis_url=url, clock=clock or Clock(NOW), **given)


async def process(url: str, plans: str = PLANS, at: datetime = NOW) -> Worker:
    return await start({"store": url, "plans": plans, "now": at.isoformat()}, Holding)


async def figures(kit: MeterKit, meter: str, kind: str = "user") -> dict[str, tuple[int, int]]:
    """Recorded and held units by subject."""
    return {
        one.subject: (one.meters[meter].recorded, one.meters[meter].held)
        for one in await usage_by(kit.store, "acme", kind)
        if meter in one.meters
    }


async def spent(kit: MeterKit) -> dict[str, int | None]:
    return {one.subject: one.spent_micros for one in await kit.usage("acme", by="user")}


@pytest.mark.dear("four processes race")
async def test_i3_racing_processes_overshoot_no_user_and_no_customer(store_url: str) -> None:
    """Users u0 to u2 are held by their budgets; the many others are held by the customer's cap."""
    chance = Random(28)  # noqa: S311 - repeatable
    names = ["u0"] * 6 + ["u1"] * 2 + ["u2", "u3", "u4", "u5"]
    calls = [(chance.choice(names), chance.randrange(1, 2500)) for _ in range(600)]
    racers = [await process(store_url) for _ in range(4)]
    try:
        answers = await asyncio.gather(
            *(racer.ask("consume", calls=calls[n::4], meter="words") for n, racer in enumerate(racers))
        )
    finally:
        for racer in racers:
            await racer.end()
    admitted: dict[str, int] = {}
    refused: dict[str, list[int]] = {}
    for n, answer in enumerate(answers):
        for (user, asked), units in zip(calls[n::4], answer, strict=True):
            admitted[user] = admitted.get(user, 0) + units
            if not units:
                refused.setdefault(user, []).append(asked)
    async with kit_of(store_url) as kit:
        assert await figures(kit, "words") == {user: (units, 0) for user, units in admitted.items()}
        assert await spent(kit) == {user: units * WORD for user, units in admitted.items()}
        row = (await kit.usage("acme"))["meters"]["words"]
    total = sum(admitted.values())
    assert (row["recorded"], row["held"]) == (total, 0)
    assert max(admitted.values()) * WORD <= BUDGET
    assert total <= 200_000
    # One user was held by its budget, others by the cap; neither refused what fitted both.
    assert admitted["u0"] * WORD > BUDGET - 2500 * WORD
    for user, quantities in refused.items():
        assert min(quantities) > min(200_000 - total, BUDGET // WORD - admitted[user])
    assert any(user != "u0" for user in refused)


async def test_a_decision_with_three_subjects_is_one_round_trip(valkey: Server) -> None:
    plans = PLANS.replace("      team:", "      app:\n        calls: {included: 100}\n      team:")
    subjects = {"user": "u_7", "team": "red", "app": "ios"}
    async with kit_of(valkey.url, plans=plans) as kit:
        await kit.consume("acme", "calls", subjects=subjects)
        await settled(kit)
        before = evalsha_calls(valkey)
        await kit.check("acme", "calls", subjects=subjects)
        assert evalsha_calls(valkey) - before == 1
        before = evalsha_calls(valkey)
        async with kit.reserve("acme", {"calls": 1}, subjects=subjects) as held:
            await held.capture({"calls": 1})
        await settled(kit)
        assert evalsha_calls(valkey) - before == 2


@pytest.mark.each_store
async def test_i7_nothing_of_a_subject_stays_for_ever(store_url: str) -> None:
    clock = Clock(NOW)
    async with kit_of(store_url, clock) as kit:
        for nth in range(20):
            subjects = {"user": f"u{nth}", "team": f"t{nth % 3}"}
            await kit.consume("acme", "calls", subjects=subjects)
            await kit.consume("acme", "words", 10, subjects=subjects)
            async with kit.reserve("acme", {"words": 10, "pages": 1}, subjects=subjects) as held:
                assert held.decision.allowed
        admin = await kit.store.admin()
        client: Any = admin.client
        keys = kit.store.keys
        names = [keys.subject("acme", "user", f"u{nth}") for nth in range(20)]
        names += [keys.subject("acme", "team", f"t{nth}") for nth in range(3)]
        end_ms = bounds_at(to_ms(NOW)).end_ms
        for name in (keys.subjects("acme"), *names):
            # Longer than the rest of the billing period, by an hour at most.
            assert end_ms < await client.pexpiretime(name) < end_ms + 3_600_000
        # A new period: what is over is no longer shown, and a new subject makes room of it.
        clock.advance(timedelta(days=60))
        assert await figures(kit, "words") == {}
        await kit.consume("acme", "calls", subjects={"user": "new"})
        assert await client.zrange(kit.store.keys.subjects("acme"), 0, -1) == [b"user:new"]


async def test_a_customer_has_room_for_a_hundred_thousand_subjects(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(NOW)
    async with kit_of(store_url, clock) as kit:
        client: Any = (await kit.store.admin()).client
        key = kit.store.keys.subjects("acme")
        for at in range(0, ABOVE - 1, 33_333):
            members = {f"user:full{nth}": to_ms(NOW) + 3_600_000 for nth in range(at, at + 33_333)}
            await client.zadd(key, members)
        await client.pexpire(key, 86_400_000)
        assert (await kit.consume("acme", "calls", subjects={"user": "last"})).allowed
        await settled(kit)
        assert await client.zcard(key) == ABOVE
        # Beyond it a new one is decided by the customer's limits alone. One line of the log says so.
        for _ in range(12):
            assert (await kit.consume("acme", "calls", subjects={"user": "beyond"})).allowed
        await settled(kit)
        assert await client.zcard(key) == ABOVE
        assert not await client.exists(kit.store.keys.subject("acme", "user", "beyond"))
        assert (await kit.usage("acme"))["meters"]["calls"]["recorded"] == 13
        # Those that are known keep their limits.
        assert not (await kit.consume("acme", "calls", 10, subjects={"user": "last"})).allowed
        said = [record for record in caplog.records if "100,000 subjects" in record.getMessage()]
        assert len(said) == 1
        assert "'acme'" in said[0].getMessage()
        # Once they have expired, there is room.
        clock.set(NOW + timedelta(hours=1, milliseconds=1))
        await client.pexpire(key, 86_400_000)
        assert (await kit.consume("acme", "calls", 3, subjects={"user": "beyond"})).allowed
        await settled(kit)
        assert (await figures(kit, "calls"))["beyond"] == (3, 0)


@pytest.mark.each_store
async def test_i4_an_override_of_a_user_binds_at_once_and_ends(store_url: str) -> None:
    clock = Clock(NOW)
    until = NOW + timedelta(minutes=10)
    async with kit_of(store_url, clock) as one, kit_of(store_url, clock) as two:
        for kit in (one, two):
            assert (await kit.check("acme", "words", 66_666, subjects=USER)).allowed
            assert not (await kit.check("acme", "words", 66_667, subjects=USER)).allowed
        subject = one.customers.subject("acme", user="u_7")
        found = await subject.override({"budget": {"amount_cents": 3}, "calls": {"rate": "3/hour"}}, until)
        assert found.subject_overrides == {
            "user:u_7": {"budget": {"amount_cents": 3}, "calls": {"rate": "3/hour"}}
        }
        assert found.override_ends == {"subject user:u_7": until}
        for kit in (two, one):
            assert (await kit.check("acme", "words", 1000, subjects=USER)).allowed
            decision = await kit.check("acme", "words", 1001, subjects=USER)
            assert decision.violated == ("user:spend-period",)
            assert (await kit.check("acme", "words", 1001, subjects={"user": "u_8"})).allowed
            assert not (await kit.check("acme", "calls", 4, subjects=USER)).allowed
        clock.set(until - timedelta(milliseconds=1))
        for kit in (one, two):
            assert not (await kit.check("acme", "words", 1001, subjects=USER)).allowed
        clock.set(until)
        for kit in (two, one):
            assert (await kit.check("acme", "words", 66_666, subjects=USER)).allowed
            assert (await kit.check("acme", "calls", 10, subjects=USER)).allowed
        assert (await two.customers.get("acme")).subject_overrides == {}
        # Taken back by hand.
        await subject.override({"words": {"included": 5}})
        assert not (await two.check("acme", "words", 6, subjects=USER)).allowed
        await subject.override({})
        assert (await two.check("acme", "words", 6, subjects=USER)).allowed


async def test_an_override_that_cannot_be_read_is_refused(store_url: str) -> None:
    async with kit_of(store_url) as kit:
        subject = kit.customers.subject("acme", user="u_7")
        wrongs: tuple[Mapping[str, Mapping[str, object]], ...] = (
            {"cals": {"included": 1}},
            {"calls": {"overage": "bill"}},
            {"budget": {"amount_cents": -1}},
            {"budget": {"per": "week"}},
        )
        for wrong in wrongs:
            with pytest.raises(PlansError):
                await subject.override(wrong)
        assert (await kit.customers.get("acme")).subject_overrides == {}
        with pytest.raises(MeterkitError, match="declared are team, user"):
            kit.customers.subject("acme", app="x")
        with pytest.raises(MeterkitError, match="found 2 subjects"):
            kit.customers.subject("acme", user="u", team="t")
        with pytest.raises(CustomerError):
            kit.customers.subject("acme", user="")


async def test_a_deleted_customer_leaves_nothing_of_its_subjects(store_url: str) -> None:
    async with kit_of(store_url) as kit:
        for nth in range(7):
            await kit.consume("acme", "calls", subjects={"user": f"u{nth}", "team": "red"})
            await kit.consume("other", "calls", subjects={"user": f"u{nth}"})
        await settled(kit)
        await kit.customers.subject("acme", user="u1").override({"calls": {"included": 2}})
        found = await kit.customers.delete("acme")
        assert found.subjects == 8
        assert await kit.usage("acme", by="user") == []
        assert (await kit.customers.get("acme")).subject_overrides == {}
        admin, keys = await kit.store.admin(), kit.store.keys
        client: Any = admin.client
        assert not await client.exists(keys.subjects("acme"))
        for nth in range(7):
            assert not await client.exists(keys.subject("acme", "user", f"u{nth}"))
            assert await client.exists(keys.subject("other", "user", f"u{nth}"))
        assert not await client.exists(keys.subject("acme", "team", "red"))


def test_a_spooled_record_keeps_holds_and_spend_of_subjects() -> None:
    store = kit_of("redis://127.0.0.1:6379/0").store
    view = store.cache.get("acme", subjects=(("user", "u_7"), ("team", "größe")))
    decision = view.prepare_holding({"words": 100}, "d")
    settlement = Settlement(view, held=Held.of(decision, 6), used=Used.of({"words": 70}))
    found = read(write(settlement, 1, 1_800_000_000_000, None), store.cache).settlement
    assert found.view.subjects is not None
    assert found.view.subjects.given == (("user", "u_7"), ("team", "größe"))
    assert found.held == settlement.held
    assert found.held.subjects["user"].spent == 100 * WORD
    assert found.spent == settlement.spent == {"user": 70 * WORD}


async def test_i6_a_spool_counts_for_subjects_once(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "_SPILL_AFTER_S", 0.05)
    async with (
        TcpProxy(valkey.port) as proxy,
        kit_of(proxy.url, store_timeout=0.1, spool_dir=tmp_path) as kit,
    ):
        await kit.record("acme", "words", 1, subjects=USER)
        await settled(kit)
        await proxy.set("refuse")
        await eventually(lambda: lane_of(kit).is_away)
        view = kit.store.cache.get("acme", subjects=(("user", "u_7"), ("team", "red")))
        for _ in range(50):
            kit.store.settle(lane_of(kit), Settlement(view, used=Used(recorded={"words": 3, "calls": 1})))
        await eventually(lambda: all(queue.unsettled == 0 for queue in lane_of(kit).queues))
        await proxy.set("pass")
        await settled(kit)
        assert await figures(kit, "words") == {"u_7": (151, 0)}
        assert await figures(kit, "calls", "team") == {"red": (50, 0)}
        assert await spent(kit) == {"u_7": 151 * WORD}


@pytest.mark.parametrize(("kept", "recorded"), [(5, 12), (6, 7)])
async def test_i6_what_may_have_been_applied_counts_for_subjects_once(
    valkey: Server, tmp_path: Path, kept: int, recorded: int
) -> None:
    async with kit_of(valkey.url, spool_dir=tmp_path) as kit:
        store, lane = kit.store, await kit.store.lane()
        view = store.cache.get("acme", subjects=(("user", "u_7"),))
        earlier = store.keys.producer(view.shard, "0" * 16)
        valkey.ask("SET", earlier, f"{kept}", "PX", "60000")
        records = [
            write(
                Settlement(view, used=Used(recorded={"words": quantity})),
                nth,
                store.now_ms(),
                Sent(earlier, 5 + nth, 5),
            )
            for nth, quantity in enumerate((5, 7), start=1)
        ]
        replay = Replay("f" * 16, lane_of=lane.lane_of, cache=store.cache, keys=store.keys)
        await replay.send(records)
        assert await figures(kit, "words") == {"u_7": (recorded, 0)}


async def test_i3_holds_of_a_user_are_renewed_and_given_back(store_url: str) -> None:
    clock = Clock(NOW)
    async with kit_of(store_url, clock) as kit:
        held = kit.reserve("acme", {"words": 60_000, "pages": 1}, subjects=USER)
        await held.__aenter__()
        assert held.decision.allowed
        for _ in range(31):
            clock.advance(timedelta(minutes=1))
            await renew_holds(lane_of(kit))
            await settled(kit)
        assert await figures(kit, "words") == {"u_7": (0, 60_000)}
        assert (await kit.check("acme", "words", 6_666, subjects=USER)).allowed
        assert not (await kit.check("acme", "words", 6_667, subjects=USER)).allowed
        await held.capture({"words": 500})
        await settled(kit)
        assert await figures(kit, "words") == {"u_7": (500, 0)}
        assert await spent(kit) == {"u_7": 500 * WORD}
        assert (await kit.check("acme", "words", 66_166, subjects=USER)).allowed
        assert not (await kit.check("acme", "words", 66_167, subjects=USER)).allowed
        clock.advance(timedelta(minutes=11))
        assert await figures(kit, "words") == {"u_7": (500, 0)}


async def test_i3_holds_of_a_process_that_is_killed_vanish(valkey: Server) -> None:
    doomed = await process(valkey.url)
    assert await doomed.ask("hold", user="u_7", meter="words", quantity=60_000)
    doomed.process.kill()
    await doomed.process.wait()
    clock = Clock(NOW)
    async with kit_of(valkey.url, clock) as kit:
        assert await figures(kit, "words") == {"u_7": (0, 60_000)}
        assert not (await kit.check("acme", "words", 6_667, subjects=USER)).allowed
        clock.advance(timedelta(minutes=10))
        assert (await kit.check("acme", "words", 66_666, subjects=USER)).allowed
        assert await figures(kit, "words") == {"u_7": (0, 0)}
        assert await spent(kit) == {"u_7": 0}
