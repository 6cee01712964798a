"""What is set by hand beside a subscription, or before an unpaid one."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from subscriptions.looks import synced

if TYPE_CHECKING:
    from drivers.shop import Shop

pytestmark = pytest.mark.anyio


async def test_a_plan_that_was_set_by_hand_is_taken_back_by_hand(at: Shop) -> None:
    customers = at.kit.customers
    await at.subscribed(plan="team")
    assert (await customers.set_plan("acme", "pro")).plan == "pro"
    assert await at.kit.allows("acme", "full")
    await at.kit.subscriptions.sync("acme")  # The same again: what was set by hand stands.
    assert (await customers.get("acme")).plan == "pro"
    asked = len(at.emulator.requests)
    assert (await customers.set_plan("acme", None)).plan == "team"
    assert not await at.kit.allows("acme", "full")
    assert len(at.emulator.requests) == asked
    entered = [(line.before, line.after) for line in await customers.history("acme") if line.kind == "plan"]
    assert entered[-2:] == [("team", "pro"), ("pro", "team")]


@pytest.mark.parametrize(("plan", "expected"), [(None, "free"), ("pro", "pro")])
async def test_incomplete_set_by_hand_restricts_nothing(at: Shop, plan: str | None, expected: str) -> None:
    # F-22g
    await at.subscribed(plan="team")
    for customer in ("acme", "eve"):
        await at.kit.customers.set_plan(customer, plan)
        found = await at.kit.customers.set_status(customer, "incomplete")
        assert (found.plan, found.status, found.access) == (expected, "incomplete", "full")
        assert (await at.kit.usage(customer))["plan"] == expected
    assert (await at.kit.customers.set_status("acme", None)).plan == (plan or "team")


OVERRIDE = {"requests": {"included": 7}}


async def in_force(at: Shop) -> tuple[str, str, object]:
    """The plan, the access, and what is included of the meter that is overridden."""
    customer, usage = await at.kit.customers.get("acme"), await at.kit.usage("acme")
    return customer.plan, customer.access, usage["meters"]["requests"]["included"]


async def test_an_unpaid_signup_keeps_what_was_set_by_hand(at: Shop) -> None:
    """F-110."""
    await at.kit.customers.set_plan("acme", "pro")
    await at.kit.customers.override("acme", OVERRIDE)
    before = await in_force(at)
    assert before == ("pro", "full", 7)
    made = await at.kit.subscriptions.create("acme", "team")
    assert (made.subscription.status, made.subscription.access) == ("incomplete", "full")
    assert await in_force(at) == before

    at.clock.advance(timedelta(hours=24))
    ended = await synced(at)
    assert ended.status == "incomplete_expired"
    assert await in_force(at) == before
    await at.subscribed(plan="team")  # The first payment ends what was set by hand.
    assert (await in_force(at))[:2] == ("team", "full")
