"""What a Stripe customer is made with, by the app's function."""

from __future__ import annotations

from typing import Any

import pytest

from drivers.shop import shop
from meterkit import Contact, MeterkitError

pytestmark = pytest.mark.anyio

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
