"""Hostile paths: none reaches a handler or a file whose own path a gated line names, unless it admits it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import unquote

import pytest
from starlette.types import ASGIApp

from drivers.app import SentMessages, served, staying
from drivers.sampled import whole
from drivers.spellings import random_spelling, spellings
from faults.refusals import http_scope
from field.frameworks import ANY, APPS, CHAT, FILES, ITEM, MCP_CALL
from field.matrix import Matrix
from field.raw_servers import SERVERS, ask_each, serving

pytestmark = [
    pytest.mark.anyio,
    # Django's file server reads in turn, FastAPI has a newer way to say its root path.
    pytest.mark.filterwarnings("ignore"),
]

SECRET: Final = b"what the report says"
PUBLIC: Final = b"what all may read"
GATED: Final = "/files/reports/a.txt"
OPEN: Final = ("/files/public/a.txt", "/files/public/Guide.txt", "/files/public/deep/er/b.txt")
SEEDS: Final = range(48)
"""100,000 paths in all: 130 of an app."""
FREE: Final = "  free: {price: {amount_cents: 0, interval: month}}\n"
PRO: Final = (
    "  press: {price: {amount_cents: 0, interval: month}, features: [other]}\n"
    "  pro: {rank: 10, price: {amount_cents: 2900, interval: month}, features: [full, other]}\n"
)
METHODS: Final = ("POST", "post", "PUT", "GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "BREW")
HEADERS: Final = (
    "host: x\r\nconnection: close\r\nauthorization: bearer x\r\norigin: http://o\r\n"
    "access-control-request-method: POST\r\ncontent-type: application/json\r\n"
    f"accept: application/json, text/event-stream\r\ncontent-length: {len(MCP_CALL)}\r\n"
)


def cells(apps: Iterable[str], chosen: tuple[str, str]) -> list[Any]:
    """Each app on each server with all spellings; without ``--whole`` the chosen one with each fifth."""
    return [(*chosen, 5), *(whole(*cell, 1) for cell in product(SERVERS, apps))]


def plans(*lines: tuple[str, str]) -> str:
    routes = "".join(f'  - {{match: "{match}", {kind}}}\n' for match, kind in lines)
    meters = "features: [full, other]\nmeters: {requests: {unit: request}}\n"
    return f"{meters}routes:\n{routes}plans:\n{FREE}{PRO}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "data"
    for path in (GATED, *OPEN):
        file = folder / path.removeprefix("/files/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(SECRET if path == GATED else PUBLIC)
    return folder


def installed(apps: Mapping[str, Callable[[Any], ASGIApp]], given: Any) -> list[str]:
    """The apps whose framework is installed; `make field` installs all."""
    found: list[str] = []
    for name, build in sorted(apps.items()):
        with suppress(pytest.skip.Exception):
            build(given)
            found.append(name)
    return found


async def ask(app: ASGIApp, target: str, method: str = "GET") -> bytes:
    """The answer to a target as uvicorn hands it on."""
    sent = SentMessages()
    scope = http_scope("acme", unquote(target.partition("?")[0]))
    headers = [*scope["headers"], (b"host", b"x"), (b"content-type", b"application/json")]
    scope.update(method=method, raw_path=target.encode(), headers=headers)
    with suppress(Exception):  # What an app raises for a path serves nothing.
        await app(scope, staying(MCP_CALL), sent)
    return b"".join(message.get("body", b"") for message in sent)


def random_lines(random: Random, gates: Sequence[str]) -> list[tuple[str, str]]:
    """Gates, with lines before them that take other paths, and lines after them that take all."""
    less = ("exempt: true", "always: true", "consume: {requests: 1}", "feature: other", "enforcement: shadow")
    before = (
        "/files/public/{path:path}",
        "/{name}",
        "/public/{path:path}",
        "GET /v1/open",
        "/data/{path:path}",
    )
    after = ("/files/{path:path}", "/v1/{path:path}", "/{folder}/{path:path}", "*")
    lines = {match: random.choice(less) for match in random.sample(before, random.randint(0, 3))}
    lines |= dict.fromkeys(gates, "feature: full")
    lines |= {match: random.choice(less) for match in random.sample(after, random.randint(0, 2))}
    last = lines.pop("*", None)
    return [*lines.items(), *([("*", last)] if last else [])]


@pytest.mark.dear("640 paths through sixteen apps: fewer meet too few gates")
@pytest.mark.parametrize(("seed", "paths"), [(0, 40), *(whole(seed, 130) for seed in SEEDS)])
async def test_no_random_path_reaches_what_is_gated(
    seed: int, paths: int, folder: Path, matrix: Matrix, caplog: pytest.LogCaptureFixture
) -> None:
    """F-311, F-201, F-202."""
    caplog.set_level(logging.CRITICAL, "meterkit")
    random = Random(seed)  # noqa: S311 - it draws tests
    ran: list[str] = []
    read = tried = 0
    handlers = installed(APPS, ran)
    templates = (GATED, "/files/reports/{path:path}", "/files/{folder}/a.txt", "/files/reports/{name}")
    for name in random.choices(installed(FILES, folder), k=8):
        text = plans(*random_lines(random, [random.choice(templates)]))
        async with served(FILES[name](folder), plans=text) as at:
            await at.kit.customers.set_plan("acme", "press")
            bare = FILES[name](folder)
            for _ in range(paths):
                target = random_spelling(random, GATED)
                tried += 1
                if SECRET in await ask(bare, target):
                    read += 1
                    assert SECRET not in await ask(at.app, target), (name, target, text)
    for name in random.sample(handlers, min(8, len(handlers))):
        gates = [
            f"{random.choice(('POST ', ''))}{CHAT}",
            f"{random.choice(('POST ', ''))}{ITEM}/{{name}}",
            ANY,
        ]
        text = plans(*random_lines(random, gates))
        async with served(APPS[name](ran), plans=text) as at:
            await at.kit.customers.set_plan("acme", "press")
            for _ in range(paths):
                target = random_spelling(random, random.choice((CHAT, f"{ITEM}/a", ANY)))
                method = random.choice(METHODS) if random.random() < 0.3 else "POST"
                tried += 1
                await ask(at.app, target, method)
                assert ran == [], (name, method, target, text)
    assert read > paths // 3
    matrix.note(f"random paths, seed {seed}: {tried} tried, 0 pass; {read} read the gated file of a bare app")


FILE_PLANS: Final = plans(
    ("/files/reports/{path:path}", "feature: full"), ("/files/public/{path:path}", "exempt: true")
)
TABLE: Final = spellings(GATED)


@pytest.mark.dear("each spelling is a connection to a real server")
@pytest.mark.parametrize(("server", "name", "nth"), cells(FILES, ("httptools", "handler")))
async def test_no_spelling_reads_a_gated_file(
    server: str, name: str, nth: int, folder: Path, matrix: Matrix
) -> None:
    """F-201, F-202, F-311: with no line for all that is left, what no line takes passes."""
    table = TABLE[::nth]
    async with serving(FILES[name](folder), server, root=name.endswith("root path")) as port:
        bare = await ask_each(port, [("GET", target) for target in (GATED, *table, *OPEN)], customer="acme")
    assert SECRET in bare["GET", GATED]
    read = [target for target in table if SECRET in bare["GET", target]]
    async with served(FILES[name](folder), plans=FILE_PLANS) as at:
        await at.kit.customers.set_plan("pro", "pro")
        async with serving(at.app, server, root=name.endswith("root path")) as port:
            for customer in ("acme", ""):
                found = await ask_each(port, [("GET", target) for target in table], customer=customer)
                assert [] == [target[:80] for (_, target), answer in found.items() if SECRET in answer]
            assert SECRET in (await ask_each(port, [("GET", GATED)], customer="pro"))["GET", GATED]
            found = await ask_each(port, [("GET", target) for target in OPEN], customer="")
            assert all((PUBLIC in bare[key]) == (PUBLIC in answer) for key, answer in found.items())
    matrix.note(
        f"{name:27} {server:10} {len(read):3} of {len(table)} spellings read the file, 0 pass its gate"
    )


HANDLER_PLANS: Final = plans(
    *((match, "feature: full") for match in (f"POST {CHAT}", f"POST {ITEM}/{{name}}", ANY))
)
REQUESTS: Final = [
    *(("POST", target) for path in (CHAT, f"{ITEM}/a", ANY) for target in spellings(path)),
    *product(METHODS, (CHAT, f"{CHAT}/", f"{ITEM}/a", f"{ITEM}/a%2Fb", ANY)),
]


@pytest.mark.dear("each spelling is a connection to a real server")
@pytest.mark.parametrize(("server", "framework", "nth"), cells(APPS, ("h11", "litestar")))
async def test_no_spelling_or_method_runs_a_gated_handler(
    server: str, framework: str, nth: int, matrix: Matrix
) -> None:
    """F-130, F-131: Litestar, Quart and BlackSheep ran handlers for paths that matched no line."""
    requests = REQUESTS[::nth]
    ran: list[str] = []
    counts: list[int] = []
    for plan in ("free", "pro"):
        async with served(APPS[framework](ran), plans=HANDLER_PLANS) as at:
            await at.kit.customers.set_plan("acme", plan)
            async with serving(at.app, server) as port:
                await ask_each(port, requests, customer="acme", headers=HEADERS, body=MCP_CALL)
        counts.append(len(ran))
    assert counts[0] == 0
    assert counts[1] > 0
    matrix.note(f"{framework:18} {server:10} {counts[1]:3} of {len(requests)} reach a handler, 0 pass a gate")
