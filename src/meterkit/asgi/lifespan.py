"""Lifespan of a wrapped app: the kit starts before the app and stops after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SHUT_DOWN: Final = frozenset({"lifespan.shutdown.complete", "lifespan.shutdown.failed"})


class StartedKit(Protocol):
    """Kit that is started and stopped."""

    async def start(self) -> None:
        """Begin to serve the running event loop."""

    async def stop(self) -> None:
        """Undo one start."""


async def run_lifespan(
    app: ASGIApp, kit: StartedKit, mark: str, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run an app's lifespan, with the kit started before it and stopped after it.

    Args:
        app: the wrapped app.
        kit: starts before the app and stops after it.
        mark: key in the scope meanwhile, for an inner middleware of the same kit.
        scope: the lifespan's.
        receive: the server's.
        send: the server's.
    """
    started = False

    async def starting() -> Message:
        nonlocal started
        message = await receive()
        if message["type"] == "lifespan.startup" and not started:
            try:
                await kit.start()
            except MeterkitError as error:  # To servers, one that merely raises has no lifespan.
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                raise
            started = True
        return message

    async def stopping(message: Message) -> None:
        nonlocal started
        if started and message["type"] in _SHUT_DOWN:
            # Servers end their loop once they have this message, whatever is still to be settled.
            started = False
            await kit.stop()
        await send(message)

    scope[mark] = True
    try:
        await app(scope, starting, stopping)
    except GeneratorExit:
        # Closed by the collector, with its loop gone or going: nothing can be awaited any more.
        started = False
        raise
    finally:
        scope.pop(mark, None)
        if started:
            await kit.stop()
