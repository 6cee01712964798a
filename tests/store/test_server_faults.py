"""Servers as they are in the field: read-only, full, back with nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from drivers.delivery import CATALOG
from meterkit import MeterKit, StoreError
from servers.stores import spawn_server

if TYPE_CHECKING:
    from faults.proxy import TcpProxy
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
