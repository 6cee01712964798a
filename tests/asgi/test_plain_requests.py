"""Requests that are only decided and counted: whatever else happens to one, it counts as any other does."""

# Internals: the lock that reports of usage hold, and a job as an earlier request has left it.

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import weakref
from typing import Any, Final

import pytest
from starlette.types import Message, Receive, Scope, Send

from drivers.app import http_scope, ignore, no_more, served, staying
from faults.refusals import settled
from meterkit import record
from meterkit.asgi import exchange
from meterkit.store.provider_jobs import remember_job

pytestmark = pytest.mark.anyio

START: Final[Message] = {"type": "http.response.start", "status": 200, "headers": []}
LAST: Final[Message] = {"type": "http.response.body", "body": b"hello"}
JOBS: Final = """
default_plan: p
meters: {requests: {unit: request}, output_tokens: {unit: token}}
routes:
  - match: "POST /v1/responses/{id}/cancel"
    consume: {requests: 1}
    records: [output_tokens]
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 500}}
plans:
  p:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {included: 100, overage: deny}, output_tokens: {included: 1000, overage: deny}}
"""


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive
    await send(START)
    await send(LAST)


async def gone() -> Message:
    return {"type": "http.disconnect"}


async def test_a_client_that_leaves_beside_the_last_message_pays() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await send(START)
        last = asyncio.ensure_future(send(LAST))
        await receive()
        await last

    async with served(app) as at:
        await at.app(http_scope("/v1/x"), gone, ignore)
        await settled(at.kit)
        assert await at.counted() == (1, 0)


async def test_an_answer_whose_last_message_fails_is_billed() -> None:
    """The app has done its work, whether or not its client takes the answer."""

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client has left")

    async with served(answer) as at:
        with pytest.raises(OSError, match="left"):
            await at.app(http_scope("/v1/x"), staying(), send)
        await settled(at.kit)
        assert await at.counted() == (1, 0)


async def test_usage_after_an_answer_has_the_answers_outcome() -> None:
    """The app is cancelled while a task sends the last message, which arrives nevertheless."""
    sending, gate = asyncio.Event(), asyncio.Event()
    answering: list[asyncio.Future[None]] = []
    contexts: list[contextvars.Context] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        contexts.append(contextvars.copy_context())
        await send(START)
        answering.append(asyncio.ensure_future(send(LAST)))
        await asyncio.Event().wait()

    async def send_slowly(message: Message) -> None:
        if message["type"] == "http.response.body":
            sending.set()
            await gate.wait()

    async with served(app) as at:
        serving = asyncio.ensure_future(at.app(http_scope("/errors"), staying(), send_slowly))
        await sending.wait()
        serving.cancel()
        await asyncio.wait([serving])
        gate.set()
        await answering[0]
        contexts[0].run(record, tokens=5)
        await settled(at.kit)
        assert await at.counted(meter="tokens") == (0, 0)  # The route bills errors only.


async def test_a_poll_whose_client_left_early_is_not_billed() -> None:
    """It reserved before; as a poll of its customer's job it is a plain request."""
    sent: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}, await gone()]

    async def receive() -> Message:
        return sent.pop(0)

    async def read_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await answer(scope, receive, send)

    async with served(read_and_answer, plans=JOBS) as at:
        await remember_job(at.kit.store, "resp_1", at.kit.store.cache.get("acme"), "")
        await at.kit.record("acme", "output_tokens", 1000)
        scope = http_scope("/v1/responses/resp_1/cancel", method="POST")
        scope["headers"] = [*scope["headers"], (b"content-length", b"20")]
        await at.app(scope, receive, ignore)
        await settled(at.kit)
        assert await at.counted() == (0, 0)


async def test_a_failing_identify_keeps_no_request_alive() -> None:
    class Kept:
        """Stands in the scope."""

    def who(scope: Scope) -> str:
        raise ValueError(scope["path"])

    seen: list[weakref.ref[Any]] = []
    async with served(answer, who=who) as at:
        logging.disable()  # Kept records would keep the errors.
        gc.disable()
        try:
            for _ in range(3):
                kept = Kept()
                seen.append(weakref.ref(kept))
                await at.app(http_scope("/v1/x", kept=kept), staying(), ignore)
                del kept
            await asyncio.sleep(0)
            assert [one() for one in seen[:2]] == [None, None]
        finally:
            gc.enable()
            logging.disable(logging.NOTSET)


async def test_an_identify_that_stops_is_logged_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def who(scope: Scope) -> str:
        return str(next(value for key, value in scope["headers"] if key == b"x-api-key"))

    async with served(answer, who=who) as at:
        await at.app(http_scope("/v1/x"), staying(), ignore)
    (found,) = [one for one in caplog.records if "identify raised" in one.getMessage()]
    assert found.exc_info is not None
    assert found.exc_info[0] is StopIteration


async def test_a_thread_that_records_stops_no_stream() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send(START)
        await send({**LAST, "more_body": True})
        await send(LAST)

    holds, ended = threading.Event(), threading.Event()
    in_time: list[bool] = []

    def hold() -> None:
        with exchange.recording:  # As while the app's own estimate of an input runs.
            holds.set()
            in_time.append(ended.wait(20))

    async with served(app) as at:
        holder = threading.Thread(target=hold)
        holder.start()
        holds.wait()
        await at.app(http_scope("/v1/x"), no_more, ignore)
        ended.set()
        holder.join()
    assert in_time == [True]
