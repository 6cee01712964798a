"""Billing meters: create, retrieve, list, update, deactivate, reactivate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from stripe_emulator.call import PAGING_PARAMS, Call
from stripe_emulator.protocol import ApiError, JsonObject, new_id, shown_fields
from stripe_emulator.registry import ObjectRegistry

FORMULAS: Final = ("count", "last", "sum")
WINDOWS: Final = ("day", "hour")


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
        self._refuse_taken(added.event_name)
        super().add(added)

    def create(self, call: Call) -> JsonObject:
        """``POST /v1/billing/meters``."""
        params, now = call.params, int(call.now)
        params.only(
            "display_name event_name default_aggregation customer_mapping value_settings event_time_window"
        )
        params.required("default_aggregation[formula]")
        meter = Meter(
            id=new_id("mtr_live" if call.livemode else "mtr_test", length=31),
            event_name=params.required("event_name", length_max=100),
            display_name=params.required("display_name", length_max=250),
            formula=params.choice("default_aggregation[formula]", FORMULAS) or "",
            time_window=params.choice("event_time_window", WINDOWS),
            created=now,
            updated=now,
            livemode=call.livemode,
        )
        if "customer_mapping" in params:
            params.choice("customer_mapping[type]", ("by_id",))
            meter.customer_key = params.required("customer_mapping[event_payload_key]", length_max=100)
        if "value_settings" in params:
            meter.value_key = params.required("value_settings[event_payload_key]", length_max=100)
        self.add(meter)
        return meter.to_json()

    def update(self, call: Call) -> JsonObject:
        """``POST /v1/billing/meters/{id}``; only ``display_name`` can change."""
        call.params.only("display_name")
        meter = self.find(call.object_id)
        if "display_name" in call.params:
            meter.display_name = call.params.required("display_name", length_max=250)
            meter.updated = int(call.now)
        return meter.to_json()

    def switch(self, call: Call) -> JsonObject:
        """``POST /v1/billing/meters/{id}/reactivate`` or ``/deactivate``."""
        call.params.only()
        meter, active = self.find(call.object_id), call.path.endswith("/reactivate")
        if meter.active == active:
            raise ApiError(f"This meter is already {'active' if active else 'inactive'}.")
        if active:
            self._refuse_taken(meter.event_name)
        meter.updated = int(call.now)
        meter.deactivated_at = None if active else meter.updated
        return meter.to_json()

    def list(self, call: Call) -> JsonObject:
        """``GET /v1/billing/meters``, newest first."""
        call.params.only("status", *PAGING_PARAMS)
        status = call.params.choice("status", ("active", "inactive"))
        found = [
            meter.to_json()
            for meter in reversed(self)
            if status is None or meter.active == (status == "active")
        ]
        return call.page(found)

    def _refuse_taken(self, event_name: str) -> None:
        if self.active(event_name) is not None:
            raise ApiError(f"An active meter already uses the event name {event_name}.", param="event_name")
