"""A meter that was renamed under one event name is two to the log: what Stripe has counts for one of them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.audited_kit import Audited, audited, audited_of, lose_all, rebuild, restart_meters, sqlite_in
from drivers.delivery import PLANS, kit_for
from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

RENAMED: Final = loads(PLANS.replace("tokens:", "words:"))
JULY: Final = datetime(2031, 7, 1, tzinfo=UTC)


@asynccontextmanager
async def renaming(store_url: str, directory: Path) -> AsyncGenerator[tuple[Audited, MeterKit]]:
    """A kit, and one of the plans file in which tokens are called words; each includes 100 of its own."""
    url = sqlite_in(directory)
    async with (
        audited(store_url, url) as at,
        kit_for(store_url, at.desk.url, clock=at.desk.clock, catalog=RENAMED, audit_url=url) as renamed,
    ):
        await at.desk.link("acme")
        yield at, renamed


async def lose(at: Audited, renamed: MeterKit) -> None:
    """The store loses all, and processes of both plans files go on."""
    await at.drainer.drain()
    await lose_all(at)
    renamed.store.use(renamed.store.catalog)
    await restart_meters(renamed)
    at.desk.clock.advance(timedelta(minutes=2))
    await at.kit.customers.link("acme", "cus_acme", force=True)


async def settle_what_is_parked(at: Audited) -> None:
    for minutes in (121, 11, 1):
        at.desk.clock.advance(timedelta(minutes=minutes))
        await at.desk.flush(everything=True)


async def places(at: Audited, renamed: MeterKit) -> dict[str, tuple[int, int]]:
    """What is delivered and parked of each name."""
    found = {**(await at.kit.usage("acme"))["meters"], **(await renamed.usage("acme"))["meters"]}
    return {name: (found[name]["delivered"], found[name]["parked"]) for name in ("tokens", "words")}


@pytest.mark.parametrize(("tokens", "words", "is_first_delivered"), [(6, 4, True), (4, 6, False)])
async def test_i6_what_stripe_has_is_counted_for_one_name_alone(
    store_url: str, tmp_path: Path, tokens: int, words: int, is_first_delivered: bool
) -> None:
    async with renaming(store_url, tmp_path) as (at, renamed):
        used = [(at.kit, "tokens", tokens), (renamed, "words", words)]
        for kit, meter, units in used if is_first_delivered else used[::-1]:
            await at.desk.flush(everything=True)  # What is used last is pending when it is lost.
            await kit.record("acme", meter, 100 + units)
        there = at.desk.accepted("acme", "ai_tokens")
        assert there == (tokens if is_first_delivered else words)
        await lose(at, renamed)
        done = await rebuild(at)
        assert (sum(one.delivered for one in done), sum(one.parked for one in done)) == (
            there,
            tokens + words - there,
        )
        assert await rebuild(at) == []
        await settle_what_is_parked(at)
        assert at.desk.accepted("acme", "ai_tokens") == tokens + words
        assert await places(at, renamed) == {"tokens": (tokens, 0), "words": (words, 0)}


@pytest.mark.parametrize("is_there", [True, False])
async def test_i6_what_is_parked_of_both_names_is_compared_together(
    store_url: str, tmp_path: Path, is_there: bool
) -> None:
    """Nobody could be asked when they were rebuilt: Stripe turns out to have all of it, or nothing."""
    async with renaming(store_url, tmp_path) as (at, renamed):
        await at.kit.record("acme", "tokens", 105)
        await renamed.record("acme", "words", 105)
        if is_there:
            await at.desk.flush(everything=True)
        await lose(at, renamed)
        done = await rebuild(at, asks_stripe=False)
        assert {one.meter: (one.delivered, one.parked) for one in done} == {"tokens": (0, 5), "words": (0, 5)}
        await renamed.record("acme", "words", 3)
        await settle_what_is_parked(at)
        assert at.desk.accepted("acme", "ai_tokens") == 13
        assert await places(at, renamed) == {"tokens": (5, 0), "words": (8, 0)}


async def test_i6_where_stripe_has_some_of_both_names_a_person_is_told(
    store_url: str, tmp_path: Path
) -> None:
    async with renaming(store_url, tmp_path) as (at, renamed):
        await at.kit.record("acme", "tokens", 105)
        await at.desk.flush(everything=True)
        await renamed.record("acme", "words", 105)
        await lose(at, renamed)
        await rebuild(at, asks_stripe=False)
        await settle_what_is_parked(at)
        assert at.desk.accepted("acme", "ai_tokens") == 5
        assert await places(at, renamed) == {"tokens": (0, 5), "words": (0, 5)}
        whys = {one.why for one in await at.kit.outbox.list(state="parked")}
        assert whys == {"Stripe's summary of what was rebuilt of its event name says 5, and it is 10"}


async def test_i6_units_of_an_intact_name_belong_to_no_other(store_url: str, tmp_path: Path) -> None:
    async with renaming(store_url, tmp_path) as (at, renamed):
        await renamed.record("acme", "words", 104)
        await at.drainer.drain()
        await lose(at, renamed)
        await at.kit.record("acme", "tokens", 106)
        await at.desk.flush(everything=True)
        (done,) = await rebuild(at)
        assert (done.meter, done.delivered, done.parked) == ("words", 0, 4)
        await settle_what_is_parked(at)
        assert at.desk.accepted("acme", "ai_tokens") == 10
        assert await places(at, renamed) == {"tokens": (6, 0), "words": (4, 0)}


async def rebuild_with(kit: MeterKit, at: Audited) -> Sequence[Any]:
    """Rebuild with one plans file alone."""
    return await rebuild(audited_of(kit, at))


async def test_i6_stripe_may_have_units_of_a_forgotten_name(store_url: str, tmp_path: Path) -> None:
    async with renaming(store_url, tmp_path) as (at, renamed):
        await at.kit.record("acme", "tokens", 106)
        await at.desk.flush(everything=True)
        await renamed.record("acme", "words", 104)
        await lose(at, renamed)
        done = {one.meter: one for one in await rebuild_with(renamed, at)}
        assert (done["words"].delivered, done["words"].parked) == (0, 4)
        assert (done["tokens"].raised, done["tokens"].is_done) == (0, False)
        assert "its event name is not known: start a process with the plans file" in done["tokens"].advice
        # With the plans file that had it both are known; 4 of Stripe's 6 may be what is parked by now.
        (done_then,) = await rebuild(at)
        assert (done_then.meter, done_then.delivered, done_then.parked) == ("tokens", 2, 4)
        # Once it is over nobody says whose Stripe's units are.
        await lose(at, renamed)
        at.desk.clock.set(JULY + timedelta(minutes=20))
        await renamed.record("acme", "words", 1)
        past = [one for one in await rebuild_with(renamed, at) if one.period_start != JULY]
        assert {(one.meter, one.delivered, one.is_done) for one in past} == {
            ("tokens", 0, False),
            ("words", 0, False),
        }


async def test_i6_unanswered_sends_are_not_taken_for_lost_units(store_url: str, tmp_path: Path) -> None:
    async with renaming(store_url, tmp_path) as (at, renamed):
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
async def test_i6_a_closed_period_has_units_of_one_name_alone(
    store_url: str, tmp_path: Path, is_lost: bool
) -> None:
    """What Stripe has is the tokens: lost with all, or known to have been delivered."""
    async with renaming(store_url, tmp_path) as (at, renamed):
        if is_lost:
            await at.kit.record("acme", "tokens", 106)
            await at.desk.flush(everything=True)
        await renamed.record("acme", "words", 104)
        await lose(at, renamed)
        if not is_lost:
            await at.kit.record("acme", "tokens", 106)
            await at.desk.flush(everything=True)
        assert at.desk.accepted("acme", "ai_tokens") == 6
        at.desk.clock.set(JULY + timedelta(minutes=20))
        await at.kit.record("acme", "rows", 2)
        found = [one for one in await rebuild(at) if one.meter != "rows"]
        assert sum(one.delivered for one in found) == (6 if is_lost else 0)
        assert sum("Stripe lacks 4 units" in one.advice for one in found) == 1
        assert [one.is_done for one in found].count(False) == 1
