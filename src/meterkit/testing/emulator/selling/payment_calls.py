"""The calls about payment methods: attach, detach, retrieve, list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.replies import JsonObject, missing_resource

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call

__all__ = ["PAYMENT_CALLS"]


def _attach(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/payment_methods/attach: one of Stripe's test cards."""
    call.params.only("customer")
    customer = call.params.required("customer")
    if not account.customers.exists(customer):
        raise missing_resource("customer", customer, param="customer")
    method = account.payment_methods.attach(call.object_id, customer=customer, now=account.now)
    account.emit("payment_method.attached", method.to_json())
    return method.to_json()


def _detach(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/payment_methods/detach."""
    call.params.only()
    method = account.payment_methods.find(call.object_id)
    if method.customer is not None:
        account.customers.forget_payment_method(method.customer, method.id)
    method.customer = None
    account.emit("payment_method.detached", method.to_json())
    return method.to_json()


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only()
    return account.payment_methods.find(call.object_id).to_json()


def _list(account: Account, call: Call) -> JsonObject:
    call.params.only("customer", "type", *PAGING)
    customer = call.object_id or call.params.required("customer")
    found = [method.to_json() for method in account.payment_methods.all_of(customer)]
    return call.params.page(found, url=call.path)


PAYMENT_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("GET", "/v1/payment_methods", _list),
    ("GET", "/v1/payment_methods/{id}", _retrieve),
    ("POST", "/v1/payment_methods/{id}/attach", _attach),
    ("POST", "/v1/payment_methods/{id}/detach", _detach),
    ("GET", "/v1/customers/{id}/payment_methods", _list),
)
