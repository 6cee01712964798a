"""What OpenAI-shaped answers and websockets of models count, and what they cost a balance in money."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from math import floor
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.types import Message, Receive, Scope, Send

from drivers.app import Served, hello, ignore, no_more, served
from drivers.llm_apps import PLANS, answering, metered, read_all, tokens
from drivers.llm_apps import ask as post
from drivers.plans import completed
from faults.refusals import eventually, settled
from llm_payloads.openai_payloads import PAYLOADS, TRANSCRIBED, response
from llm_payloads.recordings import JSON_TYPE, SSE_TYPE
from meterkit import record, record_usage

pytestmark = pytest.mark.anyio

SOCKETS = PLANS.replace(
    "routes:\n",
    "routes:\n"
    + "".join(
        f'  - {{match: "WS /{word}", usage: {word}}}\n' for word in ("auto", "openai", "gemini", "none")
    ),
)


def done(name: str, entered: int, said: int, **more: Any) -> dict[str, Any]:
    """The end of an answer of the Realtime API."""
    usage: dict[str, Any] = {"total_tokens": entered + said, "input_tokens": entered, "output_tokens": said}
    details = {"cached_tokens": 4, "text_tokens": entered, "audio_tokens": 0}
    response: dict[str, Any] = {"id": name, "object": "realtime.response", "status": "completed"}
    response |= {"usage": {**usage, "input_token_details": details}, **more}
    return {"type": "response.done", "event_id": "e", "response": response}


def delta(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "response_id": "r9", "delta": text}


def turn(prompt: int, answer: int, **more: int) -> dict[str, Any]:
    """The figures of a turn of Gemini Live: the total is without the thoughts."""
    usage = {"promptTokenCount": prompt, "responseTokenCount": answer, "totalTokenCount": prompt + answer}
    return {"usageMetadata": {**usage, **more}}


def said(text: str) -> dict[str, Any]:
    return {"serverContent": {"modelTurn": {"parts": [{"text": text}]}}}


def content_of(message: dict[str, Any] | str | bytes) -> dict[str, Any]:
    if isinstance(message, bytes):
        return {"bytes": message, "text": None}
    return {"text": message if isinstance(message, str) else json.dumps(message)}


async def talk(
    at: Served,
    path: str,
    events: Sequence[Any],
    *,
    received: Sequence[dict[str, Any] | str | bytes] = (),
    as_bytes: bool = False,
    query: str = "",
) -> None:
    """Open a websocket whose app sends events, and close it from the client's side."""
    coming: list[Message] = [{"type": "websocket.receive", **content_of(one)} for one in received]
    coming = [{"type": "websocket.connect"}, *coming, {"type": "websocket.disconnect", "code": 1000}]

    async def receive() -> Message:
        return coming.pop(0)

    scope: dict[str, Any] = {"type": "websocket", "path": path, "query_string": query.encode()}
    scope |= {"headers": [(b"x-customer-id", b"acme")], "events": events, "as_bytes": as_bytes}
    await at.app(scope, receive, ignore)
    await settled(at.kit)


async def spent(at: Served, customer: str = "acme") -> int:
    return -sum(line.quantity for line in await at.kit.grants.ledger(customer) if line.entry == "burn")


@asynccontextmanager
async def funded(credit: str, plans: str) -> AsyncGenerator[Served]:
    """A provider on websockets, and a customer who can pay."""
    async with metered(provider, "memory://", plans=plans) as at:
        await at.kit.grants.add("acme", {credit: 1000}, grant_id="one")
        yield at


