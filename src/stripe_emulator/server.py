"""The emulator on a port: a real server, so that real clients meet real connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from anyio.from_thread import start_blocking_portal

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ImportError("serving the Stripe emulator needs uvicorn: pip install 'meterkit[cli]'") from error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from starlette.types import ASGIApp, Scope

BACKLOG: Final = 128
SHUTDOWN_S: Final = 1
CLOSING_TURNS: Final = 3  # Of the event loop, until a connection that was closed is gone.
KEEP_ALIVE_S: Final = 3600  # A test that was busy meanwhile finds its connection as it left it.
# On, for 0 seconds: closing discards what is unsent and sends a reset.
LINGER_RESET: Final = struct.pack("ii", 1, 0)

Peers = tuple[object, object]
_transports: dict[Peers, asyncio.Transport] = {}


class _Protocol(H11Protocol):
    """Uvicorn's protocol, with a table of connections by peer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        super().connection_made(stream)
        connection = stream.get_extra_info("socket")
        if connection is not None:
            # Asyncio does so for sockets that name their protocol, which accepted ones do not. Without it the
            # second write of an answer waits 40 ms for the client's acknowledgement.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _transports[self.client, self.server] = stream

    def connection_lost(self, exc: Exception | None) -> None:
        _transports.pop((self.client, self.server), None)
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """A server that leaves signals to its host process, and ends at once when it is stopped.

    Uvicorn looks ten times a second whether it is to end, and whether it has: longer than most tests take.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def end(self) -> None:
        """Stop the server."""
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            _, hung = await asyncio.wait(list(state.tasks), timeout=SHUTDOWN_S)
            for task in hung:
                task.cancel()
        for _ in range(CLOSING_TURNS):
            await asyncio.sleep(0)
        await self.lifespan.shutdown()


def abort_connection(scope: Scope, reset: bool) -> bool:
    """Close the connection of a request without an answer. Returns False if it is not of this server."""
    transport = _transports.get((scope.get("client"), scope.get("server")))
    if transport is None:
        return False
    connection = transport.get_extra_info("socket")
    if reset and connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    transport.abort()
    return True


@contextlib.asynccontextmanager
async def serve(app: ASGIApp, *, host: str, port: int) -> AsyncGenerator[str]:
    """Serve ``app`` in the running loop; port 0 takes a free one. Yields its URL."""
    with _listen(host, port=port) as (listener, url):
        server = _Server(_server_config(app))
        serving = server.serve(sockets=[listener])
        task = asyncio.get_running_loop().create_task(serving, name="stripe-emulator")
        try:
            yield url
        finally:
            server.end()
            await task


@contextlib.contextmanager
def running(app: ASGIApp, *, host: str, port: int) -> Generator[str]:
    """Serve ``app`` in a thread of its own; port 0 takes a free one. Yields its URL."""
    served = serve(app, host=host, port=port)
    with (
        start_blocking_portal() as thread,
        thread.wrap_async_context_manager(served) as url,
    ):
        yield url


def serve_forever(app: ASGIApp, *, host: str, port: int) -> None:
    """Serve ``app`` until SIGINT or SIGTERM."""
    with _listen(host, port=port) as (listener, _):
        asyncio.run(uvicorn.Server(_server_config(app)).serve(sockets=[listener]))


@contextlib.contextmanager
def _listen(host: str, *, port: int) -> Generator[tuple[socket.socket, str]]:
    # Listening from here on, so that a client may connect before the loop has come to the server.
    with socket.create_server((host, port), backlog=BACKLOG) as listener:
        yield listener, f"http://{host}:{listener.getsockname()[1]}"


def _server_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
