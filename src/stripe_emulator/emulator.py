"""The Stripe emulator that tests and demonstrations hold in their hands."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.applications import Starlette

from stripe_emulator.account import Account
from stripe_emulator.api import ApiServer
from stripe_emulator.control_plane import ControlPlane
from stripe_emulator.page_visits import PageVisits
from stripe_emulator.webhook_controls import WebhookDispatcher

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from starlette.types import ASGIApp, Scope


LOOPBACK: Final = "127.0.0.1"
SERVER: Final = "stripe_emulator.server"


@dataclass(kw_only=True, eq=False, repr=False)
class StripeEmulator(ControlPlane):
    """A Stripe account in memory: meters and their events, prices, subscriptions, invoices, webhooks.

    It is reached over HTTP, by the official SDK or anything else:

        emulator = StripeEmulator()
        with emulator.running() as url:
            stripe = StripeClient("sk_test_1", base_addresses={"api": url, "meter_events": url})

    Tests and demonstrations in other processes look at it and script it without a key:
    ``GET /_emulator/events``: the accepted events, ``?customer=`` and ``?event_name=`` narrow it;
    ``GET``, ``POST``, ``DELETE /_emulator/faults``: the faults to come, one more, none;
    ``GET /_emulator/requests``: what was asked and answered; ``POST /_emulator/reset``: forget everything.

    ``GET``, ``POST /_emulator/clock``: what time it is, and ``{"advance": seconds}`` or ``{"to": instant}``;
    ``POST /_emulator/customers/{id}``: ``{"payments": "fail"}`` or ``"succeed"``, ``{"card": "pm_card_…"}``.

    ``GET``, ``POST /_emulator/endpoints``: the webhook endpoints, and one more (``url``, ``secret``,
    ``events``, ``thin``); ``POST /_emulator/emit``: any event (``type``, ``object``, ``previous``);
    ``POST /_emulator/deliver``: as :meth:`deliver` (``events``: their ids, ``to``, ``forge``);
    ``GET /_emulator/deliveries``: what became of them.

    ``POST /_emulator/checkout/{id}``, ``/_emulator/portal/{id}``: as :meth:`complete_checkout` and
    :meth:`use_portal`, the arguments as a form. The ``url`` of a session is a page with buttons for that.

    It refuses what Stripe refuses, in Stripe's words: an identifier a second time, timestamps out of
    bounds, more than one call at a time for a customer and meter. What Stripe leaves open is decided the
    harder way for the client. A batch of a meter event stream is taken or refused as a whole; what is wrong
    with an event of one that was accepted, thin events report.

    Args:
        clock: Unix seconds; everything that depends on time reads it, delays and latency aside.
        api_keys: the keys that are accepted; None: any that begins like a secret or restricted key.
        latency_s: how long every call takes, in real seconds.
        rate_limit_per_s: calls per second of ``clock`` before 429; None: no limit.
        summary_lag_s: how long an accepted event is missing in summaries.
        invoice_lag_s: how long an accepted event is missing in the lines of invoices. What is finalized
            meanwhile never has it: Stripe says that events are counted later, and not how much later.
        identifier_memory_s: how long an identifier is refused a second time.
        refuse_unknown_customers: else their events are answered with 200 and not counted. Both have been
            observed. The latter are reported by a thin event.
        reports_name: what of a refused event those reports name: Stripe's reference says the request's
            idempotency key, one of its pages the event's identifier.
        retry_days: how many days after a failed payment of an invoice the next is tried, one number a retry.
        after_retries: what becomes of a subscription when the last retry has failed.
        collects_after_cancel: whether drafts are finalized and collected by themselves after a call has
            canceled their subscription, the last invoice among them. False is the harder reading: Stripe says
            that "automatic collection for all unpaid invoices is disabled (`auto_advance=false`)", and others
            finalize the last invoice themselves (https://github.com/giselles-ai/giselle/pull/296).
        prices_usage_by: what decides between two prices of a meter where one is switched for the other.
            Stripe says "the price in effect when the usage was reported", and not whether an event's
            timestamp or its arrival tells that. ``timestamp``: an event stamped at the switch or later is
            charged at the new price. ``arrival``: only if it has arrived after the switch, too. In both,
            an event stamped before the switch that arrives after it is on no invoice.
        automatic_webhooks: whether events are delivered by themselves while the emulator is served, as they
            happen and fall due again; else by :meth:`deliver` alone.
        tax_percent: what ``automatic_tax`` adds to invoices; None: it is refused, as by an account that has
            not set it up.
    """

    def __post_init__(self) -> None:
        self._account = Account(self)
        self._courier = WebhookDispatcher(self._account)
        api = ApiServer(self._account, abort=_abort)
        self._visits = PageVisits(self._account, api)
        self._app = Starlette(
            routes=[*api.routes, *self._control_routes(), *self._page_routes()],
            lifespan=self._courier.running,
            exception_handlers={
                HTTPStatus.NOT_FOUND: api.unknown,
                HTTPStatus.METHOD_NOT_ALLOWED: api.unknown,
            },
        )

    @property
    def app(self) -> ASGIApp:
        """The emulator as an ASGI app. Only :meth:`serve` and :meth:`running` can drop connections."""
        return self._app

    def serve(self, *, host: str = LOOPBACK, port: int = 0) -> AbstractAsyncContextManager[str]:
        """Serve in the running loop: ``async with emulator.serve() as url:``. Port 0 takes a free one.

        Raises:
            ImportError: if uvicorn is not installed.
        """
        return cast("AbstractAsyncContextManager[str]", _server().serve(self._app, host=host, port=port))

    def running(self, *, host: str = LOOPBACK, port: int = 0) -> AbstractContextManager[str]:
        """Serve in a thread: ``with emulator.running() as url:``. Port 0 takes a free one.

        Raises:
            ImportError: if uvicorn is not installed.
        """
        return cast("AbstractContextManager[str]", _server().running(self._app, host=host, port=port))

    def serve_forever(self, *, port: int, host: str = LOOPBACK) -> None:
        """Serve until a signal stops the process.

        Raises:
            ImportError: if uvicorn is not installed.
        """
        _server().serve_forever(self._app, host=host, port=port)


def _server() -> Any:
    # Needs uvicorn, which an emulator that is only mounted somewhere does without.
    return import_module(SERVER)


def _abort(scope: Scope, reset: bool) -> bool:
    server = sys.modules.get(SERVER)
    return server is not None and bool(server.abort_connection(scope, reset))
