"""What a server does to the data, and what is delivered from one that keeps nothing."""

# Internals: what a server says of its disk, word by word.

from __future__ import annotations

import logging
import signal
from datetime import timedelta
from time import time
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import CATALOG, NOW, desk, kit_for, until
from faults.refusals import FakeRedis
from meterkit import MeterKit, StoreError
from meterkit.delivery.flusher import Flusher
from meterkit.delivery.stripe_v1 import StripeV1Transport
from meterkit.redis.admin import Admin
from meterkit.redis.durability import Keeping
from meterkit.redis.server import durability_of
from meterkit.redis.url import parse_redis_url
from meterkit.testing import Clock, StripeEmulator
from servers.stores import free_port, redis_binary, spawn_server

if TYPE_CHECKING:
    from pathlib import Path

    from servers.stores import Server

pytestmark = pytest.mark.anyio

LIVE_KEY = "sk_live_" + "51SECRETsecretSECRETsecret"
FORGETS = ("--save", "3600 1 300 100 60 10000", "--appendonly", "no")


async def bill_and_kill(directory: Path, key: str, **settings: Any) -> tuple[int, list[str]]:
    """Record 100, snapshot, deliver, kill the server, deliver again: what was billed and what refused."""
    clock, port = Clock(NOW), free_port()
    emulator = StripeEmulator(clock=clock, api_keys=[key])
    refused: list[str] = []
    emulator.add_meter("api_requests")
    emulator.add_customer("cus_acme")
    async with emulator.serve() as stripe:
        for life in range(2):
            with spawn_server(*FORGETS, port=port, directory=directory) as server:
                async with kit_for(server.url, stripe, clock=clock, stripe_api_key=key, **settings) as kit:
                    if life == 0:
                        await kit.customers.link("acme", "cus_acme")
                        await kit.record("acme", "requests", 100)
                        server.command("SAVE")
                    transport = StripeV1Transport(key, api_base=stripe)
                    try:
                        await Flusher(kit.store, transport).flush(everything=True, timeout_s=5)
                    except StoreError as error:
                        refused.append(str(error))
                    finally:
                        await transport.close()
                    if life == 0:
                        server.signal(signal.SIGKILL)
                        server.process.wait()
            clock.advance(timedelta(minutes=2))
    return int(emulator.accepted("cus_acme", "api_requests")), refused


async def test_i6_a_live_key_delivers_nothing_from_a_volatile_store(tmp_path: Path) -> None:
    # F-5a: Debian's default, killed after a delivery, billed 200 for 100.
    billed, refused = await bill_and_kill(tmp_path, LIVE_KEY)
    assert billed == 0
    assert len(refused) == 2
    assert "set appendonly yes" in refused[0].lower()
    assert "METERKIT_DELIVER_WITHOUT_PERSISTENCE=on" in refused[0]


async def test_a_setting_delivers_it_all_the_same(tmp_path: Path) -> None:
    billed, refused = await bill_and_kill(tmp_path, LIVE_KEY, deliver_without_persistence=True)
    assert (billed, refused) == (200, [])  # What the setting's documentation warns of.


async def test_a_test_key_delivers_with_one_warning(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        for quantity in (6, 7):
            await at.kit.record("acme", "requests", quantity)
            await at.flush(everything=True)
            at.clock.advance(timedelta(minutes=2))
        assert at.accepted("acme") == 13
    said = [message for message in caplog.messages if "keeps nothing" in message]
    assert len(said) == 1
    assert "appendonly yes" in said[0]


async def test_an_apps_flusher_says_at_its_start_it_delivers_nothing(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
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


@pytest.mark.parametrize(
    ("waits", "has_file", "replicas", "way"),
    [
        (True, True, 0, "WAITAOF"),
        (True, True, 2, "WAITAOF and WAIT"),
        (False, False, 1, "WAIT"),
        (False, None, 1, "WAIT"),
        (False, True, 0, "age"),
        (False, None, None, "age"),
        (False, False, 0, "none"),
        (False, False, None, "none"),
    ],
)
def test_how_a_server_is_made_to_keep_a_write(
    *, waits: bool, has_file: bool | None, replicas: int | None, way: str
) -> None:
    assert durability_of(waits_for_disk=waits, has_file=has_file, replicas=replicas) == way


@pytest.mark.parametrize(
    ("policy", "lost"), [("volatile-lru", "counters, event ids"), ("allkeys-lru", "customers' plans")]
)
async def test_a_policy_that_evicts_is_named_at_the_start(
    valkey: Server, caplog: pytest.LogCaptureFixture, policy: str, lost: str
) -> None:
    # F-13: neither the start nor the documentation said a word.
    valkey.command("CONFIG", "SET", "maxmemory-policy", policy)
    try:
        for _ in range(2):
            async with MeterKit(CATALOG, redis_url=valkey.url, flush=False):
                pass
    finally:
        valkey.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    said = [record for record in caplog.records if "maxmemory-policy is" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING] * 2
    words = said[0].getMessage()
    assert policy in words
    assert lost in words
    assert "no limit now" in words
    assert "set maxmemory-policy noeviction" in words
    caplog.clear()
    async with MeterKit(CATALOG, redis_url=valkey.url, flush=False):
        pass
    assert "maxmemory" not in caplog.text


REFUSED = b"-NOPERM this user has no permissions\r\n"
LOADING = b"-LOADING the dataset is being loaded\r\n"
OLD = {
    "WAITAOF": b"-ERR unknown command 'WAITAOF'\r\n",
    "INFO persistence": b"$15\r\naof_enabled:1\r\n\r\n",
    "INFO replication": b"$20\r\nconnected_slaves:0\r\n\r\n",
    "CONFIG": b"*2\r\n$11\r\nappendfsync\r\n$8\r\neverysec\r\n",
}


async def way_of(said: dict[str, bytes]) -> str:
    """How a write is kept by a server that answers so, and +OK to all else."""

    def answer(words: list[bytes]) -> bytes:
        command = words[0].decode().upper()
        return said.get(command) or said.get(f"{command} {words[-1].decode()}") or b"+OK\r\n"

    async with FakeRedis(answer) as fake:
        address = parse_redis_url(fake.url)
        admin = Admin(address, timeout_s=5.0, clock=time)
        try:
            return await Keeping(admin, address, needed=True).way()
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


async def test_a_file_that_is_switched_off_meanwhile_keeps_nothing() -> None:
    with spawn_server("--appendonly", "yes") as server:
        address = parse_redis_url(server.url)
        admin = Admin(address, timeout_s=5.0, clock=time)
        keeping = Keeping(admin, address, needed=True)
        assert await keeping.way() == "WAITAOF"
        server.command("CONFIG", "SET", "appendonly", "no")
        client: Any = admin.client
        pipe = client.pipeline(transaction=False)
        pipe.execute_command(*keeping.commands("WAITAOF")[0])
        (reply,) = await pipe.execute(raise_on_error=False)
        with pytest.raises(StoreError, match=r"failed: .*appendonly is disabled"):
            await keeping.check(reply)
        await admin.close()
