"""Random apps, plans files and spellings of paths, drawn by a generator that the caller seeds."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

NAMES: Final = ("a", "b", "c", "public", "reports")
_JOINTS: Final = (
    *("/", "/", "/", "//", "/./", "/../", "/..", "%2f", "%2e%2e", "%2e", "%5c", "\\", "..%2f", "..;/", ";x"),
    *("%23", "%3F", "%00", "%252e%252e", "%252f", "%25252e", "/%2e%2e/", "%5c..%5c", "..\\", "."),
)
_STEPS: Final[dict[str, Callable[[str], str]]] = {
    "decode": unquote,
    "merge": lambda path: re.sub("/+", "/", path),
    "resolve": lambda path: posixpath.normpath("/" + path.lstrip("/")),
    "backslashes": lambda path: path.replace("\\", "/"),
    "case": str.lower,
    "slash": lambda path: path.rstrip("/"),
    "parameters": lambda path: re.sub(";[^/]*", "", path),
    "fragment": lambda path: path.partition("#")[0],
    "query": lambda path: path.partition("?")[0],
}


class LooseApp:
    """An app that reads a path by some steps, and notes the path that it takes it for."""

    def __init__(self, random: Random, ran: list[str]) -> None:
        self._steps = random.sample(sorted(_STEPS), random.randint(0, 6))
        self._ran = ran

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root: str = scope.get("root_path", "")
        path: str = scope["path"].removeprefix(root)
        for step in self._steps:
            path = _STEPS[step](path)
        self._ran.append(root + path)
        await PlainTextResponse("ran")(scope, receive, send)


class NotingFiles(StaticFiles):
    """Starlette's file server, which notes the canonical path of the file that it finds."""

    def __init__(self, folder: Path, ran: list[str]) -> None:
        super().__init__(directory=folder)
        self._folder = folder
        self._ran = ran

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        full, found = self.lookup_path(self.get_path(scope))
        if found is not None and full.endswith(".t"):
            below = posixpath.relpath(full, self._folder.resolve())
            self._ran.append(f"{scope.get('root_path', '')}/{below}")
        await PlainTextResponse("ran")(scope, receive, send)


class RandomApps:
    """Draws apps, plans files and spellings.

    Args:
        random: draws.
        folder: has a file NAME/NAME/NAME.t of all names.
        ran: takes the canonical path of each handler and file that runs.
    """

    def __init__(self, random: Random, folder: Path, ran: list[str]) -> None:
        self._random = random
        self._folder = folder
        self._ran = ran

    def app(self) -> ASGIApp:
        """Draw an app: mostly Starlette's, with all that may hand a request on."""
        if self._random.random() < 0.2:
            return LooseApp(self._random, self._ran)
        return Starlette(routes=self._routes(0))

    def _routes(self, depth: int) -> list[BaseRoute]:
        return [self._route(depth) for _ in range(self._random.randint(1, 3))]

    def _route(self, depth: int) -> BaseRoute:
        random, ran = self._random, self._ran
        name = f"/{random.choice(NAMES)}" if random.random() < 0.8 else ""
        kinds = ("files", "handler", "fixed", "name", "loose", "whole", "mount", "host")
        kind = random.choice(kinds[: 6 if depth == 3 else 8])
        if kind == "mount":
            return Mount(name, routes=self._routes(depth + 1))
        if kind == "host":
            return Host("a", app=Router(self._routes(depth + 1)))
        if kind == "files":
            inner = self._folder / random.choice(NAMES) if random.random() < 0.3 else self._folder
            return Mount(name, NotingFiles(inner, ran))
        if kind == "handler":
            return Route(f"{name}/{{path:path}}", self._read)
        if kind == "loose":
            return Mount(name, LooseApp(random, ran))
        if kind == "whole":
            return Route(f"{name}/{{path:path}}", LooseApp(random, ran))
        return Route(f"{name}/{random.choice(NAMES) if kind == 'fixed' else '{name}'}", self._note)

    async def _note(self, request: Request) -> PlainTextResponse:
        self._ran.append(request.scope["path"])
        return PlainTextResponse("ran")

    async def _read(self, request: Request) -> PlainTextResponse:
        """Serve a file as many apps do."""
        name: str = request.path_params["path"]
        root = request.scope["path"].removesuffix(name)
        full = posixpath.realpath(posixpath.join(self._folder, name.replace("\0", "?").lstrip("/")))
        if full.startswith(f"{self._folder.resolve()}/") and posixpath.isfile(full):
            self._ran.append(f"{root}{posixpath.relpath(full, self._folder.resolve())}")
        return PlainTextResponse("ran")

    def lines(self) -> list[tuple[str, str]]:
        """Draw the lines of a plans file: template and what it says."""
        random = self._random
        found: dict[str, str] = {}
        for _ in range(random.randint(2, 5)):
            path = "".join(f"/{random.choice(NAMES)}" for _ in range(random.choice((1, 1, 2, 3))))
            path += random.choice(("/{path:path}", "/{path:path}", ".t", ""))
            kinds = (
                "feature: full",
                "feature: full",
                "exempt: true",
                "always: true",
                "consume: {requests: 1}",
            )
            found.setdefault(path, random.choice(kinds))
        return [*found.items(), *((("*", "consume: {requests: 1}"),) if random.random() < 0.5 else ())]

    def spelling(self) -> str:
        random = self._random
        found = "/"
        for _ in range(random.randint(1, 7)):
            name = random.choice(NAMES)
            found += name.upper() if random.random() < 0.1 else name
            found += random.choice(_JOINTS) if random.random() < 0.7 else "/"
            found += "../" if random.random() < 0.15 else "data/" if random.random() < 0.1 else ""
        return found + (f"{random.choice(NAMES)}.t" if random.random() < 0.4 else "")


def is_canonical(target: str) -> bool:
    """Whether a target has one meaning for all readers."""
    odd: Any = re.search(r"/\.{1,2}(/|\Z)|//|[\\A-Z;#?%\x00]|/\Z", unquote(target))
    return odd is None and "%2f" not in target.lower()
