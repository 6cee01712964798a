"""The lane: storms of calls over a network that delays, loses and cuts; timeouts; coming back."""

# Internals: storms of calls, which kits hide.

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from faults.proxy import TcpProxy
from faults.refusals import (
    Client,
    Echo,
    FakeRedis,
    answer_ok,
    counters,
    evalsha_calls,
    eventually,
    in_flight,
    killing,
    kit_at,
    like_redis,
    loop_clock,
    metered,
    open_sockets,
    settled,
    stats,
    stopped,
    used,
)
from meterkit.decisions.asked import Demand
from meterkit.decisions.keys import FORMAT, Keys
from meterkit.errors import SettingsError, StoreError
from meterkit.redis import memory, scripts
from meterkit.redis.handshake import connect
from meterkit.redis.lane import Lane
from meterkit.redis.url import Address
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from faults.proxy import Mode
    from meterkit import MeterKit
    from meterkit.redis.breaker import AnyConnection
    from meterkit.redis.connection import OnEnd
    from servers.stores import Server

pytestmark = pytest.mark.anyio

RETIRE = scripts.load("fence")
ONE = {"requests": Demand(needed=1, taken=1)}


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(valkey.port) as proxy:
        yield proxy


def lane_to(port: int, *, timeout_s: float = 0.25) -> Lane:
    address = Address(kind="tcp", host="127.0.0.1", port=port)

    async def connector(on_end: OnEnd) -> AnyConnection:
        return await connect(address, [RETIRE], timeout_s=timeout_s, on_end=on_end)

    return Lane(
        connector,
        keys=Keys("mk", 2),
        scripts=[RETIRE],
        fence=RETIRE,
        timeout_s=timeout_s,
        now_ms=lambda: int(time.time() * 1000),
    )


async def trouble(proxy: TcpProxy, modes: list[Mode], dice: random.Random, done: asyncio.Event) -> None:
    """Change the network's mode every few milliseconds, and mend it in between."""
    while not done.is_set():
        mode = dice.choice(modes)
        await proxy.set(mode, delay_s=dice.uniform(0.001, 0.08), cut_after=dice.randrange(40))
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), dice.uniform(0.005, 0.08))
        if mode == "drop_reply":
            # TCP loses the end of a stream, never something out of its middle.
            await proxy.set("reset")
        await proxy.set("pass")
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), dice.uniform(0.02, 0.2))
    await proxy.set("pass")


async def storm(proxy: TcpProxy, modes: list[Mode], callers: list[Any], dice: random.Random) -> list[Any]:
    """Start all callers over a second or so, cancel some and lose patience with others."""
    done = asyncio.Event()
    weather = asyncio.create_task(trouble(proxy, modes, dice, done))
    tasks: list[asyncio.Task[Any]] = []
    for n, caller in enumerate(callers):
        fate = dice.random()
        work = asyncio.wait_for(caller, dice.uniform(0.0, 0.02)) if fate < 0.2 else caller
        task = asyncio.ensure_future(work)
        tasks.append(task)
        if fate > 0.8:
            asyncio.get_running_loop().call_later(dice.uniform(0.0, 0.02), task.cancel)
        if n % 20 == 0:
            await asyncio.sleep(dice.uniform(0.0, 0.03))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    done.set()
    await weather
    return results


