"""Users and teams in the store: races, round trips, expiry, overrides, outages, dead processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final, Literal

import pytest

from drivers.delivery import NOW
from drivers.plans import plans_text
from drivers.store_keys import meter_field
from drivers.subscribed_customer import fetched, kit_of, subscription
from drivers.worker_process import Holding
from drivers.workers import Worker, start
from faults.proxy import TcpProxy
from faults.refusals import evalsha_calls, eventually, lane_of, renew_holds, settled
from llm_payloads.recordings import chat_usage
from meterkit import MeterKit, MeterkitError, PlansError, SubjectUsage
from meterkit.errors import StoreError
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("subjects")
USER: Final = {"user": "u_7"}
BUDGET: Final = 2_000_000
WORD: Final = 30
"""Micro-dollars of a word."""
ABOVE: Final = 100_000


async def process(url: str) -> Worker:
    return await start({"store": url, "plans": PLANS, "now": NOW.isoformat()}, Holding)


async def figures(
    kit: MeterKit, meter: str, kind: Literal["user", "team"] = "user"
) -> dict[str, tuple[int, int]]:
    """Recorded and held units by subject."""
    return {
        one.subject: (one.meters[meter].recorded, one.meters[meter].held)
        for one in await kit.usage("acme", by=kind)
        if meter in one.meters
    }


async def spent(kit: MeterKit) -> dict[str, int | None]:
    return {one.subject: one.spent_micros for one in await kit.usage("acme", by="user")}


@pytest.mark.dear("four processes race")
async def test_i3_racing_processes_overshoot_no_user_and_no_customer(store_url: str, clock: Clock) -> None:
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
    admitted, refused = Counter[str](), list[tuple[str, int]]()
    for n, answer in enumerate(answers):
        for (user, asked), units in zip(calls[n::4], answer, strict=True):
            admitted[user] += units
            if not units:
                refused.append((user, asked))
    async with kit_of(store_url, clock, PLANS) as kit:
        assert await figures(kit, "words") == {user: (units, 0) for user, units in admitted.items()}
        assert await spent(kit) == {user: units * WORD for user, units in admitted.items()}
        row = (await kit.usage("acme"))["meters"]["words"]
    total = sum(admitted.values())
    assert (row["recorded"], row["held"]) == (total, 0)
    assert max(admitted.values()) * WORD <= BUDGET
    assert total <= 200_000
    # One user was held by its budget, others by the cap; neither refused what fitted both.
    assert admitted["u0"] * WORD > BUDGET - 2500 * WORD
    assert all(asked > min(200_000 - total, BUDGET // WORD - admitted[user]) for user, asked in refused)
    assert any(user != "u0" for user, _ in refused)


async def test_a_decision_with_three_subjects_is_one_round_trip(valkey: Server, clock: Clock) -> None:
    plans = PLANS.replace("      team:", "      app:\n        calls: {included: 100}\n      team:")
    subjects = {"user": "u_7", "team": "red", "app": "ios"}
    async with kit_of(valkey.url, clock, plans) as kit:
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
async def test_i7_nothing_of_a_subject_stays_for_ever(kit: MeterKit, clock: Clock) -> None:
    for nth in range(20):
        subjects = {"user": f"u{nth}", "team": f"t{nth % 3}"}
        await kit.consume("acme", "calls", subjects=subjects)
        await kit.consume("acme", "words", 10, subjects=subjects)
        async with kit.reserve("acme", {"words": 10, "pages": 1}, subjects=subjects) as held:
            assert held.decision.allowed
    client: Any = (await kit.store.admin()).client
    keys = kit.store.keys
    names = [keys.subject("acme", "user", f"u{nth}") for nth in range(20)]
    names += [keys.subject("acme", "team", f"t{nth}") for nth in range(3)]
    end_ms = datetime(2031, 7, 1, tzinfo=UTC).timestamp() * 1000
    for name in (keys.subjects("acme"), *names):
        # Longer than the rest of the billing period, by an hour at most.
        assert end_ms < await client.pexpiretime(name) < end_ms + 3_600_000
    # A new period: what is over is no longer shown, and a new subject makes room of it.
    clock.advance(timedelta(days=60))
    assert await figures(kit, "words") == {}
    await kit.consume("acme", "calls", subjects={"user": "new"})
    assert await client.zrange(keys.subjects("acme"), 0, -1) == [b"user:new"]


async def test_a_customer_has_room_for_a_hundred_thousand_subjects(
    kit: MeterKit, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    client: Any = (await kit.store.admin()).client
    key = kit.store.keys.subjects("acme")
    for at in range(0, ABOVE - 1, 33_333):
        members = {f"user:full{nth}": NOW.timestamp() * 1000 + 3_600_000 for nth in range(at, at + 33_333)}
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
    (said,) = [message for message in caplog.messages if "100,000 subjects" in message]
    assert "'acme'" in said
    # Once they have expired, there is room.
    clock.set(NOW + timedelta(hours=1, milliseconds=1))
    await client.pexpire(key, 86_400_000)
    assert (await kit.consume("acme", "calls", 3, subjects={"user": "beyond"})).allowed
    await settled(kit)
    assert (await figures(kit, "calls"))["beyond"] == (3, 0)


@pytest.mark.each_store
async def test_i4_a_users_override_binds_at_once(kit: MeterKit, other: MeterKit, clock: Clock) -> None:
    until = NOW + timedelta(minutes=10)
    for one in (kit, other):
        assert (await one.check("acme", "words", 66_666, subjects=USER)).allowed
        assert not (await one.check("acme", "words", 66_667, subjects=USER)).allowed
    subject = kit.customers.subject("acme", user="u_7")
    less: Any = {"budget": {"amount_cents": 3}, "calls": {"rate": "3/hour"}}
    found = await subject.override(less, until)
    assert (found.subject_overrides, found.override_ends) == ({"user:u_7": less}, {"subject user:u_7": until})
    for one in (other, kit):
        assert (await one.check("acme", "words", 1000, subjects=USER)).allowed
        decision = await one.check("acme", "words", 1001, subjects=USER)
        assert decision.violated == ("user:spend-period",)
        assert (await one.check("acme", "words", 1001, subjects={"user": "u_8"})).allowed
        assert not (await one.check("acme", "calls", 4, subjects=USER)).allowed
    clock.set(until - timedelta(milliseconds=1))
    for one in (kit, other):
        assert not (await one.check("acme", "words", 1001, subjects=USER)).allowed
    clock.set(until)
    for one in (other, kit):
        assert (await one.check("acme", "words", 66_666, subjects=USER)).allowed
        assert (await one.check("acme", "calls", 10, subjects=USER)).allowed
    assert (await other.customers.get("acme")).subject_overrides == {}
    # Taken back by hand.
    await subject.override({"words": {"included": 5}})
    assert not (await other.check("acme", "words", 6, subjects=USER)).allowed
    await subject.override({})
    assert (await other.check("acme", "words", 6, subjects=USER)).allowed


async def test_an_override_of_one_limit_keeps_the_plans_others(kit: MeterKit) -> None:
    await kit.customers.subject("acme", user="u_7").override({"calls": {"included": 100}})
    assert (await kit.check("acme", "calls", 10, subjects=USER)).allowed
    decision = await kit.check("acme", "calls", 11, subjects=USER)  # The plan gives ten an hour.
    assert decision.violated == ("user:calls-1h",)


async def test_usage_by_user_begins_anew_with_the_period(kit: MeterKit, clock: Clock) -> None:
    await kit.record("acme", {"calls": 3, "words": 100}, subjects=USER)
    assert await spent(kit) == {"u_7": 100 * WORD}
    clock.set(datetime(2031, 7, 1, tzinfo=UTC))  # No request of July has come yet.
    assert await figures(kit, "calls") == await figures(kit, "words") == {"u_7": (0, 0)}
    assert await spent(kit) == {"u_7": 0}


async def test_usage_by_user_begins_anew_with_a_subscription(kit: MeterKit, clock: Clock) -> None:
    await kit.record("acme", {"calls": 3, "words": 100}, subjects=USER)
    clock.advance(timedelta(hours=1))
    begins = dict.fromkeys(("start_ms", "anchor_ms", "created_ms"), clock.now())
    await fetched(kit, subscription(end_ms=clock.now() + timedelta(days=30), **begins))
    assert (await kit.usage("acme"))["meters"]["words"]["recorded"] == 0
    assert await figures(kit, "words") == {"u_7": (0, 0)}
    assert await spent(kit) == {"u_7": 0}


@pytest.mark.parametrize("field", ["h", meter_field("words")])
async def test_usage_lost_for_a_damaged_user_is_not_recorded(kit: MeterKit, field: str) -> None:
    await kit.record("acme", "words", 100, subjects=USER)
    client = (await kit.store.admin()).client
    await client.hset(kit.store.keys.subject("acme", "user", "u_7"), field, "many")
    with pytest.raises(StoreError, match="not recorded"):
        await kit.record("acme", "words", 50, subjects=USER)
    assert (await kit.usage("acme"))["meters"]["words"]["recorded"] == 100


async def test_an_override_that_cannot_be_read_is_refused(kit: MeterKit) -> None:
    subject = kit.customers.subject("acme", user="u_7")
    for meter, key, value in (
        ("cals", "included", 1),
        ("calls", "overage", "bill"),
        ("budget", "per", "week"),
    ):
        with pytest.raises(PlansError):
            await subject.override({meter: {key: value}})
    too_large = {"limit": "1/day", "algorithm": "token-bucket", "burst": 10**15 - 1}
    with pytest.raises(PlansError, match="cannot be counted exactly"):
        await subject.override({"calls": {"rate": [too_large]}})
    assert (await kit.customers.get("acme")).subject_overrides == {}
    for named, said in (
        ({"app": "x"}, "declared are team, user"),
        ({"user": "u", "team": "t"}, "found 2 subjects"),
        ({"user": ""}, "user"),
    ):
        with pytest.raises(MeterkitError, match=said):
            kit.customers.subject("acme", **named)


async def test_a_deleted_customer_leaves_nothing_of_its_subjects(kit: MeterKit) -> None:
    for nth in range(7):
        await kit.consume("acme", "calls", subjects={"user": f"u{nth}", "team": "red"})
        await kit.consume("other", "calls", subjects={"user": f"u{nth}"})
    await settled(kit)
    await kit.customers.subject("acme", user="u1").override({"calls": {"included": 2}})
    found = await kit.customers.delete("acme")
    assert found.subjects == 8
    assert await kit.usage("acme", by="user") == []
    assert (await kit.customers.get("acme")).subject_overrides == {}
    client, keys = (await kit.store.admin()).client, kit.store.keys
    gone = [keys.subject("acme", "user", f"u{nth}") for nth in range(7)]
    assert await client.exists(keys.subjects("acme"), keys.subject("acme", "team", "red"), *gone) == 0
    assert await client.exists(*(keys.subject("other", "user", f"u{nth}") for nth in range(7))) == 7


async def test_i6_a_spool_counts_for_subjects_once(
    proxy: TcpProxy, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.redis.settlement_queue._SPILL_AFTER_S", 0.05)
    async with kit_of(proxy.url, clock, PLANS, store_timeout=0.1, spool_dir=tmp_path) as kit:
        await kit.record("acme", "words", 1, subjects=USER)
        await settled(kit)
        await proxy.set("refuse")
        await eventually(lambda: lane_of(kit).is_down)
        given = {"words": 3, "calls": 1}
        subjects = {"user": "u_7", "team": "red"}
        await asyncio.gather(*(kit.record("acme", given, subjects=subjects) for _ in range(50)))
        await eventually(lambda: all(queue.unsettled == 0 for queue in lane_of(kit).queues))
        await proxy.set("pass")
        await settled(kit)
        assert await figures(kit, "words") == {"u_7": (151, 0)}
        assert await figures(kit, "calls", "team") == {"red": (50, 0)}
        assert await spent(kit) == {"u_7": 151 * WORD}


@pytest.mark.parametrize("used", [300, 900])
async def test_i3_a_users_rate_counts_what_a_reservation_has_used(
    store_url: str, clock: Clock, used: int
) -> None:
    plans = PLANS.replace("words:  {included: 90_000}", "words:  {rate: 1000/hour}")
    async with kit_of(store_url, clock, plans) as kit:
        async with kit.reserve("acme", {"words": 800}, subjects=USER) as held:
            for asked, is_allowed in ((200, True), (201, False)):
                assert (await kit.check("acme", "words", asked, subjects=USER)).allowed == is_allowed
            await held.capture({"words": used})
        await settled(kit)
        for asked, is_allowed in ((1000 - used, True), (1001 - used, False)):
            assert (await kit.check("acme", "words", asked, subjects=USER)).allowed == is_allowed


async def test_i3_holds_of_a_user_are_renewed_and_given_back(kit: MeterKit, clock: Clock) -> None:
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


async def test_i3_holds_of_a_killed_process_vanish(kit: MeterKit, valkey: Server, clock: Clock) -> None:
    doomed = await process(valkey.url)
    assert await doomed.ask("hold", user="u_7", meter="words", quantity=60_000)
    doomed.process.kill()
    await doomed.process.wait()
    assert await figures(kit, "words") == {"u_7": (0, 60_000)}
    assert not (await kit.check("acme", "words", 6_667, subjects=USER)).allowed
    clock.advance(timedelta(minutes=10))
    assert (await kit.check("acme", "words", 66_666, subjects=USER)).allowed
    assert await figures(kit, "words") == {"u_7": (0, 0)}
    assert await spent(kit) == {"u_7": 0}


# Budgets of users where the price of overage depends on the model.


BY_MODEL = """\
default_plan: pro
meters:
  output_tokens: {unit: token, stripe: {event_name: out}}
