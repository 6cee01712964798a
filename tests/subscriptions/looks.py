"""What is known of a customer of a shop, looked up anew."""

from __future__ import annotations

from datetime import datetime

from drivers.shop import Shop
from meterkit import Subscription

__all__ = ["known", "linked_of", "pending", "synced"]


async def linked_of(at: Shop) -> str:
    linked = (await at.kit.customers.get("acme")).stripe_customer
    assert linked is not None
    return linked


async def known(at: Shop) -> Subscription:
    found = await at.kit.subscriptions.get("acme")
    assert found is not None
    return found


async def synced(at: Shop) -> Subscription:
    found = await at.kit.subscriptions.sync("acme")
    assert found is not None
    return found


def pending(found: Subscription) -> tuple[str | None, int, datetime] | None:
    """The plan and seats that are scheduled, and when they begin."""
    change = found.pending_change
    return None if change is None else (change.plan, change.seats, change.effective_at)
