"""A subscription's change from one status to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.subscribing.subscriptions import Status, Subscription

__all__ = ["leave_pause", "pause", "set_status"]


def set_status(account: Account, subscription: Subscription, status: Status) -> None:
    """Give a subscription another status, and tell of it."""
    before = subscription.to_json()
    subscription.status = status
    if status == "incomplete_expired":
        subscription.ended_at = account.now
    account.emit("customer.subscription.updated", subscription.to_json(), previous=before)


def pause(account: Account, subscription: Subscription, *, why: str) -> None:
    """Pause a subscription: no invoices until it is resumed.

    https://docs.stripe.com/billing/subscriptions/pause#identify-pause-and-resume-events
    """
    before = subscription.to_json()
    subscription.status, subscription.paused_by, subscription.paused_at = "paused", why, account.now
    account.emit("customer.subscription.paused", subscription.to_json())
    account.emit("customer.subscription.updated", subscription.to_json(), previous=before)


def leave_pause(account: Account, subscription: Subscription, status: Status) -> None:
    """Have a paused subscription run again."""
    before = subscription.to_json()
    subscription.status, subscription.resumption = status, None
    subscription.paused_by = subscription.paused_at = None
    account.emit("customer.subscription.resumed", subscription.to_json())
    account.emit("customer.subscription.updated", subscription.to_json(), previous=before)
