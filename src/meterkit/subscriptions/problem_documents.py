"""Problem documents (RFC 9457) of the billing routes."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final

from meterkit.answers import IANA, URN, ProblemDocument, ProblemType
from meterkit.errors import (
    CurrencyError,
    CustomerError,
    InvoiceOpenError,
    NoSubscriptionError,
    PaymentAuthenticationError,
    PaymentMethodMissingError,
    QuantityError,
    SeatsInUseError,
    StoreError,
    StripeError,
    StripeUnavailableError,
    SubscriptionBusyError,
    SubscriptionError,
    SubscriptionExistsError,
    UnknownPlanError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.errors import MeterkitError


_logger = logging.getLogger("meterkit.subscriptions")
_WORD: Final = re.compile(r"[a-z_]{1,64}")
_STRIPE_S: Final = 10
_STORE_S: Final = 1
_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_MAY_BE: Final = {"code": _TEXT, "url": _TEXT}
"""The members that a document has where there is something to say."""


KINDS: Final[Mapping[str, ProblemType]] = {
    "customer": ProblemType(401, f"{URN}customer-unknown", "Customer Unknown"),
    "invalid_customer": ProblemType(400, f"{URN}customer-invalid", "Customer Invalid"),
    "none": ProblemType(404, f"{URN}no-subscription", "No Subscription"),
    "exists": ProblemType(409, f"{URN}subscription-exists", "Subscription Exists"),
    "seats": ProblemType(409, f"{URN}seats-in-use", "Seats In Use", {"seats": _COUNT, "used": _COUNT}),
    "conflict": ProblemType(409, f"{URN}subscription-conflict", "Subscription Conflict"),
    "origin": ProblemType(403, f"{URN}origin-not-allowed", "Origin Not Allowed"),
    "url": ProblemType(400, f"{URN}url-not-allowed", "URL Not Allowed", {"field": _TEXT}),
    "plan": ProblemType(422, f"{URN}plan-unknown", "Plan Unknown", {"plan": _TEXT}),
    "request": ProblemType(
        422,
        f"{URN}request-invalid",
        "Request Invalid",
        {"errors": {"type": "array", "items": {"type": "object", "additionalProperties": _TEXT}}},
    ),
    "currency": ProblemType(409, f"{URN}currency-fixed", "Currency Fixed", {"currency": _TEXT}),
    "large": ProblemType(413, f"{URN}request-too-large", "Request Too Large", {"limit": _COUNT}),
    "media": ProblemType(415, f"{URN}media-type-not-supported", "Media Type Not Supported"),
    "payment": ProblemType(402, f"{URN}payment-required", "Payment Required", {"reason": _TEXT, **_MAY_BE}),
    "method": ProblemType(402, f"{URN}payment-method-missing", "Payment Method Missing", {"url": _TEXT}),
    "invoice": ProblemType(402, f"{URN}invoice-open", "Invoice Open", {"url": _TEXT}),
    "refused": ProblemType(502, f"{URN}stripe-refused", "Stripe Refused", {"code": _TEXT}),
    "away": ProblemType(503, f"{IANA}temporary-reduced-capacity", "Temporary Reduced Capacity"),
}


class ProblemDocumentError(Exception):
    """A request that cannot be answered as it was asked."""

    def __init__(self, problem: ProblemDocument) -> None:
        self.problem = problem
        super().__init__(problem.detail)


def schema_of(kind: ProblemType) -> dict[str, Any]:
    """The schema of the problem documents of a type."""
    properties: dict[str, Any] = {
        "type": {"const": kind.uri},
        "title": {"const": kind.title},
        "status": {"const": kind.status},
        "detail": _TEXT,
        "instance": {"type": "string", "format": "uri"},
        **kind.members,
    }
    required = [name for name in properties if name not in _MAY_BE]
    return {"title": kind.title, "type": "object", "properties": properties, "required": required}


def problem_of(error: MeterkitError) -> ProblemDocument:
    """The problem document for an error, without Stripe's or the store's words, which are not for clients."""
    if isinstance(error, StripeError):
        return _of_stripe(error)
    if isinstance(error, SubscriptionError):
        return _of_subscription(error)
    if isinstance(error, UnknownPlanError):
        detail = "There is no such plan to subscribe to."
        return ProblemDocument(kind=KINDS["plan"], detail=detail, members={"plan": error.plan[:128]})
    if isinstance(error, QuantityError):
        return invalid([{"field": "seats", "message": str(error)}])
    _logger.error("a billing request could not be served: %s", error)
    if isinstance(error, CustomerError):
        return ProblemDocument(
            kind=KINDS["conflict"], detail="This customer cannot be linked to a payment account."
        )
    wait_s = _STORE_S if isinstance(error, StoreError) else _STRIPE_S
    return ProblemDocument(kind=KINDS["away"], detail="This cannot be served at the moment.", wait_s=wait_s)


def invalid(errors: list[dict[str, str]]) -> ProblemDocument:
    """The problem document for a request of the wrong form."""
    return ProblemDocument(
        kind=KINDS["request"], detail="The request is not valid.", members={"errors": errors}
    )


def _of_subscription(error: SubscriptionError) -> ProblemDocument:
    if isinstance(error, NoSubscriptionError):
        return ProblemDocument(
            kind=KINDS["none"], detail="There is no subscription in force. Begin one first."
        )
    if isinstance(error, SubscriptionExistsError):
        return ProblemDocument(
            kind=KINDS["exists"], detail="A subscription is in force already. Change that one."
        )
    if isinstance(error, SeatsInUseError):
        detail = f"{error.used} seats are in use, {error.seats} were requested. Free some first."
        members = {"seats": error.seats, "used": error.used}
        return ProblemDocument(kind=KINDS["seats"], detail=detail, members=members)
    if isinstance(error, SubscriptionBusyError):
        detail = "Another request for this customer is being served. Try again."
        return ProblemDocument(kind=KINDS["away"], detail=detail, wait_s=error.retry_after_s)
    return _of_payment(error)


def _of_payment(error: SubscriptionError) -> ProblemDocument:
    if isinstance(error, PaymentMethodMissingError):
        detail = "This has to be paid at once, and there is no payment method. Add one, then try again."
        return ProblemDocument(kind=KINDS["method"], detail=detail, members=_url(error.url))
    if isinstance(error, InvoiceOpenError):
        detail = "An invoice of a subscription is open. Pay it first, then try again."
        return ProblemDocument(kind=KINDS["invoice"], detail=detail, members=_url(error.url))
    if isinstance(error, PaymentAuthenticationError):
        detail = "The card has to be confirmed for each payment, so nothing has changed. Use another one."
        members = {"reason": "authentication_required", **_url(error.url)}
        return ProblemDocument(kind=KINDS["payment"], detail=detail, members=members)
    return ProblemDocument(kind=KINDS["conflict"], detail=str(error))


def _url(url: str | None) -> dict[str, object]:
    return {} if url is None else {"url": url}


def _of_stripe(error: StripeError) -> ProblemDocument:
    _logger.warning("a billing request failed: %s (request %s)", error, error.request_id)
    if isinstance(error, StripeUnavailableError):
        detail = "The payment service does not answer. Nothing is done twice: try again."
        return ProblemDocument(kind=KINDS["away"], detail=detail, wait_s=_STRIPE_S)
    if isinstance(error, CurrencyError):
        currency = error.currency.upper()
        detail = (
            f"This customer is billed in {currency}, and what was requested is sold in another currency."
            f" End what is billed in {currency} first, or request something that is sold in {currency}."
        )
        return ProblemDocument(kind=KINDS["currency"], detail=detail, members={"currency": error.currency})
    # A code is one of Stripe's own words: https://docs.stripe.com/error-codes
    code = {"code": error.code} if error.code and _WORD.fullmatch(error.code) else {}
    if error.type == "card_error":
        detail = "The payment was declined, so nothing has changed. Use another means of payment."
        return ProblemDocument(kind=KINDS["payment"], detail=detail, members={"reason": "declined", **code})
    detail = "The payment service has refused this."
    return ProblemDocument(kind=KINDS["refused"], detail=detail, members=code, wait_s=_STRIPE_S)
