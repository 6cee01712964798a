"""Setup of the flusher from the settings, and the background tasks that deliver."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from meterkit.cancellation import complete
from meterkit.delivery.journaled_transport import JournaledTransport
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import SettingsError
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
    from contextlib import AbstractAsyncContextManager

    from meterkit.delivery.audit_root import RootOf
    from meterkit.delivery.flusher import Flusher
    from meterkit.delivery.sender import Transport
    from meterkit.delivery.stripe_stream import StripeStreamTransport
    from meterkit.delivery.stripe_v1 import StripeV1Transport
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
        items: Any = import_module("meterkit.delivery.invoice_items")
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


def delivery_tasks(
    store: Store,
    settings: Settings,
    flusher: Callable[[], AbstractAsyncContextManager[Flusher]],
    api: Callable[[], StripeApi],
    root_of: RootOf | None = None,
) -> Mapping[str, Callable[[], Coroutine[Any, Any, None]]]:
    """Background tasks of an event loop that delivers: the flusher and the period closer.

    ``root_of`` gives the root of a customer's audit log; None: there is none.

    Raises:
        SettingsError: usage cannot be sent by these settings.
    """
    transport_of(settings)  # Refuse wrong settings now, not later in a task.
    every_s = min(_PASS_EVERY_S, settings.flush_interval)
    closing: Any = import_module("meterkit.delivery.period_closer")
    return {
        "flush": partial(flush_forever, flusher, every_s=every_s),
        "closes": closing.PeriodCloser(store, api, root_of).run,
    }
