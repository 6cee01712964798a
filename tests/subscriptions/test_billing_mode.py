"""Subscriptions are made in flexible billing mode; classic ones are migrated before their items change."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.shop import HALF, shop
from meterkit.errors import SubscriptionError
from subscriptions.looks import known

if TYPE_CHECKING:
    from drivers.shop import Shop

pytestmark = pytest.mark.anyio

URLS: Any = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example/plans"}


def mode_of(found: dict[str, Any]) -> str:
    return str(found["billing_mode"]["type"])


async def classic(at: Shop) -> str:
    """A classic subscription of the plan ``team``, made in the Dashboard and linked."""
    linked = at.emulator.add_customer(name="Acme")
    at.emulator.add_payment_method(linked)
    await at.stripe_change(
        "/v1/subscriptions",
        customer=linked,
        **{
            "items[0][price]": "price_team",
            "items[1][price]": "price_team_ai_tokens",
            "billing_mode[type]": "classic",
        },
    )
    await at.kit.customers.link("acme", linked)
    found = await known(at)
    assert mode_of(await at.stripe_subscription(found.id)) == "classic"
    return found.id


def migrations(at: Shop) -> int:
    return sum(one.path.endswith("/migrate") for one in at.changes())


async def test_what_is_made_is_flexible(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """F-103: by default what a request with an earlier API version makes is classic."""
    monkeypatch.setattr("meterkit.stripe.request.API_VERSION", "2025-08-27.basil")
    async with shop(store_url) as at:
        begun = await at.subscribed()
        assert mode_of(await at.stripe_subscription(begun.id)) == "flexible"
        page = await at.kit.subscriptions.checkout("ada", "pro", seats=1, **URLS)
        at.emulator.complete_checkout(page.id)
        found = await at.kit.subscriptions.sync("ada")
        assert found is not None
        assert mode_of(await at.stripe_subscription(found.id)) == "flexible"
        assert migrations(at) == 0


async def test_usage_before_an_upgrade_from_classic_mode_is_billed(at: Shop) -> None:
    """F-103: https://docs.stripe.com/billing/subscriptions/billing-mode/compare."""
    subscription = await classic(at)
    await at.kit.record("acme", "tokens", 1_100)
    at.clock.set(HALF)
    await at.kit.flush(everything=True)
    at.clock.advance(timedelta(minutes=10))
    changed = await at.kit.subscriptions.change_plan("acme", "pro")
    assert changed.subscription.plan == "pro"
    assert mode_of(await at.stripe_subscription(subscription)) == "flexible"
    lines = [line for invoice in await at.invoices() for line in invoice["lines"]["data"]]
    assert 1_000 * 2 in [line["amount"] for line in lines]
    await at.kit.subscriptions.set_seats("acme", 12)
    assert migrations(at) == 1


async def test_a_refused_migration_refuses_the_change_in_words(at: Shop) -> None:
    subscription = await classic(at)
    message = "You cannot migrate a subscription with legacy usage prices."
    at.emulator.fail_next(
        "error", status=400, path=f"/v1/subscriptions/{subscription}/migrate", message=message, times=None
    )
    before = await at.items(subscription)
    with pytest.raises(SubscriptionError, match="legacy usage prices"):
        await at.kit.subscriptions.change_plan("acme", "pro")
    assert await at.items(subscription) == before
