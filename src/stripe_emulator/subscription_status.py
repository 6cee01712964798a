"""The status of a subscription: paused, resumed, canceled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stripe_emulator.invoice_drafts import create_invoice
from stripe_emulator.invoice_lines import prorated_credit_lines, uncharged_usage

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.subscriptions import Subscription, SubscriptionStatus


def set_status(account: Account, subscription: Subscription, status: SubscriptionStatus) -> None:
    """Change the status of a subscription and emit an event."""
    with account.updating("customer.subscription.updated", subscription.to_json):
        subscription.status = status
        if status == "incomplete_expired":
            subscription.ended_at = account.now


def pause_subscription(account: Account, subscription: Subscription, *, why: str) -> None:
    """Pause a subscription: no invoices until it is resumed.

    https://docs.stripe.com/billing/subscriptions/pause#identify-pause-and-resume-events
    """
    with account.updating("customer.subscription.updated", subscription.to_json):
        subscription.status, subscription.paused_by, subscription.paused_at = "paused", why, account.now
        account.emit("customer.subscription.paused", subscription.to_json())


def leave_pause(account: Account, subscription: Subscription, status: SubscriptionStatus) -> None:
    """Resume a paused subscription."""
    with account.updating("customer.subscription.updated", subscription.to_json):
        subscription.status, subscription.resumption = status, None
        subscription.paused_by = subscription.paused_at = None
        account.emit("customer.subscription.resumed", subscription.to_json())


def cancel_subscription(
    account: Account,
    subscription: Subscription,
    *,
    reason: str = "cancellation_requested",
    prorate: bool = False,
    invoice_now: bool = False,
    collects: bool = True,
) -> None:
    """Cancel a subscription at once.

    Its finalized invoices are not collected any more by themselves. Without a last invoice usage is dropped,
    and without credits pending prorations, too (https://docs.stripe.com/api/subscriptions/cancel).

    Args:
        account: what it is of.
        subscription: the one to cancel.
        reason: ``cancellation_details.reason``.
        prorate: whether the unused time is credited, on the last invoice or the next.
        invoice_now: whether there is a last invoice, of usage and of what waits.
        collects: whether drafts, the last invoice among them, are finalized and collected by themselves.
    """
    now = account.now
    for invoice in account.invoices.of(subscription.id):
        if invoice.status == "open" or (invoice.status == "draft" and not collects):
            invoice.auto_advance, invoice.next_payment_attempt = False, None
    lines = [
        line
        for item in subscription.items
        for line in (prorated_credit_lines(account, subscription, item, at=now) if prorate else ())
    ]
    waiting = account.invoices.pending.get(subscription.id, [])
    # Usage of a trial is never billed (https://docs.stripe.com/billing/subscriptions/trials/free-trials).
    billed = [] if subscription.status == "trialing" else subscription.items
    usages = [usage for item in billed if (usage := uncharged_usage(item, until=now)) is not None]
    if invoice_now and (lines or waiting or usages):
        since = min(item.period_start for item in subscription.items)
        invoice = create_invoice(
            account,
            subscription,
            lines,
            reason="subscription_cycle",
            usages=usages,
            since=since,
            auto_advance=collects,
        )
        account.emit("invoice.created", invoice.to_json())
    else:
        # "Pending prorations are removed if invoice_now and prorate are both set to false"; what remains
        # "can be billed on another invoice" (https://docs.stripe.com/api/subscriptions/cancel).
        left = [line for line in waiting if prorate or line.customer is not None]
        account.invoices.pending[subscription.id] = [*left, *lines]
    subscription.status, subscription.ended_at = "canceled", now
    subscription.canceled_at = subscription.canceled_at or now
    subscription.cancellation["reason"] = subscription.cancellation["reason"] or reason
    subscription.pending_update = None
    if subscription.schedule is not None:
        cancel_schedule(account, subscription)
    account.emit("customer.subscription.deleted", subscription.to_json())


def cancel_schedule(account: Account, subscription: Subscription) -> None:
    """Cancel the schedule of a canceled subscription."""
    schedule = account.schedules.find(subscription.schedule or "")
    subscription.schedule = None
    if schedule.status == "active":
        schedule.status, schedule.canceled_at = "canceled", account.now
        account.emit("subscription_schedule.canceled", schedule.to_json())
