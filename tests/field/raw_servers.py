"""Six ASGI servers in this process or beside it, and a client that sends targets as they are written."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.lifespan.on import LifespanOn

from drivers.llm_apps import listening
from servers.stores import free_port


@asynccontextmanager
async def _running(
    serve: Coroutine[Any, Any, object], port: int, stop: Callable[[], object], tasks: str = "-"
) -> AsyncGenerator[int]:
    """Run a server as a task of this event loop; ``tasks``: those that it leaves if clients leave."""
    running = asyncio.create_task(serve)
    try:
        await _wait_until_open(port)
        yield port
    finally:
        stop()
        await running
        await _cancel_tasks(tasks)


def _hypercorn(app: ASGIApp) -> AbstractAsyncContextManager[int]:
    serve: Any = pytest.importorskip("hypercorn.asyncio").serve
    config: Any = pytest.importorskip("hypercorn.config").Config()
    port, done = free_port(), asyncio.Event()
    config.bind, config.graceful_timeout = [f"127.0.0.1:{port}"], 1
    return _running(serve(app, config, shutdown_trigger=done.wait), port, done.set)


def _granian(app: ASGIApp) -> AbstractAsyncContextManager[int]:
    embed: Any = pytest.importorskip("granian.server.embed")
    interfaces: Any = pytest.importorskip("granian.constants").Interfaces
    port = free_port()
    server = embed.Server(app, port=port, interface=interfaces.ASGI, log_enabled=False)
    return _running(server.serve(), port, server.stop, "future_watcher")


@asynccontextmanager
async def _gunicorn(app: ASGIApp) -> AsyncGenerator[int]:
    """Run gunicorn's own ASGI worker; in a process of its own it would not share the app."""
    worker_class: Any = pytest.importorskip("gunicorn.workers.gasgi").ASGIWorker
    config: Any = pytest.importorskip("gunicorn.config").Config()
    log = pytest.importorskip("gunicorn.glogging").Logger(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = worker_class(1, os.getppid(), [SimpleNamespace(sock=listener)], None, 30, config, log)
        worker.asgi, worker.loop = app, asyncio.get_running_loop()
        stop, port = partial(setattr, worker, "alive", False), listener.getsockname()[1]
        async with _running(worker._serve(), port, stop, "ASGIProtocol"):
            yield port
        worker.tmp.close()


@asynccontextmanager
async def _daphne(app: ASGIApp) -> AsyncGenerator[int]:
    """Run Daphne's protocol in this event loop. It sends no lifespan events: uvicorn's part for them does."""
    server_module: Any = pytest.importorskip("daphne.server")
    factory: Any = pytest.importorskip("daphne.http_protocol").HTTPFactory
    reactors: Any = pytest.importorskip("twisted.internet.asyncioreactor")

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    loop = asyncio.get_running_loop()
    reactor = server_module.reactor = reactors.AsyncioSelectorReactor(loop)
    server = server_module.Server(run, endpoints=["none"])
    server.connections = {}
    server.application_checker()
    lifespan = LifespanOn(uvicorn.Config(app, lifespan="auto"))
    await lifespan.startup()
    listener = reactor.listenTCP(0, factory(server), interface="127.0.0.1")
    try:
        yield listener.getHost().port
    finally:
        await listener.stopListening().asFuture(loop)
        for call in reactor.getDelayedCalls():
            call.cancel()
        await _cancel_tasks("_daphne.<locals>.run")
        await lifespan.shutdown()


@asynccontextmanager
async def _uvicorn(app: ASGIApp, http: Any = "h11") -> AsyncGenerator[int]:
    async with listening(app, http=http, lifespan="auto") as port:
        yield port


async def _cancel_tasks(name: str) -> None:
    """Cancel what a server leaves of requests whose client has left."""
    for task in asyncio.all_tasks():
        if name in repr(task.get_coro()):
            task.cancel()
            await asyncio.wait([task])


async def _wait_until_open(port: int) -> None:
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
    "gunicorn": _gunicorn,
    "daphne": _daphne,
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
