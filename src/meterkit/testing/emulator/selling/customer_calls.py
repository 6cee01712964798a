"""The calls about customers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.subscribing.ending import end
from meterkit.testing.emulator.subscribing.subscriptions import ENDED

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call
    from meterkit.testing.emulator.replies import JsonObject

__all__ = ["CUSTOMER_CALLS", "delete_customer"]


def _delete(account: Account, call: Call) -> JsonObject:
    """Its subscriptions are canceled with it (https://docs.stripe.com/api/customers/delete)."""
    call.params.only()
    return delete_customer(account, account.customers.find(call.object_id, alive=True).id)


def delete_customer(account: Account, customer: str) -> JsonObject:
    """Delete a customer, and cancel its subscriptions. Returns what is left of it."""
    for subscription in account.subscriptions:
        if subscription.customer == customer and subscription.status not in ENDED:
            end(account, subscription)
    return account.customers.delete(customer)


CUSTOMER_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/customers", lambda account, call: account.customers.create(call)),
    ("GET", "/v1/customers", lambda account, call: account.customers.list(call)),
    ("GET", "/v1/customers/{id}", lambda account, call: account.customers.retrieve(call)),
    ("POST", "/v1/customers/{id}", lambda account, call: account.customers.update(call)),
    ("DELETE", "/v1/customers/{id}", _delete),
)
