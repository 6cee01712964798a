"""API calls about subscriptions: create, list, update, cancel, migrate, pause, resume."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_cycle import period_at
from stripe_emulator.billing_mode import read_billing_mode, refuse_classic_params, refuse_mixed_intervals
from stripe_emulator.call_table import ANY_PARAMS, PAGING, CallTable, list_newest
from stripe_emulator.invoice_drafts import charge_change, create_invoice, read_added_lines
from stripe_emulator.invoice_lifecycle import attempt_payment, can_pay, finalize_invoice, payment_method_of
from stripe_emulator.invoice_lines import (
    prorated_charge_line,
    prorated_credit_lines,
    uncharged_usage,
    usage_lines,
)
from stripe_emulator.payment_methods import create_setup_intent
from stripe_emulator.price_calls import choose_currency
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter, not_found
from stripe_emulator.redemption import emit_ended_discounts, redeem
from stripe_emulator.subscription_changes import (
    PAYMENT_BEHAVIORS,
    begin_items,
    commit_change,
    has_amount_due,
    new_item,
    new_subscription,
    prepare_change,
    restart_cycle,
    unpaid_error,
)
from stripe_emulator.subscription_params import (
    SUBSCRIPTION_IGNORED,
    SUBSCRIPTION_PARAMS,
    ItemChange,
    apply_cancellation,
    apply_cancellation_details,
    apply_settings,
    read_items,
    read_subscription_discounts,
    read_trial_end,
    refuse_deletions_while_pending,
)
from stripe_emulator.subscription_status import cancel_subscription, leave_pause, pause_subscription
from stripe_emulator.subscriptions import ENDED, Subscription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.call import Call, Params
    from stripe_emulator.invoices import InvoiceLine

CALLS: Final = CallTable()

CREATE_PARAMS: Final = (
    "add_invoice_items backdate_start_date billing_cycle_anchor billing_mode currency"
    " customer items payment_behavior proration_behavior trial_end trial_period_days"
)

UPDATE_PARAMS: Final = (
    "add_invoice_items billing_cycle_anchor items payment_behavior proration_behavior proration_date",
    "trial_end",
)

CLOCK_SUBSCRIPTIONS_MAX: Final = 3

STATUS_FILTERS: Final = (
    "active all canceled ended incomplete incomplete_expired past_due paused trialing unpaid"
)

# What a subscription takes while its first invoice is not paid
# (https://docs.stripe.com/api/subscriptions/object#subscription_object-status).
INCOMPLETE_PARAMS: Final = frozenset(
    {"default_payment_method", "default_source", "description", "expand", "metadata", "payment_settings"}
)

# https://docs.stripe.com/billing/subscriptions/pending-updates-reference#supported-attributes
PENDING_UPDATE_PARAMS: Final = frozenset(
    {"add_invoice_items", "billing_cycle_anchor", "expand", "items", "payment_behavior", "proration_behavior"}
    | {"proration_date", "trial_end"}
)


@CALLS("POST /v1/subscriptions", ANY_PARAMS)
def _create_subscription(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscriptions/create."""
    params = call.params
    refuse_classic_params(read_billing_mode(params, version=call.version), params)
    params.accept(CREATE_PARAMS, *SUBSCRIPTION_PARAMS, SUBSCRIPTION_IGNORED)
    if "backdate_start_date" in params:
        raise ApiError("`backdate_start_date` is not emulated.", param="backdate_start_date")
    customer = account.customers.require(params.required("customer"))
    wanted = read_items(account, params, of=None)
    if not wanted:
        raise missing_parameter("items")
    return subscribe(account, params, wanted, customer=customer, call=call).to_json()


