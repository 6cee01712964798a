"""Servers as they are in the field: read-only, full, back with nothing."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from drivers.delivery import CATALOG, until
from faults.proxy import TcpProxy
from meterkit import MeterKit, StoreError
from servers.stores import free_port, spawn_server

if TYPE_CHECKING:
    from servers.stores import Server

pytestmark = pytest.mark.anyio


def kit_at(server: Server | TcpProxy, *, start_timeout: float | None = None) -> MeterKit:
    return MeterKit(
        CATALOG,
        redis_url=server.url,
        shards=4,
        flush=False,
        store_timeout=2.0,
        start_timeout=start_timeout,
    )


async def used(kit: MeterKit) -> int:
    found = (await kit.usage("acme"))["meters"]["requests"]["used"]
    assert isinstance(found, int)
    return found


async def until_used(kit: MeterKit, quantity: int) -> None:
    """Wait until what was kept meanwhile has arrived."""
    with anyio.fail_after(240):
        while True:
            try:
                if await used(kit) == quantity:
                    return
            except StoreError:
                pass
            await anyio.sleep(0.02)


async def test_a_read_only_replica_is_named_and_decides_nothing() -> None:
    with spawn_server() as master, spawn_server("--replicaof", f"127.0.0.1 {master.port}") as replica:
        async with kit_at(master) as kit:
            await kit.record("acme", "requests", 3)
        await until(lambda: replica.command("INFO", "replication")["master_link_status"] == "up")
        await until(lambda: replica.command("DBSIZE") == master.command("DBSIZE"))
        async with kit_at(replica, start_timeout=0.2) as kit:
            with pytest.raises(StoreError):
                await kit.consume("acme", "requests")
            with pytest.raises(StoreError, match="read only replica"):
                await kit.customers.set_plan("acme", "pro")
            assert await used(kit) == 3  # It may be read.
        assert master.command("INFO", "replication")["role"] == "master"


async def test_a_connection_that_was_reset_is_not_used_again(valkey: Server) -> None:
    async with TcpProxy(valkey.port) as proxy, kit_at(proxy) as kit:
        delivery = (await kit.store.admin()).for_delivery()
        for _ in range(2):
            assert await used(kit) == 0
            assert await delivery.ask(delivery.client.ping())
            await proxy.set("reset")
            await proxy.set("pass")
            await anyio.lowlevel.checkpoint()  # The loop hears of it.


async def test_usage_arrives_once_a_full_server_has_room() -> None:
    with spawn_server("--maxmemory-policy", "noeviction") as server:
        async with kit_at(server) as kit:
            await kit.record("acme", "requests", 3)
            server.command("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(StoreError):
                await kit.consume("acme", "requests")
            with pytest.raises(StoreError):
                await kit.customers.set_plan("acme", "pro")
            await kit.record("acme", "requests", 4)
            server.command("CONFIG", "SET", "maxmemory", 0)
            await until_used(kit, 7)


async def test_a_server_that_comes_back_empty_is_used_again() -> None:
    port = free_port()
    with spawn_server(port=port) as server:
        kit = kit_at(server)
        await kit.start()
        try:
            await kit.record("acme", "requests", 3)
            server.signal(signal.SIGKILL)
            server.process.wait()
            with spawn_server(port=port) as again:
                with anyio.fail_after(240):
                    while again.command("EXISTS", kit.store.keys.meta) == 0:  # noqa: ASYNC110
                        await anyio.sleep(0.02)
                await until_used(kit, 0)
                await kit.record("acme", "requests", 4)
                await until_used(kit, 4)
        finally:
            await kit.stop()
