"""The app's lifespan: the kit starts before the app does, and stops after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SHUT_DOWN: Final = frozenset({"lifespan.shutdown.complete", "lifespan.shutdown.failed"})


class Startable(Protocol):
    """An object that the lifespan starts and stops."""

    async def start(self) -> None:
        """Begin to serve the running event loop."""

    async def stop(self) -> None:
        """Undo one start."""


async def lifespan(
    app: ASGIApp, kit: Startable, mark: str, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run an app's lifespan, and the kit's around it.

    Args:
        app: what is wrapped.
        kit: what starts before it and stops after it.
        mark: stands in the scope meanwhile, for an inner wrapping by the same kit.
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
