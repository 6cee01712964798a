"""I3: streams that set tokens aside never pass a limit, however many processes race, or are killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from itertools import product
from typing import Any, Literal

import httpx
import pytest

from drivers.delivery import NOW
from drivers.reservations import (
    INPUT,
    KINDS,
    METERS,
    OUTPUT,
    STREAMS,
    Case,
    Plan,
    Purse,
    Way,
    body,
    purse,
    reservers,
    worth,
)
from drivers.sampled import whole
from drivers.workers import Worker
from faults.proxy import TcpProxy
from faults.refusals import eventually
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
    assert (await of.rows("recorded"), await of.rows("held")) == (spent, dict.fromkeys(METERS, 0))
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


# A process that is killed in the midst of streams bills nothing of them, and what it held comes back.


STREAM = KINDS[0]
NOTHING = dict.fromkeys(METERS, 0)
EXACT: dict[str, Any] = {"customer": "acme", "way": "kit", "case": "exact", "kinds": [0]}
Moment = Literal["decided", "captured", "never captured", "captured late"]


def streams(count: int) -> dict[str, int]:
    """What so many streams come to."""
    return {meter: count * quantity for meter, quantity in STREAM.items()}


async def held(of: Purse, plan: Plan) -> float:
    """How many streams' quantities are held."""
    rows = await of.rows("held")
    meter = "output_tokens"  # The input has no limit on the budget's plan: nothing of it is held.
    assert plan == "budget" or worth(rows) == worth(STREAM) * rows[meter] / STREAM[meter]
    return rows[meter] / STREAM[meter]


async def paid_once(of: Purse, plan: Plan, *, times: int) -> None:
    """That so many streams are recorded, and paid, and none besides."""
    assert (await of.rows("recorded"), await of.rows("overage")) == (streams(times), NOTHING)
    assert await of.burned_micro() == (worth(streams(times)) if plan == "credit" else 0)
    if plan == "credit":
        assert (await of.kit.usage("acme"))["balance"] == {"ai": STREAMS - times}


async def pass_time(of: Purse, after: timedelta, *others: Worker) -> None:
    of.clock.set(NOW + after)
    await asyncio.gather(*(other.ask("now", at=of.clock.now().isoformat()) for other in others))


async def stream_until_killed(port: int, begun: asyncio.Semaphore) -> bytes:
    """Read an answer of a server to the end of the connection; what came."""
    found = b""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
        request = client.stream("POST", "/chat", content=body(STREAM), headers={"x-customer-id": "acme"})
        async with request as response:
            try:
                async for chunk in response.aiter_raw():
                    found += chunk
                    begun.release()
            except (httpx.RemoteProtocolError, httpx.ReadError):
                return found
    raise AssertionError("the answer came to its end")


@pytest.mark.parametrize(
    ("plan", "served"),
    [
        ("budget", "by kit.reserve"),
        whole("credit", "by uvicorn"),
        whole("budget", "by uvicorn"),
        whole("credit", "by kit.reserve"),
    ],
)
async def test_i3_streams_of_a_killed_process_are_not_billed(store_url: str, plan: Plan, served: str) -> None:
    options = {"store": store_url, "now": NOW.isoformat()}
    async with purse(store_url, plan) as of, reservers(3, **options) as (doomed, witness, newcomer):
        ended = await doomed.ask("race", **EXACT, times=3, turns=1, seed=0)
        assert ended["admitted"] == 3
        clients: list[asyncio.Task[bytes]] = []
        if served == "by uvicorn":
            port, begun = await doomed.ask("listen"), asyncio.Semaphore(0)
            clients = [asyncio.create_task(stream_until_killed(port, begun)) for _ in range(5)]
            for _ in clients:
                await begun.acquire()
        else:
            assert await doomed.ask("open", **EXACT, times=5) == 5
        assert await witness.ask("hold", customer="acme", quantities=STREAM)
        assert await held(of, plan) == 6
        await doomed.kill()
        assert all(b"once" in found and b"usage" not in found for found in await asyncio.gather(*clients))
        await paid_once(of, plan, times=3)

        # What the dead one held costs room for ten minutes at most, whatever others do meanwhile.
        assert await newcomer.ask("open", **EXACT, times=STREAMS) == STREAMS - 3 - 6
        assert ((await newcomer.ask("close"))["admitted"], await held(of, plan)) == (STREAMS - 3 - 6, 6)
        await pass_time(of, timedelta(minutes=5), witness, newcomer)
        await witness.ask("keep")
        assert await held(of, plan) == 6
        await pass_time(of, timedelta(minutes=9, seconds=59), witness, newcomer)
        await witness.ask("keep")
        assert await held(of, plan) == 1

        assert await newcomer.ask("open", **EXACT, times=STREAMS) == 5
        assert (await witness.ask("capture", quantities=STREAM), await held(of, plan)) == ("captured", 5)
        assert (await newcomer.ask("close"))["admitted"] == 5
        await paid_once(of, plan, times=STREAMS)
        assert await held(of, plan) == 0


