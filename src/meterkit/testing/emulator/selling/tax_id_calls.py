"""The calls about customers' tax ids: stored, and without effect on amounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.replies import new_id, no_such

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call
    from meterkit.testing.emulator.replies import JsonObject

__all__ = ["TAX_ID_CALLS"]


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/tax_ids/customer_create."""
    call.params.only("type", "value")
    customer = account.customers.find(call.object_id, alive=True)
    tax_id: JsonObject = {
        "id": new_id("txi_1", length=23),
        "object": "tax_id",
        "country": None,
        "created": account.now,
        "customer": customer.id,
        "livemode": call.livemode,
        "type": call.params.required("type"),
        "value": call.params.required("value"),
        "verification": {"status": "pending", "verified_address": None, "verified_name": None},
    }
    customer.tax_ids.append(tax_id)
    account.emit("customer.tax_id.created", tax_id)
    return tax_id


def _list(account: Account, call: Call) -> JsonObject:
    call.params.only(*PAGING)
    customer = account.customers.find(call.object_id)
    return call.params.page(list(reversed(customer.tax_ids)), url=call.path)


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only()
    return _found(account, call)


def _delete(account: Account, call: Call) -> JsonObject:
    call.params.only()
    tax_id = _found(account, call)
    account.customers.find(call.object_id).tax_ids.remove(tax_id)
    account.emit("customer.tax_id.deleted", tax_id)
    return {"id": tax_id["id"], "object": "tax_id", "deleted": True}


def _found(account: Account, call: Call) -> JsonObject:
    for tax_id in account.customers.find(call.object_id).tax_ids:
        if tax_id["id"] == call.inner_id:
            return tax_id
    raise no_such("tax_id", call.inner_id)


TAX_ID_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/customers/{id}/tax_ids", _create),
    ("GET", "/v1/customers/{id}/tax_ids", _list),
    ("GET", "/v1/customers/{id}/tax_ids/{inner}", _retrieve),
    ("DELETE", "/v1/customers/{id}/tax_ids/{inner}", _delete),
)
