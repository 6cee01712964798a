"""Meter events v1: accepted, refused, cancelled; and their summaries for a customer and a span of time."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from stripe_emulator.call import PAGING_PARAMS, Call
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter, shown_fields
from stripe_emulator.webhook_events import ThinEvent, meter_error_report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stripe_emulator.behaviour import Behaviour
    from stripe_emulator.customers import Customers
    from stripe_emulator.meters import Meter, Meters

CANCELLED_S_MAX: Final = 86_400
PAST_S_MAX: Final = 35 * 86_400
FUTURE_S_MAX: Final = 5 * 60
DIGITS_MAX: Final = 15
NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")


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

    customers: Customers
    meters: Meters
    behaviour: Behaviour
    report: Callable[[ThinEvent], object]
    accepted: list[MeterEvent] = field(default_factory=list[MeterEvent], init=False)
    _received_at: dict[str, float] = field(default_factory=dict[str, float], init=False)

    def create(self, call: Call) -> JsonObject:
        """``POST /v1/billing/meter_events``."""
        params = call.params
        params.only("event_name payload identifier timestamp")
        event_name = params.required("event_name", length_max=100)
        payload = params.texts("payload")
        if not payload:
            raise missing_parameter("payload")
        identifier = params.nonempty_text("identifier", length_max=100) or str(uuid.uuid4())
        timestamp = params.integer("timestamp")
        meter = self.meters.active(event_name)
        if meter is None:
            message = f"Invalid event_name: {event_name}. No active meter found with this event name."
            raise ApiError(message, param="event_name", stored=True)
        customer = _read_payload_value(payload, key=meter.customer_key)
        event = MeterEvent(
            identifier=identifier,
            event_name=event_name,
            meter=meter.id,
            customer=customer,
            value=_read_value(payload, meter=meter),
            timestamp=int(self.customers.time_of_customer(customer, now=call.now))
            if timestamp is None
            else timestamp,
            received_at=call.now,
            livemode=call.livemode,
            payload=payload,
        )
        by_key = self.behaviour.reports_name == "idempotency_key"
        name = (call.idempotency_key or "") if by_key else identifier
        return self._accept_event(event, lose=call.lose, name=name).to_json()

    def adjust(self, call: Call) -> JsonObject:
        """``POST /v1/billing/meter_event_adjustments``: cancels an event that was received within 24 hours.

        An invoice that is finalized keeps it (https://docs.stripe.com/billing/subscriptions/usage-based/meters/configure).
        """
        params = call.params
        params.only("event_name type cancel")
        event_name = params.required("event_name", length_max=100)
        params.required("type")
        params.choice("type", ("cancel",))
        cancel = params.hash("cancel")
        if cancel is None:
            raise missing_parameter("cancel")
        cancel.only("identifier")
        identifier = cancel.required("identifier", length_max=100)
        found = [
            place
            for place, event in enumerate(self.accepted)
            if (event.event_name, event.identifier) == (event_name, identifier)
            and call.now - event.received_at <= CANCELLED_S_MAX
        ]
        if not found:
            raise ApiError(
                f"No event of {event_name} with identifier {identifier} was received within 24 hours.",
                param=cancel.path("identifier"),
            )
        self.accepted[found[-1]] = replace(self.accepted[found[-1]], counted=False)
        return {
            "object": "billing.meter_event_adjustment",
            "cancel": {"identifier": identifier},
            "event_name": event_name,
            "livemode": call.livemode,
            "status": "pending",
            "type": "cancel",
        }

    def _accept_event(self, event: MeterEvent, *, lose: bool, name: str) -> MeterEvent:
        now = event.received_at
        _refuse_timestamp(event.timestamp, now=self.customers.time_of_customer(event.customer, now=now))
        known = self.customers.exists(event.customer)
        if not known and self.behaviour.refuse_unknown_customers:
            raise ApiError(
                f"No such customer: '{event.customer}'",
                code="resource_missing",
                param="payload[stripe_customer_id]",
                stored=True,
            )
        if self.is_remembered(event.identifier, now=now):
            raise ApiError(f"An event already exists with identifier {event.identifier}.", stored=True)
        if not known:
            self.report(
                meter_error_report(
                    event.meter, code="meter_event_customer_not_found", identifiers=[name], count=1, now=now
                )
            )
        if lose or not known:
            event = replace(event, counted=False)
        self.record(event)
        return event

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


def _read_payload_value(payload: Mapping[str, str], *, key: str) -> str:
    value = payload.get(key)
    if not value:
        raise missing_parameter(f"payload[{key}]")
    return value


def _read_value(payload: Mapping[str, str], *, meter: Meter) -> Decimal:
    counts = meter.formula == "count"
    if counts and meter.value_key not in payload:
        return Decimal(1)
    value = _read_payload_value(payload, key=meter.value_key)
    param = f"payload[{meter.value_key}]"
    if not NUMBER.fullmatch(value):
        raise ApiError(f"The value in the event payload is not a number. Received {value}.", param=param)
    digits = value.lstrip("-").replace(".", "").lstrip("0")
    if len(digits) > DIGITS_MAX:
        raise ApiError(
            f"The value in the event payload can have at most {DIGITS_MAX} digits. Received {value}.",
            param=param,
            stored=True,
        )
    return Decimal(1) if counts else Decimal(value)


def _refuse_timestamp(timestamp: int, *, now: float) -> None:
    earliest, latest = int(now) - PAST_S_MAX, int(now) + FUTURE_S_MAX
    if earliest <= timestamp <= latest:
        return
    wrong = (
        f"more than 35 days in past. Expected a timestamp greater than or equal to {earliest}."
        if timestamp < earliest
        else f"more than 5 minutes in the future. Expected a timestamp less than or equal to {latest}."
    )
    raise ApiError(f"The event timestamp cannot be {wrong}", param="timestamp", stored=True)


SPANS_S: Final = {"hour": 3_600, "day": 86_400}
MINUTE_S: Final = 60


def list_summaries(events: MeterEvents, call: Call) -> JsonObject:
    """``GET /v1/billing/meters/{id}/event_summaries``, latest window first.

    Without ``value_grouping_window`` there is exactly one summary. Events that arrived less than
    ``summary_lag_s`` ago are not in it yet.
    """
    meter, params = events.meters.find(call.object_id), call.params
    params.only("customer start_time end_time value_grouping_window", *PAGING_PARAMS)
    customer = params.required("customer")
    grouping = params.choice("value_grouping_window", tuple(SPANS_S))
    start, end = (
        _read_bound(call, "start_time", grouping=grouping),
        _read_bound(call, "end_time", grouping=grouping),
    )
    if start >= end:
        raise ApiError(f"end_time must be after start_time ({start}). Received {end}.", param="end_time")
    visible = [
        event
        for event in events.accepted
        if event.counted
        and event.meter == meter.id
        and event.customer == customer
        and start <= event.timestamp < end
        and event.received_at + events.behaviour.summary_lag_s <= call.now
    ]
    span = SPANS_S[grouping] if grouping else end - start
    summaries = [
        _summary_to_json(visible, meter=meter, customer=customer, start=at, end=at + span)
        for at in reversed(range(start, end, span))
    ]
    return call.page(summaries)


def _read_bound(call: Call, name: str, *, grouping: str | None) -> int:
    call.params.required(name)
    moment = call.params.integer(name) or 0
    unit_s = SPANS_S[grouping] if grouping else MINUTE_S
    if moment % unit_s:
        unit = {"hour": "an hour", "day": "a day, 00:00 UTC"}.get(grouping or "", "a minute")
        raise ApiError(f"{name} must be aligned with the start of {unit}. Received {moment}.", param=name)
    return moment


def _summary_to_json(
    events: Sequence[MeterEvent], *, meter: Meter, customer: str, start: int, end: int
) -> JsonObject:
    """Return the summary of a customer's events with ``start`` ≤ timestamp < ``end``; a float at Stripe."""
    inside = [event for event in events if start <= event.timestamp < end]
    name = f"{meter.id}:{customer}:{start}:{end}"
    return {
        "id": f"mtrusg_{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}",
        "object": "billing.meter_event_summary",
        "aggregated_value": float(aggregate_events(inside, meter=meter)),
        "end_time": end,
        "livemode": meter.livemode,
        "meter": meter.id,
        "start_time": start,
    }


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
