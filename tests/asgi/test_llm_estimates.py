"""Answers that are complete and report nothing, or nothing that can be read: billed by their text."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import json
import logging
import random
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from drivers.app import Served, http_scope, staying
from drivers.llm_apps import (
    METERS,
    PLANS,
    PROMPT,
    PROMPT_TOKENS,
    amounts,
    answering,
    ask,
    metered,
    openai_stream,
    replaying,
    tokens,
)
from drivers.sampled import pairs
from llm_payloads.packing import BR, brotli, hide
from llm_payloads.recordings import (
    DETAILED,
    DONE,
    EVENTSTREAM_TYPE,
    JSON_TYPE,
    NDJSON_TYPE,
    RECORDINGS,
    SSE_TYPE,
    chat,
    chat_usage,
    compact,
    event_frame,
    gemini_chunk,
    sse,
)

pytestmark = pytest.mark.anyio

PLAIN, BYTES = "text/plain; charset=utf-8", "application/octet-stream"
OLLAMA = {"model": "m", "created_at": "t", "done": True}
TEXT = "Grüße aus 東京, alle miteinander. "
TOKENS = len(TEXT.encode()) // 4
WHOLE: dict[str, Any] = {"id": "c1", "object": "chat.completion", "model": "m", "choices": []}
WHOLE["usage"] = DETAILED
ONE_WORD = {"object": "chat.completion", "model": "m", "choices": [{"message": {"content": "No"}}]}


async def counted(app: ASGIApp, url: str, path: str = "/auto", **options: Any) -> tuple[int, ...]:
    async with metered(app, url, **options) as at:
        await ask(at, path)
        return await tokens(at.kit)


REPORTED = compact(WHOLE)
NUMBERS = random.Random(1)  # noqa: S311 - No secret.


# Larger than what a reader keeps, and customers choose the size: F-30.


FIGURES = {"input_tokens": 1420, "output_tokens": 310, "total_tokens": 1730}
GEMINI_USED = {"promptTokenCount": 1420, "candidatesTokenCount": 310, "totalTokenCount": 1730}
BEDROCK_USED = {"inputTokens": 1420, "outputTokens": 310, "totalTokens": 1730}


def logprobs(count: int) -> list[dict[str, Any]]:
    """Tokens with `top_logprobs: 20`, each 2 KB."""

    best = [{"token": "ab", "logprob": -NUMBERS.random(), "bytes": [97, 98]} for _ in range(20 * count)]
    return [
        {"token": 'a"]}', "logprob": -0.1, "bytes": [97], "top_logprobs": best[20 * n : 20 * n + 20]}
        for n in range(count)
    ]


def chat_with_logprobs() -> bytes:
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": {"content": logprobs(600)}}
    choice["message"] = {"role": "assistant", "content": "x" * 2_400}
    return compact({**WHOLE, "choices": [choice]})


def responses_stream() -> bytes:
    said = [{"type": "output_text", "text": "x", "logprobs": logprobs(200)}]
    done = {"output": [{"type": "message", "content": said}], "usage": FIGURES}
    response = {"id": "r", "object": "response", "instructions": '"usage":{"' * 110_000}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**response, "output": [], "usage": None}},
        {"type": "response.output_text.delta", "delta": "x"},
        {"type": "response.completed", "response": {**response, **done}},
    ]
    return b"".join(sse(event, event=event["type"]) for event in events)


def gemini_array() -> bytes:
    large = gemini_chunk("x")
    large["candidates"][0]["content"]["parts"].append({"inlineData": {"data": "A" * 900_000}})
    return compact([large, {**large, "usageMetadata": GEMINI_USED}])


def bedrock() -> bytes:
    text = event_frame("contentBlockDelta", {"delta": {"text": "x" * 90_000}})
    return text + event_frame("metadata", {"trace": {"guardrail": "x" * 900_000}, "usage": BEDROCK_USED})


LARGE = {
    "logprobs": (JSON_TYPE, chat_with_logprobs),
    "responses": (SSE_TYPE, responses_stream),
    "gemini array": (JSON_TYPE, gemini_array),
    "bedrock": (EVENTSTREAM_TYPE, bedrock),
}


@pytest.mark.parametrize(("name", "piece"), pairs([*LARGE], [7_001, 1 << 16, 1 << 30]))
async def test_an_answer_of_any_size_is_counted(name: str, piece: int, store_url: str) -> None:
    kind, make = LARGE[name]
    body = make()
    assert len(body) > 100_000
    chunks = [body[at : at + piece] for at in range(0, len(body), piece)]
    assert (1420, 310) == await counted(answering(chunks, kind), store_url, "/auto")


# Complete, and without usage: F-31.

SPOKEN = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
STARTED = {"id": "m", "type": "message", "usage": {"input_tokens": 9, "output_tokens": 1}}
WRITTEN_BLOCK = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}
SPEECH = {"audio": {"data": "A" * 9_000, "transcript": TEXT}}
SAID = [{"content": [{"text": TEXT}]}]
TOOL = {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": TEXT}}
COHERE_CALL = {"message": {"tool_calls": {"function": {"arguments": TEXT}}}}
RESPONSES = [
    {"type": "response.output_text.delta", "delta": TEXT},
    {"type": "response.output_text.done", "text": TEXT},
    {"type": "response.audio.delta", "delta": "A" * 9_000},
    {"type": "response.completed", "response": {"output": SAID}},
]


def chat_twice(piece: str, **beside: Any) -> dict[str, Any]:
    """A chunk with a text beside its piece: Together's has the piece, Perplexity's the whole so far."""
    (choice,) = chat({"content": piece})["choices"]
    return {**chat(None), "choices": [{**choice, **(beside or {"text": piece})}]}


SILENT: dict[str, tuple[str, str, Any]] = {
    "chat stream": ("openai", SSE_TYPE, [chat({"content": character}) for character in TEXT]),
    "chat stream, thought": ("openai", SSE_TYPE, [chat({"reasoning_content": TEXT})]),
    "chat stream, thought under two names": (
        "openai",
        SSE_TYPE,
        [chat({"reasoning": TEXT, "reasoning_content": TEXT})],
    ),
    "chat stream, said twice": ("openai", SSE_TYPE, [chat_twice(character) for character in TEXT]),
    "chat stream, said again in whole": (
        "openai",
        SSE_TYPE,
        [chat_twice(TEXT[at], message={"content": TEXT[: at + 1]}) for at in range(len(TEXT))],
    ),
    "chat stream, spoken": ("openai", SSE_TYPE, [chat(SPEECH)]),
    "chat": ("openai", JSON_TYPE, {**chat(None), "choices": [{"message": {"content": TEXT}}]}),
    "responses": ("openai", JSON_TYPE, {"object": "response", "output": SAID}),
    "responses stream": ("openai", SSE_TYPE, RESPONSES),
    "messages": ("anthropic", JSON_TYPE, {"type": "message", "content": [{"type": "text", "text": TEXT}]}),
    "messages, tool": ("anthropic", SSE_TYPE, [TOOL]),
    "gemini": ("gemini", JSON_TYPE, [{"candidates": gemini_chunk(TEXT)["candidates"]}]),
    "converse, thought": ("bedrock", EVENTSTREAM_TYPE, {"delta": {"reasoningContent": {"text": TEXT}}}),
    "cohere, tool": ("cohere", SSE_TYPE, [{"type": "tool-call-delta", "delta": COHERE_CALL}]),
    "ollama": ("ollama", NDJSON_TYPE, {**OLLAMA, "message": {"thinking": TEXT}}),
}


def written(kind: str, said: Any) -> bytes:
    if kind == SSE_TYPE:
        return b"".join(map(sse, said)) + DONE
    return event_frame("contentBlockDelta", said) if kind == EVENTSTREAM_TYPE else compact(said)


@pytest.mark.parametrize(("name", "how"), pairs([*SILENT], ["declared", "auto"]))
async def test_a_complete_answer_without_usage_is_billed_by_its_text(
    name: str, how: str, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-31: whatever the model wrote, once."""
    word, kind, said = SILENT[name]
    async with metered(answering([written(kind, said)], kind), store_url) as at:
        await ask(at, f"/{word}" if how == "declared" else "/auto")
        assert (PROMPT_TOKENS, TOKENS) == await tokens(at.kit)
    (told,) = caplog.messages
    assert "token usage of a response is estimated" in told
    # F-40: only where there is such an option.
    assert name.startswith("chat stream") == ("include_usage" in told)


