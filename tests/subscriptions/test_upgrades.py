"""Upgrades whose payment is refused, or wants its customer: nothing is had for nothing, nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

from drivers.customer_states import prepare_change
from drivers.shop import END, HALF, PLANS, shop
from meterkit.catalog import loads
from meterkit.errors import (
    PaymentAuthenticationError,
    PaymentMethodMissingError,
    StripeError,
    SubscriptionError,
)
from subscriptions.looks import linked_of, synced

if TYPE_CHECKING:
    from drivers.shop import Shop

pytestmark = pytest.mark.anyio

# A third plan above the others, so that one can go up from where a downgrade is scheduled.
THREE = loads(PLANS.replace("rank: 7", "rank: 20").replace("amount_cents: 2000", "amount_cents: 9000"))
ALWAYS = "pm_card_authenticationRequired"
UNTIL_SET_UP = "pm_card_authenticationRequiredOnSetup"


async def authenticating(at: Shop, subscription: str, card: str = UNTIL_SET_UP) -> None:
    """Have the subscription be charged with a card whose customer has to authenticate it."""
    method = at.emulator.add_payment_method(await linked_of(at), card)
    await at.stripe_change(f"/v1/subscriptions/{subscription}", default_payment_method=method)


async def test_a_scheduled_downgrade_survives_an_unpaid_upgrade(store_url: str) -> None:
    async with shop(store_url, catalog=THREE) as at:
        await at.subscribed(plan="pro")
        down = await at.kit.subscriptions.change_plan("acme", "team")
        at.emulator.fail_payments(await linked_of(at))
        with pytest.raises(StripeError):
            await at.kit.subscriptions.change_plan("acme", "tried")
        found = await synced(at)
        assert (found.plan, found.pending_change) == ("pro", down.subscription.pending_change)
        at.clock.set(END)
        at.emulator.advance()
        assert "price_team" in await at.items(found.id)


async def test_an_upgrade_with_a_kept_schedule_is_finished_by_a_repeat(store_url: str) -> None:
    async with shop(store_url, catalog=THREE) as at:
        begun = await at.subscribed(plan="pro")
        await at.kit.subscriptions.change_plan("acme", "team")
        schedule = (await at.stripe_subscription(begun.id))["schedule"]
        path = f"/v1/subscription_schedules/{schedule}/release"
        at.emulator.fail_next("error", status=400, path=path)
        with pytest.raises(StripeError):
            await at.kit.subscriptions.change_plan("acme", "tried")
        found = await synced(at)
        assert found.plan == "tried"
        assert found.pending_change is not None  # It is told of, and not lost from sight.
        again = await at.kit.subscriptions.change_plan("acme", "tried")
        assert again.subscription.pending_change is None


async def test_an_upgrade_takes_effect_after_its_authentication(at: Shop) -> None:
    """F-10c. https://docs.stripe.com/payments/save-and-reuse."""
    begun = await at.subscribed(plan="team")
    await authenticating(at, begun.id)
    at.clock.set(HALF)
    before = await at.items(begun.id)
    asked = await at.kit.subscriptions.change_plan("acme", "pro")
    assert asked.client_secret is not None
    assert asked.client_secret.startswith("seti_")
    assert (asked.subscription.plan, asked.subscription.status) == ("team", "active")
    assert not await at.kit.allows("acme", "full")
    assert await at.items(begun.id) == before
    again = await at.kit.subscriptions.change_plan("acme", "pro")
    assert again.client_secret == asked.client_secret

    at.emulator.confirm_setup(asked.client_secret)
    done = await at.kit.subscriptions.change_plan("acme", "pro")
    assert (done.client_secret, done.subscription.plan) == (None, "pro")
    assert await at.kit.allows("acme", "full")
    paid = [invoice["amount_paid"] for invoice in await at.invoices()]
    assert paid == [1500, 700]  # Half a month of 29 USD less half of 15.


async def test_a_card_asking_each_time_is_refused_with_a_page(at: Shop) -> None:
    begun = await at.subscribed(plan="team")
    await authenticating(at, begun.id, ALWAYS)
    first = await at.kit.subscriptions.change_plan("acme", "pro")
    assert first.client_secret is not None
    at.emulator.confirm_setup(first.client_secret)
    for _ in range(2):
        with pytest.raises(PaymentAuthenticationError) as raised:
            await at.kit.subscriptions.change_plan("acme", "pro")
        assert "/p/session/bps_" in (raised.value.url or "")
    found = await synced(at)
    assert found.plan == "team"


async def test_an_upgrade_without_a_card_names_the_page_to_add_one(at: Shop) -> None:
    """F-113."""
    await at.kit.subscriptions.create("acme", "tried")
    with pytest.raises(PaymentMethodMissingError) as raised:
        await at.kit.subscriptions.change_plan("acme", "pro")
    assert "/p/session/bps_" in (raised.value.url or "")


@pytest.mark.parametrize("what", ["items", "schedule"])
async def test_the_loser_of_two_changes_is_told_so(at: Shop, what: Literal["items", "schedule"]) -> None:
    """F-113: Stripe refuses an item, or a schedule, that the other change has removed."""
    begun = await at.subscribed(plan="pro", seats=12)
    await at.kit.subscriptions.change_plan("acme", "team")
    change = await prepare_change(at.kit, begun.id, "price_pro_seat", what)
    await at.kit.subscriptions.change_plan("acme", "pro")  # The schedule is gone.
    await at.kit.subscriptions.set_seats("acme", 10)  # So is the item of the seats.
    with pytest.raises(SubscriptionError, match="changed by another request"):
        await change()
