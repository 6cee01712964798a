"""I3: a process killed in the midst of streams bills nothing of them, and what it held comes back."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest

from drivers.delivery import NOW
from drivers.reservations import KINDS, METERS, STREAMS, body, purse, reservers, worth
from drivers.sampled import whole
from faults.proxy import TcpProxy
from faults.refusals import eventually

if TYPE_CHECKING:
    from drivers.reservations import Plan, Purse
    from drivers.workers import Worker
    from servers.stores import Server

pytestmark = pytest.mark.anyio

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
    assert await of.rows("recorded") == streams(times)
    assert await of.rows("overage") == NOTHING
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
        ("credit", "by uvicorn"),
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
        doomed.process.kill()
        await doomed.process.wait()
        assert all(b"once" in found and b"usage" not in found for found in await asyncio.gather(*clients))
        await paid_once(of, plan, times=3)

        # What the dead one held costs room for ten minutes at most, whatever others do meanwhile.
        assert await newcomer.ask("open", **EXACT, times=STREAMS) == STREAMS - 3 - 6
        assert (await newcomer.ask("close"))["admitted"] == STREAMS - 3 - 6
        assert await held(of, plan) == 6
        await pass_time(of, timedelta(minutes=5), witness, newcomer)
        await witness.ask("keep")
        assert await held(of, plan) == 6
        await pass_time(of, timedelta(minutes=9, seconds=59), witness, newcomer)
        await witness.ask("keep")
        assert await held(of, plan) == 1

        assert await newcomer.ask("open", **EXACT, times=STREAMS) == 5
        assert await witness.ask("capture", quantities=STREAM) == "captured"
        assert await held(of, plan) == 5
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
        doomed.process.kill()
        await doomed.process.wait()
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


@pytest.mark.parametrize("plan", ["budget", "credit"])
async def test_i3_a_kill_during_a_race_leaves_the_counts_right(store_url: str, plan: Plan) -> None:
    options = {"store": store_url, "now": NOW.isoformat()}
    async with purse(store_url, plan) as of, reservers(3, **options) as (doomed, *others):
        race = {**EXACT, "times": 3}
        lost = asyncio.create_task(doomed.ask("race", **race, turns=1_000_000, seed=0))

        async def some_are_recorded() -> bool:
            return (await of.rows("recorded"))["input_tokens"] > 0

        await eventually(some_are_recorded)
        raced = asyncio.gather(*(other.ask("race", **race, turns=2, seed=1) for other in others))
        doomed.process.kill()
        await doomed.process.wait()
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
