"""Requests to Stripe: address, headers, the result of each as far as its sender can tell."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, cast
from urllib.parse import urlsplit

from meterkit.errors import CurrencyError, StripeError, StripeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

API_BASE: Final = "https://api.stripe.com"
API_VERSION: Final = "2026-10-28.endive"

Parameter: TypeAlias = "str | int | float | bool | Mapping[str, Parameter] | Sequence[Parameter] | None"
"""The value of a parameter; None: it is left out. An empty text unsets what Stripe has."""

ENDED_HERE: Final = "ended by meterkit: the last invoice is to be collected"
"""The comment of the ``cancellation_details`` of a subscription that we ended at once."""


def build_headers(api_key: str) -> dict[str, str]:
    """The head of a request."""
    return {
        "Authorization": f"Bearer {api_key}",
        "Stripe-Version": API_VERSION,
        "User-Agent": "meterkit",
        "Content-Type": "application/x-www-form-urlencoded",
    }


def redact_address(address: str) -> str:
    """An address without what may be a secret in it."""
    url = urlsplit(address)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"


KEY_REFUSALS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""Statuses of responses to a key that is wrong, or may not make the request."""
UNKNOWN_CUSTOMER: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND})
"""Statuses of responses to a request for a customer's usage, if Stripe lacks the customer or the meter."""

Failure = Literal["not_sent", "no_reply", "unreadable"]

# What Stripe names its errors (https://docs.stripe.com/api/errors). What does not come in its envelope with
# one of these types was answered by something between here and Stripe.
ERROR_TYPES: Final = frozenset({"api_error", "card_error", "idempotency_error", "invalid_request_error"})

_ERROR_FIELDS: Final = ("type", "code", "message", "param")
_SHOULD_RETRY: Final[Mapping[str | None, bool]] = {"true": True, "false": False}
SECRET: Final = re.compile(r"\b(sk|rk|pk|whsec)_[\w*.-]+")
_LENGTH_MAX: Final = 300
_RETRY_AFTER_MAX_S: Final = 3600
# Stripe has no code for these: of a new subscription, a Checkout page, a change of a subscription.
_CURRENCY: Final = re.compile(
    r"(?:combine currencies on a single customer.* currency|match the customer currency"
    r"|match the expected currency)\W+([a-z]{3})\b",
    re.IGNORECASE | re.DOTALL,
)


class HttpResponse(NamedTuple):
    """A whole HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestResult:
    """Outcome of one request, as far as the sender can tell.

    Attributes:
        status: the HTTP status; None where no answer came.
        failure: why there is no answer to go by. ``not_sent``: not one byte of the request left;
            ``no_reply``: it may have been executed; ``unreadable``: a 2xx that does not speak of what was
            asked. None where Stripe answered.
        type: ``error.type`` of the answer.
        code: ``error.code`` of the answer.
        message: ``error.message`` of the answer, or the name of the transport's error.
        param: ``error.param`` of the answer: the parameter that it is about.
        should_retry: the ``Stripe-Should-Retry`` header; None where it was absent.
        server_time_s: the ``Date`` header in Unix seconds; None where it was absent or unreadable.
        request_id: the ``Request-Id`` header.
        is_account_limited: whether the answer is a 429 that other requests would get, too: Stripe limits
            their rate or number, not the requests for one object.
        retry_after_s: the ``Retry-After`` header in seconds; 0 where it was absent or a date.
    """

    status: int | None = None
    failure: Failure | None = None
    type: str | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
    should_retry: bool | None = None
    server_time_s: int | None = None
    request_id: str | None = None
    is_account_limited: bool = False
    retry_after_s: int = 0


def read_result(
    answer: HttpResponse, failure: Failure | None = None, message: str | None = None
) -> RequestResult:
    """Read the result from a response: of a 2xx only the head, otherwise also Stripe's error.

    Args:
        answer: the answer.
        failure: why a 2xx is not one to go by.
        message: the same in words.
    """
    common: dict[str, Any] = {
        "status": answer.status,
        "should_retry": _SHOULD_RETRY.get(answer.headers.get("stripe-should-retry")),
        "server_time_s": _parse_date(answer.headers),
        "request_id": answer.headers.get("request-id"),
    }
    if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return RequestResult(failure=failure, message=message, **common)
    envelope = parse_object(answer.body).get("error")
    error = cast("dict[str, Any]", envelope) if isinstance(envelope, dict) else {}
    told = {name: error[name] for name in _ERROR_FIELDS if isinstance(error.get(name), str)}
    told["message"] = told.get("message") or _first_bytes(answer.body)
    # https://docs.stripe.com/rate-limits
    is_of_object = (
        answer.headers.get("stripe-rate-limited-reason") == "resource-specific"
        or told.get("code") == "lock_timeout"
    )
    is_limited = answer.status == HTTPStatus.TOO_MANY_REQUESTS and not is_of_object
    after = answer.headers.get("retry-after", "")
    after_s = min(int(after), _RETRY_AFTER_MAX_S) if after.isascii() and after.isdecimal() else 0
    return RequestResult(**told, **common, is_account_limited=is_limited, retry_after_s=after_s)


def is_retryable(result: RequestResult) -> bool:
    """Whether the same request may get another answer soon."""
    if result.status is None or result.should_retry is None:
        return _is_unavailable(result)
    return result.should_retry


def build_error(result: RequestResult) -> StripeError:
    """The error of a request that did not succeed, by the result of its last try."""
    is_unavailable = _is_unavailable(result)
    said = "Stripe cannot be asked" if is_unavailable else "Stripe refuses"
    message = f"{said}: {describe_result(result)}"
    if result.failure == "not_sent":
        message += "; check that this host reaches that address (METERKIT_STRIPE_API_BASE)"
    details: dict[str, Any] = {
        "status": result.status,
        "type": result.type,
        "code": result.code,
        "param": result.param,
        "request_id": result.request_id,
    }
    if is_unavailable:
        return StripeUnavailableError(message, **details)
    billed_in = _CURRENCY.search(result.message or "")
    if billed_in is not None:
        return CurrencyError(message, currency=billed_in[1].lower(), **details)
    return StripeError(message, **details)


def _is_unavailable(result: RequestResult) -> bool:
    """Whether the request was neither done for certain nor refused."""
    if result.status is None or result.failure is not None:
        return True
    busy = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.CONFLICT)
    # An answer without Stripe's envelope is that of a proxy; but a refused key has none either.
    is_strangers = result.type not in ERROR_TYPES and result.status not in (
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
    )
    return result.status >= HTTPStatus.INTERNAL_SERVER_ERROR or result.status in busy or is_strangers


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is; an empty one where it is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def describe_result(result: RequestResult) -> str:
    """A result for logs, alerts and errors; holds no key."""
    parts: list[str | None]
    if result.status is None:
        parts = ["no connection" if result.failure == "not_sent" else "no answer"]
    else:
        parts = [f"HTTP {result.status}", result.failure]
    parts += [result.type, result.code]
    head = " ".join(part for part in parts if part)
    # A refused key comes back, masked, in the message.
    message = SECRET.sub(r"\1_…", result.message or "")
    return (f"{head}: {message}" if message else head)[:_LENGTH_MAX]


def _first_bytes(body: bytes) -> str:
    """Of an answer that is not Stripe's, as much as a log line holds."""
    return " ".join(body[:200].decode("utf-8", "replace").split())


def _parse_date(headers: Mapping[str, str]) -> int | None:
    try:
        return int(parsedate_to_datetime(headers["date"]).timestamp())
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