async def test_a_storm_of_calls_never_gets_a_foreign_reply(proxy: TcpProxy) -> None:
    dice = random.Random(1)  # noqa: S311 - repeatable, not secret
    sockets, tasks = open_sockets(), asyncio.all_tasks()
    lane = lane_to(proxy.port, timeout_s=0.05)
    await lane.start(within_s=5)
    futures: list[asyncio.Future[Any]] = []

    async def ask(call: Echo) -> str:
        future = lane.call(call)
        futures.append(future)
        name: bytes = (await future)[1]
        return name.decode()

    modes: list[Mode] = ["pass", "delay", "drop_reply", "cut", "reset", "refuse", "blackhole"]
    seen = Counter[str]()
    # On a busy machine fewer are answered in time, and the storm goes on for longer.
    while min(seen["told"] / 50, seen["failed"] / 20, seen["left"] / 20, seen["orphans"]) < 1:
        calls = [Echo(f"call-{n}") for n in range(2_000)]
        results = await storm(proxy, modes, [ask(call) for call in calls], dice)
        told = [
            (call.name, result)
            for call, result in zip(calls, results, strict=True)
            if isinstance(result, str)
        ]
        assert [name for name, _ in told] == [reply for _, reply in told]
        orphans = [(call.name, reply[1].decode()) for call in calls for reply in call.orphans]
        assert [name for name, _ in orphans] == [reply for _, reply in orphans]
        kinds: set[Any] = {type(result) for result in results}
        assert kinds <= {str, StoreError, asyncio.CancelledError, TimeoutError}
        seen["told"] += len(told)
        seen["failed"] += sum(isinstance(result, StoreError) for result in results)
        seen["left"] += sum(isinstance(result, asyncio.CancelledError | TimeoutError) for result in results)
        seen["orphans"] += len(orphans)
    assert all(future.done() for future in futures)

    async def answers() -> bool:
        with suppress(StoreError):  # On a busy machine a reply may take longer than this lane waits.
            return bool((await lane.ask(Echo("after the storm")))[1] == b"after the storm")
        return False

    await eventually(answers)
    await lane.stop(drain_s=1)
    await proxy.set("refuse")
    assert asyncio.all_tasks() == tasks
    await eventually(lambda: open_sockets() <= sockets - 1)  # The proxy no longer listens either.


def customers_of(number: int) -> list[str]:
    return [f"customer-{n}" for n in range(number)]


async def request_storm(
    kit: MeterKit, proxy: TcpProxy, modes: list[Mode], *, seed: int
) -> tuple[dict[str, int], list[Any]]:
    """2,000 requests of ten customers; how many each was answered, and what became of every one."""
    app = metered(kit)
    served = dict.fromkeys(customers_of(10), 0)

    async def ask(customer: str) -> int:
        status = await Client(app).get(customer, "/deny")
        served[customer] += status == 200
        return status

    dice = random.Random(seed)  # noqa: S311 - repeatable, not secret
    callers = [ask(dice.choice(customers_of(10))) for _ in range(2_000)]
    return served, await storm(proxy, modes, callers, dice)


async def test_i7_a_storm_over_a_slow_network_leaves_no_hold(valkey: Server, proxy: TcpProxy) -> None:
    async with kit_at(proxy.url, store_timeout=0.05) as kit:
        served, kinds = Counter[str](), set[Any]()
        while not {200, 503} <= kinds:  # On a busy machine it takes longer until some are answered in time.
            answered, results = await request_storm(kit, proxy, ["delay", "blackhole"], seed=11)
            served.update(answered)
            kinds |= {result if isinstance(result, int) else type(result) for result in results}
            assert kinds <= {200, 503, asyncio.CancelledError, TimeoutError}

        async def all_given_back() -> bool:
            await settled(kit)
            held = [(await used(kit, customer))[1] for customer in customers_of(10)]
            return not any(held) and not any(in_flight(valkey, customer) for customer in customers_of(10))

        await eventually(all_given_back)
        # An answered request is recorded once; one that was cancelled may have been answered as well.
        for customer, count in served.items():
            recorded, _ = await used(kit, customer)
            assert count == recorded


async def test_i7_holds_of_lost_replies_vanish_within_ten_minutes(valkey: Server, proxy: TcpProxy) -> None:
    clock = Clock()
    async with kit_at(proxy.url, store_timeout=0.05, clock=clock) as kit:
        modes: list[Mode] = ["delay", "drop_reply", "cut", "reset", "refuse"]
        served, _ = await request_storm(kit, proxy, modes, seed=21)
        await settled(kit)
        for customer, count in served.items():
            assert (await used(kit, customer))[0] == count
        clock.advance(timedelta(minutes=10))
        for customer in customers_of(10):
            assert (await used(kit, customer))[1] == 0
            assert await Client(metered(kit)).get(customer) == 200
            await settled(kit)
            assert in_flight(valkey, customer) == 0


# I1.


