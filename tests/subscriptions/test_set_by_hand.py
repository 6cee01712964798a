"""What is set by hand beside a subscription, and what another plans file brings to those who have one."""

from __future__ import annotations

import pytest

from drivers.delivery import kit_for
from drivers.shop import PLANS, shop
from meterkit.catalog import loads
from meterkit.errors import UnknownPlanError

pytestmark = pytest.mark.anyio


async def test_a_plan_that_was_set_by_hand_is_taken_back_by_hand(store_url: str) -> None:
    async with shop(store_url) as at:
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
        entered = [
            (line.before, line.after) for line in await customers.history("acme") if line.kind == "plan"
        ]
        assert entered[-2:] == [("team", "pro"), ("pro", "team")]


@pytest.mark.parametrize(("plan", "expected"), [(None, "free"), ("pro", "pro")])
async def test_incomplete_set_by_hand_restricts_nothing(
    store_url: str, plan: str | None, expected: str
) -> None:
    # F-22g
    async with shop(store_url) as at:
        await at.subscribed(plan="team")
        for customer in ("acme", "eve"):
            await at.kit.customers.set_plan(customer, plan)
            found = await at.kit.customers.set_status(customer, "incomplete")
            assert (found.plan, found.status, found.access) == (expected, "incomplete", "full")
            assert (await at.kit.usage(customer))["plan"] == expected
        assert (await at.kit.customers.set_status("acme", None)).plan == (plan or "team")


async def test_without_a_subscription_it_is_the_default_plan_again(store_url: str) -> None:
    async with shop(store_url) as at:
        await at.kit.customers.set_plan("ada", "pro")
        assert (await at.kit.customers.set_plan("ada", None)).plan == "free"
        with pytest.raises(UnknownPlanError):
            await at.kit.customers.set_plan("ada", "")


async def test_a_new_plans_file_reaches_customers_when_looked_at(
    store_url: str,
) -> None:
    """Each night, for those who are linked; see docs/lifecycle.md."""
    generous = loads(PLANS.replace("default_plan: free", "default_plan: team"))
    async with shop(store_url) as at:
        await at.subscribed(plan="pro")
        await at.kit.subscriptions.cancel("acme", immediately=True)
        async with kit_for(store_url, at.url, clock=at.clock, catalog=generous) as kit:
            assert (await kit.customers.get("acme")).plan == "team"  # It binds at once.
            await kit.subscriptions.sync("acme")
            entered = [line for line in await kit.customers.history("acme") if line.kind == "plan"]
            last = entered[-1]
            assert (last.before, last.after, last.cause) == ("free", "team", "plans_file")
            await kit.subscriptions.sync("acme")
            assert len([line for line in await kit.customers.history("acme") if line.kind == "plan"]) == len(
                entered
            )
