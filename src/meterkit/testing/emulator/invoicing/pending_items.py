"""Invoice items that wait for an invoice: what a change of a subscription charges later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.protocol import ApiError
from meterkit.testing.emulator.selling.prices import shown

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call
    from meterkit.testing.emulator.invoicing.invoices import Line
    from meterkit.testing.emulator.protocol import JsonObject


def _list(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoiceitems/list: those of a customer that are on no invoice yet."""
    params = call.params
    params.only("customer", "pending", *PAGING, expandable=None)
    customer = account.customers.named(params.required("customer"))
    if not params.boolean("pending"):
        raise ApiError("The emulator lists pending invoice items only.", param="pending")
    own = {each.id for each in account.subscriptions if each.customer == customer} | {customer}
    waiting = [line for key, lines in account.invoices.pending.items() if key in own for line in lines]
    return call.page([_to_json(customer, line) for line in reversed(waiting)])


def _to_json(customer: str, line: Line) -> JsonObject:
    """Return an item as Stripe shows it (https://docs.stripe.com/api/invoiceitems/object)."""
    details = {"subscription": line.subscription, "subscription_item": line.item}
    parent: JsonObject = {"subscription_details": details, "type": "subscription_details"}
    return {
        "id": line.invoice_item,
        "object": "invoiceitem",
        "amount": line.amount,
        "currency": line.price.currency,
        "customer": customer,
        "date": line.created or line.start,
        "description": line.description,
        "discountable": not line.proration,
        "invoice": None,
        "metadata": dict(line.metadata or {}),
        "parent": None if line.subscription is None else parent,
        "period": {"end": line.end, "start": line.start},
        "pricing": {
            "price_details": {"price": line.price.id, "product": line.price.product},
            "type": "price_details",
            "unit_amount_decimal": shown(line.unit_amount),
        },
        "proration": line.proration,
        "quantity": int(line.quantity),
        "quantity_decimal": shown(line.quantity),
    }


PENDING_ITEM_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (("GET", "/v1/invoiceitems", _list),)
