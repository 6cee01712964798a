"""Figures of responses: `usage_fields` reads them by their paths, and a warning tells of those not read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from gzip import compress
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from drivers.llm_apps import PLANS, answering, ask, metered, tokens
from llm_payloads.packing import pack
from llm_payloads.recordings import (
    EVENTSTREAM_TYPE,
    JSON_TYPE,
    NDJSON_TYPE,
    SSE_TYPE,
    chat,
    chat_usage,
    compact,
    event_frame,
    gemini_chunk,
    sse,
)
from meterkit import PlansError, record_usage
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

LINE = "usage_fields: {searches: meta.billed_units.search_units}"


def plans(line: str = LINE) -> str:
    return PLANS.replace("routes:\n", f'  searches: {{unit: search}}\nroutes:\n  - {{match: "/x", {line}}}\n')


def ranking(units: Any) -> dict[str, Any]:
    return {"id": "r", "results": [], "meta": {"billed_units": {"search_units": units}}}


async def counted(chunks: Sequence[bytes], kind: str = JSON_TYPE, *, line: str = LINE, **options: Any) -> int:
    async with metered(answering(chunks, kind, **options), "memory://", plans=plans(line)) as at:
        await ask(at, "/x")
        return (await tokens(at.kit, "searches"))[0]


async def test_a_figure_is_read_off_a_document_and_off_a_stream() -> None:
    body = compact(ranking(3))
    assert (await counted([body]), await counted([body[:20], body[20:]])) == (3, 3)
    assert await counted([compress(body)], coding="gzip") == 3
    events = [sse({"text": "x"}), sse(ranking(1)), sse(ranking(4))]
    assert await counted(events, SSE_TYPE) == 4
    assert await counted([b"".join(events)[:-9], b"".join(events)[-9:]], SSE_TYPE) == 4
    lines = [compact(ranking(1)) + b"\n", compact(ranking(5))]
    assert (await counted(lines, NDJSON_TYPE), await counted([compact(ranking(2.9))])) == (5, 2)
    # Some proxies give each response one content type, or serialize it twice.
    assert (await counted([body], SSE_TYPE), await counted(events)) == (3, 4)
    assert await counted([compact(body.decode())]) == 3


@pytest.mark.parametrize("figure", ["3", True, 10**15])
async def test_a_wrong_figure_counts_nothing_and_warns(figure: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert (await counted([compact(ranking(3))], status=500), caplog.records) == (0, [])
    assert await counted([compact(ranking(figure))]) == 0
    assert "a response has no figure for usage_fields searches" in caplog.text


async def test_a_large_document_or_event_is_read_to_its_end() -> None:
    large = [b'{"a": "' + b"x" * (1 << 20), b'",' + compact(ranking(3))[1:]]
    assert (await counted(large), await counted([b"data: ", *large, b"\r\r"], SSE_TYPE)) == (3, 3)
    assert await counted([*large, b"\n", compact(ranking(2))], NDJSON_TYPE) == 2
    assert await counted([compact({**ranking(3), "results": [[0]] * 2_000})]) == 3


BOM, DOCUMENT = b"\xef\xbb\xbf", compact(ranking(4))


FORMS = {
    "cr": sse(ranking(1), end=b"\r") + sse(ranking(4), end=b"\r"),
    "bom": BOM + sse(ranking(4)),
    "no last blank line, cr": sse(ranking(4), end=b"\r").rstrip(),
    "lines, cr": b'data: {"meta":\rdata: {"billed_units":\rdata:{"search_units": 4}}}\r\r',
    "torn": sse(ranking(1)) + b"data: {torn\n\n" + sse(ranking(4)),
}


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
async def test_every_form_of_an_event_stream_is_read(body: bytes) -> None:
    for chunks in ([body], [body[at : at + 1] for at in range(len(body))]):
        assert await counted(chunks, SSE_TYPE) == 4
    # The first bytes tell it from a document.
    for kind, said in (("text/plain", body), ("text/plain", b"\n " + DOCUMENT), ("", BOM + DOCUMENT)):
        assert await counted([said[:1], said[1:2], said[2:]], kind) == 4


@pytest.mark.parametrize("coding", ["br", "zstd", "deflate", "compress"])
async def test_every_content_coding_is_undone_or_told(coding: str, caplog: pytest.LogCaptureFixture) -> None:
    is_known = coding != "compress"
    body = pack(sse({"text": "x"}) + sse(ranking(4)), coding)[0] if is_known else b"x" * 20
    assert await counted([body[:9], body[9:]], SSE_TYPE, coding=coding) == (4 if is_known else 0)
    said = "no figure for usage_fields searches: its content coding is not decoded here"
    assert (said in caplog.text) is not is_known


CALLS: dict[str, tuple[list[tuple[str | None, int] | None], int]] = {
    "calls that interleave": ([("a", 3), ("b", 1), ("a", 4), ("b", 5)], 9),
    "events without an id": ([(None, 3), (None, 5)], 5),
    "streams that end": ([(None, 3), None, (None, 5), None], 8),
    "one call in two streams": ([("a", 3), None, ("a", 4)], 4),
    "a call that tells its id later": ([(None, 3), ("a", 5)], 5),
}


@pytest.mark.parametrize("name", CALLS)
async def test_the_last_figure_of_each_call_counts(name: str) -> None:
    events, units = CALLS[name]
    texts = [b"[DONE]" if one is None else compact({**ranking(one[1]), "id": one[0]}) for one in events]
    assert await counted([b"".join(b"data: " + text + b"\n\n" for text in texts)], SSE_TYPE) == units
    assert await counted([b"\n".join(texts)], NDJSON_TYPE) == units
    if None not in events:
        assert await counted([b"[" + b",".join(texts) + b"]"]) == units


async def test_calls_beyond_the_bound_are_told(caplog: pytest.LogCaptureFixture) -> None:
    events = [sse({**ranking(1), "id": f"c{number}"}) for number in range(1_001)]
    assert await counted([b"".join(events)], SSE_TYPE) == 1_000
    assert "a response holds more calls than meterkit distinguishes" in caplog.text


async def test_a_field_may_have_a_path_for_document_and_stream() -> None:
    line = "usage_fields: {searches: [meta.billed_units.search_units, response.used]}"
    assert await counted([compact(ranking(3))], line=line) == 3
    assert await counted([sse({"response": {"used": 4}})], SSE_TYPE, line=line) == 4
    both = {**ranking(3), "response": {"used": 4}}
    assert await counted([compact(both)], line=line) == 3  # The first that has a figure.


async def test_a_fetched_stored_answer_counts_nothing_on_auto() -> None:
    """As it counts no tokens there: a poll would bill the job each time."""
    for line, expected in ((f"usage: auto, {LINE}", 3), (LINE, 9)):
        async with metered(answering([compact(ranking(3))], JSON_TYPE), "memory://", plans=plans(line)) as at:
            await ask(at, "/x")
            for _ in range(2):
                await ask(at, "/x", method="GET", body=b"")
            assert (expected,) == await tokens(at.kit, "searches")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("usage: auto, usage_fields: {input_tokens: a}", "name it in one of the two"),
        ("usage_fields: {searches: 'a b'}", "a path in the JSON response"),
        ("usage_fields: {searches: []}", "found an empty list"),
    ],
)
def test_a_line_that_cannot_work_is_refused(line: str, told: str) -> None:
    with pytest.raises(PlansError, match=told):
        loads(plans(line))


# A route warns once of token figures in its responses that `usage:` does not read.
OWN = {"answer": "x", "usage": {"read_tokens": 12, "spoken_tokens": 3}}
ROUTES = """
  - {match: "/v1/{path:path}", usage: auto}
  - {match: "/named/{path:path}", usage: openai}
  - {match: "/fields", usage: auto, usage_fields: {requests: usage.read_tokens}}
