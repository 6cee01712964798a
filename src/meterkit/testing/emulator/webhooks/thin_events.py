"""Thin events: the reports of meter events that were taken and turned out to be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from meterkit.testing.emulator.replies import JsonObject, new_id, no_such
from meterkit.testing.emulator.webhooks.events import MEMORY_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.testing.emulator.call import Call

__all__ = ["MeterErrorCode", "ThinEvent", "ThinEvents", "meter_errors"]

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
WINDOW_S: Final = 10
SAMPLES_MAX: Final = 10


@dataclass(slots=True, kw_only=True)
class ThinEvent:
    """An event whose notification says no more than that something has happened.

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

    @property
    def thin(self) -> bool:
        """Yes."""
        return True

    def notification(self) -> JsonObject:
        """Return what webhooks are sent."""
        url = f"/v1/billing/meters/{self.related}"
        meter = {"id": self.related, "type": "billing.meter", "url": url}
        return {
            "id": self.id,
            "object": "v2.core.event",
            "context": None,
            "created": _text(self.created),
            "livemode": self.livemode,
            "reason": None,
            **({"related_object": meter} if self.related else {}),
            "type": self.type,
        }


class ThinEvents:
    """All thin events of the emulated account; they can be fetched for 30 days."""

    def __init__(self) -> None:
        self._by_id: dict[str, ThinEvent] = {}

    @property
    def all(self) -> tuple[ThinEvent, ...]:
        """Every thin event, oldest first."""
        return tuple(self._by_id.values())

    def enter(self, event: ThinEvent) -> None:
        """Enter what has happened."""
        self._by_id[event.id] = event

    def retrieve(self, call: Call) -> JsonObject:
        """``GET /v2/core/events/{id}``."""
        event = self._by_id.get(call.object_id)
        if event is None or call.now - event.created >= MEMORY_S:
            raise no_such("event", call.object_id)
        return {**event.notification(), "data": event.data}


def meter_errors(
    meter: str | None, *, code: MeterErrorCode, identifiers: Sequence[str], count: int, now: float
) -> ThinEvent:
    """Return the report on meter events that were answered with 200 and yet do not count.

    ``v1.billing.meter.error_report_triggered``, or ``no_meter_found`` where there is no meter. Only samples
    of the identifiers are in it (https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage).
    """
    kind = "no_meter_found" if meter is None else "error_report_triggered"
    samples = [
        {"error_message": code, "request": {"identifier": identifier}}
        for identifier in identifiers[:SAMPLES_MAX]
    ]
    began = now // WINDOW_S * WINDOW_S
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
            "validation_end": _text(began + WINDOW_S),
            "validation_start": _text(began),
        },
    )


def _text(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
