"""A server whose files can be put back, a Stripe emulator and one clock: what tests of restores hold."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from drivers.delivery import kit_for
from servers.stores import free_port, spawn_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from meterkit import MeterKit
    from meterkit.delivery.report import FlushReport
    from meterkit.testing import Clock, StripeEmulator
    from servers.stores import Server

KEEPS: Final = ("--appendonly", "yes", "--appendfsync", "always", "--aof-load-truncated", "yes")
CUSTOMERS: Final = ("acme", "zeta")


class House:
    """A server whose directory can be put aside and back, Stripe, and a clock for both."""

    def __init__(self, directory: Path, stripe: str, emulator: StripeEmulator, clock: Clock) -> None:
        self.data, self.backup = directory / "data", directory / "backup"
        self.stripe, self.emulator, self.clock = stripe, emulator, clock
        self.port = free_port()
        self.meters = [emulator.add_meter(event) for event in ("api_requests", "ai_tokens")]
        self.data.mkdir()

    @asynccontextmanager
    async def open(self, **settings: Any) -> AsyncGenerator[tuple[MeterKit, Server]]:
        """The store, until it is killed."""
        with spawn_server(*KEEPS, port=self.port, directory=self.data) as server:
            async with kit_for(server.url, self.stripe, clock=self.clock, **settings) as kit:
                yield kit, server
            server.signal(signal.SIGKILL)
            server.process.wait()

    def _file(self) -> Path:
        return max(self.data.glob("appendonlydir/*.incr.aof"))

    def written(self) -> int:
        """How long the append-only file is."""
        return self._file().stat().st_size

    def cut(self, length: int) -> None:
        """Have the append-only file end there."""
        os.truncate(self._file(), length)

    def back_up(self) -> None:
        """Copy the files of a server that runs."""
        shutil.copytree(self.data, self.backup)

    def restore(self) -> None:
        """Put the copy in the place of what the server has written since."""
        shutil.rmtree(self.data)
        self.backup.rename(self.data)

    async def settle(self, kit: MeterKit) -> FlushReport:
        """Deliver all that may be, however long that takes."""
        for _ in range(5):
            await kit.flush(everything=True, timeout_s=0)
            self.clock.advance(timedelta(minutes=3))
        return await kit.flush(everything=True, timeout_s=0)

    def billed(self, customer: str, event_name: str = "api_requests") -> int:
        return int(self.emulator.accepted(f"cus_{customer}", event_name))


async def linked(kit: MeterKit) -> None:
    """Link all customers, and have the store be delivered from."""
    for customer in CUSTOMERS:
        await kit.customers.link(customer, f"cus_{customer}", force=True)
    await kit.flush()
