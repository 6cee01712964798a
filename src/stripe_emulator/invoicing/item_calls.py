"""The calls about invoice items: create on a draft or for the next invoice, retrieve, list, delete."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from stripe_emulator.call import PAGING
from stripe_emulator.invoicing.billing import item_line
from stripe_emulator.protocol import ApiError, missing_parameter, new_id, no_such
from stripe_emulator.selling.amounts import Pricing
from stripe_emulator.selling.price_params import named_price
from stripe_emulator.selling.prices import Price, Product, shown
from stripe_emulator.subscribing.subscriptions import ENDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call, Params
    from stripe_emulator.invoicing.invoices import Invoice, Line
    from stripe_emulator.protocol import JsonObject

QUANTITIES: Final = ("quantity", "quantity_decimal")
AMOUNTS: Final = ("price_data", "pricing", "unit_amount_decimal")
# Accepted and without effect.
IGNORED: Final = ("discountable", "tax_behavior", "tax_code")


class _Place(NamedTuple):
    """Where an invoice item belongs: on a draft, or on the next invoice of a subscription or of any."""

    invoice: Invoice | None
    subscription: str | None
    currency: str | None


class _Item(NamedTuple):
    """An invoice item, whose it is, and the invoice that has it; None: it waits for one."""

    line: Line
    customer: str
    invoice: Invoice | None

    def to_json(self) -> JsonObject:
        """Return the item as Stripe shows it (https://docs.stripe.com/api/invoiceitems/object)."""
        line = self.line
        details = {"price": line.price.id, "product": line.price.product}
        owner: JsonObject = {"subscription": line.subscription, "subscription_item": line.item}
        return {
            "id": line.invoice_item,
            "object": "invoiceitem",
            "amount": line.amount,
            "currency": line.price.currency,
            "customer": self.customer,
            "date": line.created or line.start,
            "description": line.description,
            "discountable": not line.proration,
            "invoice": None if self.invoice is None else self.invoice.id,
            "livemode": line.price.livemode,
            "metadata": dict(line.metadata or {}),
            "parent": None
            if line.subscription is None
            else {"type": "subscription_details", "subscription_details": owner},
            "period": {"end": line.end, "start": line.start},
            "pricing": {
                "price_details": details,
                "type": "price_details",
                "unit_amount_decimal": shown(line.unit_amount),
            },
            "proration": line.proration,
            "quantity": int(line.quantity),
            "quantity_decimal": shown(line.quantity),
        }


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoiceitems/create: at a price that is charged once."""
    params = call.params
    params.only(
        *("currency", "customer", "description", "invoice", "metadata", "period", "subscription"),
        *(*QUANTITIES, *AMOUNTS, *IGNORED),
        expandable=None,
    )
    customer = account.customers.named(params.required("customer"))
    place = _place(account, params, customer)
    quantity = _quantity(params)
    price = _price(account, params, place.currency)
    line = item_line(account, price, quantity, subscription=place.subscription)
    line.description = params.given("description") or line.description
    line.customer, line.metadata, line.created = customer, params.metadata(), account.now
    span = params.hash("period")
    if span is not None:
        span.only("end", "start")
        line.start, line.end = (int(span.required(edge)) for edge in ("start", "end"))
    if place.invoice is not None:
        place.invoice.lines.append(line)
    else:
        account.invoices.pending.setdefault(place.subscription or customer, []).append(line)
    return _Item(line, customer, place.invoice).to_json()


def _place(account: Account, params: Params, customer: str) -> _Place:
    params.refuse_both("invoice", "subscription", param="invoice")
    if "invoice" in params:
        invoice = account.invoices.find(params.required("invoice"), param="invoice")
        if invoice.customer != customer or invoice.status != "draft":
            message = "You can only add invoice items to a draft invoice of the same customer."
            raise ApiError(message, param="invoice")
        return _Place(invoice, None, invoice.currency)
    if "subscription" not in params:
        return _Place(None, None, None)
    subscription = account.subscriptions.find(params.required("subscription"), param="subscription")
    if subscription.customer != customer or subscription.status in ENDED:
        message = "You can only add invoice items to a subscription of the same customer that has not ended."
        raise ApiError(message, param="subscription")
    return _Place(None, subscription.id, subscription.currency)


def _quantity(params: Params) -> Decimal:
    params.refuse_both(*QUANTITIES, param="quantity")
    whole, exact = params.at_least("quantity", 0), params.decimal("quantity_decimal")
    if exact is not None and exact < 0:
        raise ApiError("Invalid non-negative decimal", param="quantity_decimal")
    return exact if exact is not None else Decimal(1 if whole is None else whole)


def _price(account: Account, params: Params, currency: str | None) -> Price:
    """The price that a call names, or an inline one of its amount."""
    named = params.hash("pricing") or params
    if "price" in named or "price_data" in named:
        params.refuse_both("unit_amount_decimal", "price_data", param="unit_amount_decimal")
        return named_price(account, named, currency=currency, recurs=False)
    unit_amount = params.decimal("unit_amount_decimal")
    if unit_amount is None:
        raise missing_parameter("pricing[price]")
    own = params.required("currency").lower()
    if currency not in {None, own}:
        raise ApiError(f"The invoice item is in `{own}`, and the invoice in `{currency}`.", param="currency")
    name = params.given("description") or "Invoice item"
    product = Product(
        id=new_id("prod_", length=14), name=name, created=account.now, updated=account.now, active=False
    )
    price = Price(
        id=new_id("price_1", length=23),
        product=product.id,
        currency=own,
        created=account.now,
        active=False,
        inline=True,
        pricing=Pricing(unit_amount=unit_amount),
    )
    account.products.add(product)
    account.prices.add(price)
    return price


def _items(account: Account) -> Iterator[_Item]:
    """All invoice items, oldest first on their invoices, then those that wait."""
    for invoice in account.invoices:
        for line in invoice.lines:
            if line.invoice_item is not None:
                yield _Item(line, invoice.customer, invoice)
    for key, lines in account.invoices.pending.items():
        owner = account.subscriptions.find(key).customer if key.startswith("sub_") else key
        yield from (_Item(line, owner, None) for line in lines)


def _list(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoiceitems/list."""
    params = call.params
    params.only("created", "customer", "invoice", "pending", *PAGING, expandable=None)
    account.customers.known(params.text("customer"))
    is_in, pending = params.span("created"), params.boolean("pending")
    wanted = {name: params.text(name) for name in ("customer", "invoice") if name in params}
    found = [item.to_json() for item in _items(account) if is_in(item.line.created or item.line.start)]
    return call.page(
        [
            item
            for item in reversed(found)
            if all(item[name] == value for name, value in wanted.items())
            and pending in {None, item["invoice"] is None}
        ]
    )


def _found(account: Account, call: Call) -> _Item:
    for item in _items(account):
        if item.line.invoice_item == call.object_id:
            return item
    raise no_such("invoiceitem", call.object_id)


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    return _found(account, call).to_json()


def _delete(account: Account, call: Call) -> JsonObject:
    """Delete an item that no final invoice has (https://docs.stripe.com/api/invoiceitems/delete)."""
    call.params.only()
    item = _found(account, call)
    if item.invoice is not None and item.invoice.status != "draft":
        raise ApiError("The invoice item is on an invoice that is no longer editable.")
    pending = account.invoices.pending.values()
    for lines in (item.invoice.lines,) if item.invoice is not None else pending:
        lines[:] = [line for line in lines if line.invoice_item != call.object_id]
    return {"id": call.object_id, "object": "invoiceitem", "deleted": True}


INVOICE_ITEM_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("GET", "/v1/invoiceitems", _list),
    ("POST", "/v1/invoiceitems", _create),
    ("GET", "/v1/invoiceitems/{id}", _retrieve),
    ("DELETE", "/v1/invoiceitems/{id}", _delete),
)
