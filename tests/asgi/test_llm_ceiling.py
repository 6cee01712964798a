"""Fields of ``reserve:`` lines: no spelling lowers a hold, and a figure above the ceiling is refused."""

from __future__ import annotations

import gzip
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from starlette.responses import JSONResponse

from drivers.llm_apps import metered
from faults.refusals import settled
from meterkit import current
from tokens.recordings import compact

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    import httpx
    from starlette.types import Receive, Scope, Send

    from drivers.app import Served
    from meterkit import Decision

pytestmark = pytest.mark.anyio

DEFAULT: Final = 100
CEILING: Final = 1_000
ABOVE: Final = "urn:meterkit:problem:request-above-ceiling"
RESERVE: Final = f"default: {DEFAULT}, ceiling: {CEILING}"
PLANS: Final = f"""
schema: 1
currency: usd
default_plan: free
meters:
  requests:      {{unit: request}}
  output_tokens: {{unit: token}}
  pages:         {{unit: page}}
features: [chat]
routes:
  - match: "/chat"
    feature: chat
    consume: {{requests: 1}}
    reserve: {{output_tokens: {{from: max_tokens, {RESERVE}}}}}
  - match: "/shadow"
    consume: {{requests: 1}}
    reserve: {{output_tokens: {{from: max_tokens, {RESERVE}}}}}
    enforcement: shadow
  - match: "/gemini"
    reserve: {{output_tokens: {{from: generationConfig.maxOutputTokens, {RESERVE}}}}}
  - {{match: "/pages", reserve: {{pages: {{from: pages, default: 2, ceiling: 9}}}}}}
  - {{match: "/fixed", reserve: {{output_tokens: {{default: {DEFAULT}}}}}}}
  - {{match: "/unnamed", reserve: {{output_tokens: {{{RESERVE}}}}}}}
  - match: "MCP tools/call draw"
    consume: {{requests: 1}}
    reserve: {{output_tokens: {{from: params.arguments.max_tokens, {RESERVE}}}}}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    features: [chat]
    meters:
      requests:      {{rate: 1000/hour}}
      output_tokens: {{included: 2_000, overage: deny}}
      pages:         {{included: 100, overage: deny}}
  bare:
    price: {{amount_cents: 0, interval: month}}
"""


