"""The emulated account: everything that it remembers, behind one lock."""

from __future__ import annotations

import threading
from collections import Counter, deque
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar

from stripe_emulator.customers import Customers, TestClock
from stripe_emulator.faults import REASON_HEADER, PendingFault
from stripe_emulator.idempotency import IdempotencyKeys
from stripe_emulator.invoices import Invoices
from stripe_emulator.meter_events import MeterEvents, MeterEventSessions
from stripe_emulator.meters import Meters
from stripe_emulator.page_sessions import CheckoutSessions
from stripe_emulator.payment_methods import PaymentMethods, SetupIntent
from stripe_emulator.prices import Prices, Products
from stripe_emulator.protocol import ApiError, Exchange
from stripe_emulator.registry import ObjectRegistry, ShownObject
from stripe_emulator.subscriptions import Subscriptions
from stripe_emulator.webhook_deliveries import DeliveryQueue, WebhookEndpoint
from stripe_emulator.webhook_events import Events, ThinEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from stripe_emulator.behaviour import Behaviour
    from stripe_emulator.call import Call
    from stripe_emulator.coupons import Coupon, Discount, PromotionCode
    from stripe_emulator.customers import BalanceTransaction
    from stripe_emulator.invoice_totals import TaxRate
    from stripe_emulator.invoices import CreditNote, Dispute, Refund
    from stripe_emulator.page_sessions import PortalSession
    from stripe_emulator.protocol import JsonObject
    from stripe_emulator.schedules import Schedule
    from stripe_emulator.webhook_events import Event

S = TypeVar("S", bound=ShownObject)
EXCHANGES_MAX: Final = 100_000


