"""Connections that are lost, refused, hung, or lead to a server that takes no writes: made anew, and soon."""

# Internals: errors and connections that no server makes at will.

# pyright: reportPrivateUsage=false
# A few tests look at connections that nothing shows.

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drivers.counters import put_head
from drivers.delivery import desk
from faults.proxy import TcpProxy
from faults.refusals import (
    PLANS,
    Client,
    Echo,
    FakeRedis,
    ask,
    eventually,
    in_flight,
    kit_at,
    lane_of,
    loop_clock,
    metered,
    settle,
    settled,
    stopped,
    used,
)
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.decisions.keys import FORMAT, meter_field
from meterkit.delivery.flusher import Flusher
from meterkit.errors import StoreError
from meterkit.redis import reconnector, settlement_queue
from meterkit.redis.connection import Connection
from meterkit.redis.event_loops import EventLoops
from meterkit.redis.reconnector import AnyConnection
from servers.stores import Server, free_port, redis_binary, spawn_server, url_of_user

pytestmark = pytest.mark.anyio


async def told(kit: MeterKit, words: str) -> None:
    """Wait until who asks is refused in words that match; on a busy machine the first may be other ones."""

    async def is_told() -> bool:
        with pytest.raises(StoreError) as caught:
            await kit.check("acme", "requests")
        return re.search(words, str(caught.value)) is not None

    await eventually(is_told)


# F-9: no error ends the attempts.


@pytest.mark.parametrize(
    "reply",
    [
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-NOPERM this user has no permissions to run the 'hsetnx' command\r\n",
        b"$-1\r\n",
        b"*2\r\n$3\r\none\r\n$3\r\ntwo\r\n",
    ],
    ids=lambda reply: ascii(reply[:9]),
)
@pytest.mark.parametrize("refused", [b"HSETNX", b"HMGET"])
async def test_i9_whatever_a_server_answers_it_is_tried_again(reply: bytes, refused: bytes) -> None:
    wrong = True

    def answer(words: list[bytes]) -> bytes:
        command = words[0].upper()
        if wrong and command == refused:
            return reply
        if command == b"HMGET":
            return b"*2\r\n$1\r\n%d\r\n$1\r\n4\r\n" % FORMAT
        return b"*0\r\n" if command == b"EVAL" else b"+OK\r\n"

    async with FakeRedis(answer) as fake, kit_at(fake.url, start_timeout=0.2, store_timeout=0.3) as kit:
        words = reply[1:-2].decode() if reply.startswith(b"-") else "what meterkit did not write"
        if refused == b"HMGET" or reply.startswith(b"-"):
            await told(kit, re.escape(words))
        wrong = False
        await eventually(lambda: lane_of(kit).connected)


