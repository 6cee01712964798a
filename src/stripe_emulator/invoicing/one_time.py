"""Invoices of no subscription: made by a call or on a checkout page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.invoicing.billing import HOUR_S, read_tax
from stripe_emulator.invoicing.invoices import Invoice
from stripe_emulator.protocol import ApiError, new_id

if TYPE_CHECKING:
    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call
    from stripe_emulator.protocol import JsonObject

# Accepted and without effect.
IGNORED: Final = ("footer", "payment_settings", "statement_descriptor")


def draft(account: Account, customer: str, *, currency: str, livemode: bool = False) -> Invoice:
    """Return an invoice of no subscription, which nothing has been put on yet."""
    payer = account.customers.find(customer)
    return Invoice(
        id=new_id("in_1", length=23),
        customer=customer,
        subscription=None,
        created=account.now,
        currency=currency,
        billing_reason="manual",
        period_start=account.now,
        period_end=account.now,
        livemode=livemode,
        customer_email=payer.texts["email"],
        customer_name=payer.texts["name"],
        starting_balance=payer.balance,
        test_clock=payer.test_clock,
    )


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/create: of no subscription, and without what waits for one."""
    params = call.params
    params.only(
        *("auto_advance", "automatic_tax", "collection_method", "currency", "customer", "description"),
        *("default_payment_method", "discounts", "metadata", "pending_invoice_items_behavior", *IGNORED),
        expandable=None,
    )
    if params.choice("pending_invoice_items_behavior", ("exclude", "include")) == "include":
        message = "The emulator makes invoices that exclude pending invoice items only."
        raise ApiError(message, param="pending_invoice_items_behavior")
    if params.text("discounts"):
        message = "The emulator makes invoices without discounts; give them with an update."
        raise ApiError(message, param="discounts")
    customer = account.customers.named(params.required("customer"))
    made = draft(account, customer, currency=params.given("currency") or "usd", livemode=call.livemode)
    taxed = read_tax(account, params, customer=customer)
    made.tax_percent = account.behaviour.tax_percent if taxed else None
    method = params.given("default_payment_method")
    if method is not None:
        account.payment_methods.of_customer(method, customer=customer, param="default_payment_method")
    made.default_payment_method = method
    made.description, made.metadata = params.text("description"), params.metadata()
    made.auto_advance = bool(params.boolean("auto_advance"))
    made.schedule(account.now + HOUR_S)
    account.invoices.add(made)
    account.emit("invoice.created", made.to_json())
    return made.to_json()


def _delete(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoices/delete: a draft of no subscription."""
    call.params.only()
    invoice = account.invoices.find(call.object_id)
    if invoice.status != "draft" or invoice.subscription is not None:
        message = "You can only delete draft invoices that no subscription has made; void this one instead."
        raise ApiError(message)
    account.invoices.delete(invoice)
    account.emit("invoice.deleted", invoice.to_json())
    return {"id": invoice.id, "object": "invoice", "deleted": True}


ONE_TIME_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/invoices", _create),
    ("DELETE", "/v1/invoices/{id}", _delete),
)
