"""The objects of the providers' own SDKs, where these are installed: `make test-sdks`."""

# Internals: objects that only SDKs can make, read as an app reports them.

from __future__ import annotations

from typing import Any, cast

import pytest
import yaml

from drivers.llm_apps import listening, read_all
from llm_payloads.openai_payloads import PAYLOADS
from llm_payloads.recordings import (
    ANTHROPIC_LAST,
    DETAILED,
    DETAILED_FIGURES,
    DONE,
    MISSING,
    Figures,
    anthropic_events,
    chat,
    compact,
    figures,
    sse,
)
from llm_usage import CallUsage, StreamTap, calls_of


def amounts(calls: tuple[CallUsage, ...] | None) -> list[Figures]:
    return [figures(call) for call in calls or ()]


def tapped(chunks: list[Any]) -> list[Figures]:
    seen: list[tuple[CallUsage, ...]] = []
    assert list(StreamTap(chunks, report=seen.append)) == chunks
    assert len(seen) == 1
    return amounts(seen[0])


HEARD = "ConversationItemInputAudioTranscriptionCompletedEvent"


@pytest.mark.parametrize(
    ("module", "kind", "name"),
    [
        ("openai.types.responses", "Response", "searches"),
        ("openai.types.responses", "Response", "image tool"),
        ("openai.types.responses", "CompactedResponse", "compaction"),
        ("openai.types", "ImagesResponse", "image as lines"),
        ("openai.types.audio", "Transcription", "transcription"),
        ("openai.types.chat", "ChatCompletion", "chat with sound"),
        ("openai.types", "Batch", "batch"),
        ("openai.types.realtime", HEARD, "what a user has said"),
    ],
)
def test_openai_units(module: str, kind: str, name: str) -> None:
    """F-212, F-213: objects of the SDK have the units that its JSON has."""
    model: Any = getattr(pytest.importorskip(module), kind)
    payload = PAYLOADS[name]
    said: Any = payload.said
    if isinstance(said, list):
        said = cast("list[dict[str, Any]]", said)[-1]
    calls = calls_of(model.construct(**said))
    assert [dict(call.details) for call in calls] == payload.units
    assert calls == calls_of(said)


def test_google_genai() -> None:
    types: Any = pytest.importorskip("google.genai.types")
    value = yaml.safe_load("""
response_id: g1
model_version: gemini
candidates: [{content: {parts: [{text: hi}]}, finish_reason: STOP}]
usage_metadata: {prompt_token_count: 10, candidates_token_count: 5, thoughts_token_count: 7,
                 cached_content_token_count: 2, total_token_count: 22}
""")
    response = types.GenerateContentResponse.model_validate(value)
    assert amounts(calls_of(response)) == [("reported", 10, 12, 2, None, 7)]


def test_xai() -> None:
    """F-215"""
    chat_pb2: Any = pytest.importorskip("xai_sdk.proto").chat_pb2
    usage_pb2: Any = pytest.importorskip("xai_sdk.proto").usage_pb2
    sdk: Any = pytest.importorskip("xai_sdk.chat")
    counts = {"prompt_tokens": 100, "completion_tokens": 20, "reasoning_tokens": 30, "total_tokens": 150}
    usage = usage_pb2.SamplingUsage(**counts, cached_prompt_text_tokens=40)
    whole = sdk.Response(chat_pb2.GetChatCompletionResponse(id="x1", model="grok-4", usage=usage), 0)
    (call,) = calls_of(whole)
    assert amounts((call,)) == [("reported", 100, 50, 40, None, 30)]
    assert (call.model, call.provider, call.response_id) == ("grok-4", "x_ai", "x1")
    assert amounts(calls_of(whole.usage)) == amounts((call,))
    output = chat_pb2.CompletionOutputChunk(delta=chat_pb2.Delta(content="Four."))
    chunk = chat_pb2.GetChatCompletionChunk(id="x1", model="grok-4", usage=usage, outputs=[output])
    assert tapped([(whole, sdk.Chunk(chunk, 0))]) == amounts((call,))


