"""Webhooks under a test's control: which are delivered, when, how often and how wrongly."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from stripe_emulator.behaviour import Behaviour
from stripe_emulator.protocol import JsonObject, new_id
from stripe_emulator.scheduled_transitions import run_due_transitions
from stripe_emulator.webhook_deliveries import (
    FORGERIES,
    ROLL_S_MAX,
    Delivery,
    DueDelivery,
    Forgery,
    WebhookEndpoint,
)
from stripe_emulator.webhook_events import AnyEvent, Event, MeterErrorCode, ThinEvent, meter_error_report

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from starlette.types import ASGIApp

    from stripe_emulator.account import Account

_logger = logging.getLogger("stripe_emulator")
SENDER: Final = "stripe_emulator.webhook_sender"
# How soon a move of the clock is noticed, in real seconds.
CLOCK_POLL_S: Final = 0.05
CANCEL_AGAIN_S: Final = 0.5
LOGGED_MAX: Final = 200


class WebhookDispatcher:
    """Delivers the events of an account."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def deliver_due(self, *, apps: bool = True) -> list[Delivery]:
        """Deliver all due events in order; ``apps``: also to apps of this process."""
        made: list[Delivery] = []
        while (due := self._take_due(apps=apps)) is not None:
            made.append(await self._send_delivery(due))
            if not apps and not made[-1].taken:
                _log_refusal(made[-1])
        return made

    async def deliver(
        self, events: Iterable[AnyEvent], *, endpoints: Iterable[WebhookEndpoint], how: Forgery | None
    ) -> list[Delivery]:
        """Deliver these events in this order to each endpoint that wants them."""
        now, endpoints = self._account.behaviour.clock(), tuple(endpoints)
        return [
            await self._send_delivery(
                DueDelivery(event=event, endpoint=endpoint, attempt=0, at_s=now), how=how
            )
            for event in events
            for endpoint in endpoints
            if endpoint.wants(event.type, thin=event.thin)
        ]

    @asynccontextmanager
    async def running(self, _: object = None) -> AsyncGenerator[None]:
        """Deliver events as they fall due by the emulator's clock, within the block."""
        if not self._account.behaviour.automatic_webhooks:
            yield
            return
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def waker() -> None:
            loop.call_soon_threadsafe(woken.set)

        with self._account.lock:
            self._account.wakers.append(waker)
        task = loop.create_task(self._deliver_forever(woken), name="stripe-emulator-webhooks")
        try:
            yield
        finally:
            with self._account.lock:
                self._account.wakers.remove(waker)
            await _cancel_task(task)

    async def _deliver_forever(self, woken: asyncio.Event) -> None:
        while True:
            woken.clear()
            has_endpoints = any(True for _ in self._account.endpoints)
            if has_endpoints:
                run_due_transitions(self._account)
            # An app belongs to the loop of the test that delivers to it, which need not be this one.
            await self.deliver_due(apps=False)
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOCK_POLL_S if has_endpoints else None):
                    await woken.wait()

    def _take_due(self, *, apps: bool) -> DueDelivery | None:
        with self._account.lock:
            return self._account.deliveries.take_due(now=self._account.behaviour.clock(), apps=apps)

    async def _send_delivery(self, due: DueDelivery, *, how: Forgery | None = None) -> Delivery:
        # Needs httpx, which an emulator without endpoints does without.
        sender: Any = import_module(SENDER)
        delivery: Delivery = await sender.send(due, now=self._account.behaviour.clock(), how=how)
        with self._account.lock:
            self._account.deliveries.record_result(due, delivery)
        return delivery


def _log_refusal(delivery: Delivery) -> None:
    """Log an event that a server has not accepted: nothing else shows its developer why."""
    outcome = f"HTTP {delivery.status}" if delivery.status else "no response"
    _logger.warning(
        "webhook %s (%s) was not accepted by %s: %s %r",
        delivery.type,
        delivery.event,
        delivery.url,
        outcome,
        delivery.answer[:LOGGED_MAX],
    )


async def _cancel_task(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended: an HTTP client that is connecting may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)
    with suppress(asyncio.CancelledError):
        await task


