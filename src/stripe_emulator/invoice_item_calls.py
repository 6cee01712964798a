"""API calls about invoice items: create on a draft or for the next one, list, update, assign, delete."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from stripe_emulator.call_table import PAGING, CallTable
from stripe_emulator.currency_amounts import decimal_text
from stripe_emulator.invoice_drafts import apply_tax_rates, one_time_line, refreshed_invoice_json
from stripe_emulator.invoices import INVOICE_ITEMS_MAX
from stripe_emulator.price_calls import resolve_price
from stripe_emulator.prices import Price, PriceScheme, Product, price_quantity, to_cents
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter, new_id, not_found
from stripe_emulator.subscriptions import ENDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stripe_emulator.account import Account
    from stripe_emulator.call import Call, Params
    from stripe_emulator.invoices import Invoice, InvoiceLine

CALLS: Final = CallTable()
QUANTITY_PARAMS: Final = ("quantity", "quantity_decimal")
AMOUNT_PARAMS: Final = "amount price_data pricing unit_amount_decimal"
# Accepted and without effect.
ITEM_IGNORED: Final = "discountable tax_code"


class _Placement(NamedTuple):
    """The place of an invoice item: on a draft, or on the next invoice of a subscription or of any."""

    invoice: Invoice | None
    subscription: str | None
    currency: str | None


class InvoiceItem(NamedTuple):
    """An invoice item, its customer, and its invoice; None: it is pending."""

    line: InvoiceLine
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
                "unit_amount_decimal": decimal_text(line.unit_amount),
            },
            "proration": line.proration,
            "proration_details": _proration_details(line) if line.proration else None,
            "quantity": int(line.quantity),
            "quantity_decimal": decimal_text(line.quantity),
        }


def _proration_details(line: InvoiceLine) -> JsonObject:
    """https://docs.stripe.com/api/invoiceitems/object#invoiceitem_object-proration_details."""
    credited: JsonObject | None = None
    if line.credited is not None and line.credited.invoice is None:
        credited = {"type": "invoice_item", "invoice_item": line.credited.invoice_item}
    elif line.credited is not None:
        lines = line.credited.to_json("")
        credited = {"type": "invoice_line_items", "invoice_line_item_details": lines}
    return {"credited_items": credited, "discount_amounts": []}


@CALLS(
    "POST /v1/invoiceitems",
    "currency customer description invoice metadata period subscription tax_behavior tax_rates",
    *QUANTITY_PARAMS,
    AMOUNT_PARAMS,
    ITEM_IGNORED,
)
def _create_item(account: Account, call: Call) -> JsonObject:
    """Create an item at a price that is charged once.

    "Creates an item to be added to a draft invoice (up to 250 items per invoice)"; its tax rates are used
    "when automatic tax is not enabled" (https://docs.stripe.com/api/invoiceitems/create). An item without
    rates of its own has the default ones of the invoice (https://docs.stripe.com/billing/taxes/tax-rates).
    """
    params = call.params
    customer = account.customers.require(params.required("customer"))
    place = _read_placement(account, params, customer)
    quantity = _read_quantity(params)
    price = _read_price(account, params, place.currency)
    account.customers.keep_currency(customer, price.currency)
    line = one_time_line(account, price, quantity, subscription=place.subscription)
    line.description = params.nonempty_text("description") or line.description
    line.customer, line.metadata, line.created = customer, params.metadata(), account.now
    line.start, line.end = params.period() or (line.start, line.end)
    line.rate_ids = params.listed("tax_rates") if "tax_rates" in params else ()
    if place.invoice is not None:
        place.invoice.lines += apply_tax_rates(account, place.invoice, [line])
    else:
        account.invoices.pending.setdefault(place.subscription or customer, []).append(line)
    return InvoiceItem(line, customer, place.invoice).to_json()


def _read_placement(account: Account, params: Params, customer: str) -> _Placement:
    params.refuse_both("invoice", "subscription", param="invoice")
    if "invoice" in params:
        invoice = account.invoices.find(params.required("invoice"), param="invoice")
        if invoice.customer != customer or invoice.status != "draft":
            message = "You can only add invoice items to a draft invoice of the same customer."
            raise ApiError(message, param="invoice")
        if len(invoice.all_lines) >= INVOICE_ITEMS_MAX:
            message = f"An invoice can have at most {INVOICE_ITEMS_MAX} items."
            raise ApiError(message, param="invoice")
        return _Placement(invoice, None, invoice.currency)
    if "subscription" not in params:
        return _Placement(None, None, None)
    subscription = account.subscriptions.find(params.required("subscription"), param="subscription")
    if subscription.customer != customer or subscription.status in ENDED:
        message = "You can only add invoice items to a subscription of the same customer that has not ended."
        raise ApiError(message, param="subscription")
    return _Placement(None, subscription.id, subscription.currency)


