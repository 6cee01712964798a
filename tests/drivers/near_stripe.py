"""An emulated Stripe that kits of the same process reach without sockets, and all others over HTTP.

A request over a socket takes more CPU than all that the emulator does for it. What a connection itself may
do is tried by tests/stripe_api, tests/delivery/test_stripe_v1.py and test_stripe_stream.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest
from starlette.types import ASGIApp, Message, Scope

from faults.refusals import http_scope
from meterkit.cancellation import keep_cancellation
from meterkit.stripe.http import HttpClient
from meterkit.stripe.request import HttpResponse, RequestResult
from meterkit.testing import StripeEmulator

_apps: Final[dict[str, ASGIApp]] = {}


@asynccontextmanager
async def served(emulator: StripeEmulator) -> AsyncGenerator[str]:
    """Serve an emulator; a kit that is made meanwhile calls it within the process. Yields its URL."""
    async with emulator.serve() as url:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("meterkit.stripe.http.HttpClient", _client_of)
            _apps[url] = emulator.app
            try:
                yield url
            finally:
                del _apps[url]


def _client_of(base: str, *, timeout_s: float) -> Any:
    app = _apps.get(base.rstrip("/"))
    return HttpClient(base, timeout_s=timeout_s) if app is None else _NearClient(app, base, timeout_s)


class _NearClient:
    def __init__(self, app: ASGIApp, base: str, timeout_s: float) -> None:
        self._app, self._timeout_s, self._is_closed = app, timeout_s, False
        self._host = base.rstrip("/").partition("://")[2]

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> HttpResponse | RequestResult:
        if self._is_closed:
            return RequestResult(failure="not_sent", message="RuntimeError")
        return await keep_cancellation(self._ask(method, path, headers, body))

    async def _ask(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> HttpResponse | RequestResult:
        gone = asyncio.Event()
        # A server goes on with a request whose client has gone.
        scope = stripe_scope(self._host, method, target, headers)
        task = asyncio.ensure_future(ask_app(self._app, scope, body, gone))
        try:
            async with asyncio.timeout(self._timeout_s):
                sent = await asyncio.shield(task)
        except TimeoutError:
            return RequestResult(failure="no_reply", message="TimeoutError")
        finally:
            gone.set()
        if not sent:
            return RequestResult(failure="no_reply", message="ServerDisconnectedError")
        return answer_of(sent)

    async def close(self) -> None:
        self._is_closed = True


async def ask_app(app: ASGIApp, scope: Scope, body: bytes | None, gone: asyncio.Event) -> list[Message]:
    """Ask an app, for as long as the client has not gone; what it sends."""
    sent: list[Message] = []
    received: list[Message] = [{"type": "http.request", "body": body or b"", "more_body": False}]

    async def receive() -> Message:
        if received:
            return received.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    with suppress(ConnectionError):  # The emulator drops the connection.
        await app(scope, receive, send)
    return sent


def stripe_scope(host: str, method: str, target: str, headers: Mapping[str, str]) -> Scope:
    """The scope of a request to Stripe, as a server makes it."""
    path, _, query = target.partition("?")
    named = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {
        **http_scope("", path),
        "method": method,
        "query_string": query.encode(),
        "headers": [(b"host", host.encode()), *named],
        "server": (host.partition(":")[0], 80),
    }


def answer_of(sent: Sequence[Message]) -> HttpResponse:
    """What an app has answered, as the library's client gives it."""
    start, *pieces = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return HttpResponse(start["status"], found, b"".join(piece.get("body", b"") for piece in pieces))
