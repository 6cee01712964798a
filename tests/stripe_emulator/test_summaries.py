"""Summaries: what Stripe has counted, as reconciliation reads it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drivers.emulated_account import account
from drivers.emulated_shop import refused
from drivers.emulated_times import DAY, HOUR
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECOND = int(NOON.timestamp())


class Books:
    """A meter, its customer, and a client that writes and reads."""

    def __init__(self, client: Any, *, meter: str, clock: Clock) -> None:
        self.clock = clock
        self._client = client
        self._meter = meter
        self._sent = 0

    async def send(self, value: str, *, at: int, customer: str = "cus_1") -> None:
        self._sent += 1
        await self._client.billing.meter_events.create(
            event_name="calls",
            identifier=f"i{self._sent}",
            payload={"stripe_customer_id": customer, "value": value},
            timestamp=at,
        )

    async def cancel(self, number: int, *, event_name: str = "calls") -> Any:
        """Cancel the event that was sent as that; the status of it."""
        adjustment = await self._client.billing.meter_event_adjustments.create(
            type="cancel", event_name=event_name, cancel={"identifier": f"i{number}"}
        )
        return adjustment.status

    async def read(self, start: int, end: int, **more: Any) -> list[tuple[int, int, float]]:
        params: Any = {"customer": "cus_1", "start_time": start, "end_time": end, **more}
        page = await self._client.billing.meters.event_summaries.list(self._meter, **params)
        return [
            (item.start_time - SECOND, item.end_time - SECOND, item.aggregated_value)
            async for item in page.auto_paging_iter()
        ]


@asynccontextmanager
async def books(
    *, formula: str = "sum", time_window: str | None = None, summary_lag_s: float = 0.0
) -> AsyncGenerator[Books]:
    clock = Clock(NOON)
    emulator = StripeEmulator(clock=clock, summary_lag_s=summary_lag_s)
    emulator.add_customer("cus_1")
    emulator.add_customer("cus_2")
    meter = emulator.add_meter("calls", formula=formula, time_window=time_window)
    async with account(emulator) as client:
        yield Books(client, meter=meter, clock=clock)


async def test_start_is_inside_and_end_is_outside() -> None:
    async with books() as book:
        for value, at in (("1", -1), ("10", 0), ("100", 59), ("1000", 60)):
            await book.send(value, at=SECOND + at)
        await book.send("7", at=SECOND, customer="cus_2")
        assert await book.read(SECOND, SECOND + 60) == [(0, 60, 110.0)]


@pytest.mark.parametrize(
    ("start", "end", "grouping", "message"),
    [
        (1, 60, None, "start_time must be aligned with the start of a minute"),
        (0, 61, None, "end_time must be aligned with the start of a minute"),
        (60, 2 * HOUR, "hour", "start_time must be aligned with the start of an hour"),
        (0, DAY, "day", "start_time must be aligned with the start of a day, 00:00 UTC"),
        (60, 60, None, "end_time must be after start_time"),
        (0, HOUR, "week", "Invalid value_grouping_window: must be one of hour, day"),
    ],
)
async def test_bounds_are_aligned(start: int, end: int, grouping: str | None, message: str) -> None:
    more = {"value_grouping_window": grouping} if grouping else {}
    async with books() as book:
        await refused(book.read(SECOND + start, SECOND + end, **more), message)


@pytest.mark.parametrize(("formula", "expected"), [("sum", 12.0), ("count", 3.0), ("last", 7.0)])
async def test_formulas(formula: str, expected: float) -> None:
    async with books(formula=formula) as book:
        for value, at in (("2", 0), ("7", 30), ("3", 10)):
            await book.send(value, at=SECOND + at)
        assert await book.read(SECOND, SECOND + 60) == [(0, 60, expected)]


async def test_pre_aggregated_meter_keeps_what_came_last() -> None:
    async with books(time_window="hour") as book:
        for value, at in (("2", 0), ("7", 30), ("3", 10), ("5", -1)):
            await book.send(value, at=SECOND + at)
        assert await book.read(SECOND - HOUR, SECOND + HOUR) == [(-HOUR, HOUR, 8.0)]


async def test_an_event_is_cancelled_within_24_hours() -> None:
    """https://docs.stripe.com/api/billing/meter-event-adjustment/create."""
    async with books() as book:
        for value in ("10", "100"):
            await book.send(value, at=SECOND)
        book.clock.advance(timedelta(hours=24))
        assert await book.cancel(1) == "pending"
        assert await book.read(SECOND, SECOND + 60) == [(0, 60, 100.0)]
        await book.cancel(1)  # Again: it stays so.
        assert await book.read(SECOND, SECOND + 60) == [(0, 60, 100.0)]
        await refused(book.cancel(3), "No event of calls with identifier i3")
        await refused(book.cancel(2, event_name="tokens"), "No event of tokens with identifier i2")
        book.clock.advance(timedelta(seconds=1))
        await refused(book.cancel(2), "was received within 24 hours")
        assert await book.read(SECOND, SECOND + 60) == [(0, 60, 100.0)]
