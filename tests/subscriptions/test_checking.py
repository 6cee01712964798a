"""Subscriptions that differ from the plans file: found, told, mended or left to a person (F-105)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from drivers.health_findings import findings
from drivers.shop import END, Shop, shop
from drivers.sync_queue import drifts_of, queue_sync
from meterkit import Drift, NoSubscriptionError, StripeError, StripeUnavailableError, SubscriptionError
from subscriptions.looks import known

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


async def by_hand(at: Shop, customer: str = "acme", **params: str) -> str:
    """A customer with a card, linked, and a subscription that a person has made at Stripe."""
    linked = f"cus_{customer}"
    if linked not in {one["id"] for one in await at.stripe_list("/v1/customers")}:
        at.emulator.add_customer(linked)
        at.emulator.add_payment_method(linked)
        await at.kit.customers.link(customer, linked)
    await at.stripe_change("/v1/subscriptions", customer=linked, **params)
    made = (await at.stripe_list("/v1/subscriptions", customer=linked))[0]
    await at.kit.subscriptions.sync(customer)
    return str(made["id"])


def kinds(found: dict[str, tuple[Drift, ...]]) -> dict[str, list[str]]:
    return {customer: sorted(drift.kind for drift in drifts) for customer, drifts in found.items()}


WHOLE = {"items[0][price]": "price_team", "items[1][price]": "price_team_ai_tokens"}


BASE_ONLY = {"items[0][price]": "price_team"}
OTHER_USAGE = {**WHOLE, "items[1][price]": "price_pro_ai_tokens"}
TWO_PLANS = {**WHOLE, "items[2][price]": "price_pro"}


@pytest.mark.parametrize(
    ("params", "expected", "plan"),
    [
        (BASE_ONLY, ["missing_meter"], "team"),
        ({**WHOLE, "items[0][quantity]": "7"}, ["base_quantity"], "team"),
        (OTHER_USAGE, ["other_price"], "team"),
        (TWO_PLANS, ["other_price", "two_plans"], "pro"),
    ],
)
async def test_a_manual_change_is_found_and_repaired_to_the_plan(
    store_url: str, params: dict[str, str], expected: list[str], plan: str
) -> None:
    async with shop(store_url) as at:
        subscription = await by_hand(at, **params)
        assert kinds(await at.kit.subscriptions.check()) == {"acme": expected}
        items = await at.items(subscription)
        tried = await at.kit.subscriptions.repair("acme", dry_run=True)
        assert (sorted(drift.kind for drift in tried.mended), tried.left) == (expected, ())
        assert await at.items(subscription) == items
        done = await at.kit.subscriptions.repair("acme")
        assert (done.mended, done.left, done.subscription) == (tried.mended, (), subscription)
        assert await at.items(subscription) == {f"price_{plan}": 1, f"price_{plan}_ai_tokens": None}
        assert (await at.kit.subscriptions.check(), (await known(at)).plan) == ({}, plan)
        before = len(at.changes())
        assert (await at.kit.subscriptions.repair("acme")).mended == ()
        assert len(at.changes()) == before


async def test_an_unreadable_subscription_is_a_difference(at: Shop) -> None:
    """One whose status Stripe has added since ended the check of all with a traceback."""
    await by_hand(at, "acme", **BASE_ONLY)
    other = await by_hand(at, "beta", **WHOLE)
    account: Any = vars(at.emulator)["_account"]
    account.subscriptions.find(other).status = "renewing"
    found = await at.kit.subscriptions.check()
    assert kinds(found) == {"acme": ["missing_meter"], "beta": ["not_compared"]}
    assert found["beta"][0].message.startswith(
        f"subscription {other} cannot be read: found status 'renewing'"
    )
    for ask in (at.kit.subscriptions.sync, at.kit.subscriptions.repair):
        with pytest.raises(StripeError, match="found status 'renewing'"):
            await ask("beta")


@pytest.mark.parametrize("damage", ["Expecting value", "WRONGTYPE"])
async def test_a_ledger_that_cannot_be_read_is_a_difference(at: Shop, damage: str) -> None:
    for customer in ("acme", "beta"):
        await by_hand(at, customer, **BASE_ONLY)
    keys, admin = at.kit.store.keys.customer("acme"), await at.kit.store.admin()
    if damage == "WRONGTYPE":
        await admin.ask(admin.client.delete(keys.history))
        await admin.ask(admin.client.set(keys.history, "of another program", px=600_000))
    else:
        await admin.ask(admin.client.rpush(keys.history, "x"))
    found = await at.kit.subscriptions.check()
    assert kinds(found) == {"acme": ["ledger", "missing_meter"], "beta": ["missing_meter"]}
    (drift,) = (drift for drift in found["acme"] if drift.kind == "ledger")
    assert drift.message.startswith("its ledger cannot be read: ")
    assert damage in drift.message
    # The differences of others are listed whatever becomes of a customer's state.
    await admin.ask(admin.client.hset(keys.state, "data", "x"))
    assert kinds(await drifts_of(at.kit)) == kinds(found)


@pytest.mark.parametrize("status", [400, 401])
async def test_a_customer_that_stripe_refuses_is_a_difference(at: Shop, status: int) -> None:
    for customer in ("acme", "beta"):
        await by_hand(at, customer, **BASE_ONLY)
    (found,) = await at.stripe_list("/v1/subscriptions", customer="cus_acme")
    subscription, item = found["id"], found["items"]["data"][0]["id"]
    to_pro = {"items[0][id]": item, "items[0][price]": "price_pro"}
    await at.stripe_change(f"/v1/subscriptions/{subscription}", **to_pro)
    # The list of all is answered; acme's subscription has changed, and is fetched again.
    at.emulator.fail_next("error", status=status, times=1, skip=1, path="/v1/subscriptions")
    if status == 401:
        with pytest.raises(StripeError):
            await at.kit.subscriptions.check()
        return
    drifts = await at.kit.subscriptions.check()
    assert kinds(drifts) == {"acme": ["not_compared"], "beta": ["missing_meter"]}
    assert drifts["acme"][0].message.startswith("Stripe refuses to show it: ")
    assert not drifts["acme"][0].can_repair


async def test_customers_of_test_clocks_are_compared(at: Shop) -> None:
    """Stripe's list of all subscriptions leaves them out."""
    frozen = str(int(at.clock.now().timestamp()))
    await at.stripe_change("/v1/test_helpers/test_clocks", frozen_time=frozen)
    (clock,) = await at.stripe_list("/v1/test_helpers/test_clocks")
    await at.stripe_change("/v1/customers", test_clock=clock["id"])
    (linked,) = [one["id"] for one in await at.stripe_list("/v1/customers", test_clock=clock["id"])]
    at.emulator.add_payment_method(linked)
    await at.kit.customers.link("acme", linked)
    await at.stripe_change("/v1/subscriptions", customer=linked, **BASE_ONLY)
    await at.kit.subscriptions.sync("acme")
    assert (await known(at)).plan == "team"
    assert kinds(await at.kit.subscriptions.check()) == {"acme": ["missing_meter"]}
    assert await findings(at.kit, "links") == []
    # A customer whom Stripe does not have ends no comparison.
    await at.kit.customers.unlink("acme")
    await at.kit.customers.link("acme", "cus_typo", force=True)
    assert await at.kit.subscriptions.check() == {}
    assert len(await findings(at.kit, "links")) == 1