async def test_i9_an_error_of_no_known_kind_does_not_end_the_attempts(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = EventLoops._connect
    errors: list[BaseException] = [
        *(ZeroDivisionError("a bug"), KeyError("x"), MemoryError(), ZeroDivisionError("a bug")),
        asyncio.CancelledError(),  # Somebody cancels every task.
    ]

    async def wrong(self: EventLoops, on_end: Any) -> Any:
        if errors:
            raise errors.pop()
        return await right(self, on_end)

    monkeypatch.setattr(EventLoops, "_connect", wrong)
    async with kit_at(valkey.url) as kit:
        assert lane_of(kit).connected
        assert await ask(kit, "acme", "/deny") == 200
    assert "ZeroDivisionError: a bug" in caplog.text
    # By the task that goes on, not by one after another.
    assert caplog.text.count("connecting to the store failed; trying again until it can") == 4


async def test_i9_a_failed_pack_blocks_no_other(proxy: TcpProxy, caplog: pytest.LogCaptureFixture) -> None:
    # F-9: the task that sends what waits ended with an error, and nobody began another.
    class Broken:
        slot = 0
        waiter = None
        view = SimpleNamespace(is_deleted=False)

        def pack(self) -> tuple[bytes, bytes]:
            raise KeyError("requests")

    async with kit_at(proxy.url, shards=1) as kit:
        lane = lane_of(kit)
        await proxy.set("refuse")
        await eventually(lambda: not lane.connected)
        for _ in range(3):
            settle(kit, "acme", tokens=5)
            lane.queues[0].settle(Broken())  # type: ignore[arg-type] # it cannot be told what it came to, either
        await proxy.set("pass")
        await settled(kit)
        assert await used(kit, "acme", "tokens") == (15, 0)
        assert lane.lost == 3
        assert "cannot be packed: KeyError('requests')" in caplog.text


async def test_i9_a_flusher_starts_after_an_outage(proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    # F-9: a task that ends is begun again.
    passes: list[str] = []

    async def run(flusher: Flusher, *, every_s: float) -> None:
        # What every pass begins with.
        admin = await flusher._store.admin()
        await admin.load(flusher._store.scripts["fence_producer"])
        passes.append("served")
        await asyncio.sleep(every_s)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Flusher, "run", run)
    await proxy.set("refuse")
    stripe: dict[str, Any] = {"stripe_api_key": "sk_test_1", "stripe_api_base": "http://127.0.0.1:9"}
    async with kit_at(proxy.url, start_timeout=0.1, flush_interval=0.05, **stripe):
        await proxy.set("pass")
        await eventually(lambda: len(passes) > 2)


# F-10: calls wait for a connection that is being made.


@pytest.mark.dear("fifty connections are killed under load")
async def test_i3_kills_each_30_ms_keep_the_ceiling(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # F-10: 1,400 of 4,635 were served over a ceiling of 100, the store being up all the time.
    in_doubt, send = 0, Connection.call
    sent: set[asyncio.Future[Any]] = set()  # A call that one connection could not send goes out by the next.

    def watched(self: Connection, call: Any, future: Any = None) -> asyncio.Future[Any]:
        found = send(self, call, future)
        if found not in sent:
            sent.add(found)
            found.add_done_callback(count)
        return found

    def count(future: asyncio.Future[Any]) -> None:
        nonlocal in_doubt
        error = None if future.cancelled() else future.exception()
        assert error is None or isinstance(error, StoreError)
        # Not sent is not in doubt: such a call has waited.
        assert error is None or error.executed is None
        in_doubt += error is not None

    monkeypatch.setattr(Connection, "call", watched)  # what every decision goes through
    async with kit_at(valkey.url, store_timeout=2.0) as kit:
        await kit.customers.override("acme", {"requests": {"included": 100}})
        app, over = metered(kit), asyncio.Event()
        kills, statuses = 0, Counter[int]()

        async def kill() -> None:
            nonlocal kills
            while not over.is_set():
                kills += 1
                await asyncio.to_thread(valkey.command, "CLIENT", "KILL", "TYPE", "normal")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), 0.03)

        async def requests() -> None:
            while not over.is_set():
                statuses[await Client(app).get("acme")] += 1
                await asyncio.sleep(0)

        killing = asyncio.create_task(kill())
        asking = [asyncio.create_task(requests()) for _ in range(20)]
        await eventually(lambda: kills > 50 and statuses[429] > 300)
        over.set()
        await asyncio.gather(killing, *asking)
        assert statuses[200] <= 100 + in_doubt
        assert set(statuses) == {200, 429}


@pytest.mark.each_loop
async def test_i9_a_call_waits_for_the_next_connection(valkey: Server, proxy: TcpProxy) -> None:
    # One that is cancelled while it waits is never sent.
    async with kit_at(proxy.url, store_timeout=5.0) as kit:
        await proxy.set("refuse")
        await eventually(lambda: not lane_of(kit).connected)
        asked, given_up = (asyncio.create_task(ask(kit, "acme", "/deny")) for _ in range(2))
        await asyncio.sleep(0.05)
        assert not asked.done()
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        await proxy.set("pass")
        assert await asked == 200
        await settled(kit)
        assert in_flight(valkey, "acme") == 0
        assert await used(kit, "acme") == (1, 0)


async def test_i9_one_call_waits_a_timeout_and_later_ones_fail_at_once(proxy: TcpProxy) -> None:
    async with kit_at(proxy.url, store_timeout=2.0) as kit:
        lane = lane_of(kit)
        await proxy.set("refuse")
        await eventually(lambda: not lane.connected)
        async with loop_clock() as passed_s:
            with pytest.raises(StoreError, match=r"cannot be reached|closed the connection") as caught:
                await kit.check("acme", "requests")
            first_s = passed_s()
            assert first_s < 4.0
            assert caught.value.executed is False
            for _ in range(50):
                with pytest.raises(StoreError, match="not connected"):
                    await kit.check("acme", "requests")
            assert passed_s() - first_s < 4.0


