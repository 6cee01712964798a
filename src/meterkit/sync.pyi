# Written by `python tests/drivers/sync_stub.py` from the methods of the kit.
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Literal, Self, overload

from meterkit.catalog import Catalog
from meterkit.catalog.billing import CheckoutOptions
from meterkit.customers.corrections import Corrected
from meterkit.customers.customers import Customer
from meterkit.customers.deletion import Deleted
from meterkit.customers.drift_records import Drift
from meterkit.customers.grant_ledger import Grant, LedgerEntry
from meterkit.customers.history import HistoryEntry
from meterkit.decisions.decision import Decision
from meterkit.decisions.subscription import Status
from meterkit.delivery.flush_report import FlushReport
from meterkit.delivery.reconciler import Reconciled
from meterkit.insights.by_model import ModelUsage
from meterkit.insights.health_report import Health
from meterkit.insights.revenue.revenue import RevenueDay
from meterkit.insights.statement.lines import Statement
from meterkit.kit import MeterKit
from meterkit.notify.rendering import RenderedMessage
from meterkit.outbox.intents import Intent, IntentState
from meterkit.outbox.invoice_item_queue import QueuedItem
from meterkit.settings import Settings
from meterkit.storage.recalculation import BucketLister
from meterkit.store.customer_usage import CustomerUsage
from meterkit.store.message_queue import Channel, KeptMessage
from meterkit.store.rate_usage import RateUsage
from meterkit.store.recorded_calls import RecordedUsage
from meterkit.store.subject_usage import SubjectUsage
from meterkit.subscriptions.price_sync import StripeSync
from meterkit.subscriptions.service.results import (
    Checkout,
    Invoice,
    NewSubscription,
    Portal,
    Preview,
    Subscription,
    SubscriptionChange,
)
from meterkit.subscriptions.service.stripe_import import Imported, ImportProgress
from meterkit.subscriptions.service.subscription_repair import Repair
from meterkit.subscriptions.service.top_ups import TopUp
from meterkit.subscriptions.webhooks.sync_queue import DeadWebhook, WebhookBacklog

class SyncCustomers:
    def subject(self, customer: str, **subject: str) -> SyncSubject: ...
    def list(self) -> Iterator[Customer]: ...
    def get(self, customer: str) -> Customer: ...
    def known(self, customer: str) -> bool: ...
    def set_plan(self, customer: str, plan: str | None) -> Customer: ...
    def set_status(self, customer: str, status: Status | None) -> Customer: ...
    def override(
        self,
        customer: str,
        overrides: Mapping[str, Mapping[str, object]],
        features: Mapping[str, bool] | Iterable[str] | None = None,
        until: datetime | None = None,
    ) -> Customer: ...
    def spend_limit(
        self, customer: str, amount_cents: int | None, per: Literal["period", "day", "hour"] = "period"
    ) -> Customer: ...
    def link(
        self, customer: str, stripe_customer: str, *, look: bool = True, force: bool = False
    ) -> Customer: ...
    def unlink(self, customer: str) -> Customer: ...
    def delete(self, customer: str, *, cancel: bool = False) -> Deleted: ...
    def history(self, customer: str) -> Sequence[HistoryEntry]: ...

class SyncSubject:
    def override(
        self, limits: Mapping[str, Mapping[str, object]] | None, until: datetime | None = None
    ) -> Customer: ...

