"""Payment methods: required plans wait for one (F-205), and trials without one end as the file says."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from time import time

import pytest

from drivers.billing_browser import browser
from drivers.customer_states import closed_period_cents
from drivers.delivery import kit_for
from drivers.plans import plans_text
from drivers.sampled import whole
from drivers.shop import END, PLANS, START, Shop, shop
from drivers.webhooks import DAY, Hooked, hooked
from drivers.webhooks import NOW as HOOKED_AT
from meterkit import NewSubscription, Subscription, SubscriptionExistsError
from meterkit.catalog import Catalog, loads
from meterkit.errors import SubscriptionError
from meterkit.testing import Clock, StripeEmulator
from subscriptions.looks import linked_of, synced

pytestmark = pytest.mark.anyio

REQUIRED = plans_text("payment_method")
TRIED = """
  tried:
    rank: 7
    price: {amount_cents: 0, interval: month, stripe_price: price_tried}
    trial: {for: 14d, without_card: invoice}
    meters: {tokens: {included: 10, overage: bill}}
"""
OPTIONAL = REQUIRED.replace(
    "stripe_price: price_payg}", "stripe_price: price_payg}\n    payment_method: optional"
)
TRIAL = timedelta(days=14)
TRIAL_BEGINS = datetime(2031, 8, 25, 9, 20, tzinfo=UTC)
PAGE = "https://app.example/plans"
METHOD_MISSING = "urn:meterkit:problem:payment-method-missing"


def sell_in_euros(emulator: StripeEmulator, _: object = None) -> None:
    meter = emulator.add_meter("ai_tokens")
    for plan in ("open", "payg", "low", "tried"):
        product = emulator.add_product(plan, product_id=f"prod_{plan}")
        emulator.add_price(0, price_id=f"price_{plan}", product=product, currency="eur")
        emulator.add_price(9, price_id=f"price_{plan}_t", product=product, currency="eur", meter=meter)


def selling(store_url: str, plans: str = REQUIRED) -> AbstractAsyncContextManager[Shop]:
    return shop(store_url, catalog=loads(plans), selling=sell_in_euros)


async def in_force(at: Shop | Hooked) -> tuple[str | None, bool]:
    """The plan that decides, and whether 100 tokens, which it would bill, are admitted."""
    decision = await at.kit.check("acme", "tokens", 100)
    return decision.plan, decision.allowed


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
    async with selling(store_url) as at, browser(at.kit) as client:
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


async def test_what_was_set_by_hand_stays_while_a_card_is_awaited(at: Shop) -> None:
    await at.kit.customers.set_plan("acme", "open")
    await at.kit.customers.override("acme", {"requests": {"included": 7}})
    assert (await at.kit.subscriptions.create("acme", "payg")).subscription.status == "incomplete"
    awaited = await at.kit.usage("acme")
    assert (await at.kit.subscriptions.cancel("acme")).status == "canceled"
    for usage in (awaited, await at.kit.usage("acme")):
        assert (usage["plan"], usage["meters"]["requests"]["included"]) == ("open", 7)


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
    may: dict[str, object] = {"payment_method_collection": "if_required"}
    page = await at.kit.subscriptions.checkout("acme", "payg", success_url=PAGE, cancel_url=PAGE, options=may)
    (asked,) = await at.stripe_list("/v1/checkout/sessions")
    assert (asked["id"], asked["payment_method_collection"]) == (page.id, "always")


async def test_a_sign_up_without_a_card_ends_after_a_day(at: Shop) -> None:
    made = await waiting(at)
    at.clock.advance(timedelta(hours=22))
    await at.kit.subscriptions.sync("acme")
    assert (await at.stripe_subscription(made.subscription.id))["status"] == "active"
    at.clock.advance(timedelta(hours=1))
    assert ((await synced(at)).status, await in_force(at)) == ("canceled", FREE)
    assert (await at.stripe_subscription(made.subscription.id))["status"] == "canceled"
    await at.kit.customers.set_plan("acme", "open")
    await at.kit.subscriptions.sync("acme")
    assert (await at.kit.customers.get("acme")).plan == "open"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_lists_no_cards_waits_for_a_default(status: int, at: Shop) -> None:
    at.emulator.add_customer("cus_acme")
    await at.kit.customers.link("acme", "cus_acme")
    at.emulator.fail_next("error", status=status, path="/v1/customers/cus_acme/payment_methods", times=20)
    await waiting(at)
    at.emulator.add_payment_method("cus_acme")
    await at.kit.subscriptions.sync("acme")
    assert await in_force(at) == PAYG


async def test_present_subscribers_keep_a_plan_that_now_needs_a_card(store_url: str) -> None:
    async with selling(store_url, OPTIONAL) as at:
        await at.kit.subscriptions.create("acme", "payg")
        assert await in_force(at) == PAYG
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(REQUIRED)) as kit:
            for _ in range(2):
                found = await kit.subscriptions.sync("acme")
                assert found is not None
                assert (found.status, (await kit.check("acme", "tokens", 100)).plan) == ("active", "payg")
                assert (await kit.subscriptions.import_from_stripe()).misfits == ()


async def test_a_period_begins_where_a_trial_without_a_card_ended(store_url: str) -> None:
    """Nothing was used since, and the month began amid the trial."""
    async with selling(store_url, REQUIRED + TRIED) as at:
        at.clock.set(TRIAL_BEGINS)
        await at.kit.subscriptions.create("acme", "tried")
        await at.kit.record("acme", "requests", 1)
        ends = TRIAL_BEGINS + TRIAL
        at.clock.set(ends + 2 * DAY)
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
    return hooked(store_url, clock=clock, emulator=emulator, catalog=loads(REQUIRED))


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
        items = [{"price": "price_payg"}, {"price": "price_payg_t"}]
        for customer, card in (("acme", None), ("beta", "pm_card_visa"), ("gamma", None)):
            at.customer(customer, card=card)
            await at.subscribe(customer, items=items)
        await at.client.v1.payment_methods.attach_async("pm_card_visa", {"customer": "cus_gamma"})
        tried = await at.kit.subscriptions.import_from_stripe(dry_run=True)
        assert {one.customer for one in tried.misfits} == {"acme", "gamma"}  # The lists show no more.
        for _ in range(2):
            (misfit,) = (await at.kit.subscriptions.import_from_stripe()).misfits
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


async def test_a_trial_going_free_without_a_card_ends_at_its_second(store_url: str) -> None:
    async with selling(store_url, REQUIRED + TRIED) as at:
        made = await at.kit.subscriptions.create("acme", "tried")
        assert (made.subscription.status, made.missing) == ("trialing", None)
        assert await in_force(at) == ("tried", True)
        at.clock.set(START + TRIAL)
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


@pytest.mark.parametrize(
    ("way", "without_card", "sent", "ended"),
    [
        ("create", "", "cancel", ("canceled", "full", "free")),
        ("create", "pause", "pause", ("paused", "restricted", "free")),
        ("checkout", "pause", "pause", ("active", "full", "tried")),  # The page saves a card.
        ("create", "invoice", "create_invoice", ("past_due", "grace", "tried")),
    ],
)
async def test_a_trial_without_a_card_ends_as_the_plans_file_says(
    store_url: str, way: str, without_card: str, sent: str, ended: tuple[str, str, str]
) -> None:
    """F-115: a trial without a card gave the plan for seven days of grace more."""
    trial = f"trial: {{for: 14d, without_card: {without_card}}}" if without_card else "trial: 14d"
    catalog = loads(PLANS.replace("trial: 14d", trial))
    async with shop(store_url, catalog=catalog) as at:
        made = await try_plan(at, way)
        assert (made.status, made.trial_end) == ("trialing", START + TRIAL)
        settings = (await at.stripe_subscription(made.id))["trial_settings"]
        assert settings["end_behavior"]["missing_payment_method"] == sent
        assert await end_trial(at, by_clock=sent != "create_invoice") == ended


async def test_a_trial_that_a_pause_has_ended_is_resumed_with_a_card(store_url: str) -> None:
    catalog = loads(PLANS.replace("trial: 14d", "trial: {for: 14d, without_card: pause}"))
    async with shop(store_url, catalog=catalog) as at, browser(at.kit) as client:
        made = await try_plan(at, "create")
        assert (await end_trial(at, by_clock=True))[0] == "paused"
        refused = await client.post("/subscription/resume")
        assert (refused.status_code, refused.json()["type"]) == (402, METHOD_MISSING)
        exists = await client.post("/subscription", json={"plan": "tried"})
        assert exists.status_code == 409
        assert exists.json()["detail"].endswith("which is paused. Resume that one.")
        with pytest.raises(SubscriptionError, match="must be resumed first"):
            await at.kit.subscriptions.change_plan("acme", "pro")
        at.emulator.add_payment_method(await linked_of(at))
        answer = await client.post("/subscription/resume")
        assert (answer.status_code, answer.json()["subscription"]["status"]) == (200, "active")
        assert (await at.kit.customers.get("acme")).plan == "tried"
        before = len(at.changes())
        assert (await client.post("/subscription/resume")).status_code == 200
        await at.post(f"/v1/subscriptions/{made.id}/pause", {"type": "subscription"})
        assert (await client.post("/subscription/resume")).json()["subscription"]["status"] == "paused"
        assert [one.path for one in at.changes()[before:]] == [f"/v1/subscriptions/{made.id}/pause"]


async def try_plan(at: Shop, way: str) -> Subscription:
    """Begin the trial of a plan, by a call or on a page of Checkout."""
    if way == "create":
        return (await at.kit.subscriptions.create("acme", "tried")).subscription
    page = await at.kit.subscriptions.checkout("acme", "tried", success_url=PAGE, cancel_url=PAGE)
    at.emulator.complete_checkout(page.id)
    return await synced(at)


async def end_trial(at: Shop, *, by_clock: bool) -> tuple[str | None, str, str]:
    """Status, access and plan after it: by the clock alone, or once Stripe has said so."""
    at.clock.set(START + TRIAL)
    at_once = await at.kit.customers.get("acme")
    at.go(timedelta(hours=2))
    await at.kit.subscriptions.sync("acme")
    found = await at.kit.customers.get("acme")
    ended = found.status, found.access, found.plan
    assert not by_clock or (at_once.status, at_once.access, at_once.plan) == ended
    return ended


ENDS = {"cancel": "canceled", "pause": "paused", "invoice": "past_due"}


def plans_with_trials(small: str, large: str) -> Catalog:
    """Two plans with a trial of 14 days, each with its `without_card`."""
    text = plans_text("trial_ends_trials").replace("DOWNGRADE", "now")
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
        assert (await end_trial(at, by_clock=wanted != "invoice"))[0] == ENDS[wanted]


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
        at.emulator.add_payment_method(await linked_of(at))
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
        at.go(timedelta(days=32))
        lines = [line for invoice in await at.invoices() for line in invoice["lines"]["data"]]
        assert [line["amount"] for line in lines if line["amount"] not in {0, 2000}] == [60]
        # Summaries and revenue of the trial, and of the month after it.
        charges = [
            await closed_period_cents(at.kit, await at.kit.usage("acme", period=day))
            for day in (START, START + TRIAL)
        ]
        assert charges == [0, 60]


async def test_a_trial_given_later_leaves_the_months_before_it_billed(store_url: str) -> None:
    text = PLANS.replace(
        "      tokens:   {included: 100, overage: bill}\n      seats:    {included: 5, overage: deny}\n",
        "      tokens:   {included: 100, overage: {bill: {per: 1, amount_cents: 2}}}\n",
    )
    async with shop(store_url, catalog=loads(text)) as at:
        await at.subscribed(plan="team")

        async def closed_cents(*days: datetime) -> list[int]:
            usages = [await at.kit.usage("acme", period=day) for day in days]
            return [await closed_period_cents(at.kit, usage) for usage in usages]

        async def use(quantity: int) -> None:
            await at.kit.record("acme", "tokens", quantity)
            await at.kit.flush(everything=True)

        async def give_trial(days: int) -> datetime:
            (shown,) = await at.stripe_list("/v1/subscriptions")
            ends = at.clock.now() + timedelta(days=days)
            await at.stripe_change(f"/v1/subscriptions/{shown['id']}", trial_end=str(int(ends.timestamp())))
            await at.kit.subscriptions.sync("acme")
            return ends

        await use(150)
        at.go(END + timedelta(days=10))
        await at.kit.subscriptions.sync("acme")
        first = at.clock.now()
        ends = await give_trial(20)
        await use(160)
        assert (await at.kit.usage("acme"))["meters"]["tokens"]["overage_cents"] == 0
        at.go(ends + timedelta(days=5))
        await at.kit.subscriptions.sync("acme")
        assert await closed_cents(START, first) == [100, 0]
        # A second one takes the place of the first at Stripe.
        await give_trial(10)
        assert await closed_cents(START, first) == [100, 0]


@pytest.mark.parametrize(
    ("how", "begins"),
    [
        ("customers.delete", "create"),
        whole("customers.delete", "checkout"),
        whole("deleted at Stripe", "create"),
        ("deleted at Stripe", "checkout"),
    ],
)
async def test_a_deleted_customer_gets_no_second_trial(store_url: str, how: str, begins: str) -> None:
    async with shop(store_url) as at:
        first = await try_plan(at, "create")
        assert first.status == "trialing"
        if how == "customers.delete":
            await at.kit.customers.delete("acme", cancel=True)
        else:
            await at.stripe_delete(f"/v1/customers/{await linked_of(at)}")
            await at.kit.subscriptions.sync("acme")
        found = await try_plan(at, begins)
        assert (found.id != first.id, found.trial_end) == (True, None)
        # Another customer has a trial.
        assert (await at.kit.subscriptions.create("eve", "tried")).subscription.status == "trialing"


async def test_a_deleted_customer_who_never_paid_has_a_trial(store_url: str) -> None:
    async with shop(store_url) as at:
        assert (await at.kit.subscriptions.create("acme", "pro")).subscription.status == "incomplete"
        await at.kit.customers.delete("acme", cancel=True)
        assert (await at.kit.subscriptions.create("acme", "tried")).subscription.status == "trialing"


async def test_a_trial_that_ended_without_a_card_is_used_up(store_url: str) -> None:
    """Its subscription waits for a card, as one that never began does."""
    async with selling(store_url, REQUIRED + TRIED) as at:
        await at.kit.subscriptions.create("acme", "tried")
        at.go(TRIAL)
        assert (await synced(at)).status == "incomplete"
        await at.kit.customers.delete("acme", cancel=True)
        assert (await at.kit.subscriptions.create("acme", "tried")).subscription.trial_end is None


async def test_a_host_that_is_ahead_gives_no_second_trial(store_url: str) -> None:
    async with shop(store_url, is_real_time=True) as at:
        await at.kit.subscriptions.create("acme", "tried")
        await at.kit.customers.delete("acme", cancel=True)
        at.kit.store.clock = lambda: time() + 401 * 86_400
        assert (await at.kit.subscriptions.create("acme", "tried")).subscription.trial_end is None


async def test_a_deleted_customer_is_forgotten_after_400_days(store_url: str) -> None:
    async with shop(store_url, shards=1) as at:
        for customer, days in (("acme", 0), ("bob", 399), ("eve", 2)):
            at.clock.advance(timedelta(days=days))
            await at.kit.subscriptions.create(customer, "tried")
            await at.kit.customers.delete(customer, cancel=True)
        found = {name: await at.kit.subscriptions.create(name, "tried") for name in ("acme", "bob", "eve")}
        assert [name for name, one in found.items() if one.subscription.status == "trialing"] == ["acme"]
        client = (await at.kit.store.admin()).client
        assert await client.zcount(at.kit.store.keys.shard(0, "tried"), "-inf", "+inf") == 2
