"""The calls about credit notes: create, retrieve, list, void."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.expand import expanded
from meterkit.testing.emulator.invoicing.collection import mark_paid
from meterkit.testing.emulator.invoicing.refund_calls import refund
from meterkit.testing.emulator.invoicing.refunds import CreditNote
from meterkit.testing.emulator.replies import ApiError, missing_parameter, missing_resource, new_id

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call, Params
    from meterkit.testing.emulator.invoicing.invoices import Invoice
    from meterkit.testing.emulator.replies import JsonObject

__all__ = ["CREDIT_NOTE_CALLS"]

REASONS: Final = ("duplicate", "fraudulent", "order_change", "product_unsatisfactory")
GIVEN_BACK: Final = ("credit_amount", "out_of_band_amount", "refund_amount")


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/credit_notes/create.

    "A credit note will first reduce the invoice's `amount_remaining` (and `amount_due`), but not below zero.
    [...] The sum of refunds, customer balance credits, and outside of Stripe credits must equal the
    `post_payment_amount`."
    """
    params = call.params
    params.only(
        *("amount", "email_type", "invoice", "lines", "memo", "metadata", "reason", *GIVEN_BACK),
        expandable=None,
    )
    invoice = account.invoices.find(params.required("invoice"), param="invoice")
    if invoice.status not in {"open", "paid"}:
        message = f"You can only create a credit note for an open or paid invoice. It is {invoice.status}."
        raise ApiError(message, param="invoice")
    amount = _amount(invoice, params)
    notes = account.credit_notes.of(invoice.id)
    pre = min(amount, invoice.amount_due - invoice.amount_paid) if invoice.status == "open" else 0
    post = amount - pre
    if post > invoice.amount_paid - sum(note.post_payment for note in notes):
        message = "The credit note amount is greater than what is left of the invoice to be credited."
        raise ApiError(message, param="amount")
    shares = {name: params.integer(name) or 0 for name in GIVEN_BACK}
    if sum(shares.values()) != post:
        message = (
            f"The sum of credit amount, refund amount and out of band amount ({sum(shares.values())}) must "
            f"equal the post-payment amount of the credit note ({post})."
        )
        raise ApiError(message)
    note = CreditNote(
        id=new_id("cn_1", length=23),
        created=account.now,
        number=f"{invoice.number}-CN-{len(notes) + 1:02}",
        invoice=invoice.id,
        customer=invoice.customer,
        currency=invoice.currency,
        amount=amount,
        pre_payment=pre,
        post_payment=post,
        out_of_band=shares["out_of_band_amount"],
        reason=params.choice("reason", REASONS),
        memo=params.given("memo"),
        livemode=call.livemode,
        metadata=params.metadata(),
    )
    if shares["refund_amount"]:
        note.refund = refund(account, invoice, amount=shares["refund_amount"])
    account.credit_notes.add(note)
    account.emit("credit_note.created", note.to_json())
    _take_effect(account, invoice, note, credit=shares["credit_amount"])
    return expanded(account, note.to_json(), params)


def _amount(invoice: Invoice, params: Params) -> int:
    if "amount" in params and "lines" in params:
        raise ApiError("You may only specify one of these parameters: amount, lines.", param="amount")
    if "amount" in params:
        amount = params.integer("amount") or 0
    elif "lines" in params:
        amount = sum(_line(invoice, line) for line in params.hashes("lines"))
    else:
        raise missing_parameter("amount")
    if amount < 1:
        message = "This value must be greater than or equal to 1."
        raise ApiError(message, code="parameter_invalid_integer", param="amount")
    return amount


def _line(invoice: Invoice, params: Params) -> int:
    params.only("amount", "description", "invoice_line_item", "quantity", "type", "unit_amount")
    kind = params.choice("type", ("custom_line_item", "invoice_line_item")) or params.required("type")
    if kind == "custom_line_item":
        return (params.integer("unit_amount") or 0) * (params.integer("quantity") or 1)
    named = params.required("invoice_line_item")
    amounts = {line.id: line.amount for line in invoice.all_lines}
    if named not in amounts:
        raise missing_resource("invoice line item", named, param=params.path("invoice_line_item"))
    given = params.integer("amount")
    return amounts[named] if given is None else given


def _take_effect(account: Account, invoice: Invoice, note: CreditNote, *, credit: int) -> None:
    before = invoice.to_json()
    invoice.amount_due -= note.pre_payment
    invoice.pre_credited += note.pre_payment
    invoice.post_credited += note.post_payment
    account.emit("invoice.updated", invoice.to_json(), previous=before)
    if credit:
        customer = account.customers.find(invoice.customer)
        was = customer.to_json()
        customer.balance -= credit
        account.emit("customer.updated", customer.to_json(), previous=was)
    if invoice.status == "open" and not invoice.amount_due:
        mark_paid(account, invoice)


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    return expanded(account, account.credit_notes.find(call.object_id).to_json(), call.params)


def _list(account: Account, call: Call) -> JsonObject:
    """Newest first (https://docs.stripe.com/api/credit_notes/list)."""
    params = call.params
    params.only("created", "customer", "invoice", *PAGING, expandable=None)
    customer, invoice, is_in = params.text("customer"), params.text("invoice"), params.span("created")
    found = [
        note.to_json()
        for note in reversed(tuple(account.credit_notes))
        if customer in {None, note.customer} and invoice in {None, note.invoice} and is_in(note.created)
    ]
    return expanded(account, params.page(found, url="/v1/credit_notes"), params)


def _void(account: Account, call: Call) -> JsonObject:
    """Only of an open invoice (https://docs.stripe.com/invoicing/dashboard/credit-notes)."""
    call.params.only(expandable=None)
    note = account.credit_notes.find(call.object_id)
    invoice = account.invoices.find(note.invoice)
    if note.voided_at is not None or invoice.status != "open":
        raise ApiError("You can only void a credit note that is issued, of an invoice that is open.")
    before = invoice.to_json()
    note.voided_at = account.now
    invoice.amount_due += note.pre_payment
    invoice.pre_credited -= note.pre_payment
    account.emit("credit_note.voided", note.to_json())
    account.emit("invoice.updated", invoice.to_json(), previous=before)
    return expanded(account, note.to_json(), call.params)


CREDIT_NOTE_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/credit_notes", _create),
    ("GET", "/v1/credit_notes", _list),
    ("GET", "/v1/credit_notes/{id}", _retrieve),
    ("POST", "/v1/credit_notes/{id}/void", _void),
)
