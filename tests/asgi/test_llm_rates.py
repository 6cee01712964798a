"""Rates count what language models have used, billed or not. F-87"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import meterkit
from drivers.llm_apps import PLANS, metered, tokens
from faults.refusals import eventually
from tokens.recordings import chat_usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from drivers.app import Served

pytestmark = pytest.mark.anyio

# What is counted is asked, not how soon.
PATIENT = {"store_timeout": 10.0}

LIMIT = 1_000_000_000
BARE = PLANS.replace(
    "routes:",
    """routes:
  - {match: "/bare", usage: auto}
  - match: "/reserved"
    usage: auto
    reserve: {output_tokens: {from: max_tokens, default: 9, ceiling: 9}}
""",
)
BY_MODEL = BARE.replace(
    "routes:", '  mini: {unit: token, from: output_tokens, where: {model: "*-mini"}}\nroutes:', 1
)
ROUGH = BARE + "billing: {sources: [estimated]}\n"


def sent(status: int) -> Response:
    answer = {"id": "c1", "object": "chat.completion", "model": "a-mini", "choices": []}
    return JSONResponse(answer | {"usage": chat_usage(3, 4)}, status)


def reported(status: int) -> Response:
    meterkit.record_usage(chat_usage(3, 4))
    return PlainTextResponse("done", status)


def late(status: int) -> Response:
    return PlainTextResponse(
        "done", status, background=BackgroundTask(meterkit.record_usage, chat_usage(3, 4))
    )


async def have_seen(at: Served, used: int) -> bool:
    """Whether so much, and not more, counts in the hour's rate."""
    fits = await at.kit.check("acme", "output_tokens", LIMIT - used)
    beyond = await at.kit.check("acme", "output_tokens", LIMIT - used + 1)
    return fits.allowed and not beyond.allowed


@pytest.mark.parametrize(
    ("answer", "status", "plans", "path"),
    [
        (reported, 500, BARE, "/none"),
        (reported, 404, BY_MODEL, "/reserved"),
        (late, 500, BARE, "/reserved"),
        (late, 500, BY_MODEL, "/bare"),
        (sent, 200, ROUGH, "/bare"),
        (sent, 200, ROUGH, "/reserved"),
        (reported, 200, ROUGH, "/none"),
        (late, 200, ROUGH, "/none"),
    ],
)
async def test_what_is_not_billed_counts_in_rates_all_the_same(
    answer: Callable[[int], Response], status: int, plans: str, path: str, store_url: str
) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        return answer(status)

    app = Starlette(routes=[Route("/{path:path}", endpoint, methods=["POST"])])
    async with metered(app, store_url, plans=plans, settings=PATIENT) as at:
        assert status == (await at.client.post(path, json={})).status_code
        await eventually(lambda: have_seen(at, 4))
        assert (0, 0) == await tokens(at.kit)
