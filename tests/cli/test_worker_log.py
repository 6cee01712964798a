"""The worker's log as JSON: an object on each line, whatever is in it."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from drivers.command_line import TIMEOUT_S, Shell
from meterkit import MeterKit
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_every_line_of_a_workers_log_is_an_object(directory: Path, store_url: str) -> None:
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    emulator.add_customer("cus_1")
    async with MeterKit(
        directory / "plans.yaml", redis_url=store_url, flush=False, flush_interval=0.1
    ) as kit:
        await kit.customers.link("acme", "cus_1", force=True)
        await kit.record("acme", "tokens", 7)
    with emulator.running() as stripe:
        shell = Shell(
            directory,
            METERKIT_REDIS_URL=store_url,
            METERKIT_STRIPE_API_KEY="sk_test_1",
            METERKIT_STRIPE_API_BASE=stripe,
            METERKIT_FLUSH_INTERVAL="0.1",
        )
        with shell.running("worker", "--log-format", "json") as worker:
            lines: list[str] = []
            while not lines or '"delivered": 1' not in lines[-1]:
                lines.append(worker.stderr.readline())
                assert lines[-1]
            worker.send_signal(signal.SIGTERM)
            rest = worker.stderr.read().splitlines()
            assert (0, "") == (worker.wait(TIMEOUT_S), worker.stdout.read())
    said = [json.loads(line) for line in lines + rest]
    assert all(["time", "level", "logger", "message"] == list(line)[:4] for line in said)
    passed = next(line for line in said if line.get("delivered"))
    assert ("INFO", "meterkit.worker", 1, 0) == (
        *(passed["level"], passed["logger"]),
        *(passed["sealed"], passed["left"]),
    )
    assert "stopped" == said[-1]["message"]
    assert any(line["message"].startswith("delivering from") for line in said)
