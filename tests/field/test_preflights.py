"""CORS preflights to apps of other frameworks, with their CORS layer and without: no gated handler runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from drivers.app import served
from field import frameworks
from field.frameworks import CHAT, ORIGIN

pytestmark = [
    pytest.mark.anyio,
    # The thread of a2wsgi still sends after its task was cancelled.
    pytest.mark.filterwarnings("ignore:coroutine 'Queue.put' was never awaited"),
]

ASKS: Final = {"origin": ORIGIN, "access-control-request-method": "GET", "x-customer-id": ""}
PLANS: Final = f"""
meters: {{requests: {{unit: request}}}}
features: [exports]
routes:
  - {{match: "{CHAT}", feature: exports}}
  - {{match: "*", consume: {{requests: 1}}}}
plans:
  free: {{price: {{amount_cents: 0, interval: month}}}}
"""
GET: Final[Any] = {"methods": ("GET",)}
BOTH: Final[Any] = {"methods": ("GET", "OPTIONS")}
Ran = list[str]


def mounted(app: ASGIApp) -> ASGIApp:
    return Starlette(routes=[Mount("/", app)])


ANSWERING: Final[dict[str, Callable[[Ran], ASGIApp]]] = {
    "django": lambda ran: frameworks.django(ran, cors=True),
    "litestar": lambda ran: frameworks.litestar(ran, cors=True, **BOTH),
    "falcon": lambda ran: frameworks.falcon(ran, cors=True),
    "quart": lambda ran: frameworks.quart(ran, cors=True, **GET),
    "flask": lambda ran: frameworks.behind_a2wsgi(frameworks.flask(ran, cors=True, **GET)),
}
OPEN: Final[dict[str, Callable[[Ran], ASGIApp]]] = {
    "django": frameworks.django,
    "django, for other paths": lambda ran: frameworks.django(ran, cors=True, cors_urls="^/api/.*$"),
    "django in a mount": lambda ran: mounted(frameworks.django(ran, cors=True)),
    "litestar": lambda ran: frameworks.litestar(ran, **BOTH),
    "blacksheep": lambda ran: frameworks.blacksheep(ran, **BOTH),
    "blacksheep, for its own paths": lambda ran: frameworks.blacksheep(ran, cors=True, **GET),
    "quart": lambda ran: frameworks.quart(ran, cors=True, **BOTH),
    "sanic": lambda ran: frameworks.sanic(ran, **BOTH),
}


@pytest.mark.parametrize("name", ANSWERING)
async def test_the_frameworks_own_layer_answers(name: str) -> None:
    ran: Ran = []
    async with served(ANSWERING[name](ran), plans=PLANS) as at:
        answer = await at.client.options(CHAT, headers=ASKS)
        assert answer.is_success
        assert answer.headers["access-control-allow-origin"] in {ORIGIN, "*"}
    assert ran == []


@pytest.mark.parametrize("name", OPEN)
async def test_without_a_known_layer_no_handler_runs(name: str) -> None:
    """F-20a: a view function of Django answered preflights with the gated export."""
    ran: Ran = []
    async with served(OPEN[name](ran), plans=PLANS, cors=[ORIGIN]) as at:
        answer = await at.client.options(CHAT, headers=ASKS)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert (await at.client.get(CHAT)).status_code == 403
    assert ran == []
