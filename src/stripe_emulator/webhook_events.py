"""Events of the account, each with the object as it was then; thin events about refused meter events."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias, cast

from stripe_emulator.call import API_VERSION, Call
from stripe_emulator.protocol import JsonObject, new_id
from stripe_emulator.registry import ObjectRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.call import Call

EVENT_MEMORY_S: Final = 30 * 86_400


@dataclass(slots=True, kw_only=True)
class Event:
    """An event of the account.

    Attributes:
        created: Unix seconds.
        object: what it happened to, as it was right after.
        previous: what has changed of it, as it was before; None: it is no update.
        request_id: of the API request that did it; None: it came about by itself.
        undelivered: ids of the webhook endpoints that have not taken it yet.
        entered_at: when it was entered by the emulator's own clock; None: when it was created.
    """

    id: str
    type: str
    created: int
    object: JsonObject
    previous: JsonObject | None = None
    livemode: bool = False
    request_id: str | None = None
    idempotency_key: str | None = None
    undelivered: set[str] = field(default_factory=set[str])
    entered_at: float | None = None
    thin: ClassVar[bool] = False

    def is_kept(self, *, now: float) -> bool:
        """Return whether it can still be retrieved."""
        return now - (self.entered_at or self.created) < EVENT_MEMORY_S

    def notification(self) -> JsonObject:
        """Return the webhook payload: the whole event."""
        return self.to_json()

    def to_json(self) -> JsonObject:
        """Return the event as Stripe shows it (https://docs.stripe.com/api/events/object)."""
        data: JsonObject = {"object": self.object}
        if self.previous is not None:
            data["previous_attributes"] = self.previous
        return {
            "id": self.id,
            "object": "event",
            "api_version": API_VERSION,
            "created": self.created,
            "data": data,
            "livemode": self.livemode,
            "pending_webhooks": len(self.undelivered),
            "request": {"id": self.request_id, "idempotency_key": self.idempotency_key},
            "type": self.type,
        }


class Events(ObjectRegistry[Event]):
    """All events of the emulated account, oldest first, including those past retrieval."""

    def record(
        self, event_type: str, obj: JsonObject, *, previous: JsonObject | None, at_s: float, call: Call | None
    ) -> Event | None:
        """Record an event. Returns None for an update without changes."""
        changed = None if previous is None else changed_fields(previous, obj)
        if changed == {}:
            return None
        event = Event(
            id=new_id("evt_1", length=23),
            type=event_type,
            created=int(at_s),
            object=json.loads(json.dumps(obj)),  # A copy, in a tenth of the time of deepcopy.
            previous=changed,
            livemode=obj.get("livemode") is True,
            request_id=None if call is None else call.request_id or None,
            idempotency_key=None if call is None else call.idempotency_key,
        )
        self.add(event)
        return event


def matches_type(event_type: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern matches the type: itself, ``*``, or a group such as ``invoice.*``."""
    return any(
        event_type.startswith(pattern[:-1]) if pattern.endswith("*") else event_type == pattern
        for pattern in patterns
    )


def changed_fields(before: JsonObject, after: JsonObject) -> JsonObject:
    """Return the previous values of changed fields: ``previous_attributes``.

    Of an object within only what differs, of a list all of it; what was not there before is null.
    """
    differing: JsonObject = {}
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            differing[name] = changed_fields(cast("JsonObject", old), cast("JsonObject", new))
        else:
            differing[name] = deepcopy(before.get(name))
    return differing


MeterErrorCode = Literal[
    "archived_meter",
    "meter_event_customer_not_found",
    "meter_event_dimension_count_too_high",
    "meter_event_invalid_value",
    "meter_event_no_customer_defined",
    "meter_event_value_too_many_digits",
    "missing_dimension_payload_keys",
    "no_meter",
    "timestamp_in_future",
    "timestamp_too_far_in_past",
]
# As in the example of https://docs.stripe.com/api/v2/core/events/object.
REPORT_WINDOW_S: Final = 10
SAMPLES_MAX: Final = 10


@dataclass(slots=True, kw_only=True)
class ThinEvent:
    """A thin event, whose notification has no data.

    Attributes:
        created: Unix seconds.
        related: id of the meter; None: there is none.
        data: what fetching the event tells besides.
        undelivered: ids of the webhook endpoints that have not taken it yet.
    """

    id: str
    type: str
    created: float
    related: str | None
    data: JsonObject
    livemode: bool = False
    undelivered: set[str] = field(default_factory=set[str])
    thin: ClassVar[bool] = True

    def notification(self) -> JsonObject:
        """Return the webhook payload."""
        url = f"/v1/billing/meters/{self.related}"
        meter = {"id": self.related, "type": "billing.meter", "url": url}
        return {
            "id": self.id,
            "object": "v2.core.event",
            "context": None,
            "created": instant_text(self.created),
            "livemode": self.livemode,
            "reason": None,
            **({"related_object": meter} if self.related else {}),
            "type": self.type,
        }


AnyEvent: TypeAlias = Event | ThinEvent


def meter_error_report(
    meter: str | None, *, code: MeterErrorCode, identifiers: Sequence[str], count: int, now: float
) -> ThinEvent:
    """Return the report on meter events that were accepted and do not count.

    ``v1.billing.meter.error_report_triggered``, or ``no_meter_found`` where there is no meter. Only samples
    of the identifiers are in it (https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage).
    """
    kind = "no_meter_found" if meter is None else "error_report_triggered"
    samples = [
        {"error_message": code, "request": {"identifier": identifier}}
        for identifier in identifiers[:SAMPLES_MAX]
    ]
    began = now // REPORT_WINDOW_S * REPORT_WINDOW_S
    found = "is 1 invalid event" if count == 1 else f"are {count} invalid events"
    return ThinEvent(
        id=new_id("evt_test", length=49),
        type=f"v1.billing.meter.{kind}",
        created=now,
        related=meter,
        data={
            "developer_message_summary": f"There {found}",
            "reason": {
                "error_count": count,
                "error_types": [{"code": code, "error_count": count, "sample_errors": samples}],
            },
            "validation_end": instant_text(began + REPORT_WINDOW_S),
            "validation_start": instant_text(began),
        },
    )


def instant_text(at_s: float) -> str:
    """Return an instant as API v2 writes it."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