async def provider(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        assert message["text"] or message["bytes"]
    for event in scope["events"]:
        text = event if isinstance(event, str) else json.dumps(event)
        content = {"bytes": text.encode()} if scope["as_bytes"] else {"text": text, "bytes": None}
        await send({"type": "websocket.send", **content})


async def reporting_provider(scope: Scope, receive: Receive, send: Send) -> None:
    """Reports each event itself, the even ones before they are sent."""
    await receive()
    await send({"type": "websocket.accept"})
    for at, event in enumerate(scope["events"]):
        message = {"type": "websocket.send", "text": json.dumps(event)}
        if at % 2:
            await send(message)
        record_usage(event)
        if not at % 2:
            await send(message)


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


@pytest.mark.parametrize(
    ("path", "events"),
    [
        ("/auto", [done(f"r{n}", 10, 1) for n in range(40)]),
        ("/none", [done(f"r{n}", 10, 1) for n in range(100)]),
        ("/gemini", [turn(10, 1) for _ in range(40)]),
    ],
)
async def test_an_answer_that_the_app_reports_too_counts_once(
    path: str, events: list[dict[str, Any]]
) -> None:
    async with metered(reporting_provider, "memory://", plans=SOCKETS) as at:
        await talk(at, path, events)
        assert (10 * len(events), len(events)) == await tokens(at.kit)


@pytest.mark.parametrize("path", ["/auto", "/gemini"])
async def test_each_turn_of_gemini_live_counts(path: str) -> None:
    events = [said("x" * 400), turn(522, 42, thoughtsTokenCount=136), said("y" * 400), turn(600, 10)]
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await talk(at, path, events)
        assert (1122, 42 + 136 + 10) == await tokens(at.kit)


@pytest.mark.parametrize(
    ("path", "models", "searches"),
    [
        ("/auto", [], 1),
        ("/gemini", ["gemini-live-2.5-flash"], 1),
        ("/auto", ["gemini-3.8-live"], 2),
        ("/gemini", ["gemini-3.8-live"], 2),
        ("/gemini", ["gemini-3.8-live", "gemini-live-2.5-flash"], 1),
    ],
)
async def test_a_search_of_gemini_live_counts_with_its_turn(
    path: str, models: list[str], searches: int
) -> None:
    setups = [{"setup": {"model": f"models/{model}"}} for model in models]
    grounding = {"groundingMetadata": {"webSearchQueries": ["weather", "weather today"]}}
    spoken = {"modelTurn": {"parts": [{"inlineData": {"mimeType": "audio/pcm", "data": "A" * 400}}]}}
    searched = {"serverContent": {**spoken, **grounding}}
    plans = SOCKETS.replace("  total_tokens:", "  web_searches: {unit: search}\n  total_tokens:")
    async with metered(provider, "memory://", plans=plans) as at:
        turns = [searched, searched, turn(500, 10), said("x"), turn(600, 10)]
        await talk(at, path, [{"setupComplete": {}}, *turns], received=setups)
        assert (1100, 20, searches) == await tokens(at.kit, "input_tokens", "output_tokens", "web_searches")


@pytest.mark.parametrize("path", ["/auto", "/gemini"])
async def test_each_turn_of_gemini_live_on_vertex_counts(path: str) -> None:
    figures = [
        {"promptTokenCount": 500 * n, "candidatesTokenCount": n, "totalTokenCount": 501 * n} for n in (1, 2)
    ]
    ended = {"serverContent": {"turnComplete": True}, "usageMetadata": figures[0]}
    second = {"usageMetadata": figures[1]}
    events: list[dict[str, Any]] = [{"setupComplete": {}}, said("x" * 400), ended, said("y" * 400), second]
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await talk(at, path, events)
        assert (1500, 3) == await tokens(at.kit)


@pytest.mark.parametrize(("event_id", "words"), [("e", 16), ("audio", 16), ("e", 500_000)])
async def test_an_answer_that_the_close_cuts_off_is_estimated(event_id: str, words: int) -> None:
    item = {"content": [{"type": "input_text", "text": "word " * words}]}
    asked = {"type": "conversation.item.create", "event_id": event_id, "item": item}
    heard = hashlib.shake_256(b"sound").digest(600)
    piece = {"mimeType": "audio/pcm", "data": base64.b64encode(heard).decode()}
    sound: list[Any] = [
        {"type": "input_audio_buffer.append", "audio": "A" * 8_000},
        {"realtimeInput": {"mediaChunks": [piece]}},
        {"realtimeInput": {"audio": piece}},
        heard,
    ]
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await talk(at, "/gemini", [said("z" * 400)], received=[asked, *sound * 9])
        entered, output = await tokens(at.kit)
        assert output == 100
        assert words <= entered <= 5 * words // 4 + 40


@pytest.mark.parametrize(("path", "as_bytes"), [("/auto", False), ("/openai", True)])
async def test_an_answer_that_repeats_a_long_prompt_counts(path: str, as_bytes: bool) -> None:
    usage = {"input_tokens": 300_000, "output_tokens": 90, "total_tokens": 300_090}
    tools = [{"type": "function", "name": f"f{n}", "parameters": {"type": "object"}} for n in range(1_000)]
    ended = {**response(), "instructions": "word " * 300_000, "tools": tools, "usage": usage}
    events = [delta("x" * 40), {"type": "response.completed", "response": ended}, done("r2", 60, 20)]
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await talk(at, path, events, as_bytes=as_bytes)
        assert (300_060, 110) == await tokens(at.kit)


async def test_an_error_within_is_not_heard_of_by_the_app(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("llm_usage.socket_reader.SocketReader._read_event", breaks)
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await talk(at, "/openai", [done("r1", 40, 10), done("r2", 40, 10)])
        assert (0, 0) == await tokens(at.kit)
    assert "reading token usage off a websocket failed" in caplog.text


PRICED = """
meters: {output_tokens: {unit: token}}
prices: {output: {default: 4, models: {mini: 1, opus: 20}}}
credits: {ai: {costs: {output_tokens: prices.output}}}
routes:
  - {match: "WS /live", usage: openai}
  - {match: "WS /own", usage: openai, model: mini}
  - {match: "WS /either", usage: openai, model: [mini, opus]}
  - {match: "WS /auto", usage: auto}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {output_tokens: {included: 0, overage: deny}}}
"""
R1, R2 = done("r1", 1, 10), done("r2", 1, 10)


def created(model: str | None, kind: str = "session.created", **more: Any) -> dict[str, Any]:
    """The server's word on its session."""
    return {"type": kind, "event_id": "e", "session": {"type": "realtime", "model": model, **more}}


def update(model: str, **more: Any) -> dict[str, Any]:
    """What a client of the Realtime API asks of its session."""
    return {"type": "session.update", "session": {"model": model, **more}}


HEARD = {
    "type": "conversation.item.input_audio_transcription.completed",
    "item_id": "i1",
    "transcript": "four",
    "usage": {"type": "tokens", "input_tokens": 5, "output_tokens": 10, "total_tokens": 15},
}


@pytest.mark.parametrize(
    ("path", "query", "received", "sent", "each"),
    [
        # OpenAI's Realtime API: the server has the last word, and the client may change the session.
        ("/live", "", [update("mini")], [R1], [1]),
        ("/live", "model=opus", [update("opus")], [created("mini"), R1], [1]),
        ("/live", "model=mini", [update("mini")], [created("opus"), R1], [20]),
        ("/live", "", [], [created("mini"), R1, created("opus", "session.updated"), R2], [1, 20]),
        ("/live", "model=opus", [update("mini")], [R1], [20]),
        ("/own", "model=opus", [update("opus")], [R1], [1]),
        ("/either", "model=mini", [], [R1], [20]),
        ("/live", "%ff=\xff&model=m%69ni", [], [R1], [1]),
        ("/live", "model=other", [], [R1], [4]),
        # Gemini Live: the client's first message.
        ("/auto", "", [{"setup": {"model": "models/mini"}}], [turn(1, 10)], [1]),
        ("/auto", "", [{"setup": {"model": "mini"}}, {"setup": {"model": "opus"}}], [turn(1, 10)], [20]),
        ("/auto", "", ['{"se\\u0074up": {"mod\\u0065l": "models/mini"}}'], [turn(1, 10)], [1]),
        # What cannot be read, or is no model.
        ("/live", "", [update("mini" + "x" * 2_000_000)], [R1], [20]),
        ("/live", "", [{"setup": None}, {"setup": {"model": 7}}], [R1], [20]),
    ],
)
async def test_a_socket_answer_costs_the_model_of_its_session(
    path: str, query: str, received: Any, sent: Sequence[dict[str, Any]], each: Sequence[int]
) -> None:
    async with funded("ai", PRICED) as at:
        await talk(at, path, sent, received=received, query=query)
        assert await spent(at) == sum(10 * one * 10**6 for one in each)


@pytest.mark.parametrize(("way", "spends"), [("read", 40), ("reported", 40), ("late", 40), ("recorded", 160)])
async def test_late_usage_costs_what_the_plans_file_says_now(way: str, spends: int, tmp_path: Path) -> None:
    """Ten tokens before an edit of the plans file, and ten after it, on one websocket or in one task."""
    path = tmp_path / "plans.yaml"
    plans = completed(PRICED.replace("routes:\n", 'routes:\n  - {match: "POST /late"}\n'))
    path.write_text(plans)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if way == "late":
            await hello(scope, receive, send)
        else:
            await send({"type": "websocket.accept"})
        for name in ("r1", "r2"):
            said = done(name, 1, 10, model="mini")
            if way == "read":
                await send({"type": "websocket.send", "text": json.dumps(said)})
            elif way == "recorded":
                record(output_tokens=10)
            else:
                record_usage(said)
            path.write_text(plans.replace("default: 4, models: {mini: 1", "default: 12, models: {mini: 3"))
            await at.kit.reload()

    async with served(app, plans=path) as at:
        await at.kit.grants.add("acme", {"ai": 1000}, grant_id="one")
        if way == "late":
            await post(at, "/late")
            await settled(at.kit)
        else:
            await talk(at, "/live", [])
        assert await spent(at) == spends * 10**6


@pytest.mark.parametrize("is_server", [True, False])
async def test_what_the_client_says_costs_its_transcriber(*, is_server: bool) -> None:
    session: dict[str, Any] = {"input_audio_transcription": {"model": "mini"}}
    if is_server:
        session = {"audio": {"input": {"transcription": {"model": "mini"}}}}
    received = [] if is_server else [update("opus", **session)]
    sent = [created("opus", **session)] if is_server else []
    async with funded("ai", PRICED) as at:
        await talk(at, "/live", [*sent, HEARD], received=received)
        assert await spent(at) == 10 * 10**6


# F-210, F-212, F-213, F-216: what OpenAI-shaped answers cost a balance in money, to the micro-dollar.
CHARGES: Final = """
meters: {input_tokens: {unit: token}, output_tokens: {unit: token}, input_audio_tokens: {unit: token},
  output_image_tokens: {unit: token}, web_searches: {unit: search}}
credits: {usd: {unit: money, costs: {tokens: provider_prices}}}
routes:
  - {match: "POST /auto", usage: auto}
  - {match: "POST /mistral", usage: mistral}
  - {match: "WS /auto", usage: auto}
  - {match: "WS /openai", usage: openai}
"""
PAID: Final = {name: floor(payload.micros) for name, payload in PAYLOADS.items() if name != "batch"}


async def payload_provider(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the payload that the request names, in two pieces."""
    payload = PAYLOADS[json.loads(await read_all(receive))["payload"]]
    middle, kind = len(payload.body) // 2, SSE_TYPE if payload.is_stream else JSON_TYPE
    await answering([payload.body[:middle], payload.body[middle:]], kind)(scope, no_more, send)


async def ask(at: Served, word: str, name: str) -> int:
    """Ask for a payload as a customer of its own; what that costs."""
    customer, payload = name.replace(" ", "-"), PAYLOADS[name]
    await at.kit.grants.add(customer, {"usd": 100}, grant_id="1")
    asked = {"model": payload.asked, "payload": name}
    sent = await at.client.post(f"/{word}", json=asked, headers={"x-customer-id": customer})
    assert sent.content == payload.body
    await settled(at.kit)
    return await spent(at, customer)


@pytest.mark.parametrize("word", ["auto", "mistral"])
async def test_each_answer_costs_what_its_provider_asks(word: str) -> None:
    async with metered(payload_provider, "memory://", plans=CHARGES) as at:
        assert {name: await ask(at, word, name) for name in PAID} == PAID
        assert (await at.kit.usage("chat-with-sound"))["meters"]["input_audio_tokens"]["recorded"] == 800
        drawn = (await at.kit.usage("image-tool"))["meters"]
        assert (drawn["input_tokens"]["recorded"], drawn["output_image_tokens"]["recorded"]) == (1850, 7024)
        assert (await at.kit.usage("searches"))["meters"]["web_searches"]["recorded"] == 2


async def test_a_batch_costs_what_batches_cost_once(store_url: str) -> None:
    async with metered(payload_provider, store_url, plans=CHARGES) as at:

        async def is_charged() -> bool:
            return await spent(at, "batch") == 1_125

        for _ in range(2):
            await ask(at, "auto", "batch")
            await eventually(is_charged)


async def test_a_line_of_a_batch_costs_what_batches_cost() -> None:
    line: dict[str, Any] = {"custom_id": "a", "response": {"status_code": 200, "body": response()}}
    async with funded("usd", CHARGES) as at:
        found = await at.kit.record_usage("acme", line, call_id="batch_1")
        assert found is not None
        # Half of 1000 * 1.25 + 100 * 10
        assert found.cost_micros == found.charged_micros == await spent(at) == 1_125


@pytest.mark.parametrize("path", ["/auto", "/openai"])
async def test_each_transcription_of_what_a_user_says_counts_once(path: str) -> None:
    events = [TRANSCRIBED, TRANSCRIBED, done("r1", 40, 10), {**TRANSCRIBED, "item_id": "item_2"}, TRANSCRIBED]
    async with funded("usd", CHARGES) as at:
        await talk(at, path, events)
        assert await tokens(at.kit, "input_tokens", "output_tokens", "input_audio_tokens") == (320, 50, 260)


NAMED: Final = {"audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}


@pytest.mark.parametrize(
    ("path", "query", "session", "micros"),
    [
        # 130 * 6 + 10 * 2.5 + 20 * 10, whatever model answers
        ("/auto", "model=gpt-realtime", {"model": "gpt-realtime", **NAMED}, 1_005),
        ("/openai", "intent=transcription", {"type": "transcription", **NAMED}, 1_005),
        ("/auto", "intent=transcription&deployment=gpt-4o-transcribe", {"type": "transcription"}, 1_005),
        # Another model than the one that answers, without a name.
        ("/openai", "model=gpt-realtime", {"model": "gpt-realtime"}, 0),
        ("/auto", "model=gpt-realtime", None, 0),
    ],
)
async def test_a_transcription_costs_its_sessions_model(
    path: str, query: str, session: dict[str, Any] | None, micros: int
) -> None:
    begun = [] if session is None else [{"type": "session.created", "session": session}]
    async with funded("usd", CHARGES) as at:
        await talk(at, path, [*begun, TRANSCRIBED], query=query)
        assert await spent(at) == micros


@pytest.mark.parametrize("path", ["/auto", "/openai"])
@pytest.mark.parametrize(("left_after", "micros"), [(4, 52_250), (3, 39_750), (2, 18_916), (1, 16_666)])
async def test_a_live_session_costs_its_length_and_questions(path: str, left_after: int, micros: int) -> None:
    session: Any = PAYLOADS["live session"].said
    first, second, closed = session
    asked: Any = PAYLOADS["response in a live session"].said
    # 20, 45 and 60 seconds at 3 dollars an hour; and 1000 * 1.25 + 100 * 10
    events = [first, asked[1], second, closed][:left_after]
    async with funded("usd", CHARGES) as at:
        await talk(at, path, events, query="model=gpt-live-1")
        assert await spent(at) == micros


@pytest.mark.parametrize("app_reports", [False, True])
async def test_a_live_session_draws_the_balance_while_it_lasts(*, app_reports: bool) -> None:
    """Its figures are of the whole session so far, and count once, also where the app reports them."""
    seen: list[int] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for event in PAYLOADS["live session"].said:
            if app_reports:
                record_usage(event)
            await send({"type": "websocket.send", "text": json.dumps(event)})
            await settled(at.kit)
            seen.append(await spent(at))

    async with metered(app, "memory://", plans=CHARGES) as at:
        await at.kit.grants.add("acme", {"usd": 1000}, grant_id="one")
        await talk(at, "/openai", [], query="model=gpt-live-1")
        assert seen == [16_666, 37_500, 50_000]


async def test_a_response_over_a_websocket_has_its_tools() -> None:
    painted = {"type": "response.completed", "response": PAYLOADS["image tool"].said}
    plain = {"type": "response.completed", "response": {**response(), "id": "resp_2"}}
    async with funded("usd", CHARGES) as at:
        await talk(at, "/auto", [painted, painted, plain])
        assert await spent(at) == 226_270 + 2_250
