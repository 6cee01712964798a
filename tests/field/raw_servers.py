"""Six ASGI servers in this process or beside it, and a client that sends targets as they are written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from drivers.llm_apps import listening
from servers.stores import free_port


@asynccontextmanager
async def _hypercorn(app: ASGIApp) -> AsyncGenerator[int]:
    serve: Any = pytest.importorskip("hypercorn.asyncio").serve
    config: Any = pytest.importorskip("hypercorn.config").Config()
    port, done = free_port(), asyncio.Event()
    config.bind, config.graceful_timeout = [f"127.0.0.1:{port}"], 1
    running = asyncio.create_task(serve(app, config, shutdown_trigger=done.wait))
    try:
        await _opened(port)
        yield port
    finally:
        done.set()
        await running


@asynccontextmanager
async def _granian(app: ASGIApp) -> AsyncGenerator[int]:
    embed: Any = pytest.importorskip("granian.server.embed")
    interfaces: Any = pytest.importorskip("granian.constants").Interfaces
    port = free_port()
    server = embed.Server(app, port=port, interface=interfaces.ASGI, log_enabled=False)
    running = asyncio.create_task(server.serve())
    try:
        await _opened(port)
        yield port
    finally:
        server.stop()
        await running
        for task in asyncio.all_tasks():  # It leaves those of requests whose client has left.
            if "future_watcher" in repr(task.get_coro()):
                task.cancel()
                await asyncio.wait([task])


@asynccontextmanager
async def _uvicorn(app: ASGIApp, http: Any = "h11") -> AsyncGenerator[int]:
    async with listening(app, http=http, lifespan="auto") as port:
        yield port


async def _opened(port: int) -> None:
    for _ in range(2_000):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.01)
        else:
            writer.close()
            return
    raise AssertionError("the server does not listen")


def _behind_root_path(app: ASGIApp) -> ASGIApp:
    async def rooted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw = b"/api" + scope["raw_path"]
            scope = {**scope, "root_path": "/api", "path": f"/api{scope['path']}", "raw_path": raw}
        await app(scope, receive, send)

    return rooted


SERVERS: Final[dict[str, Callable[[ASGIApp], AbstractAsyncContextManager[int]]]] = {
    "h11": _uvicorn,
    "httptools": lambda app: _uvicorn(app, "httptools"),
    "hypercorn": _hypercorn,
    "granian": _granian,
}


@asynccontextmanager
async def serving(app: ASGIApp, server: str, *, root: bool = False) -> AsyncGenerator[int]:
    """Serve an app; ``root``: behind a root path, as uvicorn hands it on."""
    async with SERVERS[server](_behind_root_path(app) if root else app) as port:
        yield port


async def ask_each(
    port: int,
    requests: Iterable[tuple[str, str]],
    *,
    customer: str,
    headers: str = "host: x\r\nconnection: close\r\n",
    body: bytes = b"",
) -> dict[tuple[str, str], bytes]:
    """The answer to each request, each over a connection of its own, some at once."""
    gate, found = asyncio.Semaphore(16), dict[tuple[str, str], bytes]()

    async def one(method: str, target: str) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"{method} {target} HTTP/1.1\r\n{headers}x-customer-id: {customer}\r\n\r\n"
            writer.write(head.encode() + body)
            try:
                found[method, target] = await reader.read()
            except ConnectionError:
                found[method, target] = b""
            writer.close()

    await asyncio.gather(*(one(*request) for request in requests))
    return found
