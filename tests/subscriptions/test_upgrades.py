"""Upgrades whose payment is refused, or wants its customer: nothing is had for nothing, nothing is lost."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from meterkit.catalog import loads
from meterkit.errors import StripeError
from shopping import END, HALF, PLANS, shop

if TYPE_CHECKING:
    from shopping import Shop

pytestmark = pytest.mark.anyio

# A third plan above the others, so that one can go up from where a downgrade is scheduled.
THREE = loads(PLANS.replace("rank: 7", "rank: 20").replace("amount_cents: 2000", "amount_cents: 9000"))
NEEDS_CUSTOMER = "pm_card_authenticationRequired"


async def linked(at: Shop) -> str:
    found = (await at.kit.customers.get("acme")).stripe_customer
    assert found is not None
    return found


async def authenticating(at: Shop, subscription: str) -> None:
    """Have the subscription be charged with a card whose customer has to confirm each payment."""
    card = at.emulator.add_payment_method(await linked(at), NEEDS_CUSTOMER)
    await at.stripe_change(f"/v1/subscriptions/{subscription}", default_payment_method=card)


async def test_a_downgrade_that_is_scheduled_stays_where_an_upgrade_is_not_paid(store_url: str) -> None:
    async with shop(store_url, catalog=THREE) as at:
        await at.subscribed(plan="pro")
        down = await at.kit.subscriptions.change_plan("acme", "team")
        at.emulator.fail_payments(await linked(at))
        with pytest.raises(StripeError):
            await at.kit.subscriptions.change_plan("acme", "tried")
        found = await at.kit.subscriptions.sync("acme")
        assert found is not None
        assert (found.plan, found.pending_change) == ("pro", down.subscription.pending_change)
        at.clock.set(END)
        at.emulator.advance()
        assert "price_team" in await at.items(found.id)


async def test_an_upgrade_that_is_paid_takes_a_scheduled_downgrade_back(store_url: str) -> None:
    async with shop(store_url, catalog=THREE) as at:
        await at.subscribed(plan="pro")
        await at.kit.subscriptions.change_plan("acme", "team")
        at.clock.set(HALF)
        up = await at.kit.subscriptions.change_plan("acme", "tried")
        assert (up.subscription.plan, up.subscription.pending_change) == ("tried", None)
        at.clock.set(END)
        at.emulator.advance()
        assert "price_tried" in await at.items(up.subscription.id)


async def test_an_upgrade_whose_schedule_was_not_released_is_finished_by_asking_again(store_url: str) -> None:
    async with shop(store_url, catalog=THREE) as at:
        begun = await at.subscribed(plan="pro")
        await at.kit.subscriptions.change_plan("acme", "team")
        schedule = (await at.stripe_subscription(begun.id))["schedule"]
        path = f"/v1/subscription_schedules/{schedule}/release"
        at.emulator.fail_next("error", status=400, path=path)
        with pytest.raises(StripeError):
            await at.kit.subscriptions.change_plan("acme", "tried")
        found = await at.kit.subscriptions.sync("acme")
        assert found is not None
        assert found.plan == "tried"
        assert found.pending_change is not None  # It is told of, and not lost from sight.
        again = await at.kit.subscriptions.change_plan("acme", "tried")
        assert again.subscription.pending_change is None


async def test_an_upgrade_that_its_customer_has_to_confirm_is_had_when_that_is_done(store_url: str) -> None:
    """https://docs.stripe.com/billing/subscriptions/pending-updates."""
    async with shop(store_url) as at:
        begun = await at.subscribed(plan="team")
        await authenticating(at, begun.id)
        at.clock.set(HALF)
        asked = await at.kit.subscriptions.change_plan("acme", "pro")
        assert asked.client_secret is not None
        assert (asked.subscription.plan, asked.subscription.status) == ("team", "active")
        assert not await at.kit.allows("acme", "full")
        changes = len(at.changes())
        again = await at.kit.subscriptions.change_plan("acme", "pro")
        assert (again.client_secret, len(at.changes())) == (asked.client_secret, changes)

        at.emulator.confirm_payment(asked.client_secret, card=NEEDS_CUSTOMER)
        found = await at.kit.subscriptions.sync("acme")
        assert found is not None
        assert found.plan == "pro"
        assert await at.kit.allows("acme", "full")
        assert (await at.kit.subscriptions.change_plan("acme", "pro")).client_secret is None


async def test_an_upgrade_that_nobody_confirms_is_given_up_and_can_be_asked_for_anew(store_url: str) -> None:
    async with shop(store_url) as at:
        begun = await at.subscribed(plan="team")
        await authenticating(at, begun.id)
        first = await at.kit.subscriptions.change_plan("acme", "pro")
        at.clock.advance(timedelta(hours=23, seconds=1))
        found = await at.kit.subscriptions.sync("acme")
        assert found is not None
        assert (found.plan, found.status, found.access) == ("team", "active", "full")
        second = await at.kit.subscriptions.change_plan("acme", "pro")
        assert second.client_secret not in {None, first.client_secret}


@pytest.mark.parametrize("instead", ["keep", "seats", "cancel", "other"])
async def test_another_choice_gives_up_what_nobody_has_confirmed(store_url: str, instead: str) -> None:
    async with shop(store_url, catalog=THREE) as at:
        begun = await at.subscribed(plan="team")
        await authenticating(at, begun.id)
        first = await at.kit.subscriptions.change_plan("acme", "pro")
        assert first.client_secret is not None
        subscriptions = at.kit.subscriptions
        if instead == "keep":
            assert (await subscriptions.change_plan("acme", "team")).client_secret is None
        elif instead == "seats":
            assert (await subscriptions.set_seats("acme", 8)).subscription.seats == 8
        elif instead == "cancel":
            assert (await subscriptions.cancel("acme")).cancel_at_period_end
        else:
            other = await subscriptions.change_plan("acme", "tried")
            assert other.client_secret not in {None, first.client_secret}
        with pytest.raises(ValueError, match="is no invoice that is open"):
            at.emulator.confirm_payment(first.client_secret)


async def test_where_a_downgrade_is_scheduled_an_upgrade_to_confirm_is_refused(store_url: str) -> None:
    async with shop(store_url, catalog=THREE) as at:
        begun = await at.subscribed(plan="pro")
        await at.kit.subscriptions.change_plan("acme", "team")
        await authenticating(at, begun.id)
        with pytest.raises(StripeError) as raised:
            await at.kit.subscriptions.change_plan("acme", "tried")
        assert raised.value.code == "subscription_payment_intent_requires_action"
        found = await at.kit.subscriptions.sync("acme")
        assert found is not None
        assert found.pending_change is not None
