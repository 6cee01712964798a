"""Fields of ``reserve:`` lines: no spelling lowers a hold, and a figure above the ceiling is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from drivers.app import Served
from drivers.llm_apps import metered
from faults.refusals import settled
from llm_payloads.recordings import compact
from meterkit import Decision, current

pytestmark = pytest.mark.anyio

DEFAULT: Final = 100
CEILING: Final = 1_000
ABOVE: Final = "urn:meterkit:problem:request-above-ceiling"
RESERVE: Final = f"default: {DEFAULT}, ceiling: {CEILING}"
FROM: Final = f"reserve: {{output_tokens: {{from: max_tokens, {RESERVE}}}}}"
PLANS: Final = f"""
meters: {{requests: {{unit: request}}, output_tokens: {{unit: token}}, pages: {{unit: page}}}}
routes:
  - {{match: "/chat", consume: {{requests: 1}}, {FROM}}}
  - {{match: "/shadow", consume: {{requests: 1}}, {FROM}, enforcement: shadow}}
  - match: "/gemini"
    reserve: {{output_tokens: {{from: generationConfig.maxOutputTokens, {RESERVE}}}}}
  - {{match: "/pages", reserve: {{pages: {{from: pages, default: 2, ceiling: 9}}}}}}
  - {{match: "/fixed", reserve: {{output_tokens: {{default: {DEFAULT}}}}}}}
  - match: "MCP tools/call draw"
    consume: {{requests: 1}}
    reserve: {{output_tokens: {{from: params.arguments.max_tokens, {RESERVE}}}}}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    meters: {{requests: {{rate: 1000/hour}}, output_tokens: {{included: 2_000, overage: deny}},
      pages: {{included: 100, overage: deny}}}}
