"""Counters are rebuilt from the audit log: nothing is billed twice, and damaged customers are skipped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.audited_kit import (
    Audited,
    audited,
    audited_of,
    lose_all,
    rebuild,
    restart_meters,
    rows_in,
    sqlite_in,
)
from drivers.delivery import PLANS, kit_for
from drivers.health_findings import findings
from drivers.store_keys import meter_token
from meterkit import MeterKit, MeterkitError, StripeError
from meterkit.catalog import loads

Damage = Callable[[Any, Any], Awaitable[Any]]

pytestmark = pytest.mark.anyio


async def tokens(at: Audited, customer: str = "acme") -> dict[str, Any]:
    found: dict[str, Any] = dict((await at.kit.usage(customer))["meters"]["tokens"])
    places = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "dead")
    assert found["overage"] == sum(found[place] for place in places)
    return found


async def drain_and_lose_all(at: Audited) -> None:
    await at.drainer.drain()
    await lose_all(at)


async def deliver(at: Audited, tokens: int) -> None:
    await at.kit.record("acme", "tokens", tokens)
    await at.desk.flush(everything=True)


async def test_lost_units_are_raised_and_stripes_are_delivered(at: Audited) -> None:
    await at.desk.link("acme")
    await at.kit.record("acme", "tokens", 150)
    assert (await at.desk.flush(everything=True)).is_complete
    await at.kit.record("acme", "rows", 3)
    await at.kit.record("acme", "tokens", 7)
    await drain_and_lose_all(at)
    await at.kit.customers.link("acme", "cus_acme", force=True)
    await at.kit.record("acme", "tokens", 2)
    would = {one.meter: one for one in await rebuild(at, dry_run=True)}
    assert (await tokens(at))["recorded"] == 2
    done = {one.meter: one for one in await rebuild(at)}
    assert (done, done["rows"].raised, done["tokens"].raised, done["tokens"].recorded) == (would, 3, 157, 2)
    assert (done["tokens"].delivered, done["tokens"].parked) == (50, 7)
    after = await tokens(at)
    assert (after["recorded"], after["included"], after["overage"]) == (159, 100, 57)
    assert (after["delivered"], after["parked"], after["pending"]) == (50, 7, 0)
    assert ((await at.kit.customers.history("acme"))[-1].kind, await rebuild(at)) == ("rebuilt", [])
    # What is parked is not sent before Stripe was asked twice.
    (parked,) = await at.kit.outbox.list(state="parked")
    await at.kit.outbox.redrive(parked.identifier)
    await at.desk.flush(everything=True, timeout_s=0)
    assert at.desk.accepted("acme", "ai_tokens") == 50
    await settle_what_is_parked(at)
    assert at.desk.accepted("acme", "ai_tokens") == 57
    after = await tokens(at)
    assert (after["delivered"], after["parked"]) == (57, 0)


async def test_nothing_is_rebuilt_while_the_database_is_away(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path / "away")) as at:
        await at.kit.record("acme", "rows", 9)
        with pytest.raises(MeterkitError, match="the database of the audit log failed"):
            await rebuild(at)


async def test_a_period_that_the_store_does_not_know_is_told(at: Audited) -> None:
    await at.kit.record("acme", "rows", 9)
    (row,) = await at.rows()
    await at.move(row["period_start_ms"] + 3_600_000)
    (one,) = await rebuild(at)
    assert (one.raised, one.is_done) == (0, False)
    assert "have its subscription or plan known again first" in one.advice


JUNE: Final = datetime(2031, 6, 1, tzinfo=UTC)


JULY: Final = datetime(2031, 7, 1, tzinfo=UTC)


async def test_a_period_of_a_customers_own_is_compared_whole(at: Audited) -> None:
    """It begins in mid-month by the log, and the store has forgotten why."""
    await at.desk.link("acme")
    await at.kit.record("acme", "tokens", 150)
    await at.kit.record("acme", "rows", 9)
    assert (await at.desk.flush(everything=True)).is_complete
    at.desk.clock.set(JULY + timedelta(minutes=20))
    await at.kit.record("acme", "rows", 2)
    await drain_and_lose_all(at)
    await at.kit.customers.link("acme", "cus_acme", force=True)
    mid_june = JUNE + timedelta(days=9)
    await at.move(int(mid_june.timestamp() * 1000))
    at.desk.clock.set(JULY + timedelta(days=31))
    found = await rebuild(at, at=JULY + timedelta(days=5))
    told = {(one.meter, one.period_start, one.delivered) for one in found}
    assert told == {("tokens", mid_june, 50), ("rows", mid_june, 0)}


async def test_periods_of_which_nothing_was_lost_are_not_told(at: Audited) -> None:
    await at.desk.link("acme")
    for month in (JUNE, JULY, datetime(2031, 10, 1, tzinfo=UTC)):
        at.desk.clock.set(max(at.desk.clock.now(), month))
        await at.kit.record("acme", "tokens", 130)
        await at.kit.correct("acme", {"tokens": 10}, reason="r", correction_id=f"{month}", by="ada")
    assert (await rebuild(at), await rebuild(at, at=JUNE + timedelta(days=20))) == ([], [])


ROWS: Final = meter_token("rows")


DAMAGES: Final[dict[str, Damage]] = {
    "a meter": lambda client, keys: client.hset(keys.counters, f"{ROWS}m", "many"),
    "no counters": lambda client, keys: client.set(keys.counters, "text"),
    "the end of a period": lambda client, keys: client.hset(keys.totals, "1|e", "1.5"),
    "half a state": lambda client, keys: client.hset(keys.state, mapping={"rev": "2:9", "data": '{"plan"'}),
    "another state": lambda client, keys: client.hset(keys.state, mapping={"rev": "2:9", "data": "[1]"}),
    "no ledger": lambda client, keys: client.set(keys.history, "text"),
}


async def used_by(at: Audited, *customers: str) -> Any:
    """Each has used rows, and the store has lost all."""
    for nth, name in enumerate(customers, 1):
        await at.kit.record(name, "rows", nth)
    await drain_and_lose_all(at)
    admin: Any = await at.kit.store.admin()
    return admin.client


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_customer_is_named_and_the_others_are_rebuilt(at: Audited, damage: str) -> None:
    client = await used_by(at, "acme", "beta", "zeta")
    keys = at.kit.store.keys.customer("beta")
    await DAMAGES[damage](client, keys)
    for is_dry in (True, False):
        found = {one.customer: one for one in await rebuild(at, dry_run=is_dry)}
        left = found.pop("beta")
        if is_dry and damage == "no ledger":
            continue  # It is only entered into where something is done.
        assert (left.meter, left.period_start, left.raised, left.is_done) == ("", None, 0, False)
        assert left.advice.startswith("nothing is rebuilt of this customer: ")
        told = {name: (one.raised, one.is_done) for name, one in found.items()}
        assert told == {"acme": (1, True), "zeta": (3, True)}
    for key in (keys.counters, keys.totals, keys.state, keys.history):
        await client.delete(key)
    at.kit.store.use(at.kit.store.catalog)
    (mended,) = await rebuild(at)
    assert (mended.customer, mended.raised) == ("beta", 2)


async def test_unreadable_entries_stop_only_their_shards_rebuild(at: Audited) -> None:
    client = await used_by(at, "acme", "beta", "zeta")
    keys = at.kit.store.keys
    shard = keys.customer("beta").shard
    await client.xadd(keys.audit(shard), {"k": "of another release", "d": "", "at": 1})
    found = {one.customer: one for one in await rebuild(at)}
    beside = {name for name in found if keys.customer(name).shard == shard}
    assert "acme" in set(found) - beside
    assert "entries of its shard still wait" in found["beta"].advice
    assert {name for name, one in found.items() if not one.is_done} == beside


@pytest.mark.usefixtures("valkey")
@pytest.mark.parametrize("part", ["entries", "sums"])
async def test_a_damaged_shard_is_named_and_others_are_drained(
    at: Audited, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    keys, names = at.kit.store.keys, ("acme", "beta", "zeta")
    client = await used_by(at, *names)
    shard = keys.customer("beta").shard
    others = [name for name in names if keys.customer(name).shard != shard]
    for name in others:
        await at.kit.record(name, "rows", 7)
    key = keys.audit(shard) if part == "entries" else keys.audit_sums(shard)
    await client.set(key, "text")
    for _ in range(2):
        await at.drainer.drain()
    found = {one.customer: one for one in await rebuild(at)}
    assert not found["beta"].is_done
    assert all(found[name].is_done for name in others)
    drained = [row for row in await asyncio.to_thread(rows_in, at.url) if row["quantity"] == 7]
    assert sorted(row["customer"] for row in drained) == others != []
    assert caplog.text.count(f"shard {shard} of the audit log is left") == 1
    problems = [one.problem for one in await findings(at.kit, "audit")]
    unread = [one for one in problems if one.startswith(f"the audit log of shard {shard} cannot")]
    assert len(unread) == (part == "entries")
    await client.delete(key)


async def test_a_rebuild_that_ends_early_has_told_what_it_did(at: Audited) -> None:
    await at.kit.record("zeta", "tokens", 130)
    await used_by(at, "acme")
    await at.desk.link("zeta")
    at.desk.emulator.fail_next("error", status=401, path="*", times=None)
    found: list[Any] = []
    with pytest.raises(StripeError):
        await rebuild(at, found=found)
    assert [(one.customer, one.raised) for one in found] == [("acme", 1)]


async def test_a_customer_whom_stripe_does_not_have_is_named(at: Audited) -> None:
    await at.desk.link("acme")
    for name in ("acme", "gone"):
        await at.kit.record(name, "tokens", 130)
    await drain_and_lose_all(at)
    await at.kit.customers.link("gone", "cus_gone", force=True)
    await at.kit.customers.link("acme", "cus_acme", force=True)
    # Stripe names the meters, the units of acme and its invoice items; it does not know the other customer.
    at.desk.emulator.fail_next("error", status=404, path="*", skip=3)
    found = {one.customer: one for one in await rebuild(at)}
    assert (found["acme"].parked, found["acme"].is_done) == (30, True)
    assert found["gone"].is_done is False
    assert "Stripe does not say what it has: " in found["gone"].advice


RENAMED: Final = loads(PLANS.replace("tokens:", "words:"))


@pytest.fixture
async def renamed(at: Audited) -> AsyncGenerator[MeterKit]:
    """A kit of the plans file in which tokens are called words; each includes 100 of its own."""
    await at.desk.link("acme")
    desk = at.desk
    kit = kit_for(desk.store_url, desk.url, clock=desk.clock, catalog=RENAMED, audit_url=at.url)
    async with kit as opened:
        yield opened


async def lose(at: Audited, renamed: MeterKit) -> None:
    """The store loses all, and processes of both plans files go on."""
    await drain_and_lose_all(at)
    renamed.store.use(renamed.store.catalog)
    await restart_meters(renamed)
    at.desk.clock.advance(timedelta(minutes=2))
    await at.kit.customers.link("acme", "cus_acme", force=True)


async def settle_what_is_parked(at: Audited) -> None:
    for minutes in (121, 11, 1):
        await at.desk.flush(everything=True, after=timedelta(minutes=minutes))


async def places(at: Audited, renamed: MeterKit) -> dict[str, tuple[int, int]]:
    """What is delivered and parked of each name."""
    found = {**(await at.kit.usage("acme"))["meters"], **(await renamed.usage("acme"))["meters"]}
    return {name: (found[name]["delivered"], found[name]["parked"]) for name in ("tokens", "words")}


async def test_i6_units_of_an_intact_name_belong_to_no_other(at: Audited, renamed: MeterKit) -> None:
    await renamed.record("acme", "words", 104)
    await at.drainer.drain()
    await lose(at, renamed)
    await deliver(at, 106)
    (done,) = await rebuild(at)
    assert (done.meter, done.delivered, done.parked) == ("words", 0, 4)
    await settle_what_is_parked(at)
    assert at.desk.accepted("acme", "ai_tokens") == 10
    assert await places(at, renamed) == {"tokens": (6, 0), "words": (4, 0)}


@pytest.mark.parametrize(("tokens", "words", "is_first_delivered"), [(6, 4, True), (4, 6, False)])
async def test_i6_what_stripe_has_is_counted_for_one_name_alone(
    at: Audited, renamed: MeterKit, tokens: int, words: int, is_first_delivered: bool
) -> None:
    used = [(at.kit, "tokens", tokens), (renamed, "words", words)]
    for kit, meter, units in used if is_first_delivered else used[::-1]:
        await at.desk.flush(everything=True)  # What is used last is pending when it is lost.
        await kit.record("acme", meter, 100 + units)
    there = at.desk.accepted("acme", "ai_tokens")
    assert there == (tokens if is_first_delivered else words)
    await lose(at, renamed)
    done = await rebuild(at)
    assert sum(one.delivered for one in done) == there
    assert (sum(one.parked for one in done), await rebuild(at)) == (tokens + words - there, [])
    await settle_what_is_parked(at)
    assert at.desk.accepted("acme", "ai_tokens") == tokens + words
    assert await places(at, renamed) == {"tokens": (tokens, 0), "words": (words, 0)}


@pytest.mark.parametrize("there", [10, 0, 5], ids=["all", "nothing", "of one name"])
async def test_i6_both_names_are_compared_together(at: Audited, renamed: MeterKit, there: int) -> None:
    """Nobody could be asked when they were rebuilt: Stripe turns out to have all of it, nothing, or some."""
    await at.kit.record("acme", "tokens", 105)
    if there == 5:
        await at.desk.flush(everything=True)
    await renamed.record("acme", "words", 105)
    if there == 10:
        await at.desk.flush(everything=True)
    await lose(at, renamed)
    done = await rebuild(at, asks_stripe=False)
    assert {one.meter: (one.delivered, one.parked) for one in done} == {"tokens": (0, 5), "words": (0, 5)}
    if there == 5:  # A person is told.
        await settle_what_is_parked(at)
        assert at.desk.accepted("acme", "ai_tokens") == 5
        assert await places(at, renamed) == {"tokens": (0, 5), "words": (0, 5)}
        whys = {one.why for one in await at.kit.outbox.list(state="parked")}
        assert whys == {"Stripe's summary of what was rebuilt of its event name says 5, and it is 10"}
    else:
        await renamed.record("acme", "words", 3)
        await settle_what_is_parked(at)
        assert at.desk.accepted("acme", "ai_tokens") == 13
        assert await places(at, renamed) == {"tokens": (5, 0), "words": (8, 0)}


async def test_i6_stripe_may_have_units_of_a_forgotten_name(at: Audited, renamed: MeterKit) -> None:
    alone = audited_of(renamed, at)  # One plans file alone.
    await deliver(at, 106)
    await renamed.record("acme", "words", 104)
    await lose(at, renamed)
    done = {one.meter: one for one in await rebuild(alone)}
    assert (done["words"].delivered, done["words"].parked) == (0, 4)
    assert (done["tokens"].raised, done["tokens"].is_done) == (0, False)
    assert "its event name is not known: start a process with the plans file" in done["tokens"].advice
    # With the plans file that had it both are known; 4 of Stripe's 6 may be what is parked by now.
    (then,) = await rebuild(at)
    assert (then.meter, then.delivered, then.parked) == ("tokens", 2, 4)
    # Once it is over nobody says whose Stripe's units are.
    await lose(at, renamed)
    at.desk.clock.set(JULY + timedelta(minutes=20))
    await renamed.record("acme", "words", 1)
    past = [one for one in await rebuild(alone) if one.period_start != JULY]
    assert {(one.meter, one.delivered, one.is_done) for one in past} == {
        (meter, 0, False) for meter in ("tokens", "words")
    }


async def test_i6_unanswered_sends_are_not_taken_for_lost_units(at: Audited, renamed: MeterKit) -> None:
    await renamed.record("acme", "words", 107)
    await lose(at, renamed)
    await at.kit.record("acme", "tokens", 105)
    at.desk.emulator.fail_next(action="drop", when="after")
    await at.desk.flush(everything=True, timeout_s=0)
    assert at.desk.accepted("acme", "ai_tokens") == 5
    (done,) = await rebuild(at)
    assert (done.meter, done.delivered, done.parked) == ("words", 0, 7)
    await settle_what_is_parked(at)
    assert at.desk.accepted("acme", "ai_tokens") == 12
    assert await places(at, renamed) == {"tokens": (5, 0), "words": (7, 0)}


@pytest.mark.parametrize("is_lost", [True, False])
async def test_i6_a_closed_period_is_of_one_name_alone(at: Audited, renamed: MeterKit, is_lost: bool) -> None:
    """What Stripe has is the tokens: lost with all, or known to have been delivered."""
    if is_lost:
        await deliver(at, 106)
    await renamed.record("acme", "words", 104)
    await lose(at, renamed)
    if not is_lost:
        await deliver(at, 106)
    assert at.desk.accepted("acme", "ai_tokens") == 6
    at.desk.clock.set(JULY + timedelta(minutes=20))
    await at.kit.record("acme", "rows", 2)
    found = [one for one in await rebuild(at) if one.meter != "rows"]
    assert sum(one.delivered for one in found) == (6 if is_lost else 0)
    assert sum("Stripe lacks 4 units" in one.advice for one in found) == 1
    assert [one.is_done for one in found].count(False) == 1
