"""API calls about invoices and their lines: create, update, finalize, pay, send, void."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_cycle import period_boundary
from stripe_emulator.call_table import PAGING, CallTable, list_newest
from stripe_emulator.invoice_drafts import (
    HOUR_S,
    apply_tax_rates,
    new_one_time_draft,
    read_automatic_tax,
    refresh_usage,
    refreshed_invoice_json,
    subscription_of_invoice,
)
from stripe_emulator.invoice_lifecycle import (
    attempt_payment,
    finalize_invoice,
    mark_paid,
    mark_uncollectible,
    payment_method_of,
    void_invoice,
)
from stripe_emulator.payment_methods import NO_PAYMENT_METHOD, card_declined
from stripe_emulator.prices import PriceInterval, to_cents
from stripe_emulator.protocol import ApiError, JsonObject, missing_resource
from stripe_emulator.redemption import read_discounts, redeem

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.call import Call, Params
    from stripe_emulator.coupons import Discount
    from stripe_emulator.invoices import Invoice, InvoiceLine

CALLS: Final = CallTable()
FIVE_YEARS: Final = PriceInterval(interval="year", interval_count=5)
INVOICE_STATUSES: Final = ("draft", "open", "paid", "uncollectible", "void")


@CALLS("GET /v1/invoices/{id}")
def _retrieve_invoice(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/retrieve."""
    preview = account.invoices.previews.get(call.object_id)
    return (
        refreshed_invoice_json(account, _find_invoice(account, call))
        if preview is None
        else preview.to_json()
    )


