"""API calls about customers and their balances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.call_table import PAGING, CallTable, list_newest
from stripe_emulator.customers import (
    ADDRESS,
    CLOCK_CUSTOMERS_MAX,
    CUSTOMER_EXPANDABLE,
    CUSTOMER_TEXTS,
    BalanceTransaction,
    Customer,
    TestClock,
)
from stripe_emulator.protocol import ApiError, JsonObject, new_id, unknown_parameter
from stripe_emulator.subscription_status import cancel_subscription
from stripe_emulator.subscriptions import ENDED

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.call import Call, Params

CALLS: Final = CallTable()
CUSTOMER_PARAMS: Final = (
    "address balance invoice_settings metadata preferred_locales tax_exempt",
    *CUSTOMER_TEXTS,
)


@CALLS("POST /v1/customers", *CUSTOMER_PARAMS, "payment_method test_clock", expandable=CUSTOMER_EXPANDABLE)
def _create_customer(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/customers/create."""
    customer = Customer(
        id=new_id("cus"),
        created=int(call.now),
        livemode=call.livemode,
        clock=_read_clock(account, call.params),
    )
    _apply_params(customer, params=call.params)
    given = call.params.nonempty_text("payment_method")
    if given is not None:
        account.payment_methods.attach(given, customer=customer.id, now=customer.created)
    _apply_default_method(account, customer, call.params)
    return account.add(account.customers, customer, "customer.created")


def _read_clock(account: Account, params: Params) -> TestClock | None:
    """Return the test clock; at most three customers each (https://docs.stripe.com/billing/testing/test-clocks)."""
    named = params.nonempty_text("test_clock")
    if named is None:
        return None
    clock = account.clocks.find(named, param="test_clock")
    if len(account.customers.ids_of_clock(clock.id)) >= CLOCK_CUSTOMERS_MAX:
        message = f"A test clock can have at most {CLOCK_CUSTOMERS_MAX} customers."
        raise ApiError(message, param="test_clock")
    return clock


@CALLS("POST /v1/customers/{id}", *CUSTOMER_PARAMS, "default_source", expandable=CUSTOMER_EXPANDABLE)
def _update_customer(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/customers/update."""
    customer = account.customers.find_existing(call.object_id)
    with account.updating("customer.updated", customer.to_json):
        _apply_params(customer, params=call.params)
        _apply_default_method(account, customer, call.params)
        source = account.payment_methods.read_param(call.params, "default_source", customer=customer.id)
        customer.default_source = source or customer.default_source
    return customer.to_json()


def _apply_default_method(account: Account, customer: Customer, params: Params) -> None:
    """https://docs.stripe.com/api/customers/update#update_customer-invoice_settings."""
    settings = params.hash("invoice_settings")
    if settings is not None and "default_payment_method" in settings:
        wanted = settings.text("default_payment_method") or None
        if wanted is not None:
            param = settings.path("default_payment_method")
            account.payment_methods.find_of_customer(wanted, customer=customer.id, param=param)
        customer.default_payment_method = wanted


def _apply_params(customer: Customer, *, params: Params) -> None:
    params.update_metadata("metadata", customer.metadata)
    customer.texts = {name: params.text_or(name, known) for name, known in customer.texts.items()}
    if "address" in params:
        given = params.texts("address")
        for name in given.keys() - set(ADDRESS):
            raise unknown_parameter(f"address[{name}]")
        known = customer.address or dict.fromkeys(ADDRESS)
        customer.address = {name: given.get(name, known[name]) or None for name in ADDRESS}
    if "preferred_locales" in params:
        is_list = params.is_hash("preferred_locales")
        customer.preferred_locales = tuple(params.listed("preferred_locales")) if is_list else ()
    customer.tax_exempt = params.choice("tax_exempt", ("none", "exempt", "reverse")) or customer.tax_exempt
    balance = params.integer("balance")
    customer.balance = customer.balance if balance is None else balance


@CALLS("DELETE /v1/customers/{id}", expandable=())
def _delete_customer(account: Account, call: Call) -> JsonObject:
    """Delete a customer and cancel its subscriptions (https://docs.stripe.com/api/customers/delete)."""
    customer = account.customers.find_existing(call.object_id)
    delete_customer(account, customer)
    return customer.to_json()


def delete_customer(account: Account, customer: Customer) -> None:
    """Mark a customer as deleted, and cancel its subscriptions. It can still be retrieved."""
    for subscription in account.subscriptions:
        if subscription.customer == customer.id and subscription.status not in ENDED:
            cancel_subscription(account, subscription)
    account.emit("customer.deleted", customer.to_json())
    customer.deleted = True


@CALLS("GET /v1/customers", "created email test_clock", PAGING, expandable=CUSTOMER_EXPANDABLE)
def _list_customers(account: Account, call: Call) -> JsonObject:
    """List customers; those of a test clock only if the call names it.

    https://docs.stripe.com/api/customers/list#list_customers-test_clock
    """
    clock, email = call.params.text("test_clock"), call.params.text("email")
    return list_newest(
        account.customers,
        call,
        where=lambda customer: (
            not customer.deleted and customer.test_clock == clock and email in {None, customer.texts["email"]}
        ),
    )


CALLS.retrieve("/v1/customers/{id}", lambda account: account.customers, expandable=CUSTOMER_EXPANDABLE)


@CALLS("POST /v1/customers/{id}/balance_transactions", "amount currency description metadata")
def _create_balance_transaction(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/customer_balance_transactions/create."""
    params, customer = call.params, account.customers.find(call.object_id)
    amount, before = params.required_integer("amount"), customer.to_json()
    currency = params.required("currency").lower()
    customer.balance += amount
    account.customers.keep_currency(customer.id, currency)
    made = BalanceTransaction(
        id=new_id("cbtxn_1", length=23),
        created=account.now,
        customer=customer.id,
        amount=amount,
        currency=currency,
        ending_balance=customer.balance,
        description=params.nonempty_text("description"),
        metadata=params.metadata(),
    )
    account.balance_transactions.add(made)
    account.emit("customer.updated", customer.to_json(), previous=before)
    return made.to_json()


@CALLS("GET /v1/customers/{id}/balance_transactions", PAGING)
def _list_balance_transactions(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/customer_balance_transactions/list: without what invoices have used."""
    customer = account.customers.find(call.object_id)
    own = [each for each in account.balance_transactions if each.customer == customer.id]
    return call.page([each.to_json() for each in reversed(own)])