async def test_nothing_is_repaired_while_stripe_rejects_usage(at: Shop) -> None:
    subscription = await by_hand(at, **OTHER_USAGE)
    await at.kit.record("acme", "tokens", 150)
    at.clock.advance(HOUR)
    items = await at.items(subscription)
    at.emulator.fail_next("error", status=500, path="/v1/billing/meter_events", times=None)
    with pytest.raises(StripeUnavailableError):
        await at.kit.subscriptions.repair("acme")
    assert await at.items(subscription) == items
    assert kinds(await at.kit.subscriptions.check()) == {"acme": ["other_price"]}
    at.emulator.clear_faults()
    at.clock.advance(HOUR)
    await at.kit.subscriptions.repair("acme")
    # What was used is delivered before the item is switched.
    assert at.emulator.accepted("cus_acme", "ai_tokens") == 50
    assert await at.kit.subscriptions.check() == {}


async def test_two_live_subscriptions_are_for_a_person_to_decide(at: Shop) -> None:
    first, second = await by_hand(at, **WHOLE), await by_hand(at, **WHOLE)
    assert kinds(await at.kit.subscriptions.check()) == {"acme": ["two_subscriptions"]}
    changes = len(at.changes())
    with pytest.raises(SubscriptionError, match="an operator must decide") as caught:
        await at.kit.subscriptions.repair("acme")
    assert first in str(caught.value)
    assert second in str(caught.value)
    assert str(caught.value).endswith(": end one at Stripe")
    assert len(at.changes()) == changes


async def test_a_price_of_no_plan_is_for_a_person_to_decide(at: Shop) -> None:
    """``doctor`` promised that ``repair`` says what, and it said the difference again."""
    odd = at.emulator.add_price(777, product=at.emulator.add_product("Odd"))
    await by_hand(at, **{"items[0][price]": odd})
    with pytest.raises(SubscriptionError, match=f"{odd}: put the plan back that sold it, give it"):
        await at.kit.subscriptions.repair("acme")


