"""Objects of frameworks: their models, each call by itself. F-211, F-214, F-215"""

# Internals: pure tables of objects that frameworks hand over.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, ClassVar, Final

import pytest

from llm_usage import CallUsage, StreamTap, calls_of, usage_of
from llm_usage.objects import UsageReports, read_report

AT: Final = datetime(2026, 9, 1, tzinfo=UTC)
# 1.25 and 10 dollars a million up to 200,000 tokens of input, 2.50 and 15 beyond.
LONG: Final = "gemini-2.5-pro"


def chunk(
    at: str = "lc_run--1", usage: Any = None, *, position: str | None = None, **told: Any
) -> dict[str, Any]:
    """A chunk of LangChain."""
    members = {"content": "x", "additional_kwargs": {}, "response_metadata": told, "usage_metadata": usage}
    return {"type": "AIMessageChunk", "id": at, **members, "chunk_position": position}


def counted(entered: int = 10, left: int = 6, **details: Any) -> dict[str, Any]:
    return {"input_tokens": entered, "output_tokens": left, "total_tokens": entered + left, **details}


def message(metadata: Any, /, **told: Any) -> dict[str, Any]:
    return {"type": "ai", "id": "lc_1", "content": "x", "response_metadata": told, "usage_metadata": metadata}


def tapped(chunks: Sequence[Any]) -> tuple[CallUsage, ...]:
    seen: list[tuple[CallUsage, ...]] = []
    assert list(StreamTap(chunks, report=seen.append)) == list(chunks)
    return seen[0]


def named(calls: Sequence[CallUsage]) -> list[tuple[str | None, str | None, int | None, int | None]]:
    return [(call.model, call.provider, call.input_tokens, call.output_tokens) for call in calls]


# LangChain.

FIRST: Final = [chunk(model_name="claude-5", model_provider="anthropic"), chunk(usage=counted())]
LAST: Final = [
    chunk(model_provider="openai"),
    chunk(model_provider="openai", model_name="gpt-4o", finish_reason="stop"),
    chunk(usage=counted()),
    chunk(position="last"),
]

NODE: Final = {"langgraph_node": "n"}
AZURE: Final = {**NODE, "ls_model_name": "gpt-4o", "ls_provider": "azure"}


@pytest.mark.parametrize(
    ("chunks", "model", "provider"),
    [
        (FIRST, "claude-5", "anthropic"),
        (LAST, "gpt-4o", "openai"),
        ([chunk(usage=counted()), chunk(model="grok-4", model_provider="xai")], "grok-4", "x_ai"),
        ([{**chunk(usage=counted()), "additional_kwargs": {"model_id": "m"}}], "m", None),
        ([(chunk(usage=counted()), AZURE)], "gpt-4o", "azure.ai.openai"),
        ([("messages", (part, NODE)) for part in LAST], "gpt-4o", "openai"),
        ([(("outer:1",), "messages", (part, NODE)) for part in FIRST], "claude-5", "anthropic"),
    ],
)
def test_the_model_of_a_stream_is_found_in_any_chunk(
    chunks: list[Any], model: str, provider: str | None
) -> None:
    assert named(tapped(chunks)) == [(model, provider, 10, 6)]
    reports = UsageReports()
    assert all(reports.take(read_report(part)) for part in chunks)
    assert named(reports.usages()) == [(model, provider, 10, 6)]


def test_messages_written_at_once_are_calls_of_their_own() -> None:
    chunks = [
        chunk("lc_run--1", model_name="gpt-4o", model_provider="openai"),
        chunk("lc_run--2", model_name="claude-5", model_provider="anthropic"),
        chunk("lc_run--1", usage=counted(10, 6)),
        chunk("lc_run--2", usage=counted(3, 0)),
        chunk("lc_run--2", usage=counted(0, 4)),
    ]
    assert named(tapped(chunks)) == [("gpt-4o", "openai", 10, 6), ("claude-5", "anthropic", 3, 4)]


def test_events_of_a_run_count_a_message_once() -> None:
    whole = {**chunk(usage=counted(), model_name="gpt-4o", id="resp_1")}
    events = [
        {"event": "on_chain_stream", "data": {"chunk": LAST[2]}, "metadata": {}},
        *({"event": "on_chat_model_stream", "data": {"chunk": part}, "metadata": {}} for part in LAST),
        {"event": "on_chat_model_end", "data": {"output": whole}, "metadata": {"ls_provider": "openai"}},
        {"event": "on_chain_end", "data": {"output": {"messages": [whole]}}, "metadata": {}},
    ]
    assert named(tapped(events)) == [("gpt-4o", "openai", 10, 6)]