@pytest.mark.each_loop
async def test_i1_fifty_requests_of_one_tick_are_one_write(valkey: Server) -> None:
    chunks: list[int] = []

    class Counting(TcpProxy):
        async def _pass_request(self, chunk: bytes, to_server: asyncio.StreamWriter) -> bool:
            chunks.append(chunk.count(b"EVALSHA"))
            return await super()._pass_request(chunk, to_server)

    async with Counting(valkey.port) as proxy, kit_at(proxy.url) as kit:
        app = metered(kit)
        chunks.clear()
        assert await asyncio.gather(*(Client(app).get(f"c{n % 7}") for n in range(50))) == [200] * 50
        await settled(kit)
    # One write with 50 decisions; their settlements leave with the answers.
    assert chunks[0] == 50
    assert sum(chunks) == 100
    assert len(chunks) <= 3


async def test_i1_one_evalsha_a_decision_whatever_is_decided(valkey: Server) -> None:
    async with kit_at(valkey.url) as kit:
        await kit.customers.set_plan("acme", "narrow")
        view = kit.store.cache.get("acme")
        demands = {"requests": ONE["requests"], "tokens": Demand(needed=1, taken=0)}
        before = evalsha_calls(valkey)
        await kit.store.check(view, demands)
        assert (
            evalsha_calls(valkey) - before == 2
        )  # The plan was not known to this process: stale, then decided.
        for n in range(3, 8):
            await kit.store.check(view, demands)
            assert evalsha_calls(valkey) - before == n
        await kit.customers.set_plan("acme", "other")
        before = evalsha_calls(valkey)
        await kit.store.check(view, demands)
        assert evalsha_calls(valkey) - before == 2


async def test_i1_a_lost_script_costs_one_more_call_and_one_load(valkey: Server) -> None:
    async with kit_at(valkey.url) as kit:
        app = metered(kit)
        await Client(app).get("acme")
        await settled(kit)
        for before in (1, 51):  # Over one connection.
            valkey.command("SCRIPT", "FLUSH")
            valkey.command("CONFIG", "RESETSTAT")
            assert await asyncio.gather(*(Client(app).get("acme") for _ in range(50))) == [200] * 50
            await settled(kit)
            assert stats(valkey, "script|load")["calls"] == len(scripts.NAMES)
            # 50 refused, 50 decided, 50 settled.
            assert stats(valkey, "evalsha") == {"calls": 150, "failed_calls": 50}
            assert await used(kit, "acme") == (before + 50, 0)


# Hung, and back.


async def test_i9_a_hung_server_costs_one_timeout_and_no_hold(valkey: Server) -> None:
    async with kit_at(valkey.url, store_timeout=2.0) as kit:
        app = metered(kit)
        await Client(app).get("acme")
        await settled(kit)
        with stopped(valkey):
            began = time.monotonic()
            async with loop_clock() as passed_s:
                asked = Client(app).get("acme"), Client(app).get("acme", "/deny")
                allowed, denied = await asyncio.gather(*asked)
                assert (allowed, denied) == (200, 503)
                assert time.monotonic() - began > 1.99
                first_s = passed_s()
                assert first_s < 4.0
                assert await Client(app).get("acme", "/deny") == 503
                # The connection is known to be gone: answered at once, or after the time of a new one.
                assert passed_s() - first_s < 4.0
        await eventually(lambda: kit.store.lanes[asyncio.get_running_loop()].connected)
        assert await Client(app).get("acme", "/deny") == 200

        async def exact() -> bool:
            # Allowed without the store is recorded; both holds that were taken late are given back.
            return await used(kit, "acme") == (3, 0) and in_flight(valkey, "acme") == 0

        await eventually(exact)


