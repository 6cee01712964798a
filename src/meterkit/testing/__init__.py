"""What tests of an app that uses meterkit need: a Stripe emulator, a check of its bill, a clock to set."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meterkit.testing.bill import BillLine, check_bill
    from meterkit.testing.clock import Clock
    from meterkit.testing.emulator import Fault, MeterEvent, StripeEmulator
    from meterkit.testing.plans import override

__all__ = ["BillLine", "Clock", "Fault", "MeterEvent", "StripeEmulator", "check_bill", "override"]

HOMES: Final = {
    "BillLine": "meterkit.testing.bill",
    "Clock": "meterkit.testing.clock",
    "Fault": "meterkit.testing.emulator",
    "MeterEvent": "meterkit.testing.emulator",
    "StripeEmulator": "meterkit.testing.emulator",
    "check_bill": "meterkit.testing.bill",
    "override": "meterkit.testing.plans",
}


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
