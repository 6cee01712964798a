"""The kit for code without an event loop: Celery, RQ, cron, scripts.

Each method is that of the kit itself, run to its end in the event loop of a thread: it takes, gives and
raises the same.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast, overload

from meterkit.loop_thread import LoopThread
from meterkit.sync_parts import (
    SyncCredits,
    SyncCustomers,
    SyncGauges,
    SyncGrants,
    SyncIntents,
    SyncMessages,
    SyncObjectStorage,
    SyncRevenue,
    SyncStripeAccount,
    SyncSubscriptions,
    SyncWebhooks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

    from meterkit.asgi.gauges import Gauges
    from meterkit.catalog import Catalog
    from meterkit.customers.corrections import Corrected
    from meterkit.customers.customers import Customers
    from meterkit.customers.grants import Grants
    from meterkit.decisions.decision import Decision
    from meterkit.delivery.flush_report import FlushReport
    from meterkit.delivery.reconciler import Reconciled
    from meterkit.health.health import Health
    from meterkit.insights.by_model import ModelUsage
    from meterkit.insights.revenue.revenue import Revenue
    from meterkit.insights.statement.lines import Statement
    from meterkit.notify.messages import Messages
    from meterkit.outbox.operator_commands import Intents
    from meterkit.settings import Settings
    from meterkit.storage.service import ObjectStorage
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.holds import Reservation
    from meterkit.store.rate_usage import RateUsage
    from meterkit.store.subject_usage import SubjectUsage
    from meterkit.subscriptions.price_sync import StripeAccount
    from meterkit.subscriptions.service.credits import Credits
    from meterkit.subscriptions.service.service import Subscriptions
    from meterkit.subscriptions.webhooks.webhooks import Webhooks
    from meterkit.tokens.call_usage import CallUsage

__all__ = ["SyncMeterKit", "SyncReservation"]


class _Kit(AbstractAsyncContextManager[object], Protocol):
    """What the twin has of :class:`meterkit.MeterKit`."""

    settings: Settings
    customers: Customers
    credits: Credits
    grants: Grants
    gauges: Gauges
    notify: Messages
    outbox: Intents
    revenue: Revenue
    stripe: StripeAccount
    storage: ObjectStorage
    subscriptions: Subscriptions
    webhooks: Webhooks

    @property
    def catalog(self) -> Catalog: ...
    async def check(
        self, customer: str, meter: str, quantity: int = 1, *, subjects: Mapping[str, str] | None = None
    ) -> Decision: ...
    async def allows(self, customer: str, feature: str) -> bool: ...
    async def consume(
        self, customer: str, meter: str, quantity: int = 1, *, subjects: Mapping[str, str] | None = None
    ) -> Decision: ...
    async def record(
        self,
        customer: str,
        meter: str | Mapping[str, int],
        quantity: int | None = None,
        *,
        event_id: str | None = None,
        occurred_at: datetime | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> None: ...
    async def record_usage(
        self,
        customer: str | None,
        obj: object,
        *,
        event_id: str | None = None,
        call_id: str | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> CallUsage | None: ...
    def reserve(
        self,
        customer: str,
        quantities: Mapping[str, int],
        *,
        model: str | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> Reservation: ...
    async def correct(
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
    async def reconcile(
        self,
        customer: str | None = None,
        *,
        at: datetime | None = None,
        repair: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Sequence[Reconciled]: ...
    @overload
    async def usage(
        self, customer: str, *, by: None = None, period: datetime | str | None = None
    ) -> CustomerUsage: ...
    @overload
    async def usage(
        self, customer: str, *, by: Literal["model"], period: datetime | str | None = None
    ) -> ModelUsage: ...
    @overload
    async def usage(self, customer: str, *, by: Literal["user", "team"]) -> Sequence[SubjectUsage]: ...
    @overload
    async def usage(self, customer: str, *, by: str) -> Sequence[SubjectUsage] | ModelUsage: ...
    async def statement(
        self,
        customer: str,
        period: datetime | str | None = None,
        *,
        line: str | None = None,
        after: str = "",
        most: int = 100,
    ) -> Statement: ...
    async def rates(self, customer: str) -> Sequence[RateUsage]: ...
    async def health(self) -> Health: ...
    async def flush(self, *, everything: bool = False, timeout_s: float = 300.0) -> FlushReport: ...
    async def reload(self) -> bool: ...


class _Usage(Protocol):
    @overload
    def __call__(
        self, customer: str, *, by: None = None, period: datetime | str | None = None
    ) -> CustomerUsage: ...
    @overload
    def __call__(
        self, customer: str, *, by: Literal["model"], period: datetime | str | None = None
    ) -> ModelUsage: ...
    @overload
    def __call__(self, customer: str, *, by: Literal["user", "team"]) -> Sequence[SubjectUsage]: ...
    @overload
    def __call__(self, customer: str, *, by: str) -> Sequence[SubjectUsage] | ModelUsage: ...


class SyncMeterKit:
    """A :class:`~meterkit.MeterKit` whose methods block, from any thread; ``kit.sync()`` makes it.

    The first call of a process connects; a block (``with kit.sync() as kit:``) or :meth:`start` does so at
    once, and raises what is wrong with the settings. It may be made, and started, before a fork: each child
    has an event loop, a thread and a connection of its own from its first call. What is still open when the
    process ends is closed then.

    Where an event loop runs in the calling thread each method raises :class:`~meterkit.errors.MeterkitError`.
    """

    def __init__(self, kit: _Kit) -> None:
        self._kit = kit
        self._loop = loop = LoopThread(kit)
        self.settings = kit.settings
        self.check = loop.blocking(kit.check)
        self.allows = loop.blocking(kit.allows)
        self.consume = loop.blocking(kit.consume)
        self.record = loop.blocking(kit.record)
        self.record_usage = loop.blocking(kit.record_usage)
        self.correct = loop.blocking(kit.correct)
        self.reconcile = loop.blocking(kit.reconcile)
        self.statement = loop.blocking(kit.statement)
        self.usage: _Usage = cast("Any", loop.blocking(kit.usage))
        self.rates = loop.blocking(kit.rates)
        self.health = loop.blocking(kit.health)
        self.flush = loop.blocking(kit.flush)
        self.reload = loop.blocking(kit.reload)
        self.customers = SyncCustomers(kit.customers, loop)
        self.credits = SyncCredits(kit.credits, loop)
        self.grants = SyncGrants(kit.grants, loop)
        self.gauges = SyncGauges(kit.gauges, loop)
        self.notify = SyncMessages(kit.notify, loop)
        self.outbox = SyncIntents(kit.outbox, loop)
        self.revenue = SyncRevenue(kit.revenue, loop)
        self.stripe = SyncStripeAccount(kit.stripe, loop)
        self.storage = SyncObjectStorage(kit.storage, loop)
        self.subscriptions = SyncSubscriptions(kit.subscriptions, loop)
        self.webhooks = SyncWebhooks(kit.webhooks, loop)

    @property
    def catalog(self) -> Catalog:
        """The catalog: plans, meters, routes."""
        return self._kit.catalog

    def start(self) -> None:
        """Connect now. Counted: each start wants a stop.

        Raises:
            MeterkitError: an event loop runs in this thread.
            SettingsError: as of :meth:`meterkit.MeterKit.start`.
        """
        self._loop.start()

    def stop(self) -> None:
        """Undo one start; the last one settles what is left and closes all that was opened."""
        self._loop.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def reserve(
        self,
        customer: str,
        quantities: Mapping[str, int],
        *,
        model: str | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> SyncReservation:
        """Hold quantities now and count the true ones later; see :meth:`meterkit.MeterKit.reserve`.

        ``with kit.reserve("acme", {"output_tokens": 4096}) as reservation:`` look at
        ``reservation.decision``, then ``reservation.capture({"output_tokens": 812})``.
        """
        return SyncReservation(
            self._kit.reserve(customer, quantities, model=model, subjects=subjects), self._loop
        )


class SyncReservation:
    """Quantities that are set aside while their ``with`` block runs; see :class:`meterkit.Reservation`."""

    def __init__(self, reservation: Reservation, loop: LoopThread) -> None:
        self._reservation = reservation
        self._loop = loop
        self.capture = loop.blocking(reservation.capture)

    @property
    def decision(self) -> Decision:
        """Whether the quantities are set aside; a refused reservation holds nothing.

        Raises:
            MeterkitError: before the block has begun.
        """
        return self._reservation.decision

    def release(self) -> None:
        """Give back what is set aside; nothing is recorded, and rates count none of it. Repeated: a no-op."""
        # A child that a queue of jobs has forked ends without another word: what is under way then is lost.
        self._loop.call(self._reservation.released)

    def __enter__(self) -> Self:
        self._loop.call(self._reservation.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