# Frameworks around the SDKs.


def test_langchain() -> None:
    """F-34"""
    messages: Any = pytest.importorskip("langchain_core.messages")
    usage, *parts = yaml.safe_load("""
- {input_tokens: 10, output_tokens: 6, total_tokens: 16,
   input_token_details: {cache_read: 4, cache_creation: 1}, output_token_details: {reasoning: 2}}
# Anthropic's input comes with the first chunk, its output with the last one: chunks add up.
- {input_tokens: 10, output_tokens: 0, total_tokens: 10, input_token_details: {cache_read: 4}}
- null
- {input_tokens: 0, output_tokens: 6, total_tokens: 6}
""")
    told = {"model_name": "gpt", "model_provider": "openai"}
    whole = messages.AIMessage("hi", id="lc_1", usage_metadata=usage, response_metadata=told)
    expected = [("reported", 10, 6, 4, 1, 2)]
    assert amounts(calls_of(whole)) == expected
    assert amounts(calls_of(whole.usage_metadata)) == expected
    (call,) = calls_of(whole)
    assert (call.model, call.provider, call.response_id) == ("gpt", "openai", "lc_1")
    assert calls_of(messages.AIMessage("hi")) == ()
    chunks = [messages.AIMessageChunk("he", id="lc_2", usage_metadata=part) for part in parts]
    summed = chunks[0] + chunks[1] + chunks[2]
    assert tapped(chunks) == [("reported", 10, 6, 4, None, None)]
    assert amounts(calls_of(summed)) == [("partial", 10, 6, 4, None, None)]
    with_notes = [(chunk, {"langgraph_node": "model"}) for chunk in chunks]
    assert tapped(with_notes) == [("reported", 10, 6, 4, None, None)]
    assert tapped(chunks[1:2]) == [MISSING]


@pytest.mark.anyio
async def test_pydantic_ai() -> None:
    """F-34"""
    pydantic_ai: Any = pytest.importorskip("pydantic_ai")
    models: Any = pytest.importorskip("pydantic_ai.models.test")
    usages: Any = pytest.importorskip("pydantic_ai.usage")
    usage = usages.RequestUsage(
        input_tokens=10, output_tokens=6, cache_read_tokens=4, cache_write_tokens=1, output_reasoning_tokens=2
    )
    assert amounts(calls_of(usage)) == [("reported", 10, 6, 4, 1, 2)]
    agent = pydantic_ai.Agent(models.TestModel())
    result = await agent.run("hello")
    expected = [("reported", result.usage.input_tokens, result.usage.output_tokens, 0, 0, 0)]
    assert expected[0][1] > 0
    assert amounts(calls_of(result)) == expected
    assert amounts(calls_of(result.usage)) == expected
    calling: Any = pydantic_ai.Agent(models.TestModel())

    @calling.tool_plain  # type: ignore[untyped-decorator]  # it is known where it is installed
    def look(page: int) -> str:
        return f"page {page}"

    twice = await calling.run("hello")
    calls = calls_of(twice)
    assert len(calls) == 2
    assert sum(call.input_tokens or 0 for call in calls) == twice.usage.input_tokens
    assert len(calls_of(await calling.run("more", message_history=twice.all_messages()))) == 1
    (call,) = calls_of(result.response)
    assert (call.model, call.output_tokens) == ("test", result.usage.output_tokens)
    async with agent.run_stream("hello") as streamed:
        told: list[str] = []
        tap = StreamTap(streamed.stream_text(), report=lambda _: None, unread=told.append)
        assert [text async for text in tap]
        assert told == ["str"]
        assert amounts(calls_of(streamed)) == expected
    async with agent.run_stream_events("hello") as events:
        seen: list[tuple[CallUsage, ...]] = []
        assert [event async for event in StreamTap(events, report=seen.append)]
    assert amounts(seen[0]) == expected


