"""What is known of a customer of a shop, looked up anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drivers.shop import Shop
    from meterkit import Subscription

__all__ = ["known", "linked_of", "synced"]


async def linked_of(at: Shop) -> str:
    """The customer's Stripe customer."""
    linked = (await at.kit.customers.get("acme")).stripe_customer
    assert linked is not None
    return linked


async def known(at: Shop) -> Subscription:
    """The customer's subscription, as the store has it."""
    found = await at.kit.subscriptions.get("acme")
    assert found is not None
    return found


async def synced(at: Shop) -> Subscription:
    """The customer's subscription, as Stripe shows it now."""
    found = await at.kit.subscriptions.sync("acme")
    assert found is not None
    return found
