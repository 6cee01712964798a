"""Servers as they are in the field: what they keep, whom they let do what; full, busy, damaged."""

# Internals: what a server says of its disk, word by word, and the words with which each right is tried.

from __future__ import annotations

import asyncio
import logging
import re
import signal
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any

import pytest

from drivers.audit_database import to_ms
from drivers.delivery import CATALOG, NOW, delivered, desk, kit_for, until
from drivers.sampled import some
from drivers.store_keys import meter_token
from faults.refusals import FakeRedis, eventually, kit_at, lane_of, settled, used
from meterkit import MeterKit, SettingsError, StoreError
from meterkit.redis.admin import Admin
from meterkit.redis.durability import DurabilityCheck, durability_of
from meterkit.redis.server import commands_to_try
from meterkit.redis.url import parse_redis_url
from meterkit.testing import Clock, StripeEmulator
from servers.stores import DOCUMENTED, NEEDED, Server, free_port, redis_binary, spawn_server, url_of_user

pytestmark = pytest.mark.anyio

LIVE_KEY = "sk_live_" + "51SECRETsecretSECRETsecret"
FORGETS = ("--save", "3600 1 300 100 60 10000", "--appendonly", "no")


async def bill_and_kill(**settings: Any) -> tuple[int, list[str]]:
    """Record 100, snapshot, deliver, kill the server, deliver again: what was billed and what refused."""
    clock, port, refused = Clock(NOW), free_port(), list[str]()
    emulator = StripeEmulator(clock=clock, api_keys=[LIVE_KEY])
    emulator.add_meter("api_requests")
    emulator.add_customer("cus_acme")
    settings |= {"clock": clock, "stripe_api_key": LIVE_KEY}
    with TemporaryDirectory() as folder:
        async with emulator.serve() as stripe:
            for life in range(2):
                with spawn_server(*FORGETS, port=port, directory=Path(folder)) as server:
                    async with kit_for(server.url, stripe, **settings) as kit:
                        if life == 0:
                            await kit.customers.link("acme", "cus_acme")
                            await kit.record("acme", "requests", 100)
                            server.command("SAVE")
                        try:
                            await kit.flush(everything=True, timeout_s=5)
                        except StoreError as error:
                            refused.append(str(error))
                        if life == 0:
                            server.signal(signal.SIGKILL)
                            server.process.wait()
                clock.advance(timedelta(minutes=2))
    return int(emulator.accepted("cus_acme", "api_requests")), refused


async def test_i6_a_live_key_delivers_nothing_from_a_volatile_store() -> None:
    # F-5a: Debian's default, killed after a delivery, billed 200 for 100.
    billed, refused = await bill_and_kill()
    assert billed == 0
    assert len(refused) == 2
    assert "set appendonly yes" in refused[0].lower()
    assert "METERKIT_DELIVER_WITHOUT_PERSISTENCE=on" in refused[0]
    # A setting delivers it all the same, and bills what its documentation warns of.
    assert await bill_and_kill(deliver_without_persistence=True) == (200, [])


