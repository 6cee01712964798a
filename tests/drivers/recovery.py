"""A store that came back with less, and `meterkit recover` as a test calls it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from drivers.delivery import aclosing_transport
from drivers.restorable_kit import CUSTOMERS, House
from meterkit.delivery.recovering import Recoverer
from meterkit.delivery.summaries import StripeSummaries
from meterkit.insights.audit.calls import audit_database_of
from meterkit.insights.audit.draining import drainer_of
from meterkit.insights.audit.rebuilding import Rebuilder
from meterkit.outbox.intents import Sealed
from meterkit.stripe.api import StripeApi
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from datetime import datetime
    from pathlib import Path

    from meterkit import MeterKit
    from meterkit.delivery.recovering import Recovered
    from meterkit.insights.audit.rebuilt import Rebuilt


class Told(NamedTuple):
    """What recovering has said."""

    recovered: Sequence[Recovered]
    rebuilt: Sequence[Rebuilt]


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
        await drainer_of(kit.store, kit.settings).drain()


async def recover(kit: MeterKit) -> Told:
    """What ``meterkit recover`` does."""
    summaries = StripeSummaries(StripeApi(kit.settings))
    try:
        recoverer = Recoverer(kit.store, summaries, audit_database_of(kit.settings))
        assert await recoverer.not_compared() == 0
        recovered = await recoverer.recover()
        if kit.settings.audit_url is None:
            return Told(recovered, ())
        rebuilder = Rebuilder(kit.store, drainer_of(kit.store, kit.settings), summaries)
        return Told(recovered, await rebuilder.rebuild())
    finally:
        await summaries.close()


async def hours_later(house: House, kit: MeterKit) -> None:
    """Have what may be at Stripe compared, twice, and all that waits delivered."""
    for _ in range(2):
        house.clock.advance(timedelta(hours=2, minutes=10))
        await house.settle(kit)


async def elsewhere_sent(house: House, units: int) -> None:
    """Have another system send an event for the same customer and meter."""
    timestamp = int(house.clock()) // 60 * 60
    event = Sealed(
        identifier="elsewhere",
        customer="acme",
        stripe_customer="cus_acme",
        period="0",
        meter_token="",
        event_name="api_requests",
        value=units,
        timestamp=timestamp,
        key="elsewhere",
        sealed_ms=0,
        due_ms=0,
    )
    async with aclosing_transport(house.stripe, clock=house.clock) as transport:
        assert (await transport.send(event)).delivered
