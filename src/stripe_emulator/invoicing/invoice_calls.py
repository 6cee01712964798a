"""The calls about invoices: retrieve, list, update, finalize, pay, void, preview."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from stripe_emulator.call import PAGING, Params
from stripe_emulator.invoicing.billing import (
    HOUR_S,
    count_usage,
    draft_of,
    read_tax,
    shown_now,
    subscription_of,
)
from stripe_emulator.invoicing.charges import period_line, unused_lines, usage_of
from stripe_emulator.invoicing.collection import attempt, finalize, mark_paid, method_of, void
from stripe_emulator.object_calls import newest
from stripe_emulator.protocol import (
    ApiError,
    JsonObject,
    missing_parameter,
)
from stripe_emulator.selling.coupons import in_force
from stripe_emulator.selling.payments import NO_METHOD, declined
from stripe_emulator.selling.prices import Recurring
from stripe_emulator.selling.redeeming import read_discounts, redeem
from stripe_emulator.subscribing.billing_cycle import (
    boundary,
    read_mode,
    refuse_in_flexible,
    refuse_mixed,
)
from stripe_emulator.subscribing.params import apply_cancellation, read_items, wanted_discounts
from stripe_emulator.subscribing.revision import begin_items, new_item, new_subscription
from stripe_emulator.subscribing.subscriptions import ENDED, Subscription
from stripe_emulator.subscribing.updates import rearrange

if TYPE_CHECKING:
    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call
    from stripe_emulator.invoicing.invoices import Invoice, Line
    from stripe_emulator.invoicing.usages import Usage
    from stripe_emulator.selling.coupons import Discount
    from stripe_emulator.subscribing.billing_cycle import BillingMode

FIVE_YEARS: Final = Recurring(interval="year", interval_count=5)
STATUSES: Final = ("draft", "open", "paid", "uncollectible", "void")


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    preview = account.invoices.previews.get(call.object_id)
    return shown_now(account, _found(account, call)) if preview is None else preview.to_json()


def _list(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/list."""
    call.params.choice("status", STATUSES)
    account.customers.known(call.params.text("customer"))
    return newest(
        account.invoices,
        call,
        "collection_method",
        "customer",
        "status",
        "subscription",
        show=lambda invoice: shown_now(account, invoice),
    )


def _lines(account: Account, call: Call) -> JsonObject:
    call.params.only(*PAGING, expandable=None)
    invoice = account.invoices.previews.get(call.object_id) or _found(account, call)
    return call.page(invoice.lines_to_json())


