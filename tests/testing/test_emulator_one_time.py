"""Invoices of no subscription, and checkout pages where something is bought once, by the official SDK."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import told
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

PAGES: Any = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example"}


async def customer_of(client: stripe.StripeClient) -> str:
    return (await client.v1.customers.create_async({"email": "ada@example.com"})).id


async def drafted(client: stripe.StripeClient, customer: str, price: str) -> stripe.Invoice:
    made = await client.v1.invoices.create_async(
        {"customer": customer, "auto_advance": False, "metadata": {"a": "b"}}
    )
    await client.v1.invoice_items.create_async(
        {"customer": customer, "invoice": str(made.id), "pricing": {"price": price}}
    )
    return await client.v1.invoices.finalize_invoice_async(str(made.id))


@pytest.mark.parametrize("saves_card", [True, False])
async def test_something_is_bought_once_on_a_checkout_page(*, saves_card: bool) -> None:
    emulator = StripeEmulator()
    price = emulator.add_price(1000, interval=None)
    async with account(emulator) as client:
        customer = await customer_of(client)
        asked: Any = {
            "mode": "payment",
            "customer": customer,
            "line_items": [{"price": price, "quantity": 2}],
            "invoice_creation": {"enabled": True, "invoice_data": {"metadata": {"a": "b"}}},
            **PAGES,
        }
        if saves_card:
            asked["payment_intent_data"] = {"setup_future_usage": "off_session"}
        session = await client.v1.checkout.sessions.create_async(asked)
        assert (session.mode, session.amount_total, session.invoice) == ("payment", 2000, None)
        emulator.complete_checkout(session.id)
        done = await client.v1.checkout.sessions.retrieve_async(session.id)
        invoice = await client.v1.invoices.retrieve_async(str(done.invoice))
        assert (done.payment_status, done.subscription) == ("paid", None)
        assert (invoice.status, invoice.total) == ("paid", 2000)
        assert invoice.metadata is not None
        assert invoice.metadata["a"] == "b"
        methods = await client.v1.customers.payment_methods.list_async(customer)
        assert len(methods.data) == int(saves_card)


@pytest.mark.parametrize(
    ("mode", "more", "message"),
    [
        ("setup", {}, "payment and subscription"),
        ("subscription", {"invoice_creation": {"enabled": True}}, "`payment` mode"),
        ("subscription", {"payment_intent_data": {"description": "a"}}, "`subscription` mode"),
        ("payment", {}, "recurring price"),
    ],
)
async def test_what_does_not_fit_the_mode_is_refused(mode: Any, more: Any, message: str) -> None:
    emulator = StripeEmulator()
    price = emulator.add_price(1000)
    async with account(emulator) as client:
        asked: Any = {"mode": mode, "line_items": [{"price": price, "quantity": 1}], **more, **PAGES}
        with pytest.raises(stripe.InvalidRequestError, match=message):
            await client.v1.checkout.sessions.create_async(asked)


async def test_a_disputed_payment_is_told_and_shown() -> None:
    emulator = StripeEmulator()
    price = emulator.add_price(1000, interval=None)
    async with account(emulator) as client:
        customer = await customer_of(client)
        emulator.add_payment_method(customer)
        invoice = await drafted(client, customer, price)
        with pytest.raises(ValueError, match="nothing was charged"):
            emulator.dispute_payment(str(invoice.id))
        await client.v1.invoices.pay_async(str(invoice.id))
        emulator.dispute_payment(str(invoice.id))
        assert told(emulator)[-1] == "charge.dispute.created"
        payments = await client.v1.invoice_payments.list_async({"invoice": str(invoice.id)})
        intent = await client.v1.payment_intents.retrieve_async(str(payments.data[0].payment.payment_intent))
        charge = await client.v1.charges.retrieve_async(str(intent.latest_charge))
        assert (charge.disputed, charge.amount_refunded) == (True, 0)
