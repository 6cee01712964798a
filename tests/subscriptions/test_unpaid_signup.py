"""An unpaid subscription changes neither the plan in force nor what was set by hand."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.customer_states import CustomerState, with_subscription
from drivers.shop import shop
from drivers.subscribed_customer import subscription

if TYPE_CHECKING:
    from drivers.shop import Shop

pytestmark = pytest.mark.anyio

OVERRIDE = {"requests": {"included": 7}}


async def in_force(at: Shop) -> tuple[str, str, object]:
    """The plan, the access, and what is included of the meter that is overridden."""
    customer, usage = await at.kit.customers.get("acme"), await at.kit.usage("acme")
    return customer.plan, customer.access, usage["meters"]["requests"]["included"]


async def test_an_unpaid_signup_keeps_what_was_set_by_hand(store_url: str) -> None:
    """F-110."""
    async with shop(store_url) as at:
        await at.kit.customers.set_plan("acme", "pro")
        await at.kit.customers.override("acme", OVERRIDE)
        before = await in_force(at)
        assert before == ("pro", "full", 7)
        made = await at.kit.subscriptions.create("acme", "team")
        assert (made.subscription.status, made.subscription.access) == ("incomplete", "full")
        assert await in_force(at) == before

        at.clock.advance(timedelta(hours=24))
        ended = await at.kit.subscriptions.sync("acme")
        assert ended is not None
        assert ended.status == "incomplete_expired"
        assert await in_force(at) == before


async def test_an_unpaid_signup_does_not_restrict_the_default_plan(store_url: str) -> None:
    async with shop(store_url) as at:
        before = await in_force(at)
        await at.kit.subscriptions.create("acme", "pro", 12)
        assert await in_force(at) == before == ("free", "full", 10)
        assert (await at.kit.usage("acme"))["meters"]["seats"]["included"] == 3


async def test_the_first_payment_ends_what_was_set_by_hand(store_url: str) -> None:
    async with shop(store_url) as at:
        await at.kit.customers.set_plan("acme", "pro")
        await at.subscribed(plan="team")
        assert (await in_force(at))[:2] == ("team", "full")


async def test_a_plan_set_after_an_end_survives_the_next_unpaid_signup(store_url: str) -> None:
    async with shop(store_url) as at:
        await at.subscribed(plan="team")
        await at.kit.subscriptions.cancel("acme", immediately=True)
        await at.kit.customers.set_plan("acme", "pro")
        at.clock.advance(timedelta(seconds=1))  # Of two that began in one second either may be the younger.
        await at.kit.subscriptions.create("acme", "team", 8)
        assert (await in_force(at))[0] == "pro"
        await at.kit.subscriptions.cancel("acme")
        assert (await in_force(at))[0] == "pro"


def test_an_unpaid_signup_does_not_restore_an_earlier_plan() -> None:
    """The plan was set while the first subscription was active, so it ends with that one."""
    state = CustomerState(plan="top", status="active", subscription=subscription(id="sub_1"))
    found = with_subscription(state, subscription(id="sub_2", status="incomplete"))
    assert (found.plan, found.status) == (None, None)


@pytest.mark.parametrize("after", ["incomplete_expired", "canceled", None])
def test_the_end_of_an_unpaid_signup_keeps_what_was_set_by_hand(after: str | None) -> None:
    state = CustomerState(
        plan="top", status="active", status_since_ms=5, subscription=subscription(status="incomplete")
    )
    ended = None if after is None else subscription(status=after, never_began=after == "canceled")
    found = with_subscription(state, ended)
    assert (found.plan, found.status, found.status_since_ms) == ("top", "active", 5)
    assert found.subscription == ended
