"""Credit notes: the calls that issue and list them, and what an invoice shows of them."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

from stripe_emulator.invoicing.collection import mark_paid
from stripe_emulator.invoicing.issued_credit_notes import CreditNote
from stripe_emulator.invoicing.refund_calls import refund
from stripe_emulator.object_calls import newest
from stripe_emulator.protocol import ApiError, missing_parameter, missing_resource, new_id
from stripe_emulator.selling.amounts import to_cents

if TYPE_CHECKING:
    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call, Params
    from stripe_emulator.invoicing.invoices import Invoice
    from stripe_emulator.protocol import JsonObject

GIVEN_BACK: Final = ("credit_amount", "out_of_band_amount", "refund_amount")


def _list(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/credit_notes/list."""
    return newest(account.credit_notes, call, "customer", "invoice")


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/credit_notes/create.

    "A credit note will first reduce the invoice's `amount_remaining` (and `amount_due`), but not below zero.
    [...] The sum of refunds, customer balance credits, and outside of Stripe credits must equal the
    `post_payment_amount`."
    """
    params = call.params
    params.only("amount", "invoice", "lines", "memo", "metadata", *GIVEN_BACK, expandable=None)
    invoice = account.invoices.find(params.required("invoice"), param="invoice")
    if invoice.status not in {"open", "paid"}:
        message = f"You can only create a credit note for an open or paid invoice. It is {invoice.status}."
        raise ApiError(message, param="invoice")
    amount = _amount(invoice, params)
    pre = min(amount, invoice.amount_due - invoice.amount_paid)
    post = amount - pre
    if post > invoice.amount_paid - invoice.post_credited:
        message = "The credit note amount is greater than what is left of the invoice to be credited."
        raise ApiError(message, param="amount")
    shares = {name: params.integer(name) or 0 for name in GIVEN_BACK}
    if sum(shares.values()) != post:
        message = (
            f"The sum of credit amount, refund amount and out of band amount ({sum(shares.values())}) must "
            f"equal the post-payment amount of the credit note ({post})."
        )
        raise ApiError(message)
    made = [refund(account, invoice, amount=shares["refund_amount"])] if shares["refund_amount"] else []
    note: JsonObject = {
        "id": new_id("cn_1", length=23),
        "object": "credit_note",
        "amount": amount,
        "created": account.now,
        "currency": invoice.currency,
        "customer": invoice.customer,
        "invoice": invoice.id,
        "livemode": invoice.livemode,
        "memo": params.given("memo"),
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
    account.credit_notes.add(
        CreditNote(
            id=str(note["id"]),
            created=account.now,
            customer=invoice.customer,
            invoice=invoice.id,
            shown=note,
        )
    )
    account.emit("credit_note.created", note)
    _take_effect(account, invoice, pre=pre, post=post, credit=shares["credit_amount"])
    return note


def _amount(invoice: Invoice, params: Params) -> int:
    if "amount" in params and "lines" in params:
        raise ApiError("You may only specify one of these parameters: amount, lines.", param="amount")
    if "lines" in params:
        amount = sum(_of_line(invoice, line) for line in params.hashes("lines"))
    elif "amount" in params:
        amount = params.integer("amount") or 0
    else:
        raise missing_parameter("amount")
    if amount < 1:
        message = "This value must be greater than or equal to 1."
        raise ApiError(message, code="parameter_invalid_integer", param="amount")
    return amount


def _of_line(invoice: Invoice, params: Params) -> int:
    """Credit a part of a line, with the same part of its discounts and taxes.

    A line's ``amount`` is "tax exclusive", the credit note's "including tax and all discount"
    (https://docs.stripe.com/api/credit_notes/object).
    """
    params.only("amount", "invoice_line_item", "type")
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


def _take_effect(account: Account, invoice: Invoice, *, pre: int, post: int, credit: int) -> None:
    """Change the invoice and the customer's balance: neither the total nor a line of the invoice follows."""
    before = invoice.to_json()
    invoice.amount_due -= pre
    invoice.pre_credited += pre
    invoice.post_credited += post
    account.emit("invoice.updated", invoice.to_json(), previous=before)
    if credit:
        customer = account.customers.find(invoice.customer)
        was = customer.to_json()
        customer.balance -= credit
        account.emit("customer.updated", customer.to_json(), previous=was)
    if invoice.status == "open" and not invoice.amount_due:
        mark_paid(account, invoice)


CREDIT_NOTE_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("GET", "/v1/credit_notes", _list),
    ("POST", "/v1/credit_notes", _create),
)
