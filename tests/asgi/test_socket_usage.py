"""Answers of models over a websocket: OpenAI's Realtime API and Gemini Live."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from drivers.llm_apps import PLANS, metered, tokens
from faults.refusals import settled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message, Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

SOCKETS = PLANS.replace(
    "routes:\n",
    "routes:\n"
    + "".join(f'  - {{match: "WS /{word}", usage: {word}}}\n' for word in ("auto", "openai", "gemini")),
)


def done(name: str, entered: int, said: int, **more: Any) -> dict[str, Any]:
    """The end of an answer of the Realtime API."""
    usage = {
        "total_tokens": entered + said,
        "input_tokens": entered,
        "output_tokens": said,
        "input_token_details": {"cached_tokens": 4, "text_tokens": entered, "audio_tokens": 0},
    }
    response = {"id": name, "object": "realtime.response", "status": "completed", "usage": usage, **more}
    return {"type": "response.done", "event_id": "e", "response": response}


def delta(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "response_id": "r9", "delta": text}


def turn(prompt: int, answer: int, thoughts: int = 0) -> dict[str, Any]:
    """The figures of a turn of Gemini Live: the total is without the thoughts."""
    usage = {"promptTokenCount": prompt, "responseTokenCount": answer, "totalTokenCount": prompt + answer}
    more = {"thoughtsTokenCount": thoughts} if thoughts else {}
    return {"usageMetadata": {**usage, **more}}


def said(text: str) -> dict[str, Any]:
    return {"serverContent": {"modelTurn": {"parts": [{"text": text}]}}}


async def talk(
    at: Served,
    path: str,
    events: Sequence[Any],
    *,
    received: Sequence[dict[str, Any] | str] = (),
    as_bytes: bool = False,
    query: str = "",
) -> None:
    """Open a websocket whose app sends events, and close it from the client's side."""
    coming: list[Message] = [{"type": "websocket.connect"}]
    coming += [
        {"type": "websocket.receive", "text": one if isinstance(one, str) else json.dumps(one)}
        for one in received
    ]
    coming.append({"type": "websocket.disconnect", "code": 1000})

    async def receive() -> Message:
        return coming.pop(0)

    async def send(message: Message) -> None:
        del message

    scope = {
        "type": "websocket",
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"x-customer-id", b"acme")],
        "events": events,
        "as_bytes": as_bytes,
    }
    await at.app(scope, receive, send)
    await settled(at.kit)


