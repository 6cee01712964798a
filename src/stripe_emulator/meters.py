"""Billing meters, by id."""

from __future__ import annotations

from dataclasses import dataclass

from stripe_emulator.protocol import ApiError, JsonObject, shown_fields
from stripe_emulator.registry import ObjectRegistry


@dataclass(slots=True, kw_only=True)
class Meter:
    """A billing meter.

    Attributes:
        formula: ``sum``, ``count`` or ``last``.
        time_window: with ``hour`` or ``day`` only the last event of each counts; None: all do.
        created: Unix seconds, as are ``updated`` and ``deactivated_at``.
        deactivated_at: None while the meter is active.
    """

    id: str
    event_name: str
    display_name: str
    formula: str
    created: int
    updated: int
    livemode: bool = False
    time_window: str | None = None
    customer_key: str = "stripe_customer_id"
    value_key: str = "value"
    deactivated_at: int | None = None

    @property
    def active(self) -> bool:
        """True if events are accepted."""
        return self.deactivated_at is None

    def to_json(self) -> JsonObject:
        """Return the meter as Stripe shows it."""
        return {
            **shown_fields(self, "formula time_window customer_key value_key deactivated_at"),
            "object": "billing.meter",
            "customer_mapping": {"event_payload_key": self.customer_key, "type": "by_id"},
            "default_aggregation": {"formula": self.formula},
            "event_time_window": self.time_window,
            "status": "active" if self.active else "inactive",
            "status_transitions": {"deactivated_at": self.deactivated_at},
            "value_settings": {"event_payload_key": self.value_key},
        }


class Meters(ObjectRegistry[Meter]):
    """All meters of the emulated account, oldest first."""

    def active(self, event_name: str) -> Meter | None:
        """Return the active meter of an event name, or None."""
        return next((meter for meter in self if meter.event_name == event_name and meter.active), None)

    def archived(self, event_name: str) -> Meter | None:
        """Return an inactive meter of an event name, or None."""
        return next((meter for meter in self if meter.event_name == event_name and not meter.active), None)

    def add(self, added: Meter) -> None:
        """Add a meter. Raises ApiError if its event name is in use."""
        self.refuse_taken_name(added.event_name)
        super().add(added)

    def refuse_taken_name(self, event_name: str) -> None:
        """Raise ApiError if an active meter has this event name."""
        if self.active(event_name) is not None:
            raise ApiError(f"An active meter already uses the event name {event_name}.", param="event_name")
