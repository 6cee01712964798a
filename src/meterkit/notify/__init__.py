"""What happens to customers, told to handlers that the app registers."""

from __future__ import annotations

from meterkit.notify.event_dispatcher import EventDispatcher, Handlers
from meterkit.notify.events import (
    AccessChanged,
    CreditsLow,
    DunningReminder,
    PaymentFailed,
    PaymentSucceeded,
    PeriodSummary,
    StorageOver,
    SubscriptionChanged,
    TrialEnding,
    UsageSpike,
    UsageThreshold,
)

__all__ = [
    "AccessChanged",
    "CreditsLow",
    "DunningReminder",
    "EventDispatcher",
    "Handlers",
    "PaymentFailed",
    "PaymentSucceeded",
    "PeriodSummary",
    "StorageOver",
    "SubscriptionChanged",
    "TrialEnding",
    "UsageSpike",
    "UsageThreshold",
]