@pytest.mark.parametrize("moment", ["decided", "captured", "never captured", "captured late"])
@pytest.mark.parametrize("plan", ["credit", whole("budget")])
async def test_i3_a_kill_before_the_captures_reply_bills_once_at_most(
    store_url: str, valkey: Server, plan: Plan, moment: Moment
) -> None:
    async with (
        TcpProxy(valkey.port) as proxy,
        purse(store_url, plan) as of,
        reservers(1, store=proxy.url, now=NOW.isoformat(), settings={"store_timeout": 60.0}) as (doomed,),
    ):
        # So that it knows the customer's state, and asks once.
        assert (await doomed.ask("race", **EXACT, times=1, turns=1, seed=0))["admitted"] == 1

        async def in_store(streams_held: int, recorded: int) -> bool:
            return (await held(of, plan), await of.rows("recorded")) == (streams_held, streams(recorded))

        unheard: list[asyncio.Task[Any]] = []
        if moment == "decided":
            await proxy.set("drop_reply")
            unheard = [asyncio.create_task(doomed.ask("hold", customer="acme", quantities=STREAM))]
            await eventually(lambda: in_store(1, 1))
        else:
            assert await doomed.ask("hold", customer="acme", quantities=STREAM)
            await proxy.set("drop_reply" if moment == "captured" else "blackhole")
            assert await doomed.ask("capture", quantities=STREAM, wait=False) == "sent"
            await eventually(lambda: in_store(0, 2) if moment == "captured" else in_store(1, 1))
        await doomed.kill()
        answers = await asyncio.gather(*unheard, return_exceptions=True)
        assert all(isinstance(answer, EOFError) for answer in answers)

        if moment == "captured late":  # It was on the way when its sender died.
            await proxy.set("pass")
            await eventually(lambda: in_store(0, 2))
        billed = 2 if moment in {"captured", "captured late"} else 1
        await paid_once(of, plan, times=billed)
        assert await held(of, plan) == (1 if moment in {"decided", "never captured"} else 0)
        await pass_time(of, timedelta(minutes=9, seconds=59))
        assert await held(of, plan) == 0
        await paid_once(of, plan, times=billed)
        a_stream = STREAM["output_tokens"] if plan == "budget" else 250  # A credit of output alone.
        rest = (STREAMS - billed) * a_stream
        assert (await of.rows("remaining"))["output_tokens"] == rest
        # The decision goes by the store's own arithmetic.
        assert (await of.kit.check("acme", "output_tokens", rest)).allowed
        assert not (await of.kit.check("acme", "output_tokens", rest + 1)).allowed


@pytest.mark.parametrize("plan", ["budget", whole("credit")])
async def test_i3_a_kill_during_a_race_leaves_the_counts_right(store_url: str, plan: Plan) -> None:
    options = {"store": store_url, "now": NOW.isoformat()}
    async with purse(store_url, plan) as of, reservers(3, **options) as (doomed, *others):
        race = {**EXACT, "times": 3}
        lost = asyncio.create_task(doomed.ask("race", **race, turns=1_000_000, seed=0))

        async def some_are_recorded() -> bool:
            return (await of.rows("recorded"))["input_tokens"] > 0

        await eventually(some_are_recorded)
        raced = asyncio.gather(*(other.ask("race", **race, turns=2, seed=1) for other in others))
        await doomed.kill()
        assert isinstance((await asyncio.gather(lost, return_exceptions=True))[0], EOFError)
        told = await raced

        recorded = await of.rows("recorded")
        ended = recorded["output_tokens"] // STREAM["output_tokens"]
        # Whole streams, each with all that it came to; those of the living are all there.
        assert sum(answer.get("admitted", 0) for answer in told) < ended <= STREAMS
        await paid_once(of, plan, times=ended)
        assert await held(of, plan) in range(4)  # What the dead one had begun.
        await pass_time(of, timedelta(minutes=9, seconds=59), *others)
        assert await held(of, plan) == 0
        assert await others[0].ask("open", **EXACT, times=STREAMS) == STREAMS - ended
        await others[0].ask("close")
        await paid_once(of, plan, times=STREAMS)
