"""What became of one attempt to deliver usage to Stripe, and what to do next. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Failure", "Kind", "Outcome", "Result", "Step", "classify"]

Failure = Literal["not_sent", "no_reply", "unreadable"]
Kind = Literal["delivered", "duplicate", "unknown", "not_done", "bug", "systemic", "permanent"]
Step = Literal["acknowledge", "retry", "park", "dead"]

STEPS: Final[Mapping[Kind, Step]] = {
    "delivered": "acknowledge",
    "duplicate": "acknowledge",
    "unknown": "retry",
    "not_done": "retry",
    "bug": "retry",
    "systemic": "park",
    "permanent": "dead",
}
ALERTING: Final[frozenset[Kind]] = frozenset({"bug", "systemic", "permanent"})

# Meter events v1 have no error code for these, only a text (an identifier that Stripe has already, a
# meter that is unknown or deactivated); v2 has codes. The last two say that the key or the version is
# wrong for this account, which no single event is to blame for.
DUPLICATE_TEXT: Final = "already exists with identifier"
DUPLICATE_CODES: Final = frozenset({"duplicate_meter_event"})
SYSTEMIC_TEXTS: Final = (
    "no active meter",
    "no such meter",
    "a similar object exists in",
    "stripe api version",
)
SYSTEMIC_CODES: Final = frozenset({"no_meter", "archived_meter"})
SYSTEMIC_STATUSES: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
BUSY_STATUSES: Final = frozenset({HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS})
NO_CUSTOMER_TEXT: Final = "no such customer"

SECRET: Final = re.compile(r"\b(sk|rk|pk|whsec)_[\w*.-]+")
DETAIL_LENGTH_MAX: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What happened to one request, as far as the sender can tell.

    Attributes:
        status: the HTTP status; None where no answer came.
        failure: why there is no answer to go by. ``not_sent``: not one byte of the request left;
            ``no_reply``: it may have been executed; ``unreadable``: a 2xx that does not speak of this event.
            None where Stripe answered.
        type: ``error.type`` of the answer.
        code: ``error.code`` of the answer.
        message: ``error.message`` of the answer, or the name of the transport's error.
        should_retry: the ``Stripe-Should-Retry`` header; None where it was absent.
        server_time_s: the ``Date`` header in Unix seconds; None where it was absent or unreadable.
        request_id: the ``Request-Id`` header.
    """

    status: int | None = None
    failure: Failure | None = None
    type: str | None = None
    code: str | None = None
    message: str | None = None
    should_retry: bool | None = None
    server_time_s: int | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an intent, and what to do with it.

    Attributes:
        kind: ``delivered``: accepted now. ``duplicate``: accepted earlier, which is as good. ``unknown``:
            may or may not have been accepted. ``not_done``: certainly not accepted, a later try may be.
            ``bug``: the idempotency key was used for other contents. ``systemic``: nothing of this kind
            will be accepted before somebody acts. ``permanent``: this intent will never be accepted.
        detail: what was answered, for logs and alerts; holds no key.
        new_key: whether the next try needs a fresh idempotency key. The identifier always stays.
        server_time_s: Stripe's clock in Unix seconds when it answered; None where unknown.
        request_id: Stripe's name for the request, for its support; None where unknown.
    """

    kind: Kind
    detail: str
    new_key: bool = False
    server_time_s: int | None = None
    request_id: str | None = None

    @property
    def delivered(self) -> bool:
        """Whether Stripe has the event, since now or since earlier."""
        return self.step == "acknowledge"

    @property
    def step(self) -> Step:
        """What to do: ``retry`` later, ``park`` until somebody acts, ``dead``: to the dead letters."""
        return STEPS[self.kind]

    @property
    def alert(self) -> bool:
        """Whether a person must be told."""
        return self.kind in ALERTING


def classify(result: Result) -> Outcome:
    """Tell what became of an intent from what happened to its request."""
    kind = _kind(result)
    # Stripe answers a repeated idempotency key with the saved response, a saved 500 included: only a new
    # key has the event looked at again. After a lost reply the old key is as good and says more.
    answered = result.status is not None
    return Outcome(
        kind=kind,
        detail=_detail(result),
        new_key=answered and kind in ("unknown", "bug", "systemic", "permanent"),
        server_time_s=result.server_time_s,
        request_id=result.request_id,
    )


def _kind(result: Result) -> Kind:
    status = result.status
    if result.failure == "not_sent":
        return "not_done"
    if result.failure is not None or status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "unknown"
    if status < HTTPStatus.MULTIPLE_CHOICES:
        return "delivered"
    if status in SYSTEMIC_STATUSES:
        return "systemic"
    if status in BUSY_STATUSES:
        return "not_done"
    return _refusal(result)


def _refusal(result: Result) -> Kind:
    text = (result.message or "").lower()
    if result.code in DUPLICATE_CODES or DUPLICATE_TEXT in text:
        return "duplicate"
    if result.type == "idempotency_error":
        return "bug"
    if result.should_retry:
        return "not_done"
    if result.code in SYSTEMIC_CODES or any(systemic in text for systemic in SYSTEMIC_TEXTS):
        return "systemic"
    # Stripe refuses an event with 400. Any other status answers something else than this event: a wrong
    # address, a proxy, the state of the account.
    refused = result.status == HTTPStatus.BAD_REQUEST or NO_CUSTOMER_TEXT in text
    return "permanent" if refused else "systemic"


def _detail(result: Result) -> str:
    parts = [f"HTTP {result.status}" if result.status is not None else "no answer", result.failure]
    parts += [result.type, result.code]
    head = " ".join(part for part in parts if part)
    # A refused key comes back, masked, in the message.
    message = SECRET.sub(r"\1_…", result.message or "")
    return (f"{head}: {message}" if message else head)[:DETAIL_LENGTH_MAX]
