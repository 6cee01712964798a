"""Subscriptions that differ from the plans file: found, told, mended or left to a person (F-105)."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from drivers.delivery import STRIPE_KEY
from drivers.shop import END, PLANS, shop
from drivers.stripe_sdk import tls
from drivers.sync_queue import drifts_of, queue_sync
from meterkit import NoSubscriptionError, StripeUnavailableError, SubscriptionError
from meterkit.catalog import loads

if TYPE_CHECKING:
    from drivers.shop import Shop
    from meterkit import Drift, Subscription

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


async def post(at: Shop, path: str, **params: str) -> dict[str, Any]:
    """What a person does in Stripe's dashboard; the answer."""
    headers = {"authorization": f"Bearer {STRIPE_KEY}"}
    async with httpx.AsyncClient(base_url=at.url, headers=headers, verify=tls()) as client:
        answer = await client.post(path, data=params)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found


async def by_hand(at: Shop, customer: str = "acme", **params: str) -> str:
    """A customer with a card, linked, and a subscription that a person has made at Stripe."""
    linked = f"cus_{customer}"
    if linked not in {one["id"] for one in await at.stripe_list("/v1/customers")}:
        at.emulator.add_customer(linked)
        at.emulator.add_payment_method(linked)
        await at.kit.customers.link(customer, linked)
    made = await post(at, "/v1/subscriptions", customer=linked, **params)
    await at.kit.subscriptions.sync(customer)
    return str(made["id"])


def kinds(found: dict[str, tuple[Drift, ...]]) -> dict[str, list[str]]:
    return {customer: sorted(drift.kind for drift in drifts) for customer, drifts in found.items()}


async def item_of(at: Shop, subscription: str, price: str) -> str:
    """The id of the item of a price."""
    items = (await at.stripe_subscription(subscription))["items"]["data"]
    return str(next(item["id"] for item in items if item["price"]["id"] == price))


async def night(at: Shop) -> None:
    """The nightly look at the customer."""
    await queue_sync(at.kit, cause="reconcile")