async def test_a_test_key_delivers_with_one_warning(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        for quantity in (6, 7):
            await at.kit.record("acme", "requests", quantity)
            await at.flush(everything=True)
            at.clock.advance(timedelta(minutes=2))
        assert at.accepted("acme") == 13
    (said,) = [message for message in caplog.messages if "keeps nothing" in message]
    assert "appendonly yes" in said


async def test_a_flusher_says_it_delivers_nothing(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"stripe_api_key": LIVE_KEY, "flush": True}
    async with kit_for(store_url, "http://127.0.0.1:1", clock=Clock(NOW), **settings) as kit:
        # Nothing is to be delivered yet.
        await until(lambda: "nothing is delivered from there" in caplog.text)
        assert (await kit.usage("acme"))["meters"]["requests"]["used"] == 0


async def test_redis_70_with_appendfsync_no_names_the_cause() -> None:
    binary = redis_binary()
    if binary is None:
        pytest.skip("no redis-server on PATH")
    with spawn_server("--appendonly", "yes", "--appendfsync", "no", binary=binary) as server:
        async with desk(server.url) as at:
            await at.link("acme")
            await at.kit.record("acme", "requests", 6)
            with pytest.raises(StoreError, match="appendfsync no"):
                await at.flush(everything=True)
            assert at.emulator.requests == ()


def test_how_a_write_is_kept() -> None:
    ways: dict[str, list[tuple[bool, bool | None, int | None]]] = {
        "WAITAOF": [(True, True, 0)],
        "WAITAOF and WAIT": [(True, True, 2)],
        "WAIT": [(False, False, 1), (False, None, 1)],
        "age": [(False, True, 0), (False, None, None)],
        "none": [(False, False, 0), (False, False, None)],
    }
    for way, cases in ways.items():
        for waits, has_file, replicas in cases:
            assert durability_of(waits_for_disk=waits, has_file=has_file, replicas=replicas) == way


@pytest.mark.parametrize(
    ("policy", "lost"), [("volatile-lru", "counters, event ids"), ("allkeys-lru", "customers' plans")]
)
async def test_a_policy_that_evicts_is_named_at_the_start(
    valkey: Server, caplog: pytest.LogCaptureFixture, policy: str, lost: str
) -> None:
    # F-13: neither the start nor the documentation said a word.
    for given in (policy, policy, "noeviction"):
        valkey.command("CONFIG", "SET", "maxmemory-policy", given)
        async with MeterKit(CATALOG, redis_url=valkey.url, flush=False):
            pass
    said = [record for record in caplog.records if "maxmemory-policy is" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING] * 2
    for words in (policy, lost, "no limit now", "set maxmemory-policy noeviction"):
        assert words in said[0].getMessage()


REFUSED = b"-NOPERM this user has no permissions\r\n"
LOADING = b"-LOADING the dataset is being loaded\r\n"
OLD = {
    "WAITAOF": b"-ERR unknown command 'WAITAOF'\r\n",
    "INFO persistence": b"$15\r\naof_enabled:1\r\n\r\n",
    "INFO replication": b"$20\r\nconnected_slaves:0\r\n\r\n",
    "CONFIG": b"*2\r\n$11\r\nappendfsync\r\n$8\r\neverysec\r\n",
}


async def way_of(said: dict[str, bytes], kind: str = "tcp") -> str:
    """How a write is kept by a server that answers so, and +OK to all else."""

    def answer(words: list[bytes]) -> bytes:
        command = words[0].decode().upper()
        return said.get(command) or said.get(f"{command} {words[-1].decode()}") or b"+OK\r\n"

    async with FakeRedis(answer) as fake:
        address = parse_redis_url(fake.url)
        admin = Admin(address, timeout_s=5.0, clock=time)
        try:
            return await DurabilityCheck(admin, address, needed=True, kind=kind).find_method()
        finally:
            await admin.close()


@pytest.mark.parametrize(
    "said",
    [
        OLD | {"CONFIG": LOADING},
        {"WAITAOF": REFUSED, "INFO persistence": REFUSED, "INFO replication": REFUSED, "WAIT": LOADING},
    ],
    ids=["asked for its settings", "asked for its replicas"],
)
async def test_a_server_that_fails_when_it_is_asked_keeps_nothing(said: dict[str, bytes]) -> None:
    with pytest.raises(StoreError, match=r"the store at redis://.* failed: "):
        await way_of(said)


async def test_a_replica_that_all_consider_failed_takes_nothing_over() -> None:
    for flags, is_heir in (("slave", True), ("slave,fail?", True), ("slave,fail", False)):
        own = "a 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-16383"
        nodes = f"{own}\nb 127.0.0.1:3@4 {flags} a 0 0 1 connected\n".encode()
        said = OLD | {"CLUSTER": b"$%d\r\n%b\r\n" % (len(nodes), nodes)}
        with pytest.raises(StoreError, match="has no replica") if is_heir else nullcontext():
            assert await way_of(said, "cluster") == "age"


async def test_a_file_that_is_switched_off_meanwhile_keeps_nothing() -> None:
    with spawn_server("--appendonly", "yes") as server:
        address = parse_redis_url(server.url)
        admin = Admin(address, timeout_s=5.0, clock=time)
        keeping = DurabilityCheck(admin, address, needed=True)
        assert await keeping.find_method() == "WAITAOF"
        server.command("CONFIG", "SET", "appendonly", "no")
        client: Any = admin.client
        pipe = client.pipeline(transaction=False)
        pipe.execute_command(*keeping.commands("WAITAOF")[0])
        (reply,) = await pipe.execute(raise_on_error=False)
        with pytest.raises(StoreError, match=r"failed: .*appendonly is disabled"):
            await keeping.check(reply)
        await admin.close()


# What the server's user must be allowed, and what happens where it is not.


SAMPLE = ("EVAL", "SCRIPT|LOAD", "ZADD", "HSET")
LUA = Path(__file__).parents[2] / "src" / "meterkit" / "lua"
DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


@pytest.mark.parametrize("command", some((name for name in NEEDED if name != "CLIENT|SETNAME"), SAMPLE))
async def test_each_right_is_tried_before_the_store_is_used(valkey: Server, command: str) -> None:
    # F-1a: without ZADD 50 were recorded and pending, and never delivered.
    url = url_of_user(valkey, (name for name in DOCUMENTED if name != command))
    valkey.command("SCRIPT", "FLUSH")  # Scripts that the server has are not loaded.
    with pytest.raises(SettingsError) as caught:
        await MeterKit(CATALOG, redis_url=url, flush=False).start()
    keys = "" if command in {"EVAL", "SCRIPT|LOAD"} else "~mk:* "
    assert f"ACL SETUSER app {keys}+{command.lower()}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert valkey.command("DBSIZE") == 0


async def test_a_user_without_a_password_is_not_the_default_user(valkey: Server) -> None:
    url = url_of_user(valkey).replace(":secret@", "@")
    valkey.command("ACL", "SETUSER", "app", "nopass")
    async with MeterKit(CATALOG, redis_url=url, flush=False) as kit:
        await kit.usage("acme")
        clients: list[str] = valkey.command("CLIENT", "LIST").splitlines()
    assert [" user=app " in one for one in clients if " name=meterkit " in one] == [True]


async def test_the_right_to_a_database_a_name_and_keys_is_named(valkey: Server) -> None:
    # A process without it started, and served without the store for as long as it ran.
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("/1", {}, r"'select' command\. Add the right: ACL SETUSER app \+select"),
        ("/0", {"commands": {*NEEDED} - {"CLIENT|SETNAME"}}, r"to CLIENT SETNAME; .* \+client\|setname"),
        ("/0", {"prefix": "other"}, r"no right to keys that begin with mk:.*~mk:\*"),
    )
    for database, user, said in cases:
        url = url_of_user(valkey, **user).replace("/0", database)
        with pytest.raises(SettingsError, match=said):
            await MeterKit(CATALOG, redis_url=url, flush=False).start()


