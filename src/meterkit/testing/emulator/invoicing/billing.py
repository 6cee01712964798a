"""Invoices in the making: of what a subscription is charged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.invoicing.charges import usage_lines
from meterkit.testing.emulator.invoicing.invoices import Invoice
from meterkit.testing.emulator.invoicing.taxes import tax_percent
from meterkit.testing.emulator.invoicing.totals import work_out
from meterkit.testing.emulator.replies import new_id
from meterkit.testing.emulator.selling.discounts import in_force
from meterkit.testing.emulator.selling.redeeming import tell_of_discounts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.invoicing.invoices import Line, Usage
    from meterkit.testing.emulator.replies import JsonObject
    from meterkit.testing.emulator.subscribing.subscriptions import Subscription

__all__ = ["HOUR_S", "bill", "count_usage", "draft_of", "shown_now", "spend_discounts", "total_of"]

HOUR_S: Final = 3_600


def bill(
    account: Account,
    subscription: Subscription,
    lines: Sequence[Line],
    *,
    reason: str,
    usages: Sequence[Usage] = (),
    since: int | None = None,
    draft: bool = True,
    auto_advance: bool = True,
) -> Invoice:
    """Make an invoice of the lines that wait for one and of these, and return it; see :func:`draft_of`.

    ``draft`` says whether it stays one for an hour (https://docs.stripe.com/billing/invoices/subscription),
    ``auto_advance`` whether it is finalized and collected by itself.
    """
    drop_ended(account, subscription)
    waiting = account.invoices.take_waiting(subscription)
    invoice = draft_of(account, subscription, [*waiting, *lines], reason=reason, usages=usages, since=since)
    invoice.auto_advance = auto_advance
    invoice.schedule(invoice.finalizes_at if draft else None)
    account.invoices.add(invoice)
    subscription.latest_invoice = invoice.id
    _net_debits(subscription, invoice)
    spend_discounts(account, subscription, invoice)
    return invoice


def draft_of(
    account: Account,
    subscription: Subscription,
    lines: Sequence[Line],
    *,
    reason: str,
    usages: Sequence[Usage] = (),
    since: int | None = None,
) -> Invoice:
    """Return an invoice that nobody knows of yet: it advances by itself, after an hour as a draft.

    Args:
        account: what it is of.
        subscription: whose it is.
        lines: what is charged.
        reason: ``billing_reason``.
        usages: what is counted until it is finalized.
        since: where the period begins that it closes; None: it closes none.
    """
    now = account.now
    customer = account.customers.find(subscription.customer)
    invoice = Invoice(
        id=new_id("in_1", length=23),
        customer=subscription.customer,
        created=now,
        currency=subscription.currency,
        billing_reason=reason,
        period_start=now if since is None else since,
        period_end=now,
        livemode=subscription.livemode,
        subscription=subscription.id,
        subscription_metadata=dict(subscription.metadata),
        customer_email=customer.texts["email"],
        customer_name=customer.texts["name"],
        lines=list(lines),
        usages=list(usages),
        auto_advance=True,
        collection_method=subscription.collection_method,
        days_until_due=subscription.days_until_due,
        starting_balance=customer.balance,
        discounts=in_force(subscription.discounts, now=now),
        tax_percent=tax_percent(account, subscription),
        test_clock=customer.test_clock,
    )
    invoice.schedule(now + HOUR_S)
    count_usage(account, subscription, invoice)
    return invoice


def total_of(account: Account, subscription: Subscription, lines: Sequence[Line]) -> int:
    """Return what lines come to on an invoice of now, in minor units of the currency."""
    discounts = in_force(subscription.discounts, now=account.now)
    return work_out(lines, discounts, tax_percent(account, subscription)).total


def drop_ended(account: Account, subscription: Subscription) -> None:
    """Drop the discounts of a subscription that have ended."""
    left = in_force(subscription.discounts, now=account.now)
    tell_of_discounts(account, subscription.discounts, left)
    subscription.discounts = left


def spend_discounts(account: Account, subscription: Subscription, invoice: Invoice) -> None:
    """Drop the discounts for once that an invoice has made use of.

    ``once``: "applies to the first charge from a subscription with this coupon applied"
    (https://docs.stripe.com/api/coupons/object#coupon_object-duration).
    """
    used = {discount for line in invoice.totals.lines for discount, off in line.off.items() if off}
    left = [
        discount
        for discount in subscription.discounts
        if discount.coupon.duration != "once" or discount.id not in used
    ]
    tell_of_discounts(account, subscription.discounts, left)
    subscription.discounts = left


def _net_debits(subscription: Subscription, invoice: Invoice) -> None:
    """Take discounts off what was charged for items, so that credits give back what was paid.

    https://docs.stripe.com/billing/subscriptions/prorations#credit-prorations: "the original debited amount".
    """
    items = {item.id: item for item in subscription.items}
    for line, total in zip(invoice.lines, invoice.totals.lines, strict=False):
        item = items.get(line.item or "")
        for debit in () if item is None else item.debits:
            if (debit.start, debit.end) == (line.start, line.end):
                debit.amount -= total.discount


def count_usage(account: Account, subscription: Subscription, invoice: Invoice) -> None:
    """Count the usage of a draft anew: what arrives late is on it until it is finalized."""
    if invoice.status == "draft":
        invoice.usage_lines = [
            line for usage in invoice.usages for line in usage_lines(account, subscription, usage)
        ]


def shown_now(account: Account, invoice: Invoice) -> JsonObject:
    """Return an invoice as Stripe shows it; a draft has the usage that has arrived until now."""
    count_usage(account, account.subscriptions.find(invoice.subscription), invoice)
    return invoice.to_json()