class HoldingApp:
    """Answers how much is held while it runs, and keeps the decisions about its requests."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.at: Served | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.at is not None
        self.decisions.append(current().decision)
        meters = (await self.at.kit.usage("acme"))["meters"]
        held = {name: meters[name]["held"] for name in ("output_tokens", "pages")}
        await JSONResponse(held)(scope, receive, send)


@asynccontextmanager
async def holding(
    url: str, *, plans: str = PLANS, **options: Any
) -> AsyncGenerator[tuple[Served, HoldingApp]]:
    app = HoldingApp()
    async with metered(app, url, plans=plans, **options) as at:
        app.at = at
        yield at, app


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
    (b"1000", CEILING),
    (b"1001", 1_001),
    (b"1000000000000000000000", 10**15 - 1),
    (b"9" * 400, 10**15 - 1),
    (b"9" * 6_000, 10**15 - 1),
    # Apps may ignore a fraction or a text: it only raises the hold.
    (b"1.0", DEFAULT),
    (b"1e0", DEFAULT),
    (b"150.2", 151),
    (b"1000.5", 1_001),
    (b"5e3", 5_000),
    (b"1e400", 10**15 - 1),
    (b"1001." + b"0" * 400, 1_001),
    (b"0." + b"0" * 400 + b"5e404", 5_000),
    (b'"1"', DEFAULT),
    (b'"900"', 900),
    (b'"1001"', 1_001),
    # What only some apps read as a figure holds the ceiling, unless it is above that.
    (b'" 7"', CEILING),
    (b'"7e1"', CEILING),
    (b'"5000.0"', 5_000),
    (b'"1_001"', 1_001),
    ('"\u0665000"'.encode(), 5_000),
    # Some take these for no limit; nothing else can be read in them.
    (b"0", CEILING),
    (b"-1", CEILING),
    (b"-" + b"9" * 400, CEILING),
    (b"0.5", CEILING),
    (b'""', CEILING),
    (b'"all"', CEILING),
    (b"true", CEILING),
    (b"false", CEILING),
    (b"NaN", CEILING),
    (b"[5000]", CEILING),
    (b'{"value": 5000}', CEILING),
    # As if it were not there.
    (b"null", DEFAULT),
]


async def test_f204_each_kind_of_figure_is_held_or_refused(store_url: str) -> None:
    async with holding(store_url) as (at, _):
        for value, expected in FIGURES:
            wanted = expected if expected <= CEILING else ("max_tokens", expected)
            assert wanted == await outcome(at, "/chat", b'{"max_tokens": ' + value + b"}"), value[:20]


IGNORED: Final = [
    "maxTokens",
    "MAX_TOKENS",
    "Max_Tokens",
    "max__tokens",
    "max_output_tokens",
    "max_tokens_to_sample",
    "max_completion_tokens",
    "max_to\u212aens",
]


async def test_f20i_a_member_that_the_app_ignores_never_lowers_a_hold(store_url: str) -> None:
    async with holding(store_url) as (at, _):
        for name in IGNORED:
            assert DEFAULT == await outcome(at, "/chat", {name: 1})
            assert 900 == await outcome(at, "/chat", {name: 900})
            assert 900 == await outcome(at, "/chat", {"max_tokens": 1, name: 900})
            assert 900 == await outcome(at, "/chat", {"max_tokens": 900, name: 1})
            assert DEFAULT == await outcome(at, "/chat", {"max_tokens": None, name: 1})
            assert (name, 1_001) == await outcome(at, "/chat", {"max_tokens": 1, name: 1_001})
        assert DEFAULT == await outcome(at, "/chat?max_tokens=1", {})
        assert DEFAULT == await outcome(
            at, "/chat", {"messages": {"max_tokens": 1}, "body": {"max_tokens": 1}}
        )
        assert CEILING == await outcome(at, "/chat", b"max_tokens=1")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"max_tokens": 1, "max_tokens": 900}', 900),
        (b'{"max_tokens": 900, "max_tokens": 1}', 900),
        (b'{"max_tokens": 1, "max_tokens": 5000}', ("max_tokens", 5_000)),
        (b'{"max_tokens": 5000, "max_tokens": 1}', ("max_tokens", 5_000)),
        # An app that reads the one that is null goes by its default.
        (b'{"max_tokens": 1, "max_tokens": null}', DEFAULT),
        (b'{"max_tokens": null, "max_tokens": 1}', DEFAULT),
        (b'{"max_tokens": 1, "max_tokens": "1"}', DEFAULT),
        (b'{"max_tokens": 1, "max_tokens": 0}', CEILING),
        (b"{" + b",".join(b'"max_tokens":1' for _ in range(100)) + b"}", CEILING),
        (b'{"max\\u005ftokens": 1}', 1),
    ],
)
async def test_f20i_of_members_named_twice_the_most_counts(
    body: bytes, expected: int | tuple[str, int], store_url: str
) -> None:
    async with holding(store_url) as (at, _):
        assert expected == await outcome(at, "/chat", body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"generationConfig": {"maxOutputTokens": 1}}, 1),
        ({"generationConfig": {"maxOutputTokens": 1_001}}, ("generationConfig.maxOutputTokens", 1_001)),
        ({"generation_config": {"max_output_tokens": 1}}, DEFAULT),
        ({"generation_config": {"max_output_tokens": 1_001}}, ("generation_config.max_output_tokens", 1_001)),
        ({"generationConfig": {"max_output_tokens": 1}}, DEFAULT),
        ({"generationConfig.maxOutputTokens": 1}, DEFAULT),
        ({"generationConfig.maxOutputTokens": 1_001}, ("generationConfig.maxOutputTokens", 1_001)),
        ({"generationConfig": {"maxOutputTokens": 1}, "generation_config": None}, 1),
        (b'{"generationConfig": {"maxOutputTokens": 1}, "generationConfig": {}}', DEFAULT),
        (b'{"generationConfig": {"maxOutputTokens": 1}, "generationConfig": null}', DEFAULT),
        (b'{"generationConfig": {"maxOutputTokens": 1}, "generationConfig": 1}', CEILING),
        (
            {"generationConfig": {"maxOutputTokens": 400, "candidateCount": 3}},
            ("generationConfig.maxOutputTokens", 1_200),
        ),
        ({"maxOutputTokens": 1}, DEFAULT),
    ],
)
async def test_f20i_a_dotted_path_is_lowered_by_its_exact_names_only(
    body: bytes | dict[str, Any], expected: int | tuple[str, int], store_url: str
) -> None:
    async with holding(store_url) as (at, _):
        assert expected == await outcome(at, "/gemini", body)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"n": 3}, 1_200),
        ({"n": "3"}, 1_200),
        ({"best_of": 4, "n": 2}, 1_600),
        ({"candidateCount": 3}, 1_200),
        ({"prompt": ["a", "b", "c"]}, 1_200),
        ({"prompt": ["a", "b"], "n": 2}, 1_600),
        ({"n": 10**9}, 400 * 10**9),
        ({"n": 2}, None),
        ({"n": None}, None),
    ],
)
async def test_f204_all_answers_together_are_compared_with_the_ceiling(
    asked: dict[str, Any], expected: int | None, store_url: str
) -> None:
    async with holding(store_url) as (at, _):
        wanted = 400 * (asked["n"] or 1) if expected is None else ("max_tokens", expected)
        assert wanted == await outcome(at, "/chat", {"max_tokens": 400, **asked})


async def test_f204_only_a_figure_that_the_client_names_is_compared(store_url: str) -> None:
    async with holding(store_url) as (at, _):
        # Without the field the number of tokens is unknown: the ceiling is held.
        assert CEILING == await outcome(at, "/chat", {"n": 50})
        assert CEILING == await outcome(at, "/chat", {"max_tokens": 50, "n": "many"})
        assert ("max_tokens", 1_001) == await outcome(at, "/chat", {"max_tokens": 1_001, "n": "many"})
        # A default is no ceiling, and a line without `from` reads no field.
        assert DEFAULT == await outcome(at, "/fixed", {"max_tokens": 5_000, "n": 9})
        assert DEFAULT == await outcome(at, "/unnamed", {"max_tokens": 5_000})
        # Pages are not multiplied by answers.
        assert 9 == await outcome(at, "/pages", {"pages": 9, "n": 4})
        assert ("pages", 10) == await outcome(at, "/pages", {"pages": 10})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
async def test_f204_every_encoding_is_read_alike(encoding: str, store_url: str) -> None:
    def spelt(body: Any) -> bytes:
        return json.dumps(body).encode(encoding)

    async with holding(store_url) as (at, _):
        assert ("max_tokens", 5_000) == await outcome(at, "/chat", spelt({"max_tokens": 5_000}))
        assert DEFAULT == await outcome(at, "/chat", spelt({"maxTokens": 1}))


async def test_f204_a_body_that_cannot_be_read_holds_the_ceiling(store_url: str) -> None:
    packed = gzip.compress(compact({"max_tokens": 5_000}), mtime=0)
    async with holding(store_url) as (at, _):
        coded = {"content-encoding": "gzip"}
        assert ("max_tokens", 5_000) == await outcome(at, "/chat", packed, **coded)
        assert CEILING == await outcome(at, "/chat", packed[:-1], **coded)
        assert CEILING == await outcome(at, "/chat", packed)
        assert CEILING == await outcome(at, "/chat", b'{"max_tokens": 5000')
        assert CEILING == await outcome(
            at, "/chat", b'{"max_tokens": 5000, "a": "' + b"x " * (1 << 19) + b'"}'
        )


async def refused(at: Served, path: str = "/chat", **body: Any) -> httpx.Response:
    return await at.client.post(path, json={"max_tokens": 99_999, "n": 2, **body})


async def test_f204_the_refusal_names_field_and_figures(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with holding(store_url) as (at, app):
        answer = await refused(at)
        assert answer.status_code == 400
        assert {
            name: answer.headers.get(name) for name in ("content-type", "cache-control", "x-should-retry")
        } == {
            "content-type": "application/problem+json",
            "cache-control": "no-store",
            "x-should-retry": "false",
        }
        assert answer.headers["ratelimit-policy"].startswith('"requests-1h";q=1000;w=3600')
        assert "retry-after" not in answer.headers
        said = answer.json()
        assert said.pop("instance").startswith("urn:uuid:")
        assert said == {
            "type": ABOVE,
            "title": "Request Above Ceiling",
            "status": 400,
            "detail": (
                "max_tokens asks for 199998 (99999 for each answer); one request may ask for 1000 at most,"
                " all its answers together. Ask for less."
            ),
            "field": "max_tokens",
            "asked": 199_998,
            "ceiling": 1_000,
        }
        await settled(at.kit)
        assert app.decisions == []
        assert await at.counted() == await at.counted(meter="output_tokens") == (0, 0)
        (rate,) = [rate for rate in await at.kit.rates("acme") if rate["meter"] == "requests"]
        assert rate["used"] == 0
    (line,) = [record for record in caplog.records if record.name == "meterkit.refusals"]
    assert (
        "customer='acme' plan='free' reason='request-above-ceiling' route='/chat' status=400"
        in line.getMessage()
    )


async def test_f204_racing_streams_cannot_spend_more_than_is_held(store_url: str) -> None:
    """Two thousand are included: two requests at the ceiling, and none above it."""
    plans = PLANS.replace("consume: {requests: 1}\n    reserve", "usage: openai\n    reserve")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = json.loads((await receive())["body"])["max_tokens"]
        usage = {"prompt_tokens": 0, "completion_tokens": asked, "total_tokens": asked}
        await JSONResponse({"object": "chat.completion", "choices": [], "usage": usage})(scope, receive, send)

    async with metered(app, store_url, plans=plans) as at:
        for asked in (99_999, 1_000, 1_001, 1_000, 1_000, 99_999):
            await at.client.post("/chat", json={"max_tokens": asked})
            await settled(at.kit)
        assert await at.counted(meter="output_tokens") == (2_000, 0)


async def test_f204_shadow_logs_the_request_and_serves_and_counts_it(
    any_store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with holding(any_store_url) as (at, app):
        answer = await refused(at, "/shadow")
        assert (answer.status_code, answer.json()["output_tokens"]) == (200, CEILING)
        await settled(at.kit)
        assert await at.counted() == (1, 0)
        (decision,) = app.decisions
        assert (decision.allowed, decision.shadow, decision.reason, decision.customer) == (
            True,
            True,
            None,
            "acme",
        )
        assert decision.problem is not None
        assert decision.problem.members == {"field": "max_tokens", "asked": 199_998, "ceiling": CEILING}
    (line,) = [record for record in caplog.records if record.name == "meterkit.refusals"]
    assert line.getMessage() == (
        "would be refused, but enforcement is shadow: customer='acme' plan='free'"
        " reason='request-above-ceiling' route='/shadow'"
    )


async def test_f204_on_denied_gets_the_problem_and_may_answer(store_url: str) -> None:
    seen: list[Decision] = []

    def in_own_words(scope: Scope, decision: Decision) -> JSONResponse:
        seen.append(decision)
        assert scope["path"] == "/chat"
        assert decision.problem is not None
        return JSONResponse({"error": decision.problem.detail}, 422)

    async with holding(store_url, on_denied=in_own_words) as (at, _):
        answer = await refused(at)
        assert (answer.status_code, answer.headers["cache-control"]) == (422, "no-store")
        assert answer.json()["error"].startswith("max_tokens asks for 199998")
    assert [(one.allowed, one.reason, one.customer, one.plan) for one in seen] == [
        (False, None, "acme", "free")
    ]
    assert [one.problem.code for one in seen if one.problem] == ["request-above-ceiling"]


async def test_f204_suspension_and_features_are_told_first(store_url: str) -> None:
    async with holding(store_url) as (at, _):
        await at.kit.customers.set_plan("acme", "bare")
        assert (await at.client.post("/chat", json={})).status_code == 403
        assert (await refused(at)).status_code == 403
        await at.kit.customers.set_status("acme", "unpaid")
        assert (await at.client.post("/chat", json={})).status_code == 402
        assert (await refused(at)).status_code == 402


async def test_f204_without_the_store_it_is_refused_as_well() -> None:
    async with holding("redis://127.0.0.1:1/0", settings={"start_timeout": 0.1}) as (at, _):
        assert (await refused(at)).status_code == 400


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
