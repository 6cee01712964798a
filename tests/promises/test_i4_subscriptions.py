"""I4: what is scheduled in a subscription binds at its millisecond, in every process, before any webhook."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from drivers.subscribed_customer import END, INSTANT, NOW, fetched, kit_of, subscription
from meterkit import MeterKit
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

ADMITTED = "admitted"


class Pair:
    """A kit that is told of the subscription, and another on the same store that knew the customer before."""

    def __init__(self, told: MeterKit, other: MeterKit, clock: Clock) -> None:
        self.told, self.other, self.clock = told, other, clock

    async def decide(self, quantity: int = 20) -> tuple[str | None, str]:
        """The plan that the other one decides by, and why it refuses more than the default plan includes."""
        decision = await self.other.check("acme", "requests", quantity)
        return decision.plan, decision.reason or ADMITTED

    def at(self, moment: datetime) -> None:
        self.clock.set(moment)


@asynccontextmanager
async def pair(url: str) -> AsyncGenerator[Pair]:
    clock = Clock(NOW)
    async with kit_of(url, clock) as told, kit_of(url, clock) as other:
        yield Pair(told, other, clock)


DAY = timedelta(days=1)
SERVED, FREE, SUSPENDED = ("pro", ADMITTED), ("free", "included"), ("pro", "suspended")


@pytest.mark.parametrize(
    ("changed", "turn", "before", "after"),
    [
        pytest.param({"cancel_at_ms": END}, END, SERVED, FREE, id="cancellation"),
        pytest.param({"status": "trialing", "trial_end_ms": END, "trial_end_action": "cancel"}, END, SERVED,
                     FREE, id="trial that ends it"),
        pytest.param({"status": "trialing", "trial_end_ms": END, "trial_end_action": "pause"}, END, SERVED,
                     FREE, id="trial that pauses it"),
        pytest.param({"pending_plan": "free", "pending_at_ms": END}, END, SERVED, FREE, id="downgrade"),
        pytest.param({"plan": "free", "pending_plan": "pro", "pending_at_ms": END}, END, FREE, SERVED,
                     id="upgrade"),
        pytest.param({"status": "past_due", "failures": 1, "failed_at_ms": NOW}, NOW + 7 * DAY, SERVED, FREE,
                     id="end of grace"),
        pytest.param({"status": "past_due", "failures": 1, "failed_at_ms": NOW}, NOW + 14 * DAY, FREE,
                     SUSPENDED, id="suspension"),
        pytest.param({"status": "past_due", "failures": 3, "failed_at_ms": NOW}, NOW + 14 * DAY, FREE,
                     SUSPENDED, id="suspension after the third failure"),
    ],
)  # fmt: skip
async def test_i4_a_scheduled_change_binds_at_its_millisecond(
    store_url: str, changed: dict[str, Any], turn: datetime, before: tuple[str, str], after: tuple[str, str]
) -> None:
    async with pair(store_url) as at:
        await fetched(at.told, subscription(**changed))
        await at.decide()
        at.at(turn - INSTANT)
        assert (await at.decide(), (await at.other.usage("acme"))["plan"]) == (before, before[0])
        at.at(turn)
        assert (await at.decide(), (await at.other.usage("acme"))["plan"]) == (after, after[0])
        assert (await at.other.customers.get("acme")).plan == after[0]


async def test_i4_a_fetched_failure_binds_other_processes_at_once(store_url: str) -> None:
    async with pair(store_url) as at:
        active = subscription()
        failing = replace(active, status="past_due", failures=1, failed_at_ms=at.told.store.now_ms())
        steps = [
            (active, SERVED),
            (failing, SERVED),
            (replace(failing, failures=2), SERVED),
            (replace(failing, failures=3), FREE),
            (replace(failing, status="unpaid", failures=4), SUSPENDED),
            (active, SERVED),
            (replace(active, status="canceled", ended_at_ms=failing.failed_at_ms), FREE),
            (None, FREE),
        ]
        for found, expected in steps:
            await fetched(at.told, found)
            assert await at.decide() == expected, found


async def test_i4_the_period_turns_before_the_renewals_webhook(store_url: str) -> None:
    async with pair(store_url) as at:
        await fetched(at.told, subscription())
        assert (await at.other.consume("acme", "requests", 100)).allowed
        at.at(END - INSTANT)
        assert (await at.other.consume("acme", "requests", 1)).allowed  # Of the plan's credits.
        usage = await at.other.usage("acme")
        assert (usage["period"]["end"], usage["period"]["provisional"]) == (END, False)
        at.at(END)
        assert (await at.other.consume("acme", "requests", 100)).allowed
        usage = await at.other.usage("acme")
        assert (usage["period"]["start"], usage["period"]["provisional"]) == (END, True)
        assert usage["meters"]["requests"]["recorded"] == 100


async def test_i4_seats_that_are_paid_for_may_be_used_at_once(store_url: str) -> None:
    async with pair(store_url) as at:
        await fetched(at.told, subscription(seats=12, pending_seats=11, pending_at_ms=END))
        await at.other.gauges.set("acme", "seats", 11)
        assert (await at.other.check("acme", "seats", 1)).allowed
        assert not (await at.other.check("acme", "seats", 2)).allowed
        at.at(END)
        assert (await at.other.check("acme", "seats", 1)).reason == "seats"
