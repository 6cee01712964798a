"""What becomes of a trial at whose end there is no card: ``trial: {for: …, without_card: …}``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.customer_states import closed_period_cents
from drivers.plans import plans_text
from drivers.sampled import whole
from drivers.shop import PLANS, START, shop
from drivers.webhooks import DAY
from meterkit.catalog import loads
from subscriptions.looks import synced

if TYPE_CHECKING:
    from drivers.shop import Shop
    from meterkit.catalog import Catalog

pytestmark = pytest.mark.anyio

TRIAL = timedelta(days=14)
PAGE = "https://app.example/"


@pytest.mark.parametrize(
    ("trial", "sent", "status", "access", "plan"),
    [
        ("14d", "cancel", "canceled", "full", "free"),
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


async def test_a_page_of_checkout_asks_for_the_same(store_url: str) -> None:
    catalog = loads(PLANS.replace("trial: 14d", "trial: {for: 14d, without_card: pause}"))
    async with shop(store_url, catalog=catalog) as at:
        page = await at.kit.subscriptions.checkout("acme", "tried", success_url=PAGE, cancel_url=PAGE)
        at.emulator.complete_checkout(page.id)
        made = await synced(at)
        assert (made.status, made.trial_end) == ("trialing", START + TRIAL)
        settings = (await at.stripe_subscription(made.id))["trial_settings"]
        assert settings == {"end_behavior": {"missing_payment_method": "pause"}}


TRIALS = plans_text("trial_ends_trials")
ENDS = {"cancel": "canceled", "pause": "paused", "invoice": "past_due"}


def plans_with_trials(small: str, large: str, downgrade: str = "now") -> Catalog:
    """Two plans with a trial of 14 days, each with its `without_card`."""
    text = TRIALS.replace("DOWNGRADE", downgrade)
    for name, without_card in (("SMALL", small), ("LARGE", large)):
        text = text.replace(name, f"trial: {{for: 14d, without_card: {without_card}}}")
    return loads(text)


@pytest.mark.parametrize(
    ("change", "small", "large"),
    [
        (("small", "large"), "cancel", "pause"),
        (("small", "large"), "pause", "invoice"),
        (("large", "small"), "pause", "cancel"),
    ],
)
async def test_a_trial_on_another_plan_ends_as_that_plan_says(
    store_url: str, change: tuple[str, str], small: str, large: str
) -> None:
    """F-22e: a trial kept the `without_card` of the plan that it began with."""
    before, after = change
    wanted = {"small": small, "large": large}[after]
    async with shop(store_url, catalog=plans_with_trials(small, large)) as at:
        await at.kit.subscriptions.create("acme", before)
        at.clock.advance(DAY)
        changed = (await at.kit.subscriptions.change_plan("acme", after)).subscription
        assert (changed.plan, changed.status, changed.trial_end) == (after, "trialing", START + TRIAL)
        assert await at.kit.subscriptions.check() == {}
        at.clock.set(START + TRIAL)
        if wanted != "invoice":  # The clock alone ends it, before Stripe says so.
            assert (await at.kit.customers.get("acme")).status == ENDS[wanted]
        at.clock.advance(timedelta(hours=2))
        at.emulator.advance()
        await at.kit.subscriptions.sync("acme")
        assert (await at.kit.customers.get("acme")).status == ENDS[wanted]


@pytest.mark.parametrize("mend", ["repair", "change"])
async def test_a_trial_end_that_differs_from_its_plan_is_repaired(store_url: str, mend: str) -> None:
    async with shop(store_url, catalog=plans_with_trials("pause", "cancel")) as at:
        begun = (await at.kit.subscriptions.create("acme", "small")).subscription
        path = f"/v1/subscriptions/{begun.id}"
        await at.stripe_change(path, **{"trial_settings[end_behavior][missing_payment_method]": "cancel"})
        (drift,) = (await at.kit.subscriptions.check())["acme"]
        assert (drift.kind, drift.can_repair) == ("trial_settings", True)
        assert "by Stripe's 'cancel'; plan small has `without_card: pause`" in drift.message
        assert (await at.kit.subscriptions.repair("acme", dry_run=True)).mended == (drift,)
        if mend == "repair":
            assert (await at.kit.subscriptions.repair("acme")).mended == (drift,)
        else:
            await at.kit.subscriptions.change_plan("acme", "small")
        settings = (await at.stripe_subscription(begun.id))["trial_settings"]
        assert settings == {"end_behavior": {"missing_payment_method": "pause"}}
        assert await at.kit.subscriptions.check() == {}
        assert [invoice["total"] for invoice in await at.invoices()] == [0]


async def test_usage_of_a_trial_costs_nothing_in_usage_and_on_invoices(store_url: str) -> None:
    # F-22a: `kit.usage` showed overage in cents that no invoice bills.
    text = PLANS.replace(
        "      tokens:   {included: 100, overage: bill}\n      seats:    {included: 5, overage: deny}\n",
        "      tokens:   {included: 100, overage: {bill: {per: 1, amount_cents: 2}}}\n",
    )
    async with shop(store_url, catalog=loads(text)) as at:
        await at.kit.subscriptions.create("acme", "tried")
        at.emulator.add_payment_method((await at.kit.customers.get("acme")).stripe_customer or "")
        await at.kit.subscriptions.sync("acme")

        async def use(quantity: int) -> tuple[int, int | None]:
            await at.kit.record("acme", "tokens", quantity)
            await at.kit.flush(everything=True)
            tokens = (await at.kit.usage("acme"))["meters"]["tokens"]
            return tokens["overage"], tokens["overage_cents"]

        assert await use(150) == (50, 0)
        at.clock.set(START + TRIAL)
        # Before a webhook tells of the end of the trial, too.
        assert await use(130) == (30, 60)
        at.emulator.advance()
        await at.kit.subscriptions.sync("acme")
        assert await use(0) == (30, 60)
        at.clock.advance(timedelta(days=32))
        at.emulator.advance()
        billed = [
            line["amount"]
            for invoice in await at.invoices()
            for line in invoice["lines"]["data"]
            if line["amount"] not in {0, 2000}
        ]
        assert billed == [60]
        # Summaries and revenue of the trial, and of the month after it.
        charges = [
            await closed_period_cents(at.kit, await at.kit.usage("acme", period=day))
            for day in (START, START + TRIAL)
        ]
        assert charges == [0, 60]


@pytest.mark.parametrize(
    ("how", "begins"),
    [
        ("customers.delete", "create"),
        whole("customers.delete", "checkout"),
        whole("deleted at Stripe", "create"),
        ("deleted at Stripe", "checkout"),
    ],
)
async def test_a_deleted_customer_who_returns_gets_no_second_trial(at: Shop, how: str, begins: str) -> None:
    # F-22a
    first = (await at.kit.subscriptions.create("acme", "tried")).subscription
    assert first.status == "trialing"
    linked = (await at.kit.customers.get("acme")).stripe_customer
    if how == "customers.delete":
        await at.kit.customers.delete("acme", cancel=True)
    else:
        await at.stripe_delete(f"/v1/customers/{linked}")
        await at.kit.subscriptions.sync("acme")
    if begins == "create":
        found = (await at.kit.subscriptions.create("acme", "tried")).subscription
    else:
        page = await at.kit.subscriptions.checkout("acme", "tried", success_url=PAGE, cancel_url=PAGE)
        at.emulator.complete_checkout(page.id)
        after = await synced(at)
        found = after
    assert (found.id != first.id, found.trial_end) == (True, None)
    # Another customer has a trial.
    assert (await at.kit.subscriptions.create("eve", "tried")).subscription.status == "trialing"


async def test_a_deleted_customer_is_forgotten_after_400_days(store_url: str) -> None:
    async with shop(store_url, shards=1) as at:
        for customer, days in (("acme", 0), ("bob", 399), ("eve", 2)):
            at.clock.advance(timedelta(days=days))
            await at.kit.subscriptions.create(customer, "tried")
            await at.kit.customers.delete(customer, cancel=True)
        found = {name: await at.kit.subscriptions.create(name, "tried") for name in ("acme", "bob", "eve")}
        trials = [name for name, one in found.items() if one.subscription.status == "trialing"]
        assert trials == ["acme"]
        client = (await at.kit.store.admin()).client
        assert await client.zcount(at.kit.store.keys.shard(0, "tried"), "-inf", "+inf") == 2