def _read_quantity(params: Params) -> Decimal:
    for name in QUANTITY_PARAMS:
        params.refuse_both("amount", name, param=name)
    params.refuse_both(*QUANTITY_PARAMS, param="quantity")
    whole, exact = params.at_least("quantity", 0), params.decimal("quantity_decimal")
    if exact is not None and exact < 0:
        raise ApiError("Invalid non-negative decimal", param="quantity_decimal")
    return exact if exact is not None else Decimal(1 if whole is None else whole)


def _read_price(account: Account, params: Params, currency: str | None) -> Price:
    """Return the price that a call names, or an inline one of its amount.

    https://docs.stripe.com/api/invoiceitems/create#create_invoiceitem-tax_behavior says whether tax is within
    the amount of an inline price; https://docs.stripe.com/tax/products-prices-tax-codes-tax-behavior.
    """
    behavior = params.choice("tax_behavior", ("exclusive", "inclusive", "unspecified"))
    for name in ("pricing", "price_data", "unit_amount_decimal"):
        params.refuse_both("amount", name, param=name)
    named = params.hash("pricing") or params
    if "price" in named or "price_data" in named:
        params.refuse_both("unit_amount_decimal", "price_data", param="unit_amount_decimal")
        asked = currency or params.nonempty_text("currency")
        price = resolve_price(account, named, currency=asked, recurs=False)
        price.tax_behavior = behavior if price.inline and behavior else price.tax_behavior
        return price
    unit_amount = _read_unit_amount(params)
    if unit_amount is None:
        raise missing_parameter("pricing[price]")
    own = params.required("currency").lower()
    if currency not in {None, own}:
        raise ApiError(f"The invoice item is in `{own}`, and the invoice in `{currency}`.", param="currency")
    price = _add_inline_price(
        account, own, params.nonempty_text("description") or "Invoice item", unit_amount
    )
    price.tax_behavior = behavior or price.tax_behavior
    return price


def _read_unit_amount(params: Params) -> Decimal | None:
    """Return the unit amount of a call, or the amount of one unit; None: it names neither."""
    amount = params.integer("amount")
    return params.decimal("unit_amount_decimal") if amount is None else Decimal(amount)


def _add_inline_price(account: Account, currency: str, name: str, unit_amount: Decimal) -> Price:
    product = Product(
        id=new_id("prod_", length=14), name=name, created=account.now, updated=account.now, active=False
    )
    price = Price(
        id=new_id("price_1", length=23),
        product=product.id,
        currency=currency,
        created=account.now,
        active=False,
        inline=True,
        pricing=PriceScheme(unit_amount=unit_amount),
    )
    account.products.add(product)
    account.prices.add(price)
    return price


def _all_items(account: Account) -> Iterator[InvoiceItem]:
    """Yield all invoice items: those on invoices, oldest first, then pending ones."""
    for invoice in account.invoices:
        for line in invoice.lines:
            if line.invoice_item is not None:
                yield InvoiceItem(line, invoice.customer, invoice)
    for key, lines in account.invoices.pending.items():
        owner = account.subscriptions.find(key).customer if key.startswith("sub_") else key
        yield from (InvoiceItem(line, owner, None) for line in lines)


