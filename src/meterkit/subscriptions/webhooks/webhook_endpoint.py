"""``kit.webhooks`` and its ASGI endpoint: accept Stripe's events, process them, show the backlog."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from weakref import WeakKeyDictionary

from meterkit.catalog.credit_values import find_top_ups
from meterkit.catalog.meters import is_sold
from meterkit.customers.states import CustomerStates
from meterkit.errors import StoreError
from meterkit.http_bodies import read_body, send_json, send_problem
from meterkit.log_throttle import MINUTE_S, Throttle
from meterkit.store.input_checks import check_customer
from meterkit.store.task_lease import RepeatedTask
from meterkit.subscriptions.webhooks.customer_sync import CustomerSyncer
from meterkit.subscriptions.webhooks.periodic_sync import EventSweeper
from meterkit.subscriptions.webhooks.stripe_events import ForgedEvent, hint_of, verify_signature
from meterkit.subscriptions.webhooks.sync_queue import SyncQueue
from meterkit.subscriptions.webhooks.sync_worker import SyncWorker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

    from starlette.types import Receive, Scope, Send

    from meterkit.settings import Settings
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.top_up_payments import TopUpPayments
    from meterkit.subscriptions.webhooks.subscription_writer import EndUsage
    from meterkit.subscriptions.webhooks.sync_queue import DeadWebhook, WebhookBacklog

_logger = logging.getLogger("meterkit.subscriptions")
Receipt = Literal["new", "duplicate", "ignored"]
"""Outcome of an event: queued, queued before, or of a type that needs no action."""


class Webhooks:
    """Receives Stripe's events and processes them.

    An event is a hint: its Stripe customer is synced, and the stored state follows from what Stripe
    has then. So events may arrive in any order, repeatedly, or never.

    Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: of the kit.
        settings: the signing secrets.
        api: makes the Stripe client on first use.
        take_refusals: handles the event of this id: Stripe does not count usage that it has accepted.
        top_ups: grants paid top-ups.
        top_up_if_low: buys an automatic top-up for a customer with a low balance.
        end_usage: makes usage of a customer's periods late, whose invoices are final.

    Attributes:
        is_worker: whether a task of this process processes events.
        has_endpoint: whether this process has an endpoint that Stripe may post to.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        api: Callable[[], StripeApi],
        *,
        take_refusals: Callable[[str], Awaitable[None]],
        top_ups: TopUpPayments,
        top_up_if_low: Callable[[str], Awaitable[None]],
        end_usage: EndUsage,
    ) -> None:
        self._store = store
        self._settings = settings
        self._api = api
        self._queue = SyncQueue(store)
        self._syncer = CustomerSyncer(
            store, api, self._queue, take_refusals, top_ups, top_up_if_low, end_usage
        )
        self._workers: WeakKeyDictionary[asyncio.AbstractEventLoop, SyncWorker] = WeakKeyDictionary()
        self.is_worker = self.has_endpoint = False

    @property
    def lacks_secret(self) -> bool:
        """Whether plans or top-ups are sold at Stripe, and no signing secret is set to hear of it."""
        if self.has_secret or self._settings.stripe_api_key is None:
            return False
        catalog = self._store.catalog
        return find_top_ups(catalog.credits) is not None or any(map(is_sold, catalog.plans.values()))

    @property
    def has_secret(self) -> bool:
        """Whether there is a signing secret, so that events can be verified."""
        return bool(self._settings.stripe_webhook_secret)

    async def receive(self, body: bytes, signatures: Iterable[bytes]) -> Receipt | ForgedEvent:
        """Verify and queue a webhook request, in one round trip to the store; the worker processes it later.

        Args:
            body: of the request, byte for byte.
            signatures: the values of its ``Stripe-Signature`` headers.

        Returns:
            The outcome; a :class:`ForgedEvent` if Stripe has not signed it lately.
        """
        secrets = (secret.get_secret_value() for secret in self._settings.stripe_webhook_secret)
        event = verify_signature(body, signatures, secrets, now_s=self._store.clock())
        if isinstance(event, ForgedEvent):
            return event
        hint = hint_of(event)
        if hint is None:
            return "ignored"
        noted = await self._queue.add(hint, alarm=event["type"] if hint.alarm else "")
        if noted == "duplicate":
            return "duplicate"
        if hint.alarm is not None:
            _logger.error("%s", hint.alarm)
        if noted == "full":
            _logger.error(
                "event %s of Stripe customer %s is not sent to handlers: 200 wait already",
                hint.event,
                hint.stripe_customer,
            )
        return "new"

    async def backlog(self) -> WebhookBacklog:
        """Counts of waiting and given-up syncs, and of alarms."""
        return await self._queue.read_backlog()

    async def dead(self) -> Sequence[DeadWebhook]:
        """List the Stripe customers whose sync was given up, the longest first, each with its error."""
        return await self._queue.list_dead()

    async def redrive(self, *stripe_customers: str) -> int:
        """Sync given-up Stripe customers again, by default all; return how many."""
        dead = {entry.stripe_customer for entry in await self._queue.list_dead()}
        chosen = sorted(dead.intersection(stripe_customers) if stripe_customers else dead)
        await self._queue.redrive(chosen)
        return len(chosen)

    async def work_off(self) -> None:
        """Process what is due now, and wait until that is done.

        Raises:
            SettingsError: no Stripe key is set.
        """
        self._api()
        await self._worker().run_until_idle()

    async def fetch(self, customer: str, *, cause: str = "api") -> None:
        """Fetch a customer's subscription from Stripe now; does nothing for an unlinked customer.

        Args:
            customer: the customer's id.
            cause: for the ledger; ``flush``: the caller seals the customer's usage after that.

        Raises:
            CustomerError: the id is not allowed.
            StripeError: Stripe refuses, or does not answer; it is retried in the background.
        """
        _, state = await CustomerStates(self._store).read(check_customer(customer))
        if state.stripe_customer is not None:
            self._api()
            await self._worker().sync(state.stripe_customer, cause)

    async def sync_later(self, stripe_customer: str) -> None:
        """Queue the sync of a Stripe customer."""
        await self._queue.request(stripe_customer, "api")

    @property
    def tasks(self) -> Mapping[str, RepeatedTask]:
        """Tasks beside an event loop, by name: the sync worker, and the sweep of undelivered events.

        No task waits for another: it could not pass on a second cancellation, and a client that connects may
        report the first as a failure.
        """
        sweeper = EventSweeper(self._store, self._api, self._queue)
        return {
            "sweep": RepeatedTask(lambda: self._run(sweeper.run), sweeper.run_once),
            "webhooks": RepeatedTask(lambda: self._run(self._worker().run), self.work_off),
        }

    async def _run(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._api()
        self.is_worker = True
        await task()

    async def sweep(self) -> int:
        """Queue the events since the last sweep that no webhook has delivered; return how many.

        Raises:
            SettingsError: no Stripe key is set.
            StripeError: Stripe refuses, or does not answer.
        """
        return await EventSweeper(self._store, self._api, self._queue).sweep()

    def _worker(self) -> SyncWorker:
        """The worker of the running event loop, to which its tasks and its breaker belong."""
        loop = asyncio.get_running_loop()
        worker = self._workers.get(loop)
        if worker is None:
            worker = self._workers[loop] = SyncWorker(self._store, self._queue, self._syncer)
        return worker


BODY_BYTES_MAX: Final = 524_288
"""Of a request; a Stripe event has a few kilobytes."""
_SIGNATURE: Final = b"stripe-signature"
_NOT_SET_UP: Final = (
    "no signing secret is set: set METERKIT_STRIPE_WEBHOOK_SECRET to that of the destination at Stripe"
    " (whsec_…)"
)
_RECEIVED: Final = {"received": True}
_REPEATED: Final = {"received": True, "duplicate": True}


class WebhookKit(Protocol):
    """The part of a kit that the endpoint uses."""

    @property
    def webhooks(self) -> Webhooks:
        """The receiver of Stripe's events."""
        ...


class WebhookEndpoint:
    """ASGI endpoint of Stripe webhooks: answers 200 once an event is queued, or needs no action.

    400: Stripe has not signed it lately. 413: more than 512 KiB. 503: it could not be queued, and Stripe
    retries for three days.

    Args:
        webhooks: receives the events.
    """

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks
        self._warned = Throttle(MINUTE_S)
        webhooks.has_endpoint = True
        if webhooks.lacks_secret:
            _logger.warning("the webhook endpoint refuses all events of Stripe: %s", _NOT_SET_UP)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the webhook endpoint takes HTTP requests; found {scope['type']}")
        if scope["method"] != "POST":
            await send_problem(send, HTTPStatus.METHOD_NOT_ALLOWED, "Stripe posts its events", allow=b"POST")
            return
        body = await read_body(scope, receive, most=BODY_BYTES_MAX)
        if body is None:
            await send_problem(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {BODY_BYTES_MAX} bytes")
            return
        if not self._webhooks.has_secret:
            self._warn(_NOT_SET_UP)
            await send_problem(send, HTTPStatus.SERVICE_UNAVAILABLE, "this endpoint is not set up yet")
            return
        signatures = [value for name, value in scope["headers"] if name == _SIGNATURE]
        try:
            receipt = await self._webhooks.receive(body, signatures)
        except StoreError as error:
            self._warn(f"events of Stripe cannot be queued; it will send them again: {error}")
            await send_problem(send, HTTPStatus.SERVICE_UNAVAILABLE, "it cannot be queued now; send it again")
            return
        if isinstance(receipt, ForgedEvent):
            self._warn(f"what came to the webhook endpoint is refused: {receipt}")
            await send_problem(send, HTTPStatus.BAD_REQUEST, str(receipt))
            return
        await send_json(send, HTTPStatus.OK, _REPEATED if receipt == "duplicate" else _RECEIVED)

    def _warn(self, message: str) -> None:
        """Log a warning, throttled by message."""
        if self._warned.is_due(message):
            _logger.warning("%s", message)
