"""Invoice previews: the next invoice of a subscription, with changes or without."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_mode import (
    BillingMode,
    read_billing_mode,
    refuse_classic_params,
    refuse_mixed_intervals,
)
from stripe_emulator.call import Call, Params
from stripe_emulator.call_table import CallTable
from stripe_emulator.coupons import active_discounts
from stripe_emulator.invoice_drafts import new_draft, read_automatic_tax
from stripe_emulator.invoice_lines import period_line, prorated_credit_lines, uncharged_usage
from stripe_emulator.price_calls import choose_currency
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter
from stripe_emulator.subscription_changes import begin_items, new_item, new_subscription, prepare_change
from stripe_emulator.subscription_params import apply_cancellation, read_items, read_subscription_discounts
from stripe_emulator.subscriptions import ENDED, Subscription

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.invoices import ChargedUsage, Invoice, InvoiceLine

CALLS: Final = CallTable()

PREVIEW_DETAILS: Final = (
    "billing_cycle_anchor billing_mode cancel_at cancel_at_period_end cancel_now items"
    " default_tax_rates metadata proration_behavior proration_date start_date trial_end"
)


@CALLS(
    "POST /v1/invoices/create_preview",
    "automatic_tax currency customer customer_details discounts preview_mode subscription"
    " subscription_details",
)
def _create_preview(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/create_preview."""
    params = call.params
    details = params.hash("subscription_details") or Params("")
    details.only(PREVIEW_DETAILS)
    if params.nonempty_text("subscription") is None:
        invoice = _preview_new_subscription(
            account, params, details, mode=read_billing_mode(details, version=call.version)
        )
    else:
        invoice = _preview_change(account, params, details, version=call.version)
    invoice.id = f"upcoming_{invoice.id}"
    account.invoices.add_preview(invoice)
    return invoice.to_json()


def _preview_change(account: Account, params: Params, details: Params, *, version: str) -> Invoice:
    subscription = account.subscriptions.find(params.required("subscription"), param="subscription")
    if subscription.status in ENDED:
        raise _no_upcoming_invoice(subscription)
    if "proration_date" in details and details.text("proration_behavior") == "none":
        message = "`subscription_details[proration_date]` cannot be set where prorations are off."
        raise ApiError(message, param="subscription_details[proration_date]")
    draft = subscription.copy()
    if "billing_mode" in details:
        draft.billing_mode = read_billing_mode(details, version=version)
    refuse_classic_params(draft.billing_mode, details)
    _apply_tax_and_discounts(account, draft, params)
    wanted = read_items(account, details, of=subscription)
    change = prepare_change(account, draft, wanted, details)
    apply_cancellation(draft, details, now=account.now)
    waiting = account.invoices.pending_lines(subscription)
    lines = [*waiting, *change.lines]
    usages: list[ChargedUsage] = []
    if details.boolean("cancel_now"):
        unused = (prorated_credit_lines(account, draft, item, at=account.now) for item in draft.items)
        lines += [line for each in unused for line in each]
        usages = _uncharged_usages(draft, until=account.now)
    elif change.immediate:
        if not lines:
            raise _no_upcoming_invoice(subscription)
    else:
        following, usages = _preview_renewal(account, draft)
        lines += following
        if not lines and not usages:
            raise _no_upcoming_invoice(subscription)
    invoice = new_draft(account, draft, lines, reason="upcoming", usages=usages, since=draft.renews_at)
    invoice.proration_date = change.proration_date
    if not change.immediate and not details.boolean("cancel_now"):
        invoice.created = invoice.period_end = draft.renews_at
        invoice.discounts = active_discounts(draft.discounts, now=draft.renews_at)
        invoice.period_start = min(item.period_start for item in draft.items)
    return invoice


def _preview_renewal(account: Account, draft: Subscription) -> tuple[list[InvoiceLine], list[ChargedUsage]]:
    """Return what the next renewal charges; if the subscription ends with its period, only usage."""
    at = draft.renews_at
    due = [item for item in draft.items if item.period_end <= at]
    usages = [] if draft.status == "trialing" else _uncharged_usages(draft, until=at)
    if draft.cancel_at is not None and draft.cancel_at <= at:
        return [], usages
    lines: list[InvoiceLine] = []
    for item in due:
        copied = item.copy()
        copied.renew(draft.billing_cycle_anchor, now=at)
        if not copied.price.is_metered:
            lines.append(period_line(account, copied))
    return lines, usages


def _uncharged_usages(draft: Subscription, *, until: int) -> list[ChargedUsage]:
    return [usage for item in draft.items if (usage := uncharged_usage(item, until=until)) is not None]


def _preview_new_subscription(
    account: Account, params: Params, details: Params, *, mode: BillingMode
) -> Invoice:
    """Return the first invoice of a subscription that would be created."""
    customer = account.customers.require(params.required("customer"))
    wanted = read_items(account, details, of=None)
    if not wanted:
        raise missing_parameter("subscription")
    prices = [each.new_price for each in wanted]
    asked = params.nonempty_text("currency")
    currency = choose_currency(account, prices, asked=asked, customer=customer)
    if currency is None:
        raise ApiError("All prices on a subscription must have the same currency.")
    draft = new_subscription(account, customer, currency=currency, mode=mode)
    refuse_mixed_intervals(mode, (price.cycle for price in prices))
    charged = [replace(each, price=each.new_price.in_currency(currency)) for each in wanted]
    draft.items = [new_item(draft, each, at=account.now) for each in charged]
    _apply_tax_and_discounts(account, draft, params)
    lines = begin_items(account, draft, prorate=True)
    return new_draft(account, draft, lines, reason="upcoming")


def _apply_tax_and_discounts(account: Account, draft: Subscription, params: Params) -> None:
    """Apply tax and discounts of a call; without them, the invoice has those of the subscription."""
    taxed = read_automatic_tax(account, params, customer=draft.customer)
    draft.automatic_tax = draft.automatic_tax if taxed is None else taxed
    draft.discounts = read_subscription_discounts(account, draft, params)


def _no_upcoming_invoice(subscription: Subscription) -> ApiError:
    message = f"No upcoming invoices for customer: {subscription.customer}"
    return ApiError(message, status=404, code="invoice_upcoming_none")
