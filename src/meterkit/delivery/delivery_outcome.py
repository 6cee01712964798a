"""Outcome of an attempt to deliver usage to Stripe, the next step, and the log lines about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal

from meterkit.outbox.sealer import REPORTED
from meterkit.stripe.request import ERROR_TYPES, KEY_REFUSALS, describe_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.stripe.request import RequestResult

CLOCKS_APART_S: Final = 60
"""Largest difference between the store's clock and Stripe's: beyond it, deliveries wait."""

OutcomeKind = Literal[
    "delivered",
    "duplicate",
    "unknown",
    "unreadable",
    "not_done",
    "bug",
    "systemic",
    "no_meter",
    "timestamp",
    "mapping",
    "permanent",
]
NextStep = Literal["acknowledge", "retry", "park", "dead"]
OutcomeScope = Literal["intent", "meter", "account"]

# The next step, the scope of the same answer, and whether an operator must be alerted.
_MEANS: Final[Mapping[OutcomeKind, tuple[NextStep, OutcomeScope, bool]]] = {
    "delivered": ("acknowledge", "intent", False),
    "duplicate": ("acknowledge", "intent", False),
    "unknown": ("retry", "intent", False),
    "unreadable": ("retry", "account", True),
    "not_done": ("retry", "intent", False),
    "bug": ("retry", "intent", True),
    "systemic": ("retry", "account", True),
    "no_meter": ("retry", "meter", True),
    "timestamp": ("park", "intent", True),
    "mapping": ("park", "meter", True),
    "permanent": ("dead", "intent", True),
}

_OF_CONTENTS: Final = frozenset({"duplicate", "no_meter", "timestamp", "mapping", "permanent"})
_UNTIL_AN_OPERATOR_ACTS: Final = frozenset({"systemic", "no_meter"})
_REFUSAL_TYPE: Final = "invalid_request_error"
_IDEMPOTENCY_TYPE: Final = "idempotency_error"

# Meter events v1 have texts instead of error codes for a known identifier, and for an unknown or deactivated
# meter; v2 has codes. The systemic texts say that the key or the version is wrong for this account.
_DUPLICATE_TEXT: Final = "already exists with identifier"
_DUPLICATE_CODES: Final = frozenset({"duplicate_meter_event"})
_NO_METER_TEXTS: Final = ("no active meter", "no such meter")
_NO_METER_CODES: Final = frozenset({"no_meter", "archived_meter"})
_SYSTEMIC_TEXTS: Final = ("a similar object exists in", "stripe api version")
_BUSY_STATUSES: Final = frozenset({HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS})
_NO_CUSTOMER_TEXT: Final = "no such customer"
_TIMESTAMP_PARAM: Final = "timestamp"
_TIMESTAMP_TEXT: Final = "event timestamp"
# A meter says which keys of the payload hold the customer and the value. Complaints about the payload are
# treated as missing there, except errors about the form of the value, which no other key would mend.
_MAPPING_CODES: Final = frozenset({"payload_no_customer_defined", "payload_no_value_defined"})
_PAYLOAD: Final = "payload"
_VALUE_TEXT: Final = "the value in the event payload"
_logger = logging.getLogger("meterkit.delivery")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """Outcome of an attempt to deliver an intent.

    Attributes:
        kind: ``delivered``: accepted now. ``duplicate``: accepted earlier. ``unknown``: may or may not have
            been accepted. ``unreadable``: as unknown, and the response is not Stripe's, such as the page of a
            proxy. ``not_done``: certainly not accepted, a later try may be. ``bug``: the idempotency key was
            used for other contents. ``systemic``: Stripe accepts no event before an operator acts.
            ``no_meter``: it accepts no event of this name before an operator acts. ``timestamp``: the
            timestamp was refused. ``mapping``: the meter at Stripe requires other payload keys.
            ``permanent``: the intent will never be accepted.
        detail: the response in words, for logs and alerts; holds no key.
        new_key: whether the next try needs a new idempotency key. The identifier always stays.
        server_time_s: Stripe's clock at its response, in Unix seconds; None: not known.
        request_id: Stripe's id of the request, for its support; None: not known.
        answered: whether there was a response.
        refused: whether Stripe certainly does not have it from this try.
        batch: the idempotency key of a call with several intents; empty: there was one.
        limited_s: how long Stripe limits the account's calls, in seconds; 0: not known. None: it does not.
    """

    kind: OutcomeKind
    detail: str
    answered: bool = True
    refused: bool = False
    batch: str = ""
    new_key: bool = False
    server_time_s: int | None = None
    request_id: str | None = None
    limited_s: int | None = None

    @property
    def delivered(self) -> bool:
        """Whether Stripe has the event, since now or since earlier."""
        return self.step == "acknowledge"

    @property
    def step(self) -> NextStep:
        """Next step: ``retry`` later, ``park`` for an operator, ``dead``: to the dead letters."""
        return _MEANS[self.kind][0]

    @property
    def scope(self) -> OutcomeScope:
        """Scope of the same response: this intent, all intents of its meter, or all of the account."""
        return _MEANS[self.kind][1]

    @property
    def is_of_contents(self) -> bool:
        """Whether the contents of an event are the cause; in a batch, of at least one event."""
        return self.kind in _OF_CONTENTS

    @property
    def is_blocked(self) -> bool:
        """Whether repeats are refused, too, until an operator acts: a wrong key, a missing meter.

        An unreadable response is not: the page of a proxy may be gone at the next try.
        """
        return self.kind in _UNTIL_AN_OPERATOR_ACTS

    @property
    def alert(self) -> bool:
        """Whether an operator must be alerted."""
        return _MEANS[self.kind][2]


def classify(result: RequestResult) -> DeliveryOutcome:
    """Classify the result of a request."""
    kind = _kind(result)
    # Stripe answers a repeated idempotency key with the saved response, a saved 500 included: only a new key
    # makes it process the event again. After a lost response, the old key is as good and says more.
    new_key = result.status is not None and kind not in ("delivered", "duplicate", "not_done")
    return DeliveryOutcome(
        kind=kind,
        detail=describe_result(result),
        answered=result.status is not None,
        refused=_is_refused(result, kind),
        new_key=new_key,
        server_time_s=result.server_time_s,
        request_id=result.request_id,
        limited_s=result.retry_after_s if result.is_account_limited else None,
    )


def _kind(result: RequestResult) -> OutcomeKind:
    status = HTTPStatus.INTERNAL_SERVER_ERROR if result.status is None else result.status
    text, param = (result.message or "").lower(), result.param or ""
    is_stripes = result.type in ERROR_TYPES
    # Stripe refuses an event with 400. Another status concerns a wrong address or the state of the account.
    of_event = status == HTTPStatus.BAD_REQUEST or _NO_CUSTOMER_TEXT in text
    first_match: list[tuple[bool, OutcomeKind]] = [
        (result.failure == "not_sent", "not_done"),
        (result.failure == "unreadable", "unreadable"),
        (result.failure is not None or status >= HTTPStatus.INTERNAL_SERVER_ERROR, "unknown"),
        (status < HTTPStatus.MULTIPLE_CHOICES, "delivered"),
        (status in KEY_REFUSALS, "systemic"),
        (status in _BUSY_STATUSES, "not_done"),
        (result.code in _DUPLICATE_CODES or (is_stripes and _DUPLICATE_TEXT in text), "duplicate"),
        (result.code in _NO_METER_CODES, "no_meter"),
        (not is_stripes, "unreadable"),
        (result.type == _IDEMPOTENCY_TYPE, "bug"),
        (result.should_retry is True, "not_done"),
        (any(part in text for part in _NO_METER_TEXTS), "no_meter"),
        (result.type != _REFUSAL_TYPE or not of_event, "systemic"),
        (any(part in text for part in _SYSTEMIC_TEXTS), "systemic"),
        (param == _TIMESTAMP_PARAM or _TIMESTAMP_TEXT in text, "timestamp"),
        (_NO_CUSTOMER_TEXT in text or _VALUE_TEXT in text, "permanent"),
        (_PAYLOAD in text or _PAYLOAD in param or result.code in _MAPPING_CODES, "mapping"),
        (True, "permanent"),
    ]
    return next(kind for holds, kind in first_match if holds)


def _is_refused(result: RequestResult, kind: OutcomeKind) -> bool:
    if result.failure == "not_sent":
        return True
    # A proxy that answers may have forwarded the request. A key in use belongs to another copy of this
    # request, which may be accepted.
    is_in_use = result.status == HTTPStatus.CONFLICT or result.type == _IDEMPOTENCY_TYPE
    is_open = kind in {"delivered", "duplicate", "unknown", "unreadable"}
    return result.type in ERROR_TYPES and not is_in_use and not is_open


def log_parked(identifier: str, customer: str, why: str) -> None:
    """Log that an intent is parked."""
    _logger.warning("intent %s of customer %r is parked: %s", identifier, customer, why, extra=REPORTED)


def log_kept_parked(identifier: str, customer: str, why: str) -> None:
    """Log that a comparison leaves an intent parked: an operator must decide."""
    _logger.error("intent %s of customer %r stays parked: %s", identifier, customer, why, extra=REPORTED)


def log_not_comparable(identifier: str, customer: str, error: Exception) -> None:
    """Log that an intent cannot be compared with Stripe's summary."""
    _logger.warning(
        "intent %s of customer %r cannot be compared: %s", identifier, customer, error, extra=REPORTED
    )


def log_outcome(identifier: str, customer: str, outcome: str) -> None:
    """Log how the delivery of an intent ended, if not by acceptance."""
    _logger.error("intent %s of customer %r%s", identifier, customer, outcome, extra=REPORTED)
