"""Usage metering and limit enforcement for ASGI services, billed through Stripe."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meterkit.asgi import identify
    from meterkit.asgi.admitted import Current
    from meterkit.asgi.context import allows, current, record, record_usage, tap
    from meterkit.asgi.gauges import Gauges
    from meterkit.asgi.middleware import MeterMiddleware
    from meterkit.catalog import Catalog
    from meterkit.customers.corrections import Corrected
    from meterkit.customers.customers import Customer, Customers
    from meterkit.customers.deletion import Deleted
    from meterkit.customers.drifts import Drift
    from meterkit.customers.grants import Grant, Grants, LedgerEntry
    from meterkit.customers.history import HistoryEntry
    from meterkit.decisions.decision import Decision, GaugeLevel
    from meterkit.delivery.flusher import Flusher
    from meterkit.delivery.reconciling import Reconciled
    from meterkit.delivery.report import FlushReport, LateUsage, Unsealed
    from meterkit.errors import (
        CustomerError,
        InvoiceOpenError,
        MeterkitError,
        NoSubscriptionError,
        PaymentAuthenticationError,
        PaymentMethodMissingError,
        PlansError,
        Problem,
        QuantityError,
        SeatsInUseError,
        SettingsError,
        StoreError,
        StripeError,
        StripeUnavailableError,
        SubscriptionBusyError,
        SubscriptionError,
        SubscriptionExistsError,
        UnknownFeatureError,
        UnknownMeterError,
        UnknownPlanError,
    )
    from meterkit.health.findings import Finding
    from meterkit.health.health import Health
    from meterkit.insights.prometheus import metrics_app
    from meterkit.insights.revenue.revenue import Revenue, RevenueDay
    from meterkit.kit import MeterKit
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
    from meterkit.notify.messages import Messages
    from meterkit.notify.rendering import RenderedMessage
    from meterkit.outbox.intents import Intent, Undelivered
    from meterkit.outbox.operator_commands import Intents
    from meterkit.settings import Settings
    from meterkit.storage.presigning import UploadRefusedError
    from meterkit.storage.service import ObjectStorage
    from meterkit.store.customer_usage import CustomerUsage, MeterUsage, PeriodUsage
    from meterkit.store.holds import Reservation
    from meterkit.store.messages import KeptMessage
    from meterkit.store.rate_usage import RateUsage
    from meterkit.subscriptions.change_rules import OverLimit
    from meterkit.subscriptions.existing_customers import Misfit
    from meterkit.subscriptions.price_sync import StripeAccount, StripeSync, StripeSyncLine
    from meterkit.subscriptions.proration import Proration
    from meterkit.subscriptions.service.importing import Imported, ImportProgress
    from meterkit.subscriptions.service.repairing import Repair
    from meterkit.subscriptions.service.results import (
        Checkout,
        Invoice,
        NewSubscription,
        PendingChange,
        Portal,
        Preview,
        Subscription,
        SubscriptionChange,
    )
    from meterkit.subscriptions.service.service import Subscriptions
    from meterkit.subscriptions.service.stripe_customers import Contact
    from meterkit.sync import (
        SyncCustomers,
        SyncGauges,
        SyncGrants,
        SyncIntents,
        SyncMessages,
        SyncMeterKit,
        SyncObjectStorage,
        SyncReservation,
        SyncRevenue,
        SyncStripeAccount,
        SyncSubscriptions,
        SyncWebhooks,
    )
    from meterkit.tokens.call_usage import CallUsage
    from meterkit.tokens.objects import usage_of
    from meterkit.tokens.tap import StreamTap

    __version__: str

__all__ = [
    "AccessChanged",
    "CallUsage",
    "Catalog",
    "Checkout",
    "Contact",
    "Corrected",
    "CreditsLow",
    "Current",
    "Customer",
    "CustomerError",
    "CustomerUsage",
    "Customers",
    "Decision",
    "Deleted",
    "Drift",
    "DunningReminder",
    "Finding",
    "FlushReport",
    "Flusher",
    "GaugeLevel",
    "Gauges",
    "Grant",
    "Grants",
    "Health",
    "HistoryEntry",
    "ImportProgress",
    "Imported",
    "Intent",
    "Intents",
    "Invoice",
    "InvoiceOpenError",
    "KeptMessage",
    "LateUsage",
    "LedgerEntry",
    "Messages",
    "MeterKit",
    "MeterMiddleware",
    "MeterUsage",
    "MeterkitError",
    "Misfit",
    "NewSubscription",
    "NoSubscriptionError",
    "ObjectStorage",
    "OverLimit",
    "PaymentAuthenticationError",
    "PaymentFailed",
    "PaymentMethodMissingError",
    "PaymentSucceeded",
    "PendingChange",
    "PeriodSummary",
    "PeriodUsage",
    "PlansError",
    "Portal",
    "Preview",
    "Problem",
    "Proration",
    "QuantityError",
    "RateUsage",
    "Reconciled",
    "RenderedMessage",
    "Repair",
    "Reservation",
    "Revenue",
    "RevenueDay",
    "SeatsInUseError",
    "Settings",
    "SettingsError",
    "StorageOver",
    "StoreError",
    "StreamTap",
    "StripeAccount",
    "StripeError",
    "StripeSync",
    "StripeSyncLine",
    "StripeUnavailableError",
    "Subscription",
    "SubscriptionBusyError",
    "SubscriptionChange",
    "SubscriptionChanged",
    "SubscriptionError",
    "SubscriptionExistsError",
    "Subscriptions",
    "SyncCustomers",
    "SyncGauges",
    "SyncGrants",
    "SyncIntents",
    "SyncMessages",
    "SyncMeterKit",
    "SyncObjectStorage",
    "SyncReservation",
    "SyncRevenue",
    "SyncStripeAccount",
    "SyncSubscriptions",
    "SyncWebhooks",
    "TrialEnding",
    "Undelivered",
    "UnknownFeatureError",
    "UnknownMeterError",
    "UnknownPlanError",
    "Unsealed",
    "UploadRefusedError",
    "UsageSpike",
    "UsageThreshold",
    "allows",
    "current",
    "identify",
    "metrics_app",
    "record",
    "record_usage",
    "tap",
    "usage_of",
]

_PUBLIC = {
    "asgi.admitted": ("Current",),
    "asgi.context": ("allows", "current", "record", "record_usage", "tap"),
    "asgi.gauges": ("Gauges",),
    "asgi.middleware": ("MeterMiddleware",),
    "catalog": ("Catalog",),
    "customers.corrections": ("Corrected",),
    "customers.customers": ("Customer", "Customers"),
    "customers.deletion": ("Deleted",),
    "customers.drifts": ("Drift",),
    "customers.grants": ("Grant", "Grants", "LedgerEntry"),
    "customers.history": ("HistoryEntry",),
    "decisions.decision": ("Decision", "GaugeLevel"),
    "delivery.flusher": ("Flusher",),
    "delivery.reconciling": ("Reconciled",),
    "delivery.report": ("FlushReport", "LateUsage", "Unsealed"),
    "health.findings": ("Finding",),
    "health.health": ("Health",),
    "insights.prometheus": ("metrics_app",),
    "insights.revenue.revenue": ("Revenue", "RevenueDay"),
    "kit": ("MeterKit",),
    "notify.events": (
        "AccessChanged",
        "CreditsLow",
        "DunningReminder",
        "PaymentFailed",
        "PaymentSucceeded",
        "PeriodSummary",
        "StorageOver",
        "SubscriptionChanged",
        "TrialEnding",
        "UsageSpike",
        "UsageThreshold",
    ),
    "notify.messages": ("Messages",),
    "notify.rendering": ("RenderedMessage",),
    "outbox.intents": ("Intent", "Undelivered"),
    "outbox.operator_commands": ("Intents",),
    "settings": ("Settings",),
    "storage.presigning": ("UploadRefusedError",),
    "storage.service": ("ObjectStorage",),
    "store.customer_usage": ("CustomerUsage", "MeterUsage", "PeriodUsage"),
    "store.holds": ("Reservation",),
    "store.messages": ("KeptMessage",),
    "store.rate_usage": ("RateUsage",),
    "subscriptions.change_rules": ("OverLimit",),
    "subscriptions.existing_customers": ("Misfit",),
    "subscriptions.price_sync": ("StripeAccount", "StripeSync", "StripeSyncLine"),
    "subscriptions.proration": ("Proration",),
    "subscriptions.service.importing": ("ImportProgress", "Imported"),
    "subscriptions.service.repairing": ("Repair",),
    "subscriptions.service.results": (
        "Checkout",
        "Invoice",
        "NewSubscription",
        "PendingChange",
        "Portal",
        "Preview",
        "Subscription",
        "SubscriptionChange",
    ),
    "subscriptions.service.service": ("Subscriptions",),
    "subscriptions.service.stripe_customers": ("Contact",),
    "sync": (
        "SyncCustomers",
        "SyncGauges",
        "SyncGrants",
        "SyncIntents",
        "SyncMessages",
        "SyncMeterKit",
        "SyncObjectStorage",
        "SyncReservation",
        "SyncRevenue",
        "SyncStripeAccount",
        "SyncSubscriptions",
        "SyncWebhooks",
    ),
    "tokens.call_usage": ("CallUsage",),
    "tokens.objects": ("usage_of",),
    "tokens.tap": ("StreamTap",),
}
_HOMES = {name: f"meterkit.{home}" for home, names in _PUBLIC.items() for name in names}


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