async def provider(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        assert message["text"]
    for event in scope["events"]:
        text = event if isinstance(event, str) else json.dumps(event)
        content = {"bytes": text.encode()} if scope["as_bytes"] else {"text": text, "bytes": None}
        await send({"type": "websocket.send", **content})


@pytest.mark.parametrize(("path", "as_bytes"), [("/auto", True), ("/openai", False)])
async def test_each_answer_of_a_realtime_session_counts_once(path: str, as_bytes: bool) -> None:
    events = [
        {"type": "session.created", "session": {"id": "s"}},
        *(delta("x" * 400), done("r1", 40, 10), done("r1", 40, 10), "no JSON", "[1]"),
        *(delta("y" * 400), done("r2", 60, 20, status="cancelled")),
    ]
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await talk(at, path, events, as_bytes=as_bytes)
        assert (100, 30, 8) == await tokens(at.kit, "input_tokens", "output_tokens", "cached_input_tokens")


@pytest.mark.parametrize("path", ["/auto", "/gemini"])
async def test_each_turn_of_gemini_live_counts(path: str) -> None:
    events = [said("x" * 400), turn(522, 42, thoughts=136), said("y" * 400), turn(600, 10)]
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await talk(at, path, events)
        assert (1122, 42 + 136 + 10) == await tokens(at.kit)


async def test_an_answer_that_the_close_cuts_off_is_estimated() -> None:
    asked = {
        "type": "conversation.item.create",
        "item": {"content": [{"type": "input_text", "text": "a" * 80}]},
    }
    sound = {"type": "input_audio_buffer.append", "audio": "A" * 8_000}
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await talk(at, "/gemini", [said("z" * 400)], received=[asked, sound])
        entered, output = await tokens(at.kit)
        assert output == 100
        assert 20 <= entered <= 60


async def test_an_error_within_is_not_heard_of_by_the_app(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("meterkit.asgi.socket_usage.SocketUsage._read", breaks)
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await talk(at, "/openai", [done("r1", 40, 10), done("r2", 40, 10)])
        assert (0, 0) == await tokens(at.kit)
    assert "reading token usage off a websocket failed" in caplog.text


PRICED = """
schema: 1
currency: usd
default_plan: free
meters: {output_tokens: {unit: token}}
prices: {output: {default: 4, models: {mini: 1, opus: 20}}}
credits: {ai: {costs: {output_tokens: prices.output}}}
routes:
  - {match: "WS /live", usage: openai}
  - {match: "WS /own", usage: openai, model: mini}
  - {match: "WS /any", usage: openai, model: any}
  - {match: "WS /auto", usage: auto}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {output_tokens: {included: 0, overage: deny}}}
"""


def created(model: str | None, kind: str = "session.created", **more: Any) -> dict[str, Any]:
    """The server's word on its session."""
    return {"type": kind, "event_id": "e", "session": {"type": "realtime", "model": model, **more}}


def update(model: str, **more: Any) -> dict[str, Any]:
    """What a client of the Realtime API asks of its session."""
    return {"type": "session.update", "session": {"model": model, **more}}


TRANSCRIBED = {
    "type": "conversation.item.input_audio_transcription.completed",
    "item_id": "i1",
    "transcript": "four",
    "usage": {"type": "tokens", "input_tokens": 5, "output_tokens": 10, "total_tokens": 15},
}


@pytest.mark.parametrize(
    ("path", "query", "received", "sent", "each"),
    [
        # OpenAI's Realtime API: the server has the last word, and the client may change the session.
        ("/live", "", [update("mini")], [done("r1", 1, 10)], [1]),
        ("/live", "model=opus", [update("opus")], [created("mini"), done("r1", 1, 10)], [1]),
        ("/live", "model=mini", [update("mini")], [created("opus"), done("r1", 1, 10)], [20]),
        (
            "/live",
            "",
            [],
            [created("mini"), done("r1", 1, 10), created("opus", "session.updated"), done("r2", 1, 10)],
            [1, 20],
        ),
        ("/live", "model=opus", [update("mini")], [done("r1", 1, 10)], [20]),
        ("/own", "model=opus", [update("opus")], [done("r1", 1, 10)], [1]),
        ("/any", "model=mini", [], [done("r1", 1, 10)], [20]),
        ("/live", "%ff=\xff&model=m%69ni", [], [done("r1", 1, 10)], [1]),
        ("/live", "model=other", [], [done("r1", 1, 10)], [4]),
        # Gemini Live: the client's first message.
        ("/auto", "", [{"setup": {"model": "models/mini"}}], [turn(1, 10)], [1]),
        ("/auto", "", [{"setup": {"model": "mini"}}, {"setup": {"model": "opus"}}], [turn(1, 10)], [20]),
        ("/auto", "", ['{"se\\u0074up": {"mod\\u0065l": "models/mini"}}'], [turn(1, 10)], [1]),
        # What cannot be read, or is no model.
        ("/live", "", [update("mini" + "x" * 2_000_000)], [done("r1", 1, 10)], [20]),
        ("/live", "", [{"setup": None}, {"setup": {"model": 7}}], [done("r1", 1, 10)], [20]),
    ],
)
async def test_a_socket_answer_costs_the_model_of_its_session(
    path: str,
    query: str,
    received: Sequence[dict[str, Any] | str],
    sent: Sequence[dict[str, Any]],
    each: Sequence[int],
) -> None:
    """F-211."""
    async with metered(provider, "memory://", plans=PRICED) as at:
        await at.kit.grants.add("acme", {"ai": 1000}, grant_id="one")
        await talk(at, path, sent, received=received, query=query)
        spent = [-line.quantity for line in await at.kit.grants.ledger("acme") if line.entry == "burn"]
        assert sum(spent) == sum(10 * one * 10**6 for one in each)


@pytest.mark.parametrize(
    ("session", "is_server"),
    [
        ({"audio": {"input": {"transcription": {"model": "mini"}}}}, True),
        ({"input_audio_transcription": {"model": "mini"}}, False),
    ],
)
async def test_what_the_client_says_costs_its_transcriber(
    session: dict[str, Any], *, is_server: bool
) -> None:
    received = [] if is_server else [update("opus", **session)]
    sent = [created("opus", **session)] if is_server else []
    async with metered(provider, "memory://", plans=PRICED) as at:
        await at.kit.grants.add("acme", {"ai": 1000}, grant_id="one")
        await talk(at, "/live", [*sent, TRANSCRIBED], received=received)
        spent = [-line.quantity for line in await at.kit.grants.ledger("acme") if line.entry == "burn"]
        assert spent == [10 * 10**6]