@CALLS("GET /v1/invoices", "collection_method created customer status subscription", PAGING)
def _list_invoices(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/list."""
    call.params.choice("status", INVOICE_STATUSES)
    account.customers.require_ever_created(call.params.text("customer"))
    return list_newest(
        account.invoices,
        call,
        "collection_method",
        "customer",
        "status",
        "subscription",
        show=lambda invoice: refreshed_invoice_json(account, invoice),
    )


@CALLS("GET /v1/invoices/{id}/lines", PAGING)
def _list_lines(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoice-line-item/retrieve."""
    invoice = account.invoices.previews.get(call.object_id) or _find_invoice(account, call)
    return call.page(invoice.lines_to_json())


@CALLS(
    "POST /v1/invoices/{id}",
    "auto_advance automatically_finalizes_at default_payment_method description discounts metadata",
)
def _update_invoice(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/update."""
    params, invoice = call.params, _find_invoice(account, call)
    before = invoice.to_json()
    method = account.payment_methods.read_param(params, "default_payment_method", customer=invoice.customer)
    discounts = _read_discounts(account, invoice, params)
    _schedule_finalization(account, invoice, params)
    invoice.discounts = discounts
    redeem(account, discounts)
    invoice.default_payment_method = method or invoice.default_payment_method
    params.update_metadata("metadata", invoice.metadata)
    invoice.description = params.text("description") if "description" in params else invoice.description
    account.emit("invoice.updated", invoice.to_json(), previous=before)
    return refreshed_invoice_json(account, invoice)


def _read_discounts(account: Account, invoice: Invoice, params: Params) -> list[Discount]:
    """Return the discounts of a draft: "the discounts that will apply to the invoice".

    https://docs.stripe.com/api/invoices/update#update_invoice-discounts
    """
    if "discounts" not in params:
        return invoice.discounts
    _refuse_finalized(invoice, param="discounts")
    found = read_discounts(
        account,
        params,
        customer=invoice.customer,
        currency=invoice.currency,
        known=invoice.discounts,
        amount=invoice.totals.subtotal,
    )
    return [each if each in invoice.discounts else replace(each, invoice=invoice.id) for each in found]


def _schedule_finalization(account: Account, invoice: Invoice, params: Params) -> None:
    """Schedule an invoice's automatic finalization, or turn it off.

    "To configure an automatic finalization time for an invoice, you must have automatic invoice advancement
    enabled", "up to 5 years in the future" (https://docs.stripe.com/invoicing/scheduled-finalization).
    Without a time of its own a draft is finalized an hour after it was made.

    Raises:
        ApiError: it is no draft, does not advance by itself, or the time is past or too far away.
    """
    param, now = "automatically_finalizes_at", account.now
    given, advances = params.text(param), params.boolean("auto_advance", default=invoice.auto_advance)
    at = max(now, invoice.created + HOUR_S if given == "" else invoice.finalizes_at or 0)
    if given is not None:
        _refuse_finalized(invoice, param=param)
    if given:
        at = params.integer(param) or 0
        if not advances:
            raise ApiError(f"`{param}` can only be set where `auto_advance` is `true`.", param=param)
        if not now < at <= period_boundary(now, FIVE_YEARS, 1):
            raise ApiError(f"`{param}` must be in the future, and at most 5 years from now.", param=param)
    invoice.auto_advance = advances
    if invoice.status == "draft" and {param, "auto_advance"} & set(params):
        invoice.schedule(at)


@CALLS("POST /v1/invoices/{id}/finalize", "auto_advance")
def _finalize_invoice(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/finalize."""
    invoice = _find_invoice(account, call)
    if invoice.status != "draft":
        message = "This invoice is already finalized, you can't re-finalize a non-draft invoice."
        raise ApiError(message, code="invoice_not_editable")
    invoice.auto_advance = call.params.boolean("auto_advance", default=invoice.auto_advance)
    if finalize_invoice(account, invoice) and invoice.auto_advance:
        # Collected within the hour; here, by the next turn of the clock.
        invoice.next_payment_attempt = account.now
    return refreshed_invoice_json(account, invoice)


@CALLS("POST /v1/invoices/{id}/pay", "forgive mandate off_session paid_out_of_band payment_method source")
def _pay_invoice(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/pay: out of schedule, or without any charge."""
    params, invoice = call.params, _find_invoice(account, call)
    if invoice.status == "paid":
        raise ApiError("Invoice is already paid", code="invoice_already_paid")
    if invoice.status == "void":
        raise ApiError("Voided invoices cannot be paid.", code="invoice_not_payable")
    is_open = finalize_invoice(account, invoice) if invoice.status == "draft" else True
    given = account.payment_methods.read_param(params, "payment_method", customer=invoice.customer)
    if is_open and params.boolean("paid_out_of_band"):
        invoice.paid_out_of_band = True
        mark_paid(account, invoice)
        is_open = False
    if not is_open:
        return refreshed_invoice_json(account, invoice)
    own = payment_method_of(account, invoice.customer, subscription_of_invoice(account, invoice))
    if (given or invoice.default_payment_method or own) is None:
        raise ApiError(NO_PAYMENT_METHOD, code="resource_missing", stored=True)
    if given is not None and not account.payment_methods.find(given).brand:
        invoice.attempted = True  # The payment is `processing` for days.
    elif not attempt_payment(account, invoice, method=given, by_itself=False):
        raise card_declined()
    return refreshed_invoice_json(account, invoice)


@CALLS("POST /v1/invoices/{id}/void")
def _void_invoice(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/void."""
    invoice = _find_invoice(account, call)
    if invoice.status not in {"open", "uncollectible"}:
        message = f"You can only pass in open or uncollectible invoices. This invoice is {invoice.status}."
        raise ApiError(message)
    void_invoice(account, invoice)
    return refreshed_invoice_json(account, invoice)


@CALLS("POST /v1/invoices/{id}/send")
def _send_invoice(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/send: a draft is finalized, and the customer gets an e-mail."""
    invoice = _find_invoice(account, call)
    if invoice.collection_method != "send_invoice":
        raise ApiError("You can only manually send an invoice if its collection method is 'send_invoice'.")
    if invoice.status == "draft":
        finalize_invoice(account, invoice)
    elif invoice.status == "open":
        account.emit("invoice.sent", invoice.to_json())
    else:
        raise ApiError(f"You can only send draft or open invoices. This invoice is {invoice.status}.")
    return refreshed_invoice_json(account, invoice)


@CALLS("POST /v1/invoices/{id}/mark_uncollectible")
def _mark_invoice_uncollectible(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/mark_uncollectible."""
    invoice = _find_invoice(account, call)
    if invoice.status != "open":
        raise ApiError(f"You can only pass in open invoices. This invoice is {invoice.status}.")
    invoice.auto_advance, invoice.next_payment_attempt = False, None
    mark_uncollectible(account, invoice)
    return refreshed_invoice_json(account, invoice)


def _find_invoice(account: Account, call: Call) -> Invoice:
    invoice = account.invoices.find(call.object_id)
    refresh_usage(account, subscription_of_invoice(account, invoice), invoice)
    return invoice


# Accepted and without effect.
INVOICE_IGNORED: Final = "footer payment_settings statement_descriptor"
CREATED_IGNORED: Final = "account_tax_ids default_source on_behalf_of transfer_data"


@CALLS(
    "POST /v1/invoices",
    "auto_advance automatic_tax collection_method currency customer days_until_due description"
    " default_payment_method default_tax_rates discounts metadata pending_invoice_items_behavior",
    INVOICE_IGNORED,
    CREATED_IGNORED,
)
def _create_invoice(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/create: of no subscription, and without what waits for one."""
    params = call.params
    if params.choice("pending_invoice_items_behavior", ("exclude", "include")) == "include":
        message = "The emulator makes invoices that exclude pending invoice items only."
        raise ApiError(message, param="pending_invoice_items_behavior")
    customer = account.customers.require(params.required("customer"))
    own = account.customers.find(customer).currency
    currency = params.nonempty_text("currency") or own or "usd"
    account.customers.keep_currency(customer, currency)
    made = new_one_time_draft(account, customer, currency=currency, livemode=call.livemode)
    taxed = read_automatic_tax(account, params, customer=customer)
    made.tax_percent = account.behaviour.tax_percent if taxed else None
    made.default_payment_method = account.payment_methods.read_param(
        params, "default_payment_method", customer=customer
    )
    made.rate_ids = params.listed("default_tax_rates") if "default_tax_rates" in params else ()
    _read_collection(made, params)
    made.discounts = _read_discounts(account, made, params)
    redeem(account, made.discounts)
    made.description, made.metadata = params.text("description"), params.metadata()
    made.auto_advance = bool(params.boolean("auto_advance"))
    made.schedule(account.now + HOUR_S)
    return account.add(account.invoices, made, "invoice.created")


def _read_collection(made: Invoice, params: Params) -> None:
    """Read how an invoice is collected: ``days_until_due`` is "valid only" for ``send_invoice``.

    https://docs.stripe.com/api/invoices/create#create_invoice-days_until_due
    """
    method = params.choice("collection_method", ("charge_automatically", "send_invoice"))
    made.collection_method = method or made.collection_method
    made.days_until_due = params.integer("days_until_due")
    if (made.collection_method == "send_invoice") != (made.days_until_due is not None):
        message = "`days_until_due` must be set where `collection_method` is `send_invoice`, and only there."
        raise ApiError(message, param="days_until_due")


@CALLS("DELETE /v1/invoices/{id}", expandable=())
def _delete_invoice(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/delete: a draft of no subscription."""
    invoice = account.invoices.find(call.object_id)
    if invoice.status != "draft" or invoice.subscription is not None:
        message = "You can only delete draft invoices that no subscription has made; void this one instead."
        raise ApiError(message)
    account.invoices.delete(invoice)
    account.emit("invoice.deleted", invoice.to_json())
    return {"id": invoice.id, "object": "invoice", "deleted": True}


LINE_PARAMS: Final = "amount description metadata period quantity tax_rates"


@CALLS("POST /v1/invoices/{id}/lines/{inner}", LINE_PARAMS)
def _update_line(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoice-line-item/update: of a draft alone."""
    params, invoice = call.params, _find_draft(account, call.object_id)
    place = _find_line_index(invoice, call.inner_id, param="line_item_id")
    with account.updating("invoice.updated", invoice.to_json):
        invoice.lines[place] = _change_line(account, invoice, invoice.lines[place], params)
    return invoice.lines_to_json()[place]


@CALLS("POST /v1/invoices/{id}/update_lines", "invoice_metadata lines")
def _update_lines(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoice-line-item/bulk-update: all of them, or none."""
    params, invoice = call.params, _find_draft(account, call.object_id)
    lines = list(invoice.lines)
    with account.updating("invoice.updated", invoice.to_json):
        for each in params.hashes("lines"):
            each.only("id", LINE_PARAMS)
            place = _find_line_index(invoice, each.required("id"), param=each.path("id"))
            lines[place] = _change_line(account, invoice, lines[place], each)
        invoice.lines = lines
        params.update_metadata("invoice_metadata", invoice.metadata)
    return refreshed_invoice_json(account, invoice)


def _find_draft(account: Account, invoice_id: str) -> Invoice:
    invoice = account.invoices.find(invoice_id)
    _refuse_finalized(invoice)
    return invoice


def _refuse_finalized(invoice: Invoice, *, param: str | None = None) -> None:
    if invoice.status != "draft":
        message = "Finalized invoices can't be updated in this way."
        raise ApiError(message, code="invoice_not_editable", param=param)


def _find_line_index(invoice: Invoice, line_id: str, *, param: str) -> int:
    """Return the index of a line that can be changed; usage lines cannot."""
    for place, line in enumerate(invoice.lines):
        if line.id == line_id:
            return place
    if any(line.id == line_id for line in invoice.usage_lines):
        raise ApiError("The emulator changes no line of usage: it is counted until the end.", param=param)
    raise missing_resource("invoice line item", line_id, param=param)


def _change_line(account: Account, invoice: Invoice, line: InvoiceLine, params: Params) -> InvoiceLine:
    """Return a changed line: an amount is of all units, a quantity at the unit price."""
    params.refuse_both("amount", "quantity", param="amount")
    line = replace(line, description=params.text("description") or line.description)
    if "metadata" in params:
        line.metadata = dict(line.metadata or {})
        params.update_metadata("metadata", line.metadata)
    amount, quantity = params.integer("amount"), params.at_least("quantity", 0)
    if amount is not None:
        line.amount, line.unit_amount = amount, Decimal(amount) / (line.quantity or 1)
    if quantity is not None:
        line.quantity, line.amount = Decimal(quantity), to_cents(Fraction(line.unit_amount) * quantity)
    line.start, line.end = params.period() or (line.start, line.end)
    if "tax_rates" in params:
        line.rate_ids = params.listed("tax_rates") if params.is_hash("tax_rates") else ()
    return apply_tax_rates(account, invoice, [line])[0]