WHOLE = {"items[0][price]": "price_team", "items[1][price]": "price_team_ai_tokens"}
CASES: dict[str, tuple[dict[str, str], list[str]]] = {
    "the base price alone": ({"items[0][price]": "price_team"}, ["missing_meter"]),
    "seven of the base price": ({**WHOLE, "items[0][quantity]": "7"}, ["base_quantity"]),
    "none of the base price": ({**WHOLE, "items[0][quantity]": "0"}, ["base_quantity"]),
    "the price of another plan's usage": (
        {**WHOLE, "items[1][price]": "price_pro_ai_tokens"},
        ["other_price"],
    ),
    "two items of one meter": ({**WHOLE, "items[2][price]": "price_pro_ai_tokens"}, ["metered_twice"]),
    "seats of another plan": (
        {**WHOLE, "items[2][price]": "price_pro_seat", "items[2][quantity]": "2"},
        ["seats"],
    ),
    "items of two plans": (
        {
            "items[0][price]": "price_team",
            "items[1][price]": "price_pro",
            "items[2][price]": "price_team_ai_tokens",
        },
        ["other_price", "two_plans"],
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_manual_change_is_found_and_repaired_to_the_plan(store_url: str, case: str) -> None:
    params, expected = CASES[case]
    async with shop(store_url) as at:
        subscription = await by_hand(at, **params)
        assert kinds(await at.kit.subscriptions.check()) == {"acme": expected}
        items = await at.items(subscription)
        tried = await at.kit.subscriptions.repair("acme", dry_run=True)
        assert (sorted(drift.kind for drift in tried.mended), tried.left) == (expected, ())
        assert await at.items(subscription) == items
        done = await at.kit.subscriptions.repair("acme")
        assert (done.mended, done.left, done.subscription) == (tried.mended, (), subscription)
        plan = "pro" if "two" in case and "plans" in case else "team"
        assert await at.items(subscription) == {f"price_{plan}": 1, f"price_{plan}_ai_tokens": None}
        assert await at.kit.subscriptions.check() == {}
        found = await at.kit.subscriptions.get("acme")
        assert found is not None
        assert found.plan == plan
        before = len(at.changes())
        assert (await at.kit.subscriptions.repair("acme")).mended == ()
        assert len(at.changes()) == before


@pytest.mark.each_store
async def test_subscriptions_that_meterkit_made_do_not_differ(any_store_url: str) -> None:
    async with shop(any_store_url) as at:
        await at.subscribed("acme", "team", 7)
        await at.subscribed("beta", "pro")
        assert await at.kit.subscriptions.check() == {}
        await at.kit.subscriptions.set_seats("beta", 12)
        await at.kit.subscriptions.change_plan("beta", "team")
        assert await at.kit.subscriptions.check() == {}
        await at.kit.subscriptions.cancel("acme")
        assert await at.kit.subscriptions.check() == {}


async def test_usage_that_no_item_bills_is_billed_from_the_repair_on(store_url: str) -> None:
    async with shop(store_url) as at:
        await by_hand(at, **{"items[0][price]": "price_team"})
        await at.kit.subscriptions.repair("acme")
        at.clock.advance(HOUR)
        await at.kit.record("acme", "tokens", 150)
        at.clock.advance(HOUR)
        await at.kit.flush(everything=True)
        at.clock.set(END + 2 * HOUR)
        at.emulator.advance()
        lines = [line for invoice in await at.invoices() for line in invoice["lines"]["data"]]
        assert sum(line["amount"] for line in lines if line["quantity"] == 50) == 100


async def test_what_was_used_is_delivered_before_an_item_is_switched(store_url: str) -> None:
    async with shop(store_url) as at:
        params, _ = CASES["the price of another plan's usage"]
        await by_hand(at, **params)
        await at.kit.record("acme", "tokens", 150)
        at.clock.advance(HOUR)
        assert at.emulator.accepted("cus_acme", "ai_tokens") == 0
        await at.kit.subscriptions.repair("acme")
        assert at.emulator.accepted("cus_acme", "ai_tokens") == 50


async def test_nothing_is_repaired_while_stripe_rejects_usage(store_url: str) -> None:
    async with shop(store_url) as at:
        params, _ = CASES["the price of another plan's usage"]
        subscription = await by_hand(at, **params)
        await at.kit.record("acme", "tokens", 150)
        at.clock.advance(HOUR)
        items = await at.items(subscription)
        at.emulator.fail_next("error", status=500, path="/v1/billing/meter_events", times=None)
        with pytest.raises(StripeUnavailableError):
            await at.kit.subscriptions.repair("acme")
        assert await at.items(subscription) == items
        assert kinds(await at.kit.subscriptions.check()) == {"acme": ["other_price"]}


async def test_plans_without_ids_are_compared_by_lookup_key(store_url: str) -> None:
    catalog = loads(re.sub(r",? stripe_price: \w+", "", PLANS))
    async with shop(store_url, catalog=catalog) as at:
        at.emulator.add_plans(catalog)
        subscription = await at.subscribed("acme", "team", 7)
        assert await at.kit.subscriptions.check() == {}
        await at.kit.customers.unlink("acme")
        done = await at.kit.subscriptions.import_from_stripe()
        assert (done.linked, done.misfits) == (1, ())
        found = await known(at)
        assert (found.id, found.plan, found.seats) == (subscription.id, "team", 7)


async def test_two_live_subscriptions_are_for_a_person_to_decide(store_url: str) -> None:
    async with shop(store_url) as at:
        first, second = await by_hand(at, **WHOLE), await by_hand(at, **WHOLE)
        assert kinds(await at.kit.subscriptions.check()) == {"acme": ["two_subscriptions"]}
        changes = len(at.changes())
        with pytest.raises(SubscriptionError, match="a person has to decide") as caught:
            await at.kit.subscriptions.repair("acme")
        assert first in str(caught.value)
        assert second in str(caught.value)
        assert len(at.changes()) == changes


async def test_an_unknown_price_in_the_portal_is_reported_once(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop(store_url) as at:
        at.emulator.add_price(4200, price_id="price_portal", product="prod_team")
        subscription = await at.subscribed()
        item = await item_of(at, subscription.id, "price_team")
        path = f"/v1/subscriptions/{subscription.id}"
        await post(at, path, **{"items[0][id]": item, "items[0][price]": "price_portal"})
        for _ in range(3):
            await at.kit.subscriptions.sync("acme")
        told = [record for record in caplog.records if "differs from the plans file" in record.getMessage()]
        assert [record.levelname for record in told] == ["WARNING"]
        assert "price_portal" in told[0].getMessage()
        found = await at.kit.subscriptions.get("acme")
        assert found is not None
        assert (found.plan, found.id) == (None, subscription.id)
        assert (await at.kit.customers.get("acme")).plan == "free"


async def test_the_night_reports_each_difference_once(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop(store_url) as at:
        await by_hand(at, **{"items[0][price]": "price_team"})
        assert await drifts_of(at.kit) == {}
        for _ in range(2):
            await night(at)
            at.clock.advance(2 * HOUR)
        assert kinds(await drifts_of(at.kit)) == {"acme": ["missing_meter"]}
        assert caplog.text.count("differs from the plans file") == 1
        await at.kit.subscriptions.repair("acme")
        assert await drifts_of(at.kit) == {}
        await night(at)
        assert await drifts_of(at.kit) == {}


async def test_prices_are_listed_once_a_night_and_before_a_report(
    store_url: str,
) -> None:
    async with shop(store_url) as at:
        await at.subscribed()
        before = len(at.emulator.requests)
        for _ in range(5):
            await night(at)
        prices = [asked for asked in at.emulator.requests[before:] if asked.path.startswith("/v1/prices")]
        assert len(prices) == 3
        # A price that is younger than the book is no difference.
        at.clock.advance(2 * timedelta(minutes=1))
        meter = (await at.stripe_list("/v1/billing/meters"))[0]["id"]
        at.emulator.add_price(3, price_id="price_new", product="prod_team", meter=meter)
        item = await item_of(at, (await known(at)).id, "price_team_ai_tokens")
        path = f"/v1/subscriptions/{(await known(at)).id}"
        await post(at, path, **{"items[0][id]": item, "items[0][price]": "price_new"})
        await night(at)
        assert await drifts_of(at.kit) == {}


async def known(at: Shop) -> Subscription:
    found = await at.kit.subscriptions.get("acme")
    assert found is not None
    return found


async def test_without_the_prices_a_customer_is_still_read(store_url: str) -> None:
    async with shop(store_url) as at:
        await by_hand(at, **{"items[0][price]": "price_team"})
        at.emulator.fail_next("error", status=500, path="/v1/prices/price_team", times=None)
        await night(at)
        assert (await at.kit.webhooks.backlog()).entries == 0
        assert await drifts_of(at.kit) == {}


async def test_who_is_unlinked_or_deleted_is_not_told_of_any_more(store_url: str) -> None:
    async with shop(store_url) as at:
        await by_hand(at, **{"items[0][price]": "price_team"})
        await at.kit.subscriptions.check()
        assert list(await drifts_of(at.kit)) == ["acme"]
        await at.kit.customers.unlink("acme")
        assert await drifts_of(at.kit) == {}
        await at.kit.customers.delete("acme")
        admin = await at.kit.store.admin()
        assert await admin.client.exists(at.kit.store.keys.hooks("drift")) == 0


async def test_debtors_and_unsubscribed_customers_are_not_repaired(store_url: str) -> None:
    async with shop(store_url) as at:
        with pytest.raises(NoSubscriptionError):
            await at.kit.subscriptions.repair("new")
        await by_hand(at, **{"items[0][price]": "price_team"})
        at.emulator.fail_payments("cus_acme")
        at.clock.set(END + 2 * HOUR)
        at.emulator.advance()
        with pytest.raises(SubscriptionError, match="past_due"):
            await at.kit.subscriptions.repair("acme")


async def test_a_check_fetches_what_no_webhook_has_told(store_url: str) -> None:
    async with shop(store_url) as at:
        subscription = await at.subscribed()
        await post(at, f"/v1/subscriptions/{subscription.id}", cancel_at_period_end="true")
        item = await item_of(at, subscription.id, "price_team")
        change = {"items[0][id]": item, "items[0][price]": "price_pro"}
        await post(at, f"/v1/subscriptions/{subscription.id}", **change)
        await at.kit.subscriptions.check()
        assert (await known(at)).plan == "pro"


async def owing(at: Shop) -> str:
    """A customer whose renewal is not paid; the open invoice."""
    await by_hand(at, **WHOLE)
    await at.kit.record("acme", "tokens", 150)
    at.clock.advance(HOUR)
    await at.kit.flush(everything=True)
    at.emulator.fail_payments("cus_acme")
    at.clock.set(END + 2 * HOUR)
    at.emulator.advance()
    await at.kit.subscriptions.sync("acme")
    assert (await at.kit.customers.get("acme")).access == "grace"
    return str(next(one["id"] for one in await at.invoices() if one["status"] == "open"))


async def test_a_voided_invoice_restores_access_and_rebills_nothing(store_url: str) -> None:
    async with shop(store_url) as at:
        await post(at, f"/v1/invoices/{await owing(at)}/void")
        await at.kit.subscriptions.sync("acme")
        found = await at.kit.customers.get("acme")
        assert (found.status, found.access, found.plan) == ("active", "full", "team")
        at.emulator.mend_payments("cus_acme")
        at.clock.advance(timedelta(days=31))
        at.emulator.advance()
        await at.kit.flush(everything=True)
        assert at.emulator.accepted("cus_acme", "ai_tokens") == 50
        live = [one for one in await at.invoices() if one["status"] == "paid"]
        assert sum(line["quantity"] == 50 for one in live for line in one["lines"]["data"]) == 0
        assert await at.kit.subscriptions.check() == {}


async def test_a_refund_changes_nothing_and_bills_nothing_anew(store_url: str) -> None:
    async with shop(store_url) as at:
        await by_hand(at, **WHOLE)
        before = await known(at)
        (invoice,) = await at.stripe_list("/v1/invoices")
        (payment,) = await at.stripe_list("/v1/invoice_payments", invoice=invoice["id"])
        await post(at, "/v1/refunds", payment_intent=payment["payment"]["payment_intent"])
        await at.kit.subscriptions.sync("acme")
        assert await known(at) == before
        assert (await at.kit.customers.get("acme")).access == "full"
        assert await at.kit.subscriptions.check() == {}
        assert len(await at.invoices()) == 1
