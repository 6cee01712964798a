"""Problem documents (RFC 9457) of the billing routes."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from meterkit.errors import (
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

_URN: Final = "urn:meterkit:problem:"
_IANA: Final = "https://iana.org/assignments/http-problem-types#"
_WORD: Final = re.compile(r"[a-z_]{1,64}")
_STRIPE_S: Final = 10
_STORE_S: Final = 1
_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_MAY_BE: Final = {"code": _TEXT, "url": _TEXT}
"""The members that a document has where there is something to say."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What all problems of one type have in common.

    Attributes:
        members: those that only this type has, each with its schema.
    """

    status: int
    uri: str
    title: str
    members: Mapping[str, Any] = field(default_factory=dict[str, Any])


KINDS: Final[Mapping[str, Kind]] = {
    "customer": Kind(401, f"{_URN}customer-unknown", "Customer Unknown"),
    "invalid_customer": Kind(400, f"{_URN}customer-invalid", "Customer Invalid"),
    "none": Kind(404, f"{_URN}no-subscription", "No Subscription"),
    "exists": Kind(409, f"{_URN}subscription-exists", "Subscription Exists"),
    "seats": Kind(409, f"{_URN}seats-in-use", "Seats In Use", {"seats": _COUNT, "used": _COUNT}),
    "conflict": Kind(409, f"{_URN}subscription-conflict", "Subscription Conflict"),
    "origin": Kind(403, f"{_URN}origin-not-allowed", "Origin Not Allowed"),
    "url": Kind(400, f"{_URN}url-not-allowed", "URL Not Allowed", {"field": _TEXT}),
    "plan": Kind(422, f"{_URN}plan-unknown", "Plan Unknown", {"plan": _TEXT}),
    "request": Kind(
        422,
        f"{_URN}request-invalid",
        "Request Invalid",
        {"errors": {"type": "array", "items": {"type": "object", "additionalProperties": _TEXT}}},
    ),
    "large": Kind(413, f"{_URN}request-too-large", "Request Too Large", {"limit": _COUNT}),
    "media": Kind(415, f"{_URN}media-type-not-supported", "Media Type Not Supported"),
    "payment": Kind(402, f"{_URN}payment-required", "Payment Required", {"reason": _TEXT, **_MAY_BE}),
    "method": Kind(402, f"{_URN}payment-method-missing", "Payment Method Missing", {"url": _TEXT}),
    "invoice": Kind(402, f"{_URN}invoice-open", "Invoice Open", {"url": _TEXT}),
    "refused": Kind(502, f"{_URN}stripe-refused", "Stripe Refused", {"code": _TEXT}),
    "away": Kind(503, f"{_IANA}temporary-reduced-capacity", "Temporary Reduced Capacity"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A problem document, ready to send.

    Attributes:
        kind: its type.
        detail: what is the matter with this request, and what to do.
        members: what only its type has.
        wait_s: after how many seconds the same may go better; None: waiting does not help.
    """

    kind: Kind
    detail: str
    members: Mapping[str, object] = field(default_factory=dict[str, object])
    wait_s: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The fields that go with it."""
        headers = {"content-type": "application/problem+json", "cache-control": "no-store"}
        if self.wait_s is not None:
            headers["retry-after"] = str(self.wait_s)
        if self.kind is KINDS["customer"]:
            headers["www-authenticate"] = 'Bearer realm="api"'
        return headers

    @property
    def body(self) -> bytes:
        """The document; each has a name of its own."""
        document: dict[str, object] = {
            "type": self.kind.uri,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "instance": uuid4().urn,
            **self.members,
        }
        return json.dumps(document, separators=(",", ":")).encode()


class TroubleError(Exception):
    """A request that cannot be answered as it was asked."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble
        super().__init__(trouble.detail)


def schema_of(kind: Kind) -> dict[str, Any]:
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


def trouble_of(error: MeterkitError) -> Trouble:
    """The problem document for an error, without Stripe's or the store's words, which are not for clients."""
    if isinstance(error, StripeError):
        return _of_stripe(error)
    if isinstance(error, SubscriptionError):
        return _of_subscription(error)
    if isinstance(error, UnknownPlanError):
        detail = "There is no such plan to subscribe to."
        return Trouble(kind=KINDS["plan"], detail=detail, members={"plan": error.plan[:128]})
    if isinstance(error, QuantityError):
        return invalid([{"field": "seats", "message": str(error)}])
    _logger.error("a billing request could not be served: %s", error)
    if isinstance(error, CustomerError):
        return Trouble(kind=KINDS["conflict"], detail="This customer cannot be linked to a payment account.")
    wait_s = _STORE_S if isinstance(error, StoreError) else _STRIPE_S
    return Trouble(kind=KINDS["away"], detail="This cannot be served at the moment.", wait_s=wait_s)


def invalid(errors: list[dict[str, str]]) -> Trouble:
    """The problem document for a request of the wrong form."""
    return Trouble(kind=KINDS["request"], detail="The request is not valid.", members={"errors": errors})


def _of_subscription(error: SubscriptionError) -> Trouble:
    if isinstance(error, NoSubscriptionError):
        return Trouble(kind=KINDS["none"], detail="There is no subscription in force. Begin one first.")
    if isinstance(error, SubscriptionExistsError):
        return Trouble(kind=KINDS["exists"], detail="A subscription is in force already. Change that one.")
    if isinstance(error, SeatsInUseError):
        detail = f"{error.used} seats are in use, {error.seats} were requested. Free some first."
        members = {"seats": error.seats, "used": error.used}
        return Trouble(kind=KINDS["seats"], detail=detail, members=members)
    if isinstance(error, SubscriptionBusyError):
        detail = "Another request for this customer is being served. Try again."
        return Trouble(kind=KINDS["away"], detail=detail, wait_s=error.retry_after_s)
    return _of_payment(error)


def _of_payment(error: SubscriptionError) -> Trouble:
    if isinstance(error, PaymentMethodMissingError):
        detail = "This has to be paid at once, and there is no payment method. Add one, then try again."
        return Trouble(kind=KINDS["method"], detail=detail, members=_url(error.url))
    if isinstance(error, InvoiceOpenError):
        detail = "An invoice of a subscription is open. Pay it first, then try again."
        return Trouble(kind=KINDS["invoice"], detail=detail, members=_url(error.url))
    if isinstance(error, PaymentAuthenticationError):
        detail = "The card has to be confirmed for each payment, so nothing has changed. Use another one."
        members = {"reason": "authentication_required", **_url(error.url)}
        return Trouble(kind=KINDS["payment"], detail=detail, members=members)
    return Trouble(kind=KINDS["conflict"], detail=str(error))


def _url(url: str | None) -> dict[str, object]:
    return {} if url is None else {"url": url}


def _of_stripe(error: StripeError) -> Trouble:
    _logger.warning("a billing request failed: %s (request %s)", error, error.request_id)
    if isinstance(error, StripeUnavailableError):
        detail = "The payment service does not answer. Nothing is done twice: try again."
        return Trouble(kind=KINDS["away"], detail=detail, wait_s=_STRIPE_S)
    # A code is one of Stripe's own words: https://docs.stripe.com/error-codes
    code = {"code": error.code} if error.code and _WORD.fullmatch(error.code) else {}
    if error.type == "card_error":
        detail = "The payment was declined, so nothing has changed. Use another means of payment."
        return Trouble(kind=KINDS["payment"], detail=detail, members={"reason": "declined", **code})
    detail = "The payment service has refused this."
    return Trouble(kind=KINDS["refused"], detail=detail, members=code, wait_s=_STRIPE_S)
