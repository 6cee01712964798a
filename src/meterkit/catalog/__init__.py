"""The catalog: a plans file, loaded, checked and typed."""

from __future__ import annotations

from meterkit.catalog.billing_terms import (
    BILLED_ON_ATTEMPT,
    BILLED_ON_SUCCESS,
    OUTCOMES,
    Billing,
    Changes,
    Dunning,
    Outcome,
)
from meterkit.catalog.entitlements import override
from meterkit.catalog.load import enforced, json_schema, load, loads
from meterkit.catalog.model_prices import Credit
from meterkit.catalog.models import (
    QUANTITY_MAX,
    Algorithm,
    Anonymous,
    Catalog,
    Enforcement,
    Entitlement,
    Headers,
    Meter,
    Overage,
    Plan,
    PlanGrant,
    Price,
    Rate,
    Report,
    Reserve,
    Route,
    SeatPrice,
    StoreFailure,
    StripeEvent,
)
from meterkit.catalog.note import Note, NoteKind
from meterkit.catalog.notifications import EmailChannel, Notify, WebhookChannel
from meterkit.catalog.stored_objects import OTHER_TYPE, ObjectPattern, Storage

__all__ = [
    "BILLED_ON_ATTEMPT",
    "BILLED_ON_SUCCESS",
    "OTHER_TYPE",
    "OUTCOMES",
    "QUANTITY_MAX",
    "Algorithm",
    "Anonymous",
    "Billing",
    "Catalog",
    "Changes",
    "Credit",
    "Dunning",
    "EmailChannel",
    "Enforcement",
    "Entitlement",
    "Headers",
    "Meter",
    "Note",
    "NoteKind",
    "Notify",
    "ObjectPattern",
    "Outcome",
    "Overage",
    "Plan",
    "PlanGrant",
    "Price",
    "Rate",
    "Report",
    "Reserve",
    "Route",
    "SeatPrice",
    "Storage",
    "StoreFailure",
    "StripeEvent",
    "WebhookChannel",
    "enforced",
    "json_schema",
    "load",
    "loads",
    "override",
]
