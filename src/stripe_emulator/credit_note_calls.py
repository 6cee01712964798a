"""API calls about credit notes."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

from stripe_emulator.call_table import PAGING, CallTable, list_newest
from stripe_emulator.invoice_lifecycle import mark_paid
from stripe_emulator.invoices import CreditNote, Invoice
from stripe_emulator.prices import to_cents
from stripe_emulator.protocol import (
    ApiError,
    JsonObject,
    missing_resource,
    new_id,
)
from stripe_emulator.refund_calls import refund_invoice

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.call import Call, Params

CALLS: Final = CallTable()

CREDIT_SHARES: Final = ("credit_amount", "out_of_band_amount", "refund_amount")


@CALLS("GET /v1/credit_notes", "created customer invoice", PAGING)
def _list_credit_notes(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/credit_notes/list."""
    return list_newest(account.credit_notes, call, "customer", "invoice")


@CALLS("POST /v1/credit_notes", "amount invoice lines memo metadata", *CREDIT_SHARES)
def _create_credit_note(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/credit_notes/create.

    "A credit note will first reduce the invoice's `amount_remaining` (and `amount_due`), but not below zero.
    [...] The sum of refunds, customer balance credits, and outside of Stripe credits must equal the
    `post_payment_amount`."
    """
    params = call.params
    invoice = account.invoices.find(params.required("invoice"), param="invoice")
    if invoice.status not in {"open", "paid"}:
        message = f"You can only create a credit note for an open or paid invoice. It is {invoice.status}."
        raise ApiError(message, param="invoice")
    amount = _read_credit_amount(invoice, params)
    pre = min(amount, invoice.amount_due - invoice.amount_paid)
    post = amount - pre
    if post > invoice.amount_paid - invoice.post_credited:
        message = "The credit note amount is greater than what is left of the invoice to be credited."
        raise ApiError(message, param="amount")
    shares = {name: params.integer(name) or 0 for name in CREDIT_SHARES}
    if sum(shares.values()) != post:
        message = (
            f"The sum of credit amount, refund amount and out of band amount ({sum(shares.values())}) must "
            f"equal the post-payment amount of the credit note ({post})."
        )
        raise ApiError(message)
    made = (
        [refund_invoice(account, invoice, amount=shares["refund_amount"])] if shares["refund_amount"] else []
    )
    note_id = new_id("cn_1", length=23)
    shown: JsonObject = {
        "id": note_id,
        "object": "credit_note",
        "amount": amount,
        "created": account.now,
        "currency": invoice.currency,
        "customer": invoice.customer,
        "invoice": invoice.id,
        "livemode": invoice.livemode,
        "memo": params.nonempty_text("memo"),
        "metadata": params.metadata(),
        "out_of_band_amount": shares["out_of_band_amount"] or None,
        "post_payment_amount": post,
        "pre_payment_amount": pre,
        "refunds": [{"amount_refunded": one.amount, "refund": one.id, "type": "refund"} for one in made],
        "status": "issued",
        "subtotal": amount,
        "total": amount,
        "type": "post_payment" if not pre else "mixed" if post else "pre_payment",
        "voided_at": None,
    }
    note = CreditNote(
        id=note_id, created=account.now, customer=invoice.customer, invoice=invoice.id, shown=shown
    )
    account.add(account.credit_notes, note, "credit_note.created")
    _apply_credit(account, invoice, pre=pre, post=post, credit=shares["credit_amount"])
    return shown


def _read_credit_amount(invoice: Invoice, params: Params) -> int:
    params.refuse_both("amount", "lines", param="amount")
    if "lines" not in params:
        params.required_integer("amount")
        return params.at_least("amount", 1) or 1
    amount = sum(_read_line_credit(invoice, line) for line in params.hashes("lines"))
    if amount < 1:
        message = "This value must be greater than or equal to 1."
        raise ApiError(message, code="parameter_invalid_integer", param="amount")
    return amount


def _read_line_credit(invoice: Invoice, params: Params) -> int:
    """Return the credit of a part of a line, with the same part of its discounts and taxes.

    A line's ``amount`` is "tax exclusive", the credit note's "including tax and all discount"
    (https://docs.stripe.com/api/credit_notes/object).
    """
    params.only("amount invoice_line_item type")
    params.choice("type", ("invoice_line_item",))
    named = params.required("invoice_line_item")
    totals = zip(invoice.all_lines, invoice.totals.lines, strict=True)
    found = next((each for each in totals if each[0].id == named), None)
    if found is None:
        raise missing_resource("invoice line item", named, param=params.path("invoice_line_item"))
    line, total = found
    given = params.integer("amount")
    amount = line.amount if given is None else given
    if amount > line.amount:
        message = f"The line amount ({amount}) is greater than that of the invoice line ({line.amount})."
        raise ApiError(message, param=params.path("amount"))
    share = Fraction(amount, line.amount or 1)
    return amount - to_cents(total.discount * share) + to_cents((total.tax - total.tax_within) * share)


def _apply_credit(account: Account, invoice: Invoice, *, pre: int, post: int, credit: int) -> None:
    """Apply a credit to the invoice's amounts and the customer's balance; lines and total stay."""
    with account.updating("invoice.updated", invoice.to_json):
        invoice.amount_due -= pre
        invoice.pre_credited += pre
        invoice.post_credited += post
    customer = account.customers.find(invoice.customer)
    with account.updating("customer.updated", customer.to_json):
        customer.balance -= credit
    if invoice.status == "open" and not invoice.amount_due:
        mark_paid(account, invoice)
