"""I3: streams that set tokens aside never pass a budget or a credit, however many processes race."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import product
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import NOW
from drivers.reservations import INPUT, METERS, OUTPUT, STREAMS, purse, reservers, worth

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from drivers.reservations import Case, Plan, Purse, Way
    from drivers.workers import Worker
    from servers.stores import Server

pytestmark = pytest.mark.anyio

PROCESSES = 8
REFUSED = {
    ("budget", "kit"): "included",
    ("budget", "route"): "429",
    ("credit", "kit"): "credits",
    ("credit", "route"): "402",
}
# What a process reserves of what: a route always both; see ``reserving.KINDS``.
BOTH = [0]
IN_TURN = [0, 1, 2]


@pytest.fixture(scope="module")
async def racing(valkey: Server) -> AsyncIterator[list[Worker]]:
    async with reservers(PROCESSES, store=valkey.url, now=NOW.isoformat()) as started:
        yield started


async def assert_adds_up(of: Purse, plan: Plan, told: Counter[str]) -> None:
    """That all that was spent is recorded, and over no more than what came beyond what was reserved."""
    spent = {meter: told[f"spent {meter}"] for meter in METERS}
    beyond = {meter: told[f"beyond {meter}"] for meter in METERS}
    over = await of.rows("overage")
    assert await of.rows("recorded") == spent
    assert await of.rows("held") == dict.fromkeys(METERS, 0)
    if plan == "budget":
        assert over["output_tokens"] == max(0, spent["output_tokens"] - STREAMS * OUTPUT)
        assert over["output_tokens"] <= beyond["output_tokens"]
    else:
        assert worth(over) <= worth(beyond)
        assert await of.burned_micro() == worth(spent) - worth(over)
        assert (await of.kit.usage("acme"))["balance"]["ai"] == STREAMS - -(-await of.burned_micro() // 10**6)


def cells(*cases: Case) -> Iterator[object]:
    """All cells; half of them, with each pair of two values, without ``--whole``."""
    for (first, plan), (second, way), (third, case) in product(
        enumerate(("budget", "credit")), enumerate(("kit", "route")), enumerate(cases)
    ):
        is_chosen = (first + second + third) % 2 == 0
        yield pytest.param(plan, way, case, marks=[] if is_chosen else pytest.mark.whole)


@pytest.mark.parametrize(("plan", "way", "case"), [*cells("within", "exact", "beyond")])
async def test_i3_eight_processes_open_as_many_streams_as_are_paid(
    store_url: str, racing: list[Worker], plan: Plan, way: Way, case: Case
) -> None:
    kinds = IN_TURN if (plan, way) == ("credit", "kit") else BOTH
    async with purse(store_url, plan) as of:
        asked = {"customer": "acme", "way": way, "case": case, "kinds": kinds, "times": 12}
        inside = await asyncio.gather(*(racer.ask("open", **asked) for racer in racing))
        assert sum(inside) == STREAMS
        held = await of.rows("held")
        if plan == "credit":
            assert worth(held) == STREAMS * 10**6
        else:
            assert held["output_tokens"] == STREAMS * OUTPUT
        told: Counter[str] = Counter()
        for answer in await asyncio.gather(*(racer.ask("close") for racer in racing)):
            told.update(answer)
        assert (told["admitted"], told[REFUSED[plan, way]]) == (STREAMS, PROCESSES * 12 - STREAMS)
        await assert_adds_up(of, plan, told)


@pytest.mark.parametrize(("plan", "way", "case"), [*cells("within", "beyond")])
async def test_i3_streams_that_begin_and_end_at_once_pass_no_limit(
    store_url: str, racing: list[Worker], plan: Plan, way: Way, case: Case
) -> None:
    kinds = IN_TURN if (plan, way) == ("credit", "kit") else BOTH
    async with purse(store_url, plan) as of:
        asked = {"customer": "acme", "way": way, "case": case, "kinds": kinds, "times": 6, "turns": 4}
        racers = [racer.ask("race", **asked, seed=seed) for seed, racer in enumerate(racing)]
        race = asyncio.ensure_future(asyncio.gather(*racers))
        most = 0
        while not race.done():
            # At every moment, too: what is recorded and what is held together.
            used = await of.rows("used")
            most = max(most, worth(used) if plan == "credit" else used["output_tokens"])
            await asyncio.sleep(0.002)
        told: Counter[str] = Counter()
        for answer in await race:
            told.update(answer)
        # Both began and were refused, or there was no race.
        assert told["admitted"] >= STREAMS // 3
        assert told[REFUSED[plan, way]] > 0
        if case == "within":
            there_is = STREAMS * 10**6 if plan == "credit" else STREAMS * OUTPUT
            assert 0 < most <= there_is
        await assert_adds_up(of, plan, told)


async def test_the_prompt_is_what_the_route_sets_aside(store_url: str, racing: list[Worker]) -> None:
    async with purse(store_url, "budget") as of:
        asked = {"customer": "acme", "way": "route", "case": "exact", "kinds": BOTH, "times": 1}
        assert await racing[0].ask("open", **asked) == 1
        assert (await of.rows("held"))["output_tokens"] == OUTPUT
        await racing[0].ask("close")
        assert await of.rows("recorded") == {"input_tokens": INPUT, "output_tokens": OUTPUT}
