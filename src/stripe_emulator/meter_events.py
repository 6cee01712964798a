"""Accepted meter events and how they are aggregated; sessions of meter event streams."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from stripe_emulator.protocol import ApiError, JsonObject, shown_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stripe_emulator.behaviour import Behaviour
    from stripe_emulator.meters import Meter

PAST_S_MAX: Final = 35 * 86_400
FUTURE_S_MAX: Final = 5 * 60
DIGITS_MAX: Final = 15
NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
SPANS_S: Final = {"hour": 3_600, "day": 86_400}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterEvent:
    """An event that was answered with 200.

    Attributes:
        meter: id of the meter it went to.
        customer: Stripe's id of the customer.
        value: 1 for a meter that counts.
        timestamp: Unix seconds; decides the invoice.
        received_at: Unix seconds by the emulator's clock.
        counted: False where it was answered with 200 and yet is in no summary and on no invoice.
    """

    identifier: str
    event_name: str
    meter: str
    customer: str
    value: Decimal
    timestamp: int
    received_at: float
    livemode: bool
    payload: Mapping[str, str]
    counted: bool = True

    def to_json(self) -> JsonObject:
        """Return the event as Stripe shows it."""
        return {
            **shown_fields(self, "counted customer meter received_at value"),
            "object": "billing.meter_event",
            "created": int(self.received_at),
        }


@dataclass(eq=False)
class MeterEvents:
    """All accepted events of an account, in the order of their arrival; see ``StripeEmulator``."""

    behaviour: Behaviour
    accepted: list[MeterEvent] = field(default_factory=list[MeterEvent], init=False)
    _received_at: dict[str, float] = field(default_factory=dict[str, float], init=False)

    def is_remembered(self, identifier: str, *, now: float) -> bool:
        """Return whether an identifier is remembered."""
        self._forget_identifiers(now=now)
        return identifier in self._received_at

    def record(self, event: MeterEvent) -> None:
        """Record an accepted event."""
        self._received_at[event.identifier] = event.received_at
        self.accepted.append(event)

    def _forget_identifiers(self, *, now: float) -> None:
        """Forget old identifiers; they are unique "within a rolling period of at least 24 hours"."""
        while self._received_at:
            oldest = next(iter(self._received_at))
            if now - self._received_at[oldest] < self.behaviour.identifier_memory_s:
                return
            del self._received_at[oldest]


def aggregate_events(events: Sequence[MeterEvent], *, meter: Meter) -> Decimal:
    """Aggregate events by a meter's formula: their sum, their number, or the last of them."""
    if meter.time_window is not None:
        # Pre-aggregated: within each hour or day the event that arrived last overwrites the others.
        span_s = SPANS_S[meter.time_window]
        events = list({event.timestamp // span_s: event for event in events}.values())
    if meter.formula == "last":
        latest = max(events, key=lambda event: event.timestamp, default=None)
        return latest.value if latest is not None else Decimal(0)
    return sum((event.value for event in events), Decimal(0))


class MeterEventSessions:
    """The sessions of an account, by their tokens, which replace the API key."""

    def __init__(self) -> None:
        self._ends: dict[str, tuple[float, bool]] = {}

    def begin(self, token: str, *, until: float, livemode: bool) -> None:
        """Accept a token until an instant, in Unix seconds."""
        self._ends[token] = (until, livemode)

    def authenticate(self, token: str, *, now: float) -> bool:
        """Return whether a token is one of live mode.

        Raises:
            ApiError: 401, for which Stripe's SDK has an error of its own where the session is over.
        """
        ends_s, livemode = self._ends.get(token, (None, False))
        if ends_s is None:
            message = "Invalid authentication token: a meter event stream takes that of a session."
            raise ApiError(message, status=HTTPStatus.UNAUTHORIZED)
        if now >= ends_s:
            raise ApiError(
                "The temporary session token has expired.",
                status=HTTPStatus.UNAUTHORIZED,
                kind="temporary_session_expired",
                code="billing_meter_event_session_expired",
            )
        return livemode

    def end(self) -> None:
        """Expire all tokens before their time."""
        self._ends = {token: (0.0, livemode) for token, (_, livemode) in self._ends.items()}