"""


async def warnings(
    caplog: pytest.LogCaptureFixture, app: ASGIApp, *paths: str, method: str = "POST"
) -> list[str]:
    async with metered(app, "memory://", plans=PLANS.replace("routes:\n", "routes:" + ROUTES, 1)) as at:
        for path in paths or ("/auto",):
            await ask(at, path, method=method)
    return [found.getMessage() for found in caplog.records if found.name == "meterkit.asgi"]


async def paths_told(
    caplog: pytest.LogCaptureFixture, chunks: Sequence[bytes], kind: str = JSON_TYPE, **options: Any
) -> list[str]:
    told = await warnings(caplog, answering(chunks, kind, **options))
    return [line.partition(" token figure at '")[2].partition("'")[0] for line in told if "figure at" in line]


async def test_a_route_warns_once_of_figures_that_nothing_reads(caplog: pytest.LogCaptureFixture) -> None:
    app = answering([compact(OWN)], JSON_TYPE)
    first, second = await warnings(caplog, app, "/auto", "/auto", "/v1/ask", "/v1/other")
    assert first.startswith("/auto: a response has a token figure at 'usage.read_tokens' that `usage: auto`")
    assert second.startswith("/v1/{path:path}: ")
    for cure in ("`usage: NAME`", "`usage_fields`", "meterkit.record_usage()"):
        assert cure in first


@pytest.mark.parametrize("kind", [JSON_TYPE, SSE_TYPE])
async def test_a_get_that_calls_a_model_is_told(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Browsers' EventSource sends GET alone. A poll of a stored completion is no such request."""
    answer = chat({"content": "hi"}, usage=chat_usage(7, 2))
    body = compact(answer) if kind == JSON_TYPE else sse(answer) + b"data: [DONE]\n\n"
    app, name = answering([body], kind), answer["id"]
    plans = PLANS.replace("routes:\n", 'routes:\n  - {match: "/{path:path}", usage: auto}\n', 1)
    async with metered(app, "memory://", plans=plans) as at:
        for path in (f"/v1/completions/{name}", "/chat", "/ask"):
            await ask(at, path, method="GET", body=b"")
        assert await tokens(at.kit) == (0, 0)
    (line,) = [found.getMessage() for found in caplog.records if found.name == "meterkit.asgi"]
    assert line.startswith(
        "/{path:path}: a request without a body got a model's response, which `usage: auto`"
    )
    assert "`usage: NAME`" in line