def _update(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/update."""
    params, invoice = call.params, _found(account, call)
    params.only(
        *("auto_advance", "automatically_finalizes_at", "default_payment_method", "description", "discounts"),
        "metadata",
        expandable=None,
    )
    before = invoice.to_json()
    method = params.given("default_payment_method")
    if method is not None:
        account.payment_methods.of_customer(method, customer=invoice.customer, param="default_payment_method")
    discounts = _wanted_discounts(account, invoice, params)
    _plan_finalization(account, invoice, params)
    invoice.discounts = discounts
    redeem(account, discounts)
    invoice.default_payment_method = method or invoice.default_payment_method
    params.amend("metadata", invoice.metadata)
    invoice.description = params.text("description") if "description" in params else invoice.description
    account.emit("invoice.updated", invoice.to_json(), previous=before)
    return shown_now(account, invoice)


def _wanted_discounts(account: Account, invoice: Invoice, params: Params) -> list[Discount]:
    """Return the discounts of a draft: "the discounts that will apply to the invoice".

    https://docs.stripe.com/api/invoices/update#update_invoice-discounts
    """
    if "discounts" not in params:
        return invoice.discounts
    if invoice.status != "draft":
        message = "Finalized invoices can't be updated in this way."
        raise ApiError(message, code="invoice_not_editable", param="discounts")
    found = read_discounts(
        account,
        params,
        customer=invoice.customer,
        currency=invoice.currency,
        known=invoice.discounts,
        amount=invoice.totals.subtotal,
    )
    return [each if each in invoice.discounts else replace(each, invoice=invoice.id) for each in found]


def _plan_finalization(account: Account, invoice: Invoice, params: Params) -> None:
    """Say whether, and when, an invoice advances by itself.

    "To configure an automatic finalization time for an invoice, you must have automatic invoice advancement
    enabled", "up to 5 years in the future" (https://docs.stripe.com/invoicing/scheduled-finalization).
    Without a time of its own a draft is finalized an hour after it was made.

    Raises:
        ApiError: it is no draft, does not advance by itself, or the time is past or too far away.
    """
    param, now = "automatically_finalizes_at", account.now
    given, advances = params.text(param), params.boolean("auto_advance", default=invoice.auto_advance)
    at = max(now, invoice.created + HOUR_S if given == "" else invoice.finalizes_at or 0)
    if given is not None and invoice.status != "draft":
        message = "Finalized invoices can't be updated in this way."
        raise ApiError(message, code="invoice_not_editable", param=param)
    if given:
        at = params.integer(param) or 0
        if not advances:
            message = f"`{param}` can only be set where `auto_advance` is `true`."
            raise ApiError(message, param=param)
        if not now < at <= boundary(now, FIVE_YEARS, 1):
            message = f"`{param}` must be in the future, and at most 5 years from now."
            raise ApiError(message, param=param)
    invoice.auto_advance = advances
    if invoice.status == "draft" and {param, "auto_advance"} & set(params):
        invoice.schedule(at)


def _finalize(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/finalize."""
    call.params.only("auto_advance", expandable=None)
    invoice = _found(account, call)
    if invoice.status != "draft":
        message = "This invoice is already finalized, you can't re-finalize a non-draft invoice."
        raise ApiError(message, code="invoice_not_editable")
    invoice.auto_advance = call.params.boolean("auto_advance", default=invoice.auto_advance)
    if finalize(account, invoice) and invoice.auto_advance:
        # Collected within the hour; here, by the next turn of the clock.
        invoice.next_payment_attempt = account.now
    return shown_now(account, invoice)


def _pay(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/pay: out of schedule, or without any charge."""
    params, invoice = call.params, _found(account, call)
    params.only(
        "forgive", "mandate", "off_session", "paid_out_of_band", "payment_method", "source", expandable=None
    )
    if invoice.status == "paid":
        raise ApiError("Invoice is already paid", code="invoice_already_paid")
    if invoice.status == "void":
        raise ApiError("Voided invoices cannot be paid.", code="invoice_not_payable")
    is_open = finalize(account, invoice) if invoice.status == "draft" else True
    given = params.given("payment_method")
    if given is not None:
        account.payment_methods.of_customer(given, customer=invoice.customer, param="payment_method")
    if is_open and params.boolean("paid_out_of_band"):
        invoice.paid_out_of_band = True
        mark_paid(account, invoice)
        is_open = False
    if not is_open:
        return shown_now(account, invoice)
    own = method_of(account, invoice.customer, subscription_of(account, invoice))
    if (given or invoice.default_payment_method or own) is None:
        raise ApiError(NO_METHOD, code="resource_missing", stored=True)
    if not attempt(account, invoice, method=given, by_itself=False):
        raise declined()
    return shown_now(account, invoice)


def _void(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/void."""
    call.params.only(expandable=None)
    invoice = _found(account, call)
    if invoice.status not in {"open", "uncollectible"}:
        message = f"You can only pass in open or uncollectible invoices. This invoice is {invoice.status}."
        raise ApiError(message)
    void(account, invoice)
    return shown_now(account, invoice)


def _send(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/send: a draft is finalized, and the customer gets an e-mail."""
    call.params.only(expandable=None)
    invoice = _found(account, call)
    if invoice.collection_method != "send_invoice":
        message = "You can only manually send an invoice if its collection method is 'send_invoice'."
        raise ApiError(message)
    if invoice.status == "draft":
        finalize(account, invoice)
    elif invoice.status == "open":
        account.emit("invoice.sent", invoice.to_json())
    else:
        raise ApiError(f"You can only send draft or open invoices. This invoice is {invoice.status}.")
    return shown_now(account, invoice)


def _mark_uncollectible(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/mark_uncollectible."""
    call.params.only(expandable=None)
    invoice = _found(account, call)
    if invoice.status != "open":
        raise ApiError(f"You can only pass in open invoices. This invoice is {invoice.status}.")
    invoice.status, invoice.uncollectible_at = "uncollectible", account.now
    invoice.auto_advance, invoice.next_payment_attempt = False, None
    account.emit("invoice.marked_uncollectible", invoice.to_json())
    return shown_now(account, invoice)


def _found(account: Account, call: Call) -> Invoice:
    invoice = account.invoices.find(call.object_id)
    count_usage(account, subscription_of(account, invoice), invoice)
    return invoice


INVOICE_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("GET", "/v1/invoices", _list),
    ("GET", "/v1/invoices/{id}", _retrieve),
    ("POST", "/v1/invoices/{id}", _update),
    ("GET", "/v1/invoices/{id}/lines", _lines),
    ("POST", "/v1/invoices/{id}/finalize", _finalize),
    ("POST", "/v1/invoices/{id}/pay", _pay),
    ("POST", "/v1/invoices/{id}/send", _send),
    ("POST", "/v1/invoices/{id}/void", _void),
    ("POST", "/v1/invoices/{id}/mark_uncollectible", _mark_uncollectible),
)


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
    invoice.id = f"upcoming_{invoice.id}"
    account.invoices.keep_preview(invoice)
    return invoice.to_json()


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
    customer = account.customers.named(params.required("customer"))
    wanted = read_items(account, details, of=None)
    if not wanted:
        raise missing_parameter("subscription")
    prices = [each.new_price for each in wanted]
    draft = new_subscription(account, customer, currency=prices[0].currency, mode=mode)
    refuse_mixed(mode, (price.cycle for price in prices))
    draft.items = [new_item(draft, each, at=account.now) for each in wanted]
    _apply_tax_and_discounts(account, draft, params)
    lines = begin_items(account, draft, prorate=True)
    return draft_of(account, draft, lines, reason="upcoming")


def _apply_tax_and_discounts(account: Account, draft: Subscription, params: Params) -> None:
    """Where a call says nothing of them, the invoice has those of the subscription."""
    taxed = read_tax(account, params, customer=draft.customer)
    draft.automatic_tax = draft.automatic_tax if taxed is None else taxed
    draft.discounts = wanted_discounts(account, draft, params)


def _none(subscription: Subscription) -> ApiError:
    message = f"No upcoming invoices for customer: {subscription.customer}"
    return ApiError(message, status=404, code="invoice_upcoming_none")


PREVIEW_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/invoices/create_preview", _create),
)