async def test_i9_connecting_and_asking_take_one_timeout_together(valkey: Server, proxy: TcpProxy) -> None:
    # First for a connection, then for the reply: one timeout for both together.
    async with kit_at(proxy.url, store_timeout=4.0) as kit:
        lane = lane_of(kit)
        await proxy.set("refuse")
        await eventually(lambda: not lane.connected)
        call = Echo("late")

        def hang(connection: AnyConnection | None) -> None:
            lane._on_connection(connection)
            valkey.signal(signal.SIGSTOP)

        async with loop_clock() as passed_s:
            asked = asyncio.ensure_future(lane.ask(call))
            await asyncio.sleep(1.5)  # So that connecting has time on a busy machine, too.
            lane._reconnector._on_change = hang
            await proxy.set("pass")
            try:
                with pytest.raises(StoreError, match="did not answer") as caught:
                    await asked
            finally:
                valkey.signal(signal.SIGCONT)
            assert passed_s() < 4.75
        assert caught.value.executed is None
        lane._reconnector._on_change = lane._on_connection
        await eventually(lambda: call.orphans == [[0, b"late"]])


@pytest.mark.each_loop
async def test_i9_starting_waits_until_the_store_can_be_reached(proxy: TcpProxy) -> None:
    # The first connection got 0.25 s, then start() returned without one.
    await proxy.set("refuse")
    kit = kit_at(proxy.url, start_timeout=300)
    starting = [asyncio.create_task(kit.start()) for _ in range(3)]
    await asyncio.sleep(0.6)
    assert not any(task.done() for task in starting)
    await proxy.set("pass")
    await asyncio.gather(*starting)
    assert lane_of(kit).connected
    for _ in starting:
        await kit.stop()


async def test_i9_starting_gives_up_in_time_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    kit = kit_at(f"redis://127.0.0.1:{port}/0", start_timeout=0.4)
    began = time.monotonic()
    async with loop_clock() as passed_s:
        await asyncio.gather(kit.start(), kit.start())
        assert passed_s() < 5.0
    assert time.monotonic() - began > 0.35
    loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(loud) == 1
    assert re.search(rf":{port}/0 cannot be reached: .*; trying again until it can", loud[0])
    await kit.stop()
    await kit.stop()


async def test_i9_a_silent_server_delays_no_start_further() -> None:
    """It was waited for twice: also, for five seconds, to store the names of the meters."""
    metered_at_stripe = PLANS.replace("unit: token", "unit: token, stripe: {event_name: ai_tokens}")
    for settings in ({}, {"enforcement": "off"}):
        async with FakeRedis(lambda _: b"") as silent:
            kit = kit_at(silent.url, plans=loads(metered_at_stripe), start_timeout=0.1, **settings)
            async with loop_clock() as passed_s:
                await kit.start()
                assert passed_s() < 3.0
            await kit.stop()


# F-11: late replies.


async def test_i7_a_server_that_hung_seven_seconds_holds_nothing(valkey: Server) -> None:
    # F-11: replies that came after 5.25 s were not read, and what they held was held for ten minutes.
    async with kit_at(valkey.url, store_timeout=0.25) as kit:
        await ask(kit, "acme", "/deny")
        await settled(kit)
        with stopped(valkey):
            asked = await asyncio.gather(*(ask(kit, "acme", "/deny") for _ in range(20)))
            assert asked == [503] * 20
            await asyncio.sleep(7)

        async def nothing_held() -> bool:
            await settled(kit)
            return await used(kit, "acme") == (1, 0) and in_flight(valkey, "acme") == 0

        await eventually(nothing_held)
        # The connection that hung is closed once its last reply has come.
        await eventually(lambda: all(connection.is_closed for connection in lane_of(kit)._reconnector._ended))


async def test_connections_of_late_replies_are_few(proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnector, "_ENDED_MAX", 2)
    async with kit_at(proxy.url, store_timeout=0.5) as kit:
        lane = lane_of(kit)
        for _ in range(4):
            await proxy.set("drop_reply")
            with pytest.raises(StoreError):
                await lane.ask(Echo("unheard"))
            await proxy.set("pass")
            await eventually(lambda: lane.connected)
        await eventually(
            lambda: sum(not connection.is_closed for connection in lane._reconnector._ended) == 2
        )


# F-12: passwords.


