"""Schedules with phases of their own: the subscription begins with the first of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.testing.emulator.invoicing.billing import bill
from meterkit.testing.emulator.replies import new_id
from meterkit.testing.emulator.selling.redeeming import change_discounts
from meterkit.testing.emulator.subscribing.revision import Wanted, begin_items, new_item
from meterkit.testing.emulator.subscribing.subscriptions import Subscription

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.subscribing.schedules import Schedule

__all__ = ["begin", "begins_at"]


def begins_at(schedule: Schedule) -> int | None:
    """Return when a schedule makes its subscription, in Unix seconds; None: it has, or never will."""
    return schedule.phases[0].start if schedule.status == "not_started" else None


def begin(account: Account, schedule: Schedule) -> None:
    """Make the subscription of a schedule whose first phase begins now.

    Its first invoice is a draft for an hour: "To start subscriptions where the first invoice always begins in
    a `draft` status, use subscription schedules instead" (https://docs.stripe.com/api/subscriptions/create).
    """
    now, phase = account.now, schedule.phases[0]
    subscription = Subscription(
        id=new_id("sub_1", length=23),
        customer=schedule.customer,
        created=now,
        currency=phase.items[0].price.currency,
        billing_cycle_anchor=now,
        billing_mode=schedule.billing_mode,
        livemode=schedule.livemode,
        test_clock=account.customers.find(schedule.customer).test_clock,
        metadata=dict(phase.metadata),
        schedule=schedule.id,
    )
    if phase.trial_end is not None and phase.trial_end > now:
        subscription.status, subscription.trial_start = "trialing", now
        subscription.trial_end = subscription.billing_cycle_anchor = phase.trial_end
    subscription.items = [
        new_item(subscription, Wanted(price=item.price, quantity=item.quantity), at=now)
        for item in phase.items
    ]
    change_discounts(account, subscription, phase.discounts)
    lines = begin_items(account, subscription, prorate=phase.proration_behavior != "none")
    schedule.status, schedule.subscription = "active", subscription.id
    account.subscriptions.put(subscription)
    invoice = bill(account, subscription, lines, reason="subscription_create") if lines else None
    account.emit("customer.subscription.created", subscription.to_json())
    if invoice is not None:
        account.emit("invoice.created", invoice.to_json())
