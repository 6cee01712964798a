"""Transitions that fall due by the clock: renewals, ends of trials, cancellations, phases, retries."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final, TypeAlias

from stripe_emulator.invoice_drafts import create_invoice
from stripe_emulator.invoice_lifecycle import (
    attempt_payment,
    finalize_invoice,
    mark_overdue,
    mark_uncollectible,
    payment_method_of,
    void_invoice,
)
from stripe_emulator.invoice_lines import period_line, uncharged_usage
from stripe_emulator.invoices import ChargedUsage, Invoice
from stripe_emulator.schedule_phases import (
    begin_schedule,
    enter_phase,
    phase_ends_at,
    usages_at_renewal,
)
from stripe_emulator.schedules import Schedule
from stripe_emulator.subscription_status import cancel_subscription, pause_subscription, set_status
from stripe_emulator.subscriptions import ENDED, Subscription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.protocol import JsonObject

Transitioning: TypeAlias = Invoice | Subscription | Schedule

# https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses: incomplete.
INCOMPLETE_S: Final = 23 * 3_600
# https://docs.stripe.com/api/events/types#event_types-customer.subscription.trial_will_end.
TRIAL_NOTICE_S: Final = 3 * 86_400


def run_due_transitions(account: Account) -> None:
    """Carry out all due transitions, each at its instant, in order.

    At one instant invoices come before subscriptions, and the older before the younger.
    """
    with account.lock:
        queue = TransitionQueue(account)
        for invoice in account.invoices.unfinished():
            queue.put(invoice)
        for each in (*account.subscriptions, *account.schedules):
            queue.put(each)
        while (turn := queue.take()) is not None:
            due, each = turn
            account.checkouts.expire_due(now=min(due, account.behaviour.clock()))
            with account.customer_time(each.customer, at=due):
                if isinstance(each, Invoice):
                    _advance_invoice(account, each)
                elif isinstance(each, Schedule):
                    begin_schedule(account, each)
                else:
                    _advance_subscription(account, each)
            queue.put_transitioned(each)
        account.checkouts.expire_due(now=account.behaviour.clock())


class TransitionQueue:
    """The due transitions, earliest first."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._heap: list[tuple[int, int, int, Transitioning]] = []
        self._due: dict[str, int | None] = {}
        self._places = count()

    def put(self, each: Transitioning) -> None:
        """Queue the next transition of an invoice, a subscription or a schedule, if it is due."""
        if isinstance(each, Subscription):
            due = _next_transition_at(self._account, each)
        else:
            due = each.next_transition_at
        if due != self._due.get(each.id):
            self._due[each.id] = due
            if due is not None and due <= self._account.time_of(each.customer):
                heappush(self._heap, (due, isinstance(each, Subscription), next(self._places), each))

    def take(self) -> tuple[int, Transitioning] | None:
        """Remove and return the earliest transition; None if none is due."""
        while self._heap:
            due, _, _, each = heappop(self._heap)
            if self._due.get(each.id) == due:
                self._due[each.id] = None
                return due, each
        return None

    def put_transitioned(self, each: Transitioning) -> None:
        """Queue a subscription and its invoices again after a transition; or an invoice of none."""
        subscription_id = each.id if isinstance(each, Subscription) else each.subscription
        if subscription_id is None:
            self.put(each)
            return
        self.put(self._account.subscriptions.find(subscription_id))
        for invoice in self._account.invoices.of(subscription_id):
            self.put(invoice)


def _advance_invoice(account: Account, invoice: Invoice) -> None:
    if invoice.status == "open" and invoice.collection_method == "send_invoice":
        mark_overdue(account, invoice)
        return
    if invoice.status == "draft" and not finalize_invoice(account, invoice):
        return
    if invoice.collection_method == "charge_automatically":
        attempt_payment(account, invoice)


def _next_transition_at(account: Account, subscription: Subscription) -> int | None:
    if subscription.status in ENDED:
        return None
    if subscription.status == "incomplete":
        return subscription.created + INCOMPLETE_S
    if subscription.status == "paused":
        return _earliest([subscription.cancel_at, _resumption_ends_at(account, subscription)])
    times = [subscription.renews_at, subscription.cancel_at, _collection_resumes_at(subscription)]
    if subscription.pending_update is not None:
        times.append(subscription.pending_update.expires_at)
    if (
        subscription.status == "trialing"
        and not subscription.is_trial_end_reported
        and subscription.trial_end
    ):
        times.append(max(subscription.trial_end - TRIAL_NOTICE_S, subscription.trial_start or 0))
    times.append(phase_ends_at(account, subscription))
    return _earliest(times)


def _earliest(times: Sequence[int | None]) -> int | None:
    return min((at for at in times if at is not None), default=None)


