"""F-132, work that outlives its request: held while it goes on, counted once wherever its end is seen."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from asgi.test_llm_estimates import ask
from drivers.llm_apps import PLANS, answering, metered, read_all, tokens
from faults.refusals import eventually
from tokens.recordings import JSON_TYPE, SSE_TYPE, compact, sse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

USAGE = {"input_tokens": 600, "output_tokens": 400, "total_tokens": 1000}
HELD = PLANS.replace(
    "routes:\n",
    'routes:\n  - {match: "/held", consume: {requests: 1}, usage: auto, '
    "reserve: {output_tokens: {from: max_tokens, default: 500, ceiling: 500}}}\n",
).replace("output_tokens: {rate: 1_000_000_000/hour}", "output_tokens: {included: 900, overage: deny}")


def response(status: str, name: str = "resp_1", **more: Any) -> dict[str, Any]:
    """A background response, as `POST /v1/responses` and `GET /v1/responses/{id}` answer."""
    return {
        "id": name,
        "object": "response",
        "background": True,
        "status": status,
        "model": "gpt-5.6",
        "output": [],
        "usage": USAGE if status == "completed" else None,
        **more,
    }


async def asked(at: Served, path: str, **options: Any) -> None:
    """Ask, and wait until it is known who pays for the jobs that the answer tells of."""
    try:
        await ask(at, path, **options)
    finally:
        for lane in at.kit.store.lanes.values():
            while lane.finishing:
                await asyncio.wait(lane.finishing)


def saying(*answers: dict[str, Any]) -> ASGIApp:
    """An app that gives one answer after the other, the last one over and over."""
    left = list(answers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = compact(left.pop(0) if len(left) > 1 else left[0])
        await answering([body], JSON_TYPE)(scope, receive, send)

    return app


@pytest.mark.parametrize("path", ["/auto", "/openai"])
async def test_a_job_is_counted_once_however_often_it_is_fetched(
    path: str, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [response(state) for state in ("queued", "in_progress", "completed")]
    async with metered(saying(*answers), store_url) as at:
        await asked(at, path)
        assert (0, 0) == await tokens(at.kit)
        for _ in range(4):
            await asked(at, path, method="GET", body=b"")
        assert (600, 400) == await tokens(at.kit)
    assert [] == caplog.records


async def test_a_stream_that_is_left_counts_when_its_end_is_read(store_url: str) -> None:
    """The provider goes on: nothing is estimated that will be reported."""
    begun = sse({"type": "response.created", "response": response("queued")})
    text = sse({"type": "response.output_text.delta", "delta": "x" * 400})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await answering([compact(response("completed"))], JSON_TYPE)(scope, receive, send)
            return
        await read_all(receive)
        kind = [(b"content-type", SSE_TYPE.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        for chunk in (begun, text):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        raise OSError("the client is gone")

    async with metered(app, store_url) as at:
        with pytest.raises(OSError, match="gone"):
            await asked(at, "/auto")
        assert (0, 0) == await tokens(at.kit)
        await asked(at, "/auto", method="GET", body=b"")
        assert (600, 400) == await tokens(at.kit)


async def held(at: Served) -> int:
    return (await at.kit.usage("acme"))["meters"]["output_tokens"]["held"]


async def becomes(at: Served, quantity: int) -> None:
    async def has_become() -> bool:
        return await held(at) == quantity

    await eventually(has_become)


async def test_a_job_that_fails_gives_back_what_it_holds(store_url: str) -> None:
    async with metered(saying(response("queued"), response("failed")), store_url, plans=HELD) as at:
        await asked(at, "/held")
        await becomes(at, 500)
        await asked(at, "/auto", method="GET", body=b"")
        await becomes(at, 0)
        assert (0, 0) == await tokens(at.kit)


async def renew(at: Served) -> None:
    (work,) = at.kit.store.outliving.works.values()
    await work.renew()  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def test_a_job_that_never_ends_is_let_go_of_after_an_hour(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [response("queued"), response("queued", "resp_2"), response("completed")]
    async with metered(saying(*answers), store_url, plans=HELD) as at:
        await asked(at, "/held")
        await becomes(at, 500)
        at.clock.advance(timedelta(hours=1))
        with caplog.at_level(logging.WARNING, "meterkit.store"):
            await renew(at)
        assert "has not ended within an hour" in caplog.text
        await becomes(at, 0)
        # It is told once.
        caplog.clear()
        await asked(at, "/held")
        await becomes(at, 500)
        at.clock.advance(timedelta(hours=1, milliseconds=-1))
        await renew(at)
        assert await held(at) == 500
        # What ends after that is counted.
        await asked(at, "/auto", method="GET", body=b"")
        assert (600, 400) == await tokens(at.kit)


async def test_i7_the_hold_does_not_outlive_the_kit(store_url: str) -> None:
    async with metered(saying(response("queued")), store_url, plans=HELD) as at:
        await asked(at, "/held")
        await becomes(at, 500)
        works = at.kit.store.outliving.works
        assert len(works) == 1
    assert works == {}


async def test_many_polls_at_once_count_once(store_url: str) -> None:
    async with metered(saying(response("completed")), store_url) as at:
        await asyncio.gather(*(asked(at, "/auto", method="GET", body=b"") for _ in range(20)))
        assert (600, 400) == await tokens(at.kit)
