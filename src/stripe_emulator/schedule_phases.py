"""Phases of a subscription schedule: the first one begins, each next one replaces the one before."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from stripe_emulator.invoice_drafts import charge_change, create_invoice, one_time_line
from stripe_emulator.invoice_lifecycle import void_invoice
from stripe_emulator.invoice_lines import prorated_credit_lines, restart_usage, uncharged_usage, usage_lines
from stripe_emulator.redemption import change_discounts, redeem
from stripe_emulator.subscription_changes import (
    begin_items,
    change_items,
    new_item,
    new_subscription,
    set_item_terms,
)
from stripe_emulator.subscription_params import ItemChange
from stripe_emulator.subscription_status import cancel_subscription
from stripe_emulator.subscriptions import Subscription, SubscriptionItem, apply_phase_terms
from stripe_emulator.terms import ITEM_TERMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.invoices import ChargedUsage, InvoiceLine
    from stripe_emulator.schedules import Phase, PhaseInvoiceItem, PhaseItem, Schedule


def begin_schedule(account: Account, schedule: Schedule) -> None:
    """Create the subscription of a schedule whose first phase begins now.

    Its first invoice is a draft for an hour: "To start subscriptions where the first invoice always begins in
    a `draft` status, use subscription schedules instead" (https://docs.stripe.com/api/subscriptions/create).
    """
    now, phase = account.now, schedule.phases[0]
    subscription = new_subscription(
        account,
        schedule.customer,
        currency=phase.items[0].price.currency,
        mode=schedule.billing_mode,
        livemode=schedule.livemode,
    )
    subscription.metadata, subscription.schedule = dict(phase.metadata), schedule.id
    if phase.trial_end is not None and phase.trial_end > now:
        subscription.status, subscription.trial_start = "trialing", now
        subscription.trial_end = subscription.billing_cycle_anchor = phase.trial_end
    apply_phase_terms(subscription, schedule.terms_of_phase(phase))
    subscription.items = [new_item(subscription, _item_change(item), at=now) for item in phase.items]
    change_discounts(account, subscription, phase.discounts)
    redeem(account, subscription.item_discounts)
    lines = begin_items(account, subscription, prorate=phase.proration_behavior != "none")
    lines += phase_lines(account, subscription, phase)
    schedule.status, schedule.subscription = "active", subscription.id
    subscription.scheduled_end = schedule.ends_at
    account.subscriptions.add(subscription)
    account.customers.find(schedule.customer).currency = subscription.currency
    invoice = create_invoice(account, subscription, lines, reason="subscription_create") if lines else None
    account.emit("customer.subscription.created", subscription.to_json())
    if invoice is not None:
        account.emit("invoice.created", invoice.to_json())


def phase_ends_at(account: Account, subscription: Subscription) -> int | None:
    """Return the end of the current phase of a subscription's schedule; None if it has none."""
    if subscription.schedule is None:
        return None
    schedule = account.schedules.find(subscription.schedule)
    return schedule.phases[schedule.place].end


def enter_phase(account: Account, subscription: Subscription) -> bool:
    """Enter the next phase, or end the schedule. Returns whether the subscription continues.

    Where a phase begins with a period, its items are renewed with it; else they are changed as by a call,
    with the phase's own ``proration_behavior`` (https://docs.stripe.com/billing/subscriptions/subscription-schedules).
    """
    schedule = account.schedules.find(subscription.schedule or "")
    if subscription.pending_update is not None:
        # https://docs.stripe.com/billing/subscriptions/pending-updates: a change of phase voids its invoice.
        void_invoice(account, account.invoices.find(subscription.pending_update.invoice))
    if schedule.place + 1 < len(schedule.phases):
        schedule.place += 1
        phase = schedule.phases[schedule.place]
        prorate = phase.proration_behavior != "none"
        subscription.metadata.update(phase.metadata)
        apply_phase_terms(subscription, schedule.terms_of_phase(phase))
        _invoice_removed_usage(account, subscription, phase)
        change_discounts(account, subscription, phase.discounts)
        if subscription.renews_at <= account.now:
            _replace_items(account, subscription, phase, prorate=prorate)
        else:
            changes = item_changes_of_phase(phase, subscription)
            lines = change_items(account, subscription, changes, at=account.now, prorate=prorate)
            at_once = phase.proration_behavior == "always_invoice"
            charge_change(account, subscription, lines, at_once=at_once)
        redeem(account, subscription.item_discounts)
        added = phase_lines(account, subscription, phase)
        account.invoices.pending.setdefault(subscription.id, []).extend(added)
        account.emit("subscription_schedule.updated", schedule.to_json())
        return True
    if schedule.end_behavior == "cancel":
        schedule.status, schedule.completed_at = "completed", account.now
        account.emit("subscription_schedule.completed", schedule.to_json())
        cancel_subscription(account, subscription, invoice_now=True)
        return False
    release_schedule(account, schedule, subscription)
    return True


