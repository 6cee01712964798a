"""On trio, which meterkit does not run on, the app is refused at its start, in words that say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from drivers.app import no_more
from faults.refusals import answer_ok, http_scope, kit_at, metered
from meterkit import MeterkitError

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

WORDS = "asyncio and uvloop.*trio is not supported.*hypercorn: -k asyncio"


def run(app: Any, scope: Scope, receive: Receive) -> list[Message]:
    """Call an app once; what it has sent, also where it fails."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def call() -> None:
        with pytest.raises(MeterkitError, match=WORDS):
            await app(scope, receive, send)

    trio.run(call)
    return sent


async def waits_for_startup(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
    else:
        await answer_ok(scope, receive, send)


async def startup() -> Message:
    return {"type": "lifespan.startup"}


def test_the_lifespan_fails_with_words() -> None:
    # F-5: each request was a 500, "no running event loop".
    (message,) = run(metered(kit_at("memory://"), waits_for_startup), {"type": "lifespan"}, startup)
    assert message["type"] == "lifespan.startup.failed"
    assert "trio is not supported" in message["message"]


def test_without_a_lifespan_every_request_says_so() -> None:
    # F-5
    app = metered(kit_at("memory://"))
    for _ in range(2):
        assert run(app, http_scope("acme", "/deny"), no_more) == []


def test_the_kit_says_so_itself() -> None:
    # F-5
    kit = kit_at("memory://")

    async def use() -> None:
        for coroutine in (
            kit.start(),
            kit.stop(),
            kit.begin(),
            kit.check("acme", "requests"),
            kit.record("acme", "requests", 1),
            kit.usage("acme"),
        ):
            with pytest.raises(MeterkitError, match=WORDS):
                await coroutine

    trio.run(use)
