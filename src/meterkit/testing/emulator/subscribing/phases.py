"""A schedule's step from one phase to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.testing.emulator.invoicing.charges import unused_lines
from meterkit.testing.emulator.replies import new_id
from meterkit.testing.emulator.subscribing.ending import end
from meterkit.testing.emulator.subscribing.revision import Wanted, revise
from meterkit.testing.emulator.subscribing.subscriptions import Item

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.subscribing.schedules import Phase, Schedule
    from meterkit.testing.emulator.subscribing.subscriptions import Subscription

__all__ = ["enter_phase", "phase_ends_at", "release", "wanted_by"]


def phase_ends_at(account: Account, subscription: Subscription) -> int | None:
    """Return when the phase ends that a subscription's schedule is in; None where it has no schedule."""
    if subscription.schedule is None:
        return None
    schedule = account.schedules.find(subscription.schedule)
    return schedule.phases[schedule.place].end


def enter_phase(account: Account, subscription: Subscription) -> bool:
    """Step to the next phase, or past the last one. Returns whether the subscription goes on.

    Where a phase begins with a period, its items are renewed with it; else they are changed as by a call,
    with the phase's own ``proration_behavior`` (https://docs.stripe.com/billing/subscriptions/subscription-schedules).
    """
    schedule = account.schedules.find(subscription.schedule or "")
    if schedule.place + 1 < len(schedule.phases):
        schedule.place += 1
        phase = schedule.phases[schedule.place]
        prorate = phase.proration_behavior != "none"
        subscription.metadata.update(phase.metadata)
        if subscription.renews_at <= account.now:
            _replace_items(account, subscription, phase, prorate=prorate)
        else:
            changes = wanted_by(phase, subscription)
            lines = revise(account, subscription, changes, at=account.now, prorate=prorate)
            account.invoices.pending.setdefault(subscription.id, []).extend(lines)
        account.emit("subscription_schedule.updated", schedule.to_json())
        return True
    if schedule.end_behavior == "cancel":
        schedule.status, schedule.completed_at = "completed", account.now
        account.emit("subscription_schedule.completed", schedule.to_json())
        end(account, subscription, invoice_now=True)
        return False
    release(account, schedule, subscription)
    return True


def release(account: Account, schedule: Schedule, subscription: Subscription) -> None:
    """Have a schedule let go of its subscription, which stays as it is."""
    schedule.status, schedule.released_at = "released", account.now
    schedule.released_subscription, schedule.subscription = subscription.id, None
    subscription.schedule = None
    account.emit("subscription_schedule.released", schedule.to_json())


def wanted_by(phase: Phase, subscription: Subscription) -> list[Wanted]:
    """Return what has to change for a subscription to have a phase's items: they are matched by price."""
    by_price = {item.price.id: item for item in subscription.items}
    wanted: list[Wanted] = []
    for phase_item in phase.items:
        known = by_price.pop(phase_item.price.id, None)
        wanted.append(
            Wanted(
                item=None if known is None else known.id, price=phase_item.price, quantity=phase_item.quantity
            )
        )
    return wanted + [Wanted(item=item.id, deleted=True) for item in by_price.values()]


def _replace_items(account: Account, subscription: Subscription, phase: Phase, *, prorate: bool) -> None:
    """Give a subscription a phase's items, as ones whose period ends now: the renewal charges them."""
    now = account.now
    by_price = {item.price.id: item for item in subscription.items}
    items: list[Item] = []
    for wanted in phase.items:
        item = by_price.pop(wanted.price.id, None) or Item(
            id=new_id("si"),
            subscription=subscription.id,
            created=now,
            price=wanted.price,
            quantity=wanted.quantity,
            period_start=now,
            period_end=now,
            usage_from=now,
        )
        item.quantity = wanted.quantity
        items.append(item)
    for gone in by_price.values():
        lines = unused_lines(account, gone, at=now) if prorate else []
        account.invoices.pending.setdefault(subscription.id, []).extend(lines)
    subscription.items = items
