"""The calls about subscription items, and those that pause and resume subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.call import PAGING
from stripe_emulator.invoicing.billing import bill, charge_change
from stripe_emulator.invoicing.charges import remaining_line, unused_lines, usage_lines, usage_of
from stripe_emulator.invoicing.collection import attempt, finalize
from stripe_emulator.protocol import ApiError, JsonObject
from stripe_emulator.selling.redeeming import redeem
from stripe_emulator.subscribing.billing_cycle import period_at, refuse_in_flexible
from stripe_emulator.subscribing.params import (
    ITEM_PARAMS,
    LAST_ITEM,
    read_item,
    refuse_same_prices,
    refuse_while_pending,
)
from stripe_emulator.subscribing.revision import Wanted, restart
from stripe_emulator.subscribing.statuses import leave_pause, pause
from stripe_emulator.subscribing.subscriptions import ENDED
from stripe_emulator.subscribing.updates import BEHAVIORS, commit, rearrange

if TYPE_CHECKING:
    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call
    from stripe_emulator.invoicing.invoices import Line
    from stripe_emulator.subscribing.subscriptions import Subscription

HOW: Final = ("off_session", "payment_behavior", "proration_behavior", "proration_date")


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/create."""
    call.params.only("subscription", *ITEM_PARAMS, *HOW, expandable=None)
    subscription = account.subscriptions.find(call.params.required("subscription"), param="subscription")
    refuse_in_flexible(subscription.billing_mode, call.params)
    known = {item.id for item in subscription.items}
    wanted = read_item(account, call.params.but("subscription", "expand", *HOW), of=subscription)
    changed = _change(account, call, subscription, wanted)
    item = next(item for item in changed.items if item.id not in known)
    return item.to_json()


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    return account.subscriptions.of_item(call.object_id)[1].to_json()


def _update(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/update."""
    call.params.only(*ITEM_PARAMS, *HOW, expandable=None)
    subscription, item = account.subscriptions.of_item(call.object_id)
    refuse_in_flexible(subscription.billing_mode, call.params)
    given = call.params.but("expand", *HOW)
    wanted = read_item(account, given, of=subscription, item_id=item.id)
    changed = _change(account, call, subscription, wanted)
    shown = next(each for each in changed.items if each.id == item.id)
    return shown.to_json()


def _delete(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/delete; the last one cannot be deleted."""
    call.params.only("clear_usage", *HOW)
    subscription, item = account.subscriptions.of_item(call.object_id)
    refuse_in_flexible(subscription.billing_mode, call.params)
    if len(subscription.items) == 1:
        raise ApiError(LAST_ITEM)
    _change(account, call, subscription, Wanted(item=item.id, deleted=True))
    return {"id": item.id, "object": "subscription_item", "deleted": True}


def _list(account: Account, call: Call) -> JsonObject:
    call.params.only("subscription", *PAGING, expandable=None)
    subscription = account.subscriptions.find(call.params.required("subscription"), param="subscription")
    found = [item.to_json() for item in subscription.items]
    return call.page(found)


def _change(account: Account, call: Call, subscription: Subscription, wanted: Wanted) -> Subscription:
    if subscription.status in ENDED:
        message = "A canceled subscription can only update its cancellation_details and metadata."
        raise ApiError(message)
    refuse_same_prices([wanted], of=subscription)
    behavior = call.params.choice("payment_behavior", BEHAVIORS) or "allow_incomplete"
    if behavior == "pending_if_incomplete":
        refuse_while_pending([wanted])
    draft = subscription.copy()
    change = rearrange(account, draft, [wanted], call.params)
    changed = commit(account, subscription, draft, change, behavior=behavior)
    redeem(account, changed.item_discounts)
    return changed


ITEM_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/subscription_items", _create),
    ("GET", "/v1/subscription_items", _list),
    ("GET", "/v1/subscription_items/{id}", _retrieve),
    ("POST", "/v1/subscription_items/{id}", _update),
    ("DELETE", "/v1/subscription_items/{id}", _delete),
)


CAN_PAUSE: Final = ("active", "past_due", "unpaid")


def _pause(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/billing/subscriptions/pause: the unused time is credited, usage is charged."""
    params, subscription = call.params, account.subscriptions.find(call.object_id)
    params.only("bill_for", "invoicing_behavior", "type", expandable=None)
    if subscription.status not in CAN_PAUSE or subscription.schedule is not None:
        message = (
            f"This subscription cannot be paused: its status is `{subscription.status}`"
            f"{'' if subscription.schedule is None else ' and it has a schedule'}."
        )
        raise ApiError(message)
    unused = params.choice("bill_for[unused_time_from][type]", ("item_current_period_start", "none", "now"))
    usage = params.choice("bill_for[outstanding_usage_through][type]", ("none", "now"))
    behavior = params.choice("invoicing_behavior", ("invoice", "pending_invoice_item"))
    lines: list[Line] = []
    for item in subscription.items:
        since = item.period_start if unused == "item_current_period_start" else account.now
        lines += unused_lines(account, subscription, item, at=since) if unused != "none" else []
        used = usage_of(item, until=account.now)
        if used is not None and usage != "none":
            lines += usage_lines(account, subscription, used)
        item.period_end = item.usage_from = account.now
    charge_change(account, subscription, lines, at_once=behavior == "invoice")
    pause(account, subscription, why="pause_requested")
    return subscription.to_json()


def _resume(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscriptions/resume: with a new cycle, or in the old one."""
    params, subscription = call.params, account.subscriptions.find(call.object_id)
    params.only(
        "billing_cycle_anchor", "payment_behavior", "proration_behavior", "proration_date", expandable=None
    )
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
    lines = _resumed(account, subscription, unchanged=unchanged, prorate=behavior != "none")
    if unchanged and behavior != "always_invoice":
        account.invoices.pending.setdefault(subscription.id, []).extend(lines)
        lines = []
    if not lines:
        leave_pause(account, subscription, "active")
        return subscription.to_json()
    invoice = bill(
        account, subscription, lines, reason="subscription_update", draft=False, auto_advance=False
    )
    subscription.resumption = invoice.id
    account.emit("invoice.created", invoice.to_json())
    if finalize(account, invoice) and not waits:
        attempt(account, invoice)
    return subscription.to_json()


def _resumed(account: Account, subscription: Subscription, *, unchanged: bool, prorate: bool) -> list[Line]:
    """Begin the items' periods anew. Usage while it was paused is not invoiced.

    https://docs.stripe.com/billing/subscriptions/trials/free-trials#usage-based-billing-with-paused-subscriptions
    """
    now = account.now
    for item in subscription.items:
        item.usage_from = now
    if not unchanged:
        return restart(account, subscription, at=now, prorate=False)
    lines: list[Line] = []
    for item in subscription.items:
        item.debits = []
        item.period_start = now
        item.period_end = period_at(subscription.billing_cycle_anchor, item.price.cycle, now)[1]
        if prorate and not item.price.is_metered:
            anchor, discounts = subscription.billing_cycle_anchor, subscription.discounts
            lines.append(remaining_line(account, item, anchor=anchor, at=now, discounts=discounts))
    return lines


PAUSE_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/subscriptions/{id}/pause", _pause),
    ("POST", "/v1/subscriptions/{id}/resume", _resume),
)