FIGURES: dict[str, tuple[Any, str]] = {
    "camel": ({"info": {"inputTextTokens": 5}}, "info.inputTextTokens"),
    "count": ({"results": [{"tokenCount": 7, "outputText": "x"}]}, "results[].tokenCount"),
    "tokens of metadata": ({"messageMetadata": {"tokens": 5}}, "messageMetadata.tokens"),
    "beside a limit": ({"max_tokens": 100, "used_tokens": 5}, "used_tokens"),
    "hidden names": ({"by": {"sk-1234567890": {"total_tokens": 5}}}, "by.*.total_tokens"),
}


@pytest.mark.parametrize("name", FIGURES)
async def test_figures_of_documents_and_streams_count(name: str, caplog: pytest.LogCaptureFixture) -> None:
    event, path = FIGURES[name]
    assert [path] == await paths_told(caplog, [compact(event)])
    for body, kind in (
        (json.dumps(event, indent=2).encode(), "text/plain"),
        (compact([{"a": 1}, event]), JSON_TYPE),
        (b"data: {}\n\n" * 20 + sse(event) + b"data: [DONE]\n\n", SSE_TYPE),
        (b"{}\n" * 20 + compact(event) + b"\n", NDJSON_TYPE),
    ):
        caplog.clear()
        assert [path] == await paths_told(caplog, [body], kind)


async def test_an_unread_event_is_told_beside_calls_that_are_read(caplog: pytest.LogCaptureFixture) -> None:
    read = sse(chat(None, usage=chat_usage(7, 2)))
    coded = compress(compact({"values": [{"text": "x" * 50}] * 1_000, **OWN}))
    frame = event_frame("trace", {"modelUsage": {"inputTokens": 7, "spent": 2}})
    assert ["usage.read_tokens"] == await paths_told(caplog, [read, sse(OWN)], SSE_TYPE)
    caplog.clear()
    assert ["usage.read_tokens"] == await paths_told(caplog, [coded], coding="gzip")
    caplog.clear()
    assert ["trace.modelUsage.inputTokens"] == await paths_told(caplog, [frame], EVENTSTREAM_TYPE)