@pytest.mark.parametrize(
    ("said", "micros"), [(2, 2_000_000), ("1e9999999", None), ("nan", None), (True, None)]
)
def test_any_number_of_a_gateway_is_read_in_a_short_time(said: object, micros: int | None) -> None:
    (call,) = calls_of(message(counted(), model_name="m", model_provider="openrouter", cost=said))
    assert call.reported_cost_micros == micros
    (other,) = calls_of(message(counted(), model_name="m", model_provider="openai", cost=said))
    assert other.reported_cost_micros is None


def test_a_handler_has_the_sums_of_its_models() -> None:
    sums = {"gpt-4o": counted(), LONG: counted(300_000, 10)}
    for obj in (sums, SimpleNamespace(run_inline=False, usage_metadata=sums)):
        calls = calls_of(obj)
        assert named(calls) == [("gpt-4o", None, 10, 6), (LONG, None, 300_000, 10)]
        assert [call.notes for call in calls] == [("summed",)] * 2
        assert calls[1].cost(AT) == Fraction(300_000 * 125, 100) + 10 * 10
    assert calls_of({"object": "response", "usage": counted()})[0].notes == ()


# pydantic-ai.


@dataclass
class RequestUsage:
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    input_audio_tokens: int = 0
    cache_audio_read_tokens: int = 0
    output_audio_tokens: int = 0
    output_reasoning_tokens: int = 0
    requests: int = 1
    details: dict[str, int] = field(default_factory=dict[str, int])


@dataclass
class ModelResponse:
    usage: RequestUsage
    model_name: str | None = LONG
    provider_name: str | None = "google-gla"
    provider_response_id: str | None = None
    provider_details: dict[str, Any] | None = None
    parts: list[Any] = field(default_factory=list[Any])
    kind: str = "response"


class AgentRunResult:
    """As the first releases had it, ``usage`` is a method."""

    __module__ = "pydantic_ai.run"
    run_id = "run-1"

    def __init__(self, responses: list[ModelResponse], total: RequestUsage) -> None:
        self._messages: list[object] = [SimpleNamespace(kind="request"), *responses]
        self._total = total

    @property
    def response(self) -> object:
        return self._messages[-1]

    def usage(self) -> RequestUsage:
        return self._total

    def all_messages(self) -> list[object]:
        return self._messages

    new_messages = all_messages


EACH: Final = RequestUsage(150_000, 1000)


def test_calls_of_a_run_have_the_tiers_of_their_own_length() -> None:
    """F-214"""
    for ids in ((None, None), ("r1", "r2")):
        responses = [ModelResponse(EACH, provider_response_id=one) for one in ids]
        result = AgentRunResult(responses, RequestUsage(300_000, 2000, requests=2))
        for calls in (calls_of(result), tapped([SimpleNamespace(kind="other"), result])):
            assert named(calls) == [(LONG, "gcp.gemini", 150_000, 1000)] * 2
            assert [call.cost(AT) for call in calls] == [Fraction(197_500)] * 2
            expected = [one or f"run-1/{at}" for at, one in enumerate(ids)]
            assert [call.response_id for call in calls] == expected
    assert usage_of(result).cost(AT) == 2 * 197_500  # type: ignore[union-attr]  # it has usage


def test_a_run_whose_calls_are_not_all_known_is_a_sum() -> None:
    result = AgentRunResult([ModelResponse(EACH)], RequestUsage(300_000, 2000, requests=2))
    (call,) = calls_of(result)
    assert (call.input_tokens, call.model, call.response_id) == (300_000, LONG, "run-1")
    assert call.notes == ("summed",)
    assert call.cost(AT) == 2 * 197_500


