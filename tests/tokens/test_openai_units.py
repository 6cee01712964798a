"""F-210, F-212, F-213, F-215, F-216: OpenAI-shaped answers are read whole, in the price table's units."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import pytest

from meterkit.catalog.model_prices import ProviderPrices
from meterkit.catalog.models import QUANTITY_MAX
from meterkit.tokens.charging import Charges
from meterkit.tokens.objects import calls_of
from meterkit.tokens.response import ResponseReader
from tokens.openai_payloads import (
    AUDIO,
    AUDIO_UNITS,
    PAINTED,
    PAYLOADS,
    PERPLEXITY,
    TRANSCRIBED,
    Payload,
    answer,
    response,
    searched,
)
from tokens.recordings import JSON_TYPE, SSE_TYPE, chat, chat_usage, compact, figures, sse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.tokens.call_usage import CallUsage

AT: Final = datetime(2026, 11, 24, tzinfo=UTC)
WORDS: Final = ("auto", "openai", "mistral")


def read(
    body: bytes, usage: str = "auto", kind: str = JSON_TYPE, *, cuts: Sequence[int] = ()
) -> tuple[CallUsage, ...]:
    reader = ResponseReader.open(usage, status=200, headers=[(b"content-type", kind.encode())])
    assert reader is not None
    ends = [*cuts, len(body)]
    for begin, end in zip([0, *cuts], ends, strict=True):
        reader.feed(body[begin:end])
    return reader.close(complete=True)


def read_payload(payload: Payload, usage: str = "auto", *, cuts: Sequence[int] = ()) -> tuple[CallUsage, ...]:
    return read(payload.body, usage, SSE_TYPE if payload.is_stream else JSON_TYPE, cuts=cuts)


def charged(calls: Sequence[CallUsage], asked: str) -> Fraction:
    """What calls cost, where those without a model are of the one that was asked."""
    charges = Charges(ProviderPrices())
    return sum((charges.of(replace(call, model=call.model or asked), AT) for call in calls), Fraction(0))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", PAYLOADS)
def test_an_answer_is_read_in_units_and_costs_what_its_provider_asks(name: str, word: str) -> None:
    payload = PAYLOADS[name]
    calls = read_payload(payload, word)
    assert [dict(call.details) for call in calls] == payload.units
    assert tuple(call.model for call in calls) == payload.models
    of_shape = "mistral_ai" if word == "mistral" and payload.provider == "openai" else payload.provider
    assert {call.provider for call in calls} == {of_shape}
    assert all(call.source == "reported" for call in calls)
    if payload.micros is not None:
        assert charged(calls, payload.asked) == payload.micros


@pytest.mark.parametrize("name", PAYLOADS)
def test_cut_anywhere_it_amounts_to_the_same(name: str) -> None:
    payload = PAYLOADS[name]
    expected = read_payload(payload)
    step = max(1, len(payload.body) // 50)
    for cut in range(0, len(payload.body), step):
        assert read_payload(payload, cuts=[cut]) == expected, cut


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_large_answer_amounts_to_the_same(name: str) -> None:
    payload = PAYLOADS[name]
    padding = {"padding": ["A" * 70_000]}
    said = payload.said
    large = [{**event, **padding} for event in said] if isinstance(said, list) else {**said, **padding}
    assert read_payload(replace(payload, said=large)) == read_payload(payload)
    first = [{**padding, **event} for event in said] if isinstance(said, list) else {**padding, **said}
    assert read_payload(replace(payload, said=first)) == read_payload(payload)


@pytest.mark.parametrize("name", PAYLOADS)
def test_an_object_amounts_to_the_same(name: str) -> None:
    said = PAYLOADS[name].said
    whole = said[-1] if isinstance(said, list) else said
    if PAYLOADS[name].models == (None,) and "result" in whole:
        pytest.skip("no SDK has such an object")
    assert [dict(call.details) for call in calls_of(whole)] == PAYLOADS[name].units


def test_what_an_image_tool_used_is_a_call_of_its_own() -> None:
    base, image = read(compact(PAINTED))
    assert (base.response_id, image.response_id) == ("resp_1", "resp_1/image_gen")
    assert figures(base)[1:3] == (1820, 210)
    assert figures(image)[1:3] == (30, 7024)


def test_an_image_tool_in_the_background_outlives_the_request_with_its_response() -> None:
    calls = read(compact({**PAINTED, "background": True}))
    assert [call.outlives for call in calls] == [True, True]


@pytest.mark.parametrize(
    ("place", "tools", "model"),
    [
        ("output", [{"type": "image_generation_call", "model": "gpt-image-1.5"}], "gpt-image-1.5"),
        ("tools", [{"type": "image_generation", "model": "gpt-image-1-mini"}], "gpt-image-1-mini"),
        ("tools", [{"type": "image_generation", "model": 7}], "gpt-image-2.5-sunburst"),
        ("tools", ["image_generation", None, {"type": ["image_generation"]}], "gpt-image-2.5-sunburst"),
        ("tools", {"type": "image_generation", "model": "x"}, "gpt-image-2.5-sunburst"),
    ],
)
def test_an_image_tools_model_is_the_one_that_the_answer_names(place: str, tools: Any, model: str) -> None:
    said: dict[str, Any] = {**PAINTED, "tools": [], place: tools}
    assert read(compact(said))[1].model == model


def test_an_image_tool_that_reports_only_what_came_out_is_read() -> None:
    used = {"output_tokens": 7024, "output_tokens_details": {"image_tokens": 7024}}
    _, image = read(compact({**PAINTED, "tool_usage": {"image_gen": used}}))
    assert (image.input_tokens, image.output_tokens) == (0, 7024)
    assert dict(image.details) == {"output_image_tokens": 7024}


def test_each_drawing_inside_a_response_is_a_call_of_its_own() -> None:
    drawn = {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30, "model": "gpt-5-mini"}
    items = [{"type": "image_generation_call", "id": "i", "svg_usage": drawn}] * 2
    calls = read(compact(response(output=[*items, {"type": "image_generation_call", "svg_usage": {}}])))
    assert [call.model for call in calls] == ["gpt-5", "gpt-5-mini", "gpt-5-mini"]
    assert [call.input_tokens for call in calls] == [1000, 10, 10]


def test_searches_are_counted_once_however_often_a_stream_repeats_them() -> None:
    last = response(output=[searched("search")] * 3)
    events = [
        {"type": "response.output_item.done", "item": searched("search")},
        {"type": "response.web_search_call.completed", "item_id": "ws"},
        {"type": "response.completed", "response": last},
        {"type": "response.completed", "response": last},
    ]
    (call,) = read(b"".join(map(sse, events)), "auto", SSE_TYPE)
    assert call.details == {"web_searches": 3}


@pytest.mark.parametrize("word", ["auto", "openai"])
def test_a_transcription_between_the_events_of_an_answer_is_a_call_of_its_own(word: str) -> None:
    done = {name: value for name, value in response("", 10, 5).items() if name != "model"}
    events = [
        {"type": "response.created", "response": {**done, "status": "in_progress", "usage": None}},
        TRANSCRIBED,
        TRANSCRIBED,
        {"type": "response.done", "response": done},
        {**TRANSCRIBED, "item_id": "item_2", "usage": {"type": "duration", "seconds": 2}},
    ]
    calls = read(b"".join(map(sse, events)), word, SSE_TYPE)
    assert [(call.response_id, call.model) for call in calls] == [
        ("item_1", None),
        ("resp_1", None),
        ("item_2", None),
    ]
    assert [call.output_tokens for call in calls] == [20, 5, None]
    assert calls[2].details == {"audio_seconds": 2, "input_audio_seconds": 2}


def test_a_transcription_is_no_part_of_a_call_that_goes_on() -> None:
    begun = {"type": "session.usage.updated", "usage": {"seconds": 5}}
    calls = read(b"".join(map(sse, (begun, TRANSCRIBED))), "auto", SSE_TYPE)
    assert [call.details.get("audio_seconds") for call in calls] == [5, None]
    assert [call.output_tokens for call in calls] == [None, 20]


def test_tokens_of_sound_that_is_billed_by_the_second_did_not_come_out() -> None:
    (call,) = read_payload(PAYLOADS["chat of Mistral with sound"])
    assert figures(call)[1:3] == (4, 635)
    assert call.notes == ()


BAD: Final[list[object]] = [-1, "5", "", 1.5, QUANTITY_MAX + 1, True, [], {}, [5], {"n": 5}]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    "place",
    [
        "prompt_tokens_details.audio_tokens",
        "completion_tokens_details.audio_tokens",
        "prompt_tokens_details.image_tokens",
    ],
)
def test_one_bad_figure_is_refused_alone(place: str, value: object) -> None:
    outer, inner = place.split(".")
    usage = {**AUDIO["usage"], outer: {**AUDIO["usage"][outer], inner: value}}
    (call,) = read(compact({**AUDIO, "usage": usage}))
    unit = ("input_" if outer.startswith("prompt") else "output_") + inner
    assert call.notes == ("refused",)
    assert call.details == {name: count for name, count in AUDIO_UNITS.items() if name != unit}
    assert figures(call)[1:3] == (1000, 300)


def test_a_whole_number_may_be_written_as_a_fraction() -> None:
    (call,) = read(compact(answer("gpt-audio", 9, 9, prompt_tokens_details={"audio_tokens": 4.0})))
    assert (call.details, call.notes) == ({"input_audio_tokens": 4}, ())


@pytest.mark.parametrize("usage", [[], [chat_usage(1, 2)], "x", 5, True])
def test_usage_that_is_no_object_is_missing(usage: object) -> None:
    (call,) = read(compact({**answer("gpt-5", 1, 2), "usage": usage}), "openai")
    assert call.source == "missing"


def test_parts_larger_than_their_wholes_are_cut_and_noted() -> None:
    details = {"audio_tokens": 900, "cached_tokens": 5000, "cached_tokens_details": {"audio_tokens": 4000}}
    (call,) = read(compact(answer("gpt-realtime-2", 100, 10, prompt_tokens_details=details)))
    assert call.notes == ("beyond_whole",)
    assert (call.cached_input_tokens, call.details["input_audio_tokens"]) == (100, 100)
    # 100 tokens of cached sound and 10 * 24: never more than went in.
    assert charged([call], "") == 40 + 240


@pytest.mark.parametrize(
    "cost",
    [-0.01, "0.1", True, [], math.nan, math.inf, 10**9 + 1, 10**400, {"total_cost": "1"}, {"total_cost": -1}],
)
def test_an_amount_that_cannot_be_one_is_refused(cost: object) -> None:
    body = json.dumps({**answer("gpt-5", 10, 5, cost=cost), "provider": "Google"}).encode()
    (call,) = read(body)
    assert (call.reported_cost_micros, call.notes) == (None, ("refused",))
    assert figures(call)[1:3] == (10, 5)


@pytest.mark.parametrize(
    ("usage", "micros"),
    [
        ({"cost": 1e-7}, Fraction(1, 10)),
        ({"cost": 0.1 + 0.2}, Fraction("300000.00000000004")),
        ({"cost": 10**9}, 10**15),
        ({"cost": {"total_cost": 0.006, "request_cost": 0.005}}, 6_000),
        ({"cost": {}}, None),
        ({"cost": None, "cost_in_usd_ticks": 94_000}, Fraction(94, 10)),
        ({"cost": 0.1, "is_byok": "true", "cost_details": {"upstream_inference_cost": 1}}, 100_000),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 1}}, 10**6),
        ({"cost": 0.1, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, 100_000),
        ({"cost": 0.1, "is_byok": True, "cost_details": []}, 100_000),
    ],
)
def test_a_reported_amount_is_exact(usage: dict[str, Any], micros: Fraction | int | None) -> None:
    (call,) = read(compact(answer("gpt-5", 10, 5, **usage)))
    assert call.reported_cost_micros == micros


@pytest.mark.parametrize(("reports", "micros"), [({"cost": 0.5, "cost_details": {}}, 500_000), ({}, 226_270)])
def test_the_amount_of_a_gateway_covers_tools_too(reports: dict[str, Any], micros: int) -> None:
    calls = read(compact({**PAINTED, "usage": {**PAINTED["usage"], **reports}}))
    assert charged(calls, "") == micros


def test_an_upstream_amount_that_cannot_be_one_is_refused_alone() -> None:
    details = {"upstream_inference_cost": "free"}
    (call,) = read(compact(answer("gpt-5", 10, 5, cost=0.1, is_byok=True, cost_details=details)))
    assert call.reported_cost_micros == 100_000
    assert call.notes == ("refused",)


def test_perplexity_bills_reasoning_and_citations_beside_the_completion() -> None:
    (call,) = calls_of(PERPLEXITY)
    assert figures(call)[1:] == (33, 7163 + 73_997 + 20_016, None, None, 73_997)
    assert call.reported_cost_micros == 409_393
    # 33 * 2 + 7163 * 8 + 73,997 * 3 + 20,016 * 2 + 18 * 5000
    assert charged([replace(call, provider="perplexity", reported_cost_micros=None)], "") == 409_393


@pytest.mark.parametrize("seconds", [-1, "5", True, math.nan, math.inf, 10**16])
def test_a_duration_that_cannot_be_one_is_refused(seconds: object) -> None:
    body = json.dumps({"text": "x", "usage": {"type": "duration", "seconds": seconds}}).encode()
    (call,) = read(body, "openai")
    assert (call.source, call.notes, dict(call.details)) == ("missing", ("refused",), {})


def test_mistral_says_an_empty_object_where_there_is_no_sound() -> None:
    (call,) = read(compact(answer("mistral-small-latest", 10, 5, prompt_audio_seconds={})), "mistral")
    assert (call.notes, dict(call.details), call.provider) == ((), {}, "mistral_ai")


def test_a_gateways_word_counts_over_the_shape_for_mistral_too() -> None:
    said = {**answer("x/y", 10, 5, cost=0.5), "provider": "Mistral"}
    assert [read(compact(said), word)[0].provider for word in WORDS] == ["openrouter"] * 3


@pytest.mark.parametrize(
    ("holder", "context"),
    [
        ({"service_tier": "flex"}, (("service_tier", "flex"),)),
        (
            {"service_tier": "priority", "object": "batch", "id": "b"},
            (("processing", "batch"), ("service_tier", "priority")),
        ),
        ({"service_tier": "default"}, ()),
        ({"service_tier": "auto"}, ()),
        ({"service_tier": None}, ()),
        ({"service_tier": ["flex"]}, ()),
        ({"service_tier": "x" * 300}, ()),
    ],
)
def test_a_call_was_processed_as_its_answer_says(
    holder: dict[str, Any], context: tuple[tuple[str, str], ...]
) -> None:
    (call,) = read(compact({**response(), **holder}))
    assert call.context == context


def test_the_tier_of_the_last_chunk_counts() -> None:
    events = [
        chat({"content": "Hi"}, service_tier="auto", usage=None),
        chat(None, service_tier="flex", usage=chat_usage(10, 5)),
    ]
    (call,) = read(b"".join(map(sse, events)), "auto", SSE_TYPE)
    assert call.context == (("service_tier", "flex"),)


NO_ANSWERS: Final[list[dict[str, Any]]] = [
    {"success": True, "result": {"usage": {"input_tokens": 10, "output_tokens": 5}}},
    {"success": "yes", "result": {"usage": chat_usage(10, 5)}},
    {"answers": [{"type": "essay"}], "usage": {"input_tokens": 10, "output_tokens": 5}},
    {"answers": ["choice"], "usage": {"input_tokens": 10, "output_tokens": 5}},
    {"pages": [{}], "usage": {"input_tokens": 10, "output_tokens": 5}},
    {"text": 5, "usage": {"type": "duration", "seconds": 4}},
    {"tool_usage": {"image_gen": {"input_tokens": 10, "output_tokens": 5}}},
]


@pytest.mark.parametrize("said", NO_ANSWERS)
def test_what_is_no_models_answer_counts_nothing_under_auto(said: dict[str, Any]) -> None:
    assert read(compact(said)) == ()