def subscribe(
    account: Account, params: Params, wanted: Sequence[ItemChange], *, customer: str, call: Call
) -> Subscription:
    """Create a subscription, invoice its first period and collect the invoice.

    Args:
        account: what it is of.
        params: of ``POST /v1/subscriptions``, or the same in another's (``subscription_data``).
        wanted: its items.
        customer: whose it is.
        call: that makes it.

    Raises:
        ApiError: Stripe would refuse it.
    """
    behavior = params.choice("payment_behavior", PAYMENT_BEHAVIORS) or "allow_incomplete"
    if behavior == "pending_if_incomplete":
        message = "`pending_if_incomplete` can only be used to update a subscription."
        raise ApiError(message, param="payment_behavior")
    draft = _read_draft(account, params, wanted, customer=customer, call=call)
    draft.discounts = read_subscription_discounts(account, draft, params)
    lines = begin_items(account, draft, prorate=params.text("proration_behavior") != "none")
    lines += read_added_lines(account, draft, params)
    is_charged = draft.collection_method == "charge_automatically"
    due = is_charged and has_amount_due(account, draft, lines)
    if due and behavior != "default_incomplete":
        unpaid = not can_pay(account, draft)
        if unpaid and (
            behavior == "error_if_incomplete" or payment_method_of(account, draft.customer, draft) is None
        ):
            raise unpaid_error(account, draft)
    draft.status = "incomplete" if due else draft.status
    if (
        is_charged
        and not due
        and behavior == "default_incomplete"
        and payment_method_of(account, draft.customer, draft) is None
    ):
        intent = create_setup_intent(
            account.setup_intents, created=account.now, customer=customer, livemode=draft.livemode
        )
        draft.pending_setup_intent = intent.id
    account.subscriptions.add(draft)
    # It may be in another currency than an earlier one, which has ended.
    account.customers.find(customer).currency = draft.currency
    redeem(account, [*draft.discounts, *draft.item_discounts])
    invoice = (
        create_invoice(account, draft, lines, reason="subscription_create", draft=not is_charged)
        if lines
        else None
    )
    account.emit("customer.subscription.created", draft.to_json())
    if invoice is not None:
        account.emit("invoice.created", invoice.to_json())
    if invoice is not None and is_charged:
        # "`auto_advance` remains `false`" until it is paid
        # (https://docs.stripe.com/billing/invoices/subscription#new-subscription-invoices).
        invoice.auto_advance = False
        if finalize_invoice(account, invoice) and behavior != "default_incomplete":
            attempt_payment(account, invoice)
    return draft


def _read_draft(
    account: Account, params: Params, wanted: Sequence[ItemChange], *, customer: str, call: Call
) -> Subscription:
    now = account.now
    prices = [each.new_price for each in wanted]
    currency = choose_currency(account, prices, asked=params.nonempty_text("currency"), customer=customer)
    if currency is None:
        currencies = ", ".join(sorted({price.currency for price in prices}))
        message = f"All prices on a subscription must have the same currency: {currencies}."
        raise ApiError(message, param="items")
    mode = read_billing_mode(params, version=call.version)
    draft = new_subscription(account, customer, currency=currency, mode=mode, livemode=call.livemode)
    _refuse_too_many_of_clock(account, draft)
    refuse_other_currency(account, customer, currency)
    refuse_mixed_intervals(draft.billing_mode, (price.cycle for price in prices))
    apply_settings(account, draft, params)
    trial_end = read_trial_end(params, now=now)
    if trial_end is not None and trial_end > now:
        draft.status, draft.trial_start, draft.trial_end = "trialing", now, trial_end
        draft.billing_cycle_anchor = trial_end
    if "billing_cycle_anchor" in params:
        draft.billing_cycle_anchor = _read_anchor(params, wanted, now=now)
    charged = [replace(each, price=each.new_price.in_currency(currency)) for each in wanted]
    draft.items = [new_item(draft, each, at=now) for each in charged]
    apply_cancellation(draft, params, now=now)
    return draft


def _refuse_too_many_of_clock(account: Account, draft: Subscription) -> None:
    """Refuse a fourth subscription of a test clock's customer (https://docs.stripe.com/billing/testing/test-clocks)."""
    if draft.test_clock is not None:
        theirs = [each for each in account.subscriptions if each.customer == draft.customer]
        if len([each for each in theirs if each.status not in ENDED]) >= CLOCK_SUBSCRIPTIONS_MAX:
            message = f"A customer of a test clock can have at most {CLOCK_SUBSCRIPTIONS_MAX} subscriptions."
            raise ApiError(message, param="customer")


def refuse_other_currency(account: Account, customer: str, currency: str) -> None:
    """Refuse a second currency of a customer (https://docs.stripe.com/invoicing/multi-currency-customers)."""
    for each in account.subscriptions:
        if each.customer == customer and each.status not in ENDED and each.currency != currency:
            message = (
                "You cannot combine currencies on a single customer. This customer has an active"
                " subscription, subscription schedule, discount, quote, or invoice item with currency"
                f" {each.currency}"
            )
            raise ApiError(message)


def _read_anchor(params: Params, wanted: Sequence[ItemChange], *, now: int) -> int:
    """Return the anchor, at most the next natural billing date (https://docs.stripe.com/billing/subscriptions/billing-cycle)."""
    anchor = params.future_time("billing_cycle_anchor", now=now)
    for each in wanted:
        natural = period_at(now, each.new_price.cycle, now)[1]
        if anchor > natural:
            message = (
                f"`billing_cycle_anchor` cannot be later than next natural billing date ({natural}) for plan."
            )
            raise ApiError(message, param="billing_cycle_anchor")
    return anchor


