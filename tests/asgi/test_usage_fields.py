"""`usage_fields`: figures of a response by their paths, for providers that meterkit does not know."""

from __future__ import annotations

from gzip import compress
from typing import TYPE_CHECKING, Any

import pytest

from asgi.test_llm_estimates import ask
from llm_apps import PLANS, answering, metered, tokens
from meterkit import PlansError
from meterkit.catalog import loads
from tokens.recordings import JSON_TYPE, NDJSON_TYPE, SSE_TYPE, chat, compact, sse

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio

LINE = "usage_fields: {searches: meta.billed_units.search_units}"


def plans(line: str = LINE) -> str:
    return PLANS.replace("routes:\n", f'  searches: {{unit: search}}\nroutes:\n  - {{match: "/x", {line}}}\n')


def ranking(units: Any) -> dict[str, Any]:
    return {"id": "r", "results": [], "meta": {"billed_units": {"search_units": units}}}


async def counted(
    url: str, chunks: Sequence[bytes], kind: str = JSON_TYPE, *, line: str = LINE, **options: Any
) -> int:
    async with metered(answering(chunks, kind, **options), url, plans=plans(line)) as at:
        await ask(at, "/x")
        return (await tokens(at.kit, "searches"))[0]


async def test_a_figure_is_read_off_a_document_and_off_a_stream(store_url: str) -> None:
    body = compact(ranking(3))
    assert await counted(store_url, [body]) == 3
    assert await counted(store_url, [body[:20], body[20:]]) == 3
    assert await counted(store_url, [compress(body)], coding="gzip") == 3
    events = [sse({"text": "x"}), sse(ranking(1)), sse(ranking(4))]
    assert await counted(store_url, events, SSE_TYPE) == 4
    assert await counted(store_url, [b"".join(events)[:-9], b"".join(events)[-9:]], SSE_TYPE) == 4
    lines = [compact(ranking(1)) + b"\n", compact(ranking(5))]
    assert await counted(store_url, lines, NDJSON_TYPE) == 5
    assert await counted(store_url, [compact(ranking(2.9))]) == 2


@pytest.mark.parametrize("figure", ["3", None, True, -1, 1e400, 10**15, [3]])
async def test_what_is_no_figure_counts_nothing_and_is_told(
    figure: Any, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await counted(store_url, [compact(ranking(figure))]) == 0
    assert "a response has no figure for usage_fields searches" in caplog.text


async def test_failures_and_bodies_without_end_count_nothing(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await counted(store_url, [compact(ranking(3))], status=500) == 0
    assert caplog.records == []
    assert await counted(store_url, [b'{"a": "' + b"x" * (1 << 20), b'",' + compact(ranking(3))[1:]]) == 0


async def test_a_stored_answer_that_is_fetched_again_counts_no_figure_on_auto(store_url: str) -> None:
    """As it counts no tokens there: a poll would bill the job each time."""
    body = compact(ranking(3))
    for line, expected in ((f"usage: auto, {LINE}", 3), (LINE, 9)):
        app = answering([body], JSON_TYPE)
        async with metered(app, store_url, plans=plans(line)) as at:
            for method in ("POST", "GET", "GET"):
                await ask(at, "/x", method=method)
            assert (expected,) == await tokens(at.kit, "searches")


async def test_beside_usage_both_are_counted(store_url: str) -> None:
    used = {"prompt_tokens": 7, "completion_tokens": 2}
    body = compact({**chat({"content": "x"}), "usage": used, "searched": 5})
    line = "usage: auto, usage_fields: {searches: searched}"
    async with metered(answering([body], JSON_TYPE), store_url, plans=plans(line)) as at:
        await ask(at, "/x")
        assert (7, 2, 5) == await tokens(at.kit, "input_tokens", "output_tokens", "searches")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("usage_fields: {serches: a}", "searches"),
        ("usage: auto, usage_fields: {input_tokens: a}", "name it in one of the two"),
        ("usage_fields: {searches: 'a b'}", "a path in the JSON response"),
        ("exempt: true, usage_fields: {searches: a}", "has no effect"),
    ],
)
def test_a_line_that_cannot_work_is_refused(line: str, told: str) -> None:
    with pytest.raises(PlansError, match=told):
        loads(plans(line))
