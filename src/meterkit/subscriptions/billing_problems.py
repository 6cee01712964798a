"""Problem documents (RFC 9457) of the billing routes."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from meterkit.errors import (
    AddonLimitError,
    CurrencyError,
    CustomerError,
    InvoiceOpenError,
    NoSubscriptionError,
    PaymentAuthenticationError,
    PaymentMethodMissingError,
    QuantityError,
    SeatsInUseError,
    SettingsError,
    StoreError,
    StripeError,
    StripeUnavailableError,
    SubscriptionBusyError,
    SubscriptionError,
    SubscriptionExistsError,
    UnknownAddonError,
    UnknownPlanError,
)
from meterkit.problem_types import ProblemDocument

if TYPE_CHECKING:
    from meterkit.errors import MeterkitError

_logger = logging.getLogger("meterkit.subscriptions")
_WORD: Final = re.compile(r"[a-z_]{1,64}")
_NOT_SERVED: Final = "a billing request could not be served: %s"
_NO_KEY: Final = "Billing is not set up: this service has no Stripe key."
_STRIPE_S: Final = 10
_STORE_S: Final = 1


def problem_of(error: MeterkitError) -> ProblemDocument:
    """The problem document for an error, without Stripe's or the store's words, which are not for clients."""
    if isinstance(error, StripeError):
        return _of_stripe(error)
    if isinstance(error, SubscriptionError):
        return _of_subscription(error)
    if isinstance(error, UnknownPlanError | UnknownAddonError | AddonLimitError | QuantityError):
        return _of_argument(error)
    _logger.error(_NOT_SERVED, error)
    if isinstance(error, CustomerError):
        return ProblemDocument.of(
            "subscription-conflict", "This customer cannot be linked to a payment account."
        )
    if isinstance(error, SettingsError) and error.name == "stripe_api_key":
        # Trying again does not help.
        return ProblemDocument.of("temporary-reduced-capacity", _NO_KEY)
    wait_s = _STORE_S if isinstance(error, StoreError) else _STRIPE_S
    return ProblemDocument.of(
        "temporary-reduced-capacity", "This cannot be served at the moment.", wait_s=wait_s
    )


def _of_argument(
    error: UnknownPlanError | UnknownAddonError | AddonLimitError | QuantityError,
) -> ProblemDocument:
    if isinstance(error, UnknownPlanError | UnknownAddonError) and error.is_unpriced:
        _logger.error(_NOT_SERVED, error)
    if isinstance(error, UnknownPlanError):
        detail = "There is no such plan; check its spelling."
        if error.is_known:
            detail = "This plan cannot be subscribed to: it costs nothing, or is not on sale yet."
        return ProblemDocument.of("plan-unknown", detail, {"plan": error.plan[:128]})
    if isinstance(error, UnknownAddonError):
        names = ", ".join(error.allowed)
        detail = "This add-on cannot be bought beside the plan."
        detail += f" Those of the plan are: {names}." if names else ""
        members = {"addon": error.addon[:128], "allowed": list(error.allowed)}
        return ProblemDocument.of("addon-unknown", detail, members)
    if isinstance(error, AddonLimitError):
        kind, detail = (
            "addon-limit",
            f"Up to {error.limit} of this add-on can be bought, and not fewer than 0.",
        )
        if error.is_of_trial:
            kind, detail = "addon-in-trial", "More of this add-on can be bought once the trial has ended."
        return ProblemDocument.of(kind, detail, {"addon": error.addon, "limit": error.limit})
    return invalid([{"field": "seats", "message": str(error)}])


def invalid(errors: list[dict[str, str]]) -> ProblemDocument:
    """The problem document for a request of the wrong form."""
    return ProblemDocument.of("request-invalid", "The request is not valid.", {"errors": errors})


def _of_subscription(error: SubscriptionError) -> ProblemDocument:
    if isinstance(error, NoSubscriptionError):
        return ProblemDocument.of("no-subscription", "There is no active subscription. Create one first.")
    if isinstance(error, SubscriptionExistsError):
        return ProblemDocument.of("subscription-exists", error.advice)
    if isinstance(error, SeatsInUseError):
        detail = f"{error.used} seats are in use, {error.seats} were requested. Free some first."
        members = {"seats": error.seats, "used": error.used}
        return ProblemDocument.of("seats-in-use", detail, members)
    if isinstance(error, SubscriptionBusyError):
        detail = "Another request for this customer is being served. Try again."
        return ProblemDocument.of("temporary-reduced-capacity", detail, wait_s=error.retry_after_s)
    return _of_payment(error)


def _of_payment(error: SubscriptionError) -> ProblemDocument:
    if isinstance(error, PaymentMethodMissingError):
        detail = "This needs a payment method, and none is saved. Add one, then try again."
        return ProblemDocument.of("payment-method-missing", detail, _url(error.url))
    if isinstance(error, InvoiceOpenError):
        detail = "An invoice of a subscription is open. Pay it first, then try again."
        return ProblemDocument.of("invoice-open", detail, _url(error.url))
    if isinstance(error, PaymentAuthenticationError):
        detail = "The card has to be confirmed for each payment, so nothing has changed. Use another one."
        members = {"reason": "authentication_required", **_url(error.url)}
        return ProblemDocument.of("billing-payment-required", detail, members)
    # The text is for an operator: it names ids, the plans file and commands, and may have Stripe's words.
    detail = error.advice
    if not detail:
        _logger.error(_NOT_SERVED, error)
        detail = "The subscription cannot be changed in this way at the moment. Ask who runs this service."
    return ProblemDocument.of("subscription-conflict", detail)


def _url(url: str | None) -> dict[str, object]:
    return {} if url is None else {"url": url}


def _of_currency(error: CurrencyError) -> ProblemDocument:
    currency, requested = error.currency.upper(), error.requested.upper()
    other = f"{requested} was requested" if requested else "the requested price is in another currency"
    detail = f"This customer is billed in {currency}, and {other}. Request {currency}."
    members: dict[str, object] = {"currency": error.currency}
    if requested:
        members["requested_currency"] = error.requested
    return ProblemDocument.of("currency-fixed", detail, members)


def _of_stripe(error: StripeError) -> ProblemDocument:
    _logger.warning("a billing request failed: %s (request %s)", error, error.request_id)
    if isinstance(error, StripeUnavailableError):
        detail = "The payment service does not answer. Nothing is done twice: try again."
        return ProblemDocument.of("temporary-reduced-capacity", detail, wait_s=_STRIPE_S)
    if isinstance(error, CurrencyError):
        return _of_currency(error)
    # A code is one of Stripe's own words: https://docs.stripe.com/error-codes
    code = {"code": error.code} if error.code and _WORD.fullmatch(error.code) else {}
    if error.type == "card_error":
        detail = "The payment was declined, so nothing has changed. Use another means of payment."
        return ProblemDocument.of("billing-payment-required", detail, {"reason": "declined", **code})
    detail = "The payment service has refused this."
    return ProblemDocument.of("stripe-refused", detail, code, wait_s=_STRIPE_S)