class Account:
    """The state of the emulator. Hold ``lock`` to read it from another thread."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.lock = threading.RLock()
        self.wakers: list[Callable[[], object]] = []
        self._call: Call | None = None
        self._called_at: float | None = None
        self._instant: int | None = None
        self._in_clock = False
        self.reset()

    @property
    def now(self) -> int:
        """Unix seconds: the present, or the instant of the transition that is being carried out."""
        return int(self._present()) if self._instant is None else self._instant

    def _present(self) -> float:
        """Unix seconds; constant during a call, whose objects have one creation time."""
        return self.behaviour.clock() if self._called_at is None else self._called_at

    def reset(self) -> None:
        """Forget everything."""
        with self.lock:
            self.log = Events("event")
            self.thin_log = ObjectRegistry[ThinEvent]("event")
            self.endpoints = ObjectRegistry[WebhookEndpoint]("webhook endpoint")
            self.deliveries = DeliveryQueue(self.endpoints)
            self.payment_methods = PaymentMethods()
            self.setup_intents: ObjectRegistry[SetupIntent] = ObjectRegistry("setupintent")
            self.clocks: ObjectRegistry[TestClock] = ObjectRegistry("test clock")
            self.customers = Customers("customer")
            self.meters = Meters("meter")
            self.products = Products("product")
            self.prices = Prices("price")
            self.coupons: ObjectRegistry[Coupon] = ObjectRegistry("coupon")
            self.tax_rates: ObjectRegistry[TaxRate] = ObjectRegistry("tax rate")
            self.promotion_codes: ObjectRegistry[PromotionCode] = ObjectRegistry("promotion code")
            self.discounts: ObjectRegistry[Discount] = ObjectRegistry("discount")
            self.checkouts = CheckoutSessions(self.emit)
            self.subscriptions = Subscriptions("subscription")
            self.invoices = Invoices()
            self.refunds: ObjectRegistry[Refund] = ObjectRegistry("refund")
            self.disputes: ObjectRegistry[Dispute] = ObjectRegistry("dispute")
            self.balance_transactions: ObjectRegistry[BalanceTransaction] = ObjectRegistry(
                "balance transaction"
            )
            self.credit_notes: ObjectRegistry[CreditNote] = ObjectRegistry("credit note")
            self.schedules: ObjectRegistry[Schedule] = ObjectRegistry("subscription schedule")
            self.events = MeterEvents(self.behaviour)
            self.meter_event_sessions = MeterEventSessions()
            self.portals: ObjectRegistry[PortalSession] = ObjectRegistry("portal session")
            self.keys = IdempotencyKeys()
            self.faults: list[PendingFault] = []
            self.exchanges: deque[Exchange] = deque(maxlen=EXCHANGES_MAX)
            self._busy: set[tuple[str, str]] = set()
            self._calls_in_second: Counter[int] = Counter()

    def emit(
        self,
        event_type: str,
        obj: JsonObject,
        *,
        previous: JsonObject | None = None,
        at_s: float | None = None,
    ) -> Event | None:
        """Record an event and queue its deliveries. Returns None for an update without changes.

        Args:
            event_type: such as ``customer.subscription.updated``.
            obj: what it happened to, as it is now; the event keeps a copy.
            previous: it as it was before; of an update, and only there.
            at_s: when it happened in Unix seconds; None: now. What the clock has brought about meanwhile is
                entered in the order in which it happened.
        """
        with self.lock:
            at_s = self.now if at_s is None else at_s
            event = self.log.record(event_type, obj, previous=previous, at_s=at_s, call=self._call)
            if event is not None and self._in_clock:
                event.entered_at = self.behaviour.clock()
            if event is not None:
                self.deliveries.add(event, now=event.entered_at or at_s)
                self.wake()
            return event

    def publish(self, event_type: str, changed: ShownObject) -> JsonObject:
        """Record an event of an object. Returns the object as Stripe shows it."""
        shown = changed.to_json()
        self.emit(event_type, shown)
        return shown

    def add(self, registry: ObjectRegistry[S], added: S, event_type: str) -> JsonObject:
        """Add an object and record the event. Returns the object as Stripe shows it."""
        registry.add(added)
        return self.publish(event_type, added)

    @contextmanager
    def updating(self, event_type: str, shown: Callable[[], JsonObject]) -> Generator[None]:
        """Record an event of what the block changes; ``shown`` returns the object as Stripe shows it."""
        before = shown()
        yield
        self.emit(event_type, shown(), previous=before)

    def report_thin(self, event: ThinEvent) -> ThinEvent:
        """Record a thin event and queue its deliveries. Returns it."""
        with self.lock:
            self.thin_log.add(event)
            self.deliveries.add(event, now=event.created)
            self.wake()
            return event

    def wake(self) -> None:
        """Wake the webhook dispatcher."""
        for waker in self.wakers:
            waker()

    @contextmanager
    def at_time(self, instant: int | None, *, in_clock: bool = False) -> Generator[None]:
        """Set the time of the block to an instant, in Unix seconds; None: now.

        ``in_clock``: it is one of a test clock, which says nothing of when events can be delivered.
        """
        before = self._instant, self._in_clock
        self._instant, self._in_clock = instant, in_clock
        try:
            yield
        finally:
            self._instant, self._in_clock = before

    def clock_of(self, customer_id: str) -> TestClock | None:
        """Return the test clock of a customer; None: it has none."""
        return self.customers.find(customer_id).clock

    def time_of(self, customer_id: str) -> float:
        """Return a customer's time: its test clock's, or the emulator's own."""
        return self.customers.time_of_customer(customer_id, now=self._present())

    def customer_time(self, customer_id: str, *, at: int | None = None) -> AbstractContextManager[None]:
        """Set the time of the block to a customer's: ``at`` an instant of it, or at its now."""
        clock = self.clock_of(customer_id)
        if clock is None:
            return self.at_time(at)
        return self.at_time(clock.frozen_time if at is None else at, in_clock=True)

    @contextmanager
    def handle_call(self, call: Call) -> Generator[None]:
        """Hold the lock and attribute events of the block to this request."""
        with self.lock:
            before = self._call, self._called_at
            self._call, self._called_at = call, self.behaviour.clock()
            try:
                yield
            finally:
                self._call, self._called_at = before

    def limit_rate(self, *, now: float) -> None:
        """Count one call. Raises ApiError, 429, if the limit of this second is reached."""
        allowed = self.behaviour.rate_limit_per_s
        if allowed is None:
            return
        with self.lock:
            calls = self._calls_in_second[int(now)] + 1
            self._calls_in_second = Counter({int(now): calls})
            if calls > allowed:
                raise _too_many_requests("Request rate limit exceeded.", reason="global-rate")

    @contextmanager
    def reserve_metered(self, call: Call) -> Generator[None]:
        """Reserve the customers and meters of meter events. Raises ApiError, 429, if another call has one."""
        pairs, busy = call.metered_pairs, self._busy
        with self.lock:
            if pairs & busy:
                raise _too_many_requests(
                    "Another request for this customer and meter is in progress.", reason="resource-specific"
                )
            busy |= pairs
        try:
            yield
        finally:
            with self.lock:
                busy -= pairs


def _too_many_requests(message: str, *, reason: str) -> ApiError:
    headers = {REASON_HEADER: reason}
    return ApiError(message, status=HTTPStatus.TOO_MANY_REQUESTS, code="rate_limit", headers=headers)