async def test_i9_unreachable_at_the_start_is_one_clear_line_and_heals(
    proxy: TcpProxy, caplog: pytest.LogCaptureFixture
) -> None:
    await proxy.set("refuse")
    with caplog.at_level(logging.INFO, logger="meterkit.store"):
        async with kit_at(proxy.url, start_timeout=0.2, store_timeout=0.25) as kit:
            app = metered(kit)
            loud = [record for record in caplog.records if record.levelno >= logging.ERROR]
            assert len(loud) == 1
            assert f"the store at {kit.store.address} cannot be reached" in loud[0].getMessage()
            for _ in range(20):
                assert await Client(app).get("acme") == 200
                assert await Client(app).get("acme", "/deny") == 503
            await asyncio.sleep(0.3)
            assert [
                r for r in caplog.records if r.name == "meterkit.store" and r.levelno >= logging.WARNING
            ] == loud
            await proxy.set("pass")
            await eventually(lambda: kit.store.lanes[asyncio.get_running_loop()].connected)
            assert await Client(app).get("acme", "/deny") == 200
            await settled(kit)
            # What was served without the store is recorded as well.
            assert await used(kit, "acme") == (21, 0)


@pytest.mark.each_loop
async def test_i9_the_first_requests_wait_for_the_first_connection(valkey: Server) -> None:
    kit = kit_at(valkey.url)
    app = metered(kit)
    assert await asyncio.gather(*(Client(app).get("acme", "/deny") for _ in range(30))) == [200] * 30
    await settled(kit)
    assert await used(kit, "acme") == (30, 0)
    await kit.stop()


async def test_a_store_of_other_settings_is_refused(valkey: Server) -> None:
    async with kit_at(valkey.url, shards=4):
        pass
    kit = kit_at(valkey.url, shards=8)
    with pytest.raises(SettingsError, match="has 4 shards"):
        await kit.start()
    app = metered(kit)
    statuses = await asyncio.gather(*(Client(app).get("acme", "/deny") for _ in range(5)))
    assert statuses == [503] * 5
    await kit.stop()


async def test_i12_a_store_of_another_format_is_refused(valkey: Server) -> None:
    valkey.command("HSET", "mk:meta", "format", FORMAT + 1, "shards", 4)
    with pytest.raises(SettingsError, match=f"by a newer release of meterkit .format {FORMAT + 1};"):
        await kit_at(valkey.url).start()
    valkey.command("HSET", "mk:meta", "format", FORMAT - 1, "shards", 4)
    said = rf"by an older release of meterkit \(format {FORMAT - 1}; .* deliver what is pending with that"
    with pytest.raises(SettingsError, match=said):
        await kit_at(valkey.url).start()
    assert valkey.command("KEYS", "*") == ["mk:meta"]
    assert valkey.command("HGET", "mk:meta", "format") == str(FORMAT - 1)


@pytest.mark.each_loop
async def test_client_kill_is_healed_and_nothing_is_lost(valkey: Server) -> None:
    async with kit_at(valkey.url) as kit:
        app = metered(kit)
        answers: list[int] = []
        for _ in range(5):
            with killing(valkey):
                # F-87: decided or not, nobody hears of these; without any in doubt, nothing is shown.
                tasks = [asyncio.create_task(Client(app).get("acme", "/deny")) for _ in range(30)]
                await asyncio.sleep(0.05)
            answers += await asyncio.gather(*tasks)
            await eventually(lambda: kit.store.lanes[asyncio.get_running_loop()].connected)
            answers.append(await Client(app).get("acme", "/deny"))
        assert set(answers) == {200, 503}
        await settled(kit)
        assert (await used(kit, "acme"))[0] == answers.count(200)


# Servers that refuse.


