"""``POST /v1/invoices/create_preview``: the invoice that a change would bring, without the change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import Params
from meterkit.testing.emulator.expand import expanded
from meterkit.testing.emulator.invoicing.billing import draft_of
from meterkit.testing.emulator.invoicing.charges import period_line, unused_lines, usage_of
from meterkit.testing.emulator.invoicing.taxes import read_tax
from meterkit.testing.emulator.replies import (
    ApiError,
    JsonObject,
    missing_parameter,
    missing_resource,
    new_id,
)
from meterkit.testing.emulator.selling.discounts import begun, in_force
from meterkit.testing.emulator.subscribing.billing_modes import read_mode, refuse_in_flexible, refuse_mixed
from meterkit.testing.emulator.subscribing.item_params import read_items
from meterkit.testing.emulator.subscribing.revision import begin_items, new_item
from meterkit.testing.emulator.subscribing.settings_params import apply_cancellation, wanted_discounts
from meterkit.testing.emulator.subscribing.subscriptions import ENDED, Subscription
from meterkit.testing.emulator.subscribing.updates import rearrange

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call
    from meterkit.testing.emulator.invoicing.invoices import Invoice, Line, Usage
    from meterkit.testing.emulator.subscribing.billing_modes import BillingMode

__all__ = ["PREVIEW_CALLS"]

DETAILS: Final = (
    *("billing_cycle_anchor", "billing_mode", "cancel_at", "cancel_at_period_end", "cancel_now", "items"),
    *("default_tax_rates", "metadata", "proration_behavior", "proration_date", "start_date", "trial_end"),
)


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/create_preview."""
    params = call.params
    params.only(
        *("automatic_tax", "currency", "customer", "customer_details", "discounts", "preview_mode"),
        *("subscription", "subscription_details"),
        expandable=None,
    )
    details = params.hash("subscription_details") or Params("")
    details.only(*DETAILS)
    if params.given("subscription") is None:
        invoice = _of_new(account, params, details, mode=read_mode(details, version=call.version))
    else:
        invoice = _of_change(account, params, details, version=call.version)
    shown = invoice.to_json()
    shown["id"] = f"upcoming_{invoice.id}"
    return expanded(account, shown, params)


def _of_change(account: Account, params: Params, details: Params, *, version: str) -> Invoice:
    subscription = account.subscriptions.find(params.required("subscription"), param="subscription")
    if subscription.status in ENDED:
        raise _none(subscription)
    if "proration_date" in details and details.text("proration_behavior") == "none":
        message = "`subscription_details[proration_date]` cannot be set where prorations are off."
        raise ApiError(message, param="subscription_details[proration_date]")
    draft = subscription.copy()
    if "billing_mode" in details:
        draft.billing_mode = read_mode(details, version=version)
    refuse_in_flexible(draft.billing_mode, details)
    _apply_tax_and_discounts(account, draft, params)
    wanted = read_items(account, details, of=subscription)
    change = rearrange(account, draft, wanted, details)
    apply_cancellation(draft, details, now=account.now)
    waiting = account.invoices.waiting(subscription)
    lines = [*waiting, *change.lines]
    usages: list[Usage] = []
    if details.boolean("cancel_now"):
        unused = (unused_lines(account, draft, item, at=account.now) for item in draft.items)
        lines += [line for each in unused for line in each]
        usages = _usages(draft, until=account.now)
    elif change.immediate:
        if not lines:
            raise _none(subscription)
    else:
        following, usages = _renewal(account, draft)
        lines += following
        if not lines and not usages:
            raise _none(subscription)
    invoice = draft_of(account, draft, lines, reason="upcoming", usages=usages, since=draft.renews_at)
    invoice.proration_date = change.proration_date
    if not change.immediate and not details.boolean("cancel_now"):
        invoice.created = invoice.period_end = draft.renews_at
        invoice.discounts = in_force(draft.discounts, now=draft.renews_at)
        invoice.period_start = min(item.period_start for item in draft.items)
    return invoice


def _renewal(account: Account, draft: Subscription) -> tuple[list[Line], list[Usage]]:
    """What the next renewal will charge; of a subscription that ends with its period only the usage."""
    at = draft.renews_at
    due = [item for item in draft.items if item.period_end <= at]
    usages = [] if draft.status == "trialing" else _usages(draft, until=at)
    if draft.cancel_at is not None and draft.cancel_at <= at:
        return [], usages
    lines: list[Line] = []
    for item in due:
        copied = item.copy()
        copied.renew(draft.billing_cycle_anchor, now=at)
        if not copied.price.is_metered:
            lines.append(period_line(account, copied))
    return lines, usages


def _usages(draft: Subscription, *, until: int) -> list[Usage]:
    return [usage for item in draft.items if (usage := usage_of(item, until=until)) is not None]


def _of_new(account: Account, params: Params, details: Params, *, mode: BillingMode) -> Invoice:
    """The first invoice of a subscription that is not made yet."""
    customer = params.required("customer")
    if not account.customers.exists(customer):
        raise missing_resource("customer", customer, param="customer")
    wanted = read_items(account, details, of=None)
    if not wanted:
        raise missing_parameter("subscription")
    prices = [each.new_price for each in wanted]
    draft = Subscription(
        id=new_id("sub_1", length=23),
        customer=customer,
        created=account.now,
        currency=prices[0].currency,
        billing_cycle_anchor=account.now,
        billing_mode=mode,
    )
    refuse_mixed(mode, (price.cycle for price in prices))
    draft.items = [new_item(draft, each, at=account.now) for each in wanted]
    _apply_tax_and_discounts(account, draft, params)
    lines = begin_items(account, draft, prorate=True)
    return draft_of(account, draft, lines, reason="upcoming")


def _apply_tax_and_discounts(account: Account, draft: Subscription, params: Params) -> None:
    """Where a call says nothing of them, the invoice has those of the subscription."""
    taxed = read_tax(account, params, customer=draft.customer)
    draft.automatic_tax = draft.automatic_tax if taxed is None else taxed
    known = draft.discounts
    draft.discounts = [
        each if each in known else begun(each, subscription=draft.id, now=account.now)
        for each in wanted_discounts(account, draft, params)
    ]


def _none(subscription: Subscription) -> ApiError:
    message = f"No upcoming invoices for customer: {subscription.customer}"
    return ApiError(message, status=404, code="invoice_upcoming_none")


PREVIEW_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/invoices/create_preview", _create),
)