def _advance_subscription(account: Account, subscription: Subscription) -> None:
    now, before = account.now, subscription.to_json()
    if subscription.status == "incomplete":
        _expire_incomplete(account, subscription)
        return
    _emit_trial_will_end(account, subscription)
    _expire_pending_update(account, subscription)
    resumes_at = _collection_resumes_at(subscription)
    if resumes_at is not None and resumes_at <= now:
        subscription.pause_collection = None
        account.emit("customer.subscription.updated", subscription.to_json(), previous=before)
    if subscription.cancel_at is not None and subscription.cancel_at <= now:
        cancel_subscription(account, subscription, invoice_now=True, prorate=subscription.prorate_at_cancel)
        return
    if subscription.status == "paused":
        # Not paid within 23 hours: "Stripe voids the invoice and the subscription stays `paused`"
        # (https://docs.stripe.com/billing/subscriptions/pause#resume-subscriptions).
        resumption, subscription.resumption = subscription.resumption, None
        void_invoice(account, account.invoices.find(resumption or ""))
        return
    if subscription.status == "trialing" and (subscription.trial_end or 0) <= now:
        if _end_trial_without_card(account, subscription):
            return
        subscription.status = "active"
        for item in subscription.items:
            item.usage_from = now
    usages = _ended_usages(subscription, now=now)
    phase_end = phase_ends_at(account, subscription)
    if phase_end is not None and phase_end <= now:
        if not enter_phase(account, subscription):
            return
        usages = usages_at_renewal(account, subscription, usages)
    _renew_items(account, subscription, usages, before=before)


def _ended_usages(subscription: Subscription, *, now: int) -> list[ChargedUsage]:
    """Return the usage of the periods that end now."""
    ending = [item for item in subscription.items if item.period_end <= now]
    found = [uncharged_usage(item, until=item.period_end) for item in ending]
    return [usage for usage in found if usage is not None]


def _renew_items(
    account: Account, subscription: Subscription, usages: list[ChargedUsage], *, before: JsonObject
) -> None:
    """Begin the next period of the items whose period ends now, and invoice it.

    Licensed items are charged in advance, usage after its period; the invoice is a draft for an hour. Where
    the subscription is unpaid it stays one (https://docs.stripe.com/billing/subscriptions/overview).
    """
    now = account.now
    due = [item for item in subscription.items if item.period_end <= now]
    if not due and not usages:
        account.emit("customer.subscription.updated", subscription.to_json(), previous=before)
        return
    since = min((item.period_start for item in due), default=now)
    for item in due:
        item.renew(subscription.billing_cycle_anchor, now=now)
    lines = [period_line(account, item) for item in due if not item.price.is_metered]
    paused = subscription.pause_collection
    behavior = None if paused is None else paused["behavior"]
    invoice = create_invoice(
        account,
        subscription,
        lines,
        reason="subscription_cycle",
        usages=usages,
        since=since,
        auto_advance=behavior is None and subscription.status != "unpaid",
    )
    account.emit("invoice.created", invoice.to_json())
    account.emit("customer.subscription.updated", subscription.to_json(), previous=before)
    if behavior == "void":
        void_invoice(account, invoice)
    elif behavior == "mark_uncollectible":
        mark_uncollectible(account, invoice)


def _expire_incomplete(account: Account, subscription: Subscription) -> None:
    """Expire a subscription whose first invoice was not paid within 23 hours."""
    for invoice in account.invoices.of(subscription.id):
        if invoice.status == "open":
            void_invoice(account, invoice)
    if subscription.status == "incomplete":
        set_status(account, subscription, "incomplete_expired")


def _emit_trial_will_end(account: Account, subscription: Subscription) -> None:
    trial_end = subscription.trial_end
    if subscription.status != "trialing" or subscription.is_trial_end_reported or trial_end is None:
        return
    if trial_end - TRIAL_NOTICE_S <= account.now:
        subscription.is_trial_end_reported = True
        account.emit("customer.subscription.trial_will_end", subscription.to_json())


def _expire_pending_update(account: Account, subscription: Subscription) -> None:
    """https://docs.stripe.com/billing/subscriptions/pending-updates: its invoice is voided."""
    update = subscription.pending_update
    if update is None or update.expires_at > account.now:
        return
    with account.updating("customer.subscription.updated", subscription.to_json):
        void_invoice(account, account.invoices.find(update.invoice))
        subscription.pending_update = None
        account.emit("customer.subscription.pending_update_expired", subscription.to_json())


def _end_trial_without_card(account: Account, subscription: Subscription) -> bool:
    """Cancel or pause a subscription whose trial ends without a payment method. Returns whether it did.

    https://docs.stripe.com/billing/subscriptions/trials/free-trials#create-free-trials-without-payment
    """
    if payment_method_of(account, subscription.customer, subscription) is not None:
        return False
    if subscription.trial_action == "cancel":
        cancel_subscription(account, subscription, reason="payment_failed")
    elif subscription.trial_action == "pause":
        pause_subscription(account, subscription, why="trial_end_without_payment_method")
    return subscription.trial_action != "create_invoice"


def _resumption_ends_at(account: Account, subscription: Subscription) -> int | None:
    if subscription.resumption is None:
        return None
    return account.invoices.find(subscription.resumption).created + INCOMPLETE_S


def _collection_resumes_at(subscription: Subscription) -> int | None:
    paused = subscription.pause_collection
    resumes_at = None if paused is None else paused["resumes_at"]
    return resumes_at if isinstance(resumes_at, int) else None
