"""What a request is counted as, by how it ended and by what the app says of it."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse

from drivers.app import answering, hello, served
from meterkit import MeterkitError, UnknownMeterError, current, record

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def chunk(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def rate_used(at: Served) -> int:
    """How many requests the hourly rate has seen."""
    return next(rate["used"] for rate in await at.kit.rates("acme") if rate["meter"] == "requests")


@pytest.mark.parametrize(
    ("status", "path", "recorded"),
    [
        (200, "/v1/x", 1),
        (304, "/v1/x", 1),
        (400, "/v1/x", 0),
        (500, "/v1/x", 0),
        (404, "/attempt", 1),
        (503, "/attempt", 1),
        (200, "/errors", 0),
        (404, "/errors", 1),
        (503, "/errors", 1),
    ],
)
async def test_what_is_billed_goes_by_the_outcome_and_rates_count_all(
    status: int, path: str, recorded: int
) -> None:
    async with served(answering(status)) as at:
        response = await at.client.get(path)
        assert (response.status_code, "ratelimit" in response.headers) == (status, True)
        assert await at.counted() == (recorded, 0)
        assert await rate_used(at) == 1


@pytest.mark.parametrize("error", [ValueError("broken"), ConnectionResetError("broken")])
async def test_an_app_that_raises_is_a_server_error(error: Exception) -> None:
    """A model behind the app that hangs up is not a client that does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        if scope["query_string"] == b"late":
            await send(START)
            await send(chunk(b"begun"))
        raise error

    async with served(app) as at:
        for path in ("/v1/x", "/v1/x?late", "/attempt", "/errors"):
            with pytest.raises(type(error), match="broken") as caught:
                await at.client.get(path)
            assert caught.value is error
        assert await at.counted() == (2, 0)  # The routes that bill server errors.
        assert await rate_used(at) == 4


async def test_a_request_is_settled_before_background_tasks() -> None:
    seen: list[tuple[int, int]] = []

    async def look() -> None:
        seen.append(await at.counted())
        raise ValueError("too late")

    async with served(PlainTextResponse("done", background=BackgroundTask(look))) as at:
        with pytest.raises(ValueError, match="too late"):
            await at.client.get("/v1/x")
        assert seen == [await at.counted()] == [(1, 0)]


# What the app records.


def recording_app() -> FastAPI:
    app = FastAPI()

    @app.get("/v1/sync")
    def sync_endpoint() -> dict[str, str]:
        assert threading.current_thread() is not threading.main_thread()
        record("tokens", 3)
        record(tokens=4, pages=1)
        with pytest.raises(UnknownMeterError):
            record(tokens=1, nothing=2)
        return {"customer": current().customer, "plan": current().plan}

    @app.get("/v1/async")
    async def async_endpoint() -> dict[str, str]:
        async def nested() -> None:
            record("tokens", 5)

        async with asyncio.TaskGroup() as group:
            group.create_task(nested())
        record("tokens", 1)
        return {"customer": current().customer}

    @app.get("/v1/background/{kind}")
    async def background(kind: str, status: int = 200) -> PlainTextResponse:
        async def later() -> None:
            record("tokens", 7)

        def later_in_a_thread() -> None:
            assert threading.current_thread() is not threading.main_thread()
            record("tokens", 7)

        answer = PlainTextResponse("", status_code=status)
        answer.background = BackgroundTask(later if kind == "async" else later_in_a_thread)
        return answer

    @app.get("/shadow")
    async def consumed_too() -> None:
        record("requests", 2)

    return app


@pytest.mark.parametrize(
    ("path", "tokens", "pages"),
    [("/v1/sync", 7, 1), ("/v1/async", 6, 0), ("/v1/background/async", 7, 0), ("/v1/background/sync", 7, 0)],
)
async def test_recorded_from_anywhere_in_a_request(path: str, tokens: int, pages: int) -> None:
    # In debug mode, asyncio refuses what a thread must not do.
    asyncio.get_running_loop().set_debug(enabled=True)
    async with served(recording_app()) as at:
        assert (await at.client.get(path)).status_code == 200
        asyncio.get_running_loop().set_debug(enabled=False)
        await at.kit.check("acme", "tokens")  # What a thread has handed over comes first.
        assert await at.counted(meter="tokens") == (tokens, 0)
        assert await at.counted(meter="pages") == (pages, 0)


async def test_current_says_who_is_served() -> None:
    async with served(recording_app()) as at:
        assert (await at.client.get("/v1/sync")).json() == {"customer": "acme", "plan": "free"}
    with pytest.raises(MeterkitError, match="outside of a request"):
        current()


async def test_what_a_background_task_records_goes_by_the_outcome_too() -> None:
    async with served(recording_app()) as at:
        assert (await at.client.get("/v1/background/sync?status=404")).status_code == 404
        assert (await at.kit.check("acme", "tokens", 993)).allowed
        assert not (await at.kit.check("acme", "tokens", 994)).allowed
        assert await at.counted(meter="tokens") == (0, 0)


async def test_what_the_route_consumes_and_the_app_records_adds_up() -> None:
    async with served(recording_app()) as at:
        assert (await at.client.get("/shadow")).status_code == 200
        assert await at.counted() == (3, 0)


async def test_in_shadow_a_refused_request_counts_in_rates() -> None:
    async with served(answering(500)) as at:
        await at.kit.record("acme", "requests", 5)
        assert (await at.client.get("/shadow")).status_code == 500
        assert await at.counted() == (5, 0)
        assert await rate_used(at) == 6


@pytest.mark.parametrize("hand_on", [False, True])
async def test_a_thread_of_the_app_records_for_its_request(hand_on: bool) -> None:
    """F-20h: run_in_executor() hands no context on, and the error did not say what does."""

    async def compute(scope: Scope, receive: Receive, send: Send) -> None:
        work = partial(record, tokens=7)
        handed_on = partial(copy_context().run, work) if hand_on else work
        await asyncio.get_running_loop().run_in_executor(None, handed_on)
        await hello(scope, receive, send)

    async with served(compute, raise_app_exceptions=True) as at:
        if hand_on:
            assert (await at.client.get("/v1/x")).status_code == 200
            assert await at.counted(meter="tokens") == (7, 0)
            return
        with pytest.raises(MeterkitError, match=r"asyncio\.to_thread\(f\) does, and so does pool\.submit\("):
            await at.client.get("/v1/x")