def _invoice_removed_usage(account: Account, subscription: Subscription, phase: Phase) -> None:
    """Invoice the usage of prices that a phase removes, in classic billing.

    https://docs.stripe.com/billing/subscriptions/billing-mode/compare#usage-based-pricing
    """
    if not subscription.billing_mode.is_classic or phase.proration_behavior == "none":
        return
    kept = {item.price.id for item in phase.items}
    usages = [
        usage
        for item in subscription.items
        if item.price.id not in kept
        and (usage := uncharged_usage(item, until=min(account.now, item.period_end), removed=True))
        is not None
    ]
    if usages and subscription.status != "trialing":
        invoice = create_invoice(account, subscription, [], reason="subscription_update", usages=usages)
        account.emit("invoice.created", invoice.to_json())


def usages_at_renewal(
    account: Account, subscription: Subscription, usages: Sequence[ChargedUsage]
) -> list[ChargedUsage]:
    """Return the usage that a renewal charges if it also begins a phase.

    What the phase has removed is an invoice item on the one renewal invoice
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare#usage-based-pricing). "If you want to
    remove a metered price without billing for it, set `proration_behavior` to `none`"
    (https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup): the harder reading is
    that a phase which begins with a period is meant as well.
    """
    kept = {item.id for item in subscription.items}
    if subscription.billing_mode.is_classic:
        return [usage for usage in usages if usage.item in kept]
    if all(usage.item in kept for usage in usages):
        return list(usages)
    schedule = account.schedules.find(subscription.schedule or "")
    billed = schedule.phases[schedule.place].proration_behavior != "none"
    return [
        usage if usage.item in kept else replace(usage, removed=True)
        for usage in usages
        if usage.item in kept or billed
    ]


def release_schedule(account: Account, schedule: Schedule, subscription: Subscription) -> None:
    """Release a schedule's subscription, which stays as it is, without the end that the schedule has set."""
    schedule.status, schedule.released_at = "released", account.now
    schedule.released_subscription, schedule.subscription = subscription.id, None
    subscription.schedule = subscription.scheduled_end = None
    account.emit("subscription_schedule.released", schedule.to_json())


def item_changes_of_phase(phase: Phase, subscription: Subscription) -> list[ItemChange]:
    """Return the item changes that turn a subscription into a phase; items are matched by price."""
    by_price = {item.price.id: item for item in subscription.items}
    wanted: list[ItemChange] = []
    for phase_item in phase.items:
        known = by_price.pop(phase_item.price.id, None)
        wanted.append(_item_change(phase_item, None if known is None else known.id))
    return wanted + [ItemChange(item=item.id, deleted=True) for item in by_price.values()]


def _item_change(phase_item: PhaseItem, item: str | None = None) -> ItemChange:
    """Return the change of an item by a phase; terms and discounts that it omits are removed."""
    return ItemChange(
        item=item,
        price=phase_item.price,
        quantity=phase_item.quantity,
        metadata=phase_item.metadata,
        terms={**dict.fromkeys(ITEM_TERMS), **phase_item.terms},
        discounts=[each.discount for each in phase_item.discounts],
    )


def phase_lines(
    account: Account, subscription: Subscription, phase: Phase, *, before: Sequence[PhaseInvoiceItem] = ()
) -> list[InvoiceLine]:
    """Return the lines of a phase's one-time prices, apart from those it had ``before``."""
    charged = [each.to_json() for each in before]
    return [
        one_time_line(account, each.price, Decimal(each.quantity), subscription=subscription.id)
        for each in phase.added
        if each.to_json() not in charged
    ]


def _replace_items(account: Account, subscription: Subscription, phase: Phase, *, prorate: bool) -> None:
    """Replace a subscription's items by a phase's; their period ends now, so the renewal charges them."""
    now = account.now
    by_price = {item.price.id: item for item in subscription.items}
    items: list[SubscriptionItem] = []
    for wanted in phase.items:
        item = by_price.pop(wanted.price.id, None)
        if item is None:
            item = new_item(subscription, _item_change(wanted), at=now)
            item.period_end = now
            restart_usage(account, item, at=now)
        item.quantity = wanted.quantity
        item.metadata.update(wanted.metadata)
        set_item_terms(subscription, item, _item_change(wanted), at=now)
        items.append(item)
    for gone in by_price.values() if prorate else ():
        lines = prorated_credit_lines(account, subscription, gone, at=now)
        # Where its period ends now, the renewal charges its usage.
        is_open = gone.period_end > now and not subscription.billing_mode.is_classic
        usage = uncharged_usage(gone, until=now, removed=True) if is_open else None
        lines += [] if usage is None else usage_lines(account, subscription, usage)
        account.invoices.pending.setdefault(subscription.id, []).extend(lines)
    subscription.items = items
