"""HTTP client for Stripe over kept-alive connections.

aiohttp costs a tenth of the CPU of Stripe's SDK on httpx. A flusher sends hundreds of meter events a second.
See docs/design/decisions/0037-stripe-over-aiohttp.md.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from meterkit.cancellation import keep_cancellation
from meterkit.stripe.request import HttpResponse, RequestResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.stripe.request import Failure

_IDLE_S_MAX: Final = 20.0  # Sooner than a server or a firewall between would close it.
# A page of a hundred subscriptions with their items, invoices and metadata has several megabytes.
_ANSWER_BYTES_MAX: Final = 32_000_000


class HttpClient:
    """Requests to one address, each sent once. Belongs to the event loop that it is made in.

    The proxies of the environment (``HTTPS_PROXY``, ``NO_PROXY``) are used for an ``https://`` address, and
    certificates are verified by the system's store and certifi's.

    Args:
        base: ``https://host`` or, for emulators, ``http://host:port``.
        timeout_s: for a whole request, from the connection to the last byte of the answer.
    """

    def __init__(self, base: str, *, timeout_s: float) -> None:
        self._base = base.rstrip("/")
        self._origin = "/".join(self._base.split("/")[:3])
        is_secure = self._base.startswith("https://")
        self._session = aiohttp.ClientSession(
            # The caller limits the number of requests under way.
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_IDLE_S_MAX, ssl=_tls_context() if is_secure else True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            trace_configs=[_trace_connections()],
            trust_env=is_secure,
        )

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> HttpResponse | RequestResult:
        """Send one request; its answer, or why there is no whole one. Raises nothing but cancellation."""
        return await keep_cancellation(self._send_request(method, path, headers, body))

    async def _send_request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> HttpResponse | RequestResult:
        # Until it has a connection no byte of it has left.
        request = SimpleNamespace(has_connection=False)
        try:
            async with self._session.request(
                method,
                f"{self._base}{path}",
                data=body,
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=request,
            ) as response:
                content = bytearray()
                async for piece in response.content.iter_any():
                    content += piece
                    if len(content) > _ANSWER_BYTES_MAX:
                        return RequestResult(failure="no_reply", message="the answer is too long")
                found = {name.lower(): value for name, value in response.headers.items()}
                return HttpResponse(response.status, found, bytes(content))
        except (aiohttp.ClientError, OSError, RuntimeError, ValueError) as error:
            # aiohttp's own errors, those of sockets and of time, a session that is closed.
            failure: Failure = "no_reply" if request.has_connection else "not_sent"
            kind = type(error).__name__
            # A path of the address may be a secret of a proxy.
            message = f"{self._origin} ({kind})" if failure == "not_sent" else kind
            return RequestResult(failure=failure, message=message)

    async def close(self) -> None:
        """Close all connections; what is sent afterwards is not sent."""
        await self._session.close()


def _trace_connections() -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()

    async def connected(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.has_connection = True

    trace.on_connection_create_end.append(connected)
    trace.on_connection_reuseconn.append(connected)
    return trace


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    with suppress(ImportError):  # Where the system has no certificates of its own.
        context.load_verify_locations(import_module("certifi").where())
    return context
