"""API calls about customers, balances, payment methods, setup intents and test clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_cycle import period_boundary
from stripe_emulator.call import PAGING_PARAMS, Call
from stripe_emulator.customers import CUSTOMER_EXPANDABLE, BalanceTransaction, Customer, TestClock
from stripe_emulator.object_calls import list_newest, retrieve_by_id
from stripe_emulator.payment_methods import (
    OPEN_SETUP_STATUSES,
    SetupIntent,
    create_setup_intent,
    find_setup_intent,
)
from stripe_emulator.prices import PriceInterval
from stripe_emulator.protocol import ApiError, JsonObject, new_id
from stripe_emulator.scheduled_transitions import run_due_transitions
from stripe_emulator.subscription_status import cancel_subscription
from stripe_emulator.subscriptions import ENDED, Subscription

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stripe_emulator.account import Account, ApiCalls


def _delete_customer(account: Account, call: Call) -> JsonObject:
    """Delete a customer and cancel its subscriptions (https://docs.stripe.com/api/customers/delete)."""
    call.params.only()
    customer = account.customers.find_existing(call.object_id)
    delete_customer(account, customer)
    return customer.to_json()


def delete_customer(account: Account, customer: Customer) -> None:
    """Delete a customer, and cancel its subscriptions."""
    for subscription in account.subscriptions:
        if subscription.customer == customer.id and subscription.status not in ENDED:
            cancel_subscription(account, subscription)
    account.customers.delete(customer)


def _list_customers(account: Account, call: Call) -> JsonObject:
    """List customers; those of a test clock only if the call names it.

    https://docs.stripe.com/api/customers/list#list_customers-test_clock
    """
    clock, email = call.params.text("test_clock"), call.params.text("email")
    return list_newest(
        account.customers,
        call,
        also=("email", "test_clock"),
        expandable=CUSTOMER_EXPANDABLE,
        where=lambda customer: (
            not customer.deleted and customer.test_clock == clock and email in {None, customer.texts["email"]}
        ),
    )


def _attach_payment_method(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/payment_methods/attach: one of Stripe's test cards."""
    call.params.only("customer")
    customer = account.customers.require(call.params.required("customer"))
    method = account.payment_methods.attach(call.object_id, customer=customer, now=account.now)
    account.emit("payment_method.attached", method.to_json())
    return method.to_json()


def _detach_payment_method(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/payment_methods/detach."""
    call.params.only()
    method = account.payment_methods.find(call.object_id)
    if method.customer is not None:
        account.customers.clear_default_payment_method(method.customer, method.id)
    method.customer = None
    account.emit("payment_method.detached", method.to_json())
    return method.to_json()


def _list_payment_methods(account: Account, call: Call) -> JsonObject:
    call.params.only("customer type", *PAGING_PARAMS)
    customer = call.object_id or call.params.required("customer")
    found = [method.to_json() for method in account.payment_methods.list_of_customer(customer)]
    return call.page(found)


SETUP_INTENT_PARAMS: Final = "customer description metadata payment_method payment_method_types usage"


def confirm_setup(account: Account, client_secret: str, *, card: str | None) -> None:
    """Authenticate a card as its customer does in a browser.

    Args:
        account: of the intent.
        client_secret: of the intent.
        card: one of Stripe's test cards, in place of the intent's payment method.

    Raises:
        ApiError: there is no such intent or card.
        ValueError: the intent has ended, or the card is declined.
    """
    intent = find_setup_intent(account.setup_intents, client_secret)
    if intent.status not in OPEN_SETUP_STATUSES:
        raise ValueError(f"{intent.id} is {intent.status}")
    if card is None and intent.payment_method is None and _subscription_of_setup(account, intent) is not None:
        card = "pm_card_visa"
    if card is not None and intent.customer is not None:
        method = account.payment_methods.attach(card, customer=intent.customer, now=account.now)
        intent.payment_method = method.id
    if intent.payment_method is None:
        raise ValueError(f"{intent.id} has no payment method")
    method = account.payment_methods.find(intent.payment_method)
    if not method.works or method.customer in account.payment_methods.failing:
        if card is not None:
            # "If the SetupIntent is used with a Customer, upon success, it will automatically attach".
            method.customer, intent.payment_method = None, None
        intent.status, intent.has_failed = "requires_payment_method", True
        account.emit("setup_intent.setup_failed", intent.to_json())
        raise ValueError(f"the setup of {intent.id} has failed: the card is declined")
    method.is_set_up = intent.usage == "off_session"
    intent.status, intent.has_failed = "succeeded", False
    if card is not None:
        account.emit("payment_method.attached", method.to_json())
    account.emit("setup_intent.succeeded", intent.to_json())
    subscription = _subscription_of_setup(account, intent)
    if subscription is not None:
        # No page says that the card becomes the subscription's own: the app has to see to that.
        with account.updating("customer.subscription.updated", subscription.to_json):
            subscription.pending_setup_intent = None


def cancel_setup(account: Account, intent: SetupIntent, *, reason: str | None) -> None:
    """Cancel a setup intent, so that it cannot be confirmed. Its subscription keeps the reference."""
    intent.status, intent.cancellation_reason = "canceled", reason
    account.emit("setup_intent.canceled", intent.to_json())


def _subscription_of_setup(account: Account, intent: SetupIntent) -> Subscription | None:
    """Return the subscription with this ``pending_setup_intent``."""
    return next((one for one in account.subscriptions if one.pending_setup_intent == intent.id), None)


def _create_setup_intent(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/setup_intents/create."""
    call.params.only(SETUP_INTENT_PARAMS)
    customer, method = call.params.nonempty_text("customer"), call.params.nonempty_text("payment_method")
    if customer is not None:
        account.customers.require(customer)
    if method is not None:
        account.payment_methods.find_of_customer(method, customer=customer or "", param="payment_method")
    intent = create_setup_intent(
        account.setup_intents,
        created=int(call.now),
        customer=customer,
        payment_method=method,
        usage=call.params.choice("usage", ("off_session", "on_session")) or "off_session",
        metadata=call.params.texts("metadata"),
        livemode=call.livemode,
    )
    account.emit("setup_intent.created", intent.to_json())
    return intent.to_json()


def _cancel_setup_intent(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/setup_intents/cancel: one that is not confirmed yet."""
    call.params.only("cancellation_reason")
    reason = call.params.choice("cancellation_reason", ("abandoned", "duplicate", "requested_by_customer"))
    intent = find_setup_intent(account.setup_intents, call.object_id)
    if intent.status not in OPEN_SETUP_STATUSES:
        message = (
            f"You cannot cancel this SetupIntent because it has a status of {intent.status}. Only a"
            " SetupIntent with one of the following statuses may be canceled: requires_payment_method,"
            " requires_confirmation, requires_action, processing."
        )
        raise ApiError(message, code="setup_intent_unexpected_state")
    cancel_setup(account, intent, reason=reason)
    return intent.to_json()


def _retrieve_setup_intent(account: Account, call: Call) -> JsonObject:
    call.params.only()
    return find_setup_intent(account.setup_intents, call.object_id).to_json()


# Sessions of pages and of usage keep the emulator's own time, for any customer.
OWN_TIME: Final = ("/v1/billing", "/v1/checkout", "/v1/test_helpers", "/v2/")
OWNER_PARAMS: Final = ("customer", "subscription", "from_subscription", "invoice")


def clock_time(account: Account, call: Call) -> int | None:
    """Return the test clock's time for the objects of a call; None: the emulator's own time."""
    if not any(True for _ in account.clocks) or call.path.startswith(OWN_TIME):
        return None
    named = call.params.text("test_clock") or ""
    if call.method == "POST" and call.path == "/v1/customers" and named in account.clocks:
        return account.clocks.find(named).frozen_time
    for customer in _customer_ids(account, call):
        clock = account.clock_of(customer)
        if clock is not None:
            return clock.frozen_time
    return None


def _customer_ids(account: Account, call: Call) -> Iterator[str]:
    given = [call.object_id]
    given += [text for name in OWNER_PARAMS if name in call.params and (text := _read_id(call, name))]
    items = {item.id: each.customer for each in account.subscriptions for item in each.items}
    for name in given:
        if account.customers.exists(name):
            yield name
        if name in items:
            yield items[name]
        for registry in (account.subscriptions, account.invoices, account.schedules):
            if name in registry:
                yield registry.find(name).customer


def _read_id(call: Call, name: str) -> str | None:
    return None if call.params.is_hash(name) else call.params.text(name)


INTERVALS_MAX: Final = 2
TWO_YEARS: Final = PriceInterval(interval="year", interval_count=2)


def _create_clock(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/test_clocks/create: in the past or in the future."""
    params = call.params
    params.only("frozen_time name")
    if call.livemode:
        raise ApiError("Test clocks can only be used in test mode.")
    frozen = params.required_integer("frozen_time")
    clock = TestClock(
        id=new_id("clock_1", length=23),
        created=account.now,
        frozen_time=frozen,
        name=params.nonempty_text("name", length_max=300),
    )
    account.clocks.add(clock)
    account.emit("test_helpers.test_clock.created", clock.to_json())
    return clock.to_json()


def _list_clocks(account: Account, call: Call) -> JsonObject:
    """List test clocks, newest first (https://docs.stripe.com/api/test_clocks/list)."""
    call.params.only(*PAGING_PARAMS)
    found = [clock.to_json() for clock in reversed(tuple(account.clocks))]
    return call.page(found)


def _advance_clock(account: Account, call: Call) -> JsonObject:
    """Answer that the clock is advancing; the next call finds it ready.

    "Advance time in intervals of up to two. The length of the interval is based on the shortest service
    period associated with the subscription [...] If you haven't set any subscriptions or subscription
    schedules, you can advance up to two years"
    (https://docs.stripe.com/billing/testing/test-clocks/api-advanced-usage).
    """
    call.params.only("frozen_time")
    clock = account.clocks.find(call.object_id)
    target = call.params.required_integer("frozen_time")
    if target <= clock.frozen_time:
        message = "A test clock can only be advanced: `frozen_time` must be after that of the clock."
        raise ApiError(message, param="frozen_time")
    latest = _latest_time(account, clock)
    if target > latest:
        message = (
            "A test clock cannot be advanced by more than two intervals of its shortest subscription at a "
            f"time: `frozen_time` must be at most {latest}."
        )
        raise ApiError(message, param="frozen_time")
    clock.target = target
    answer = clock.to_json()
    account.emit("test_helpers.test_clock.advancing", answer)
    clock.frozen_time = target
    run_due_transitions(account)
    clock.target = None
    account.emit("test_helpers.test_clock.ready", clock.to_json())
    return answer


def _latest_time(account: Account, clock: TestClock) -> int:
    """Return the latest time that a clock may be advanced to."""
    cycles = [
        item.price.cycle
        for subscription in account.subscriptions
        if account.clock_of(subscription.customer) is clock and subscription.status not in ENDED
        for item in subscription.items
    ]
    cycles += [
        item.price.cycle
        for schedule in account.schedules
        if account.clock_of(schedule.customer) is clock and schedule.status == "not_started"
        for item in schedule.phases[0].items
    ]
    if not cycles:
        return period_boundary(clock.frozen_time, TWO_YEARS, 1)
    return min(period_boundary(clock.frozen_time, cycle, INTERVALS_MAX) for cycle in cycles)


def _delete_clock(account: Account, call: Call) -> JsonObject:
    """Delete a test clock and its customers, and cancel their subscriptions.

    https://docs.stripe.com/billing/testing/test-clocks/api-advanced-usage#delete-clock
    """
    call.params.only()
    clock = account.clocks.find(call.object_id)
    for customer in account.customers.ids_of_clock(clock.id):
        with account.customer_time(customer):
            delete_customer(account, account.customers.find(customer))
    account.clocks.delete(clock)
    account.emit("test_helpers.test_clock.deleted", clock.to_json())
    return {"id": clock.id, "object": "test_helpers.test_clock", "deleted": True}


def _create_balance_transaction(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/customer_balance_transactions/create."""
    params, customer = call.params, account.customers.find(call.object_id)
    params.accept("amount currency description metadata")
    amount, before = params.required_integer("amount"), customer.to_json()
    currency = params.required("currency").lower()
    customer.balance += amount
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


def _list_balance_transactions(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/customer_balance_transactions/list: without what invoices have used."""
    customer = account.customers.find(call.object_id)
    call.params.accept(*PAGING_PARAMS)
    own = [each for each in account.balance_transactions if each.customer == customer.id]
    return call.page([each.to_json() for each in reversed(own)])


CALLS: Final[ApiCalls] = (
    ("POST", "/v1/customers", lambda account, call: account.customers.create(call)),
    ("GET", "/v1/customers", _list_customers),
    (
        "GET",
        "/v1/customers/{id}",
        retrieve_by_id(lambda account: account.customers, expandable=CUSTOMER_EXPANDABLE),
    ),
    ("POST", "/v1/customers/{id}", lambda account, call: account.customers.update(call)),
    ("DELETE", "/v1/customers/{id}", _delete_customer),
    ("GET", "/v1/payment_methods", _list_payment_methods),
    (
        "GET",
        "/v1/payment_methods/{id}",
        retrieve_by_id(lambda account: account.payment_methods, expandable=()),
    ),
    ("POST", "/v1/payment_methods/{id}/attach", _attach_payment_method),
    ("POST", "/v1/payment_methods/{id}/detach", _detach_payment_method),
    ("GET", "/v1/customers/{id}/payment_methods", _list_payment_methods),
    ("POST", "/v1/setup_intents", _create_setup_intent),
    ("GET", "/v1/setup_intents/{id}", _retrieve_setup_intent),
    ("POST", "/v1/setup_intents/{id}/cancel", _cancel_setup_intent),
    ("POST", "/v1/test_helpers/test_clocks", _create_clock),
    ("GET", "/v1/test_helpers/test_clocks", _list_clocks),
    (
        "GET",
        "/v1/test_helpers/test_clocks/{id}",
        retrieve_by_id(lambda account: account.clocks, expandable=()),
    ),
    ("DELETE", "/v1/test_helpers/test_clocks/{id}", _delete_clock),
    ("POST", "/v1/test_helpers/test_clocks/{id}/advance", _advance_clock),
    ("GET", "/v1/customers/{id}/balance_transactions", _list_balance_transactions),
    ("POST", "/v1/customers/{id}/balance_transactions", _create_balance_transaction),
)