def test_all_counters_of_a_response_are_read() -> None:
    usage = RequestUsage(100, 60, 40, 10, 5, 7, 3, 2, 20)
    expected = {
        "input_tokens": 100,
        "output_tokens": 60,
        "cache_read_tokens": 40,
        "cache_write_tokens": 10,
        "cache_write_1h_tokens": 5,
        "input_audio_tokens": 7,
        "cache_audio_read_tokens": 3,
        "output_audio_tokens": 2,
        "output_reasoning_tokens": 20,
    }
    for obj in (usage, ModelResponse(usage), AgentRunResult([ModelResponse(usage)], usage)):
        (call,) = calls_of(obj)
        assert call.units == expected
    usage.web_searches = 2  # type: ignore[attr-defined]  # units without a field of their own are attributes, too
    (call,) = calls_of(ModelResponse(usage))
    assert call.units == {**expected, "web_searches": 2}


# OpenAI's agents.


def agents_usage(entered: int, left: int, requests: int = 1, **more: Any) -> dict[str, Any]:
    cached = {"input_tokens_details": {"cached_tokens": 4}}
    return {**counted(entered, left), "requests": requests, **cached, **more}


def run_of_agents(*models: object, shown: bool = True) -> SimpleNamespace:
    agents = [SimpleNamespace(name="a", model=model) for model in models]
    responses: list[SimpleNamespace] = []
    items: list[SimpleNamespace] = []
    for nth, agent in enumerate(agents):
        said = SimpleNamespace(type="message", id=f"msg_{nth}")
        usage = SimpleNamespace(**agents_usage(10 + nth, 6))
        responses.append(SimpleNamespace(output=[said], usage=usage, response_id=f"r{nth}"))
        items.append(SimpleNamespace(agent=agent, raw_item=said))
    return SimpleNamespace(raw_responses=responses, new_items=items if shown else [], _last_agent=agents[-1])


def test_a_run_of_agents_has_the_models_of_its_agents() -> None:
    """F-211"""
    given = SimpleNamespace(model="gpt-4o-mini")  # A model that is given as an object has its name in there.
    calls = calls_of(run_of_agents("gpt-4o", given, "litellm/anthropic/claude-5", None))
    assert named(calls) == [
        ("gpt-4o", "openai", 10, 6),
        ("gpt-4o-mini", "openai", 11, 6),
        ("anthropic/claude-5", "openai", 12, 6),
        (None, "openai", 13, 6),
    ]
    assert [call.response_id for call in calls] == ["r0", "r1", "r2", "r3"]
    # Without its items the last agent is known.
    hidden = calls_of(run_of_agents("gpt-4o", "gpt-4o-mini", shown=False))
    assert [call.model for call in hidden] == ["gpt-4o-mini"] * 2


def test_a_counter_of_agents_is_read_request_by_request() -> None:
    entries = [agents_usage(10, 6), agents_usage(3, 4)]
    total = agents_usage(13, 10, 2, request_usage_entries=entries)
    assert [call[2:] for call in named(calls_of(total))] == [(10, 6), (3, 4)]
    # Entries that do not come to the total are not all of them.
    (call,) = calls_of({**total, "request_usage_entries": entries[:1]})
    assert (call.input_tokens, call.notes) == (13, ("summed",))


# Other SDKs.


class RoutedResponse:
    """As LiteLLM's: pydantic keeps what is private in a dictionary of its own."""

    def __init__(self, provider: str, **members: Any) -> None:
        self.__dict__.update(members)
        hidden = {"custom_llm_provider": provider, "response_cost": 1.0}
        self.__pydantic_private__ = {"_hidden_params": hidden}


@pytest.mark.parametrize(("routed", "provider"), [("vertex_ai", "gcp.vertex_ai"), ("hosted_vllm", None)])
def test_litellm_knows_which_provider_it_has_asked(routed: str, provider: str | None) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16}
    whole, piece = (
        RoutedResponse(routed, id="c1", object=name, model="m", choices=[], usage=usage)
        for name in ("chat.completion", "chat.completion.chunk")
    )
    assert named(calls_of(whole)) == [("m", provider, 10, 6)]
    assert named(tapped([piece])) == [("m", provider, 10, 6)]


# Models that others sell at other prices, or that no name alone finds.
@pytest.mark.parametrize(
    ("routed", "model", "entered", "left"),
    [
        ("zai", "glm-4.5-air", 0.2, 1.1),
        ("ovhcloud", "gpt-oss-120b", 0.09, 0.47),
        ("novita", "baidu/ernie-4.5-21B-a3b", 0.07, 0.28),
        ("moonshot", "kimi-k2-0711-preview", 0.6, 2.5),
    ],
)
def test_a_response_has_the_price_of_litellms_provider(
    routed: str, model: str, entered: float, left: float
) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    (call,) = calls_of(RoutedResponse(routed, object="chat.completion", model=model, choices=[], usage=usage))
    assert call.cost(AT) == 1000 * Fraction(str(entered)) + 100 * Fraction(str(left))