async def test_an_answer_of_one_word_without_usage_is_not_free(store_url: str) -> None:
    """A text of less than four bytes was none, and the request was not billed."""
    for said, kind in ((sse(chat({"content": "No"})) + DONE, SSE_TYPE), (compact(ONE_WORD), JSON_TYPE)):
        assert (PROMPT_TOKENS, 1) == await counted(answering([said], kind), store_url, "/openai")


@pytest.mark.parametrize(("word", "size"), [("anthropic", 5_000), ("ollama", 1)])
async def test_an_answer_that_only_calls_a_tool_is_not_free(word: str, size: int, store_url: str) -> None:
    """F-31: without JSON's own marks and blanks, whatever the size."""
    tool = {"city": TEXT * size}
    said: dict[str, Any] = {"type": "message", "content": [{"type": "tool_use", "name": "f", "input": tool}]}
    if word == "ollama":
        said = {**OLLAMA, "message": {"tool_calls": [{"function": {"name": "f", "arguments": tool}}]}}
    length = len(("city" + TEXT.replace(" ", "").replace(",", "") * size).encode())
    assert (PROMPT_TOKENS, length // 4) == await counted(
        answering([compact(said)], JSON_TYPE), store_url, f"/{word}"
    )


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        # The provider reports figures of sound, or no tokens, or breaks the stream off, or adds text.
        ([sse({"type": "speech.audio.done", "usage": SPOKEN})], (14, 101)),
        ([*openai_stream(TEXT), sse(chat(None, usage=chat_usage(0, 0))), DONE], (0, 0)),
        ([*openai_stream(TEXT), sse({"error": {"message": "overloaded"}})], (PROMPT_TOKENS, TOKENS)),
        ([sse({"type": "message_start", "message": STARTED}), sse(WRITTEN_BLOCK)], (9, 1 + TOKENS)),
    ],
)
async def test_figures_win_over_text(chunks: list[bytes], expected: tuple[int, int], store_url: str) -> None:
    assert expected == await counted(answering(chunks, SSE_TYPE), store_url, "/auto")