@pytest.mark.parametrize(
    ("code", "is_in_use"),
    # In use, a server that answers otherwise than at the start.
    [
        ("LOADING Redis is loading the dataset in memory", False),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
        ("NOAUTH Authentication required.", False),
        ("NOSCRIPT No matching script.", True),
        ("ERR user_script:1: a bug", True),
    ],
)
async def test_i9_a_refusing_server_is_a_clear_error_and_never_a_crash(
    code: str, is_in_use: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(words: list[bytes]) -> bytes:
        if is_in_use and words[0] == b"EVAL":
            return _as_a_store_that_works(words)
        return b"-%b\r\n" % code.encode()

    refusing = like_redis(evalsha=refuse)
    async with FakeRedis(refusing) as fake, kit_at(fake.url, start_timeout=0.2, store_timeout=0.5) as kit:
        app = metered(kit)

        async def told() -> bool:
            with pytest.raises(StoreError) as caught:
                await kit.check("acme", "requests")
            # On a busy machine there may be no answer in time.
            return code in str(caught.value) and caught.value.executed is False

        await eventually(told)
        assert await Client(app).get("acme", "/deny") == 503
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert [await Client(app).get(f"c{n}", "/") for n in range(20)] == [200] * 20
            asked = fake.asked.count("EVALSHA")
            await asyncio.sleep(0.3)
        # Nor is it asked again and again.
        assert fake.asked.count("EVALSHA") < asked + 100
        # Every shard has settlements that are refused; that is said, but not each time.
        assert len(caplog.records) <= 4
        lane = kit.store.lanes[asyncio.get_running_loop()]
        assert lane.unsettled == 20
        fake.answer = like_redis(evalsha=_as_a_store_that_works)
        await settled(kit)


def _as_a_store_that_works(words: list[bytes]) -> bytes:
    if words[0] == b"EVAL":
        return b"*0\r\n"  # It may do all that it is asked about before it is used.
    return b":0\r\n" if words[1].decode() == RETIRE.sha else b"*2\r\n:0\r\n:1795000000000\r\n"


# I2.


async def test_i2_a_request_that_one_limit_refuses_changes_no_counter(
    valkey: Server,
) -> None:
    async with kit_at(valkey.url) as kit:
        await kit.customers.set_plan("acme", "narrow")
        app = metered(kit)
        # Two requests take 20 of 25 tokens and 2 of 3 an hour; a third has too few tokens left.
        assert [await Client(app).get("acme", "/many") for _ in range(2)] == [200, 200]
        await settled(kit)
        before = _without_clock(counters(valkey, "acme"))
        for _ in range(5):
            assert await Client(app).get("acme", "/many") == 429
            assert before == _without_clock(counters(valkey, "acme"))
        # The third of the hour is still there for a request without tokens; then the rate is what refuses.
        assert await Client(app).get("acme", "/") == 200
        await settled(kit)
        before = _without_clock(counters(valkey, "acme"))
        for path in ("/", "/many"):
            assert await Client(app).get("acme", path) == 429
            assert before == _without_clock(counters(valkey, "acme"))


async def test_i2_a_request_over_the_concurrency_changes_no_counter(valkey: Server) -> None:
    entered, leave = asyncio.Semaphore(0), asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        entered.release()
        await leave.wait()
        await answer_ok(scope, receive, send)

    async with kit_at(valkey.url) as kit:
        await kit.customers.set_plan("acme", "narrow")
        app = metered(kit, waits)
        slow = [asyncio.create_task(Client(app).get("acme", "/many")) for _ in range(2)]
        for _ in slow:
            await entered.acquire()
        before = _without_clock(counters(valkey, "acme"))
        assert await Client(app).get("acme", "/") == 429
        assert before == _without_clock(counters(valkey, "acme"))
        leave.set()
        assert await asyncio.gather(*slow) == [200, 200]
        await settled(kit)
        assert in_flight(valkey, "acme") == 0


def _without_clock(fields: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if name not in {"t", "x"}}


# The end, and what goes wrong in the background.


# The store within the process stands in for a real one.


@pytest.fixture
def customer() -> str:
    """The store lives as long as the process: each test has a customer of its own."""
    return f"customer-{uuid4()}"


async def test_requests_are_decided_and_settled(customer: str) -> None:
    async with kit_at("memory://") as kit:
        app = metered(kit)
        assert await asyncio.gather(*(Client(app).get(customer) for _ in range(20))) == [200] * 20
        await settled(kit)
        assert await used(kit, customer) == (20, 0)
        await kit.customers.set_plan(customer, "narrow")
        assert [await Client(app).get(customer) for _ in range(4)] == [200, 200, 200, 429]


async def test_scripts_that_were_flushed_are_loaded_again(customer: str) -> None:
    async with kit_at("memory://") as kit:
        app = metered(kit)
        await kit.record(customer, "tokens", 5)
        admin: Any = memory.admin_client()
        await admin.script_flush()
        await kit.record(customer, "tokens", 5)
        await admin.script_flush()
        assert await Client(app).get(customer, "/deny") == 200
        await admin.aclose()
        await settled(kit)
        assert await used(kit, customer, "tokens") == (10, 0)
