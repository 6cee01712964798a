"""The calls about entries of a customer's balance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.call import PAGING
from stripe_emulator.protocol import missing_parameter, new_id
from stripe_emulator.selling.balance_entries import BalanceTransaction

if TYPE_CHECKING:
    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call
    from stripe_emulator.protocol import JsonObject


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/customer_balance_transactions/create."""
    params, customer = call.params, account.customers.find(call.object_id)
    params.only("amount", "currency", "description", "metadata", expandable=None)
    amount, before = params.integer("amount"), customer.to_json()
    if amount is None:
        raise missing_parameter("amount")
    currency = params.required("currency").lower()
    customer.balance += amount
    made = BalanceTransaction(
        id=new_id("cbtxn_1", length=23),
        created=account.now,
        customer=customer.id,
        amount=amount,
        currency=currency,
        ending_balance=customer.balance,
        description=params.given("description"),
        metadata=params.metadata(),
    )
    account.balance_transactions.add(made)
    account.emit("customer.updated", customer.to_json(), previous=before)
    return made.to_json()


def _list(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/customer_balance_transactions/list: without what invoices have used."""
    customer = account.customers.find(call.object_id)
    call.params.only(*PAGING, expandable=None)
    own = [each for each in account.balance_transactions if each.customer == customer.id]
    return call.page([each.to_json() for each in reversed(own)])


BALANCE_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("GET", "/v1/customers/{id}/balance_transactions", _list),
    ("POST", "/v1/customers/{id}/balance_transactions", _create),
)
