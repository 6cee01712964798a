"""``payment_method: required``: such a plan is in force once a payment method is saved (F-205)."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.applications import Starlette

from drivers.delivery import kit_for
from drivers.plans import plans_text
from drivers.shop import START, shop
from drivers.webhooks import NOW as HOOKED_AT
from drivers.webhooks import hooked
from meterkit import SubscriptionExistsError
from meterkit.catalog import loads
from meterkit.starlette import billing_routes
from meterkit.testing import Clock, StripeEmulator
from subscriptions.looks import synced

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.shop import Shop
    from drivers.webhooks import Hooked
    from meterkit import NewSubscription

pytestmark = pytest.mark.anyio

PLANS = plans_text("payment_method")
TRIED = """
  tried:
    rank: 7
    price: {amount_cents: 0, interval: month, stripe_price: price_tried}
    trial: {for: 14d, without_card: invoice}
    meters: {tokens: {included: 10, overage: bill}}
"""
OPTIONAL = PLANS.replace(
    "stripe_price: price_payg}", "stripe_price: price_payg}\n    payment_method: optional"
)
TRIAL_BEGINS = datetime(2031, 8, 25, 9, 20, tzinfo=UTC)
PAGE = "https://app.example/plans"
METHOD_MISSING = "urn:meterkit:problem:payment-method-missing"


def sell_in_euros(emulator: StripeEmulator, _: object = None) -> None:
    meter = emulator.add_meter("ai_tokens")
    for plan in ("open", "payg", "low", "tried"):
        product = emulator.add_product(plan, product_id=f"prod_{plan}")
        emulator.add_price(0, price_id=f"price_{plan}", product=product, currency="eur")
        emulator.add_price(9, price_id=f"price_{plan}_t", product=product, currency="eur", meter=meter)


def selling(store_url: str, plans: str = PLANS) -> AbstractAsyncContextManager[Shop]:
    return shop(store_url, catalog=loads(plans), selling=sell_in_euros)


async def in_force(at: Shop | Hooked) -> tuple[str | None, bool]:
    """The plan that decides, and whether 100 tokens, which it would bill, are admitted."""
    decision = await at.kit.check("acme", "tokens", 100)
    return decision.plan, decision.allowed


@asynccontextmanager
async def browser(at: Shop) -> AsyncGenerator[httpx.AsyncClient]:
    routes = billing_routes(at.kit, customer=lambda _: "acme", origins=["https://app.example"])
    transport = httpx.ASGITransport(app=Starlette(routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client


FREE, PAYG = ("free", False), ("payg", True)


async def waiting(at: Shop, plan: str = "payg") -> NewSubscription:
    made = await at.kit.subscriptions.create("acme", plan)
    assert (made.subscription.status, made.missing) == ("incomplete", "payment_method")
    assert made.client_secret is not None
    assert await in_force(at) == FREE
    return made


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with selling(store_url) as opened:
        yield opened


async def test_a_plan_of_price_0_that_bills_usage_waits_for_a_card(at: Shop) -> None:
    made = await waiting(at)
    assert made.subscription.access == "full"  # Of the plan before.
    assert (await at.kit.customers.get("acme")).plan == "free"
    assert made.client_secret is not None
    at.emulator.confirm_setup(made.client_secret, card="pm_card_visa")
    found = await synced(at)
    assert (found.id, found.status, found.plan) == (made.subscription.id, "active", "payg")
    assert await in_force(at) == PAYG
    at_stripe = await at.stripe_subscription(found.id)
    assert at_stripe["default_payment_method"] is not None  # So the usage can be charged.


async def test_the_billing_routes_say_what_is_missing(store_url: str) -> None:
    async with selling(store_url) as at, browser(at) as client:
        made = await client.post("/subscription", json={"plan": "payg"})
        assert made.status_code == 201
        body = made.json()
        assert set(body) == {"subscription", "client_secret", "missing"}
        assert (body["subscription"]["status"], body["missing"]) == ("incomplete", "payment_method")
        again = await client.post("/subscription", json={"plan": "payg"})
        assert (again.status_code, again.json()) == (201, body)
        assert (await client.get("/subscription")).json()["status"] == "incomplete"
        refused = await client.put("/subscription/plan", json={"plan": "open"})
        assert (refused.status_code, refused.json()["type"]) == (402, METHOD_MISSING)
        assert refused.json()["url"].startswith("http")
        at.emulator.confirm_setup(body["client_secret"])
        await at.kit.subscriptions.sync("acme")
        assert (await client.post("/subscription", json={"plan": "payg"})).status_code == 409
        assert (await client.get("/subscription")).json()["status"] == "active"


async def test_a_saved_card_puts_the_plan_in_force_at_once(at: Shop) -> None:
    linked = at.emulator.add_customer("cus_acme")
    at.emulator.add_payment_method(linked)
    await at.kit.customers.link("acme", linked)
    made = await at.kit.subscriptions.create("acme", "payg")
    assert (made.subscription.status, made.missing, made.client_secret) == ("active", None, None)
    assert await in_force(at) == PAYG


async def test_optional_asks_for_no_card(at: Shop) -> None:
    made = await at.kit.subscriptions.create("acme", "open")
    assert (made.subscription.status, made.missing) == ("active", None)
    assert await in_force(at) == ("open", True)


async def set_by_hand(at: Shop) -> tuple[str, object]:
    usage = await at.kit.usage("acme")
    return usage["plan"], usage["meters"]["requests"]["included"]


async def test_what_was_set_by_hand_stays_while_a_card_is_awaited(at: Shop) -> None:
    await at.kit.customers.set_plan("acme", "open")
    await at.kit.customers.override("acme", {"requests": {"included": 7}})
    made = await at.kit.subscriptions.create("acme", "payg")
    assert made.subscription.status == "incomplete"
    assert await set_by_hand(at) == ("open", 7)
    assert (await at.kit.subscriptions.cancel("acme")).status == "canceled"
    assert await set_by_hand(at) == ("open", 7)


@pytest.mark.parametrize("how", ["declined", "canceled", "confirmed"])
async def test_a_setup_that_fails_or_is_canceled_can_be_tried_again(at: Shop, how: str) -> None:
    made = await waiting(at)
    secret = made.client_secret or ""
    if how == "declined":
        with pytest.raises(ValueError, match="declined"):
            at.emulator.confirm_setup(secret, card="pm_card_chargeDeclined")
    elif how == "canceled":
        at.emulator.cancel_setup(secret)
    await at.kit.subscriptions.sync("acme")
    if how != "confirmed":
        assert await in_force(at) == FREE
        again = await at.kit.subscriptions.create("acme", "payg")
        assert again.subscription.id == made.subscription.id
        assert (again.client_secret == secret) is (how == "declined")
        secret = again.client_secret or ""
        assert (await at.kit.subscriptions.create("acme", "payg")).client_secret == secret
    at.emulator.confirm_setup(secret, card="pm_card_visa")
    with pytest.raises(SubscriptionExistsError):  # The look at Stripe finds the card, before any webhook.
        await at.kit.subscriptions.create("acme", "payg")
    await at.kit.subscriptions.sync("acme")
    assert await in_force(at) == PAYG


async def test_a_checkout_page_asks_for_a_card_despite_options(at: Shop) -> None:
    options = {"payment_method_collection": "if_required"}
    page = await at.kit.subscriptions.checkout(
        "acme", "payg", success_url=PAGE, cancel_url=PAGE, options=options
    )
    (asked,) = await at.stripe_list("/v1/checkout/sessions")
    assert (asked["id"], asked["payment_method_collection"]) == (page.id, "always")


async def test_a_sign_up_without_a_card_ends_after_a_day(at: Shop) -> None:
    made = await waiting(at)
    at.clock.advance(timedelta(hours=22))
    await at.kit.subscriptions.sync("acme")
    assert (await at.stripe_subscription(made.subscription.id))["status"] == "active"
    at.clock.advance(timedelta(hours=1))
    ended = await synced(at)
    assert (ended.status, await in_force(at)) == ("canceled", FREE)
    assert (await at.stripe_subscription(made.subscription.id))["status"] == "canceled"
    await at.kit.customers.set_plan("acme", "open")
    await at.kit.subscriptions.sync("acme")
    assert (await at.kit.customers.get("acme")).plan == "open"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_lists_no_cards_waits_for_a_default(status: int, at: Shop) -> None:
    at.emulator.add_customer("cus_acme")
    await at.kit.customers.link("acme", "cus_acme")
    listed = "/v1/customers/cus_acme/payment_methods"
    at.emulator.fail_next("error", status=status, path=listed, times=20)
    await waiting(at)
    at.emulator.add_payment_method("cus_acme")
    await at.kit.subscriptions.sync("acme")
    assert await in_force(at) == PAYG


async def test_present_subscribers_keep_a_plan_that_now_needs_a_card(store_url: str) -> None:
    async with selling(store_url, OPTIONAL) as at:
        await at.kit.subscriptions.create("acme", "payg")
        assert await in_force(at) == PAYG
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(PLANS)) as kit:
            for _ in range(2):
                found = await kit.subscriptions.sync("acme")
                assert found is not None
                assert (found.status, (await kit.check("acme", "tokens", 100)).plan) == ("active", "payg")
                assert (await kit.subscriptions.import_from_stripe()).misfits == ()


async def test_a_period_begins_where_a_trial_without_a_card_ended(store_url: str) -> None:
    """Nothing was used since, and the month began amid the trial."""
    async with selling(store_url, PLANS + TRIED) as at:
        at.clock.set(TRIAL_BEGINS)
        await at.kit.subscriptions.create("acme", "tried")
        await at.kit.record("acme", "requests", 1)
        ends = TRIAL_BEGINS + timedelta(days=14)
        at.clock.set(ends + timedelta(days=2))
        for _ in range(2):  # By the clock, and as Stripe shows it.
            assert (await at.kit.usage("acme"))["period"]["start"] == ends
            await at.kit.subscriptions.sync("acme")
        await at.kit.record("acme", "requests", 1)
        assert (await at.kit.usage("acme"))["period"]["start"] == ends
        trial = await at.kit.usage("acme", period=ends - timedelta(minutes=1))
        assert (trial["period"]["start"], trial["period"]["end"]) == (TRIAL_BEGINS, ends)


def told_by_webhooks(store_url: str) -> AbstractAsyncContextManager[Hooked]:
    clock = Clock(HOOKED_AT)
    emulator = StripeEmulator(clock=clock, automatic_webhooks=False)
    sell_in_euros(emulator)
    return hooked(store_url, clock=clock, emulator=emulator, catalog=loads(PLANS))


@pytest.mark.parametrize("how", ["setup", "attached"])
async def test_a_saved_card_is_told_by_a_webhook(store_url: str, how: str) -> None:
    async with told_by_webhooks(store_url) as at:
        made = await at.kit.subscriptions.create("acme", "payg")
        await at.settle()
        assert await in_force(at) == FREE
        if how == "setup":
            at.emulator.confirm_setup(made.client_secret or "")
            (told,) = (one for one in at.emulator.webhook_events if one.type == "setup_intent.succeeded")
            await at.bring(told)
            await at.kit.webhooks.work_off()
        else:
            linked = (await at.state()).stripe_customer or ""
            await at.client.v1.payment_methods.attach_async("pm_card_visa", {"customer": linked})
            await at.settle()
        assert await in_force(at) == PAYG


async def test_an_import_names_customers_without_a_card(store_url: str) -> None:
    async with told_by_webhooks(store_url) as at:
        for customer, card in (("acme", None), ("beta", "pm_card_visa"), ("gamma", None)):
            at.customer(customer, card=card)
            items = [{"price": "price_payg"}, {"price": "price_payg_t"}]
            await at.subscribe(customer, items=items)
        await at.client.v1.payment_methods.attach_async("pm_card_visa", {"customer": "cus_gamma"})
        tried = await at.kit.subscriptions.import_from_stripe(dry_run=True)
        assert {one.customer for one in tried.misfits} == {"acme", "gamma"}  # The lists show no more.
        for _ in range(2):
            done = await at.kit.subscriptions.import_from_stripe()
            (misfit,) = done.misfits
            assert (misfit.customer, misfit.kind, misfit.linked) == ("acme", "no_payment_method", True)
            assert "payment_method: optional" in misfit.message
        assert await in_force(at) == FREE
        for customer in ("beta", "gamma"):
            assert (await at.kit.customers.get(customer)).plan == "payg"


def test_a_plan_asks_for_a_card_where_it_can_cost_anything() -> None:
    head = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens:   {unit: token, stripe: {event_name: ai_tokens}}
  told:     {unit: token, stripe: {event_name: ai_told, report: none}}
  seats:    {unit: seat, kind: gauge}
plans:
"""
    price = "price: {amount_cents: 0, interval: month}"
    plans = {
        "free": f"{price}, meters: {{tokens: {{included: 9}}, told: {{included: 9}}}}",
        "priced": "extends: free, price: {amount_cents: 1, interval: month}",
        "seated": "extends: free, seat_price: {amount_cents: 900}",
        "billed": "extends: free, meters: {tokens: {overage: bill}}",
        "capped": "extends: free, meters: {tokens: {overage: {bill: {cap: 1, per: 1, amount_cents: 1}}}}",
        "left_out": price,
        "told_only": "extends: free, meters: {told: {overage: bill}}",
        "endless": "extends: billed, meters: {tokens: {included: unlimited}}",
        "opted": "extends: priced, payment_method: optional",
        "asked": "extends: free, payment_method: required",
    }
    catalog = loads(head + "".join(f"  {name}: {{{plan}}}\n" for name, plan in plans.items()))
    required = {plan.key for plan in catalog.plans.values() if plan.payment_method == "required"}
    assert required == {"priced", "seated", "billed", "capped", "left_out", "asked"}


async def test_a_trial_going_free_without_a_card_ends_at_its_second(
    store_url: str,
) -> None:
    async with selling(store_url, PLANS + TRIED) as at:
        made = await at.kit.subscriptions.create("acme", "tried")
        assert (made.subscription.status, made.missing) == ("trialing", None)
        assert await in_force(at) == ("tried", True)
        at.clock.set(START + timedelta(days=14))
        for _ in range(2):  # By the clock, and as Stripe shows it.
            customer = await at.kit.customers.get("acme")
            assert (customer.status, customer.access, customer.plan) == ("incomplete", "full", "free")
            assert await in_force(at) == FREE
            await at.kit.subscriptions.sync("acme")
        at.clock.advance(timedelta(hours=22))
        await at.kit.subscriptions.sync("acme")  # It waits for a day from its end.
        again = await at.kit.subscriptions.create("acme", "tried")
        assert (again.subscription.id, again.missing) == (made.subscription.id, "payment_method")
        at.emulator.confirm_setup(again.client_secret or "", card="pm_card_visa")
        await at.kit.subscriptions.sync("acme")
        assert await in_force(at) == ("tried", True)
