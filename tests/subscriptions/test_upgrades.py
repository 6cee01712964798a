"""Changes that wait: for a payment, an authentication, a card, or the end of tiers; and plans set by hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Final, Literal

import pytest

from drivers.customer_states import prepare_change
from drivers.plans import plans_text
from drivers.shop import END, HALF, PLANS, Shop, shop
from meterkit import MeterkitError, PaymentAuthenticationError, PaymentMethodMissingError, StripeError
from meterkit.catalog import loads
from meterkit.errors import SubscriptionError
from meterkit.testing import StripeEmulator
from subscriptions.looks import known, linked_of, pending, synced

pytestmark = pytest.mark.anyio

# A third plan above the others, so that one can go up from where a downgrade is scheduled.
THREE = loads(PLANS.replace("rank: 7", "rank: 20").replace("amount_cents: 2000", "amount_cents: 9000"))
PAGE = "https://a.example"
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
        await at.fail_payments()
        with pytest.raises(StripeError):
            await at.kit.subscriptions.change_plan("acme", "tried")
        found = await synced(at)
        assert (found.plan, found.pending_change) == ("pro", down.subscription.pending_change)
        at.go(END)
        assert "price_team" in await at.items(found.id)


async def test_an_upgrade_with_a_kept_schedule_is_finished_by_a_repeat(store_url: str) -> None:
    async with shop(store_url, catalog=THREE) as at:
        begun = await at.subscribed(plan="pro")
        await at.kit.subscriptions.change_plan("acme", "team")
        schedule = (await at.stripe_subscription(begun.id))["schedule"]
        at.emulator.fail_next("error", status=400, path=f"/v1/subscription_schedules/{schedule}/release")
        with pytest.raises(StripeError):
            await at.kit.subscriptions.change_plan("acme", "tried")
        found = await synced(at)
        assert found.plan == "tried"
        assert found.pending_change is not None  # It is told of, and not lost from sight.
        assert (await at.kit.subscriptions.change_plan("acme", "tried")).subscription.pending_change is None


async def test_an_upgrade_takes_effect_after_its_authentication(at: Shop) -> None:
    """F-10c. https://docs.stripe.com/payments/save-and-reuse."""
    begun = await at.subscribed(plan="team")
    await authenticating(at, begun.id)
    at.clock.set(HALF)
    before = await at.items(begun.id)
    asked = await at.kit.subscriptions.change_plan("acme", "pro")
    secret = asked.client_secret or ""
    assert secret.startswith("seti_")
    assert (asked.subscription.plan, asked.subscription.status) == ("team", "active")
    assert not await at.kit.allows("acme", "full")
    assert await at.items(begun.id) == before
    assert (await at.kit.subscriptions.change_plan("acme", "pro")).client_secret == secret

    at.emulator.confirm_setup(secret)
    done = await at.kit.subscriptions.change_plan("acme", "pro")
    assert (done.client_secret, done.subscription.plan) == (None, "pro")
    assert await at.kit.allows("acme", "full")
    paid = [invoice["amount_paid"] for invoice in await at.invoices()]
    assert paid == [1500, 700]  # Half a month of 29 USD less half of 15.


async def test_a_card_asking_each_time_is_refused_with_a_page(at: Shop) -> None:
    await authenticating(at, (await at.subscribed(plan="team")).id, ALWAYS)
    first = await at.kit.subscriptions.change_plan("acme", "pro")
    assert first.client_secret is not None
    at.emulator.confirm_setup(first.client_secret)
    for _ in range(2):
        with pytest.raises(PaymentAuthenticationError) as raised:
            await at.kit.subscriptions.change_plan("acme", "pro")
        assert "/p/session/bps_" in (raised.value.url or "")
    assert (await synced(at)).plan == "team"


async def test_an_upgrade_without_a_card_names_the_page_to_add_one(at: Shop) -> None:
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


@pytest.mark.parametrize(("included", "most"), [(2, 4), (7, 9)], ids=["fewer", "more"])
async def test_bought_seats_stay_beside_another_included(at: Shop, included: int, most: int) -> None:
    """Two are bought: until the next reading the seats of before were in all, and more included ones none."""
    await at.subscribed(plan="team", seats=7)
    edited = PLANS.replace("seats:    {included: 5,", f"seats:    {{included: {included},")
    at.kit.store.use(loads(edited))
    for _ in range(2):
        assert (await at.kit.usage("acme"))["meters"]["seats"]["included"] == most
        await at.kit.subscriptions.sync("acme")


TIERS: Final = loads(plans_text("tiers_once"))


async def usage_cents(at: Shop) -> int:
    lines = [line for invoice in await at.invoices() for line in invoice["lines"]["data"]]
    return sum(line["amount"] for line in lines if "Requests" in line["description"])


@pytest.fixture
async def tiered(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=TIERS, selling=StripeEmulator.add_plans) as opened:
        yield opened


