"""API calls about refunds, charges, invoice payments and credit notes."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

from stripe_emulator.call_table import PAGING, CallTable, list_newest
from stripe_emulator.expand import invoice_payments_to_json, payment_intent_to_json
from stripe_emulator.invoice_lifecycle import mark_paid
from stripe_emulator.invoices import CreditNote, Invoice, Refund
from stripe_emulator.prices import to_cents
from stripe_emulator.protocol import (
    ApiError,
    JsonObject,
    missing_parameter,
    missing_resource,
    new_id,
    not_found,
)

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.call import Call, Params

CALLS: Final = CallTable()
REASONS: Final = ("duplicate", "fraudulent", "requested_by_customer")


@CALLS("POST /v1/refunds", "amount charge metadata payment_intent reason")
def _create_refund(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/refunds/create: of a payment intent or of its charge."""
    params = call.params
    named = params.nonempty_text("payment_intent") or params.nonempty_text("charge")
    if named is None:
        message = "One of the following params should be provided for this request: payment_intent or charge."
        raise ApiError(message)
    param = "payment_intent" if "payment_intent" in params else "charge"
    invoice = _find_paid_invoice(account, named)
    if invoice is None:
        raise missing_resource(param, named, param=param)
    amount = params.integer("amount")
    reason, metadata = params.choice("reason", REASONS), params.metadata()
    made = refund_invoice(account, invoice, amount=amount, reason=reason)
    made.metadata = metadata
    return made.to_json()


def refund_invoice(
    account: Account, invoice: Invoice, *, amount: int | None, reason: str | None = None
) -> Refund:
    """Refund the payment of an invoice, all of it if no amount is given.

    Neither the invoice nor its subscription follows: no page says that they do
    (https://docs.stripe.com/refunds).

    Raises:
        ApiError: nothing was charged, or less is left than is to be refunded.
    """
    intent, charge = invoice.payment_intent, invoice.charge
    if intent is None or charge is None:
        message = f"This PaymentIntent ({intent}) does not have a successful charge to refund."
        raise ApiError(message, param="payment_intent")
    left = invoice.amount_paid - _refunded_amount(account, invoice)
    if left <= 0:
        raise ApiError(f"Charge {charge} has already been refunded.", code="charge_already_refunded")
    amount = left if amount is None else amount
    if amount < 1:
        raise ApiError("Invalid positive integer", code="parameter_invalid_integer", param="amount")
    if amount > left:
        # https://github.com/reactioncommerce/reaction/issues/3704 has Stripe's words.
        message = (
            f"Refund amount (${amount / 100:.2f}) is greater than unrefunded amount on charge "
            f"(${left / 100:.2f})"
        )
        raise ApiError(message, param="amount")
    made = Refund(
        id=new_id("re_1", length=23),
        created=account.now,
        amount=amount,
        currency=invoice.currency,
        invoice=invoice.id,
        payment_intent=intent,
        charge=charge,
        reason=reason,
    )
    before = _charge_to_json(account, invoice)
    account.refunds.add(made)
    account.emit("refund.created", made.to_json())
    account.emit("charge.refunded", _charge_to_json(account, invoice), previous=before)
    return made


def _refunded_amount(account: Account, invoice: Invoice) -> int:
    return sum(refund.amount for refund in account.refunds if refund.invoice == invoice.id)


def _find_paid_invoice(account: Account, named: str) -> Invoice | None:
    for invoice in account.invoices:
        if named in {invoice.payment_intent, invoice.charge}:
            return invoice
    return None


def _charge_to_json(account: Account, invoice: Invoice) -> JsonObject:
    """https://docs.stripe.com/api/charges/object, as far as refunds show in it."""
    refunded = _refunded_amount(account, invoice)
    return {
        "id": invoice.charge,
        "object": "charge",
        "amount": invoice.amount_paid,
        "amount_captured": invoice.amount_paid,
        "amount_refunded": refunded,
        "captured": True,
        "created": invoice.paid_at,
        "currency": invoice.currency,
        "customer": invoice.customer,
        "disputed": invoice.disputed,
        "livemode": invoice.livemode,
        "metadata": {},
        "paid": True,
        "payment_intent": invoice.payment_intent,
        "refunded": refunded >= invoice.amount_paid,
        "status": "succeeded",
    }


@CALLS("GET /v1/refunds", "charge created payment_intent", PAGING)
def _list_refunds(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/refunds/list."""
    return list_newest(account.refunds, call, "charge", "payment_intent")


@CALLS("GET /v1/charges/{id}")
def _retrieve_charge(account: Account, call: Call) -> JsonObject:
    invoice = _find_paid_invoice(account, call.object_id)
    if invoice is None or invoice.charge != call.object_id:
        raise not_found("charge", call.object_id)
    return _charge_to_json(account, invoice)


@CALLS("GET /v1/payment_intents/{id}", "client_secret")
def _retrieve_intent(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/payment_intents/retrieve."""
    return payment_intent_to_json(account, call.object_id)


@CALLS("GET /v1/invoice_payments", "invoice payment status", PAGING)
def _list_payments(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoice-payment/list: of one invoice, or of one payment intent."""
    params = call.params
    payment = params.hash("payment")
    if payment is not None:
        payment.only("payment_intent type")
        intent = payment.required("payment_intent")
        paid = next((each for each in account.invoices if each.payment_intent == intent), None)
        return call.page([] if paid is None else invoice_payments_to_json(paid))
    if "invoice" not in params:
        raise missing_parameter("invoice")
    invoice = account.invoices.find(params.required("invoice"), param="invoice")
    return call.page(invoice_payments_to_json(invoice))


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
    note: JsonObject = {
        "id": new_id("cn_1", length=23),
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
    account.credit_notes.add(
        CreditNote(
            id=str(note["id"]), created=account.now, customer=invoice.customer, invoice=invoice.id, shown=note
        )
    )
    account.emit("credit_note.created", note)
    _apply_credit(account, invoice, pre=pre, post=post, credit=shares["credit_amount"])
    return note


def _read_credit_amount(invoice: Invoice, params: Params) -> int:
    if "amount" in params and "lines" in params:
        raise ApiError("You may only specify one of these parameters: amount, lines.", param="amount")
    if "lines" in params:
        amount = sum(_read_line_credit(invoice, line) for line in params.hashes("lines"))
    elif "amount" in params:
        amount = params.integer("amount") or 0
    else:
        raise missing_parameter("amount")
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


CALLS.retrieve("/v1/refunds/{id}", lambda account: account.refunds)
