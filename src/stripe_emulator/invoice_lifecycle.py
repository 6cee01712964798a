"""The life of an invoice: finalized, paid or not, overdue, voided; and its subscription's status then."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from stripe_emulator.invoice_drafts import refresh_usage, spend_discounts, subscription_of_invoice
from stripe_emulator.invoice_lines import restart_usage
from stripe_emulator.protocol import new_id
from stripe_emulator.subscription_status import cancel_subscription, leave_pause, set_status
from stripe_emulator.subscriptions import ENDED, Subscription, SubscriptionStatus

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.invoices import Invoice

DAY_S: Final = 86_400
# Less than this is put on the customer's balance
# (https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts).
CHARGE_MIN: Final = 50


def finalize_invoice(account: Account, invoice: Invoice) -> bool:
    """Finalize a draft: it is open then, or paid if nothing is due. Returns whether it is open.

    The customer's balance is applied (https://docs.stripe.com/billing/customer/balance); a total below what
    can be charged is put on it (https://docs.stripe.com/api/invoices/object#invoice_object-amount_due).
    """
    customer = account.customers.find(invoice.customer)
    subscription = subscription_of_invoice(account, invoice)
    refresh_usage(account, subscription, invoice)
    if subscription is not None:
        spend_discounts(account, subscription, invoice)
    number = account.invoices.next_number(customer.id)
    invoice.starting_balance, owed = customer.balance, customer.balance + invoice.total
    invoice.amount_due = owed if owed >= CHARGE_MIN else 0
    customer.balance = 0 if owed >= CHARGE_MIN else owed
    invoice.ending_balance = customer.balance
    invoice.number = f"{customer.invoice_prefix}-{number:04}"
    invoice.status, invoice.finalized_at, invoice.finalizes_at = "open", account.now, None
    invoice.next_payment_attempt = None
    if invoice.amount_due:
        invoice.client_secret = f"{new_id('pi_1', length=23)}_secret_{secrets.token_hex(12)}"
    account.emit("invoice.finalized", invoice.to_json())
    if invoice.amount_due and invoice.collection_method == "send_invoice":
        account.emit("invoice.sent", invoice.to_json())
    if not invoice.amount_due:
        mark_paid(account, invoice)
    return invoice.amount_due > 0


def payment_method_of(account: Account, customer: str, subscription: Subscription | None) -> str | None:
    """Return the payment method to charge: the subscription's, or the customer's default.

    https://docs.stripe.com/billing/invoices/subscription#collect-payment
    """
    own = None if subscription is None else subscription.default_payment_method
    owner = account.customers.find(customer)
    return own or owner.default_payment_method or owner.default_source


def can_pay(account: Account, subscription: Subscription, *, off_session: bool = True) -> bool:
    """Return whether a charge of this subscription would succeed."""
    method = payment_method_of(account, subscription.customer, subscription)
    return account.payment_methods.can_charge(method, customer=subscription.customer, off_session=off_session)


def attempt_payment(
    account: Account,
    invoice: Invoice,
    *,
    method: str | None = None,
    by_itself: bool = True,
    is_present: bool = False,
) -> bool:
    """Collect an open invoice; the customer may be present. Returns whether it was paid.

    "Any payment attempt counts as the first attempt, and subsequently only automatic retries increment the
    attempt count" (https://docs.stripe.com/api/invoices/object#invoice_object-attempt_count).
    """
    subscription = subscription_of_invoice(account, invoice)
    method = (
        method or invoice.default_payment_method or payment_method_of(account, invoice.customer, subscription)
    )
    invoice.attempted = True
    if by_itself or not invoice.attempt_count:
        invoice.attempt_count += 1
    if account.payment_methods.can_charge(method, customer=invoice.customer, is_present=is_present):
        mark_paid(account, invoice)
        return True
    retries = account.behaviour.retry_days
    is_last = invoice.attempt_count > len(retries)
    if by_itself:
        wait_s = 0 if is_last else retries[invoice.attempt_count - 1] * DAY_S
        invoice.next_payment_attempt = account.now + wait_s if wait_s and invoice.auto_advance else None
    account.emit("invoice.payment_failed", invoice.to_json())
    if subscription is not None and subscription.status not in ENDED:
        _record_failed_payment(account, subscription, invoice, is_last=is_last and invoice.auto_advance)
    return False


def mark_overdue(account: Account, invoice: Invoice) -> None:
    """Mark a sent invoice as overdue, and its subscription as past due.

    "If subscription `collection_method=send_invoice` it becomes `past_due` when its invoice is not paid by
    the due date" (https://docs.stripe.com/api/subscriptions/object#subscription_object-status).
    """
    invoice.is_overdue_reported = True
    account.emit("invoice.overdue", invoice.to_json())
    subscription = subscription_of_invoice(account, invoice)
    if subscription is not None and subscription.status == "active":
        set_status(account, subscription, "past_due")


def mark_paid(account: Account, invoice: Invoice) -> None:
    """Mark an open invoice as paid."""
    invoice.status, invoice.paid_at, invoice.amount_paid = "paid", account.now, invoice.amount_due
    invoice.attempted, invoice.auto_advance, invoice.next_payment_attempt = True, False, None
    account.emit("invoice.paid", invoice.to_json())
    account.emit("invoice.payment_succeeded", invoice.to_json())
    _settle_subscription(account, invoice)


def mark_uncollectible(account: Account, invoice: Invoice) -> None:
    """Mark an invoice as uncollectible."""
    invoice.status, invoice.uncollectible_at = "uncollectible", account.now
    account.emit("invoice.marked_uncollectible", invoice.to_json())
    _settle_subscription(account, invoice)


def void_invoice(account: Account, invoice: Invoice) -> None:
    """Void an invoice."""
    invoice.status, invoice.voided_at = "void", account.now
    invoice.auto_advance, invoice.next_payment_attempt = False, None
    account.emit("invoice.voided", invoice.to_json())
    subscription = subscription_of_invoice(account, invoice)
    if subscription is not None and subscription.status == "incomplete":
        set_status(account, subscription, "incomplete_expired")
    else:
        _settle_subscription(account, invoice)


def _record_failed_payment(
    account: Account, subscription: Subscription, invoice: Invoice, *, is_last: bool
) -> None:
    """Update a subscription after a failed payment of its invoice.

    https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses
    """
    if invoice.billing_reason == "subscription_create" and subscription.status == "incomplete":
        return
    if subscription.resumption == invoice.id:
        leave_pause(account, subscription, "past_due")
        return
    if subscription.pending_update is not None and subscription.pending_update.invoice == invoice.id:
        return
    if is_last and account.behaviour.after_retries == "cancel":
        cancel_subscription(account, subscription, reason="payment_failed")
        return
    status: SubscriptionStatus = (
        "unpaid" if is_last and account.behaviour.after_retries == "unpaid" else "past_due"
    )
    if subscription.status != "unpaid":
        set_status(account, subscription, status)


def _settle_subscription(account: Account, invoice: Invoice) -> None:
    """Update a subscription after its invoice was paid, marked as uncollectible, or voided.

    The latest finalized invoice that is not void decides
    (https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses).
    """
    subscription = subscription_of_invoice(account, invoice)
    if subscription is None:
        return
    update = subscription.pending_update
    if update is not None and update.invoice == invoice.id:
        if invoice.status == "paid":
            _apply_pending_update(account, subscription, update.changed)
        elif invoice.status == "void":
            subscription.pending_update = None
        return
    if subscription.resumption == invoice.id:
        if invoice.status == "paid":
            leave_pause(account, subscription, "active")
        return
    own = account.invoices.of(subscription.id)
    latest = [each.status for each in own if each.status not in {"draft", "void"}][-1:]
    is_begun = subscription.status in {"past_due", "unpaid"}
    is_beginning = subscription.status == "incomplete" and invoice.status == "paid"
    if latest != ["open"] and (is_begun or is_beginning):
        set_status(account, subscription, "active")


def _apply_pending_update(account: Account, subscription: Subscription, changed: Subscription) -> None:
    """Apply a pending update whose invoice was paid."""
    before = subscription.to_json()
    changed.pending_update, changed.latest_invoice = None, subscription.latest_invoice
    prices = {item.id: item.price for item in subscription.items}
    for item in changed.items:
        if prices.get(item.id) is not item.price:
            # Usage between the request and the payment: no page says who charges it, and no line does.
            restart_usage(account, item, at=account.now)
    account.subscriptions.add(changed)
    account.emit("customer.subscription.updated", changed.to_json(), previous=before)
    account.emit("customer.subscription.pending_update_applied", changed.to_json())