async def test_a_wrong_password_is_told_in_the_servers_own_words(caplog: pytest.LogCaptureFixture) -> None:
    # F-12: "connection reset by peer", because AUTH and 30 kB of scripts left in one write.
    with spawn_server() as server:
        server.command("CONFIG", "SET", "requirepass", "right")
        for found, words in (
            (f"redis://:wrong@127.0.0.1:{server.port}/0", "WRONGPASS"),
            (f"redis://nobody:right@127.0.0.1:{server.port}/0", "WRONGPASS"),
            (server.url, "NOAUTH"),
        ):
            caplog.clear()
            async with kit_at(found, start_timeout=0.3, store_timeout=0.3) as kit:
                await told(kit, f"refuses to serve: {words}.*METERKIT_REDIS_URL")
                assert (await ask(kit, "acme", "/deny"), await ask(kit, "acme", "/")) == (503, 200)
            assert words in caplog.text
            assert "right" not in caplog.text
            assert ":wrong" not in caplog.text
        async with kit_at(f"redis://:right@127.0.0.1:{server.port}/0") as kit:
            assert await ask(kit, "acme", "/deny") == 200


def spools(directory: Path) -> list[Path]:
    return list(directory.glob("*.spool"))


@pytest.mark.parametrize("rules", ["-@all", "resetkeys ~other:*", "-evalsha"])
async def test_i9_i11_a_server_that_takes_rights_away_is_down(
    tmp_path: Path, rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that stays, and refuses all: `record` waited for ever, and no usage went to the spool."""
    monkeypatch.setattr(settlement_queue, "_SPILL_AFTER_S", 0.1)
    with spawn_server() as server:
        url = url_of_user(server)
        async with kit_at(url, store_timeout=0.3, spool_dir=tmp_path) as kit:
            await kit.record("acme", "tokens", 1)
            server.command("ACL", "SETUSER", "app", *rules.split())
            await kit.record("acme", "tokens", 5)
            await eventually(lambda: lane_of(kit).is_down)
            assert spools(tmp_path)
            assert [await ask(kit, "acme", "/") for _ in range(3)] == [200] * 3
            url_of_user(server)
            await settled(kit)
            assert (await used(kit, "acme", "tokens"), await used(kit, "acme")) == ((6, 0), (3, 0))
            await eventually(lambda: not spools(tmp_path))


async def test_i9_damaged_counters_of_one_customer_end_no_connection(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    # Each of its requests ended the connection that all others share.
    async with kit_at(valkey.url) as kit:
        await kit.record("acme", "tokens", 1)
        counters = kit.store.keys.customer("acme").counters
        valkey.command("HSET", counters, meter_field("tokens"), "many")
        put_head(valkey, counters, e=int(time.time() * 1000) - 1)
        with pytest.raises(StoreError, match="DAMAGED the period cannot be closed"):
            await kit.consume("acme", "requests")
        assert (await kit.consume("globex", "requests")).allowed
    assert "connection ended" not in caplog.text


# F-19: another master behind the same address.


def in_step(master: Server, replica: Server) -> bool:
    """Whether a replica has all that its master has. WAIT says so of the asking connection's own writes."""
    ours, theirs = (server.command("INFO", "replication") for server in (master, replica))
    is_up: bool = theirs.get("master_link_status") == "up"
    return is_up and ours["master_repl_offset"] == theirs["slave_repl_offset"]


async def test_i9_a_planned_failover_behind_one_address_is_followed() -> None:
    # F-19: READONLY never ended the connection: the process stayed with the demoted master.
    binary = redis_binary()
    with (
        spawn_server(binary=binary) as first,
        spawn_server("--replicaof", "127.0.0.1", str(first.port), binary=binary) as second,
    ):
        await eventually(lambda: in_step(first, second))
        async with TcpProxy(first.port) as address, kit_at(address.url, store_timeout=5) as kit:
            for _ in range(5):
                assert await ask(kit, "acme", "/deny") == 200
            await settled(kit)
            await eventually(lambda: in_step(first, second))
            # As an operator does: the replica becomes the master, and the address follows a little later.
            second.command("REPLICAOF", "NO", "ONE")
            first.command("REPLICAOF", "127.0.0.1", second.port)
            for _ in range(5):
                await ask(kit, "acme")
            assert lane_of(kit).unsettled == 5
            address._target_port = second.port  # Open connections stay where they are, as with a balancer.
            await eventually(lambda: lane_of(kit).connected)
            assert await ask(kit, "acme", "/deny") == 200
            await settled(kit)
            assert await used(kit, "acme") == (11, 0)
            assert lane_of(kit).lost == 0


async def test_i9_who_delivers_or_reads_leaves_a_demoted_master() -> None:
    # Only the lane did: nothing was delivered and no plan was set any more, and usage was read there.
    with (
        spawn_server("--appendonly", "yes") as first,
        spawn_server("--appendonly", "yes", "--replicaof", "127.0.0.1", str(first.port)) as second,
    ):
        await eventually(lambda: in_step(first, second))
        async with TcpProxy(first.port) as address, desk(address.url, shards=4, store_timeout=60) as at:
            await at.link("acme")
            assert (await at.record_and_flush(6)).delivered == 1
            await eventually(lambda: in_step(first, second))
            second.command("REPLICAOF", "NO", "ONE")
            first.command("REPLICAOF", "127.0.0.1", free_port())
            address._target_port = second.port
            with pytest.raises(StoreError, match="READONLY"):
                await at.kit.consume("acme", "requests")
            await at.kit.record("acme", "requests", 5)
            await settled(at.kit)
            assert (await at.kit.usage("acme"))["meters"]["requests"]["recorded"] == 11
            await at.kit.customers.set_plan("acme", "pro")
            await at.flush(everything=True, timeout_s=0)
            assert (await at.flush(everything=True, after=timedelta(minutes=3))).left == 0
            assert at.accepted("acme") == 11


async def test_i9_a_dropped_connection_holds_up_no_operator(
    proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hung five seconds and failed, once a network had dropped the idle connections without a word."""
    monkeypatch.setattr("meterkit.redis.admin_connections._HEARD_S", 0.0)
    async with kit_at(proxy.url, shards=1, store_timeout=0.2) as kit:
        for call in (
            lambda: kit.usage("acme"),
            lambda: kit.customers.get("acme"),
            lambda: kit.customers.set_plan("acme", None),
        ):
            await call()
            proxy.drop_open()
            async with asyncio.timeout(4.0):
                await call()


async def test_i9_a_replica_is_not_taken_for_the_store() -> None:
    with spawn_server() as server:
        server.command("REPLICAOF", "127.0.0.1", free_port())
        async with kit_at(server.url, start_timeout=0.2, store_timeout=0.3) as kit:
            await told(kit, r"READONLY|MASTERDOWN")
            server.command("REPLICAOF", "NO", "ONE")
            await eventually(lambda: lane_of(kit).connected)
            assert await ask(kit, "acme", "/deny") == 200


async def test_i9_over_a_slow_network_everything_is_decided(proxy: TcpProxy) -> None:
    await proxy.set("delay", delay_s=0.02)
    async with kit_at(proxy.url, store_timeout=5.0) as kit:
        statuses = await asyncio.gather(*(ask(kit, "acme", "/deny") for _ in range(100)))
        assert statuses == [200] * 100
        await settled(kit)
        assert await used(kit, "acme") == (100, 0)


async def test_i9_ended_before_use_it_is_made_again(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    right, unsent = EventLoops._connect, list[asyncio.Future[Any]]()

    async def ends_at_once(self: EventLoops, on_end: Any) -> Any:
        connection: Any = await right(self, on_end)
        if not unsent:
            unsent.append(connection.call(Echo("unsent")))
            connection.end("a test")
        return connection

    monkeypatch.setattr(EventLoops, "_connect", ends_at_once)
    async with kit_at(valkey.url) as kit:
        assert (await lane_of(kit).ask(Echo("next")))[1] == b"next"
        with pytest.raises(StoreError, match="a test") as failed:
            await unsent[0]
        assert failed.value.executed is False


async def test_i9_an_unknown_error_does_not_end_the_settling(
    proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meterkit.redis.settlement_queue._PAUSE_MAX_S", 0.01)
    async with kit_at(proxy.url, shards=1) as kit:
        lane = lane_of(kit)
        fence, errors = lane.fence, [ZeroDivisionError("a bug"), KeyError("x")]

        async def wrong(key: str) -> int:
            if errors:
                raise errors.pop()
            return await fence(key)

        monkeypatch.setattr(lane, "fence", wrong)
        await proxy.set("drop_reply")
        settle(kit, "acme", tokens=5)
        await asyncio.sleep(0)
        await proxy.set("reset")
        await proxy.set("pass")
        await settled(kit)
        assert (await used(kit, "acme", "tokens"), errors) == ((5, 0), [])
    assert "settlements could not be sent, they are sent again: KeyError('x')" in caplog.text