async def test_an_estimator_of_the_apps_own_counts_for_the_bill_too(store_url: str) -> None:
    def estimate(body: object, model: str | None) -> int:
        assert isinstance(body, dict | bytes)
        return 77 if model == "m" else 0

    app = answering([*openai_stream(TEXT), DONE], SSE_TYPE)
    assert (77, TOKENS) == await counted(app, store_url, settings={"estimate_input": estimate})


QUESTION = "word " * 6_000
QUESTION_TOKENS = len(QUESTION) // 4
FORM = '--x\r\ncontent-disposition: form-data; name="{}"\r\n\r\n{}\r\n'.format
HIDDEN: dict[str, tuple[bytes, str]] = {
    "beside another prompt": (compact({"question": QUESTION, "prompt": "hi"}), ""),
    "beside a token": (compact({"question": QUESTION, "input": [1]}), ""),
    "another spelling": (compact({"Messages": QUESTION, "messages": "a"}), ""),
    "named twice": (b'{"prompt": "%b", "prompt": "a"}' % QUESTION.encode(), ""),
    "UTF-16": (json.dumps({"prompt": QUESTION}).encode("utf-16"), ""),
    "UTF-32": (json.dumps([{"prompt": QUESTION}]).encode("utf-32"), ""),
    "compressed": (gzip.compress(compact({"prompt": QUESTION}), mtime=0), "gzip"),
    "compressed otherwise": (NUMBERS.randbytes(10_000), "br"),
    "tokens": (compact({"prompt": list(range(QUESTION_TOKENS))}), ""),
    "hyphens": (compact({"prompt": QUESTION.replace(" ", "-") * 2}), ""),
    "hyphens in a form": (f"prompt={QUESTION.replace(' ', '-')}".encode(), ""),
    "beside a file": ((FORM("prompt", QUESTION) + FORM("file", "\0\0" * 400) + "--x--").encode(), ""),
}


