"""The calls about setup intents: create, retrieve, cancel; and what a browser does with one."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.replies import ApiError, JsonObject, missing_resource, new_id
from meterkit.testing.emulator.selling.setup_intents import SetupIntent

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call

__all__ = ["SETUP_CALLS", "confirm_setup"]

FIELDS: Final = ("customer", "description", "metadata", "payment_method", "payment_method_types", "usage")
ENDED: Final = frozenset({"succeeded", "canceled"})


def confirm_setup(account: Account, client_secret: str, *, card: str | None) -> None:
    """Authenticate a card as its customer does in a browser; what a test calls.

    Args:
        account: of the intent.
        client_secret: of the intent.
        card: one of Stripe's test cards, in place of the intent's payment method.

    Raises:
        ApiError: there is no such intent or card.
        ValueError: the intent has ended, or the card is declined.
    """
    intent = account.setup_intents.find(client_secret)
    if intent.status in ENDED:
        raise ValueError(f"{intent.id} is {intent.status}")
    if card is not None and intent.customer is not None:
        method = account.payment_methods.attach(card, customer=intent.customer, now=account.now)
        intent.payment_method = method.id
    if intent.payment_method is None:
        raise ValueError(f"{intent.id} has no payment method")
    method = account.payment_methods.find(intent.payment_method)
    if not method.works or method.customer in account.payment_methods.failing:
        intent.status = "requires_payment_method"
        account.emit("setup_intent.setup_failed", intent.to_json())
        raise ValueError(f"the setup of {intent.id} has failed: the card is declined")
    method.is_set_up = intent.usage == "off_session"
    intent.status = "succeeded"
    account.emit("setup_intent.succeeded", intent.to_json())


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/setup_intents/create."""
    call.params.only(*FIELDS)
    customer, method = call.params.given("customer"), call.params.given("payment_method")
    if customer is not None and not account.customers.exists(customer):
        raise missing_resource("customer", customer, param="customer")
    if method is not None:
        account.payment_methods.of_customer(method, customer=customer or "", param="payment_method")
    intent_id = new_id("seti_1", length=23)
    intent = SetupIntent(
        id=intent_id,
        created=int(call.now),
        customer=customer,
        payment_method=method,
        usage=call.params.choice("usage", ("off_session", "on_session")) or "off_session",
        client_secret=f"{intent_id}_secret_{secrets.token_hex(12)}",
        metadata=call.params.texts("metadata"),
        status="requires_payment_method" if method is None else "requires_confirmation",
        livemode=call.livemode,
    )
    account.setup_intents.add(intent)
    account.emit("setup_intent.created", intent.to_json())
    return intent.to_json()


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only()
    return account.setup_intents.find(call.object_id).to_json()


def _cancel(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/setup_intents/cancel."""
    call.params.only("cancellation_reason")
    intent = account.setup_intents.find(call.object_id)
    if intent.status in ENDED:
        message = f"You cannot cancel this SetupIntent because it has a status of {intent.status}."
        raise ApiError(message, code="setup_intent_unexpected_state")
    intent.status = "canceled"
    account.emit("setup_intent.canceled", intent.to_json())
    return intent.to_json()


SETUP_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/setup_intents", _create),
    ("GET", "/v1/setup_intents/{id}", _retrieve),
    ("POST", "/v1/setup_intents/{id}/cancel", _cancel),
)
