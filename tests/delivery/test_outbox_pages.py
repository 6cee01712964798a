"""More in the outbox than one page: all of it goes out, and nobody waits behind another's."""
# Internals: pages of one intent.

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import desk
from meterkit.outbox.outbox import Outbox

if TYPE_CHECKING:
    from drivers.delivery import Desk

pytestmark = pytest.mark.anyio


async def sealed(at: Desk) -> Outbox:
    """Twelve intents of one customer, in as many minutes, and one of another behind them."""
    await at.link("acme", "zeta")
    outbox = Outbox(at.kit.store, await at.kit.store.admin())
    for _ in range(12):
        await at.kit.record("acme", "requests", 1)
        assert (await outbox.seal(0, due_ms=None, most=50)).made == 1
        at.clock.advance(timedelta(minutes=1))
    await at.kit.record("zeta", "requests", 7)
    assert (await outbox.seal(0, due_ms=None, most=50)).made == 1
    return outbox


async def test_pages_of_one_deliver_all_once_and_in_order(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # F-87
    monkeypatch.setattr("meterkit.outbox.outbox._PAGE", 1)
    monkeypatch.setattr("meterkit.delivery.flusher._INTENTS_PER_PAGE", 1)
    async with desk(store_url, shards=1) as at:
        await sealed(at)
        report = await at.flush()
        assert (report.delivered, report.retried, report.left) == (13, 0, 0)
    sent = at.emulator.requests
    assert len(sent) == len({request.identifier for request in sent}) == 13
    stamps = [event.timestamp for event in at.emulator.events]
    assert stamps == sorted(stamps)
    assert (at.accepted("acme"), at.accepted("zeta")) == (12, 7)


async def test_an_outbox_is_looked_through_to_a_depth_at_a_time(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.outbox.outbox._PAGE", 2)
    monkeypatch.setattr("meterkit.outbox.outbox._DEPTH", 6)
    async with desk(store_url, shards=1) as at:
        outbox = await sealed(at)
        assert [intent.customer for intent in await outbox.due(0, due_ms=None, most=64)] == ["acme"] * 6
        assert (await at.flush(everything=True)).delivered == 13
