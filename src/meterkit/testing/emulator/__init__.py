"""A Stripe emulator: meters and their events, prices, subscriptions, invoices, webhooks."""

from __future__ import annotations

from meterkit.testing.emulator.emulator import StripeEmulator
from meterkit.testing.emulator.faults import Fault
from meterkit.testing.emulator.metering.meter_events import MeterEvent
from meterkit.testing.emulator.protocol import Exchange
from meterkit.testing.emulator.webhooks.deliveries import Delivery
from meterkit.testing.emulator.webhooks.events import Event, ThinEvent

__all__ = ["Delivery", "Event", "Exchange", "Fault", "MeterEvent", "StripeEmulator", "ThinEvent"]