@CALLS(
    "GET /v1/subscriptions",
    "automatic_tax collection_method created current_period_end current_period_start"
    " customer price status test_clock",
    PAGING,
)
def _list_subscriptions(account: Account, call: Call) -> JsonObject:
    """List subscriptions, newest first; ended ones, and those of a test clock, only on request.

    "The response will not include subscriptions with test clocks if this and the customer parameter is not
    set" (https://docs.stripe.com/api/subscriptions/list#list_subscriptions-test_clock).
    https://docs.stripe.com/api/subscriptions/list#list_subscriptions-status
    """
    params = call.params
    status, price = params.choice("status", STATUS_FILTERS.split()), params.text("price")
    customer = account.customers.require_ever_created(params.text("customer"))
    clock = params.text("test_clock")
    starts, ends = params.time_filter("current_period_start"), params.time_filter("current_period_end")
    return list_newest(
        account.subscriptions,
        call,
        "collection_method",
        "customer",
        where=lambda each: (
            _has_status(status, each)
            and (clock == each.test_clock or (clock is None and customer is not None))
            and (price is None or any(item.price.id == price for item in each.items))
            and starts(max(item.period_start for item in each.items))
            and ends(each.renews_at)
        ),
    )


def _has_status(wanted: str | None, subscription: Subscription) -> bool:
    if wanted in {None, "ended"}:
        return (subscription.status in ENDED) == (wanted == "ended")
    return wanted in {"all", subscription.status}


