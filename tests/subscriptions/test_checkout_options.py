"""What pages of Checkout, and customers at Stripe, are made with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.shop import PLANS, shop
from meterkit import Contact, MeterkitError, PlansError
from meterkit.catalog import loads

if TYPE_CHECKING:
    from drivers.shop import Shop

pytestmark = pytest.mark.anyio

URLS: Final[Any] = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example/plans"}


CHECKOUT: Final = """
billing:
  checkout: {locale: de, allow_promotion_codes: true, subscription_data: {description: Metered}}
"""


async def test_options_of_a_call_are_laid_over_those_of_the_plans_file(store_url: str) -> None:
    """F-114."""
    async with shop(store_url, catalog=loads(PLANS + CHECKOUT)) as at:
        options = {"locale": "fr", "allow_promotion_codes": None}
        await at.kit.subscriptions.checkout("acme", "pro", seats=1, **URLS, options=options)
        (page,) = await at.stripe_list("/v1/checkout/sessions")
        assert (page["locale"], page["allow_promotion_codes"]) == ("fr", None)
        at.emulator.complete_checkout(page["id"])
        found = await at.kit.subscriptions.sync("acme")
        assert found is not None
        assert found.status == "active"
        begun = await at.stripe_subscription(found.id)
        assert begun["description"] == "Metered"
        assert begun["metadata"]["meterkit_customer"] == "acme"
        assert begun["billing_mode"]["type"] == "flexible"


OWN: Final[list[tuple[dict[str, Any], str]]] = [
    ({"customer": "cus_1"}, "customer"),
    ({"mode": "payment", "locale": "de"}, "mode"),
    ({"subscription_data": {"metadata": {"a": "b"}}}, "subscription_data.metadata"),
    ({"subscription_data": {"billing_mode": {"type": "classic"}}}, "subscription_data.billing_mode"),
    ({"subscription_data": {"trial_period_days": 90}}, "subscription_data.trial_period_days"),
    ({"subscription_data[trial_period_days]": 90}, "subscription_data[trial_period_days]"),
    ({"subscription_data": {"metadata[a]": "b"}}, "subscription_data.metadata[a]"),
    ({"line_items[0][price]": "price_free"}, "line_items[0][price]"),
]


async def test_what_meterkit_sets_itself_is_refused(at: Shop) -> None:
    for options, named in OWN:
        with pytest.raises(MeterkitError, match=re.escape(f"found {named}, which meterkit sets itself")):
            await at.kit.subscriptions.checkout("acme", "pro", **URLS, options=options)


async def test_what_stripe_cannot_be_sent_is_refused(at: Shop) -> None:
    for wrong in (["locale"], "locale", {"a": 1.5}, {"a": object()}):
        options: Any = wrong
        with pytest.raises(MeterkitError, match="options: "):
            await at.kit.subscriptions.checkout("acme", "pro", **URLS, options=options)


async def test_the_plans_file_is_refused_with_line_and_path() -> None:
    with pytest.raises(PlansError) as raised:
        loads(PLANS + "billing:\n  checkout:\n    mode: payment\n    subscription_data: {metadata: {a: b}}\n")
    assert [problem.path for problem in raised.value.problems] == [
        "billing.checkout.mode",
        "billing.checkout.subscription_data.metadata",
    ]
    with pytest.raises(PlansError, match="a map of options of Checkout"):
        loads(PLANS + "billing: {checkout: true}\n")


ADA = Contact("ada@example.com", name="Ada Lovelace", locale="en-GB")


async def of_database(customer: str) -> Contact | None:
    return ADA if customer == "acme" else None


def of_thread(customer: str) -> Contact | None:
    return ADA if customer == "acme" else None


def mistaken(customer: str) -> Any:
    return f"{customer}@example.com"


@pytest.mark.parametrize("contact", [of_database, of_thread])
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
    async with shop(store_url, contact=mistaken) as at:
        with pytest.raises(MeterkitError, match="contact: the function gave a value of type str"):
            await at.kit.subscriptions.create("acme", "pro")
        assert at.changes() == []
