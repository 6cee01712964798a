"""What tests of an app that uses meterkit need: a Stripe emulator, a clock to set, another plan."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meterkit.testing.clock import Clock
    from meterkit.testing.emulator import Fault, MeterEvent, StripeEmulator
    from meterkit.testing.plans import override

__all__ = ["Clock", "Fault", "MeterEvent", "StripeEmulator", "override"]

HOMES: Final = {
    "Clock": "meterkit.testing.clock",
    "Fault": "meterkit.testing.emulator",
    "MeterEvent": "meterkit.testing.emulator",
    "StripeEmulator": "meterkit.testing.emulator",
    "override": "meterkit.testing.plans",
}


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