@CALLS("POST /v1/subscriptions/{id}", ANY_PARAMS)
def _update_subscription(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscriptions/update."""
    params, subscription = call.params, account.subscriptions.find(call.object_id)
    refuse_classic_params(subscription.billing_mode, params)
    params.accept(*UPDATE_PARAMS, *SUBSCRIPTION_PARAMS, SUBSCRIPTION_IGNORED)
    if subscription.status in ENDED and set(params) - {"cancellation_details", "expand", "metadata"}:
        raise ApiError("A canceled subscription can only update its cancellation_details and metadata.")
    refused = sorted(set(params) - INCOMPLETE_PARAMS)
    if subscription.status == "incomplete" and refused:
        message = (
            f"You cannot update `{refused[0]}` of a subscription whose status is `incomplete`. Pay its first "
            "invoice first."
        )
        raise ApiError(message, param=refused[0])
    behavior = params.choice("payment_behavior", PAYMENT_BEHAVIORS) or "allow_incomplete"
    refused = sorted(set(params) - PENDING_UPDATE_PARAMS) if behavior == "pending_if_incomplete" else []
    if refused:
        message = f"`{refused[0]}` cannot be updated with `payment_behavior` set to `pending_if_incomplete`."
        raise ApiError(message, param=refused[0])
    draft, discounts = subscription.copy(), subscription.discounts
    apply_settings(account, draft, params)
    draft.discounts = read_subscription_discounts(account, draft, params)
    given = list(draft.discounts)
    wanted = read_items(account, params, of=subscription)
    if behavior == "pending_if_incomplete":
        refuse_deletions_while_pending(wanted)
    change = prepare_change(account, draft, wanted, params)
    added = read_added_lines(account, draft, params)
    if added and not change.lines and not draft.billing_mode.is_classic:
        # One-time charges alone make no invoice in flexible billing
        # (https://docs.stripe.com/billing/subscriptions/pending-updates).
        change = replace(change, immediate=False)
    change.lines.extend(added)
    apply_cancellation(draft, params, now=account.now)
    if draft.cancel_at_period_end and draft.status not in ENDED:
        draft.cancel_at = draft.renews_at
    changed = commit_change(account, subscription, draft, change, behavior=behavior)
    redeem(account, [*given, *changed.item_discounts])
    emit_ended_discounts(account, discounts, given)
    return changed.to_json()


@CALLS("DELETE /v1/subscriptions/{id}", "cancellation_details invoice_now prorate")
def _cancel_subscription(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscriptions/cancel; one that has ended is not found."""
    params, subscription = call.params, account.subscriptions.find(call.object_id)
    if subscription.status in ENDED:
        raise not_found("subscription", subscription.id)
    apply_cancellation_details(subscription, params)
    cancel_subscription(
        account,
        subscription,
        prorate=params.boolean("prorate") or False,
        invoice_now=params.boolean("invoice_now") or False,
        collects=account.behaviour.collects_after_cancel,
    )
    return subscription.to_json()


@CALLS("POST /v1/subscriptions/{id}/migrate", "billing_mode")
def _migrate_subscription(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscriptions/migrate: to flexible billing, and never back.

    Pending invoice items stay as they are: "Stripe doesn't recalculate any resources created before
    migration" (https://docs.stripe.com/billing/subscriptions/billing-mode).
    """
    params, subscription = call.params, account.subscriptions.find(call.object_id)
    if "billing_mode" not in params:
        raise missing_parameter("billing_mode")
    mode = read_billing_mode(params, version=call.version)
    if mode.is_classic:
        raise ApiError("Invalid billing_mode[type]: must be one of flexible", param="billing_mode[type]")
    if subscription.status in (*ENDED, "incomplete"):
        raise ApiError(f"You cannot migrate a subscription that is in the `{subscription.status}` status.")
    if not subscription.billing_mode.is_classic:
        raise ApiError("This subscription's `billing_mode.type` is `flexible` already.")
    with account.updating("customer.subscription.updated", subscription.to_json):
        subscription.billing_mode = replace(mode, updated_at=account.now)
        if subscription.schedule is not None:
            account.schedules.find(subscription.schedule).billing_mode = subscription.billing_mode
    return subscription.to_json()


PAUSABLE_STATUSES: Final = ("active", "past_due", "unpaid")


@CALLS("POST /v1/subscriptions/{id}/pause", "bill_for invoicing_behavior type")
def _pause_subscription(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/billing/subscriptions/pause: the unused time is credited, usage is charged."""
    params, subscription = call.params, account.subscriptions.find(call.object_id)
    if subscription.status not in PAUSABLE_STATUSES or subscription.schedule is not None:
        message = (
            f"This subscription cannot be paused: its status is `{subscription.status}`"
            f"{'' if subscription.schedule is None else ' and it has a schedule'}."
        )
        raise ApiError(message)
    unused = params.choice("bill_for[unused_time_from][type]", ("item_current_period_start", "none", "now"))
    usage = params.choice("bill_for[outstanding_usage_through][type]", ("none", "now"))
    behavior = params.choice("invoicing_behavior", ("invoice", "pending_invoice_item"))
    lines: list[InvoiceLine] = []
    for item in subscription.items:
        since = item.period_start if unused == "item_current_period_start" else account.now
        lines += prorated_credit_lines(account, subscription, item, at=since) if unused != "none" else []
        used = uncharged_usage(item, until=account.now)
        if used is not None and usage != "none":
            lines += usage_lines(account, subscription, used)
        item.period_end = item.usage_from = account.now
    charge_change(account, subscription, lines, at_once=behavior == "invoice")
    pause_subscription(account, subscription, why="pause_requested")
    return subscription.to_json()


@CALLS(
    "POST /v1/subscriptions/{id}/resume",
    "billing_cycle_anchor payment_behavior proration_behavior proration_date",
)
def _resume_subscription(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscriptions/resume: with a new cycle, or in the old one."""
    params, subscription = call.params, account.subscriptions.find(call.object_id)
    if subscription.status != "paused":
        message = f"You can only resume a subscription that is paused. Its status is `{subscription.status}`."
        raise ApiError(message)
    name = "billing_cycle_anchor[type]" if params.is_hash("billing_cycle_anchor") else "billing_cycle_anchor"
    unchanged = params.choice(name, ("now", "unchanged")) == "unchanged"
    behavior = params.choice("proration_behavior", ("create_prorations", "always_invoice", "none"))
    waits = (
        params.choice("payment_behavior", ("resume_on_payment_attempt", "resume_on_payment_success"))
        == "resume_on_payment_success"
    )
    lines = _restart_after_pause(account, subscription, unchanged=unchanged, prorate=behavior != "none")
    if unchanged and behavior != "always_invoice":
        account.invoices.pending.setdefault(subscription.id, []).extend(lines)
        lines = []
    if not lines:
        leave_pause(account, subscription, "active")
        return subscription.to_json()
    invoice = create_invoice(
        account, subscription, lines, reason="subscription_update", draft=False, auto_advance=False
    )
    subscription.resumption = invoice.id
    account.emit("invoice.created", invoice.to_json())
    if finalize_invoice(account, invoice) and not waits:
        attempt_payment(account, invoice)
    return subscription.to_json()


def _restart_after_pause(
    account: Account, subscription: Subscription, *, unchanged: bool, prorate: bool
) -> list[InvoiceLine]:
    """Restart the items' periods. Usage during the pause is not invoiced.

    https://docs.stripe.com/billing/subscriptions/trials/free-trials#usage-based-billing-with-paused-subscriptions
    """
    now = account.now
    for item in subscription.items:
        item.usage_from = now
    if not unchanged:
        return restart_cycle(account, subscription, at=now, prorate=False)
    lines: list[InvoiceLine] = []
    for item in subscription.items:
        item.debits = []
        item.period_start = now
        item.period_end = period_at(subscription.billing_cycle_anchor, item.price.cycle, now)[1]
        if prorate and not item.price.is_metered:
            anchor, discounts = subscription.billing_cycle_anchor, subscription.discounts
            lines.append(prorated_charge_line(account, item, anchor=anchor, at=now, discounts=discounts))
    return lines


CALLS.retrieve("/v1/subscriptions/{id}", lambda account: account.subscriptions)
