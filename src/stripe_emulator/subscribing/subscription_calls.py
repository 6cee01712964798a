"""The calls about subscriptions: create, retrieve, list, update, cancel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from stripe_emulator.invoicing.billing import added_lines, bill
from stripe_emulator.invoicing.collection import attempt, can_pay, finalize, method_of
from stripe_emulator.object_calls import newest, retrieves
from stripe_emulator.protocol import (
    ApiError,
    JsonObject,
    missing_parameter,
    no_such,
)
from stripe_emulator.selling.payments import new_intent
from stripe_emulator.selling.redeeming import redeem, tell_of_discounts
from stripe_emulator.subscribing.billing_cycle import (
    period_at,
    read_mode,
    refuse_in_flexible,
    refuse_mixed,
)
from stripe_emulator.subscribing.params import (
    IGNORED_SETTINGS,
    SETTINGS,
    apply_cancellation,
    apply_settings,
    read_items,
    read_trial_end,
    refuse_while_pending,
    take_details,
    wanted_discounts,
)
from stripe_emulator.subscribing.revision import Wanted, begin_items, new_item, new_subscription
from stripe_emulator.subscribing.statuses import end
from stripe_emulator.subscribing.subscriptions import ENDED, Subscription
from stripe_emulator.subscribing.updates import BEHAVIORS, commit, is_due, rearrange, refuse_unpaid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call, Params

CREATED_WITH: Final = (
    *("add_invoice_items", "backdate_start_date", "billing_cycle_anchor", "billing_mode", "currency"),
    *("customer", "items", "payment_behavior", "proration_behavior", "trial_end", "trial_period_days"),
)
CLOCK_SUBSCRIPTIONS_MAX: Final = 3
STATUSES: Final = (
    *("active", "all", "canceled", "ended", "incomplete", "incomplete_expired", "past_due", "paused"),
    *("trialing", "unpaid"),
)
# What a subscription takes while its first invoice is not paid
# (https://docs.stripe.com/api/subscriptions/object#subscription_object-status).
WHILE_INCOMPLETE: Final = frozenset(
    {"default_payment_method", "default_source", "description", "expand", "metadata", "payment_settings"}
)

# https://docs.stripe.com/billing/subscriptions/pending-updates-reference#supported-attributes
IN_PENDING_UPDATES: Final = frozenset(
    {"add_invoice_items", "billing_cycle_anchor", "expand", "items", "payment_behavior", "proration_behavior"}
    | {"proration_date", "trial_end"}
)


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscriptions/create."""
    params = call.params
    refuse_in_flexible(read_mode(params, version=call.version), params)
    params.only(*CREATED_WITH, *SETTINGS, *IGNORED_SETTINGS, expandable=None)
    if "backdate_start_date" in params:
        raise ApiError("`backdate_start_date` is not emulated.", param="backdate_start_date")
    customer = account.customers.named(params.required("customer"))
    wanted = read_items(account, params, of=None)
    if not wanted:
        raise missing_parameter("items")
    return subscribe(account, params, wanted, customer=customer, call=call).to_json()


def subscribe(
    account: Account, params: Params, wanted: Sequence[Wanted], *, customer: str, call: Call
) -> Subscription:
    """Make a subscription as ``params`` describe it, invoice its first period and collect that.

    Args:
        account: what it is of.
        params: of ``POST /v1/subscriptions``, or the same in another's (``subscription_data``).
        wanted: its items.
        customer: whose it is.
        call: that makes it.

    Raises:
        ApiError: Stripe would refuse it.
    """
    behavior = params.choice("payment_behavior", BEHAVIORS) or "allow_incomplete"
    if behavior == "pending_if_incomplete":
        message = "`pending_if_incomplete` can only be used to update a subscription."
        raise ApiError(message, param="payment_behavior")
    draft = _draft(account, params, wanted, customer=customer, call=call)
    draft.discounts = wanted_discounts(account, draft, params)
    lines = begin_items(account, draft, prorate=params.text("proration_behavior") != "none")
    lines += added_lines(account, draft, params)
    is_charged = draft.collection_method == "charge_automatically"
    due = is_charged and is_due(account, draft, lines)
    if due and behavior != "default_incomplete":
        unpaid = not can_pay(account, draft)
        if unpaid and (
            behavior == "error_if_incomplete" or method_of(account, draft.customer, draft) is None
        ):
            raise refuse_unpaid(account, draft)
    draft.status = "incomplete" if due else draft.status
    if (
        is_charged
        and not due
        and behavior == "default_incomplete"
        and method_of(account, draft.customer, draft) is None
    ):
        intent = new_intent(
            account.setup_intents, created=account.now, customer=customer, livemode=draft.livemode
        )
        draft.pending_setup_intent = intent.id
    account.subscriptions.add(draft)
    redeem(account, [*draft.discounts, *draft.item_discounts])
    invoice = (
        bill(account, draft, lines, reason="subscription_create", draft=not is_charged) if lines else None
    )
    account.emit("customer.subscription.created", draft.to_json())
    if invoice is not None:
        account.emit("invoice.created", invoice.to_json())
    if invoice is not None and is_charged:
        # "`auto_advance` remains `false`" until it is paid
        # (https://docs.stripe.com/billing/invoices/subscription#new-subscription-invoices).
        invoice.auto_advance = False
        if finalize(account, invoice) and behavior != "default_incomplete":
            attempt(account, invoice)
    return draft


