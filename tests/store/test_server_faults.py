"""Servers and data as they are in the field: full servers, busy pools, counters that cannot be read."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.audit_database import to_ms
from drivers.delivery import delivered, desk
from drivers.store_keys import meter_token
from faults.refusals import kit_at, settled, used
from meterkit import StoreError
from meterkit.testing import Clock
from servers.stores import spawn_server

if TYPE_CHECKING:
    from servers.stores import Server

pytestmark = pytest.mark.anyio

JUNE = datetime(2031, 6, 1, tzinfo=UTC)
JULY = datetime(2031, 7, 1, tzinfo=UTC)
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
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert len([line for line in said if "{'requests': 1} was not recorded" in line]) == 3
        # Whoever shares a shard with it does not wait for the repair.
        await at.kit.record("zeta", "requests", 3)
        assert (await at.kit.usage("zeta"))["meters"]["requests"]["recorded"] == 3
        valkey.command("HDEL", totals, field)
        await at.kit.record("acme", "requests", 1)
        closed = await at.totals("acme")
        assert [delivered(closed, JUNE, meter, "i") for meter in ("requests", "tokens", "rows")] == [
            6,
            100,
            4,
        ]
        assert delivered(closed, JUNE, "tokens", "o") == 30
        await at.flush(everything=True)
        assert (at.accepted("acme"), at.accepted("acme", "ai_tokens")) == (7, 30)


async def test_damaged_counters_are_named_when_intents_are_recalled(store_url: str, valkey: Server) -> None:
    async with desk(store_url, shards=1) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        assert await at.seal() == 1
        counters = at.kit.store.keys.customer("acme").counters
        field = f"{meter_token('requests')}m"
        admin = await at.kit.store.admin()
        client: Any = admin.client
        kept = await client.hget(counters, field)
        valkey.command("HSET", counters, field, "many")
        for _ in range(2):
            with pytest.raises(StoreError, match=f"DAMAGED the counters cannot be read.* field {field}"):
                await at.kit.customers.unlink("acme")
        await client.hset(counters, field, kept)
        assert (await at.kit.usage("acme"))["meters"]["requests"]["queued"] == 6
        await at.kit.customers.unlink("acme")
        assert (await at.kit.usage("acme"))["meters"]["requests"]["unlinked"] == 6