SPOKEN: Final[dict[str, Any]] = {
    **counted(20, 10),
    "input_token_details": {"text_tokens": 5, "audio_tokens": 15, "cached_tokens": 4},
    "output_token_details": {"text_tokens": 2, "audio_tokens": 8},
}


def test_realtime_responses_are_read_however_they_are_given() -> None:
    """F-215"""
    response = SimpleNamespace(object="realtime.response", id="resp_1", status="completed", usage=SPOKEN)
    event = SimpleNamespace(type="response.done", event_id="e", response=response)
    for obj in (event, response, SPOKEN):
        (call,) = calls_of(obj)
        assert (call.provider, call.input_tokens, call.output_tokens) == ("openai", 20, 10)
        assert call.cached_input_tokens == 4
    reports = UsageReports()
    for obj in (response, event, response):
        assert reports.take(read_report(obj))
    assert len(reports.usages()) == 1


@dataclass
class SamplingUsage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    prompt_text_tokens: int = 0
    prompt_image_tokens: int = 0
    cached_prompt_text_tokens: int = 0
    cost_in_usd_ticks: int = 0

    DESCRIPTOR: ClassVar = SimpleNamespace(full_name="xai_api.SamplingUsage")


def of_grok(kind: str, usage: SamplingUsage, **members: Any) -> Any:
    """A message of the SDK's protocol."""
    made = type(kind, (SimpleNamespace,), {"DESCRIPTOR": SimpleNamespace(full_name=f"xai_api.{kind}")})
    return made(usage=usage, id="x1", model="grok-4", **members)


def whole_of_grok(usage: SamplingUsage) -> Any:
    return of_grok("GetChatCompletionResponse", usage)


GROK: Final = SamplingUsage(100, 20, 30, 150, 90, 10, 40)


def test_the_sdk_of_xai_is_read() -> None:
    """F-215"""
    whole = whole_of_grok(GROK)
    for obj in (whole, SimpleNamespace(_proto=whole, _index=0)):
        (call,) = calls_of(obj)
        assert named([call]) == [("grok-4", "x_ai", 100, 50)]
        assert call.units == {
            "input_tokens": 100,
            "output_tokens": 50,
            "cache_read_tokens": 40,
            "output_reasoning_tokens": 30,
            "input_text_tokens": 90,
            "input_image_tokens": 10,
        }
        assert (call.response_id, call.source) == ("x1", "reported")
    assert named(calls_of(GROK)) == [(None, "x_ai", 100, 50)]
    # The total tells whether the reasoning is in the completion.
    (call,) = calls_of(SamplingUsage(100, 50, 30, 150))
    assert call.output_tokens == 50
    (call,) = calls_of(SamplingUsage(100, 50, 30))
    assert call.output_tokens == 80
    (call,) = calls_of(whole_of_grok(SamplingUsage(100, 50, cost_in_usd_ticks=12_345)))
    assert call.reported_cost_micros == Fraction(12_345, 10_000)
    # Images and videos have no tokens.
    (call,) = calls_of(SamplingUsage(cost_in_usd_ticks=12_345))
    assert (call.source, call.reported_cost_micros) == ("reported", Fraction(12_345, 10_000))


def test_streams_of_the_sdk_of_xai_are_read() -> None:
    said = (SimpleNamespace(delta=SimpleNamespace(content="Four.")),)
    usages = (SamplingUsage(), SamplingUsage(100, 10), GROK)
    pieces = [of_grok("GetChatCompletionChunk", usage, outputs=said) for usage in usages]
    so_far = SimpleNamespace(_proto=whole_of_grok(GROK))
    chunks = [(so_far, SimpleNamespace(_proto=piece)) for piece in pieces]
    assert named(tapped(chunks)) == [("grok-4", "x_ai", 100, 50)]
    (call,) = calls_of(chunks[1])
    assert call.source == "partial"
    (call,) = tapped(chunks[:1])
    assert (call.source, call.model) == ("missing", "grok-4")