def _draft(
    account: Account, params: Params, wanted: Sequence[Wanted], *, customer: str, call: Call
) -> Subscription:
    now = account.now
    prices = [each.new_price for each in wanted]
    currencies = {price.currency for price in prices}
    if len(currencies) > 1:
        message = (
            f"All prices on a subscription must have the same currency: {', '.join(sorted(currencies))}."
        )
        raise ApiError(message, param="items")
    mode, currency = read_mode(params, version=call.version), prices[0].currency
    draft = new_subscription(account, customer, currency=currency, mode=mode, livemode=call.livemode)
    _refuse_many(account, draft)
    refuse_other_currency(account, customer, currency)
    refuse_mixed(draft.billing_mode, (price.cycle for price in prices))
    apply_settings(account, draft, params)
    trial_end = read_trial_end(params, now=now)
    if trial_end is not None and trial_end > now:
        draft.status, draft.trial_start, draft.trial_end = "trialing", now, trial_end
        draft.billing_cycle_anchor = trial_end
    if "billing_cycle_anchor" in params:
        draft.billing_cycle_anchor = _anchor(params, wanted, now=now)
    draft.items = [new_item(draft, each, at=now) for each in wanted]
    apply_cancellation(draft, params, now=now)
    return draft


def _refuse_many(account: Account, draft: Subscription) -> None:
    """At most three subscriptions a customer of a clock (https://docs.stripe.com/billing/testing/test-clocks)."""
    if draft.test_clock is not None:
        theirs = [each for each in account.subscriptions if each.customer == draft.customer]
        if len([each for each in theirs if each.status not in ENDED]) >= CLOCK_SUBSCRIPTIONS_MAX:
            message = f"A customer of a test clock can have at most {CLOCK_SUBSCRIPTIONS_MAX} subscriptions."
            raise ApiError(message, param="customer")


def refuse_other_currency(account: Account, customer: str, currency: str) -> None:
    """A customer has subscriptions in one currency (https://docs.stripe.com/invoicing/multi-currency-customers)."""
    for each in account.subscriptions:
        if each.customer == customer and each.status not in ENDED and each.currency != currency:
            message = (
                "You cannot combine currencies on a single customer. This customer has an active"
                " subscription, subscription schedule, discount, quote, or invoice item with currency"
                f" {each.currency}"
            )
            raise ApiError(message)


def _anchor(params: Params, wanted: Sequence[Wanted], *, now: int) -> int:
    """Between now and the next natural billing date (https://docs.stripe.com/billing/subscriptions/billing-cycle)."""
    anchor = params.future("billing_cycle_anchor", now=now)
    for each in wanted:
        natural = period_at(now, each.new_price.cycle, now)[1]
        if anchor > natural:
            message = (
                f"`billing_cycle_anchor` cannot be later than next natural billing date ({natural}) for plan."
            )
            raise ApiError(message, param="billing_cycle_anchor")
    return anchor


def _list(account: Account, call: Call) -> JsonObject:
    """Newest first; those that have ended, and those of a test clock, only on request.

    "The response will not include subscriptions with test clocks if this and the customer parameter is not
    set" (https://docs.stripe.com/api/subscriptions/list#list_subscriptions-test_clock).
    https://docs.stripe.com/api/subscriptions/list#list_subscriptions-status
    """
    params = call.params
    status, price = params.choice("status", STATUSES), params.text("price")
    customer = account.customers.known(params.text("customer"))
    clock = params.text("test_clock")
    starts, ends = params.span("current_period_start"), params.span("current_period_end")
    return newest(
        account.subscriptions,
        call,
        "collection_method",
        "customer",
        also=("automatic_tax", "current_period_end", "current_period_start", "price", "status", "test_clock"),
        where=lambda each: (
            _is_of(status, each)
            and (clock == each.test_clock or (clock is None and customer is not None))
            and (price is None or any(item.price.id == price for item in each.items))
            and starts(max(item.period_start for item in each.items))
            and ends(each.renews_at)
        ),
    )


