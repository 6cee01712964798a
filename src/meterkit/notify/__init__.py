"""What happens to customers, told to handlers that the app registers."""

from __future__ import annotations

from meterkit.notify.event_dispatcher import EventDispatcher, Handlers
from meterkit.notify.events import CreditsLow, PeriodSummary, StorageOver, UsageSpike, UsageThreshold
from meterkit.notify.subscription_event_types import (
    AccessChanged,
    DunningReminder,
    PaymentFailed,
    PaymentSucceeded,
    SubscriptionChanged,
    TrialEnding,
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