async def test_the_night_reports_each_difference_once(at: Shop, caplog: pytest.LogCaptureFixture) -> None:
    await by_hand(at, **BASE_ONLY)
    assert await drifts_of(at.kit) == {}
    for _ in range(2):
        await queue_sync(at.kit, cause="reconcile")
        at.clock.advance(2 * HOUR)
    assert kinds(await drifts_of(at.kit)) == {"acme": ["missing_meter"]}
    assert caplog.text.count("differs from the plans file") == 1
    await at.kit.subscriptions.repair("acme")
    assert await drifts_of(at.kit) == {}
    await queue_sync(at.kit, cause="reconcile")
    before = len(at.emulator.requests)
    await queue_sync(at.kit, cause="reconcile")
    # Within an hour the prices of the plan are known.
    assert not any(asked.path.startswith("/v1/prices") for asked in at.emulator.requests[before:])
    assert await drifts_of(at.kit) == {}


async def test_a_damaged_difference_hides_no_other(at: Shop) -> None:
    await by_hand(at, **BASE_ONLY)
    await queue_sync(at.kit, cause="reconcile")
    admin, key = await at.kit.store.admin(), at.kit.store.keys.hooks("drift")
    await admin.ask(admin.client.hset(key, "bolt", "x"))
    assert kinds(await drifts_of(at.kit)) == {"acme": ["missing_meter"]}
    await admin.ask(admin.client.hset(key, "acme", "x"))
    await queue_sync(at.kit, cause="reconcile")
    assert kinds(await drifts_of(at.kit)) == {"acme": ["missing_meter"]}


async def test_without_the_prices_a_customer_is_still_read(at: Shop) -> None:
    await by_hand(at, **BASE_ONLY)
    at.emulator.fail_next("error", status=500, path="/v1/prices/price_team", times=None)
    await queue_sync(at.kit, cause="reconcile")
    assert ((await at.kit.webhooks.backlog()).entries, await drifts_of(at.kit)) == (0, {})


async def test_debtors_and_unsubscribed_customers_are_not_repaired(at: Shop) -> None:
    with pytest.raises(NoSubscriptionError):
        await at.kit.subscriptions.repair("new")
    await by_hand(at, **BASE_ONLY)
    at.emulator.fail_payments("cus_acme")
    at.go(END + 2 * HOUR)
    with pytest.raises(SubscriptionError, match="past_due"):
        await at.kit.subscriptions.repair("acme")


async def test_an_unknown_portal_price_is_reported_once(at: Shop, caplog: pytest.LogCaptureFixture) -> None:
    at.emulator.add_price(4200, price_id="price_portal", product="prod_team")
    (base, *_) = (await at.stripe_subscription(await by_hand(at, **WHOLE)))["items"]["data"]
    await at.stripe_change(f"/v1/subscription_items/{base['id']}", price="price_portal")
    for _ in range(3):
        await at.kit.subscriptions.sync("acme")
    (told,) = [one.message for one in caplog.records if "differs from the plans file" in one.message]
    assert "price_portal" in told
    assert (await at.kit.customers.get("acme")).plan == "free"
    await at.kit.customers.unlink("acme")
    assert await drifts_of(at.kit) == {}


@pytest.mark.parametrize(
    ("field", "stored", "by_hand"),
    [("plan", "team", "pro"), ("seats", "7", "70"), ("status", "active", "trialing")],
)
async def test_a_state_changed_by_hand_is_named(at: Shop, field: str, stored: str, by_hand: str) -> None:
    await at.subscribed(plan="team", seats=7)
    client: Any = (await at.kit.store.admin()).client
    key, quote = at.kit.store.keys.customer("acme").state, "" if field == "seats" else '"'
    old, new = (f'"{field}":{quote}{value}{quote}'.encode() for value in (stored, by_hand))
    data = await client.hget(key, "data")
    assert old in data
    await client.hset(key, "data", data.replace(old, new))
    drifts = (await at.kit.subscriptions.check())["acme"]
    said = [drift.message for drift in drifts if drift.kind == "ledger"]
    assert said == [f"its state has {field} '{by_hand}', and its ledger '{stored}'"]


async def test_of_ended_subscriptions_the_last_to_end_is_compared(at: Shop) -> None:
    first = await by_hand(at, **WHOLE)
    at.go(HOUR)
    second = await by_hand(at, **WHOLE)
    for subscription in (second, first):
        at.go(HOUR)
        await at.stripe_delete(f"/v1/subscriptions/{subscription}?invoice_now=true")
    (draft,) = [one for one in await at.invoices() if one["status"] == "draft"]
    await at.stripe_change(f"/v1/invoices/{draft['id']}", auto_advance="false")
    await at.kit.subscriptions.sync("acme")
    before = len(at.emulator.requests)
    drifts = (await at.kit.subscriptions.check())["acme"]
    assert [(one.kind, one.subscription) for one in drifts] == [("draft_invoice", first)]
    # The stored one is that which the list shows, so it is not fetched again.
    assert [asked.path for asked in at.emulator.requests[before:]].count("/v1/subscriptions") == 1