class WebhookControls(Behaviour):
    """Webhook endpoints, events and deliveries; a part of ``StripeEmulator``."""

    _account: Account
    _courier: WebhookDispatcher

    @property
    def webhook_events(self) -> tuple[Event, ...]:
        """All events of the account, oldest first."""
        with self._account.lock:
            return tuple(self._account.log)

    @property
    def thin_events(self) -> tuple[ThinEvent, ...]:
        """All thin events, oldest first."""
        with self._account.lock:
            return tuple(self._account.thin_log)

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """All delivery attempts, in the order of completion."""
        with self._account.lock:
            return tuple(self._account.deliveries.made)

    def add_endpoint(
        self,
        url: str,
        *,
        secret: str | None = None,
        events: Sequence[str] = ("*",),
        thin: bool = False,
        app: ASGIApp | None = None,
        has_real_time: bool = False,
    ) -> str:
        """Add a webhook endpoint for events from now on. Returns its signing secret.

        Args:
            url: where events are posted to.
            secret: what they are signed with; None: one of the emulator's choice.
            events: types, ``*`` or groups such as ``invoice.*``.
            thin: whether it gets thin events, and no others.
            app: takes them when :meth:`deliver` says so, in its caller's loop and without a server; ``url``
                says under which path.
            has_real_time: whether events are signed by the machine's clock instead of the emulator's: for an
                app of another process, which refuses them if that is moved.
        """
        endpoint = WebhookEndpoint(
            id=new_id("we_1", length=23),
            url=url,
            secret=secret or new_id("whsec", length=32),
            created=int(self.clock()),
            events=tuple(events),
            thin=thin,
            app=app,
            has_real_time=has_real_time,
        )
        with self._account.lock:
            self._account.endpoints.add(endpoint)
        return endpoint.secret

    def roll_secret(self, url: str, *, keep_s: float = ROLL_S_MAX) -> str:
        """Give an endpoint a new secret, and return it. For ``keep_s`` seconds the old one signs too.

        Raises:
            ValueError: if there is no such endpoint.
        """
        with self._account.lock:
            endpoints = self._endpoints(url)
            if not endpoints:
                raise ValueError(f"there is no webhook endpoint {url}: add it with add_endpoint")
            endpoint = endpoints[-1]
            endpoint.rolled = (endpoint.secret, self.clock() + keep_s)
            endpoint.secret = new_id("whsec", length=32)
            return endpoint.secret

    def emit(self, event_type: str, obj: JsonObject, *, previous: JsonObject | None = None) -> Event | None:
        """Record an event of any content, true or not, and queue its deliveries.

        Args:
            event_type: such as ``customer.subscription.updated``.
            obj: the object of the event.
            previous: it as it was before. With it an update that changes nothing is no event, and None.
        """
        return self._account.emit(event_type, obj, previous=previous)

    def report_meter_errors(
        self,
        event_name: str,
        *,
        code: MeterErrorCode,
        identifiers: Sequence[str] = (),
        count: int | None = None,
    ) -> ThinEvent:
        """Report invalid meter events that were accepted, by a thin event.

        Args:
            event_name: of the meter; without an active one the report is ``no_meter_found``.
            code: what was wrong with all of them.
            identifiers: of the events; at most ten are in the report, as samples.
            count: how many there were; None: as many as there are identifiers.
        """
        with self._account.lock:
            meter = self._account.meters.active(event_name)
            return self._account.report_thin(
                meter_error_report(
                    None if meter is None else meter.id,
                    code=code,
                    identifiers=identifiers,
                    count=len(identifiers) if count is None else count,
                    now=self.clock(),
                )
            )

    async def deliver(
        self, *events: Event | ThinEvent | str, to: str | None = None, forge: Forgery | None = None
    ) -> tuple[Delivery, ...]:
        """Deliver now and return the attempts.

        Without events: all that has happened by the clock and is due, retries too. With events, or their
        ids: these, in this order, as often as they are named, whether or not they were delivered before;
        nothing else. So a test says what comes twice, late or in another order than it happened.

        Args:
            events: which; none: what is due.
            to: only to the endpoint of this URL; None: to each that wants them.
            forge: what is to be wrong with the deliveries of ``events``: ``wrong_secret``, ``changed``,
                ``truncated``, ``unsigned``, ``old_scheme`` (``v0`` only), ``stale`` or ``early`` (signed a
                day ago, or a day from now).

        Raises:
            ValueError: if there is no such event, endpoint or forgery, or a forgery without events.
        """
        if forge is not None and (forge not in FORGERIES or not events):
            allowed = ", ".join(FORGERIES)
            raise ValueError(f"forge is {forge!r}; it must be one of {allowed}, with the events to forge")
        if not events:
            run_due_transitions(self._account)
            return tuple(await self._courier.deliver_due())
        with self._account.lock:
            every: list[AnyEvent] = [*self._account.log, *self._account.thin_log]
            known = {event.id: event for event in every}
            named = [event if isinstance(event, str) else event.id for event in events]
            unknown = [name for name in named if name not in known]
            endpoints = self._endpoints(to)
        if unknown or not endpoints:
            missing = f"event {unknown[0]}" if unknown else f"webhook endpoint {to or ''}".strip()
            raise ValueError(f"there is no {missing}")
        chosen = [known[name] for name in named]
        return tuple(await self._courier.deliver(chosen, endpoints=endpoints, how=forge))

    def _endpoints(self, url: str | None) -> list[WebhookEndpoint]:
        return [endpoint for endpoint in self._account.endpoints if url in {None, endpoint.url}]
