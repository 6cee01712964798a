"""An offline Stripe: meter events, prices, subscriptions, invoices, webhooks, test clocks."""

from __future__ import annotations

from stripe_emulator.clock import Clock
from stripe_emulator.emulator import StripeEmulator
from stripe_emulator.faults import Fault
from stripe_emulator.meter_events import MeterEvent
from stripe_emulator.protocol import ApiError, Exchange
from stripe_emulator.webhook_deliveries import Delivery
from stripe_emulator.webhook_events import Event, ThinEvent

__all__ = [
    "ApiError",
    "Clock",
    "Delivery",
    "Event",
    "Exchange",
    "Fault",
    "MeterEvent",
    "StripeEmulator",
    "ThinEvent",
]