class SyncCredits:
    def buy(
        self,
        customer: str,
        amount_cents: int,
        *,
        success_url: str | None = None,
        cancel_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> TopUp: ...
    def set_auto(self, customer: str, enabled: bool) -> None: ...

class SyncGrants:
    def add(
        self,
        customer: str,
        quantities: Mapping[str, int],
        *,
        grant_id: str,
        priority: int = 50,
        effective_at: datetime | None = None,
        expires_at: datetime | None = None,
    ) -> None: ...
    def list(self, customer: str) -> Sequence[Grant]: ...
    def void(self, customer: str, grant_id: str) -> None: ...
    def ledger(self, customer: str) -> Sequence[LedgerEntry]: ...

class SyncGauges:
    def get(self, customer: str, meter: str) -> int: ...
    def set(self, customer: str, meter: str, quantity: int, *, event_id: str | None = None) -> int: ...
    def adjust(self, customer: str, meter: str, quantity: int, *, event_id: str | None = None) -> int: ...

class SyncMessages:
    def preview(self, event: str, *, locale: str | None = None) -> tuple[str, RenderedMessage]: ...
    def preferences(self, customer: str, wanted: Mapping[str, bool] | None = None) -> Mapping[str, bool]: ...
    def list(self) -> Mapping[Channel, Sequence[KeptMessage]]: ...
    def redrive(self, *message_ids: str) -> int: ...

class SyncObjectStorage:
    def count(self, body: bytes | str) -> None: ...
    def poll(self, queue_url: str, *, wait_s: int = 20) -> int: ...
    def presign(self, customer: str, key: str, size: int) -> str: ...
    def recalculate(
        self, customer: str | None = None, *, dry_run: bool = False, lister: BucketLister | None = None
    ) -> Mapping[str, int]: ...
    def unclear(self) -> Mapping[str, int]: ...

class SyncQueuedItems:
    def list(self, *, customer: str | None = None, limit: int = 1000) -> Sequence[QueuedItem]: ...
    def redrive(self, identifier: str) -> QueuedItem: ...
    def drop(self, identifier: str, *, reason: str, by: str = "api") -> QueuedItem: ...

class SyncIntents:
    items: SyncQueuedItems
    def list(
        self, *, state: IntentState | None = None, customer: str | None = None, limit: int = 1000
    ) -> Sequence[Intent]: ...
    def show(self, identifier: str) -> Intent: ...
    def redrive(self, identifier: str, *, reason: str = "", by: str = "api") -> Intent: ...
    def park(self, identifier: str, *, reason: str = "", by: str = "api") -> Intent: ...
    def drop(self, identifier: str, *, reason: str, by: str = "api") -> Intent: ...

class SyncRevenue:
    def at(self, day: date | None = None) -> RevenueDay: ...
    def by_plan(self) -> Mapping[tuple[str, str], int]: ...
    def days(self, first: date, last: date) -> Sequence[date]: ...
    def spend(self, day: date, cents: int) -> None: ...
    def snapshot(self) -> Sequence[date]: ...

class SyncStripeAccount:
    def sync(self, *, dry_run: bool = False) -> StripeSync: ...

class SyncSubscriptions:
    def get(self, customer: str) -> Subscription | None: ...
    def sync(self, customer: str) -> Subscription | None: ...
    def create(
        self,
        customer: str,
        plan: str,
        seats: int = 1,
        *,
        addons: Mapping[str, int] | None = None,
        currency: str | None = None,
    ) -> NewSubscription: ...
    def checkout(
        self,
        customer: str,
        plan: str,
        *,
        seats: int = 1,
        addons: Mapping[str, int] | None = None,
        success_url: str,
        cancel_url: str,
        currency: str | None = None,
        options: CheckoutOptions | None = None,
    ) -> Checkout: ...
    def portal(self, customer: str, *, return_url: str) -> Portal: ...
    def preview(
        self,
        customer: str,
        *,
        plan: str | None = None,
        seats: int | None = None,
        addons: Mapping[str, int] | None = None,
    ) -> Preview: ...
    def change_plan(self, customer: str, plan: str) -> SubscriptionChange: ...
    def set_seats(self, customer: str, seats: int) -> SubscriptionChange: ...
    def set_addons(self, customer: str, addons: Mapping[str, int]) -> SubscriptionChange: ...
    def cancel(
        self, customer: str, *, immediately: bool = False, give_back: bool = False
    ) -> Subscription: ...
    def resume(self, customer: str) -> Subscription: ...
    def invoices(self, customer: str) -> list[Invoice]: ...
    def check(self) -> dict[str, tuple[Drift, ...]]: ...
    def repair(self, customer: str, *, dry_run: bool = False) -> Repair: ...
    def move_usage(self, customer: str, *, dry_run: bool = False) -> datetime | None: ...
    def import_from_stripe(
        self,
        *,
        id_from: str = "metadata.meterkit_customer",
        ids: Mapping[str, str] | None = None,
        dry_run: bool = False,
        progress: Callable[[ImportProgress], object] | None = None,
    ) -> Imported: ...
    def retry_accepted(self) -> None: ...

class SyncWebhooks:
    def backlog(self) -> WebhookBacklog: ...
    def dead(self) -> Sequence[DeadWebhook]: ...
    def redrive(self, *stripe_customers: str) -> int: ...

class SyncMeterKit:
    customers: SyncCustomers
    credits: SyncCredits
    grants: SyncGrants
    gauges: SyncGauges
    notify: SyncMessages
    outbox: SyncIntents
    revenue: SyncRevenue
    stripe: SyncStripeAccount
    storage: SyncObjectStorage
    subscriptions: SyncSubscriptions
    webhooks: SyncWebhooks
    settings: Settings
    def __init__(self, kit: MeterKit) -> None: ...
    @property
    def catalog(self) -> Catalog: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def reserve(
        self,
        customer: str,
        quantities: Mapping[str, int],
        *,
        model: str | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> SyncReservation: ...
    def check(
        self, customer: str, meter: str, quantity: int = 1, *, subjects: Mapping[str, str] | None = None
    ) -> Decision: ...
    def allows(self, customer: str, feature: str) -> bool: ...
    def consume(
        self, customer: str, meter: str, quantity: int = 1, *, subjects: Mapping[str, str] | None = None
    ) -> Decision: ...
    def record(
        self,
        customer: str,
        meter: str | Mapping[str, int],
        quantity: int | None = None,
        *,
        event_id: str | None = None,
        occurred_at: datetime | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> None: ...
    def record_usage(
        self,
        customer: str | None,
        obj: object,
        *,
        event_id: str | None = None,
        call_id: str | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> RecordedUsage | None: ...
    def correct(
        self,
        customer: str,
        quantities: Mapping[str, int],
        *,
        reason: str,
        correction_id: str,
        credit: bool = False,
        dry_run: bool = False,
        by: str = "api",
    ) -> Sequence[Corrected]: ...
    def reconcile(
        self,
        customer: str | None = None,
        *,
        at: datetime | None = None,
        repair: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Sequence[Reconciled]: ...
    def statement(
        self,
        customer: str,
        period: datetime | str | None = None,
        *,
        line: str | None = None,
        after: str = "",
        most: int = 100,
    ) -> Statement: ...
    @overload
    def usage(
        self, customer: str, *, by: None = None, period: datetime | str | None = None
    ) -> CustomerUsage: ...
    @overload
    def usage(
        self, customer: str, *, by: Literal["model"], period: datetime | str | None = None
    ) -> ModelUsage: ...
    @overload
    def usage(self, customer: str, *, by: Literal["user", "team"]) -> Sequence[SubjectUsage]: ...
    @overload
    def usage(self, customer: str, *, by: str) -> Sequence[SubjectUsage] | ModelUsage: ...
    def rates(self, customer: str) -> Sequence[RateUsage]: ...
    def health(self, *, scan_keys: bool = True) -> Health: ...
    def flush(self, *, everything: bool = False, timeout_s: float = 300.0) -> FlushReport: ...
    def reload(self) -> bool: ...

class SyncReservation:
    @property
    def decision(self) -> Decision: ...
    def release(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def __del__(self) -> None: ...
    def capture(
        self, used: Mapping[str, int] | object, *, model: str | None = None, provider: str | None = None
    ) -> None: ...
