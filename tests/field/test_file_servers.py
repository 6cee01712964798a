"""File servers behind real servers: no spelling of a gated file gets around its gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from drivers.app import served
from drivers.llm_apps import listening
from field.frameworks import FILES
from field.matrix import Matrix
from servers.stores import free_port

pytestmark = [
    pytest.mark.anyio,
    # Django's file server reads in turn, FastAPI has a newer way to say its root path.
    pytest.mark.filterwarnings("ignore"),
]

SECRET: Final = b"what the report says"
PUBLIC: Final = b"what all may read"
SPELLINGS_LEAST: Final = 400
# Without a line for all that is left: what no line takes passes.
PLANS = """
meters: {requests: {unit: request}}
features: [reports]
routes:
  - {match: "/files/reports/{path:path}", feature: reports}
  - {match: "/files/public/{path:path}", exempt: true}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro: {rank: 10, price: {amount_cents: 2900, interval: month}, features: [reports]}
"""
GATED: Final = "/files/reports/a.txt"
OPEN: Final = ("/files/public/a.txt", "/files/public/Guide.txt", "/files/public/deep/er/b.txt")
SERVERS: Final = ("h11", "httptools", "hypercorn", "granian")
CHOSEN: Final = ("handler with a path", "httptools")


def _spellings() -> Iterator[str]:
    dots = ("..", "%2e%2e", ".%2e", "%2E.", "%252e%252e", "..;", "...", "%2e%2e%00", ".. ".strip())
    slashes = ("/", "//", "%2f", "%2F", "%5c", "\\", "%252f", "/./", "%2f%2f")
    for dot, before, after in product(dots, slashes, slashes):
        yield f"/files/public{before}{dot}{after}reports/a.txt"
    for slash in slashes[1:]:
        yield from (f"/files{slash}reports/a.txt", f"/files/reports{slash}a.txt")
        yield from (f"{slash}files/reports/a.txt", f"{GATED}{slash}", f"/files/x{slash}../reports/a.txt")
    for end in ("/", "//", "/.", "/./", "%00", "%00.png", ";x", ";x=1/", "%3Fx", "?x", "%23f"):
        yield f"{GATED}{end}"
    yield from (f"{GATED}#f", f"{GATED}%20", f"{GATED}.")
    for climb in ("x/../..", "x//..//..", "x/y/../../..", ".././public/..", "../../files", "deep/../../x/.."):
        yield f"/files/public/{climb}/reports/a.txt"
    for path in (GATED, "/files/public/../reports/a.txt", "/files//reports/a.txt", "//files/reports/a.txt"):
        for host in ("http://x", "HTTP://X", "https://u:p@x:8", "ws://x", "//x"):
            yield f"{host}{path}"
        yield from (path.upper(), path.replace("files", "Files"), f"{path}#f", f"/.{path}", f"/x/..{path}")
        yield from (path[1:], path.replace("reports", "REPORTS"), path.replace("r", "%72"), f"/%2e{path}")
    for name in ("/files/..", "/files/public/../.."):
        yield from (f"{name}/data/reports/a.txt", f"{name}/data//reports/a.txt")
    yield from (f"/files/public/{'x/../' * 2_000}../reports/a.txt", f"/files{'/' * 9_000}reports/a.txt")


SPELLINGS: Final = tuple(dict.fromkeys(_spellings()))


@asynccontextmanager
async def _hypercorn(app: ASGIApp) -> AsyncGenerator[int]:
    serve: Any = pytest.importorskip("hypercorn.asyncio").serve
    config: Any = pytest.importorskip("hypercorn.config").Config()
    port, done = free_port(), asyncio.Event()
    config.bind, config.graceful_timeout = [f"127.0.0.1:{port}"], 1
    serving = asyncio.create_task(serve(app, config, shutdown_trigger=done.wait))
    try:
        await _opened(port)
        yield port
    finally:
        done.set()
        await serving


def _behind_root_path(app: ASGIApp) -> ASGIApp:

    async def rooted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw = b"/api" + scope["raw_path"]
            scope = {**scope, "root_path": "/api", "path": f"/api{scope['path']}", "raw_path": raw}
        await app(scope, receive, send)

    return rooted


@asynccontextmanager
async def _granian(app: ASGIApp) -> AsyncGenerator[int]:
    embed: Any = pytest.importorskip("granian.server.embed")
    interfaces: Any = pytest.importorskip("granian.constants").Interfaces
    port = free_port()
    server = embed.Server(app, port=port, interface=interfaces.ASGI, log_enabled=False)
    serving = asyncio.create_task(server.serve())
    try:
        await _opened(port)
        yield port
    finally:
        server.stop()
        await serving
        for task in asyncio.all_tasks():  # It leaves those of requests whose client has left.
            if "future_watcher" in repr(task.get_coro()):
                task.cancel()
                await asyncio.wait([task])


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


@asynccontextmanager
async def _serving(app: ASGIApp, name: str, server: Any) -> AsyncGenerator[int]:
    app = _behind_root_path(app) if name.endswith("root path") else app
    own = {"hypercorn": _hypercorn, "granian": _granian}.get(server)
    async with own(app) if own else listening(app, http=server, lifespan="auto") as port:
        yield port


async def _answers(port: int, targets: Sequence[str], customer: str) -> dict[str, bytes]:
    """The answer to each target, each over a connection of its own."""
    gate, found = asyncio.Semaphore(16), dict[str, bytes]()

    async def one(target: str) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            headers = f"host: x\r\nconnection: close\r\nx-customer-id: {customer}"
            writer.write(f"GET {target} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
            try:
                found[target] = await reader.read()
            except ConnectionError:
                found[target] = b""
            writer.close()

    await asyncio.gather(*map(one, targets))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "data"
    names = [path.removeprefix("/files/") for path in OPEN]
    for name, content in (("reports/a.txt", SECRET), *((name, PUBLIC) for name in names)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _pairs() -> Iterator[object]:
    """Each app on each server; without ``--whole`` the chosen pair."""
    for cell in product(FILES, SERVERS):
        yield pytest.param(*cell, marks=[] if cell == CHOSEN else pytest.mark.whole)


@pytest.mark.dear("each of 765 spellings is a connection to a real server")
@pytest.mark.parametrize(("name", "server"), [*_pairs()])
async def test_no_file_spelling_passes_a_gate(name: str, server: str, folder: Path, matrix: Matrix) -> None:
    """F-201, F-202: dots and slashes led to gated files through an exempt line."""
    assert len(SPELLINGS) >= SPELLINGS_LEAST
    async with _serving(FILES[name](folder), name, server) as port:
        bare = await _answers(port, [GATED, *SPELLINGS, *OPEN], "acme")
    assert SECRET in bare[GATED]
    read = [target for target in SPELLINGS if SECRET in bare[target]]
    async with served(FILES[name](folder), plans=PLANS) as at, _serving(at.app, name, server) as port:
        await at.kit.customers.set_plan("pro", "pro")
        for customer in ("acme", ""):
            found = await _answers(port, [GATED, *SPELLINGS], customer)
            assert [] == [target[:80] for target in found if SECRET in found[target]]
        found = await _answers(port, [GATED, *islice(read, 20)], "pro")
        assert [] == [target[:80] for target in found if SECRET not in found[target]]
        found = await _answers(port, OPEN, "")
        assert [] == [target for target in OPEN if (PUBLIC in bare[target]) != (PUBLIC in found[target])]
    count = f"{len(read):3} of {len(SPELLINGS)}"
    matrix.note(f"{name:25} {server:9} {count} spellings read the file, 0 pass its gate")
