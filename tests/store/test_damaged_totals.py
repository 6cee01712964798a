"""A customer whose closed periods cannot be counted in: told, never counted twice, in nobody's way."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import delivered, desk
from drivers.store_keys import meter_token
from meterkit import StoreError
from meterkit.testing import Clock

if TYPE_CHECKING:
    from servers.stores import Server

pytestmark = pytest.mark.anyio

JUNE = datetime(2031, 6, 1, tzinfo=UTC)
JULY = datetime(2031, 7, 1, tzinfo=UTC)


async def test_i6_a_period_that_cannot_close_is_not_added_up_twice(
    store_url: str, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url, clock=Clock(JULY - timedelta(minutes=5)), shards=1) as at:
        await at.link("acme", "zeta")
        for meter, quantity in {"requests": 6, "tokens": 130, "rows": 4}.items():
            await at.kit.record("acme", meter, quantity)
        totals = at.kit.store.keys.customer("acme").totals
        field = f"{int(JUNE.timestamp() * 1000)}|{meter_token('tokens')}i"
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
