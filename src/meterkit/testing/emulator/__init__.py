"""A Stripe emulator: meters and their events, prices, subscriptions, invoices, webhooks."""

from __future__ import annotations

from meterkit.testing.emulator.deliveries import Delivery
from meterkit.testing.emulator.emulator import StripeEmulator
from meterkit.testing.emulator.events import Event
from meterkit.testing.emulator.faults import Fault
from meterkit.testing.emulator.meter_events import MeterEvent
from meterkit.testing.emulator.replies import Exchange
from meterkit.testing.emulator.thin_events import ThinEvent

__all__ = ["Delivery", "Event", "Exchange", "Fault", "MeterEvent", "StripeEmulator", "ThinEvent"]