async def test_a_process_survives_a_lost_right(valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    url = url_of_user(valkey)
    async with MeterKit(CATALOG, redis_url=url, flush=False, store_timeout=0.2) as kit:
        await kit.record("acme", "requests", 1)
        valkey.command("ACL", "SETUSER", "app", "-script|load")
        valkey.command("SCRIPT", "FLUSH")  # Scripts that the server has are not loaded again.
        valkey.command("CLIENT", "KILL", "TYPE", "normal")
        await eventually(lambda: not lane_of(kit).connected)
        await kit.record("acme", "requests", 2)
        await eventually(lambda: "Add the right: ACL SETUSER app +script|load" in caplog.text)
        valkey.command("ACL", "SETUSER", "app", "+script|load")
        await settled(kit)
        assert await used(kit, "acme") == (3, 0)


def test_each_is_tried_with_as_many_words_as_it_needs() -> None:
    # A server that is told of fewer crashes: https://github.com/redis/redis/issues/14843.
    with spawn_server() as server:
        for words in commands_to_try("mk:{0}:dirty", of_cluster=True):
            is_part = words[0] in {"SCRIPT", "CLIENT", "XGROUP", "XINFO", "CLUSTER"}
            name = f"{words[0]}|{words[1]}" if is_part else words[0]
            (entry,) = server.command("COMMAND", "INFO", name).values()
            arity = int(entry["arity"])
            assert len(words) == arity if arity > 0 else len(words) >= -arity, words


async def test_a_hosted_server_without_client_and_config_is_used() -> None:
    # Without CLIENT no process connected, and the name that it could not give is for operators only.
    hidden = (word for name in ("CLIENT", "CONFIG") for word in ("--rename-command", name, ""))
    with spawn_server("--appendonly", "yes", *hidden) as server:
        async with desk(server.url, shards=4) as at:
            await at.link("acme")
            await at.kit.record("acme", "requests", 6)
            assert (await at.flush(everything=True)).delivered == 1


async def test_a_start_without_scan_tells_what_fails(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    # F-20j: nothing said so until an hourly task had failed.
    url = url_of_user(valkey, [command for command in DOCUMENTED if command != "SCAN"])
    for _ in range(2):
        async with MeterKit(CATALOG, redis_url=url, flush=False) as kit:
            assert (await kit.consume("acme", "requests")).allowed
    (said, _) = [message for message in caplog.messages if "SCAN" in message]
    assert "user 'app' has no right to SCAN; without it, tasks over all customers fail" in said
    assert said.endswith("Add it: ACL SETUSER app +scan")


async def test_a_live_key_delivers_where_the_server_may_not_be_asked(valkey: Server) -> None:
    # As the page on rights says: meterkit cannot see it.
    async with desk(url_of_user(valkey, NEEDED), stripe_api_key="sk_live_1") as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        await at.flush(everything=True, timeout_s=0)
        at.clock.advance(timedelta(seconds=3))
        assert (await at.flush()).delivered == 1


def test_the_documentation_lists_exactly_these_rights() -> None:
    text = " ".join(DEPLOYMENT.read_text().split())
    assert f"~mk:* {' '.join(f'+{name.lower()}' for name in DOCUMENTED)}" in text.replace(" \\ ", " ")


def test_scripts_call_no_other_commands() -> None:
    texts = [path.read_text("utf-8") for path in LUA.rglob("*.lua")]
    called = {name for text in texts for name in re.findall(r"call\('(\w+)'", text)}
    assert len(called) > 30
    assert called <= {name.partition("|")[0] for name in DOCUMENTED}


# Full servers, and busy pools.


JUNE, JULY = datetime(2031, 6, 1, tzinfo=UTC), datetime(2031, 7, 1, tzinfo=UTC)
AT_ONCE = 400
AT_ONCE_SERVED = 16


async def test_usage_arrives_once_a_full_server_has_room() -> None:
    with spawn_server("--maxmemory-policy", "noeviction") as server:
        async with kit_at(server.url, store_timeout=2.0) as kit:
            await kit.record("acme", "requests", 3)
            server.command("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(StoreError):
                await kit.consume("acme", "requests")
            with pytest.raises(StoreError):
                await kit.customers.set_plan("acme", "other")
            await kit.record("acme", "requests", 4)
            server.command("CONFIG", "SET", "maxmemory", 0)
            await settled(kit)
            assert await used(kit, "acme") == (7, 0)


# Plain commands beside the hot path: how many connections they take, and who waits for whom.


@pytest.mark.dear("more queries than connections")
async def test_a_query_waits_while_all_connections_are_in_use(store_url: str) -> None:
    # F-5b: 100 at once were more than the pool had connections, and 36 of them failed.
    async with desk(store_url) as at:
        await at.kit.record("acme", "requests", 7)
        found = await asyncio.gather(*(at.kit.usage("acme") for _ in range(100)))
    assert [usage["meters"]["requests"]["used"] for usage in found] == [7] * 100


async def test_delivery_does_not_wait_for_what_the_app_asks(store_url: str, valkey: Server) -> None:
    # F-5b: the flusher had to take its connections from the same pool.
    async with desk(store_url, store_timeout=60.0) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 7)
        client: Any = (await at.kit.store.admin()).client
        waiting = [asyncio.ensure_future(client.blpop(["nothing"], timeout=0)) for _ in range(AT_ONCE)]
        while valkey.command("INFO", "clients")["blocked_clients"] < AT_ONCE_SERVED:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        try:
            await at.flush(everything=True)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        assert at.accepted("acme") == 7


# A customer whose counters or closed periods cannot be read: logged, never counted twice, in no other's way.


async def test_i6_a_period_that_cannot_close_is_not_added_up_twice(
    store_url: str, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url, clock=Clock(JULY - timedelta(minutes=5)), shards=1) as at:
        await at.link("acme", "zeta")
        for meter, quantity in {"requests": 6, "tokens": 130, "rows": 4}.items():
            await at.kit.record("acme", meter, quantity)
        totals = at.kit.store.keys.customer("acme").totals
        field = f"{to_ms(JUNE)}|{meter_token('tokens')}i"
        valkey.command("HSET", totals, field, "many")
        at.clock.set(JULY + timedelta(minutes=1))
        for _ in range(3):
            with pytest.raises(StoreError, match="is not a whole number"):
                await at.kit.record("acme", "requests", 1)
            with pytest.raises(StoreError, match=f"DAMAGED .*{meter_token('tokens')}i"):
                await at.kit.consume("acme", "requests", 1)
        assert valkey.command("HGETALL", totals) == {field: "many"}
        assert sum("{'requests': 1} was not recorded" in line for line in caplog.messages) == 3
        # Whoever shares a shard with it does not wait for the repair.
        await at.kit.record("zeta", "requests", 3)
        assert (await at.kit.usage("zeta"))["meters"]["requests"]["recorded"] == 3
        valkey.command("HDEL", totals, field)
        await at.kit.record("acme", "requests", 1)
        closed = await at.totals("acme")
        found = [delivered(closed, JUNE, meter, "i") for meter in ("requests", "tokens", "rows")]
        assert (found, delivered(closed, JUNE, "tokens", "o")) == ([6, 100, 4], 30)
        await at.flush(everything=True)
        assert (at.accepted("acme"), at.accepted("acme", "ai_tokens")) == (7, 30)


async def test_damaged_counters_are_named_when_intents_are_recalled(store_url: str, valkey: Server) -> None:
    async with desk(store_url, shards=1) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        assert await at.seal() == 1
        counters = at.kit.store.keys.customer("acme").counters
        field = f"{meter_token('requests')}m"
        client: Any = (await at.kit.store.admin()).client
        kept = await client.hget(counters, field)
        valkey.command("HSET", counters, field, "many")
        for _ in range(2):
            with pytest.raises(StoreError, match=f"DAMAGED the counters cannot be read.* field {field}"):
                await at.kit.customers.unlink("acme")
        await client.hset(counters, field, kept)
        assert (await at.kit.usage("acme"))["meters"]["requests"]["queued"] == 6
        await at.kit.customers.unlink("acme")
        assert (await at.kit.usage("acme"))["meters"]["requests"]["unlinked"] == 6
