"""Looks at the closes of billing periods, as a process makes them that delivers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from meterkit.delivery.closing import Closer
from meterkit.insights.store_readings import read_deliveries
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.delivery import Desk

JULY: Final = datetime(2031, 7, 1, tzinfo=UTC)


class Closing:
    """Looks at closes as a process does that delivers."""

    def __init__(self, at: Desk) -> None:
        self._at = at
        self.api = StripeApi(at.kit.settings)
        self.closer = Closer(at.kit.store, lambda: self.api)

    async def at(self, minutes: int) -> tuple[int, int, int]:
        """Look so many minutes after June; how many are confirmed, open and late now."""
        self._at.clock.set(JULY + timedelta(minutes=minutes))
        confirmed, left, late = await self.closer.look()
        return confirmed, left, len(late)

    async def unconfirmed(self) -> tuple[int, float]:
        """How many closes the metrics count, and for how long the oldest period is over."""
        found = (await read_deliveries(self._at.kit.store))["unconfirmed"]
        return found.items, found.age_s


@asynccontextmanager
async def closing_of(at: Desk) -> AsyncGenerator[Closing]:
    """What looks at the closes of a kit."""
    closing = Closing(at)
    try:
        yield closing
    finally:
        await closing.api.close()
