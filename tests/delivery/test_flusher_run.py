"""A flusher that runs until it is stopped: no error of the store's ends it, and none ends it in silence."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import pytest

from delivering import desk, until
from meterkit.store.outbox import Outbox

if TYPE_CHECKING:
    from meterkit.delivery.flusher import FlushReport

pytestmark = pytest.mark.anyio


async def test_i9_a_flusher_that_cannot_ask_about_the_store_at_its_start_delivers_later(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # R6: what went wrong before the first pass ended it.
    async def fail(_: Outbox) -> None:
        raise RuntimeError("INFO cannot be read")

    monkeypatch.setattr(Outbox, "refusal", fail)
    async with desk(store_url, flush_interval=0.05) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        at.clock.advance(timedelta(seconds=1))
        running = asyncio.create_task(at.flusher.run(every_s=0.01))
        await until(lambda: at.accepted("acme") == 6)
        at.flusher.stop()
        await running
    assert "INFO cannot be read" in caplog.text


async def test_an_error_of_whom_it_tells_of_a_pass_ends_it_with_that_error(store_url: str) -> None:
    # R6: who reads the reports is gone; whoever started it must hear of that.
    def close(_: FlushReport) -> None:
        raise BrokenPipeError

    async with desk(store_url) as at:
        with anyio.fail_after(20), pytest.raises(BrokenPipeError):
            await at.flusher.run(every_s=0.01, told=close)
