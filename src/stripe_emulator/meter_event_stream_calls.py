"""API calls about meter event streams of API v2: batches are accepted whole and checked afterwards."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

from stripe_emulator.call import METER_EVENT_STREAM
from stripe_emulator.call_table import CallTable
from stripe_emulator.meter_events import DIGITS_MAX, FUTURE_S_MAX, NUMBER, PAST_S_MAX, MeterEvent
from stripe_emulator.protocol import ApiError, JsonObject, new_id
from stripe_emulator.webhook_events import MeterErrorCode, instant_text, meter_error_report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stripe_emulator.account import Account
    from stripe_emulator.call import Call

CALLS: Final = CallTable()
# https://docs.stripe.com/api/v2/billing/meter-event-stream/session/create
SESSION_S: Final = 15 * 60


@CALLS("POST /v2/billing/meter_event_session")
def _create_session(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/v2/billing/meter-event-stream/session/create: for 15 minutes."""
    for name in call.body:
        raise ApiError(f"Unknown field: {name}.", code="invalid_fields")
    token = new_id("mes_token", length=40)
    account.meter_event_sessions.begin(token, until=call.now + SESSION_S, livemode=call.livemode)
    return {
        "id": new_id("mes"),
        "object": "v2.billing.meter_event_session",
        "authentication_token": token,
        "created": instant_text(call.now),
        "expires_at": instant_text(call.now + SESSION_S),
        "livemode": call.livemode,
    }


# https://docs.stripe.com/api/v2/billing/meter-event-stream/create
BATCH_MAX: Final = 100
STREAM_FIELDS: Final = {"event_name", "identifier", "payload", "timestamp"}
TEXT_MAX: Final = 100


@CALLS(f"POST {METER_EVENT_STREAM}")
def _stream_events(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/v2/billing/meter-event-stream/create: answered with an empty object.

    An event of the wrong form refuses the whole batch; all other checks come afterwards, and thin
    events report what was wrong (https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api).
    An identifier that is remembered already is passed over without a word: there is no code for it.
    """
    wrong: defaultdict[tuple[str | None, MeterErrorCode], list[str]] = defaultdict(list)
    for streamed in list(_read_batch(call.body)):
        _accept_streamed(account, call, streamed, wrong)
    for (meter, code), identifiers in wrong.items():
        if account.behaviour.reports_name == "idempotency_key":
            identifiers = [call.idempotency_key or ""] * len(identifiers)  # noqa: PLW2901 - the same events
        report = meter_error_report(
            meter, code=code, identifiers=identifiers, count=len(identifiers), now=call.now
        )
        account.report_thin(report)
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedEvent:
    """An event of a batch; ``timestamp`` is in Unix seconds."""

    event_name: str
    identifier: str
    payload: dict[str, str]
    timestamp: int | None


def _accept_streamed(
    account: Account,
    call: Call,
    streamed: StreamedEvent,
    wrong: dict[tuple[str | None, MeterErrorCode], list[str]],
) -> None:
    meter = account.meters.active(streamed.event_name)
    if meter is None:
        archived = account.meters.archived(streamed.event_name)
        found = (None, "no_meter") if archived is None else (archived.id, "archived_meter")
        wrong[cast("tuple[str | None, MeterErrorCode]", found)].append(streamed.identifier)
        return
    value = streamed.payload.get(meter.value_key, "1" if meter.formula == "count" else "")
    customer = streamed.payload.get(meter.customer_key, "")
    now = account.customers.time_of_customer(customer, now=call.now)
    timestamp = int(now) if streamed.timestamp is None else streamed.timestamp
    code = _find_problem(account, customer=customer, value=value, timestamp=timestamp, now=now)
    if code is not None:
        wrong[meter.id, code].append(streamed.identifier)
    elif not account.events.is_remembered(streamed.identifier, now=call.now):
        event = MeterEvent(
            identifier=streamed.identifier,
            event_name=streamed.event_name,
            meter=meter.id,
            customer=customer,
            value=Decimal(1) if meter.formula == "count" else Decimal(value),
            timestamp=timestamp,
            received_at=call.now,
            livemode=call.livemode,
            payload=streamed.payload,
            counted=not call.lose,
        )
        account.events.record(event)


def _find_problem(
    account: Account, *, customer: str, value: str, timestamp: int, now: float
) -> MeterErrorCode | None:
    digits = value.lstrip("-").replace(".", "").lstrip("0")
    first_match: list[tuple[bool, MeterErrorCode | None]] = [
        (not customer, "meter_event_no_customer_defined"),
        (not account.customers.exists(customer), "meter_event_customer_not_found"),
        # "The value must be a positive integer", says the reference of API v2: negative ones are for v1.
        (not NUMBER.fullmatch(value) or value.startswith("-"), "meter_event_invalid_value"),
        (len(digits) > DIGITS_MAX, "meter_event_value_too_many_digits"),
        (timestamp < int(now) - PAST_S_MAX, "timestamp_too_far_in_past"),
        (timestamp > int(now) + FUTURE_S_MAX, "timestamp_in_future"),
        (True, None),
    ]
    return next(code for holds, code in first_match if holds)


def _read_batch(body: JsonObject) -> Iterator[StreamedEvent]:
    """Yield the events of a batch. Raises ApiError if one does not match Stripe's schema."""
    for name in body.keys() - {"events"}:
        raise _invalid_fields(f"Unknown field: {name}.")
    events = body.get("events")
    if not isinstance(events, list) or not events:
        raise _invalid_fields("events must be an array of at least one event.")
    given = cast("list[object]", events)
    if len(given) > BATCH_MAX:
        raise _invalid_fields(f"events can have at most {BATCH_MAX} entries; received {len(given)}.")
    for place, event in enumerate(given):
        yield _read_event(event, f"events[{place}]")


def _read_event(event: object, at: str) -> StreamedEvent:
    fields = cast("dict[str, Any]", event) if isinstance(event, dict) else {}
    for name in fields.keys() - STREAM_FIELDS:
        raise _invalid_fields(f"Unknown field: {at}.{name}.")
    payload: object = fields.get("payload")
    if not isinstance(payload, dict):
        raise _invalid_fields(f"{at}.payload must be a map.")
    for name, value in cast("dict[str, object]", payload).items():
        if not isinstance(value, str):
            raise _invalid_fields(f"{at}.payload.{name} must be a string.")
    identifier = fields["identifier"] if "identifier" in fields else str(uuid4())
    timestamp = fields.get("timestamp")
    for name, text in (("event_name", fields.get("event_name")), ("identifier", identifier)):
        if not isinstance(text, str) or not 1 <= len(text) <= TEXT_MAX:
            raise _invalid_fields(f"{at}.{name} must be a string of 1 to {TEXT_MAX} characters.")
    return StreamedEvent(
        event_name=fields["event_name"],
        identifier=identifier,
        payload=cast("dict[str, str]", payload),
        timestamp=None if timestamp is None else _read_instant(timestamp, f"{at}.timestamp"),
    )


def _read_instant(text: object, at: str) -> int:
    """Return an RFC 3339 timestamp in Unix seconds."""
    try:
        instant = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise _invalid_fields(f"{at} must be an RFC 3339 timestamp.")
    return int(instant.timestamp())


def _invalid_fields(message: str) -> ApiError:
    return ApiError(message, code="invalid_fields")
