"""A server whose files can be put back, a Stripe emulator and one clock: what tests of restores hold."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from drivers.delivery import aclosing_transport, kit_for, send_past, summaries_of
from meterkit import MeterKit
from meterkit.delivery.flush_report import FlushReport
from meterkit.delivery.restore_recovery import RecoveredMeter, RestoreRecoverer
from meterkit.insights.audit.async_database import open_audit_database
from meterkit.insights.audit.draining import open_drainer
from meterkit.insights.audit.rebuild_results import RebuildResult
from meterkit.insights.audit.rebuilding import CounterRebuilder
from meterkit.testing import Clock, StripeEmulator
from servers.stores import Server, free_port, spawn_server

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
    async def open(
        self, requests: int | None = None, **settings: Any
    ) -> AsyncGenerator[tuple[MeterKit, Server]]:
        """The store, until it is killed; with linked customers if acme has used requests."""
        with spawn_server(*KEEPS, port=self.port, directory=self.data) as server:
            async with kit_for(server.url, self.stripe, clock=self.clock, **settings) as kit:
                if requests is not None:
                    await linked(kit)
                    await kit.record("acme", "requests", requests)
                yield kit, server
            server.signal(signal.SIGKILL)
            server.process.wait()

    def _file(self) -> Path:
        return max(self.data.glob("appendonlydir/*.incr.aof"))

    def written(self) -> int:
        return self._file().stat().st_size

    def cut(self, length: int) -> None:
        os.truncate(self._file(), length)

    def back_up(self) -> None:
        shutil.copytree(self.data, self.backup)

    async def deliver_after_back_up(self, kit: MeterKit, units: int) -> None:
        """Back up, and five minutes later deliver more units of acme, with all that was pending."""
        self.back_up()
        self.clock.advance(timedelta(minutes=5))
        await kit.record("acme", "requests", units)
        assert (await kit.flush(everything=True)).delivered == 1

    def restore(self, after: timedelta = timedelta()) -> None:
        """Put the copy in the place of what the server has written since, when that time has passed."""
        self.clock.advance(after)
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
    for customer in CUSTOMERS:
        await kit.customers.link(customer, f"cus_{customer}", force=True)
    await kit.flush()


class Told(NamedTuple):
    recovered: Sequence[RecoveredMeter]
    rebuilt: Sequence[RebuildResult]


@asynccontextmanager
async def house_at(tmp_path: Path, start: datetime) -> AsyncGenerator[House]:
    clock = Clock(start)
    emulator = StripeEmulator(clock=clock, summary_lag_s=60)
    for customer in CUSTOMERS:
        emulator.add_customer(f"cus_{customer}")
    async with emulator.serve() as url:
        yield House(tmp_path, url, emulator, clock)


def settings_of(tmp_path: Path, *, audited: bool) -> dict[str, Any]:
    return {"audit_url": f"sqlite:///{tmp_path}/audit.db"} if audited else {}


async def drained(kit: MeterKit) -> None:
    """Have what waits for the audit database written to it, as happens every two seconds."""
    if kit.settings.audit_url is not None:
        await open_drainer(kit.store, kit.settings).drain()


async def recover(kit: MeterKit) -> Told:
    """What ``meterkit recover`` does."""
    async with summaries_of(kit) as summaries:
        recoverer = RestoreRecoverer(kit.store, summaries, open_audit_database(kit.settings))
        assert await recoverer.not_compared() == 0
        recovered = await recoverer.recover()
        if kit.settings.audit_url is None:
            return Told(recovered, ())
        rebuilder = CounterRebuilder(kit.store, open_drainer(kit.store, kit.settings), summaries)
        return Told(recovered, await rebuilder.rebuild())


async def hours_later(house: House, kit: MeterKit) -> None:
    """Have what may be at Stripe compared, twice, and all that waits delivered."""
    for _ in range(2):
        house.clock.advance(timedelta(hours=2, minutes=10))
        await house.settle(kit)


async def elsewhere_sent(house: House, units: int) -> None:
    """Have another system send an event for the same customer and meter."""
    async with aclosing_transport(house.stripe, clock=house.clock) as transport:
        await send_past(transport, units, house.clock.now())
