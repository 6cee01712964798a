"""API calls about refunds, disputes, charges, payment intents and invoice payments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.call_table import PAGING, CallTable, list_newest
from stripe_emulator.currency_amounts import refund_text
from stripe_emulator.expand import invoice_payments_to_json, payment_intent_to_json
from stripe_emulator.invoices import Invoice, Refund
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
    from stripe_emulator.call import Call

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
            f"Refund amount ({refund_text(amount, invoice.currency)}) is greater than unrefunded amount on"
            f" charge ({refund_text(left, invoice.currency)})"
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
    account.add(account.refunds, made, "refund.created")
    account.emit("charge.refunded", _charge_to_json(account, invoice), previous=before)
    return made


def _refunded_amount(account: Account, invoice: Invoice) -> int:
    return sum(refund.amount for refund in account.refunds if refund.invoice == invoice.id)


def _find_paid_invoice(account: Account, named: str) -> Invoice | None:
    found = (each for each in account.invoices if named in {each.payment_intent, each.charge})
    return next(found, None)


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


@CALLS("GET /v1/disputes", "charge created payment_intent", PAGING)
def _list_disputes(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/disputes/list."""
    return list_newest(account.disputes, call, "charge", "payment_intent")


@CALLS("GET /v1/charges/{id}")
def _retrieve_charge(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/charges/retrieve."""
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


CALLS.retrieve("/v1/refunds/{id}", lambda account: account.refunds)