@CALLS("GET /v1/invoiceitems", "created customer invoice pending", PAGING)
def _list_items(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoiceitems/list."""
    params = call.params
    account.customers.require_ever_created(params.text("customer"))
    is_in, pending = params.time_filter("created"), params.boolean("pending")
    wanted = {name: params.text(name) for name in ("customer", "invoice") if name in params}
    found = [item.to_json() for item in _all_items(account) if is_in(item.line.created or item.line.start)]
    return call.page(
        [
            item
            for item in reversed(found)
            if all(item[name] == value for name, value in wanted.items())
            and pending in {None, item["invoice"] is None}
        ]
    )


def _find_item(account: Account, call: Call) -> InvoiceItem:
    for item in _all_items(account):
        if item.line.invoice_item == call.object_id:
            return item
    raise not_found("invoiceitem", call.object_id)


def _refuse_final(item: InvoiceItem) -> None:
    if item.invoice is not None and item.invoice.status != "draft":
        raise ApiError("The invoice item is on an invoice that is no longer editable.")


@CALLS("GET /v1/invoiceitems/{id}")
def _retrieve_item(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoiceitems/retrieve."""
    return _find_item(account, call).to_json()


@CALLS(
    "POST /v1/invoiceitems/{id}",
    "amount description metadata period unit_amount_decimal",
    *QUANTITY_PARAMS,
    ITEM_IGNORED,
)
def _update_item(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoiceitems/update: only before its invoice is final.

    An item that a change of a subscription made keeps its quantity and its amount
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare).
    """
    item, params = _find_item(account, call), call.params
    _refuse_final(item)
    line = item.line
    amounts = (*QUANTITY_PARAMS, "amount", "unit_amount_decimal")
    if line.customer is None and any(name in params for name in amounts):
        raise ApiError("You cannot change the amount of an invoice item of a subscription change.")
    params.refuse_both("amount", "unit_amount_decimal", param="unit_amount_decimal")
    if any(name in params for name in (*QUANTITY_PARAMS, "amount")):
        line.quantity = _read_quantity(params)
    unit_amount = _read_unit_amount(params)
    if unit_amount is not None:
        behavior = line.price.tax_behavior
        line.price = _add_inline_price(account, line.price.currency, line.description, unit_amount)
        line.price.tax_behavior = behavior
        line.unit_amount = unit_amount
    if line.customer is not None:
        line.amount = to_cents(price_quantity(line.price.pricing, line.quantity))
    line.description = params.nonempty_text("description") or line.description
    line.start, line.end = params.period() or (line.start, line.end)
    if "metadata" in params:
        line.metadata = line.metadata or {}
        params.update_metadata("metadata", line.metadata)
    return item.to_json()


@CALLS("DELETE /v1/invoiceitems/{id}", expandable=())
def _delete_item(account: Account, call: Call) -> JsonObject:
    """Delete an item that is on no finalized invoice (https://docs.stripe.com/api/invoiceitems/delete)."""
    item = _find_item(account, call)
    _refuse_final(item)
    pending = account.invoices.pending.values()
    for lines in (item.invoice.lines,) if item.invoice is not None else pending:
        lines[:] = [line for line in lines if line.invoice_item != call.object_id]
    return {"id": call.object_id, "object": "invoiceitem", "deleted": True}


@CALLS("POST /v1/invoices/{id}/add_lines", "invoice_metadata lines")
def _assign_items(account: Account, call: Call) -> JsonObject:
    """Assign pending items to a draft: all of them, or none. The emulator adds no other lines.

    https://docs.stripe.com/api/invoice-line-item/bulk
    """
    params, invoice = call.params, account.invoices.find(call.object_id)
    if invoice.status != "draft":
        raise ApiError("Finalized invoices can't be updated in this way.", code="invoice_not_editable")
    pending = {item.line.invoice_item: item for item in _all_items(account) if item.invoice is None}
    assigned: list[InvoiceLine] = []
    for each in params.hashes("lines"):
        each.only("invoice_item")
        item = pending.pop(each.required("invoice_item"), None)
        if item is None or (item.customer, item.line.price.currency) != (invoice.customer, invoice.currency):
            message = (
                "You can only assign invoice items of the same customer and currency that are unassigned."
            )
            raise ApiError(message, param=each.path("invoice_item"))
        assigned.append(item.line)
    if len(invoice.all_lines) + len(assigned) > INVOICE_ITEMS_MAX:
        raise ApiError(f"An invoice can have at most {INVOICE_ITEMS_MAX} items.", param="lines")
    ids = {line.invoice_item for line in assigned}
    with account.updating("invoice.updated", invoice.to_json):
        for lines in account.invoices.pending.values():
            lines[:] = [line for line in lines if line.invoice_item not in ids]
        invoice.lines += apply_tax_rates(account, invoice, assigned)
        params.update_metadata("invoice_metadata", invoice.metadata)
    return refreshed_invoice_json(account, invoice)
