"""Random apps, lines and spellings: whatever a bare app serves, no request without the feature reaches it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import unquote

import pytest
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message

from drivers.app import served, staying
from drivers.sampled import some
from faults.refusals import http_scope
from field.matrix import Matrix
from field.path_apps import NAMES, LooseApp, RandomApps, is_canonical

pytestmark = pytest.mark.anyio

APPS: Final = 60
SPELLINGS: Final = 150
PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
features: [full]
routes:
%s
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "data"
    for first, second, third in product(NAMES, NAMES, NAMES):
        (folder / first / second).mkdir(parents=True, exist_ok=True)
        (folder / first / second / f"{third}.t").write_text("a file")
    return folder


async def ask(app: ASGIApp, target: str, ran: list[str]) -> Sequence[str]:
    """The canonical paths of what runs for a target."""
    ran.clear()

    async def send(message: Message) -> None:
        del message

    scope = http_scope("acme", unquote(target))
    scope.update(raw_path=target.encode(), headers=[*scope["headers"], (b"host", b"a")])
    with suppress(HTTPException, OSError, ValueError):  # No route, a name that is too long, a NUL.
        await app(scope, staying(), send)
    return tuple(ran)


def kind_of(path: str, lines: Sequence[tuple[str, str]]) -> str | None:
    """What the first line says that takes a canonical path."""
    for template, kind in lines:
        if template == "*" or re.fullmatch(compile_path(template)[0].pattern[1:-1], path, re.DOTALL):
            return kind
    return None


@pytest.mark.dear("9,000 spellings in 60 apps: fewer meet too few gates")
@pytest.mark.parametrize("seed", some(range(11), {0}))
async def test_no_random_spelling_gets_around_a_gate(seed: int, folder: Path, matrix: Matrix) -> None:
    logging.getLogger("meterkit").setLevel(logging.CRITICAL)
    ran: list[str] = []
    apps = RandomApps(Random(seed), folder, ran)  # noqa: S311 - it draws tests
    tried = gated = canonical = 0
    for _ in range(APPS):
        app, lines = apps.app(), apps.lines()
        text = PLANS % "\n".join(f'  - {{match: "{path}", {kind}}}' for path, kind in lines)
        async with served(app, plans=text) as at:
            for target in (apps.spelling() for _ in range(SPELLINGS)):
                bare: Any = await ask(app, target, ran)
                tried += 1
                if not bare:
                    continue
                kind, what = kind_of(bare[0], lines), (target, bare, lines)
                if kind == "feature: full" and not _is_own_slash(target, bare[0]):
                    gated += 1
                    assert await ask(at.app, target, ran) == (), what
                elif is_canonical(target) and not isinstance(app, LooseApp) and kind != "feature: full":
                    canonical += 1
                    assert _paths_in(lines, target) or await ask(at.app, target, ran) == bare, what
    assert min(gated, canonical) > 15
    matrix.note(
        f"random apps, seed {seed}: {tried} spellings, {gated} of gated things, 0 pass; {canonical} canonical"
    )


def _is_own_slash(target: str, path: str) -> bool:
    """Whether a path has only a slash at its end more: `/a/` is below a line for `/a/{path:path}`."""
    return unquote(target).rstrip("/") == path.rstrip("/")


def _paths_in(lines: Sequence[tuple[str, str]], target: str) -> bool:
    """Whether a line is for what is below a path: a loose router may take the path for its folder."""
    return any(template == f"{target}/{{path:path}}" for template, _ in lines)
