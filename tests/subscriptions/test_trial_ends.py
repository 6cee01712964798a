"""What becomes of a trial at whose end there is no card: ``trial: {for: …, without_card: …}``."""

from __future__ import annotations

from datetime import timedelta

import pytest

from hooking import DAY, hooked
from meterkit.catalog import loads
from shopping import PLANS, START, shop

pytestmark = pytest.mark.anyio

TRIAL = timedelta(days=14)
PAGE = "https://app.example/"


@pytest.mark.parametrize(
    ("trial", "sent", "status", "access", "plan"),
    [
        ("14d", "cancel", "canceled", "full", "free"),
        ("{for: 14d}", "cancel", "canceled", "full", "free"),
        ("{for: 13d1h, without_card: cancel}", "cancel", "canceled", "full", "free"),
        ("{for: 14d, without_card: pause}", "pause", "paused", "restricted", "free"),
        ("{for: 14d, without_card: invoice}", "create_invoice", "past_due", "grace", "tried"),
    ],
)
async def test_a_trial_without_a_card_ends_as_the_plans_file_says(
    store_url: str, trial: str, sent: str, status: str, access: str, plan: str
) -> None:
    """F-115: a trial without a card gave the plan for seven days of grace more."""
    catalog = loads(PLANS.replace("trial: 14d", f"trial: {trial}"))
    async with shop(store_url, catalog=catalog) as at:
        made = (await at.kit.subscriptions.create("acme", "tried")).subscription
        assert (made.status, made.trial_end) == ("trialing", START + TRIAL)
        settings = (await at.stripe_subscription(made.id))["trial_settings"]
        assert settings["end_behavior"]["missing_payment_method"] == sent
        at.clock.set(START + TRIAL)
        at_once = await at.kit.customers.get("acme")
        if sent != "create_invoice":  # Bound by the clock, before Stripe has told of it.
            assert (at_once.status, at_once.access, at_once.plan) == (status, access, plan)
        at.clock.advance(timedelta(hours=2))
        at.emulator.advance()
        await at.kit.subscriptions.sync("acme")
        found = await at.kit.customers.get("acme")
        assert (found.status, found.access, found.plan) == (status, access, plan)


async def test_a_card_that_is_added_in_the_trial_is_known_before_its_end(store_url: str) -> None:
    """Stripe tells of it by `customer.updated` alone."""
    async with hooked(store_url) as at:
        at.customer(card=None)
        settings = {"end_behavior": {"missing_payment_method": "cancel"}}
        await at.subscribe(trial_period_days=14, trial_settings=settings)
        await at.settle()
        assert (await at.state()).subscription is not None
        at.clock.advance(13 * DAY)
        at.emulator.add_payment_method("cus_acme", "pm_card_visa")
        await at.settle()
        at.clock.advance(DAY)
        found = await at.kit.customers.get("acme")
        assert (found.status, found.plan) == ("active", "pro")
        at.emulator.advance()
        await at.settle()
        assert (await at.kit.customers.get("acme")).status == "active"


async def test_a_page_of_checkout_asks_for_the_same(store_url: str) -> None:
    catalog = loads(PLANS.replace("trial: 14d", "trial: {for: 14d, without_card: pause}"))
    async with shop(store_url, catalog=catalog) as at:
        page = await at.kit.subscriptions.checkout("acme", "tried", success_url=PAGE, cancel_url=PAGE)
        at.emulator.complete_checkout(page.id)
        made = await at.kit.subscriptions.sync("acme")
        assert made is not None
        assert (made.status, made.trial_end) == ("trialing", START + TRIAL)
        settings = (await at.stripe_subscription(made.id))["trial_settings"]
        assert settings == {"end_behavior": {"missing_payment_method": "pause"}}
