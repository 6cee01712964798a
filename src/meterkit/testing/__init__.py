"""Helpers for tests of an app that uses meterkit: a Stripe emulator, a check of its bill, a clock to set."""

from __future__ import annotations

from meterkit.testing.bill import BillLine, check_bill
from meterkit.testing.emulator import Delivery, Event, Fault, MeterEvent, StripeEmulator, ThinEvent
from meterkit.testing.plans import override
from stripe_emulator import Clock

__all__ = [
    "BillLine",
    "Clock",
    "Delivery",
    "Event",
    "Fault",
    "MeterEvent",
    "StripeEmulator",
    "ThinEvent",
    "check_bill",
    "override",
]


def __getattr__(name: str) -> object:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
