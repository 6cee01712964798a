"""I9: one request waits for a store that is away, at most one timeout; then all are answered at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from faults.proxy import Mode, TcpProxy
from faults.refusals import (
    Client,
    FakeRedis,
    eventually,
    kit_at,
    lane_of,
    like_redis,
    loop_clock,
    metered,
    settled,
    stopped,
    used,
)
from meterkit import MeterKit
from servers.stores import Server

pytestmark = [pytest.mark.anyio, pytest.mark.each_loop]

TIMEOUT_S = 0.5
# What a request may take longer than the timeout where the machine is busy.
SLACK_S = 0.4


async def timed(
    client: Client, customer: str, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, float]:
    began = clock()
    status = await client.get(customer)
    return status, clock() - began


async def undisturbed(kit: MeterKit, times: int) -> float:
    """The time that a tenth of the requests stay below, asked one after the other; all of them served.

    The others tell of other processes on this machine.
    """
    app, took = metered(kit), list[float]()
    for n in range(times):
        status, took_s = await timed(Client(app), f"customer-{n % 10}")
        assert status == 200
        took.append(took_s)
    return sorted(took)[times // 10]


async def test_i9_an_open_breaker_answers_faster_than_a_store(valkey: Server) -> None:
    async with kit_at(valkey.url, store_timeout=TIMEOUT_S) as kit:
        healthy_s = await undisturbed(kit, 300)
        with stopped(valkey):
            began = time.perf_counter()
            async with loop_clock() as clock:
                first = await asyncio.gather(*(timed(Client(metered(kit)), "acme", clock) for _ in range(20)))
            assert {status for status, _ in first} == {200}
            assert time.perf_counter() - began > TIMEOUT_S * 0.9
            assert max(took for _, took in first) < TIMEOUT_S + SLACK_S
            assert lane_of(kit).is_down
            assert await undisturbed(kit, 300) < healthy_s
        await eventually(lambda: lane_of(kit).connected)
        await settled(kit)
        # All that was served is counted, without the store as well.
        assert sum([(await used(kit, f"customer-{n}"))[0] for n in range(10)]) == 600
        assert not lane_of(kit).is_down


@pytest.mark.parametrize("mode", ["refuse", "reset", "blackhole", "drop_reply"])
async def test_i9_one_wave_of_requests_waits_for_a_lost_store(valkey: Server, mode: Mode) -> None:
    async with TcpProxy(valkey.port) as proxy, kit_at(proxy.url, store_timeout=TIMEOUT_S) as kit:
        app = metered(kit)
        await Client(app).get("acme")
        await settled(kit)
        await proxy.set(mode)
        async with loop_clock() as clock:
            for wave in range(4):
                asked = (timed(Client(app), "acme", clock) for _ in range(10))
                took = [took for _, took in await asyncio.gather(*asked)]
                assert max(took) < TIMEOUT_S + SLACK_S
                assert wave == 0 or max(took) < TIMEOUT_S / 2
        assert [await Client(app).get("acme", "/deny") for _ in range(5)] == [503] * 5
        await proxy.set("pass")
        await eventually(lambda: lane_of(kit).connected)
        await settled(kit)
        assert (await used(kit, "acme"))[0] == 41


async def test_i9_a_server_slower_than_the_timeout_opens_the_breaker(valkey: Server) -> None:
    async with TcpProxy(valkey.port) as proxy, kit_at(proxy.url, store_timeout=TIMEOUT_S) as kit:
        app = metered(kit)
        await Client(app).get("acme")
        await settled(kit)
        await proxy.set("delay", delay_s=TIMEOUT_S * 1.5)
        waited: list[bool] = []
        async with loop_clock() as clock:
            for _ in range(40):
                began = clock()
                status, took_s = await timed(Client(app), "acme")
                assert status == 200
                assert clock() - began < TIMEOUT_S + SLACK_S
                # On a busy machine another one may take as long, but in one or two turns of the loop.
                waited.append(took_s > TIMEOUT_S * 0.9 and clock() - began >= 0.03)
                await asyncio.sleep(0.05)
        # The probes are the connections that are tried, no requests.
        assert waited == [True] + [False] * 39
        await proxy.set("pass")
        await eventually(lambda: lane_of(kit).connected)
        await settled(kit)
        assert await used(kit, "acme") == (41, 0)


@pytest.mark.parametrize(
    "code", ["READONLY", "LOADING", "OOM", "MISCONF", "NOREPLICAS", "BUSY", "MASTERDOWN"]
)
async def test_i9_a_read_only_server_opens_the_breaker(code: str) -> None:
    refusal = f"-{code} not now\r\n".encode()
    refuses = False

    def script(words: list[bytes]) -> bytes:
        if words[0] == b"EVAL":
            return b"*0\r\n"
        if refuses:
            return refusal
        is_fence = words[2] == b"1"  # It has one key; a decision has several.
        return b":0\r\n" if is_fence else b"*5\r\n:0\r\n:1795000000000\r\n:0\r\n:0\r\n:0\r\n"

    works = like_redis(evalsha=script)

    def answer(words: list[bytes]) -> bytes:
        return refusal if refuses and words[0] == b"HSETNX" else works(words)

    async with FakeRedis(answer) as fake, kit_at(fake.url, store_timeout=TIMEOUT_S) as kit:
        app = metered(kit)
        assert await Client(app).get("acme", "/deny") == 200
        refuses = True
        assert [await Client(app).get("acme") for _ in range(3)] == [200] * 3
        await eventually(lambda: lane_of(kit).is_down)
        asked = len(fake.asked)
        for _ in range(50):
            assert (await Client(app).get("acme"), await Client(app).get("acme", "/deny")) == (200, 503)
        # What the server is asked meanwhile is whether it takes a write, and now and then.
        assert fake.asked[asked:].count("EVALSHA") == 0
        refuses = False
        await eventually(lambda: lane_of(kit).connected)
        assert await Client(app).get("acme", "/deny") == 200


async def test_i9_the_breaker_logs_once_that_it_opens_and_closes(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with kit_at(valkey.url, store_timeout=0.7) as kit:
        app = metered(kit)
        with stopped(valkey):
            for _ in range(50):
                assert await Client(app).get("acme") == 200
                await asyncio.sleep(0.01)
        await eventually(lambda: lane_of(kit).connected)
        said = [record.getMessage() for record in caplog.records if record.name == "meterkit.store"]
        assert len(said) == 2, said
        assert said[0] == "the store did not answer within 0.7 s; trying again until it can"
        assert said[1].startswith("the store is back after ")


async def test_a_process_that_was_busy_does_not_blame_the_store(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with kit_at(valkey.url, store_timeout=1.0) as kit:
        app = metered(kit)
        await Client(app).get("acme", "/deny")
        for _ in range(2):
            asked = asyncio.create_task(Client(app).get("acme", "/deny"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(1.2)  # noqa: ASYNC251 - as an app does that computes in its event loop
            assert await asked == 200
        assert "the store did not answer" not in caplog.text
