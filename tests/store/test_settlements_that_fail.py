"""A settlement at which the script ends in an error is counted as lost, and said; the others are recorded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.store_keys import meter_field, meter_token
from faults.refusals import kit_at, lane_of, settle, settled, used
from meterkit.errors import StoreError
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meterkit import MeterKit
    from servers.stores import Server

JUNE = datetime(2031, 6, 1, tzinfo=UTC)
JULY = datetime(2031, 7, 1, tzinfo=UTC)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def kit(valkey: Server) -> AsyncIterator[MeterKit]:
    async with kit_at(valkey.url, shards=1) as kit:
        yield kit


def spoil(server: Server, kit: MeterKit, customer: str) -> None:
    """Leave behind what no release of meterkit writes."""
    server.command("HSET", kit.store.keys.customer(customer).counters, meter_field("tokens"), "many")


async def test_i5_what_the_store_cannot_apply_is_told_to_whoever_waits(
    kit: MeterKit, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await kit.record("acme", "tokens", 5)
    spoil(valkey, kit, "acme")
    with pytest.raises(StoreError, match="not recorded: that of 'acme' failed: "):
        await kit.record("acme", "tokens", 7)
    assert lane_of(kit).lost == 1
    assert "1 settlements are lost" in caplog.text


async def test_i5_what_follows_on_it_is_recorded_once(kit: MeterKit, valkey: Server) -> None:
    for customer in ("acme", "globex", "initech"):
        await kit.record(customer, "tokens", 1)
    spoil(valkey, kit, "acme")
    spoil(valkey, kit, "initech")
    for customer in ("globex", "acme", "globex", "globex", "initech", "globex", "acme", "globex"):
        settle(kit, customer, tokens=10)
    await settled(kit)
    assert await used(kit, "globex", "tokens") == (51, 0)
    assert lane_of(kit).lost == 3


async def test_i5_each_settlement_that_cannot_be_applied_is_told(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(JULY - timedelta(minutes=5))
    async with kit_at(valkey.url, shards=1, clock=clock) as kit:
        await kit.record("zeta", "tokens", 1)
        clock.set(JULY + timedelta(minutes=1))
        await kit.record("acme", "tokens", 1)
        spoil(valkey, kit, "acme")
        june = f"{int(JUNE.timestamp() * 1000)}|{meter_token('tokens')}i"
        totals = kit.store.keys.customer("zeta").totals
        valkey.command("HSET", totals, june, "many")
        for customer in ("acme", "zeta", "globex"):
            settle(kit, customer, tokens=10)
        await settled(kit)
        assert await used(kit, "globex", "tokens") == (10, 0)
        assert lane_of(kit).lost == 2
        valkey.command("HDEL", totals, june)
    assert "that of 'acme' failed: " in caplog.text
    assert f"that of 'zeta' failed: field {june} is not a whole number" in caplog.text
