"""Changes of a subscription: items, trial and cycle, their prorations, and how they are invoiced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_cycle import period_at
from stripe_emulator.billing_mode import BillingMode, refuse_mixed_intervals
from stripe_emulator.coupons import begin_discount
from stripe_emulator.invoice_drafts import create_invoice, total_of_lines
from stripe_emulator.invoice_lifecycle import (
    CHARGE_MIN,
    attempt_payment,
    can_pay,
    finalize_invoice,
    payment_method_of,
)
from stripe_emulator.invoice_lines import (
    period_line,
    prorated_charge_line,
    prorated_credit_lines,
    restart_usage,
    trial_line,
    uncharged_usage,
    usage_lines,
    zero_usage_line,
)
from stripe_emulator.payment_methods import NEEDS_CUSTOMER, NO_PAYMENT_METHOD, card_declined
from stripe_emulator.prices import Price, price_quantity
from stripe_emulator.protocol import ApiError, new_id
from stripe_emulator.subscription_params import ItemChange, read_trial_end
from stripe_emulator.subscription_status import set_status
from stripe_emulator.subscriptions import PendingUpdate, Subscription, SubscriptionItem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.call import Params
    from stripe_emulator.invoices import Invoice, InvoiceLine


def new_subscription(
    account: Account, customer: str, *, currency: str, mode: BillingMode, livemode: bool = False
) -> Subscription:
    """Return a subscription without items whose cycle begins now."""
    return Subscription(
        id=new_id("sub_1", length=23),
        customer=customer,
        created=account.now,
        currency=currency,
        billing_cycle_anchor=account.now,
        billing_mode=mode,
        livemode=livemode,
        test_clock=account.customers.find(customer).test_clock,
    )


def new_item(subscription: Subscription, wanted: ItemChange, *, at: int) -> SubscriptionItem:
    """Return an item that begins at an instant; its period is that of the cycle, or of the trial."""
    price = wanted.new_price
    end = subscription.trial_end if subscription.status == "trialing" else None
    item = SubscriptionItem(
        id=new_id("si"),
        subscription=subscription.id,
        created=at,
        price=price,
        quantity=None if price.is_metered else wanted.quantity,
        period_start=at,
        period_end=_period_end(subscription, price, at=at) if end is None else end,
        usage_from=at,
        metadata=dict(wanted.metadata or {}),
    )
    set_item_terms(subscription, item, wanted, at=at)
    return item


def set_item_terms(
    subscription: Subscription, item: SubscriptionItem, wanted: ItemChange, *, at: int
) -> None:
    """Set the terms and discounts that a change names; existing discounts continue."""
    item.terms = {**item.terms, **wanted.terms}
    if wanted.discounts is not None:
        item.discounts = [
            each
            if each.subscription is not None
            else begin_discount(
                replace(each, customer=subscription.customer), subscription=subscription.id, now=at
            )
            for each in wanted.discounts
        ]


def begin_items(account: Account, subscription: Subscription, *, prorate: bool) -> list[InvoiceLine]:
    """Charge the first period of all items: in full, or prorated to the cycle's anchor.

    No line is made for usage-based items, but in classic billing
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare).
    """
    lines: list[InvoiceLine] = []
    for item in subscription.items:
        if item.price.is_metered:
            lines += [zero_usage_line(account, item)] if subscription.billing_mode.is_classic else []
            continue
        if subscription.status == "trialing":
            lines.append(trial_line(account, item))
        elif subscription.billing_cycle_anchor == item.period_start:
            lines.append(period_line(account, item))
        elif prorate:
            lines.append(_prorated_line(account, subscription, item, at=item.period_start))
    return lines


def change_items(
    account: Account,
    subscription: Subscription,
    changes: Sequence[ItemChange],
    *,
    at: int,
    prorate: bool,
    restarts: bool = False,
) -> list[InvoiceLine]:
    """Change items, and return the lines that follow: credits for unused time, charges for the rest.

    Where an item is removed or its price changes, its usage up to then is charged, unless prorations are off
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare#usage-based-pricing). The cycle stays
    anchored where it is, whatever the interval of the new price (the same page: "never automatically reset").

    Args:
        account: what it is of.
        subscription: it changes.
        changes: the change of each item.
        at: Unix seconds.
        prorate: whether there are credits and charges.
        restarts: whether a cycle begins anew, which charges what is new by itself.
    """
    charge = prorate and not restarts
    lines: list[InvoiceLine] = []
    by_id = {item.id: item for item in subscription.items}
    for wanted in changes:
        item = by_id.get(wanted.item or "")
        if item is None:
            item = new_item(subscription, wanted, at=at)
            restart_usage(account, item, at=at)
            subscription.items.append(item)
            lines += _charge_lines(account, subscription, item, at=at, prorate=charge)
            continue
        item.metadata.update(wanted.metadata or {})
        set_item_terms(subscription, item, wanted, at=at)
        price = wanted.price or item.price
        quantity = None if price.is_metered else _changed_quantity(item, price, wanted)
        if not wanted.deleted and (price, quantity) == (item.price, item.quantity):
            continue
        lines += _credit_lines(account, subscription, item, at=at, prorate=prorate)
        if wanted.deleted:
            subscription.items.remove(item)
            continue
        if price.recurring != item.price.recurring and subscription.status != "trialing":
            item.period_start, item.period_end = at, _period_end(subscription, price, at=at)
        item.price, item.quantity = price, quantity
        lines += _charge_lines(account, subscription, item, at=at, prorate=charge)
    return lines


def restart_cycle(
    account: Account, subscription: Subscription, *, at: int, prorate: bool
) -> list[InvoiceLine]:
    """Anchor the cycle at an instant, charge a full period from there, and credit unused time.

    https://docs.stripe.com/billing/subscriptions/billing-cycle#reset-the-billing-period-to-the-current-time
    """
    lines: list[InvoiceLine] = []
    subscription.billing_cycle_anchor = at
    for item in subscription.items:
        lines += prorated_credit_lines(account, subscription, item, at=at) if prorate else []
        usage = None if subscription.status == "trialing" else uncharged_usage(item, until=at)
        lines += [] if usage is None else usage_lines(account, subscription, usage)
        item.usage_from = at
        item.period_start, item.period_end = at, _period_end(subscription, item.price, at=at)
        item.debits = []
        if not item.price.is_metered:
            lines.append(period_line(account, item))
    return lines


def _changed_quantity(item: SubscriptionItem, price: Price, wanted: ItemChange) -> int:
    """Return the quantity of a changed item: the requested one, its own, or 1 at another price.

    "When changing a subscription item's price, `quantity` is set to 1 unless a `quantity` parameter is
    provided" (https://docs.stripe.com/api/subscriptions/update#update_subscription-items-price).
    """
    if wanted.quantity is not None:
        return wanted.quantity
    return item.quantity if price.id == item.price.id and item.quantity is not None else 1


def _credit_lines(
    account: Account, subscription: Subscription, item: SubscriptionItem, *, at: int, prorate: bool
) -> list[InvoiceLine]:
    usage = uncharged_usage(item, until=at, removed=True)
    restart_usage(account, item, at=at)
    if not prorate:
        # A later credit is computed from the amount charged: see the example under "Calculation logic
        # with no prorations" (https://docs.stripe.com/billing/subscriptions/prorations#credit-prorations).
        return []
    if subscription.status == "trialing":
        return []
    if subscription.billing_mode.is_classic:
        # "Usage from January 1 to January 16 isn't billed"
        # (https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup).
        usage = None
    counted = [] if usage is None else usage_lines(account, subscription, usage)
    return [*prorated_credit_lines(account, subscription, item, at=at), *counted]


def _charge_lines(
    account: Account, subscription: Subscription, item: SubscriptionItem, *, at: int, prorate: bool
) -> list[InvoiceLine]:
    if item.price.is_metered and subscription.billing_mode.is_classic:
        return [zero_usage_line(account, item)]
    if item.price.is_metered or not prorate or subscription.status == "trialing":
        return []
    return [_prorated_line(account, subscription, item, at=at)]


def _prorated_line(
    account: Account, subscription: Subscription, item: SubscriptionItem, *, at: int
) -> InvoiceLine:
    anchor, discounts = subscription.billing_cycle_anchor, [*item.discounts, *subscription.discounts]
    return prorated_charge_line(account, item, anchor=anchor, at=at, discounts=discounts)


def _period_end(subscription: Subscription, price: Price, *, at: int) -> int:
    return period_at(subscription.billing_cycle_anchor, price.cycle, at)[1]


PAYMENT_BEHAVIORS: Final = (
    "allow_incomplete",
    "default_incomplete",
    "error_if_incomplete",
    "pending_if_incomplete",
)
PRORATION_BEHAVIORS: Final = ("create_prorations", "always_invoice", "none")
# Or up to the end of the trial or the period
# (https://docs.stripe.com/billing/subscriptions/pending-updates-reference#expiration).
PENDING_S: Final = 23 * 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedChange:
    """The result of a change of items, trial or cycle.

    Attributes:
        lines: charges and credits.
        immediate: whether they are invoiced at once, and not with the next invoice.
        proration_date: Unix seconds.
        off_session: whether what is paid at once is paid without the customer.
    """

    lines: list[InvoiceLine]
    immediate: bool
    proration_date: int
    off_session: bool = False


def prepare_change(
    account: Account, draft: Subscription, wanted: Sequence[ItemChange], params: Params
) -> PreparedChange:
    """Change a copy of a subscription: its items, its trial, its cycle.

    Raises:
        ApiError: Stripe would refuse it, as a cycle that is anchored before the trial's end
            (https://docs.stripe.com/changelog/endive/2026-10-28/error-code-billing-cycle-trial-end-validation-subscriptions).
    """
    now = account.now
    at = _read_proration_date(draft, params, now=now)
    behavior = params.choice("proration_behavior", PRORATION_BEHAVIORS) or "create_prorations"
    prorate = behavior != "none"
    restarts = _read_anchor_change(params) == "now" or _restarts_classic_cycle(draft, wanted)
    lines = change_items(account, draft, wanted, at=at, prorate=prorate, restarts=restarts)
    refuse_mixed_intervals(draft.billing_mode, (item.price.cycle for item in draft.items))
    immediate = behavior == "always_invoice"
    trial_end = read_trial_end(params, now=now)
    if trial_end == now:
        if draft.status == "trialing":
            draft.status, draft.trial_end = "active", now
            for item in draft.items:
                item.usage_from = now
            lines, immediate = restart_cycle(account, draft, at=now, prorate=False), True
    elif trial_end is not None:
        lines += _begin_trial(account, draft, until=trial_end, at=at, prorate=prorate)
    if draft.status == "trialing" and _read_anchor_change(params) == "now":
        message = "`billing_cycle_anchor` cannot be earlier than `trial_end`: end the trial first."
        code = "subscription_update_trial_after_billing_cycle_anchor"
        raise ApiError(message, code=code, param=params.path("billing_cycle_anchor"))
    if restarts:
        lines = [*lines, *restart_cycle(account, draft, at=now, prorate=prorate)]
        immediate = True
    off_session = params.boolean("off_session") is True
    return PreparedChange(lines=lines, immediate=immediate, proration_date=at, off_session=off_session)


def commit_change(
    account: Account,
    subscription: Subscription,
    draft: Subscription,
    change: PreparedChange,
    *,
    behavior: str,
) -> Subscription:
    """Apply a change and invoice its immediate lines. Returns the subscription as it is then.

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
    waiting = account.invoices.pending_lines(subscription)
    if not change.immediate or not [*waiting, *change.lines]:
        account.invoices.pending.setdefault(subscription.id, []).extend(change.lines)
        account.subscriptions.add(draft)
        account.emit("customer.subscription.updated", draft.to_json(), previous=before)
        return draft
    unpaid = has_amount_due(account, draft, change.lines) and not can_pay(
        account, draft, off_session=change.off_session
    )
    if unpaid and behavior == "error_if_incomplete":
        raise unpaid_error(account, draft)
    if unpaid and behavior == "pending_if_incomplete":
        invoice = _invoice_change(account, subscription, change)
        expires_at = min(account.now + PENDING_S, subscription.renews_at)
        _exclude_invoiced_usage(subscription, draft)
        subscription.pending_update = PendingUpdate(expires_at=expires_at, invoice=invoice.id, changed=draft)
        account.emit("customer.subscription.updated", subscription.to_json(), previous=before)
        _finalize_and_collect(account, invoice)
        return subscription
    account.subscriptions.add(draft)
    invoice = _invoice_change(account, draft, change)
    account.emit("customer.subscription.updated", draft.to_json(), previous=before)
    balance = account.customers.find(draft.customer).balance
    if behavior == "default_incomplete" and balance + invoice.total >= CHARGE_MIN:
        account.emit("invoice.created", invoice.to_json())
        finalize_invoice(account, invoice)
        set_status(account, draft, "past_due")
    else:
        _finalize_and_collect(account, invoice)
    return draft


def has_amount_due(account: Account, subscription: Subscription, lines: Sequence[InvoiceLine]) -> bool:
    """Return whether these lines with pending ones make an amount to be paid."""
    waiting = account.invoices.pending_lines(subscription)
    balance = account.customers.find(subscription.customer).balance
    return balance + total_of_lines(account, subscription, [*waiting, *lines]) >= CHARGE_MIN


def unpaid_error(account: Account, subscription: Subscription) -> ApiError:
    """Return the error of a failed payment: 402 with a card, 400 without one."""
    method = payment_method_of(account, subscription.customer, subscription)
    if method is None:
        return ApiError(NO_PAYMENT_METHOD, code="resource_missing", stored=True)
    if account.payment_methods.needs_authentication(method, customer=subscription.customer):
        return ApiError(
            NEEDS_CUSTOMER,
            status=HTTPStatus.PAYMENT_REQUIRED,
            kind="card_error",
            code="subscription_payment_intent_requires_action",
            stored=True,
        )
    return card_declined()


def _invoice_change(account: Account, subscription: Subscription, change: PreparedChange) -> Invoice:
    """Create the invoice of a change, which does not advance automatically.

    https://docs.stripe.com/billing/invoices/subscription#new-subscription-invoices
    """
    invoice = create_invoice(
        account, subscription, change.lines, reason="subscription_update", draft=False, auto_advance=False
    )
    invoice.proration_date = change.proration_date
    return invoice


def _exclude_invoiced_usage(subscription: Subscription, changed: Subscription) -> None:
    """Exclude the usage that the invoice of a pending update charges.

    "Outstanding usage" goes on that invoice. If it is never paid, the usage is discarded with it
    (https://docs.stripe.com/billing/subscriptions/pending-updates).
    """
    billed = {item.id: item.usage_from for item in changed.items}
    for item in subscription.items:
        item.usage_from = max(item.usage_from, billed.get(item.id, 0))


def _finalize_and_collect(account: Account, invoice: Invoice) -> None:
    account.emit("invoice.created", invoice.to_json())
    if finalize_invoice(account, invoice) and invoice.collection_method == "charge_automatically":
        attempt_payment(account, invoice)


def _begin_trial(
    account: Account, draft: Subscription, *, until: int, at: int, prorate: bool
) -> list[InvoiceLine]:
    """Begin a trial or move its end; the cycle is anchored there."""
    lines: list[InvoiceLine] = []
    was_trialing = draft.status == "trialing"
    for item in draft.items:
        if not was_trialing:
            lines += prorated_credit_lines(account, draft, item, at=at) if prorate else []
            item.period_start, item.debits = at, []
        item.period_end = until
        if not was_trialing and not item.price.is_metered:
            lines.append(trial_line(account, item))
    if not was_trialing:
        draft.status, draft.trial_start = "trialing", at
    draft.trial_end, draft.billing_cycle_anchor, draft.is_trial_end_reported = until, until, False
    return lines


def _read_proration_date(draft: Subscription, params: Params, *, now: int) -> int:
    """Return the proration date within the current period (https://docs.stripe.com/api/invoices/create_preview)."""
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


def _restarts_classic_cycle(subscription: Subscription, wanted: Sequence[ItemChange]) -> bool:
    """Return whether a change restarts the cycle: in classic billing, by another interval or a first price.

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
        costs = costs or (not price.is_metered and price_quantity(price.pricing, Decimal(1)) > 0)
    was_free = all(
        item.price.is_metered or not price_quantity(item.price.pricing, Decimal(item.quantity or 0))
        for item in subscription.items
    )
    return was_free and costs


def _read_anchor_change(params: Params) -> str | None:
    """Return ``billing_cycle_anchor``: a hash with ``type`` since 2026-09-30.endive, a text before.

    https://docs.stripe.com/changelog/endive/2026-09-30/polymorphic-billing-cycle-anchor
    """
    name = "billing_cycle_anchor[type]" if params.is_hash("billing_cycle_anchor") else "billing_cycle_anchor"
    return params.choice(name, ("now", "unchanged"))