def _is_of(wanted: str | None, subscription: Subscription) -> bool:
    if wanted in {None, "ended"}:
        return (subscription.status in ENDED) == (wanted == "ended")
    return wanted in {"all", subscription.status}


def _update(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscriptions/update."""
    params, subscription = call.params, account.subscriptions.find(call.object_id)
    refuse_in_flexible(subscription.billing_mode, params)
    params.only(
        "billing_cycle_anchor",
        "items",
        "payment_behavior",
        "proration_behavior",
        "proration_date",
        "add_invoice_items",
        "trial_end",
        *SETTINGS,
        *IGNORED_SETTINGS,
        expandable=None,
    )
    if subscription.status in ENDED and set(params) - {"cancellation_details", "expand", "metadata"}:
        message = "A canceled subscription can only update its cancellation_details and metadata."
        raise ApiError(message)
    refused = sorted(set(params) - WHILE_INCOMPLETE)
    if subscription.status == "incomplete" and refused:
        message = (
            f"You cannot update `{refused[0]}` of a subscription whose status is `incomplete`. Pay its first "
            "invoice first."
        )
        raise ApiError(message, param=refused[0])
    behavior = params.choice("payment_behavior", BEHAVIORS) or "allow_incomplete"
    refused = sorted(set(params) - IN_PENDING_UPDATES) if behavior == "pending_if_incomplete" else []
    if refused:
        message = f"`{refused[0]}` cannot be updated with `payment_behavior` set to `pending_if_incomplete`."
        raise ApiError(message, param=refused[0])
    draft, discounts = subscription.copy(), subscription.discounts
    apply_settings(account, draft, params)
    draft.discounts = wanted_discounts(account, draft, params)
    given = list(draft.discounts)
    wanted = read_items(account, params, of=subscription)
    if behavior == "pending_if_incomplete":
        refuse_while_pending(wanted)
    change = rearrange(account, draft, wanted, params)
    added = added_lines(account, draft, params)
    if added and not change.lines and not draft.billing_mode.is_classic:
        # One-time charges alone make no invoice in flexible billing
        # (https://docs.stripe.com/billing/subscriptions/pending-updates).
        change = replace(change, immediate=False)
    change.lines.extend(added)
    apply_cancellation(draft, params, now=account.now)
    if draft.cancel_at_period_end and draft.status not in ENDED:
        draft.cancel_at = draft.renews_at
    changed = commit(account, subscription, draft, change, behavior=behavior)
    redeem(account, [*given, *changed.item_discounts])
    tell_of_discounts(account, discounts, given)
    return changed.to_json()


def _cancel(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscriptions/cancel; one that has ended is not found."""
    params, subscription = call.params, account.subscriptions.find(call.object_id)
    params.only("cancellation_details", "invoice_now", "prorate", expandable=None)
    if subscription.status in ENDED:
        raise no_such("subscription", subscription.id)
    take_details(subscription, params)
    end(
        account,
        subscription,
        prorate=params.boolean("prorate") or False,
        invoice_now=params.boolean("invoice_now") or False,
        collects=account.behaviour.collects_after_cancel,
    )
    return subscription.to_json()


def _migrate(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscriptions/migrate: to flexible billing, and never back.

    Pending invoice items stay as they are: "Stripe doesn't recalculate any resources created before
    migration" (https://docs.stripe.com/billing/subscriptions/billing-mode).
    """
    params, subscription = call.params, account.subscriptions.find(call.object_id)
    params.only("billing_mode", expandable=None)
    if "billing_mode" not in params:
        raise missing_parameter("billing_mode")
    mode = read_mode(params, version=call.version)
    if mode.is_classic:
        message = "Invalid billing_mode[type]: must be one of flexible"
        raise ApiError(message, param="billing_mode[type]")
    if subscription.status in (*ENDED, "incomplete"):
        message = f"You cannot migrate a subscription that is in the `{subscription.status}` status."
        raise ApiError(message)
    if not subscription.billing_mode.is_classic:
        raise ApiError("This subscription's `billing_mode.type` is `flexible` already.")
    with account.updating("customer.subscription.updated", subscription.to_json):
        subscription.billing_mode = replace(mode, updated_at=account.now)
        if subscription.schedule is not None:
            account.schedules.find(subscription.schedule).billing_mode = subscription.billing_mode
    return subscription.to_json()


SUBSCRIPTION_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/subscriptions", _create),
    ("GET", "/v1/subscriptions", _list),
    ("GET", "/v1/subscriptions/{id}", retrieves(lambda account: account.subscriptions)),
    ("POST", "/v1/subscriptions/{id}", _update),
    ("POST", "/v1/subscriptions/{id}/migrate", _migrate),
    ("DELETE", "/v1/subscriptions/{id}", _cancel),
)
