"""A call whose answer names no model costs the price of the model that its request names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import product
from typing import Any, Final
from urllib.parse import urlencode

import pytest
from genai_prices import Usage, calc_price
from starlette.types import ASGIApp, Receive, Scope, Send

import meterkit
from asgi.test_llm_model_prices import give, spent
from drivers.app import Served, hello
from drivers.delivery import until
from drivers.llm_apps import answering, metered, read_all, tokens
from drivers.plans import completed
from llm_payloads.recordings import chat_usage, compact
from meterkit.catalog import loads
from meterkit.errors import PlansError

pytestmark = pytest.mark.anyio

PLANS: Final = """
meters: {output_tokens: {unit: token}}
prices:
  output:
    default: 4 per 1000
    models: {"mini*": 1 per 1000, "*.mini*": 1 per 1000, "@cf/*/mini*": 1 per 1000, "opus*": 20 per 1000}
credits: {ai: {costs: {output_tokens: prices.output}}}
routes:
  - {match: "POST /reported", records: [output_tokens]}
  - {match: "POST /silent"}
  - match: "POST /held/{rest:path}"
    usage: openai
    model: request
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
  - {match: "*", usage: openai}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {output_tokens: {included: 0, overage: deny}}}
"""
USAGE: Final = chat_usage(1, 10)
ANSWER: Final = compact({"id": "1", "object": "chat.completion", "choices": [], "usage": USAGE})
answer_json: Final = answering([ANSWER], "application/json")
MINI, HIGHEST = 10_000, 200_000
DEFAULT: Final = 40_000
JSON: Final = "application/json"
FORM: Final = "multipart/form-data; boundary=B"
ENCODED: Final = "application/x-www-form-urlencoded"


def reporting(*objects: dict[str, Any]) -> ASGIApp:

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        for used in objects:
            meterkit.record_usage(used)
        await hello(scope, receive, send)

    return app


async def post(at: Served, path: str, content: bytes | AsyncIterator[bytes] = b"{}", kind: str = JSON) -> int:
    answer = await at.client.post(path, content=content, headers={"content-type": kind})
    lanes = at.kit.store.lanes.values()
    await until(lambda: not any(lane.unsettled for lane in lanes))
    return answer.status_code


async def cost_of(
    app: ASGIApp, path: str, content: bytes | AsyncIterator[bytes] = b"{}", kind: str = JSON
) -> int:
    async with metered(app, "memory://", plans=PLANS) as at:
        await give(at, 100)
        assert await post(at, path, content, kind) == 200
        return await spent(at)


def part(name: str, value: str, *, more: str = "") -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'.encode()


FILE: Final = part("file", "\x00\xff--\r\n" * 900, more='; filename="speech.wav"')
END: Final = b"--B--\r\n"


@pytest.mark.parametrize(
    ("path", "each"),
    [
        ("/model/us.anthropic.mini-v1:0/converse", MINI),
        ("/api/v2/model/anthropic.mini-v1:0/invoke-with-response-stream", MINI),
        ("/model/arn:aws:bedrock:us-east-1:123:inference-profile%2Fus.anthropic.mini-v1:0/converse", MINI),
        ("/model/arn:aws:bedrock:us-east-1:1:provisioned-model%2Fmini/invoke", DEFAULT),
        ("/v1beta/models/mini-flash:streamGenerateContent?alt=sse", MINI),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/mini@20250514:rawPredict", MINI),
        ("/openai/deployments/mini/chat/completions?api-version=2026-01-01", MINI),
        ("/client/v4/accounts/1/ai/run/@cf/meta/mini-8b-instruct", MINI),
        ("/v1/chat?deployment=mini", MINI),
        ("/v1/chat?m%6fdel=m%69ni", MINI),
        ("/v1/chat?model=models%2Fmini", MINI),
        # Several names, and none.
        ("/openai/deployments/mini/chat/completions?model=opus", HIGHEST),
        ("/v1/chat?model=" + "x" * 10_000, DEFAULT),
    ],
)
async def test_the_path_and_the_query_name_the_model(path: str, each: int) -> None:
    assert await cost_of(answer_json, path) == each


@pytest.mark.parametrize(
    ("kind", "body", "each"),
    [
        (FORM, part("model", "mini") + FILE + END, MINI),
        ('Multipart/Form-Data; charset=utf-8; Boundary="B"', FILE + part("model", "mini") + END, MINI),
        (FORM, part("model", "mini").replace(b"\r\n", b"\n") + END, MINI),
        ("multipart/form-data", part("model", "mini") + END, MINI),
        (ENCODED, b"prompt=a&m%6Fdel=mini+", MINI),
        # A form's field is none of the file's bytes, and of several the dearest counts.
        (FORM, part("file", '\r\nname="model"\r\n\r\nopus\r\n') + part("model", "mini") + END, MINI),
        (FORM, part("model", "mini") + part("model", "opus") + END, HIGHEST),
        (FORM, part("super-model", "mini") + part("models", "mini") + END, HIGHEST),
        (ENCODED, b"model=mini&model=opus", HIGHEST),
        ("text/plain", b"model=mini", HIGHEST),
    ],
)
async def test_the_body_names_the_model(kind: str, body: bytes, each: int) -> None:
    assert await cost_of(answer_json, "/v1/audio/transcriptions", body, kind) == each


async def test_a_form_names_its_model_behind_a_file_of_any_size() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield part("file", "", more='; filename="a"').removesuffix(b"\r\n")
        for _ in range(40):
            yield b"\x00" * (64 << 10)
        last = b"\r\n" + part("model", "mini") + END
        yield last[:30]
        yield last[30:]

    assert await cost_of(answer_json, "/v1/audio/transcriptions", pieces(), FORM) == MINI


@pytest.mark.parametrize(
    ("path", "kind", "body", "status"),
    [
        ("/held/model/mini/converse", JSON, b"{}", 200),
        ("/held/v1", FORM, part("model", "mini") + END, 402),  # A form sets the ceiling aside.
        ("/held/model/mini/converse", JSON, b'{"model": "opus"}', 402),
        ("/held/v1?model=mini", JSON, b'{"model": "opus"}', 402),
    ],
)
async def test_i3_a_request_holds_its_dearest_model(path: str, kind: str, body: bytes, status: int) -> None:
    async with metered(answer_json, "memory://", plans=PLANS) as at:
        await give(at, 1)
        assert await post(at, path, body, kind) == status


TOTAL: Final = {"input_tokens": 1, "output_tokens": 10, "total_tokens": 11}
CHUNK: Final[dict[str, Any]] = {"type": "AIMessageChunk", "content": "a", "id": "run-1"}
LANGCHAIN: Final[list[dict[str, Any]]] = [
    {**CHUNK, "usage_metadata": None, "response_metadata": {"model_provider": "openai"}},
    {**CHUNK, "usage_metadata": None, "response_metadata": {"model_name": "mini"}},
    {**CHUNK, "usage_metadata": TOTAL, "response_metadata": {}, "chunk_position": "last"},
]
RUN: Final[dict[str, Any]] = {
    "raw_responses": [{"output": [], "usage": TOTAL, "response_id": "resp_1"}],
    "new_items": [],
}


@pytest.mark.parametrize(
    ("path", "objects", "asked", "each"),
    [
        ("/reported", [USAGE], "mini", MINI),
        ("/silent", [USAGE], None, HIGHEST),
        ("/v1/chat", [RUN], "mini", MINI),
        # What names its model itself goes by that.
        ("/reported", [{**RUN, "last_agent": {"name": "a", "model": {"model": "mini"}}}], "opus", MINI),
        ("/v1/chat", LANGCHAIN, "opus", MINI),
    ],
)
async def test_what_the_app_reports_costs_the_model_of_the_request(
    path: str, objects: list[dict[str, Any]], asked: str | None, each: int
) -> None:
    body = compact({} if asked is None else {"model": asked})
    assert await cost_of(reporting(*objects), path, body) == each


MONEY: Final = """
meters: {output_tokens: {unit: token}}
credits: {usd: {unit: money, costs: {tokens: provider_prices}}}
routes:
  - {match: "POST /v1/grok", usage: openai, provider: x-ai}
  - {match: "POST /model/{rest:path}", usage: openai, provider: aws}
  - match: "POST /held/{rest:path}"
    usage: openai
    provider: x-ai
    model: request
    reserve: {output_tokens: {from: max_tokens, default: 1_000_000, ceiling: 1_000_000}}
  - {match: "*", usage: openai}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""


