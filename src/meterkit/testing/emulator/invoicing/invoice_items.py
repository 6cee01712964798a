"""Invoice items, charged once (https://docs.stripe.com/api/invoiceitems), and the calls about them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.expand import expanded
from meterkit.testing.emulator.invoicing.billing import shown_now
from meterkit.testing.emulator.invoicing.invoices import ITEMS_MAX, Line
from meterkit.testing.emulator.protocol import (
    ApiError,
    JsonObject,
    missing_parameter,
    missing_resource,
    new_id,
    no_such,
)
from meterkit.testing.emulator.selling.amounts import Pricing, amount_of, to_cents
from meterkit.testing.emulator.selling.price_params import named_price
from meterkit.testing.emulator.selling.prices import Price, Product, shown
from meterkit.testing.emulator.subscribing.subscriptions import ENDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call, Params
    from meterkit.testing.emulator.invoicing.invoices import Invoice

__all__ = ["INVOICE_ITEM_CALLS", "all_items", "delete_item", "item_to_json", "make_item"]


LENGTH: Final = 23
PRICED: Final = ("price_data", "pricing", "quantity", "quantity_decimal", "unit_amount_decimal")
TEXT: Final = "Invoice item"


def make_item(account: Account, params: Params) -> tuple[Line, Invoice | None]:
    """Charge what a call describes: on the draft that it names, else on the next invoice.

    "When left blank, the invoice item will be added to the next upcoming scheduled invoice"; one that names a
    subscription waits for an invoice of that (https://docs.stripe.com/api/invoiceitems/create).

    Raises:
        ApiError: Stripe would refuse it.
    """
    customer = params.required("customer")
    if not account.customers.exists(customer):
        raise missing_resource("customer", customer, param="customer")
    invoice = _draft(account, params, customer=customer)
    subscription = _subscription(account, params, customer=customer)
    if invoice is not None and subscription not in {None, invoice.subscription}:
        message = f"The invoice {invoice.id} is not one of the subscription {subscription}."
        raise ApiError(message, param="subscription")
    currency = None
    if invoice is not None:
        currency = invoice.currency
    elif subscription is not None:
        currency = account.subscriptions.find(subscription).currency
    line = _line(account, params, currency=currency)
    line.customer, line.subscription = customer, subscription or (invoice.subscription if invoice else None)
    if invoice is None:
        account.invoices.pending.setdefault(subscription or customer, []).append(line)
        return line, None
    before = shown_now(account, invoice)
    invoice.lines.append(line)
    account.emit("invoice.updated", shown_now(account, invoice), previous=before)
    return line, invoice


def all_items(account: Account) -> Iterator[tuple[Line, Invoice | None]]:
    """Yield every invoice item with the invoice that it is on, if it is: those of calls, and of changes."""
    for invoice in account.invoices:
        yield from ((line, invoice) for line in invoice.lines if line.invoice_item is not None)
    for waiting in account.invoices.pending.values():
        yield from ((line, None) for line in waiting if line.invoice_item is not None)


def delete_item(account: Account, line: Line, invoice: Invoice | None) -> None:
    """Drop an invoice item.

    "Only possible when they're not attached to invoices, or if it's attached to a draft invoice"
    (https://docs.stripe.com/api/invoiceitems/delete).

    Raises:
        ApiError: it is on an invoice that is finalized.
    """
    if invoice is None:
        for waiting in account.invoices.pending.values():
            waiting[:] = [each for each in waiting if each is not line]
        return
    _refuse_finalized(invoice, param="id")
    before = shown_now(account, invoice)
    invoice.lines = [each for each in invoice.lines if each is not line]
    account.emit("invoice.updated", shown_now(account, invoice), previous=before)


def item_to_json(account: Account, line: Line, invoice: Invoice | None) -> JsonObject:
    """Return an invoice item as Stripe shows it (https://docs.stripe.com/api/invoiceitems/object)."""
    parent: JsonObject | None = None
    customer = line.customer
    if line.subscription is not None:
        details = {"subscription": line.subscription, "subscription_item": line.item}
        parent = {"subscription_details": details, "type": "subscription_details"}
        customer = account.subscriptions.find(line.subscription).customer
    return {
        "id": line.invoice_item,
        "object": "invoiceitem",
        "amount": line.amount,
        "currency": line.price.currency,
        "customer": customer,
        "customer_account": None,
        "date": line.created or line.start,
        "description": line.description,
        "discountable": not line.proration,
        "discounts": [],
        "frozen_fields": [],
        "invoice": None if invoice is None else invoice.id,
        "invoicing_rules": None,
        "livemode": line.price.livemode,
        "metadata": dict(line.metadata or {}),
        "net_amount": None,
        "parent": parent,
        "period": {"end": line.end, "start": line.start},
        "pricing": {
            "price_details": {"price": line.price.id, "product": line.price.product},
            "type": "price_details",
            "unit_amount_decimal": shown(line.unit_amount),
        },
        "proration": line.proration,
        "proration_details": None,
        "quantity": int(line.quantity),
        "quantity_decimal": shown(line.quantity),
        "tax_rates": [],
        "test_clock": None,
    }


def _draft(account: Account, params: Params, *, customer: str) -> Invoice | None:
    """The draft that a call names: "you can only add invoice items to draft invoices", 250 of them."""
    invoice_id = params.given("invoice")
    if invoice_id is None:
        return None
    invoice = account.invoices.find(invoice_id, param="invoice")
    if invoice.customer != customer:
        message = f"The invoice {invoice.id} is not one of the customer {customer}."
        raise ApiError(message, param="invoice")
    _refuse_finalized(invoice, param="invoice")
    if sum(line.invoice_item is not None for line in invoice.lines) >= ITEMS_MAX:
        message = f"You can add at most {ITEMS_MAX} invoice items to an invoice."
        raise ApiError(message, param="invoice")
    return invoice


def _subscription(account: Account, params: Params, *, customer: str) -> str | None:
    subscription_id = params.given("subscription")
    if subscription_id is None:
        return None
    subscription = account.subscriptions.find(subscription_id, param="subscription")
    if subscription.customer != customer:
        message = f"The subscription {subscription.id} is not one of the customer {customer}."
        raise ApiError(message, param="subscription")
    if subscription.status in ENDED:
        message = f"The subscription {subscription.id} is `{subscription.status}`: it has no next invoice."
        raise ApiError(message, param="subscription")
    return subscription_id


def _line(account: Account, params: Params, *, currency: str | None) -> Line:
    now = account.now
    start, end = _period(params, now=now)
    price, quantity, unit_amount = _priced(account, params, currency=currency)
    exact = amount_of(price.pricing, quantity)
    if price.pricing.unit_amount is not None and price.pricing.divide_by is None:
        exact = Fraction(quantity) * Fraction(unit_amount)
    metadata: dict[str, str] = {}
    params.amend("metadata", metadata)
    return Line(
        id=new_id("il_1", length=LENGTH),
        amount=to_cents(exact),
        description=params.given("description") or account.products.find(price.product).name,
        start=start,
        end=end,
        price=price,
        quantity=quantity,
        unit_amount=unit_amount,
        subscription=None,
        item=None,
        invoice_item=new_id("ii_1", length=LENGTH),
        metadata=metadata,
        created=now,
    )


def _priced(account: Account, params: Params, *, currency: str | None) -> tuple[Price, Decimal, Decimal]:
    """What is charged at which price: an amount, or a quantity of a unit.

    "`quantity_decimal`: Non-negative decimal with at most 12 decimal places"
    (https://docs.stripe.com/api/invoiceitems/create).
    """
    amount, unit_amount = params.integer("amount"), params.decimal("unit_amount_decimal")
    both = [name for name in PRICED if name in params]
    if amount is not None and both:
        message = f"You may only specify one of these parameters: amount, {both[0]}."
        raise ApiError(message, param="amount")
    if "quantity" in params and "quantity_decimal" in params:
        message = "You may only specify one of these parameters: quantity, quantity_decimal."
        raise ApiError(message, param="quantity")
    quantity = params.decimal("quantity_decimal")
    quantity = (
        Decimal(1 if (whole := params.integer("quantity")) is None else whole)
        if quantity is None
        else quantity
    )
    if quantity < 0:
        message = "This value must be greater than or equal to 0."
        raise ApiError(message, code="parameter_invalid_integer", param="quantity")
    pricing = params.hash("pricing")
    if pricing is not None or "price_data" in params:
        if unit_amount is not None:
            message = "You may only specify one of these parameters: pricing, unit_amount_decimal."
            raise ApiError(message, param="unit_amount_decimal")
        if pricing is not None:
            pricing.only("price")
        price = named_price(account, pricing or params, currency=currency, recurs=False)
        return price, quantity, price.pricing.unit_amount or Decimal(0)
    unit_amount = unit_amount if amount is None else Decimal(amount)
    if unit_amount is None:
        raise missing_parameter("amount")
    given = params.required("currency").lower()
    if currency not in {None, given}:
        message = f"The currency of an invoice item must be that of its invoice: `{currency}`."
        raise ApiError(message, param="currency")
    return _own_price(account, params, unit_amount, currency=given), quantity, unit_amount


def _own_price(account: Account, params: Params, unit_amount: Decimal, *, currency: str) -> Price:
    """A price and a product of an item's own, which no list shows."""
    product = Product(
        id=new_id("prod"),
        name=params.given("description") or TEXT,
        created=account.now,
        updated=account.now,
        active=False,
    )
    price = Price(
        id=new_id("price_1", length=LENGTH),
        product=product.id,
        created=account.now,
        currency=currency,
        active=False,
        inline=True,
        pricing=Pricing(unit_amount=unit_amount),
    )
    account.products.add(product)
    account.prices.add(price)
    return price


def _period(params: Params, *, now: int) -> tuple[int, int]:
    """Its end "must be greater than or equal to the start" (the same page)."""
    period = params.hash("period")
    if period is None:
        return now, now
    period.only("end", "start")
    for name in ("end", "start"):
        period.required(name)
    start, end = period.integer("start") or 0, period.integer("end") or 0
    if end < start:
        message = "The end of the period must be greater than or equal to its start."
        raise ApiError(message, param=period.path("end"))
    return start, end


def _refuse_finalized(invoice: Invoice, *, param: str) -> None:
    if invoice.status != "draft":
        message = f"The invoice {invoice.id} is no longer a draft and can't be edited."
        raise ApiError(message, code="invoice_not_editable", param=param)


FIELDS: Final = (
    *("amount", "currency", "customer", "description", "invoice", "metadata", "period", "price_data"),
    *("pricing", "quantity", "quantity_decimal", "subscription", "unit_amount_decimal"),
)
# Accepted and without effect.
IGNORED: Final = ("tax_behavior", "tax_code", "tax_rates")


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoiceitems/create."""
    call.params.only(*FIELDS, *IGNORED, expandable=None)
    line, invoice = make_item(account, call.params)
    shown = item_to_json(account, line, invoice)
    account.emit("invoiceitem.created", shown)
    return expanded(account, shown, call.params)


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    return expanded(account, item_to_json(account, *_found(account, call)), call.params)


def _list(account: Account, call: Call) -> JsonObject:
    """Newest first (https://docs.stripe.com/api/invoiceitems/list)."""
    params = call.params
    params.only("created", "customer", "invoice", "pending", *PAGING, expandable=None)
    customer, invoice_id = params.text("customer"), params.text("invoice")
    pending, is_in = params.boolean("pending"), params.span("created")
    items = sorted(all_items(account), key=lambda item: item[0].created or item[0].start)
    shown = [item_to_json(account, line, invoice) for line, invoice in items]
    found = [
        item
        for item in reversed(shown)
        if customer in {None, item["customer"]}
        and invoice_id in {None, item["invoice"]}
        and pending in {None, item["invoice"] is None}
        and is_in(int(str(item["date"])))
    ]
    return expanded(account, params.page(found, url="/v1/invoiceitems"), params)


def _delete(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoiceitems/delete."""
    call.params.only()
    line, invoice = _found(account, call)
    delete_item(account, line, invoice)
    account.emit("invoiceitem.deleted", item_to_json(account, line, None))
    return {"id": line.invoice_item, "object": "invoiceitem", "deleted": True}


def _found(account: Account, call: Call) -> tuple[Line, Invoice | None]:
    for line, invoice in all_items(account):
        if line.invoice_item == call.object_id:
            return line, invoice
    raise no_such("invoiceitem", call.object_id)


INVOICE_ITEM_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/invoiceitems", _create),
    ("GET", "/v1/invoiceitems", _list),
    ("GET", "/v1/invoiceitems/{id}", _retrieve),
    ("DELETE", "/v1/invoiceitems/{id}", _delete),
)
