"""The worker finds what the clock alone has changed."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.command_line import TIMEOUT_S, Shell
from drivers.subscribed_customer import fetched, subscription
from faults.refusals import eventually
from meterkit import MeterKit
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_the_worker_enters_what_the_clock_has_changed(directory: Path, store_url: str) -> None:
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
        now = datetime.now(UTC)
        bounds = {name: now - timedelta(days=1) for name in ("start_ms", "anchor_ms", "created_ms")}
        ends = {"end_ms": now + timedelta(days=29), "cancel_at_ms": now + timedelta(seconds=0.2)}
        await fetched(kit, subscription(**bounds, **ends))
        entered = len(await kit.customers.history("acme"))

        async def is_found() -> bool:
            return len(await kit.customers.history("acme")) > entered

        with emulator.running() as stripe:
            shell = Shell(
                directory,
                METERKIT_REDIS_URL=store_url,
                METERKIT_STRIPE_API_KEY="sk_test_1",
                METERKIT_STRIPE_API_BASE=stripe,
            )
            with shell.running("worker") as worker:
                await eventually(is_found)
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(TIMEOUT_S) == 0
        found = (await kit.customers.history("acme"))[entered:]
        assert {entry.cause for entry in found} == {"clock"}
        assert ("status", "active", "canceled") in [
            (entry.kind, entry.before, entry.after) for entry in found
        ]