BEDROCK: Final = "us.anthropic.claude-sonnet-4-20250514-v1:0"


def price_of(provider: str, model: str) -> int:
    """What the package says that the answer costs, in whole micro-dollars."""
    used = Usage(input_tokens=1, output_tokens=10)
    found = calc_price(used, model, provider_id=provider, genai_request_timestamp=datetime.now(UTC))
    return int(found.total_price * 10**6)


@pytest.mark.parametrize(
    ("path", "body", "provider", "model"),
    [
        ("/v1/grok", b'{"model": "grok-4-0709"}', "x-ai", "grok-4-0709"),
        (f"/model/{BEDROCK}/converse", b"{}", "aws", BEDROCK),
        # Of several the dearest one that has a price.
        ("/v1/chat?model=gpt-4o&model=gpt-4o-mini", b'{"model": "my-model"}', "openai", "gpt-4o"),
        ("/v1/chat?model=gpt-4o", b'{"model": "gpt-4o-mini"}', "openai", "gpt-4o"),
    ],
)
async def test_money_pays_the_requested_model(path: str, body: bytes, provider: str, model: str) -> None:
    async with metered(answer_json, "memory://", plans=MONEY) as at:
        await give(at, 1, "usd")
        assert await post(at, path, body) == 200
        assert await spent(at) == price_of(provider, model)


