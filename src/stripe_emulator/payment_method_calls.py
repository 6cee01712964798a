"""API calls about payment methods and setup intents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.call_table import PAGING, CallTable
from stripe_emulator.payment_methods import (
    OPEN_SETUP_STATUSES,
    SetupIntent,
    create_setup_intent,
    find_setup_intent,
)
from stripe_emulator.protocol import ApiError, JsonObject

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.call import Call
    from stripe_emulator.subscriptions import Subscription

CALLS: Final = CallTable()
CALLS.retrieve("/v1/payment_methods/{id}", lambda account: account.payment_methods, expandable=())


@CALLS("POST /v1/payment_methods/{id}/attach", "customer", expandable=())
def _attach_payment_method(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/payment_methods/attach: one of Stripe's test cards."""
    customer = account.customers.require(call.params.required("customer"))
    method = account.payment_methods.attach(call.object_id, customer=customer, now=account.now)
    return account.publish("payment_method.attached", method)


@CALLS("POST /v1/payment_methods/{id}/detach", expandable=())
def _detach_payment_method(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/payment_methods/detach."""
    method = account.payment_methods.find(call.object_id)
    if method.customer is not None:
        account.customers.clear_default_payment_method(method.customer, method.id)
    method.customer = None
    return account.publish("payment_method.detached", method)


@CALLS("GET /v1/payment_methods", "customer type", PAGING, expandable=())
@CALLS("GET /v1/customers/{id}/payment_methods", "customer type", PAGING, expandable=())
def _list_payment_methods(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/payment_methods/list."""
    customer = call.object_id or call.params.required("customer")
    return call.page(method.to_json() for method in account.payment_methods.list_of_customer(customer))


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


@CALLS(
    "POST /v1/setup_intents",
    "customer description metadata payment_method payment_method_types usage",
    expandable=(),
)
def _create_setup_intent(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/setup_intents/create."""
    customer = account.customers.read_param(call.params)
    method = account.payment_methods.read_param(call.params, "payment_method", customer=customer or "")
    intent = create_setup_intent(
        account.setup_intents,
        created=int(call.now),
        customer=customer,
        payment_method=method,
        usage=call.params.choice("usage", ("off_session", "on_session")) or "off_session",
        metadata=call.params.texts("metadata"),
        livemode=call.livemode,
    )
    return account.publish("setup_intent.created", intent)


@CALLS("POST /v1/setup_intents/{id}/cancel", "cancellation_reason", expandable=())
def _cancel_setup_intent(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/setup_intents/cancel: one that is not confirmed yet."""
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


@CALLS("GET /v1/setup_intents/{id}", expandable=())
def _retrieve_setup_intent(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/setup_intents/retrieve."""
    return find_setup_intent(account.setup_intents, call.object_id).to_json()
