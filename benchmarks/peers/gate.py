"""The least middleware that a limiter without one of its own needs: pure ASGI, a header, a 429."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peers.bare import CUSTOMER_HEADER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send


def customer_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == CUSTOMER_HEADER:
            return value.decode("latin-1")
    raise LookupError("the request names no customer")


async def refuse(send: Send) -> None:
    await send({"type": "http.response.start", "status": 429, "headers": [(b"retry-after", b"60")]})
    await send({"type": "http.response.body", "body": b""})


class LocalGate:
    """Serves a request only if ``admit(customer)`` is true; it never waits for anything."""

    def __init__(self, app: ASGIApp, admit: Callable[[str], bool]) -> None:
        self.app = app
        self.admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.admit(customer_of(scope)):
            await self.app(scope, receive, send)
        else:
            await refuse(send)


class Gate:
    """Serves a request only where ``admit(customer)`` says so."""

    def __init__(self, app: ASGIApp, admit: Callable[[str], Awaitable[bool]]) -> None:
        self.app = app
        self.admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or await self.admit(customer_of(scope)):
            await self.app(scope, receive, send)
        else:
            await refuse(send)