TEXT_DETAILS = [{"modality": "TEXT", "tokenCount": 31}]
COHERES = {"tokens": [1], "token_strings": ["x"], "meta": {"billed_units": {"input_tokens": 1}}}
COUNTING: dict[str, tuple[str, Any]] = {
    "anthropic": ("anthropic", {"input_tokens": 2095}),
    "gemini": ("gemini", {"totalTokens": 31, "promptTokensDetails": TEXT_DETAILS}),
    "openai": ("openai", {"object": "response.input_tokens", "input_tokens": 11}),
    "vllm": ("openai", {"count": 3, "max_model_len": 4096, "tokens": [1, 2, 3], "token_strs": None}),
    "cohere": ("cohere", COHERES),
}


@pytest.mark.parametrize("name", COUNTING)
async def test_answers_of_counting_endpoints_do_not_warn(name: str, caplog: pytest.LogCaptureFixture) -> None:
    usage, body = COUNTING[name]
    assert [] == await warnings(caplog, answering([compact(body)], JSON_TYPE), f"/{usage}", "/auto")


@pytest.mark.parametrize("path", ["messages/count_tokens", "models/m:countTokens", "tokenize"])
async def test_paths_of_counting_endpoints_do_not_warn(path: str, caplog: pytest.LogCaptureFixture) -> None:
    for body in ({"data": {"total_tokens": 80}}, {"count": 9_000, "tokens": [11_111] * 9_000}):
        app = answering([compact(body)], JSON_TYPE)
        assert [] == await warnings(caplog, app, f"/v1/{path}", f"/named/{path}")


PENDING = {"id": "b", "object": "batch", "status": "in_progress", "usage": {"some_tokens": 3}}
SILENT: dict[str, Any] = {
    "a model of ollama": {"model_info": {"tokenizer.ggml.bos_token_id": 128000}},
    "rate limits": {"rate_limits": [{"name": "tokens", "limit_tokens": 9, "used_tokens": 3}]},
    "settings": {"generation_settings": {"n_tokens": 5}, "thinking": {"budget_tokens": 9}},
    "texts": {"usage": {"read_tokens": "5", "note": '"total_tokens": 5'}},
    "tokens elsewhere": {"game": {"tokens": 5}},
    "a call that is read": {**chat(None), "usage": chat_usage(7, 2), "spent_tokens": 5},
    "a run's step": {"id": "s", "object": "thread.run.step", "usage": chat_usage(7, 2)},
    "pending work": PENDING,
}


@pytest.mark.parametrize("name", SILENT)
async def test_other_figures_bring_no_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    event, is_stream = SILENT[name], name == "a run's step"
    body, kind = (sse(event), SSE_TYPE) if is_stream else (compact(event), JSON_TYPE)
    assert [] == await paths_told(caplog, [body], kind)


async def test_figures_before_a_final_one_bring_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    early = {**gemini_chunk("x"), "usageMetadata": {"promptTokenCount": 8}}
    usage = {"promptTokenCount": 8, "candidatesTokenCount": 3, "totalTokenCount": 11}
    last = {**gemini_chunk("x"), "usageMetadata": usage}
    assert [] == await paths_told(caplog, [sse(early), sse(last)], SSE_TYPE)


async def test_failures_fields_and_reports_bring_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    answer = answering([compact(OWN)], JSON_TYPE)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record_usage({**chat(None), "usage": chat_usage(7, 2)})
        await answer(scope, receive, send)

    assert [] == await warnings(caplog, app, "/auto")
    assert [] == await warnings(caplog, answering([compact(OWN)], JSON_TYPE, status=400), "/auto")
    assert [] == await warnings(caplog, answer, "/fields")
    told = await warnings(caplog, answer, "/auto", method="GET")
    assert not any("figure at" in line for line in told)
