"""Payment methods and setup intents: to which customer each belongs, and whether a charge succeeds."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal

from stripe_emulator.protocol import ApiError, JsonObject, missing_resource, new_id, not_found, shown_fields
from stripe_emulator.registry import ObjectRegistry

if TYPE_CHECKING:
    from stripe_emulator.call import Params

CARD_ALWAYS_AUTHENTICATES: Final = "pm_card_authenticationRequired"
CARD_AUTHENTICATES_UNTIL_SETUP: Final = "pm_card_authenticationRequiredOnSetup"
BANK_ACCOUNT: Final = "pm_usBankAccount_success"
# Stripe's names of test cards (https://docs.stripe.com/testing?testing-method=payment-methods), and of a bank
# account (https://docs.stripe.com/payments/ach-direct-debit/accept-a-payment#test-integration).
TEST_CARDS: Final = {
    "pm_card_visa": ("visa", "4242", True),
    "pm_card_mastercard": ("mastercard", "4444", True),
    "pm_card_chargeCustomerFail": ("visa", "0341", False),
    "pm_card_chargeDeclined": ("visa", "0002", False),
    CARD_ALWAYS_AUTHENTICATES: ("visa", "3184", True),
    CARD_AUTHENTICATES_UNTIL_SETUP: ("visa", "3155", True),
    BANK_ACCOUNT: ("", "6789", True),
}
NO_PAYMENT_METHOD: Final = (
    "This customer has no attached payment source or default payment method. Please consider adding a "
    "default payment method. For more information, visit "
    "https://stripe.com/docs/billing/subscriptions/payment-methods-setting#payment-method-priority."
)
NEEDS_CUSTOMER: Final = (
    "Payment for this subscription requires additional user action before it can be completed successfully. "
    "Payment can be completed using the PaymentIntent associated with `subscription.latest_invoice`."
)


def card_declined() -> ApiError:
    """Return the error of a declined charge: 402."""
    return ApiError(
        "Your card was declined.",
        status=HTTPStatus.PAYMENT_REQUIRED,
        kind="card_error",
        code="card_declined",
        decline_code="generic_decline",
        stored=True,
    )


@dataclass(slots=True, kw_only=True)
class PaymentMethod:
    """A card, or a bank account.

    Attributes:
        customer: its owner; None: it has none.
        works: whether charges go through.
        brand: of a card; empty: it is a bank account, whose payments take days.
        authenticates: whether each charge asks its customer (3-D Secure).
        asks_until_set_up: whether charges ask its customer unless a setup intent has succeeded and they are
            made off session (https://docs.stripe.com/testing#regulatory-cards).
        is_set_up: whether a setup intent for off-session payments has succeeded.
    """

    id: str
    customer: str | None
    created: int
    brand: str
    last4: str
    works: bool
    authenticates: bool = False
    asks_until_set_up: bool = False
    is_set_up: bool = False
    livemode: bool = False

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it (https://docs.stripe.com/api/payment_methods/object)."""
        hidden = ("asks_until_set_up", "authenticates", "brand", "is_set_up", "last4", "works")
        shown: JsonObject = {"brand": self.brand, "last4": self.last4, "exp_month": 12, "exp_year": 2040}
        kind = "card" if self.brand else "us_bank_account"
        return {
            **shown_fields(self, *hidden),
            "object": "payment_method",
            "allow_redisplay": "unspecified",
            "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
            kind: shown if self.brand else {"bank_name": "STRIPE TEST BANK", "last4": self.last4},
            "metadata": {},
            "type": kind,
        }


class PaymentMethods(ObjectRegistry[PaymentMethod]):
    """All payment methods of the emulated account.

    Attributes:
        failing: customers whose charges do not go through, whatever their cards.
    """

    def __init__(self) -> None:
        super().__init__("PaymentMethod")
        self.failing: set[str] = set()

    def attach(self, name: str, *, customer: str, now: int) -> PaymentMethod:
        """Give a customer one of Stripe's test cards, or its test bank account.

        Raises:
            ApiError: there is no such payment method, it is another customer's, or was detached from one.
        """
        known = self.get(name)
        if known is None:
            if name not in TEST_CARDS:
                raise not_found("PaymentMethod", name)
            brand, last4, works = TEST_CARDS[name]
            known = PaymentMethod(
                id=new_id("pm_1", length=23),
                customer=customer,
                created=now,
                brand=brand,
                last4=last4,
                works=works,
                authenticates=name == CARD_ALWAYS_AUTHENTICATES,
                asks_until_set_up=name == CARD_AUTHENTICATES_UNTIL_SETUP,
            )
            self.add(known)
        if known.customer is None:
            message = (
                "This PaymentMethod was previously used without being attached to a Customer or was detached "
                "from a Customer, and may not be used again."
            )
            raise ApiError(message)
        if known.customer != customer:
            message = "The payment method you provided has already been attached to a customer."
            raise ApiError(message, code="payment_method_unexpected_state")
        return known

    def find_of_customer(self, method_id: str, *, customer: str, param: str) -> PaymentMethod:
        """Return a payment method of a customer. Raises ApiError, 400, if it has no such one."""
        method = self.get(method_id)
        if method is None or method.customer != customer:
            raise missing_resource("PaymentMethod", method_id, param=param)
        return method

    def read_param(self, params: Params, name: str, *, customer: str) -> str | None:
        """Return the id of a customer's payment method that a call names; None: it names none."""
        given = params.nonempty_text(name)
        return given and self.find_of_customer(given, customer=customer, param=params.path(name)).id

    def list_of_customer(self, customer: str) -> list[PaymentMethod]:
        """Return a customer's payment methods, newest first."""
        return [method for method in reversed(self) if method.customer == customer]

    def can_charge(
        self, method_id: str | None, *, customer: str, is_present: bool = False, off_session: bool = True
    ) -> bool:
        """Return whether a charge with a payment method would succeed.

        Args:
            method_id: of the payment method; None: there is none.
            customer: who pays.
            is_present: whether the customer sits in front of it, and can authenticate.
            off_session: whether the charge is made as one without the customer, which uses what was set up.
        """
        method = self._find_owned(method_id, customer)
        if method is None:
            return False
        asks = method.asks_until_set_up and not (method.is_set_up and off_session)
        if (method.authenticates or asks) and not is_present:
            return False
        return method.works and customer not in self.failing

    def needs_authentication(self, method_id: str | None, *, customer: str) -> bool:
        """Return whether a charge fails only because its customer must authenticate."""
        method = self._find_owned(method_id, customer)
        asks = method is not None and (method.authenticates or method.asks_until_set_up)
        return asks and customer not in self.failing

    def _find_owned(self, method_id: str | None, customer: str) -> PaymentMethod | None:
        method = self.get(method_id or "")
        return None if method is None or method.customer != customer else method


SetupStatus = Literal["requires_payment_method", "requires_confirmation", "succeeded", "canceled"]
OPEN_SETUP_STATUSES: Final[tuple[SetupStatus, ...]] = ("requires_payment_method", "requires_confirmation")


@dataclass(slots=True, kw_only=True)
class SetupIntent:
    """A setup intent.

    Attributes:
        usage: ``off_session``: payments will be made without the customer.
        cancellation_reason: as the call that canceled it said; None: it said nothing, or there was none.
        has_failed: whether the last try was declined.
    """

    id: str
    created: int
    customer: str | None
    payment_method: str | None
    usage: str
    client_secret: str
    metadata: dict[str, str]
    status: SetupStatus
    livemode: bool = False
    cancellation_reason: str | None = None
    has_failed: bool = False

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it (https://docs.stripe.com/api/setup_intents/object)."""
        declined = {"code": "card_declined", "message": "Your card was declined.", "type": "card_error"}
        return {
            **shown_fields(self, "has_failed"),
            "object": "setup_intent",
            "last_setup_error": declined if self.has_failed else None,
            "next_action": None,
            "payment_method_types": ["card"],
        }


def create_setup_intent(
    intents: ObjectRegistry[SetupIntent],
    *,
    created: int,
    customer: str | None,
    payment_method: str | None = None,
    usage: str = "off_session",
    metadata: dict[str, str] | None = None,
    livemode: bool = False,
) -> SetupIntent:
    """Add a setup intent that is to be confirmed."""
    intent_id = new_id("seti_1", length=23)
    intent = SetupIntent(
        id=intent_id,
        created=created,
        customer=customer,
        payment_method=payment_method,
        usage=usage,
        client_secret=f"{intent_id}_secret_{secrets.token_hex(12)}",
        metadata=metadata or {},
        status="requires_payment_method" if payment_method is None else "requires_confirmation",
        livemode=livemode,
    )
    intents.add(intent)
    return intent


def find_setup_intent(intents: ObjectRegistry[SetupIntent], name: str) -> SetupIntent:
    """Return a setup intent by its id or client secret. Raises ApiError, 404, if there is none."""
    found = intents.get(name.partition("_secret_")[0])
    if found is None or name not in {found.id, found.client_secret}:
        raise not_found("setupintent", name)
    return found