"""


@asynccontextmanager
async def holding(url: str, *, plans: str = PLANS) -> AsyncGenerator[tuple[Served, list[Decision]]]:
    """An app that answers how much is held while it runs, and the decisions about its requests."""
    decisions: list[Decision] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        decisions.append(current().decision)
        held = {name: (await at.counted(meter=name))[1] for name in ("output_tokens", "pages")}
        await JSONResponse(held)(scope, receive, send)

    async with metered(app, url, plans=plans) as at:
        yield at, decisions


async def outcome(
    at: Served, path: str, body: bytes | Mapping[str, Any], **headers: str
) -> int | tuple[str, int]:
    """The quantity that a served request holds; field and figure of a refused one."""
    sent = body if isinstance(body, bytes) else compact(body)
    answer = await at.client.post(path, content=sent, headers=headers)
    said = answer.json()
    if answer.status_code == 200:
        held: int = said["output_tokens"] or said["pages"]
        return held
    assert (answer.status_code, said["type"]) == (400, ABOVE)
    assert said["ceiling"] == (9 if path == "/pages" else CEILING)
    return said["field"], said["asked"]


FIGURES: Final = [
    # An integer under the exact name is held as it is.
    (b"1", 1),
    (b"1001", 1_001),
    # Apps may ignore a fraction or a text: it only raises the hold.
    (b"1000.5", 1_001),
    (b"5e3", 5_000),
    (b"1e400", 10**15 - 1),
    (b'"1"', DEFAULT),
    (b'"1001"', 1_001),
    # What only some apps read as a figure holds the ceiling, unless it is above that.
    ('"\u0665000"'.encode(), 5_000),
    # Some take these for no limit; nothing else can be read in them.
    (b"0", CEILING),
    (b"-" + b"9" * 400, CEILING),
    # As if it were not there.
    (b"null", DEFAULT),
]
GEMINI: Final = "generationConfig.maxOutputTokens"
REQUESTS: Final[list[tuple[str, bytes | dict[str, Any], int | tuple[str, int]]]] = [
    # Members that the app may ignore never lower a hold.
    ("/chat", {"maxTokens": 1}, DEFAULT),
    ("/chat", {"max_tokens": 1, "MAX_TOKENS": 900}, 900),
    ("/chat", {"max_tokens": 1, "max_to\u212aens": 1_001}, ("max_to\u212aens", 1_001)),
    ("/chat?max_tokens=1", {}, DEFAULT),
    # llama.cpp's server goes by its own name, and the SDK of OpenAI by what `extra_body` has.
    ("/chat", {"max_tokens": 1, "n_predict": 900}, 900),
    ("/chat", {"max_tokens": 1, "n_predict": -1}, CEILING),
    ("/chat", {"max_tokens": 1, "max_new_tokens": 1_001}, ("max_new_tokens", 1_001)),
    ("/chat", {"max_tokens": 1, "extra_body": {"max_completion_tokens": 900}}, 900),
    ("/chat", {"max_tokens": 1, "extra_body": {"n": 1_001}}, ("max_tokens", 1_001)),
    ("/gemini", {"extra_body": {"generationConfig": {"maxOutputTokens": 900}}}, 900),
    ("/chat", b"max_tokens=1", CEILING),
    # Of members named twice the most counts.
    ("/chat", b'{"max_tokens": 900, "max_tokens": 1}', 900),
    ("/chat", b'{"max_tokens": 1, "max_tokens": 5000}', ("max_tokens", 5_000)),
    ("/chat", b'{"max_tokens": 1, "max_tokens": null}', DEFAULT),
    ("/chat", b'{"max\\u005ftokens": 1}', 1),
    # A dotted path is lowered by its exact names only.
    ("/gemini", {"generation_config": {"max_output_tokens": 1}}, DEFAULT),
    ("/gemini", {"generationConfig": {"max_output_tokens": 1}}, DEFAULT),
    ("/gemini", b'{"generationConfig": {"maxOutputTokens": 1}, "generationConfig": {}}', DEFAULT),
    ("/gemini", b'{"generationConfig": {"maxOutputTokens": 1}, "generationConfig": 1}', CEILING),
    # All answers together are compared with the ceiling.
    ("/chat", {"max_tokens": 400, "n": 2}, 800),
    ("/chat", {"max_tokens": 400, "prompt": ["a", "b"], "best_of": 2}, ("max_tokens", 1_600)),
    ("/gemini", {"generationConfig": {"maxOutputTokens": 400, "candidateCount": 3}}, (GEMINI, 1_200)),
    # Without the field the number of tokens is unknown.
    ("/chat", {"n": 50}, CEILING),
    # A default is no ceiling, and pages are not multiplied by answers.
    ("/fixed", {"max_tokens": 5_000, "n": 9}, DEFAULT),
    ("/pages", {"pages": 9, "n": 4}, 9),
    ("/pages", {"pages": 10}, ("pages", 10)),
    # Every encoding is read; what cannot be read holds the ceiling.
    ("/chat", json.dumps({"max_tokens": 5_000}).encode("utf-16"), ("max_tokens", 5_000)),
    ("/chat", b'{"max_tokens": 5000, "a": "' + b"x " * (1 << 19) + b'"}', CEILING),
]


async def test_f204_each_kind_of_figure_is_held_or_refused(store_url: str) -> None:
    async with holding(store_url) as (at, _):
        for value, expected in FIGURES:
            wanted = expected if expected <= CEILING else ("max_tokens", expected)
            assert wanted == await outcome(at, "/chat", b'{"max_tokens": ' + value + b"}"), value[:20]


async def test_f20i_no_spelling_lowers_a_hold_or_passes_the_ceiling(store_url: str) -> None:
    async with holding(store_url) as (at, _):
        for path, body, expected in REQUESTS:
            assert expected == await outcome(at, path, body), body
        packed = gzip.compress(compact({"max_tokens": 5_000}), mtime=0)
        coded = {"content-encoding": "gzip"}
        assert ("max_tokens", 5_000) == await outcome(at, "/chat", packed, **coded)
        assert CEILING == await outcome(at, "/chat", packed[:-1], **coded)


TOO_MUCH: Final = {"max_tokens": 99_999, "n": 2}


async def test_f204_refusals_name_field_and_figures(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with holding(store_url) as (at, decisions):
        answer = await at.client.post("/chat", json=TOO_MUCH)
        assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
        said = answer.json()
        assert said.pop("instance").startswith("urn:uuid:")
        detail = "max_tokens asks for 199998 (99999 for each answer); one request may ask for 1000 at most,"
        assert said == {
            "type": ABOVE,
            "title": "Request Above Ceiling",
            "status": 400,
            "detail": f"{detail} all its answers together. Ask for less.",
            "field": "max_tokens",
            "asked": 199_998,
            "ceiling": 1_000,
        }
        await settled(at.kit)
        assert decisions == []
        assert await at.counted() == await at.counted(meter="output_tokens") == (0, 0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "meterkit.refusals"]
    assert "customer='acme' plan='free' reason='request-above-ceiling' route='/chat' status=400" in line


async def test_f204_shadow_logs_serves_and_counts(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with holding(store_url) as (at, decisions):
        answer = await at.client.post("/shadow", json=TOO_MUCH)
        assert (answer.status_code, answer.json()["output_tokens"]) == (200, CEILING)
        await settled(at.kit)
        assert await at.counted() == (1, 0)
    (decision,) = decisions
    assert (decision.allowed, decision.shadow, decision.reason) == (True, True, None)
    assert decision.problem is not None
    assert decision.problem.members == {"field": "max_tokens", "asked": 199_998, "ceiling": CEILING}
    (line,) = [record.getMessage() for record in caplog.records if record.name == "meterkit.refusals"]
    said = "would be refused, but enforcement is shadow: customer='acme' plan='free'"
    assert line == f"{said} reason='request-above-ceiling' route='/shadow'"


async def test_f204_an_mcp_message_is_refused_in_its_own_form(store_url: str) -> None:
    call = {"name": "draw", "arguments": {"max_tokens": 5_000}}
    message = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": call}
    plans = PLANS.replace('"MCP tools/call draw"', '"MCP /mcp tools/call draw"')
    async with holding(store_url, plans=plans) as (at, _):
        answer = await at.client.post("/mcp", json=message)
        assert (answer.status_code, answer.json()["id"]) == (400, 7)
        assert answer.json()["error"]["data"]["field"] == "params.arguments.max_tokens"
        call["arguments"] = {"maxTokens": 1}
        assert (await at.client.post("/mcp", json=message)).json()["output_tokens"] == DEFAULT
