"""What is sold at Stripe: prices by lookup key, the bill of sync and emulator, options of Checkout."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest

from drivers.plans import plans_text
from drivers.shop import END, HALF, PLANS, Shop, sell_nothing, shop
from meterkit import Contact, MeterkitError, PlansError
from meterkit.catalog import Catalog, loads
from meterkit.errors import UnknownPlanError
from meterkit.testing import StripeEmulator
from subscriptions.looks import pending, synced

pytestmark = pytest.mark.anyio

URLS: Final[Any] = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example/plans"}


CHECKOUT: Final = """
billing:
  checkout: {locale: de, allow_promotion_codes: true, subscription_data: {description: Metered}}
"""


async def test_options_of_a_call_are_laid_over_those_of_the_plans_file(store_url: str) -> None:
    async with shop(store_url, catalog=loads(PLANS + CHECKOUT)) as at:
        options = {"locale": "fr", "allow_promotion_codes": None}
        await at.kit.subscriptions.checkout("acme", "pro", seats=1, **URLS, options=options)
        (page,) = await at.stripe_list("/v1/checkout/sessions")
        assert (page["locale"], page["allow_promotion_codes"]) == ("fr", None)
        at.emulator.complete_checkout(page["id"])
        found = await synced(at)
        assert found.status == "active"
        begun = await at.stripe_subscription(found.id)
        assert (begun["description"], begun["metadata"]["meterkit_customer"]) == ("Metered", "acme")
        assert begun["billing_mode"]["type"] == "flexible"


OWN: Final[list[tuple[dict[str, Any], str]]] = [
    ({"customer": "cus_1"}, "customer"),
    ({"mode": "payment", "locale": "de"}, "mode"),
    ({"subscription_data": {"metadata": {"a": "b"}}}, "subscription_data.metadata"),
    ({"subscription_data": {"billing_mode": {"type": "classic"}}}, "subscription_data.billing_mode"),
    ({"subscription_data": {"trial_period_days": 90}}, "subscription_data.trial_period_days"),
    ({"subscription_data[trial_period_days]": 90}, "subscription_data[trial_period_days]"),
    ({"subscription_data[metadata][a]": "b"}, "subscription_data[metadata][a]"),
    ({"subscription_data": {"metadata[a]": "b"}}, "subscription_data.metadata[a]"),
    ({"line_items[0][price]": "price_free"}, "line_items[0][price]"),
]


async def test_what_meterkit_sets_itself_is_refused(at: Shop) -> None:
    for options, named in OWN:
        with pytest.raises(MeterkitError, match=re.escape(f"found {named}, which meterkit sets itself")):
            await at.kit.subscriptions.checkout("acme", "pro", **URLS, options=options)
    for wrong in (["locale"], "locale", {"a": 1.5}, {"a": object()}):  # Stripe cannot be sent these.
        refused: Any = wrong
        with pytest.raises(MeterkitError, match="options: "):
            await at.kit.subscriptions.checkout("acme", "pro", **URLS, options=refused)


async def test_the_plans_file_is_refused_with_line_and_path() -> None:
    with pytest.raises(PlansError) as raised:
        loads(PLANS + "billing:\n  checkout:\n    mode: payment\n    subscription_data: {metadata: {a: b}}\n")
    assert [problem.path for problem in raised.value.problems] == [
        "billing.checkout.mode",
        "billing.checkout.subscription_data.metadata",
    ]
    with pytest.raises(PlansError, match="a map of options of Checkout"):
        loads(PLANS + "billing: {checkout: true}\n")


ADA = {"acme": Contact("ada@example.com", name="Ada Lovelace", locale="en-GB")}


async def of_database(customer: str) -> Contact | None:
    return ADA.get(customer)


@pytest.mark.parametrize("contact", [of_database, ADA.get])
async def test_a_stripe_customer_is_made_with_the_contact(store_url: str, contact: Any) -> None:
    """F-114: no address for receipts and reminders."""
    async with shop(store_url, contact=contact) as at:
        await at.kit.subscriptions.create("acme", "pro")
        (made,) = await at.stripe_list("/v1/customers")
        told = (made["email"], made["name"], made["preferred_locales"])
        assert told == ("ada@example.com", "Ada Lovelace", ["en-GB"])
        assert made["metadata"] == {"meterkit_customer": "acme"}
        await at.kit.subscriptions.create("acme", "team")
        assert len(await at.stripe_list("/v1/customers")) == 1
        await at.kit.subscriptions.create("other", "pro")
        other = (await at.stripe_list("/v1/customers"))[0]
        assert (other["email"], other["name"], other["preferred_locales"]) == (None, None, [])
        admin = await at.kit.store.admin()
        for key in await admin.ask(admin.client.keys("*")):  # I10: nothing of it is stored.
            dumped = await admin.ask(admin.client.dump(key))
            assert b"ada@example" not in dumped
            assert b"Lovelace" not in dumped


async def test_something_else_than_a_contact_is_refused(store_url: str) -> None:
    mistaken: Any = "{}@example.com".format
    async with shop(store_url, contact=mistaken) as at:
        with pytest.raises(MeterkitError, match="contact: the function gave a value of type str"):
            await at.kit.subscriptions.create("acme", "pro")
        assert at.changes() == []


KEYED: Final = loads(re.sub(r", stripe_price: \w+", "", PLANS))
KEYS: Final = {
    "meterkit:team:base": 1500,
    "meterkit:team:seats": 700,
    "meterkit:pro:base": 2900,
    "meterkit:pro:seats": 900,
}


def sell(emulator: StripeEmulator, _catalog: Catalog) -> None:
    """Make a price for each lookup key, under ids that nobody knows."""
    meter = emulator.add_meter("ai_tokens")
    for key, amount in KEYS.items():
        emulator.add_price(amount, lookup_key=key, metadata={"meterkit": key})
    for plan in ("team", "pro"):
        emulator.add_price(2, meter=meter, lookup_key=f"meterkit:{plan}:meter:tokens")


async def keyed_items(at: Shop, subscription: str) -> dict[str, int | None]:
    found = (await at.stripe_subscription(subscription))["items"]["data"]
    return {item["price"]["lookup_key"]: item.get("quantity") for item in found}


async def test_plans_without_ids_are_sold_by_lookup_key(store_url: str) -> None:
    async with shop(store_url, catalog=KEYED, selling=sell) as at:
        found = await at.subscribed(plan="team", seats=7)
        assert (found.plan, found.status, found.seats) == ("team", "active", 7)
        team = {"meterkit:team:base": 1, "meterkit:team:seats": 2, "meterkit:team:meter:tokens": None}
        assert await keyed_items(at, found.id) == team

        at.clock.set(HALF)
        upgraded = await at.kit.subscriptions.change_plan("acme", "pro")
        assert (upgraded.subscription.plan, upgraded.subscription.seats) == ("pro", 10)
        pro = {"meterkit:pro:base": 1, "meterkit:pro:meter:tokens": None}
        assert await keyed_items(at, found.id) == pro

        down = await at.kit.subscriptions.change_plan("acme", "team")
        assert pending(down.subscription) == ("team", 5, END)
        assert down == await at.kit.subscriptions.change_plan("acme", "team")
        at.clock.set(END)
        after = await synced(at)
        assert (after.plan, after.pending_change) == ("team", None)


async def test_a_plan_whose_price_is_not_made_yet_says_what_makes_it(store_url: str) -> None:
    async with shop(store_url, catalog=KEYED, selling=sell) as at:
        with pytest.raises(UnknownPlanError, match=r"`meterkit stripe sync` makes it"):
            await at.kit.subscriptions.create("acme", "tried")
        with pytest.raises(UnknownPlanError, match="it costs nothing"):
            await at.kit.subscriptions.create("acme", "free")


ONE_BILL: Final = loads(plans_text("one_bill"))


async def sold(at: Shop) -> list[dict[str, Any]]:
    """What there is to buy, without what differs from account to account."""
    products = {one["id"]: one["name"] for one in await at.stripe_list("/v1/products")}
    meters = {one["id"]: one["event_name"] for one in await at.stripe_list("/v1/billing/meters")}
    prices = await at.stripe_list("/v1/prices", **{"expand[]": "data.tiers"})
    for price in prices:
        price["product"] = products[price["product"]]
        price["recurring"]["meter"] = meters.get(price["recurring"]["meter"])
        del price["id"], price["created"]
    return sorted(prices, key=lambda price: str(price["lookup_key"]))


async def billed(at: Shop, customer: str) -> list[tuple[str, int]]:
    await at.subscribed(customer, plan="pro", seats=5)
    at.clock.set(HALF)
    await at.kit.record(customer, "requests", 2_345)
    await at.kit.record(customer, "words", 3_500)
    await at.kit.record(customer, "thirds", 7)
    await at.kit.flush(everything=True)
    at.clock.set(END)
    renewal = (await at.invoices())[-1]
    lines = [(line["description"].partition(" (")[0], line["amount"]) for line in renewal["lines"]["data"]]
    return sorted((text.replace("\N{MULTIPLICATION SIGN}", "x"), amount) for text, amount in lines)


async def test_the_emulator_sells_what_sync_makes(store_url: str) -> None:
    """F-106: the emulator sold begun packages, and sync sold units."""
    async with shop(store_url, catalog=ONE_BILL, selling=sell_nothing) as at:
        assert (await at.kit.stripe.sync()).problems == []
        by_sync, bill = await sold(at), await billed(at, "synced")
    assert bill == [
        ("1 x Pro", 4900),
        ("100 x Requests", 0),
        ("2 x Pro: seats", 1800),
        ("2245 x Requests", 225),
        ("2500 x Translated words", 30),
        ("7 x Thirds", 233),
    ]
    async with shop(store_url, catalog=ONE_BILL, selling=StripeEmulator.add_plans) as at:
        assert (await sold(at), await billed(at, "sold")) == (by_sync, bill)
