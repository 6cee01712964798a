"""Usage metering and limit enforcement for ASGI services, billed through Stripe."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meterkit.asgi import identify
    from meterkit.asgi.context import current, record
    from meterkit.asgi.exchange import Current
    from meterkit.asgi.middleware import MeterMiddleware
    from meterkit.asgi.reporting import record_usage, tap
    from meterkit.asgi.usage import CallUsage, usage_of
    from meterkit.errors import (
        CustomerError,
        MeterkitError,
        PlansError,
        Problem,
        QuantityError,
        SettingsError,
        StoreError,
        UnknownMeterError,
    )
    from meterkit.kit import MeterKit
    from meterkit.store.decision import Decision

    __version__: str

__all__ = [
    "CallUsage",
    "Current",
    "CustomerError",
    "Decision",
    "MeterKit",
    "MeterMiddleware",
    "MeterkitError",
    "PlansError",
    "Problem",
    "QuantityError",
    "SettingsError",
    "StoreError",
    "UnknownMeterError",
    "current",
    "identify",
    "record",
    "record_usage",
    "tap",
    "usage_of",
]

_HOMES = {
    "CallUsage": "meterkit.asgi.usage",
    "Current": "meterkit.asgi.exchange",
    "Decision": "meterkit.store.decision",
    "MeterKit": "meterkit.kit",
    "MeterMiddleware": "meterkit.asgi.middleware",
    "current": "meterkit.asgi.context",
    "record": "meterkit.asgi.context",
    "record_usage": "meterkit.asgi.reporting",
    "tap": "meterkit.asgi.reporting",
    "usage_of": "meterkit.asgi.usage",
}


def __getattr__(name: str) -> Any:
    # Each name is imported when it is first used: `import meterkit` itself loads nothing else.
    if name == "identify":
        found: Any = import_module("meterkit.asgi.identify")
    elif name == "__version__":
        found = import_module("importlib.metadata").version("meterkit")
    elif name in __all__:
        found = getattr(import_module(_HOMES.get(name, "meterkit.errors")), name)
    else:
        raise AttributeError(f"module 'meterkit' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
