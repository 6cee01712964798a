"""The official Stripe SDK, with which tests talk to the emulator, and which says how a request must look."""

from __future__ import annotations

import asyncio
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import httpx
import stripe

from meterkit.stripe.request import API_VERSION
from meterkit.stripe.result import Result

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from meterkit.outbox.intents import Sealed

CONNECTIONS_MAX: Final = 100

# What httpx raises before it has written anything; all else may have reached Stripe.
NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
# What the SDK raises of its own where an answer has a shape that it does not expect.
MISREAD: Final = (AttributeError, KeyError, TypeError, ValueError, Warning)
# The SDK leaves its constructor untyped.
CONNECTION_ERROR: Final[Callable[[str], Exception]] = stripe.APIConnectionError
SHOULD_RETRY: Final[Mapping[str | None, bool]] = {"true": True, "false": False}


@cache
def tls() -> ssl.SSLContext:
    """For clients of httpx; to read all certificates anew for each of them takes longer than most tests."""
    return httpx.create_ssl_context()


class HttpxClient(stripe.HTTPClient):
    """The SDK's way to the network: an httpx client of our own, asynchronous only. Made by :meth:`open`."""

    name = "httpx"
    _client: httpx.AsyncClient
    _timeout_s: float

    @classmethod
    def open(cls, *, timeout_s: float, trust_environment: bool) -> HttpxClient:
        """Return a client that belongs to the running event loop.

        Args:
            timeout_s: for a whole request, from waiting for a connection to the last byte of the answer.
            trust_environment: whether proxies and certificates are taken from environment variables.
        """
        opened = cls()
        opened._timeout_s = timeout_s
        opened._client = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=timeout_s / 2, pool=timeout_s / 2),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
            trust_env=trust_environment,
            verify=tls(),
        )
        return opened

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Send one request. Raises stripe.APIConnectionError, caused by what went wrong."""
        try:
            # The timeouts of httpx are per read and write: a trickling answer outlives them.
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.request(method, url, headers=dict(headers), content=post_data)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError) as error:
            raise CONNECTION_ERROR(f"no answer from Stripe: {type(error).__name__}") from error
        return response.content, response.status_code, response.headers

    async def close_async(self) -> None:
        """Close all connections."""
        await self._client.aclose()


class StripeSession:
    """An SDK client with a connection pool of its own. It never tries twice by itself.

    Make it in the event loop that it is used in, and close it there.

    Args:
        api_key: secret or restricted.
        api_base: another address for the API; None: Stripe's. With an ``http://`` address the proxies of
            the environment are not used.
        events_base: another address for the meter event stream; None: Stripe's.
        timeout_s: for a whole request.
    """

    def __init__(
        self, api_key: str, *, api_base: str | None = None, events_base: str | None = None, timeout_s: float
    ) -> None:
        # On, it has the SDK write a file into the user's configuration folder. There is no other switch.
        stripe.enable_telemetry = False
        api = (api_base or stripe.DEFAULT_API_BASE).rstrip("/")
        events = (events_base or stripe.DEFAULT_METER_EVENTS_API_BASE).rstrip("/")
        self._http_client = HttpxClient.open(
            timeout_s=timeout_s, trust_environment=not api.startswith("http://")
        )
        self.client = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            base_addresses={"api": api, "meter_events": events},
            max_network_retries=0,
            http_client=self._http_client,
        )

    async def close(self) -> None:
        """Close all connections. Closing twice is harmless."""
        await self._http_client.close_async()

    async def create_meter_event(self, intent: Sealed) -> Result:
        """Send one meter event, once, and tell what happened. Raises nothing but cancellation."""
        try:
            event = await self.client.v1.billing.meter_events.create_async(
                {
                    "event_name": intent.event_name,
                    "identifier": intent.identifier,
                    "payload": {"stripe_customer_id": intent.stripe_customer, "value": f"{intent.value:d}"},
                    "timestamp": intent.timestamp,
                },
                {"idempotency_key": intent.key},
            )
        except stripe.StripeError as error:
            return _refusal(error)
        except MISREAD as error:
            return Result(status=HTTPStatus.OK, failure="unreadable", message=type(error).__name__)
        return _acceptance(event, identifier=intent.identifier)


def _acceptance(event: object, *, identifier: str) -> Result:
    headers: Mapping[str, str] = getattr(getattr(event, "last_response", None), "headers", {})
    echoed = getattr(event, "identifier", None) == identifier
    return Result(
        status=HTTPStatus.OK,
        failure=None if echoed else "unreadable",
        message=None if echoed else "the answer is not that of this meter event",
        server_time_s=_date(headers),
        request_id=headers.get("request-id"),
    )


def _refusal(error: stripe.StripeError) -> Result:
    if isinstance(error, stripe.APIConnectionError):
        cause = error.__cause__
        sent = not isinstance(cause, NOT_SENT)
        return Result(failure="no_reply" if sent else "not_sent", message=type(cause or error).__name__)
    headers: Mapping[str, str] = error.headers or {}
    body = error.error
    status = error.http_status
    unreadable = status is None or status < HTTPStatus.MULTIPLE_CHOICES
    return Result(
        status=status,
        failure="unreadable" if unreadable else None,
        # For several statuses the SDK leaves type and code out of the exception itself.
        type=getattr(body, "type", None),
        code=getattr(body, "code", None) or error.code,
        message=getattr(body, "message", None) or error.user_message,
        should_retry=SHOULD_RETRY.get(headers.get("stripe-should-retry")),
        server_time_s=_date(headers),
        request_id=error.request_id,
    )


def _date(headers: Mapping[str, str]) -> int | None:
    try:
        return int(parsedate_to_datetime(headers["date"]).timestamp())
    except (KeyError, TypeError, ValueError):
        return None