prices:
  out: {default: 4 per 1000, models: {"small-*": 1 per 1000, "large-*": 20 per 1000}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    subjects: {user: {budget: {amount_cents: 10}}}
    meters: {output_tokens: {included: 100, overage: {bill: {price: prices.out}}}}
"""


def answer(model: str, tokens: int) -> dict[str, Any]:
    return {"object": "chat.completion", "model": model, "choices": [], "usage": chat_usage(0, tokens)}


async def used_by_user(kit: MeterKit) -> SubjectUsage:
    (found,) = await kit.usage("acme", by="user")
    return found


async def test_each_unit_counts_at_the_price_of_its_model(any_store_url: str, clock: Clock) -> None:
    async with kit_of(any_store_url, clock, BY_MODEL) as kit:
        await kit.record_usage("acme", answer("small-1", 300), subjects=USER)
        assert (await used_by_user(kit)).spent_micros == 300 * 10
        await kit.record_usage("acme", answer("large-1", 50), subjects=USER)
        await kit.record_usage("acme", answer("other", 10), subjects=USER)
        await kit.record("acme", "output_tokens", 1, subjects=USER)
        assert (await used_by_user(kit)).spent_micros == 300 * 10 + 50 * 200 + 10 * 40 + 40


async def test_a_hold_of_no_known_model_costs_the_highest_price(any_store_url: str, clock: Clock) -> None:
    async with kit_of(any_store_url, clock, BY_MODEL) as kit:
        async with kit.reserve("acme", {"output_tokens": 500}, subjects=USER) as reservation:
            assert reservation.decision.allowed  # $0.10 at the highest price, all of the budget.
            refused = await kit.consume("acme", "output_tokens", 1, subjects=USER)
            assert (refused.allowed, refused.violated) == (False, ("user:spend-period",))
            await reservation.capture(answer("small-1", 500))
        assert (await used_by_user(kit)).spent_micros == 500 * 10
        assert (await kit.consume("acme", "output_tokens", 1, subjects=USER)).allowed


async def fits(kit: MeterKit, tokens: int, model: str) -> bool:
    async with kit.reserve("acme", {"output_tokens": tokens}, model=model, subjects=USER) as reservation:
        decision = reservation.decision
    assert decision.allowed or decision.violated == ("user:spend-period",)
    return decision.allowed


@pytest.mark.parametrize("of_customer", ["", "budget: {amount_cents: 900}"])
async def test_a_hold_costs_what_its_model_costs(any_store_url: str, clock: Clock, of_customer: str) -> None:
    plans = BY_MODEL.replace("    meters: {output", f"    {of_customer}\n    meters: {{output")
    async with kit_of(any_store_url, clock, plans) as kit:
        asked = {"output_tokens": 5_000}
        async with kit.reserve("acme", asked, model="small-1", subjects=USER) as reservation:
            assert reservation.decision.allowed  # $0.05 of $0.10.
            for model, most in (("small-1", 5_000), ("large-1", 250), ("other", 1_250)):
                assert await fits(kit, most, model)
                assert not await fits(kit, most + 1, model)
            await reservation.capture(answer("small-1", 10_000))
        assert not await fits(kit, 1, "small-1")
        assert (await used_by_user(kit)).spent_micros == 10_000 * 10
