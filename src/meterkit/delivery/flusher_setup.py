"""Setup of the flusher from the settings: transports with their journal, and background tasks.

Rows are written after Stripe's response, and delivery does not wait for them: with a missing row the
comparison of sums decides.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from meterkit.cancellation import complete, start_task
from meterkit.delivery.delivery_pass import FLUSH
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import MeterkitError, SettingsError
from meterkit.log_throttle import HOUR_S, Throttle
from meterkit.outbox.journal import JournalRow
from meterkit.store.task_lease import RepeatedTask
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from meterkit.delivery.audit_root import RootOf
    from meterkit.delivery.delivery_outcome import DeliveryOutcome
    from meterkit.delivery.flush_report import FlushReport
    from meterkit.delivery.flusher import Flusher
    from meterkit.delivery.sender import Transport
    from meterkit.delivery.stripe_stream import StripeStreamTransport
    from meterkit.delivery.stripe_v1 import StripeV1Transport
    from meterkit.outbox.intents import SealedIntent
    from meterkit.outbox.journal import Journal
    from meterkit.settings import Settings
    from meterkit.store.store import Store

StripeTransport: TypeAlias = "StripeV1Transport | StripeStreamTransport"
"""A transport that sends to Stripe."""
_TRANSPORTS: Final[Mapping[str, tuple[str, str]]] = {
    "v1": ("meterkit.delivery.stripe_v1", "StripeV1Transport"),
    "v2-stream": ("meterkit.delivery.stripe_stream", "StripeStreamTransport"),
}
_PASS_EVERY_S: Final = 5.0
_logger = logging.getLogger("meterkit.delivery")

_PAGE: Final = 500
_WAITING_MOST: Final = 10_000
# A process that delivers once opens the database only at its end; on a busy machine, that takes seconds.
_CLOSE_S: Final = 10.0
_LOST: Final = (
    "the journal of deliveries lacks %d of the intents that Stripe has: after a restore, only Stripe's sums"
    " show them"
)


def transport_of(settings: Settings) -> StripeTransport:
    """The transport that the settings name.

    Raises:
        SettingsError: no Stripe key is set, or the transport refuses the settings.
    """
    if settings.stripe_api_key is None:
        message = "stripe_api_key: delivery needs a Stripe key; set METERKIT_STRIPE_API_KEY"
        raise SettingsError("stripe_api_key", message)
    name, made = _TRANSPORTS[settings.stripe_transport]
    module: Any = import_module(name)  # Imported only by processes that deliver.
    transport: StripeTransport = getattr(module, made)(
        settings.stripe_api_key.get_secret_value(),
        api_base=settings.reveal(settings.stripe_api_base),
        events_base=settings.reveal(settings.stripe_events_base),
    )
    return transport


@asynccontextmanager
async def flusher_for(
    store: Store,
    settings: Settings,
    look: Callable[[str], Awaitable[object]] | None = None,
    journal: Journal | None = None,
) -> AsyncGenerator[Flusher]:
    """A flusher that keeps its connections to Stripe until the block ends.

    Args:
        store: counts the usage.
        settings: name the transport and its limits.
        look: see :class:`meterkit.delivery.flusher.Flusher`.
        journal: the journal of deliveries; None: there is none.

    Raises:
        SettingsError: no Stripe key is set.
    """
    transport: Transport = transport_of(settings)
    if journal is not None:
        transport = JournaledTransport(transport, journal, store.now_ms)
    api = StripeApi(settings)
    summaries = StripeSummaries(api)
    try:
        module: Any = import_module("meterkit.delivery.flusher")  # Imported only by processes that deliver.
        items: Any = import_module("meterkit.delivery.late_usage_items")
        yield module.Flusher(
            store,
            transport,
            calls_per_s=settings.meter_event_calls_per_s,
            summaries=summaries,
            look=look,
            journal=journal,
            items=items.InvoiceItemMaker(store, api),
        )
    finally:
        await complete(transport.close())
        await complete(summaries.close())


async def flush_forever(
    flusher: Callable[[], AbstractAsyncContextManager[Flusher]], *, every_s: float
) -> None:
    """Flush until cancelled."""
    async with flusher() as running:
        await running.run(every_s=every_s)


async def flush_once(flusher: Callable[[], AbstractAsyncContextManager[Flusher]]) -> FlushReport:
    """Flush what is due."""
    async with flusher() as running:
        return await running.flush()


def delivery_tasks(
    store: Store,
    settings: Settings,
    flusher: Callable[[], AbstractAsyncContextManager[Flusher]],
    api: Callable[[], StripeApi],
    root_of: RootOf | None = None,
) -> Mapping[str, RepeatedTask]:
    """Tasks of a process that delivers: the flusher and the period closer.

    ``root_of`` gives the root of a customer's audit log; None: there is none.

    Raises:
        SettingsError: usage cannot be sent by these settings.
    """
    transport_of(settings)  # Refuse wrong settings now, not later in a task.
    every_s = min(_PASS_EVERY_S, settings.flush_interval)
    closing: Any = import_module("meterkit.delivery.period_closer")
    closer = closing.PeriodCloser(store, api, root_of)
    return {
        FLUSH: RepeatedTask(partial(flush_forever, flusher, every_s=every_s), partial(flush_once, flusher)),
        "closes": RepeatedTask(closer.run, closer.run_once),
    }


class JournaledTransport:
    """Transport that writes accepted intents into a journal.

    Delivery never waits for the journal: rows that come while one batch is written form the next batch. If
    the journal fails, up to 10,000 rows wait for the next delivery. Lost rows are counted in the log: after a
    restore, only Stripe's sums show what they delivered.

    Args:
        transport: delivers the intents.
        journal: gets the rows.
        now_ms: the store's clock.
    """

    def __init__(self, transport: Transport, journal: Journal, now_ms: Callable[[], int]) -> None:
        self._transport = transport
        self._journal = journal
        self._now_ms = now_ms
        self._waiting: list[JournalRow] = []
        self._writing: asyncio.Task[None] | None = None
        self._failures = Throttle(HOUR_S)

    @property
    def events_per_call(self) -> int:
        """Largest number of intents in a call."""
        return self._transport.events_per_call

    async def ready(self) -> DeliveryOutcome | None:
        """Prepare to send; return an outcome if that fails."""
        return await self._transport.ready()

    async def send(self, *intents: SealedIntent) -> DeliveryOutcome:
        """Try to deliver intents once, all or none; queue rows for accepted ones."""
        outcome = await self._transport.send(*intents)
        is_sure = outcome.delivered and (len(intents) == 1 or not outcome.is_of_contents)
        if is_sure:
            self._note(intents)
        return outcome

    async def close(self) -> None:
        """Close connections, and write the last rows within ten seconds."""
        await self._transport.close()
        rest = start_task(self._write_rest(), name="meterkit journal")
        await asyncio.wait((rest,), timeout=_CLOSE_S)
        rest.cancel()
        await asyncio.gather(rest, return_exceptions=True)
        if self._waiting:
            _logger.warning(_LOST, len(self._waiting))

    async def _write_rest(self) -> None:
        if self._writing is not None:
            await self._writing
        await self._write()  # Again, if the previous write has failed.

    def _note(self, intents: tuple[SealedIntent, ...]) -> None:
        now_ms = self._now_ms()
        self._waiting += [
            JournalRow(
                identifier=one.identifier,
                customer=one.customer,
                event_name=one.event_name,
                stripe_customer=one.stripe_customer,
                minute_s=one.timestamp,
                value=one.value,
                delivered_at_ms=now_ms,
            )
            for one in intents
        ]
        lost = len(self._waiting) - _WAITING_MOST
        if lost > 0:
            del self._waiting[_WAITING_MOST:]
            if self._failures.is_due("lost"):
                _logger.warning(_LOST, lost)
        self._begin()

    def _begin(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = start_task(self._write(), name="meterkit journal")

    async def _write(self) -> None:
        try:
            while page := self._waiting[:_PAGE]:
                await self._journal.write(page)
                del self._waiting[: len(page)]
                self._failures.forget()
        except MeterkitError as error:
            if self._failures.is_due("write"):
                _logger.warning(
                    "the journal of deliveries is not written; usage is still delivered: %s", error
                )
