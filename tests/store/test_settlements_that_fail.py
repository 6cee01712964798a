"""A settlement at which the script ends in an error is counted as lost, and said; the others are recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from faults import kit_at, settled, used
from meterkit.decisions.keys import meter_field
from meterkit.errors import StoreError
from meterkit.store.settlement import Settlement
from meterkit.store.used import Used

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meterkit import MeterKit
    from servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.each_loop]


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
    assert (await kit.store.start()).lost == 1
    assert "1 settlements are lost" in caplog.text


async def test_i5_what_follows_on_it_is_recorded_once(kit: MeterKit, valkey: Server) -> None:
    lane = await kit.store.start()
    for customer in ("acme", "globex", "initech"):
        await kit.record(customer, "tokens", 1)
    spoil(valkey, kit, "acme")
    spoil(valkey, kit, "initech")
    for customer in ("globex", "acme", "globex", "globex", "initech", "globex", "acme", "globex"):
        kit.store.settle(lane, Settlement(kit.store.cache.get(customer), used=Used(recorded={"tokens": 10})))
    await settled(kit)
    assert await used(kit, "globex", "tokens") == (51, 0)
    assert lane.lost == 3
