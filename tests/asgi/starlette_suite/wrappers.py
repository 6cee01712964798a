"""Wrappers that Starlette's suite is run with; each is a factory ``(app) -> app``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


def pass_through(app: ASGIApp) -> ASGIApp:
    async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return wrapper


def without_last_header(app: ASGIApp) -> ASGIApp:
    """A wrapper that is not transparent, to see that the suite notices."""

    async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_less(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": list(message.get("headers", ()))[:-1]}
            await send(message)

        await app(scope, receive, send_less)

    return wrapper