@pytest.mark.parametrize("name", HIDDEN)
async def test_no_way_to_write_a_request_lowers_its_bill(name: str, store_url: str) -> None:
    body, coding = HIDDEN[name]
    headers = {"content-encoding": coding} if coding else {}
    async with metered(answering([*openai_stream(TEXT), DONE], SSE_TYPE), store_url) as at:
        await at.client.post("/auto", content=body, headers=headers)
        (found,) = await tokens(at.kit, "input_tokens")
    assert 0.75 * QUESTION_TOKENS <= found <= 2.2 * QUESTION_TOKENS


async def test_encoded_data_is_billed_as_an_image_wherever_it_stands(store_url: str) -> None:
    photo = base64.b64encode(NUMBERS.randbytes(300_000)).decode()
    for body in ({"photo": photo}, {"url": f"data:image/png;base64,{photo}"}, {"image": photo}):
        async with metered(answering([*openai_stream(TEXT), DONE], SSE_TYPE), store_url) as at:
            await ask(at, "/auto", body=compact(body))
            assert 85 <= (await tokens(at.kit))[0] <= 85 + 256


# In a coding that is not decoded: F-36.


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/openai", PROMPT, True),
        ("/auto", PROMPT, True),
        ("/auto", PROMPT.decode().encode("utf-16"), True),
        ("/auto", PROMPT.replace(b"messages", b"m\\u0065ssages"), True),
        ("/auto", b'{"name": "ada"}', False),
    ],
)
async def test_an_unreadable_answer_is_estimated_for_a_model(
    path: str, body: bytes, expected: bool, store_url: str, monkeypatch: Any, caplog: Any
) -> None:
    packed = brotli(compact({**chat({"content": TEXT * 20}), "usage": DETAILED}))
    async with metered(answering([packed], JSON_TYPE, coding="br"), store_url) as at:
        await ask(at, path, body=body)
        assert (1420, 310) == await tokens(at.kit)
        hide(monkeypatch, *BR)
        await ask(at, path, body=body)
        added = (PROMPT_TOKENS, len(packed) // 4) if expected else (0, 0)
        assert (1420 + added[0], 310 + added[1]) == await tokens(at.kit)
    assert expected == ("content coding" in caplog.text)


@pytest.mark.parametrize("coding", ["none", "UTF-8", "gzip, identity"])
async def test_codings_that_change_nothing_hide_no_figures(coding: str, store_url: str) -> None:
    body = REPORTED if "gzip" not in coding else gzip.compress(REPORTED)
    async with metered(answering([body], JSON_TYPE, coding=coding), store_url) as at:
        await ask(at, "/auto")
        assert (1420, 310) == await tokens(at.kit)


async def test_leaving_while_a_message_is_read_is_counted(store_url: str) -> None:
    body = compact({**chat({"content": "x" * 2_000_000}, finish="stop"), "usage": DETAILED})
    asking: asyncio.Future[None]

    async def take(message: Message) -> None:
        if message.get("body"):
            asyncio.get_running_loop().call_soon(asking.cancel)

    async with metered(answering([body], JSON_TYPE), store_url) as at:
        asking = asyncio.ensure_future(at.app(http_scope("/auto", method="POST"), staying(PROMPT), take))
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (await tokens(at.kit), await at.counted()) == ((1420, 310), (1, 0))


async def test_i7_a_metered_stream_leaves_no_garbage(store_url: str) -> None:
    """F-40: nothing in cycles, whether it reports usage or is estimated."""
    streams: list[ASGIApp] = [
        answering([*openai_stream(TEXT), sse(chat(None, usage=DETAILED)), DONE], SSE_TYPE),
        answering([brotli(b"".join(openai_stream(TEXT)))], SSE_TYPE, coding="br"),
        answering([gemini_array()[:-900]], JSON_TYPE),
    ]
    for app in streams:
        async with metered(app, store_url) as at:
            await ask(at, "/auto")
            await tokens(at.kit)
            gc.collect()
            gc.freeze()  # Only what is made from now on: what a test before has left may end meanwhile.
            gc.disable()
            try:
                for _ in range(2):
                    await ask(at, "/auto")
                await tokens(at.kit)
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                left = [type(found).__name__ for found in gc.garbage]
                ours = [found for found in gc.garbage if type(found).__module__.startswith("meterkit")]
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
            assert ([], []) == (ours, left)


# What a route on `auto` leaves alone: F-33.


async def test_auto_reads_answers_to_post_only(store_url: str) -> None:
    """F-33: a stored answer is not billed each time it is fetched."""
    async with metered(answering([REPORTED], JSON_TYPE), store_url) as at:
        for method in ("GET", "PUT", "DELETE"):
            await ask(at, "/auto", method=method, body=b"")
        assert (0, 0) == await tokens(at.kit)
        await ask(at, "/openai", method="GET", body=b"")
        assert (1420, 310) == await tokens(at.kit)
        # F-131: uvicorn's h11 hands ``post`` on, and other frameworks than Starlette run the handler for it.
        await ask(at, "/auto", method="post")
        assert (2840, 620) == await tokens(at.kit)


async def test_auto_bills_a_model_asked_by_any_method(store_url: str) -> None:
    """A client chooses the method, and a handler may take any: its choice must not make a call free."""
    async with metered(answering([REPORTED], JSON_TYPE), store_url) as at:
        for times, method in enumerate(("PATCH", "PUT", "GET", "DELETE", "BREW"), 1):
            await ask(at, "/auto", method=method)
            assert (1420 * times, 310 * times) == await tokens(at.kit), method
        counted = await tokens(at.kit)
        await ask(at, "/auto", method="PATCH", body=b'{"title": "My chat"}')
        assert counted == await tokens(at.kit)


async def test_auto_bills_a_model_asked_by_a_form(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form with a sound names a model, and has no prompt."""
    form: dict[str, Any] = {"files": {"file": ("a.mp3", b"\0" * 9_000)}, "data": {"model": "whisper-1"}}
    async with metered(answering([REPORTED], JSON_TYPE), store_url) as at:
        await at.client.put("/auto", **form)
        await at.client.put("/auto", data={"title": "My model=prompt"})
        assert (1420, 310) == await tokens(at.kit)
    hide(monkeypatch, *BR)
    packed = brotli(REPORTED)
    async with metered(answering([packed], JSON_TYPE, coding="br"), store_url) as at:
        await at.client.post("/auto", **form)
        assert await tokens(at.kit, "output_tokens") == (len(packed) // 4,)


@pytest.mark.parametrize("ends", [True, False])
async def test_auto_bills_only_models(ends: bool, store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """F-33: nor at hang-up, whatever was asked."""
    for chunks in (
        [b": ping\n\n", b": ping\n\n"],
        [b"data: <div hx-swap='outerHTML'>1</div>\n\n", b"data: <p>\ndata: </p>\n\n"],
        [b"event: ping\ndata: 1700000000\n\n"],
        [b"data: {\n\n"],
        [sse({"message": {"content": TEXT}})] * 3,
    ):
        async with metered(answering(chunks, SSE_TYPE, ends=ends), store_url) as at:
            await ask(at, "/auto", body=b'{"form": 1}' if b": ping" in chunks[0] else PROMPT)
            assert (0, 0) == await tokens(at.kit), chunks
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("kind", "chunks", "expected"),
    [
        ("", [*openai_stream(TEXT), sse(chat(None, usage=DETAILED)), DONE], (1420, 310)),
        (PLAIN, [b"\n ", compact({**chat({"content": TEXT}), "usage": DETAILED})], (1420, 310)),
        (BYTES, [b": hello\n\n", sse(chat({"content": TEXT}, usage=DETAILED))], (1420, 310)),
        ("", [b"event: x\n", sse(chat({"content": TEXT}, usage=DETAILED))], (1420, 310)),
        (PLAIN, [compact([gemini_chunk(TEXT)])], (PROMPT_TOKENS, TOKENS)),
        (PLAIN, [b"plain prose, and then ", sse(chat(None, usage=DETAILED))], (0, 0)),
        (BYTES, [b"\x89PNG\r\n", b"\0" * 9_000, compact(chat(None, usage=DETAILED))], (0, 0)),
        ("", [compact({"usage": {"cpu": 5}})], (0, 0)),
    ],
)
async def test_auto_reads_the_beginning_without_a_content_type(
    kind: str, chunks: list[bytes], expected: tuple[int, int], store_url: str
) -> None:
    assert expected == await counted(answering(chunks, kind), store_url, "/auto")


OWN = {"type": "status", "text": "searching the web", "content": "page", "amount": 3}
BEGIN = {"id": "m", "type": "message", "model": "c", "usage": {"input_tokens": 9, "output_tokens": 1}}
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}


@pytest.mark.parametrize(
    ("kind", "chunks", "expected"),
    [
        (SSE_TYPE, openai_stream(TEXT), (PROMPT_TOKENS, TOKENS)),
        (SSE_TYPE, [sse({"type": "message_start", "message": BEGIN}), sse(DELTA)], (9, 1 + TOKENS)),
        (JSON_TYPE, [compact([*[OWN] * 20, WHOLE])], (1420, 310)),
    ],
    ids=["chat", "anthropic", "array"],
)
@pytest.mark.parametrize("ends", [True, False])
async def test_auto_finds_a_call_behind_the_apps_own_events(
    kind: str, chunks: list[bytes], expected: tuple[int, int], ends: bool
) -> None:
    first = [sse(OWN)] * 20 if kind == SSE_TYPE else []
    assert expected == await counted(answering([*first, *chunks], kind, ends=ends), "memory://")


ECHOES = {
    "metadata": {"usage": {"inputTokens": 0, "outputTokens": 0}},
    "meta": {"billed_units": {"input_tokens": 0, "output_tokens": 0}},
}


@pytest.mark.parametrize("path", ["/auto", "/openai", "/bedrock"])
@pytest.mark.parametrize("name", ECHOES)
async def test_metadata_of_a_client_in_each_event_is_no_usage(name: str, path: str) -> None:
    echoed = {name: ECHOES[name]}
    said = sse({**chat({"content": TEXT}), **echoed}) * 1_001
    total = sse({**chat(None, usage=chat_usage(10, 5000)), **echoed})
    used = (PROMPT_TOKENS, 1_001 * len(TEXT.encode()) // 4)
    assert used == await counted(answering([said], SSE_TYPE), "memory://", path)
    assert (10, 5000) == await counted(answering([said, total], SSE_TYPE), "memory://", path)


# A content type that does not fit the body: a proxy has a fixed one, and its client chooses `stream`.

STREAMED = [*openai_stream(TEXT), sse(chat(None, usage=DETAILED)), DONE]
OLLAMA_LINES: list[dict[str, Any]] = [{**OLLAMA, "message": {"content": TEXT}, "done": False}] * 3
OLLAMA_LINES.append({**OLLAMA, "prompt_eval_count": 1420, "eval_count": 310})
METADATA = {"usage": BEDROCK_USED, "metrics": {"latencyMs": 1}}
FRAMES = [event_frame("contentBlockDelta", {"delta": {"text": TEXT}}), event_frame("metadata", METADATA)]
BODIES: dict[str, tuple[str, list[bytes]]] = {
    "document": ("openai", [REPORTED]),
    "document over lines": ("openai", [json.dumps(WHOLE, indent=1).encode()]),
    "document in a text": ("openai", [b" ", compact(json.dumps({"o": "ü\n\\ud83d\U0001f600", **WHOLE}))]),
    "stream": ("openai", STREAMED),
    "stream in a text": ("openai", [compact(b"".join(STREAMED).decode())]),
    "lines": ("ollama", [compact(line) + b"\n" for line in OLLAMA_LINES]),
    "lines at once": ("ollama", [b"\n".join(map(compact, OLLAMA_LINES))]),
    "frames": ("bedrock", FRAMES),
}


@pytest.mark.parametrize("kind", [SSE_TYPE, JSON_TYPE, NDJSON_TYPE, PLAIN, "text/json", BYTES])
async def test_a_response_is_read_whatever_its_content_type(kind: str, store_url: str) -> None:
    pieces: list[bytes] = []
    asked = 0
    async with metered(answering(pieces, kind), store_url) as at:
        for name, (word, chunks) in BODIES.items():
            for path, sent in (f"/{word}", chunks), ("/auto", [bytes([byte]) for byte in b"".join(chunks)]):
                pieces[:] = sent
                await ask(at, path)
                asked += 1
                assert (asked * 1420, asked * 310) == await tokens(at.kit), (name, path)


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (JSON_TYPE, b"{" * 90, (PROMPT_TOKENS, 1)),
        (JSON_TYPE, b'"{{{{', (PROMPT_TOKENS, 1)),
        # The app's own text: the app reports the call itself, perhaps later.
        (JSON_TYPE, b'"Four."', (0, 0)),
        (JSON_TYPE, b"Four, and no JSON.", (0, 0)),
        ("text/vtt", b"WEBVTT", (0, 0)),
    ],
)
async def test_a_damaged_response_of_a_model_is_not_free(
    kind: str, body: bytes, expected: tuple[int, int], store_url: str, caplog: Any
) -> None:
    async with metered(answering([body], kind), store_url) as at:
        await ask(at, "/openai", method="GET", body=b"")
        await ask(at, "/auto")
        assert (0, 0) == await tokens(at.kit)
        await ask(at, "/openai")
        assert expected == await tokens(at.kit)
    assert "/openai: token usage of a response is" in caplog.text


@pytest.mark.parametrize("kind", ["audio/mpeg", "application/x-protobuf"])
async def test_a_response_of_another_type_is_warned_of(kind: str, store_url: str, caplog: Any) -> None:
    async with metered(answering([b"\0\n\n" * 9_000], kind), store_url) as at:
        await ask(at, "/auto")
        await ask(at, "/openai", body=b'{"name": "ada"}')
        assert not caplog.messages
        await ask(at, "/openai")
        assert (0, 0) == await tokens(at.kit)
    (said,) = caplog.messages
    assert said.startswith("/openai: token usage of a response is missing")


# Several calls in one stream, and events that are told in passing: F-40.


async def test_two_calls_with_equal_figures_are_two(store_url: str) -> None:
    """F-40: an agent's stream of two answers of the same length."""
    said = [chat({"content": "Hello"}), chat({}, finish="stop"), chat(None, usage=chat_usage(7, 5))]
    chunks = [sse({**chunk, "id": name}) for name in ("a", "b") for chunk in said]
    assert (14, 10) == await counted(answering([*chunks, DONE], SSE_TYPE), store_url, "/auto")


async def test_events_that_only_one_line_end_parts_are_read(store_url: str) -> None:
    events = [*[compact(chat({"content": TEXT}))] * 900, compact(chat(None, usage=DETAILED)), b"[DONE]"]
    body = b"".join(b"data: " + event + b"\n" for event in events)
    chunks = [body[at : at + 5_000] for at in range(0, len(body), 5_000)]
    assert (1420, 310) == await counted(answering(chunks, SSE_TYPE), store_url, "/auto")


BY_NAME = {recording.name: recording for recording in RECORDINGS}


async def rated(at: Served) -> int:
    return next(rate["used"] for rate in await at.kit.rates("acme") if rate["meter"] == "output_tokens")


@pytest.mark.parametrize("name", BY_NAME)
async def test_each_recorded_answer_is_counted_and_passed_on(name: str, store_url: str) -> None:
    recording = BY_NAME[name]
    expected = amounts(recording.expected)
    async with metered(replaying(recording), store_url) as at:
        assert recording.body == (await at.client.post(f"/{recording.usage}", content=PROMPT)).content
        assert expected == await tokens(at.kit, *METERS)
        assert expected[1] == await rated(at)
        if recording.auto:
            await ask(at, "/auto")
            assert tuple(2 * value for value in expected) == await tokens(at.kit, *METERS)
        assert (1 + recording.auto, 0) == await at.counted()


@pytest.mark.parametrize(
    ("chunks", "kind", "coding", "cause"),
    [
        ([*openai_stream(""), sse(chat({}, finish="stop")), DONE], SSE_TYPE, None, "include_usage"),
        ([b"{" * 90], JSON_TYPE, None, "no JSON"),
        ([REPORTED], JSON_TYPE, "gzip", "compressed in another way"),
    ],
    ids=["no usage", "no JSON", "no gzip"],
)
async def test_an_answer_without_usage_and_text_is_warned_of_once(
    chunks: list[bytes], kind: str, coding: str | None, cause: str, store_url: str, caplog: Any
) -> None:
    async with metered(answering(chunks, kind, coding=coding), store_url) as at:
        for _ in range(3):
            for route in ("/openai", "/mistral"):
                await ask(at, route, method="GET", body=b"")
        assert (await tokens(at.kit), await at.counted()) == ((0, 0), (6, 0))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    for route, said in zip(("/openai", "/mistral"), caplog.messages, strict=True):
        assert said.startswith(f"{route}: token usage of a response is missing")
        assert cause in said


@pytest.mark.parametrize(
    ("path", "status", "recorded", "seen"),
    [("/errors", 200, (0, 0), 310), ("/auto", 400, (0, 0), 0), ("/attempt", 500, (0, 0), 0)],
)
async def test_billing_goes_by_outcome_and_rates_by_usage(
    path: str, status: int, recorded: tuple[int, int], seen: int, store_url: str
) -> None:
    async with metered(answering([REPORTED], JSON_TYPE, status=status), store_url) as at:
        await ask(at, path)
        assert recorded == await tokens(at.kit)
        assert seen == await rated(at)


@pytest.mark.parametrize(
    ("sources", "whole", "cut"),
    [("[reported]", (1420, 310), (0, 0)), ("[partial, estimated]", (0, 0), (7, 2))],
)
async def test_sources_that_are_not_listed_are_rated_and_not_billed(
    sources: str, whole: tuple[int, int], cut: tuple[int, int], store_url: str
) -> None:
    plans = PLANS + f"billing: {{sources: {sources}}}\n"
    torn = answering([sse(chat({"content": "x"}, usage=chat_usage(7, 2)))], SSE_TYPE, ends=False)
    for app, billed, output in ((answering([REPORTED], JSON_TYPE), whole, 310), (torn, cut, 2)):
        async with metered(app, store_url, plans=plans) as at:
            await ask(at, "/auto")
            assert billed == await tokens(at.kit)
            assert output == await rated(at)


async def test_only_declared_counters_are_fed(store_url: str) -> None:
    plans = PLANS.replace("  cached_input_tokens: {unit: token}\n", "").replace(
        "total_tokens: {unit: token}", "total_tokens: {unit: token, kind: gauge}"
    )
    async with metered(answering([REPORTED], JSON_TYPE), store_url, plans=plans) as at:
        await ask(at, "/auto")
        assert (1420, 310, 0, 256, 0) == await tokens(at.kit, *METERS[:2], *METERS[3:])


@pytest.mark.parametrize("where", ["open", "read", "close"])
async def test_i8_a_reader_that_breaks_is_not_heard_of_by_the_app(
    where: str, store_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "the words of a customer"

    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError(words)

    monkeypatch.setattr(f"llm_usage.response.ResponseReader.{where}", breaks)
    async with metered(answering([REPORTED[:50], REPORTED[50:]], JSON_TYPE), store_url) as at:
        for _ in range(2):
            assert (await at.client.post("/auto", content=PROMPT)).content == REPORTED
        assert (await tokens(at.kit), await at.counted()) == ((0, 0), (2, 0))
    (said,) = caplog.messages
    assert "ZeroDivisionError" in said
    assert words not in caplog.text
