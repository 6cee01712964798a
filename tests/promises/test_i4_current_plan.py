"""I4: a change of plan, status, override or link, and the end of a grace, bind the very next decision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal

import pytest

from drivers.delivery import NOW, desk
from drivers.plans import free_plan
from drivers.workers import Worker, workers
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = free_plan(
    "{requests: {unit: request}, tokens: {unit: token}}",
    """{requests: {included: 5, overage: deny}, tokens: {rate: 1/hour}}
  pro:
    rank: 10
    price: {amount_cents: 2900, interval: month}
    meters: {requests: {included: 100, overage: deny}, tokens: {rate: 100/hour}}""",
    """routes: [{match: "*", consume: {requests: 1}}]
dunning: {grace: 7d, restrict_to: default_plan, suspend_after: 14d}""",
)


class Others:
    """Processes that know a customer already, and the one that changes it."""

    def __init__(self, kit: MeterKit, clock: Clock, warm: list[Worker]) -> None:
        self.kit = kit
        self.clock = clock
        self.warm = warm

    async def decide(self, meter: str = "requests", *, quantity: int = 1) -> list[str]:
        """What each of the others decides next, one after the other: a reason, or ``admitted``."""
        answers = [
            await other.ask("consume", customer="acme", meter=meter, quantity=quantity) for other in self.warm
        ]
        return [reason for answer in answers for reason in answer]

    async def now(self, after: timedelta) -> None:
        self.clock.set(NOW + after)
        at = self.clock.now().isoformat()
        await asyncio.gather(*(other.ask("now", at=at) for other in self.warm))


@pytest.fixture(scope="module")
async def warm(valkey: Server) -> AsyncIterator[list[Worker]]:
    async with workers(3, store=valkey.url, plans=PLANS, now=NOW.isoformat()) as started:
        yield started


@asynccontextmanager
async def others(store_url: str, warm: list[Worker], plan: str) -> AsyncGenerator[Others]:
    clock = Clock(NOW)
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=clock, shards=4, store_timeout=60.0) as kit:
        found = Others(kit, clock, warm)
        await found.now(timedelta(0))
        if plan != "free":
            await kit.customers.set_plan("acme", plan)
        assert await found.decide() == ADMITTED
        yield found


ADMITTED = ["admitted"] * 3


@pytest.mark.parametrize(
    ("plan", "change", "to", "before", "after"),
    [
        pytest.param("free", "set_plan", "pro", "included", "admitted", id="upgrade"),
        pytest.param("pro", "set_plan", "free", "admitted", "included", id="downgrade"),
        pytest.param("pro", "set_status", "unpaid", "admitted", "suspended", id="unpaid"),
        pytest.param("pro", "set_status", "canceled", "admitted", "included", id="canceled"),
        pytest.param("pro", "set_status", "paused", "admitted", "included", id="paused"),
        pytest.param("free", "override", {"requests": {"included": 50}}, "included", "admitted", id="raised"),
        pytest.param("pro", "override", {"requests": {"included": 9}}, "admitted", "included", id="lowered"),
    ],
)
async def test_i4_a_change_binds_the_next_decision_of_other_processes(
    store_url: str,
    warm: list[Worker],
    plan: str,
    change: Literal["set_plan", "set_status", "override"],
    to: Any,
    before: str,
    after: str,
) -> None:
    async with others(store_url, warm, plan) as at:
        assert await at.decide(quantity=4) == [before] * 3
        await getattr(at.kit.customers, change)("acme", to)
        assert await at.decide(quantity=4) == [after] * 3


async def test_i4_a_status_and_back(store_url: str, warm: list[Worker]) -> None:
    async with others(store_url, warm, "pro") as at:
        for _ in range(3):
            await at.kit.customers.set_status("acme", "unpaid")
            assert await at.decide() == ["suspended"] * 3
            await at.kit.customers.set_status("acme", "active")
            assert await at.decide() == ADMITTED


async def test_i4_the_end_of_a_grace_binds_by_the_clock_alone(store_url: str, warm: list[Worker]) -> None:
    async with others(store_url, warm, "pro") as at:
        instant = timedelta(milliseconds=1)
        await at.kit.customers.set_status("acme", "past_due")
        assert await at.decide(quantity=4) == ADMITTED
        await at.now(timedelta(days=7) - instant)
        assert await at.decide(quantity=4) == ADMITTED
        await at.now(timedelta(days=7))
        assert await at.decide(quantity=4) == ["included"] * 3  # Restricted to the default plan.
        assert await at.decide("tokens") == ["admitted", "rate", "rate"]
        await at.now(timedelta(days=14) - instant)
        assert await at.decide(quantity=4) == ["included"] * 3
        await at.now(timedelta(days=14))
        assert await at.decide() == ["suspended"] * 3
        assert (await at.kit.customers.get("acme")).access == "suspended"


async def test_i4_a_period_ends_by_the_clock_alone(store_url: str, warm: list[Worker]) -> None:
    async with others(store_url, warm, "free") as at:
        assert await at.decide(quantity=2) == ["admitted", "included", "included"]
        await at.now(NOW.replace(month=7, day=1, hour=0, minute=0, second=0) - NOW)
        assert await at.decide(quantity=2) == ["admitted", "admitted", "included"]


async def test_i4_a_link_binds_the_next_settlement_of_other_processes(store_url: str) -> None:
    async with desk(store_url) as at, workers(2, store=store_url, now=NOW.isoformat()) as linked:
        for other in linked:
            await other.ask("consume", customer="acme", meter="requests", quantity=2)
        assert (await at.flush(everything=True)).unlinked == ["acme"]
        await at.link("acme")
        for n, other in enumerate(linked):
            await other.ask("consume", customer="acme", meter="requests", quantity=5)
            report = await at.flush(everything=True)
            assert (report.left, report.unlinked, at.accepted("acme")) == (0, [], 4 + 5 * (n + 1))
