"""API calls about meter events of API v1: accept, refuse, cancel."""

from __future__ import annotations

import uuid
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from stripe_emulator.call import METER_EVENTS
from stripe_emulator.call_table import CallTable
from stripe_emulator.meter_events import DIGITS_MAX, FUTURE_S_MAX, NUMBER, PAST_S_MAX, MeterEvent
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter
from stripe_emulator.webhook_events import meter_error_report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stripe_emulator.account import Account
    from stripe_emulator.call import Call
    from stripe_emulator.meters import Meter

CALLS: Final = CallTable()
CANCELLED_S_MAX: Final = 86_400


@CALLS(f"POST {METER_EVENTS}", "event_name payload identifier timestamp", expandable=())
def _create_event(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/billing/meter-event/create."""
    params = call.params
    event_name = params.required("event_name", length_max=100)
    payload = params.texts("payload")
    if not payload:
        raise missing_parameter("payload")
    identifier = params.nonempty_text("identifier", length_max=100) or str(uuid.uuid4())
    timestamp = params.integer("timestamp")
    meter = account.meters.active(event_name)
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
        timestamp=int(account.customers.time_of_customer(customer, now=call.now))
        if timestamp is None
        else timestamp,
        received_at=call.now,
        livemode=call.livemode,
        payload=payload,
    )
    by_key = account.behaviour.reports_name == "idempotency_key"
    name = (call.idempotency_key or "") if by_key else identifier
    return _accept_event(account, event, lose=call.lose, name=name).to_json()


@CALLS("POST /v1/billing/meter_event_adjustments", "event_name type cancel", expandable=())
def _cancel_event(account: Account, call: Call) -> JsonObject:
    """Cancel an event that was received within 24 hours; a finalized invoice keeps it.

    https://docs.stripe.com/billing/subscriptions/usage-based/meters/configure
    """
    params, accepted = call.params, account.events.accepted
    event_name = params.required("event_name", length_max=100)
    params.required_choice("type", ("cancel",))
    cancel = params.hash("cancel")
    if cancel is None:
        raise missing_parameter("cancel")
    cancel.only("identifier")
    identifier = cancel.required("identifier", length_max=100)
    found = [
        place
        for place, event in enumerate(accepted)
        if (event.event_name, event.identifier) == (event_name, identifier)
        and call.now - event.received_at <= CANCELLED_S_MAX
    ]
    if not found:
        raise ApiError(
            f"No event of {event_name} with identifier {identifier} was received within 24 hours.",
            param=cancel.path("identifier"),
        )
    accepted[found[-1]] = replace(accepted[found[-1]], counted=False)
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": event_name,
        "livemode": call.livemode,
        "status": "pending",
        "type": "cancel",
    }


def _accept_event(account: Account, event: MeterEvent, *, lose: bool, name: str) -> MeterEvent:
    now = event.received_at
    _refuse_timestamp(event.timestamp, now=account.customers.time_of_customer(event.customer, now=now))
    known = account.customers.exists(event.customer)
    if not known and account.behaviour.refuse_unknown_customers:
        raise ApiError(
            f"No such customer: '{event.customer}'",
            code="resource_missing",
            param="payload[stripe_customer_id]",
            stored=True,
        )
    if account.events.is_remembered(event.identifier, now=now):
        raise ApiError(f"An event already exists with identifier {event.identifier}.", stored=True)
    if not known:
        account.report_thin(
            meter_error_report(
                event.meter, code="meter_event_customer_not_found", identifiers=[name], count=1, now=now
            )
        )
    if lose or not known:
        event = replace(event, counted=False)
    account.events.record(event)
    return event


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
