"""F-22c: a recurring grant that outlives its period is given though nothing was used in that period."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.subscribed_customer import fetched, subscription
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

JUNE: Final = datetime(2031, 6, 10, 12, tzinfo=UTC)
JULY, AUGUST, SEPTEMBER = (JUNE.replace(month=month) for month in (7, 8, 9))
PLANS: Final = """
schema: 1
currency: usd
default_plan: none
meters: {tokens: {unit: token}}
credits: {ai: {costs: {tokens: 1 per 1}}}
plans:
  none: {price: {amount_cents: 0, interval: month}, meters: {tokens: {included: 0, overage: deny}}}
  kept: {extends: none, grants: [{credit: ai, quantity: 100, every: period, expires: 61d}]}
  more: {extends: none, grants: [{credit: ai, quantity: 300, every: period, expires: 61d}]}
"""


@asynccontextmanager
async def kit_at(url: str, clock: Clock, text: str = PLANS) -> AsyncGenerator[MeterKit]:
    async with MeterKit(
        loads(text), clock=clock, redis_url=url, flush=False, shards=4, store_timeout=10.0
    ) as kit:
        yield kit


async def balance_of(kit: MeterKit, customer: str = "acme") -> int:
    """The balance as it is shown; decisions know the same."""
    shown = (await kit.usage(customer))["balance"]["ai"]
    assert (await kit.check(customer, "tokens", max(1, shown))).allowed == (shown > 0)
    assert not (await kit.check(customer, "tokens", shown + 1)).allowed
    return shown


async def starts_of(kit: MeterKit, customer: str = "acme") -> list[tuple[str, int, int]]:
    """The grants with their periods, the quantity and the rest."""
    return [
        (f"{grant.effective_at:%b}", grant.quantity, grant.remaining)
        for grant in await kit.grants.list(customer)
    ]


async def test_grants_of_periods_without_use_count_until_they_expire(store_url: str) -> None:
    clock = Clock(JUNE)
    async with kit_at(store_url, clock) as kit:
        await kit.customers.set_plan("acme", "kept")
        clock.set(JULY)
        assert await balance_of(kit) == 200
        assert (await kit.consume("acme", "tokens", 130)).allowed
        assert await starts_of(kit) == [("Jun", 100, 0), ("Jul", 100, 70)]
        clock.set(SEPTEMBER)  # That of June has expired; in August nothing was used.
        assert await balance_of(kit) == 200
        await kit.record("acme", "tokens", 1)
        assert await starts_of(kit) == [("Aug", 100, 99), ("Sep", 100, 100), ("Jun", 100, 0), ("Jul", 100, 0)]
        lines = await kit.grants.ledger("acme")
        assert sum(line.quantity for line in lines) == 199 * 10**6


async def test_a_subscription_gets_them_from_its_beginning_on(store_url: str) -> None:
    clock = Clock(JUNE)
    async with kit_at(store_url, clock) as kit:
        first = subscription(plan="kept", start_ms=JUNE, end_ms=JULY, anchor_ms=JUNE, created_ms=JUNE)
        clock.set(JUNE + timedelta(days=2))
        await fetched(kit, first)
        assert await balance_of(kit) == 100
        clock.set(JULY + timedelta(days=1))  # Before any word of the renewal.
        assert await balance_of(kit) == 200
        clock.set(AUGUST + timedelta(days=1))
        assert await balance_of(kit) == 200
        gone = subscription(
            plan="kept",
            start_ms=JULY,
            end_ms=AUGUST,
            anchor_ms=JUNE,
            created_ms=JUNE,
            status="canceled",
            ended_at_ms=AUGUST,
        )
        await fetched(kit, gone)
        assert await balance_of(kit) == 100  # Of its last period.
