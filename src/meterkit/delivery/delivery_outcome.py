"""What became of one attempt to deliver usage to Stripe, and what to do next. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal

from meterkit.stripe.result import ERROR_TYPES, in_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.stripe.result import Result

CLOCKS_APART_S: Final = 60
"""Beyond it this host's clock and Stripe's do not agree, and what goes by a clock waits until they do."""

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
_REFUSAL_TYPE: Final = "invalid_request_error"
_IDEMPOTENCY_TYPE: Final = "idempotency_error"

# Meter events v1 have no error code for these, only a text (an identifier that Stripe has already, a
# meter that is unknown or deactivated); v2 has codes. The last two say that the key or the version is
# wrong for this account, which no single event is to blame for.
_DUPLICATE_TEXT: Final = "already exists with identifier"
_DUPLICATE_CODES: Final = frozenset({"duplicate_meter_event"})
_NO_METER_TEXTS: Final = ("no active meter", "no such meter")
_NO_METER_CODES: Final = frozenset({"no_meter", "archived_meter"})
_SYSTEMIC_TEXTS: Final = ("a similar object exists in", "stripe api version")
_SYSTEMIC_STATUSES: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_BUSY_STATUSES: Final = frozenset({HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS})
_NO_CUSTOMER_TEXT: Final = "no such customer"
_TIMESTAMP_PARAM: Final = "timestamp"
_TIMESTAMP_TEXT: Final = "event timestamp"
# A meter says which keys of the payload hold the customer and the value. Complaints about the payload are
# treated as missing there, except errors about the form of the value, which no other key would mend.
_MAPPING_CODES: Final = frozenset({"payload_no_customer_defined", "payload_no_value_defined"})
_PAYLOAD: Final = "payload"
_VALUE_TEXT: Final = "the value in the event payload"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """What became of an intent, and what to do with it.

    Attributes:
        kind: ``delivered``: accepted now. ``duplicate``: accepted earlier, which is as good. ``unknown``:
            may or may not have been accepted. ``unreadable``: as unknown, and the sender of the 2xx was
            not Stripe. ``not_done``: certainly not accepted, a later try may be. ``bug``: the idempotency
            key was used for other contents. ``systemic``: no event will be accepted before an operator
            acts. ``no_meter``: no event of this name will be, before an operator acts. ``timestamp``: its
            timestamp was refused. ``mapping``: the meter at Stripe asks for other payload keys.
            ``permanent``: this intent will never be accepted.
        detail: what was answered, for logs and alerts; holds no key.
        new_key: whether the next try needs a fresh idempotency key. The identifier always stays.
        server_time_s: Stripe's clock in Unix seconds when it answered; None where unknown.
        request_id: Stripe's name for the request, for its support; None where unknown.
        answered: whether anybody answered.
        refused: whether Stripe certainly does not have it from this try: it says so, or nothing was sent.
        batch: the idempotency key, where several intents were sent in one call; empty: one was.
    """

    kind: OutcomeKind
    detail: str
    answered: bool = True
    refused: bool = False
    batch: str = ""
    new_key: bool = False
    server_time_s: int | None = None
    request_id: str | None = None

    @property
    def delivered(self) -> bool:
        """Whether Stripe has the event, since now or since earlier."""
        return self.step == "acknowledge"

    @property
    def step(self) -> NextStep:
        """What to do: ``retry`` later, ``park`` for a person, ``dead``: to the dead letters."""
        return _MEANS[self.kind][0]

    @property
    def scope(self) -> OutcomeScope:
        """What else would be answered so: nothing but this intent, all of its meter, or whatever is sent."""
        return _MEANS[self.kind][1]

    @property
    def is_of_contents(self) -> bool:
        """Whether what was sent is to blame: of a batch, one event or more of it."""
        return self.kind in _OF_CONTENTS

    @property
    def alert(self) -> bool:
        """Whether an operator must be alerted."""
        return _MEANS[self.kind][2]


def classify(result: Result) -> DeliveryOutcome:
    """Tell what became of an intent from what happened to its request."""
    kind = _kind(result)
    # Stripe answers a repeated idempotency key with the saved response, a saved 500 included: only a new
    # key has the event looked at again. After a lost reply the old key is as good and says more.
    new_key = result.status is not None and kind not in ("delivered", "duplicate", "not_done")
    return DeliveryOutcome(
        kind=kind,
        detail=in_words(result),
        answered=result.status is not None,
        refused=_is_refused(result, kind),
        new_key=new_key,
        server_time_s=result.server_time_s,
        request_id=result.request_id,
    )


def _kind(result: Result) -> OutcomeKind:
    status = HTTPStatus.INTERNAL_SERVER_ERROR if result.status is None else result.status
    text, param = (result.message or "").lower(), result.param or ""
    is_stripes = result.type in ERROR_TYPES
    # Stripe refuses an event with 400. Any other status answers something else than this event: a wrong
    # address, the state of the account.
    of_event = status == HTTPStatus.BAD_REQUEST or _NO_CUSTOMER_TEXT in text
    first_match: list[tuple[bool, OutcomeKind]] = [
        (result.failure == "not_sent", "not_done"),
        (result.failure == "unreadable", "unreadable"),
        (result.failure is not None or status >= HTTPStatus.INTERNAL_SERVER_ERROR, "unknown"),
        (status < HTTPStatus.MULTIPLE_CHOICES, "delivered"),
        (status in _SYSTEMIC_STATUSES, "systemic"),
        (status in _BUSY_STATUSES, "not_done"),
        (result.code in _DUPLICATE_CODES or (is_stripes and _DUPLICATE_TEXT in text), "duplicate"),
        (result.code in _NO_METER_CODES, "no_meter"),
        (not is_stripes, "systemic"),
        (result.type == _IDEMPOTENCY_TYPE, "bug"),
        (result.should_retry is True, "not_done"),
        (any(told in text for told in _NO_METER_TEXTS), "no_meter"),
        (result.type != _REFUSAL_TYPE or not of_event, "systemic"),
        (any(told in text for told in _SYSTEMIC_TEXTS), "systemic"),
        (param == _TIMESTAMP_PARAM or _TIMESTAMP_TEXT in text, "timestamp"),
        (_NO_CUSTOMER_TEXT in text or _VALUE_TEXT in text, "permanent"),
        (_PAYLOAD in text or _PAYLOAD in param or result.code in _MAPPING_CODES, "mapping"),
        (True, "permanent"),
    ]
    return next(kind for holds, kind in first_match if holds)


def _is_refused(result: Result, kind: OutcomeKind) -> bool:
    if result.failure == "not_sent":
        return True
    # A proxy that answers may have passed the request on. A key in use belongs to another request than this
    # one, sent again on the way, which may be accepted.
    is_in_use = result.status == HTTPStatus.CONFLICT or result.type == _IDEMPOTENCY_TYPE
    is_open = kind in {"delivered", "duplicate", "unknown", "unreadable"}
    return result.type in ERROR_TYPES and not is_in_use and not is_open
