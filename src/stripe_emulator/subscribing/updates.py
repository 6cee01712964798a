"""A subscription made, changed, paused and resumed: what binds, what is invoiced, what is collected."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from stripe_emulator.invoicing.billing import bill, total_of
from stripe_emulator.invoicing.charges import trial_line, unused_lines
from stripe_emulator.invoicing.collection import CHARGE_MIN, attempt, can_pay, finalize, method_of
from stripe_emulator.protocol import ApiError
from stripe_emulator.selling.amounts import amount_of
from stripe_emulator.selling.payments import NEEDS_CUSTOMER, NO_METHOD, declined
from stripe_emulator.subscribing.billing_cycle import refuse_mixed
from stripe_emulator.subscribing.params import read_trial_end
from stripe_emulator.subscribing.revision import restart, revise
from stripe_emulator.subscribing.statuses import set_status
from stripe_emulator.subscribing.subscriptions import PendingUpdate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.call import Params
    from stripe_emulator.invoicing.invoices import Invoice, Line
    from stripe_emulator.subscribing.revision import Wanted
    from stripe_emulator.subscribing.subscriptions import Subscription

BEHAVIORS: Final = ("allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete")
PRORATIONS: Final = ("create_prorations", "always_invoice", "none")
# Or up to the end of the trial or the period
# (https://docs.stripe.com/billing/subscriptions/pending-updates-reference#expiration).
PENDING_S: Final = 23 * 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Rearranged:
    """What a change of items, trial or cycle brings about.

    Attributes:
        lines: charges and credits.
        immediate: whether they are invoiced at once, and not with the next invoice.
        proration_date: Unix seconds.
        off_session: whether what is paid at once is paid without the customer.
    """

    lines: list[Line]
    immediate: bool
    proration_date: int
    off_session: bool = False


def rearrange(account: Account, draft: Subscription, wanted: Sequence[Wanted], params: Params) -> Rearranged:
    """Change a copy of a subscription: its items, its trial, its cycle.

    Raises:
        ApiError: Stripe would refuse it, as a cycle that is anchored before the trial's end
            (https://docs.stripe.com/changelog/endive/2026-10-28/error-code-billing-cycle-trial-end-validation-subscriptions).
    """
    now = account.now
    at = _proration_date(draft, params, now=now)
    behavior = params.choice("proration_behavior", PRORATIONS) or "create_prorations"
    prorate = behavior != "none"
    restarts = _anchor(params) == "now" or _moves_anchor(draft, wanted)
    lines = revise(account, draft, wanted, at=at, prorate=prorate, restarts=restarts)
    refuse_mixed(draft.billing_mode, (item.price.cycle for item in draft.items))
    immediate = behavior == "always_invoice"
    trial_end = read_trial_end(params, now=now)
    if trial_end == now:
        if draft.status == "trialing":
            draft.status, draft.trial_end = "active", now
            for item in draft.items:
                item.usage_from = now
            lines, immediate = restart(account, draft, at=now, prorate=False), True
    elif trial_end is not None:
        lines += _try_out(account, draft, until=trial_end, at=at, prorate=prorate)
    if draft.status == "trialing" and _anchor(params) == "now":
        message = "`billing_cycle_anchor` cannot be earlier than `trial_end`: end the trial first."
        code = "subscription_update_trial_after_billing_cycle_anchor"
        raise ApiError(message, code=code, param=params.path("billing_cycle_anchor"))
    if restarts:
        lines = [*lines, *restart(account, draft, at=now, prorate=prorate)]
        immediate = True
    off_session = params.boolean("off_session") is True
    return Rearranged(lines=lines, immediate=immediate, proration_date=at, off_session=off_session)


def commit(
    account: Account, subscription: Subscription, draft: Subscription, change: Rearranged, *, behavior: str
) -> Subscription:
    """Have a change bind and invoice what is to be invoiced at once. Returns the subscription as it is then.

    Args:
        account: what it is of.
        subscription: as it is.
        draft: as it is to be.
        change: what that brings about.
        behavior: ``payment_behavior``: what becomes of the change if it is not paid
            (https://docs.stripe.com/billing/subscriptions/pending-updates).

    Raises:
        ApiError: it is not paid, and was to be refused then: 402.
    """
    before = subscription.to_json()
    waiting = account.invoices.waiting(subscription)
    if not change.immediate or not [*waiting, *change.lines]:
        account.invoices.pending.setdefault(subscription.id, []).extend(change.lines)
        account.subscriptions.add(draft)
        account.emit("customer.subscription.updated", draft.to_json(), previous=before)
        return draft
    unpaid = is_due(account, draft, change.lines) and not can_pay(
        account, draft, off_session=change.off_session
    )
    if unpaid and behavior == "error_if_incomplete":
        raise refuse_unpaid(account, draft)
    if unpaid and behavior == "pending_if_incomplete":
        invoice = _invoice(account, subscription, change)
        expires_at = min(account.now + PENDING_S, subscription.renews_at)
        _move_usage(subscription, draft)
        subscription.pending_update = PendingUpdate(expires_at=expires_at, invoice=invoice.id, changed=draft)
        account.emit("customer.subscription.updated", subscription.to_json(), previous=before)
        _collect(account, invoice)
        return subscription
    account.subscriptions.add(draft)
    invoice = _invoice(account, draft, change)
    account.emit("customer.subscription.updated", draft.to_json(), previous=before)
    balance = account.customers.find(draft.customer).balance
    if behavior == "default_incomplete" and balance + invoice.total >= CHARGE_MIN:
        account.emit("invoice.created", invoice.to_json())
        finalize(account, invoice)
        set_status(account, draft, "past_due")
    else:
        _collect(account, invoice)
    return draft


def is_due(account: Account, subscription: Subscription, lines: Sequence[Line]) -> bool:
    """Tell whether lines, with those that wait for an invoice, come to an amount that has to be paid."""
    waiting = account.invoices.waiting(subscription)
    balance = account.customers.find(subscription.customer).balance
    return balance + total_of(account, subscription, [*waiting, *lines]) >= CHARGE_MIN


def refuse_unpaid(account: Account, subscription: Subscription) -> ApiError:
    """The refusal of what was to be paid: 402 with a card that does not work, 400 without one."""
    method = method_of(account, subscription.customer, subscription)
    if method is None:
        return ApiError(NO_METHOD, code="resource_missing", stored=True)
    if account.payment_methods.needs_customer(method, customer=subscription.customer):
        return ApiError(
            NEEDS_CUSTOMER,
            status=HTTPStatus.PAYMENT_REQUIRED,
            kind="card_error",
            code="subscription_payment_intent_requires_action",
            stored=True,
        )
    return declined()


def _invoice(account: Account, subscription: Subscription, change: Rearranged) -> Invoice:
    """Invoices of changes do not advance by themselves.

    https://docs.stripe.com/billing/invoices/subscription#new-subscription-invoices
    """
    invoice = bill(
        account, subscription, change.lines, reason="subscription_update", draft=False, auto_advance=False
    )
    invoice.proration_date = change.proration_date
    return invoice


def _move_usage(subscription: Subscription, changed: Subscription) -> None:
    """Have a subscription not charge again what the invoice of its pending update charges.

    "Outstanding usage" goes on that invoice. If it is never paid, the usage is discarded with it
    (https://docs.stripe.com/billing/subscriptions/pending-updates).
    """
    billed = {item.id: item.usage_from for item in changed.items}
    for item in subscription.items:
        item.usage_from = max(item.usage_from, billed.get(item.id, 0))


def _collect(account: Account, invoice: Invoice) -> None:
    account.emit("invoice.created", invoice.to_json())
    if finalize(account, invoice) and invoice.collection_method == "charge_automatically":
        attempt(account, invoice)


def _try_out(account: Account, draft: Subscription, *, until: int, at: int, prorate: bool) -> list[Line]:
    """Put a subscription on trial, or move its trial's end; the cycle is anchored there."""
    lines: list[Line] = []
    was_trialing = draft.status == "trialing"
    for item in draft.items:
        if not was_trialing:
            lines += unused_lines(account, draft, item, at=at) if prorate else []
            item.period_start, item.debits = at, []
        item.period_end = until
        if not was_trialing and not item.price.is_metered:
            lines.append(trial_line(account, item))
    if not was_trialing:
        draft.status, draft.trial_start = "trialing", at
    draft.trial_end, draft.billing_cycle_anchor, draft.trial_end_told = until, until, False
    return lines


def _proration_date(draft: Subscription, params: Params, *, now: int) -> int:
    """Within the present period (https://docs.stripe.com/api/invoices/create_preview)."""
    at = params.integer("proration_date")
    if at is None:
        return now
    start = max(item.period_start for item in draft.items)
    if not start <= at <= draft.renews_at:
        message = (
            f"Cannot specify a proration date outside of the current period ({start} - {draft.renews_at})."
        )
        raise ApiError(message, param=params.path("proration_date"))
    return at


def _moves_anchor(subscription: Subscription, wanted: Sequence[Wanted]) -> bool:
    """Whether a change begins a cycle by itself: in classic billing another interval does, and a first price.

    Flexible billing never resets the anchor
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare). Not emulated: that an earlier
    ``cancel_at`` moves it, too.
    """
    if not subscription.billing_mode.is_classic or subscription.status == "trialing":
        return False
    by_id = {item.id: item for item in subscription.items}
    costs = False
    for each in wanted:
        item = by_id.get(each.item or "")
        price = each.price or (None if item is None else item.price)
        if each.deleted or price is None:
            continue
        old = None if item is None else item.price.cycle
        if old is not None and (old.interval, old.interval_count) != (
            price.cycle.interval,
            price.cycle.interval_count,
        ):
            return True
        costs = costs or (not price.is_metered and amount_of(price.pricing, Decimal(1)) > 0)
    was_free = all(
        item.price.is_metered or not amount_of(item.price.pricing, Decimal(item.quantity or 0))
        for item in subscription.items
    )
    return was_free and costs


def _anchor(params: Params) -> str | None:
    """A hash with ``type`` since 2026-09-30.endive, a text before.

    https://docs.stripe.com/changelog/endive/2026-09-30/polymorphic-billing-cycle-anchor
    """
    name = "billing_cycle_anchor[type]" if params.is_hash("billing_cycle_anchor") else "billing_cycle_anchor"
    return params.choice(name, ("now", "unchanged"))
