"""The calls about invoice payments and refunds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.call import PAGING
from stripe_emulator.expand import intent_of, payments_of
from stripe_emulator.invoicing.refunds import Refund
from stripe_emulator.object_calls import newest, retrieves
from stripe_emulator.protocol import ApiError, missing_parameter, missing_resource, new_id, no_such

if TYPE_CHECKING:
    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call
    from stripe_emulator.invoicing.invoices import Invoice
    from stripe_emulator.protocol import JsonObject

REASONS: Final = ("duplicate", "fraudulent", "requested_by_customer")


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/refunds/create: of a payment intent or of its charge."""
    params = call.params
    params.only("amount", "charge", "metadata", "payment_intent", "reason", expandable=None)
    named = params.given("payment_intent") or params.given("charge")
    if named is None:
        message = "One of the following params should be provided for this request: payment_intent or charge."
        raise ApiError(message)
    param = "payment_intent" if "payment_intent" in params else "charge"
    invoice = _paid_by(account, named)
    if invoice is None:
        raise missing_resource(param, named, param=param)
    amount = params.integer("amount")
    reason, metadata = params.choice("reason", REASONS), params.metadata()
    made = refund(account, invoice, amount=amount, reason=reason)
    made.metadata = metadata
    return made.to_json()


def refund(account: Account, invoice: Invoice, *, amount: int | None, reason: str | None = None) -> Refund:
    """Refund what was paid for an invoice, all of it where no amount is given.

    Neither the invoice nor its subscription follows: no page says that they do
    (https://docs.stripe.com/refunds).

    Raises:
        ApiError: nothing was charged, or less is left than is to be refunded.
    """
    intent, charge = invoice.payment_intent, invoice.charge
    if intent is None or charge is None:
        message = f"This PaymentIntent ({intent}) does not have a successful charge to refund."
        raise ApiError(message, param="payment_intent")
    left = invoice.amount_paid - _refunded(account, invoice)
    if left <= 0:
        raise ApiError(f"Charge {charge} has already been refunded.", code="charge_already_refunded")
    amount = left if amount is None else amount
    if amount < 1:
        message = "Invalid positive integer"
        raise ApiError(message, code="parameter_invalid_integer", param="amount")
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


def _refunded(account: Account, invoice: Invoice) -> int:
    return sum(refund.amount for refund in account.refunds if refund.invoice == invoice.id)


def _paid_by(account: Account, named: str) -> Invoice | None:
    for invoice in account.invoices:
        if named in {invoice.payment_intent, invoice.charge}:
            return invoice
    return None


def _charge_to_json(account: Account, invoice: Invoice) -> JsonObject:
    """https://docs.stripe.com/api/charges/object, as far as refunds show in it."""
    refunded = _refunded(account, invoice)
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


def _list(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/refunds/list."""
    return newest(account.refunds, call, "charge", "payment_intent")


def _retrieve_charge(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    invoice = _paid_by(account, call.object_id)
    if invoice is None or invoice.charge != call.object_id:
        raise no_such("charge", call.object_id)
    return _charge_to_json(account, invoice)


def _retrieve_intent(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/payment_intents/retrieve."""
    call.params.only("client_secret", expandable=None)
    return intent_of(account, call.object_id)


def _list_payments(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoice-payment/list: of one invoice, or of one payment intent."""
    params = call.params
    params.only("invoice", "payment", "status", *PAGING, expandable=None)
    payment = params.hash("payment")
    if payment is not None:
        payment.only("payment_intent", "type")
        intent = payment.required("payment_intent")
        paid = next((each for each in account.invoices if each.payment_intent == intent), None)
        return call.page([] if paid is None else payments_of(paid))
    if "invoice" not in params:
        raise missing_parameter("invoice")
    invoice = account.invoices.find(params.required("invoice"), param="invoice")
    return call.page(payments_of(invoice))


REFUND_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/refunds", _create),
    ("GET", "/v1/refunds", _list),
    ("GET", "/v1/refunds/{id}", retrieves(lambda account: account.refunds)),
    ("GET", "/v1/charges/{id}", _retrieve_charge),
    ("GET", "/v1/payment_intents/{id}", _retrieve_intent),
    ("GET", "/v1/invoice_payments", _list_payments),
)
