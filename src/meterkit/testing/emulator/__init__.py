"""A Stripe emulator: customers, billing meters, meter events and their summaries."""

from __future__ import annotations

from meterkit.testing.emulator.emulator import StripeEmulator
from meterkit.testing.emulator.faults import Fault
from meterkit.testing.emulator.meter_events import MeterEvent
from meterkit.testing.emulator.replies import Exchange

__all__ = ["Exchange", "Fault", "MeterEvent", "StripeEmulator"]
