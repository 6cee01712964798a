"""`usage_fields`: figures of a response by their paths, for providers that meterkit does not know."""

from __future__ import annotations

from gzip import compress
from typing import TYPE_CHECKING, Any

import pytest

from asgi.test_llm_estimates import ask
from drivers.llm_apps import PLANS, answering, metered, tokens
from meterkit import PlansError
from meterkit.catalog import loads
from tokens.packing import pack
from tokens.recordings import JSON_TYPE, NDJSON_TYPE, SSE_TYPE, compact, sse

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    assert await counted([body]) == 3
    assert await counted([body[:20], body[20:]]) == 3
    assert await counted([compress(body)], coding="gzip") == 3
    events = [sse({"text": "x"}), sse(ranking(1)), sse(ranking(4))]
    assert await counted(events, SSE_TYPE) == 4
    assert await counted([b"".join(events)[:-9], b"".join(events)[-9:]], SSE_TYPE) == 4
    lines = [compact(ranking(1)) + b"\n", compact(ranking(5))]
    assert await counted(lines, NDJSON_TYPE) == 5
    assert await counted([compact(ranking(2.9))]) == 2


@pytest.mark.parametrize("figure", ["3", True, 10**15])
async def test_what_is_no_figure_counts_nothing_and_is_told(
    figure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert await counted([compact(ranking(figure))]) == 0
    assert "a response has no figure for usage_fields searches" in caplog.text


async def test_failures_count_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert await counted([compact(ranking(3))], status=500) == 0
    assert caplog.records == []


async def test_a_large_document_or_event_is_read_to_its_end() -> None:
    large = [b'{"a": "' + b"x" * (1 << 20), b'",' + compact(ranking(3))[1:]]
    assert await counted(large) == 3
    assert await counted([b"data: ", *large, b"\r\r"], SSE_TYPE) == 3
    assert await counted([*large, b"\n", compact(ranking(2))], NDJSON_TYPE) == 2
    dense = {**ranking(3), "results": [[0]] * 2_000}
    assert await counted([compact(dense)]) == 3


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(sse(ranking(1), end=b"\r") + sse(ranking(4), end=b"\r"), id="cr"),
        pytest.param(BOM + sse(ranking(4)), id="bom"),
        pytest.param(sse(ranking(4), end=b"\r").rstrip(), id="no-last-blank-line-cr"),
        pytest.param(
            b'data: {"meta":\rdata: {"billed_units":\rdata:{"search_units": 4}}}\r\r', id="lines-cr"
        ),
        pytest.param(sse(ranking(1)) + b"data: {torn\n\n" + sse(ranking(4)), id="torn"),
    ],
)
async def test_every_form_of_an_event_stream_is_read(body: bytes) -> None:
    for chunks in ([body], [body[at : at + 1] for at in range(len(body))]):
        assert await counted(chunks, SSE_TYPE) == 4
    assert await counted([body], "text/plain") == 4  # The first bytes tell.


async def test_the_first_bytes_tell_a_document_from_a_stream() -> None:
    for body, kind in ((b"\n " + compact(ranking(4)), "text/plain"), (BOM + compact(ranking(4)), "")):
        assert await counted([body[:1], body[1:2], body[2:]], kind) == 4


@pytest.mark.parametrize("coding", ["br", "zstd", "deflate"])
async def test_every_content_coding_is_undone(coding: str) -> None:
    body, _ = pack(b"".join([sse({"text": "x"}), sse(ranking(4))]), coding)
    assert await counted([body[:9], body[9:]], SSE_TYPE, coding=coding) == 4


async def test_a_coding_that_cannot_be_undone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert await counted([b"x"], coding="compress") == 0
    assert "no figure for usage_fields searches: its content coding is not decoded here" in caplog.text


def call(name: str | None, units: int) -> dict[str, Any]:
    return {**ranking(units), "id": name}


@pytest.mark.parametrize(
    ("events", "units"),
    [
        pytest.param([call("a", 3), call("b", 1), call("a", 4), call("b", 5)], 9, id="calls that interleave"),
        pytest.param([call(None, 3), call(None, 5)], 5, id="events without an id"),
        pytest.param([call(None, 3), "[DONE]", call(None, 5), "[DONE]"], 8, id="streams that end"),
        pytest.param([call("a", 3), "[DONE]", call("a", 4)], 4, id="one call in two streams"),
        pytest.param([call(None, 3), call("a", 5)], 5, id="a call that tells its id later"),
    ],
)
async def test_the_last_figure_of_each_call_counts(events: list[Any], units: int) -> None:
    texts = [b"[DONE]" if event == "[DONE]" else compact(event) for event in events]
    stream = b"".join(b"data: " + text + b"\n\n" for text in texts)
    assert await counted([stream], SSE_TYPE) == units
    assert await counted([b"\n".join(texts)], NDJSON_TYPE) == units
    if "[DONE]" not in events:
        assert await counted([b"[" + b",".join(texts) + b"]"]) == units


async def test_calls_beyond_the_bound_are_told(caplog: pytest.LogCaptureFixture) -> None:
    events = [sse(call(f"c{number}", 1)) for number in range(1_001)]
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
    body = compact(ranking(3))
    for line, expected in ((f"usage: auto, {LINE}", 3), (LINE, 9)):
        app = answering([body], JSON_TYPE)
        async with metered(app, "memory://", plans=plans(line)) as at:
            for method in ("POST", "GET", "GET"):
                await ask(at, "/x", method=method)
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
