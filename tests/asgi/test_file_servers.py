"""File servers, hosts and routes to apps: no spelling of a path gets around a gate. F-201, F-202."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from json import loads
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from drivers.app import SentMessages, served, staying
from drivers.installed import installed
from faults.refusals import http_scope
from field.frameworks import files_by_hand, static

pytestmark = pytest.mark.anyio

SECRET = b"what the report says"
PUBLIC = b"what all may read"
PLANS = """
meters: {requests: {unit: request}}
features: [reports]
routes:
  - {match: "/files/reports/{path:path}", feature: reports}
  - {match: "/files/report.txt", feature: reports}
  - {match: "/files/public/{path:path}", exempt: true}
  - {match: "/files/{path:path}", always: true}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro: {rank: 10, price: {amount_cents: 2900, interval: month}, features: [reports]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `data` with a gated folder, a gated file and a public folder."""
    folder = tmp_path_factory.mktemp("served") / "data"
    files = {
        "reports/a.txt": SECRET,
        "report.txt": SECRET,
        "public/a.txt": PUBLIC,
        "pricing/index.html": PUBLIC,
    }
    for name, content in (files | {"public/guide/index.html": PUBLIC}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


class OtherRouter:
    """An app of an unknown framework, whose file server resolves dots after the router has merged slashes."""

    def __init__(self, folder: Path) -> None:
        self._files = static(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first, *segments = [segment for segment in scope["path"].split("/") if segment]
        if first.lower() != "files":
            await PlainTextResponse("none", status_code=404)(scope, receive, send)
            return
        path = f"/files/{'/'.join(segments)}"
        await self._files({**scope, "path": path, "root_path": "/files"}, receive, send)


def front(folder: Path) -> FastAPI:
    app = FastAPI(openapi_url=None)
    router = APIRouter(prefix="/files")
    router.frontend("/", directory=folder)  # type: ignore[attr-defined,unused-ignore]
    app.include_router(router)
    return app


APPS: dict[str, Callable[[Path], ASGIApp]] = {
    "mount": lambda folder: Starlette(routes=[Mount("/files", static(folder))]),
    "host": lambda folder: Starlette(routes=[Host("a", app=Router([Mount("/files", static(folder))]))]),
    "mount in a host in a mount": lambda folder: Starlette(
        routes=[Mount("/files", routes=[Host("a", app=Router([Mount("", static(folder))]))])]
    ),
    "route to an app": lambda folder: Starlette(routes=[Route("/{path:path}", OtherRouter(folder))]),
    "app behind a host": lambda folder: Starlette(routes=[Host("a", app=OtherRouter(folder))]),
    "default that is unknown": lambda folder: Router(
        [Mount("/x", static(folder))], default=OtherRouter(folder)
    ),
    "handler": files_by_hand,
    **({"frontend": front} if installed("fastapi") >= (0, 138) else {}),
    "unknown app": OtherRouter,
}


def spellings(name: str) -> Iterator[str]:
    """A gated path as clients may write it, some by way of the folder that is exempt."""
    for dot, before, after in product(("..", "%2e%2E"), ("/", "%2f", "//"), ("/", "%2F", "/./")):
        yield f"/files/public{before}{dot}{after}{name}"
    for climb in ("x/../..", "x//..//..", ".././public/..", "../../files/..//files"):
        yield f"/files/public/{climb}/{name}"
    yield from (f"/files//{name}", f"/files/./{name}", f"/files/{name}/.", f"/files/%2F{name}")
    yield from (f"/files/{name}//", f"/files/../data/{name}", f"/files/{name}%2f", f"//files/{name}")
    yield f"/files/public/{'x/../' * 5_000}../{name}"


SPELLINGS = [*spellings("reports/a.txt"), "/files/report.txt/", "/files//report.txt"]
SPELLINGS.append("/files/public/../report.txt/.")
# Below an exempt line, and as browsers ask for them.
OPEN = ("/files/public/a.txt", "/files/public/guide/", "/files/public/guide/index.html")


async def answer(app: ASGIApp, target: str, *, method: str = "GET", customer: str = "") -> tuple[int, bytes]:
    """Ask an app directly: clients and servers would tidy the path."""
    sent = SentMessages()
    scope = http_scope(customer, unquote(target))
    scope.update(method=method, raw_path=target.encode(), headers=[*scope["headers"], (b"host", b"a")])
    try:
        await app(scope, staying(), sent)
    except HTTPException as error:  # A router without an app around it.
        return error.status_code, b""
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("name", APPS)
async def test_no_file_spelling_passes_a_gate(name: str, folder: Path) -> None:
    """F-201, F-202: dots, slashes and encoded ones led past a gate through an exempt line."""
    bare = APPS[name](folder)
    served_bare = [target for target in SPELLINGS if (await answer(bare, target))[1] == SECRET]
    assert len(served_bare) >= 20
    async with served(APPS[name](folder), plans=PLANS) as at:
        await at.kit.customers.set_plan("pro", "pro")
        for target in served_bare:
            shown = target[:80]
            assert (await answer(at.app, target))[0] == 401, shown
            assert (await answer(at.app, target, customer="acme"))[0] == 403, shown
        assert (await answer(at.app, served_bare[-1], customer="pro")) == (200, SECRET)
        for target in OPEN:
            assert (await answer(at.app, target)) == (await answer(bare, target)), target
        assert (await answer(at.app, "/files/reports/a.txt", customer="pro")) == (200, SECRET)


async def test_a_path_that_no_gated_handler_reads_keeps_its_line(folder: Path) -> None:
    """A file server at the root has other files than the handlers that the app tries before it."""

    async def item(_: Request) -> PlainTextResponse:
        return PlainTextResponse("an item")

    plans = PLANS.replace('"/files/reports/{path:path}"', '"/pricing"')
    plans = plans.replace('"/files/{path:path}", always', '"*", exempt')
    app = Starlette(routes=[Route("/pricing", item), Mount("/", static(folder))])
    async with served(app, plans=plans) as at:
        assert (await answer(at.app, "/pricing", customer="acme"))[0] == 403
        assert (await answer(at.app, "/pricing/", customer="acme")) == (200, PUBLIC)


BESIDE = """
meters: {requests: {unit: request}}
features: [guides, reports]
routes:
  - {match: "/files/public/{path:path}", feature: guides, consume: {requests: 1}}
  - {match: "/files/reports/{path:path}", feature: reports, consume: {requests: 5}}
plans:
  free: {price: {amount_cents: 0, interval: month}, features: [guides]}
  press: {price: {amount_cents: 0, interval: month}, features: [reports]}
  all: {price: {amount_cents: 0, interval: month}, features: all}
"""


async def test_a_path_between_two_gates_takes_both_features(folder: Path) -> None:
    """The feature of the first gate opened the second one."""
    async with served(Starlette(routes=[Mount("/files", static(folder))]), plans=BESIDE) as at:
        for plan, lacking in (("free", "reports"), ("press", "guides")):
            await at.kit.customers.set_plan("acme", plan)
            status, body = await answer(at.app, "/files/public/..%2freports/a.txt", customer="acme")
            assert (status, loads(body)["feature"], loads(body)["plan"]) == (403, lacking, plan)
        await at.kit.customers.set_plan("acme", "all")
        assert (await answer(at.app, "/files/public/..%2freports/a.txt", customer="acme")) == (200, SECRET)


async def test_a_path_between_two_lines_costs_the_dearer(folder: Path) -> None:
    async with served(Starlette(routes=[Mount("/files", static(folder))]), plans=BESIDE) as at:
        await at.kit.customers.set_plan("acme", "all")
        used = 0
        for target, cost in (
            ("/files/public/a.txt", 1),
            ("/files/public/..%2freports/a.txt", 5),
            ("/files/public/%2e%2e/reports/a.txt", 5),
            ("/files/reports/..%2fpublic/a.txt", 5),
            ("/files//public/a.txt", 1),
        ):
            assert (await answer(at.app, target, customer="acme"))[0] == 200, target
            used += cost
            assert (await at.kit.usage("acme"))["meters"]["requests"]["used"] == used, target


class Uncased(StaticFiles):
    """A file server on a disk that ignores case, as those of macOS and Windows do."""

    def lookup_path(self, path: str) -> Any:
        return super().lookup_path(path.lower())


async def test_a_gate_holds_on_a_disk_that_ignores_case(folder: Path) -> None:
    app = Starlette(routes=[Mount("/files", Uncased(directory=folder))])
    spelt = ("/files/Reports/a.txt", "/files/REPORT.txt", "/files/public/../REPORTS/A.TXT")
    for paths, refused in ((None, 403), ("exact", 200)):
        async with served(app, plans=PLANS, paths=paths) as at:
            for target in spelt[: 2 if paths else 3]:
                assert (await answer(at.app, target, customer="acme"))[0] == refused, target
            # An exempt line is of no other spelling.
            for target, status in (("/files/public/a.txt", 200), ("/files/Public/a.txt", 401)):
                assert (await answer(at.app, target))[0] == status, target


async def test_a_trailing_slash_gets_around_no_gate(folder: Path) -> None:
    open_line, gate = "/files/public/{path:path}", "/files/public"
    plans = PLANS.replace(f'{{match: "{open_line}", exempt: true}}', f'{{match: "{gate}", feature: reports}}')
    plans = plans.replace('"/files/reports/{path:path}", feature: reports', f'"{open_line}", always: true')
    async with served(APPS["unknown app"](folder), plans=plans) as at:
        assert (await answer(at.app, "/files/public/", customer="acme"))[0] == 403
        assert (await answer(at.app, "/files/public/a.txt", customer="acme")) == (200, PUBLIC)


@pytest.mark.parametrize("fold", ["x/../", "%2e%2e/", "a/"])
async def test_a_path_of_ten_thousand_segments_gets_the_strictest(fold: str, folder: Path) -> None:
    many = fold * 10_000
    for name in ("mount", "unknown app"):
        async with served(APPS[name](folder), plans=PLANS) as at:
            for target in (f"public/{many}..%2freports/a.txt", f"{many}public/../reports/a.txt"):
                assert (await answer(at.app, f"/files/{target}", customer="acme"))[0] == 403