def test_openai_agents() -> None:
    """F-34"""
    agents: Any = pytest.importorskip("agents")
    details: Any = pytest.importorskip("openai.types.responses.response_usage")
    usage = agents.Usage(
        requests=1,
        input_tokens=10,
        output_tokens=6,
        total_tokens=16,
        input_tokens_details=details.InputTokensDetails(cached_tokens=4, cache_write_tokens=0),
        output_tokens_details=details.OutputTokensDetails(reasoning_tokens=2),
    )
    expected = ("reported", 10, 6, 4, 0, 2)
    assert amounts(calls_of(usage)) == [expected]
    response = agents.ModelResponse(output=[], usage=usage, response_id="r1")
    assert amounts(calls_of(response)) == [expected]
    other = agents.ModelResponse(output=[], usage=usage, response_id="r2")
    guards = ("input_guardrail", "output_guardrail", "tool_input_guardrail", "tool_output_guardrail")
    result = agents.RunResult(
        input="hi",
        new_items=[],
        raw_responses=[response, other],
        final_output="x",
        context_wrapper=agents.RunContextWrapper(context=None, usage=usage),
        _last_agent=agents.Agent(name="a"),
        **{f"{guard}_results": [] for guard in guards},
    )
    assert amounts(calls_of(result)) == [expected, expected]


# Helpers of the SDKs around their own streams, on real connections.


async def speak(scope: Any, receive: Any, send: Any) -> None:
    """A server with the wire of OpenAI and of Anthropic."""
    path, body = scope["path"], await read_all(receive)
    if path.endswith("/messages"):
        events = anthropic_events(lambda value: sse(value, event=value["type"]))
    else:
        chunks = [chat({"role": "assistant", "content": "grüß"}), chat({}, finish="stop")]
        events = [*map(sse, chunks), sse(chat(None, usage=DETAILED)), DONE]
    streams = b'"stream":true' in body.replace(b" ", b"")
    if not streams:
        message = {"role": "assistant", "content": "hi"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        said = {**chat({}), "object": "chat.completion", "choices": choices, "usage": DETAILED}
        events = [compact(said)]
    kind = b"text/event-stream" if streams else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def taps(stream: Any) -> tuple[Any, list[str]]:
    """What a tap makes of a stream, and what it could not read."""
    seen: list[tuple[CallUsage, ...]] = []
    told: list[str] = []
    _ = [item async for item in StreamTap(stream, report=seen.append, unread=told.append)]
    return amounts(seen[0]), told


ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.anyio
async def test_openai_helpers_and_raw_responses() -> None:
    """F-34, F-35"""
    openai: Any = pytest.importorskip("openai")
    async with listening(speak) as port:
        url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            completions = client.chat.completions
            async with completions.stream(**ASKED) as stream:
                assert await taps(stream) == ([DETAILED_FIGURES], [])
            raw = await completions.with_raw_response.create(**ASKED)
            assert amounts(calls_of(raw)) == [DETAILED_FIGURES]
            assert amounts(calls_of(raw.parse())) == [DETAILED_FIGURES]
            async with completions.with_streaming_response.create(**ASKED) as unread:
                assert calls_of(unread) == ()
                assert amounts(calls_of(await unread.parse())) == [DETAILED_FIGURES]
                assert amounts(calls_of(unread)) == [DETAILED_FIGURES]
            raw = await completions.with_raw_response.create(**ASKED, stream=True)
            assert calls_of(raw) == ()
            assert await taps(raw.parse()) == ([DETAILED_FIGURES], [])


@pytest.mark.anyio
async def test_anthropic_helpers_and_raw_responses() -> None:
    """F-34"""
    anthropic: Any = pytest.importorskip("anthropic")
    asked = {**ASKED, "max_tokens": 9}
    expected = [ANTHROPIC_LAST]
    async with listening(speak) as port:
        url = f"http://127.0.0.1:{port}"
        async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
            async with client.messages.stream(**asked) as stream:
                assert await taps(stream) == (expected, [])
            async with client.messages.stream(**asked) as stream:
                assert await taps(stream.text_stream) == ([], ["str"])
                assert amounts(calls_of(await stream.get_final_message())) == expected