async def test_f_224_an_upgrade_waits_for_the_end_of_the_period(tiered: Shop) -> None:
    await tiered.subscribed(plan="team")
    await tiered.kit.record("acme", "requests", 195)
    tiered.clock.set(HALF)
    preview = (await tiered.kit.subscriptions.preview("acme", plan="pro")).proration
    assert (preview.effective_at, preview.net_cents, preview.charge_cents) == (END, 0, 0)
    change = await tiered.kit.subscriptions.change_plan("acme", "pro")
    assert (change.proration, change.subscription.plan) == (preview, "team")
    assert pending(change.subscription) == ("pro", 0, END)
    await tiered.kit.record("acme", "requests", 95)
    shown = (await tiered.kit.usage("acme"))["meters"]["requests"]["overage_cents"]
    await tiered.kit.flush(everything=True)
    tiered.clock.set(END)
    found = await synced(tiered)
    assert (found.plan, found.pending_change) == ("pro", None)
    assert (shown, await usage_cents(tiered)) == (1900, 1900)


@pytest.mark.parametrize(
    ("way", "plan_now"),
    [
        (["flat", "back"], "flat"),  # It has begun the tiers of `team` in this period.
        (["flat", "flat_too"], "flat_too"),
    ],
)
async def test_f_224_no_way_around_begins_tiers_again(tiered: Shop, way: list[str], plan_now: str) -> None:
    await tiered.subscribed(plan="team")
    for plan in way:
        tiered.clock.advance(timedelta(days=1))
        preview = (await tiered.kit.subscriptions.preview("acme", plan=plan)).proration
        assert (await tiered.kit.subscriptions.change_plan("acme", plan)).proration == preview
    found = await known(tiered)
    assert (found.plan, found.pending_change is not None) == (plan_now, plan_now != way[-1])


async def test_a_new_subscription_keeps_an_unpaid_periods_tiers(tiered: Shop) -> None:
    await tiered.subscribed(plan="payg")
    await tiered.kit.record("acme", "requests", 100)
    tiered.clock.advance(timedelta(hours=1))
    await tiered.kit.subscriptions.cancel("acme", immediately=True)
    for plan in ("payg", "team"):
        with pytest.raises(SubscriptionError, match="until 2031-07-01 00:00 UTC"):
            await tiered.kit.subscriptions.create("acme", plan)
    with pytest.raises(SubscriptionError, match="tiers"):
        await tiered.kit.subscriptions.checkout("acme", "team", success_url=PAGE, cancel_url=PAGE)
    await tiered.subscribed(plan="flat")
    await tiered.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
    with pytest.raises(SubscriptionError, match="tiers"):
        await tiered.kit.subscriptions.create("acme", "payg")
    tiered.clock.set(END + timedelta(hours=2))
    assert (await tiered.subscribed(plan="payg")).plan == "payg"


@pytest.mark.parametrize("given", [{"included": 50}, {"included": 150, "overage": "deny"}])
async def test_an_included_quantity_tiers_lack_is_refused(tiered: Shop, given: dict[str, object]) -> None:
    """The price at Stripe has the free tier: the override was stored, and invoices went by the tier."""
    await tiered.subscribed(plan="team")
    with pytest.raises(MeterkitError, match=r"override of requests: found `included: .*kit\.grants\.add"):
        await tiered.kit.customers.override("acme", {"requests": given})
    assert (await tiered.kit.customers.get("acme")).overrides == {}
    # Without a subscription no invoice bills it, and its own quantity differs from no tier.
    for customer, included in (("bob", 7), ("acme", 100)):
        await tiered.kit.customers.override(customer, {"requests": {"included": included}})
    await tiered.kit.grants.add("acme", {"requests": 50}, grant_id="more")
    await tiered.kit.record("acme", "requests", 160)
    shown = (await tiered.kit.usage("acme"))["meters"]["requests"]
    assert (shown["included"], shown["overage"], shown["overage_cents"]) == (100, 10, 100)
    await tiered.kit.flush(everything=True)
    tiered.go(END + timedelta(hours=3))
    assert await usage_cents(tiered) == 100
    await tiered.kit.subscriptions.cancel("acme", immediately=True)
    await tiered.kit.customers.override("acme", {"requests": given})


async def test_f_224_tiers_of_a_former_period_hold_up_no_change(store_url: str) -> None:
    async with shop(store_url, catalog=TIERS, selling=StripeEmulator.add_plans) as at:
        await at.subscribed(plan="team")
        await at.kit.subscriptions.change_plan("acme", "flat")
        at.clock.set(END + timedelta(days=1))
        await at.kit.subscriptions.sync("acme")
        assert (await at.kit.subscriptions.change_plan("acme", "back")).subscription.plan == "back"


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
    await at.kit.customers.set_plan("acme", "pro")
    await at.kit.customers.override("acme", OVERRIDE)
    before = await in_force(at)
    assert before == ("pro", "full", 7)
    made = await at.kit.subscriptions.create("acme", "team")
    assert (made.subscription.status, made.subscription.access) == ("incomplete", "full")
    assert await in_force(at) == before

    at.clock.advance(timedelta(hours=24))
    assert ((await synced(at)).status, await in_force(at)) == ("incomplete_expired", before)
    await at.subscribed(plan="team")  # The first payment ends what was set by hand.
    assert (await in_force(at))[:2] == ("team", "full")
