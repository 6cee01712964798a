"""The calls about invoice items: create, retrieve, list, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.expand import expanded
from meterkit.testing.emulator.invoicing.invoice_items import all_items, delete_item, item_to_json, make_item
from meterkit.testing.emulator.replies import JsonObject, no_such

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call
    from meterkit.testing.emulator.invoicing.invoices import Invoice, Line

__all__ = ["INVOICE_ITEM_CALLS"]

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