SPELLED: Final = ["".join(word) for word in product(*((letter, letter.upper()) for letter in "model"))][1:]
BEFORE: Final = [(name, f"my-{nth}") for nth, name in enumerate(SPELLED[:12])]
BEHIND: Final = [(name, f"my-{nth}") for nth, name in enumerate(SPELLED[12:], 12)]


@pytest.mark.parametrize("kind", ["json", "form", "encoded", "query"])
async def test_other_spellings_do_not_hide_the_model(kind: str) -> None:
    """F-211. Apps read `model` as it is spelled, wherever it stands among other names."""
    pairs = [*BEFORE, ("model", "gpt-4o"), *BEHIND]
    encoded = urlencode(pairs)
    members = b", ".join(compact(name) + b": " + compact(model) for name, model in pairs)
    form = b"".join(part(name, model) for name, model in pairs) + END
    path, body, content_type = {
        "json": ("/v1/chat", b"{" + members + b"}", JSON),
        "form": ("/v1/chat", form, FORM),
        "encoded": ("/v1/chat", encoded.encode(), ENCODED),
        "query": (f"/v1/chat?{encoded}", b"{}", JSON),
    }[kind]
    async with metered(answer_json, "memory://", plans=MONEY) as at:
        await give(at, 1, "usd")
        assert await post(at, path, body, content_type) == 200
        assert await spent(at) == price_of("openai", "gpt-4o")


@pytest.mark.parametrize(
    ("dollars", "body", "status"),
    [
        (1, b'{"model": "grok-4-0709"}', 402),
        # A gateway may call a fallback in its place.
        (1, b'{"model": "grok-3-mini"}', 200),
        (1, b'{"model": "grok-3-mini", "models": ["grok-3-mini", "grok-4-0709"]}', 402),
        (1, b'{"model": "grok-3-mini", "fallbacks": [{"model": "grok-4-0709", "n": 1}]}', 402),
        # An SDK may send this one.
        (1, b'{"model": "grok-3-mini", "extra_body": {"model": "grok-4-0709"}}', 402),
        # The dearest model of the provider, and not of the one whose API its answers look like.
        (100, b"{}", 200),
    ],
)
async def test_money_is_held_at_the_routes_providers_price(dollars: int, body: bytes, status: int) -> None:
    """F-210. A million tokens of Grok 4 cost 15 dollars."""
    async with metered(answer_json, "memory://", plans=MONEY) as at:
        await give(at, dollars, "usd")
        assert await post(at, "/held/v1", body) == status


PROVIDERS: Final = """
meters: {output_tokens: {unit: token}, grok: {unit: token, from: output_tokens, where: {provider: x-ai}}}
routes:
  - {match: "POST /read", usage: openai, provider: x-ai}
  - {match: "POST /other", usage: openai}
  - {match: "POST /reported", records: [output_tokens], provider: x-ai}
"""


@pytest.mark.parametrize(("path", "counted"), [("/read", 10), ("/other", 0), ("/reported", 10)])
async def test_calls_of_a_route_are_of_the_provider_that_it_names(path: str, counted: int) -> None:
    app = reporting(USAGE) if path == "/reported" else answer_json
    async with metered(app, "memory://", plans=PROVIDERS) as at:
        assert (await post(at, path), await tokens(at.kit, "output_tokens", "grok")) == (200, (10, counted))


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ("usage: openai, provider: xai", "the price table has no provider 'xai'; it has: anthropic, arcee"),
        ("exempt: true, provider: x-ai", "an exempt route is not decided, so `provider` has no effect"),
    ],
)
def test_a_provider_that_no_price_can_go_by_is_refused(route: str, message: str) -> None:
    with pytest.raises(PlansError) as caught:
        loads(completed(PROVIDERS).replace("usage: openai, provider: x-ai", route, 1))
    assert message in str(caught.value)
