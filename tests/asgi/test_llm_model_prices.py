"""Prices by model: what an answer costs, what is held for it, and models without a price."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any, Final

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

import meterkit
from asgi.test_websockets import echo, opened
from drivers.app import Served, hello
from drivers.delivery import until
from drivers.health_findings import findings
from drivers.llm_apps import metered, read_all
from drivers.plans import completed
from llm_payloads.recordings import chat_usage, compact
from meterkit import MeterKit
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

RESERVE: Final = "reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}"
PLANS: Final = f"""
meters: {{output_tokens: {{unit: token, stripe: {{event_name: out}}}}}}
prices:
  output:
    default: 4 per 1000
    models: {{"gpt-*-mini": 1 per 1000, "*opus*": 20 per 1000, "gpt-*": 8 per 1000}}
credits: {{ai: {{costs: {{output_tokens: prices.output}}}}}}
routes:
  - {{match: "POST /chat", usage: auto, {RESERVE}, model: request}}
  - {{match: "POST /plain", usage: openai}}
  - {{match: "POST /fixed", usage: openai, {RESERVE}, model: claude-opus-5}}
  - {{match: "POST /chosen", usage: openai, {RESERVE}, model: ["gpt-6*", claude-opus-5]}}
plans:
  free: {{price: {{amount_cents: 0, interval: month}},
    meters: {{output_tokens: {{included: 0, overage: deny}}}}}}
"""
MICRO: Final = 10**6


def answering(meanwhile: Callable[[], Awaitable[object]] | None = None) -> ASGIApp:
    """An app that answers with the usage that the request's headers ask for: model and tokens."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        headers = dict(scope["headers"])
        usage, said = chat_usage(1, int(headers[b"x-tokens"])), headers.get(b"x-model", b"").decode()
        content: dict[str, Any] = {"id": "1", "object": "chat.completion", "choices": [], "usage": usage}
        if meanwhile is not None:
            await meanwhile()
        body = compact(content | ({"model": said} if said else {}))
        start = {"status": 200, "headers": [(b"content-type", b"application/json")]}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": body})

    return app


def drawn(seed: int, count: int, *models: str, most: int = 4000) -> list[tuple[str, int]]:
    chance = Random(seed)  # noqa: S311 - repeatable
    return [(chance.choice(models), chance.randrange(1, most)) for _ in range(count)]


async def race(
    at: Served, ending: asyncio.Event, calls: list[tuple[str, int]], costs: Sequence[Any], *, room: int = 0
) -> tuple[Any, Any]:
    """Have all calls admitted or refused before the first one ends.

    Each may answer with so many tokens more than it does.

    Returns:
        What the served calls cost together, and the cheapest one that was refused.
    """
    asking = [
        asyncio.create_task(ask(at, tokens, model=model, said=model, at_most=tokens + room))
        for model, tokens in calls
    ]
    lanes = at.kit.store.lanes.values()
    await until(
        lambda: sum(task.done() for task in asking) + sum(len(lane.live) for lane in lanes) == len(calls)
    )
    ending.set()
    statuses = await asyncio.gather(*asking)
    assert set(statuses) == {200, 402}
    both = list(zip(costs, statuses, strict=True))
    served = sum(cost for cost, status in both if status == 200)
    return served, min(cost for cost, status in both if status == 402)


async def ask(
    at: Served,
    tokens: int,
    *,
    model: str | None = None,
    said: str | None = None,
    body: bytes | None = None,
    at_most: int | None = None,
    path: str = "/chat",
) -> int:
    """Ask for an answer of so many tokens, by a model that the answer names; the status."""
    asked: dict[str, Any] = {"messages": [], "max_tokens": tokens if at_most is None else at_most}
    headers = {"x-tokens": str(tokens)} | ({} if said is None else {"x-model": said})
    content = compact(asked | ({} if model is None else {"model": model})) if body is None else body
    answer = await at.client.post(path, content=content, headers=headers)
    lanes = at.kit.store.lanes.values()
    await until(lambda: not any(lane.unsettled for lane in lanes))
    return answer.status_code


async def give(at: Served, quantity: int, credit: str = "ai") -> None:
    await at.kit.grants.add("acme", {credit: quantity}, grant_id=f"{quantity}")


async def spent(at: Served) -> int:
    return -sum(line.quantity for line in await at.kit.grants.ledger("acme") if line.entry == "burn")


@pytest.mark.parametrize("path", ["/chat", "/plain"])
async def test_an_answer_costs_the_price_of_its_model(path: str, store_url: str) -> None:
    async with metered(answering(), store_url, plans=PLANS) as at:
        await give(at, 1000)
        cost = 0
        for asked, said, each in (
            ("gpt-6", "gpt-6", 8000),
            # What the provider says counts, whatever was asked for; without that, what was asked for.
            ("gpt-6-mini", "claude-opus-5", 20_000),
            ("gpt-6-mini", None, 1000),
            # Of no known model: the highest price there is; of no pattern: the default.
            (None, None, 20_000),
            ("x" * 10_000, None, 4000),
            ("gpt-\n\x00-mini", "gpt-\n\x00-mini", 1000),
        ):
            assert await ask(at, 1234, model=asked, said=said, path=path) == 200
            cost += 1234 * each
            assert await spent(at) == cost


async def test_a_request_that_cannot_be_read_costs_the_highest_price(store_url: str) -> None:
    async with metered(answering(), store_url, plans=PLANS) as at:
        await give(at, 10_000)
        unread = b'{"model": "gpt-6-mini", "pad": "' + b"x" * 3_000_000
        for body in (unread, b'{"model": "claude-opus-5", "Model": "gpt-6-mini"}'):
            assert await ask(at, 50, body=body) == 200
        assert await spent(at) == 100 * 20_000


async def test_i3_a_request_is_held_at_its_models_price(store_url: str) -> None:
    async with metered(answering(), store_url, plans=PLANS) as at:
        await give(at, 10)
        assert await ask(at, 1, at_most=501, model="claude-opus-5", said="claude-opus-5") == 402
        assert await ask(at, 1, at_most=10_001, model="gpt-6-mini", said="gpt-6-mini") == 402
        assert await ask(at, 0, at_most=501) == 402
        for body in (
            b'{"model": "gpt-6-mini", "model": "claude-opus-5", "max_tokens": 501}',
            b'{"model": "claude-opus-5", "Model": "gpt-6-mini", "max_tokens": 501}',
            b'{"model": ["gpt-6-mini"], "max_tokens": 501}',
        ):
            assert await ask(at, 0, body=body) == 402
        assert await ask(at, 1, at_most=10_000, model="gpt-6-mini", said="gpt-6-mini") == 200
        assert await spent(at) == 1000


@pytest.mark.parametrize("path", ["/fixed", "/chosen"])
async def test_i3_a_client_cannot_name_the_model_of_a_fixed_line(path: str, store_url: str) -> None:
    async with metered(answering(), store_url, plans=PLANS) as at:
        await give(at, 10)
        for model in ("gpt-6-mini", "claude-opus-5", None):
            assert await ask(at, 1, at_most=501, model=model, said="gpt-6-mini", path=path) == 402
        assert await ask(at, 10, at_most=500, model="gpt-6-mini", said="gpt-6", path=path) == 200
        assert await ask(at, 10, at_most=100, model="gpt-6-mini", path=path) == 200
        assert await spent(at) == 10 * 8000 + 10 * 20_000


async def test_i3_what_is_held_for_one_model_is_not_there_for_another(store_url: str) -> None:
    left: list[bool] = []

    async def look() -> None:
        """Ten credits, less 400 tokens of a model that costs 20 per 1000."""
        for model, most in (("gpt-6-mini", 2000), ("claude-opus-5", 100), ("llama", 500)):
            for quantity in (most, most + 1):
                async with at.kit.reserve("acme", {"output_tokens": quantity}, model=model) as held:
                    left.append(held.decision.allowed)
        async with at.kit.reserve("acme", {"output_tokens": 101}) as held:
            left.append(held.decision.allowed)

    async with metered(answering(look), store_url, plans=PLANS) as at:
        await give(at, 10)
        assert await ask(at, 400, model="claude-opus-5", said="claude-opus-5") == 200
        assert (left, await spent(at)) == ([True, False] * 3 + [False], 400 * 20_000)
        assert (await at.kit.usage("acme"))["meters"]["output_tokens"]["remaining"] == 500
        assert (await at.kit.check("acme", "output_tokens", 500)).allowed
        assert not (await at.kit.check("acme", "output_tokens", 501)).allowed


async def test_i3_racing_answers_spend_no_credit_twice(store_url: str) -> None:
    ending, prices = asyncio.Event(), {"gpt-6-mini": 1000, "llama": 4000, "claude-opus-5": 20_000}
    calls = drawn(7, 200, *prices, most=200)
    async with metered(answering(ending.wait), store_url, plans=PLANS) as at:
        await give(at, 10)
        cost, _ = await race(at, ending, calls, [tokens * prices[model] for model, tokens in calls])
        assert await spent(at) == cost <= 10 * MICRO
        row = (await at.kit.usage("acme"))["meters"]["output_tokens"]
        assert (row["overage"], row["held"]) == (0, 0)


UNITS: Final = f"""
meters: {{output_tokens: {{unit: token}}, input_audio_tokens: {{unit: token}},
  web_searches: {{unit: search, stripe: {{event_name: searches}}}}}}
credits:
  usd:
    unit: money
    costs: {{tokens: provider_prices}}
    models:
      "own-*":
        input_tokens: 0 per 1_000_000
        input_audio_tokens: 10_000 per 1_000_000
        output_tokens: 1_000 per 1_000_000
        web_searches: 1
        service_tier: {{priority: 200%, flex: 50%}}
        speed: {{optimized: 200%}}
routes:
  - {{match: "POST /chat", usage: openai, {RESERVE}, model: request}}
  - match: "POST /search"
    usage: openai
    records: [web_searches]
    model: request
    reserve: {{output_tokens: {{default: 1_000}}, web_searches: {{from: max_uses, default: 1, ceiling: 9}}}}
  - {{match: "POST /listen", usage: openai, records: [input_audio_tokens]}}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    meters: {{web_searches: {{included: 4, overage: bill}},
      input_audio_tokens: {{included: 10, overage: deny}}}}
"""


async def asked(at: Served, path: str, fields: Mapping[str, str] | None = None, **body: Any) -> int:
    content = compact({"model": "own-7b", "messages": [{"role": "user", "content": "Hello."}], **body})
    headers = {"x-tokens": "5", "x-model": "own-7b", **(fields or {})}
    return (await at.client.post(path, content=content, headers=headers)).status_code


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, 200),
        ({"service_tier": "flex"}, 200),
        ({"service_tier": "priority"}, 402),
        ({"serviceTier": "PRIORITY"}, 402),
        ({"service_tier": None, "SERVICE_TIER": "priority"}, 402),
        ({f"service{'_' * nth}_tier": "priority" for nth in range(40)}, 402),
        ({"serviceTier": {"type": "priority"}}, 402),
        ({"serviceTier": {"type": "default"}, "performanceConfig": {"latency": "standard"}}, 200),
        ({"performanceConfig": {"latency": "optimized"}}, 402),
        ({"input": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}, 402),
        ({"input": "no sound"}, 200),
    ],
)
async def test_f_216_a_hold_covers_the_dearest(more: dict[str, Any], status: int, store_url: str) -> None:
    async with metered(answering(), store_url, plans=UNITS) as at:
        await give(at, 1, "usd")
        # 900 tokens of 1,000 micro-dollars; at priority twice that; sound goes in at 10,000 each.
        assert await asked(at, "/chat", max_tokens=900, **more) == status


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("X-Amzn-Bedrock-Service-Tier", "priority", 402),
        ("X-Amzn-Bedrock-Service-Tier", "default", 200),
        ("X-Amzn-Bedrock-PerformanceConfig-Latency", "optimized", 402),
    ],
)
async def test_f_216_a_hold_covers_what_a_header_asks_for(
    field: str, value: str, status: int, store_url: str
) -> None:
    async with metered(answering(), store_url, plans=UNITS) as at:
        await give(at, 1, "usd")
        assert await asked(at, "/chat", {field: value}, max_tokens=900) == status


async def test_an_unreadable_request_is_held_at_the_dearest_way(store_url: str) -> None:
    plans = UNITS.replace("ceiling: 100_000}}, model: request", "ceiling: 900}}, model: own-7b")
    async with metered(answering(), store_url, plans=plans) as at:
        await give(at, 1, "usd")
        asked = {"content": b'{"max_tokens": 1', "headers": {"x-tokens": "5"}}
        assert await at.statuses("/chat", method="POST", **asked) == [402]


async def searching(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and record three searches or eight tokens of sound."""
    await read_all(receive)
    meterkit.record(**({"web_searches": 3} if scope["path"] == "/search" else {"input_audio_tokens": 8}))
    await hello(scope, receive, send)


async def test_meters_of_units_have_what_meters_have(store_url: str) -> None:
    async with metered(searching, store_url, plans=UNITS) as at:
        await give(at, 100, "usd")
        assert [await asked(at, "/search", max_uses=uses) for uses in (3, 3, 10)] == [200, 200, 400]
        assert [await asked(at, "/listen") for _ in range(3)] == [200, 200, 429]
        meters = (await at.kit.usage("acme"))["meters"]
        assert (meters["web_searches"]["recorded"], meters["web_searches"]["overage"]) == (6, 2)
        assert meters["input_audio_tokens"]["recorded"] == 16
    async with metered(searching, store_url, plans=UNITS) as at:
        await give(at, 5, "usd")
        # 1,000 tokens are a dollar, and so is each search.
        assert [await asked(at, "/search", max_uses=uses) for uses in (9, 1)] == [402, 200]


NOT_PRICED: Final = "urn:meterkit:problem:model-not-priced"
# `unknown_model`: a model without a price costs nothing, or a request that names it is refused.
DENYING: Final = f"""
meters: {{requests: {{unit: request}}, input_tokens: {{unit: token}}, output_tokens: {{unit: token}}}}
credits:
  usd:
    unit: money
    costs: {{tokens: provider_prices}}
    unknown_model: deny
    models: {{"own-*": {{input_tokens: 2 per 1_000_000, output_tokens: 6 per 1_000_000}}}}
routes:
  - {{match: "POST /chat", usage: openai, {RESERVE}, model: request}}
  - {{match: "POST /plain", usage: openai}}
  - {{match: "POST /shadow", usage: openai, consume: {{requests: 1}}, enforcement: shadow}}
  - {{match: "POST /fixed", usage: openai, model: own-7b}}
  - {{match: "POST /chosen", usage: openai, model: "gpt-*"}}
  - {{match: "POST /other", consume: {{requests: 1}}}}
  - {{match: "POST /model/{{model:path}}", usage: bedrock}}
  - match: "POST /auto/{{path:path}}"
    usage: auto
    model: request
    {RESERVE.replace("100_000", "1_000_000")}
  - {{match: "POST /search", usage: openai, provider: perplexity}}
  - {{match: "WS /live", usage: openai}}
  - {{match: "WS /quiet", usage: openai, enforcement: shadow}}
"""
TABLE: Final = """
meters: {output_tokens: {unit: token, stripe: {event_name: out}}}
prices: {output: {unknown_model: deny, models: {"gpt-*": 4 per 1000}}}
credits: {ai: {costs: {output_tokens: prices.output}}}
routes:
  - {match: "POST /plain", usage: openai}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {output_tokens: {included: 0, overage: deny}}}
"""
OVERAGE: Final = TABLE.replace("credits: {ai: {costs: {output_tokens: prices.output}}}\n", "").replace(
    "included: 0, overage: deny", "included: 5, overage: {bill: {price: prices.output}}"
)


async def post(at: Served, path: str, body: bytes | dict[str, Any]) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else compact(body)
    answer = await at.client.post(path, content=content, headers={"x-tokens": "5"})
    return answer.status_code, {} if answer.status_code == 200 else answer.json()


async def test_other_requests_are_served(store_url: str) -> None:
    bedrock = "model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse"
    async with metered(answering(), store_url, plans=DENYING) as at:
        await give(at, 5, "usd")
        for path, model in (
            ("/plain", "OWN-7B"),
            ("/plain", None),
            ("/fixed", "gpt-99"),
            ("/chosen", "gpt-99"),
            ("/other", "gpt-99"),
            ("/search", "sonar-pro"),
            (f"/{bedrock}", None),
            (f"/auto/{bedrock}", None),
        ):
            asked: dict[str, Any] = {"messages": []} if model is None else {"model": model}
            assert await post(at, path, asked) == (200, {}), path
        assert await post(at, "/plain", b"no JSON") == (200, {})
        for path, model in (("/plain", "gpt-image-1"), ("/fixed", "gpt-99")):
            asked = {"model": "gpt-4o-mini", "tools": [{"type": "image_generation", "model": model}]}
            assert await post(at, path, asked) == (200, {}), path


@pytest.mark.parametrize(
    ("deny", "most", "status"), [("unknown_model: deny", 300_000, 200), ("unknown_model: free", 400_000, 402)]
)
async def test_auto_holds_bedrock_at_its_price(deny: str, most: int, status: int, store_url: str) -> None:
    """F-210. A million tokens cost 15 dollars, and the table knows such names as Bedrock's alone."""
    path = "/auto/model/us.anthropic.claude-sonnet-4-20250514-v1:0/converse"
    async with metered(answering(), store_url, plans=DENYING.replace("unknown_model: deny", deny)) as at:
        await give(at, 5, "usd")
        assert (await post(at, path, {"max_tokens": most}))[0] == status


async def test_no_spelling_passes_a_model_without_a_price(store_url: str) -> None:
    async with metered(answering(), store_url, plans=DENYING) as at:
        await give(at, 5, "usd")
        for path, body in (
            ("/chat", b'{"model": "gpt-4o-mini", "model": "gpt-99"}'),
            ("/plain", b'{"model": "gpt-99", "model": "gpt-4o-mini"}'),
            ("/plain", b'{"Model": "gpt-99", "model": "gpt-4o-mini"}'),
            ("/plain", json.dumps({"model": "x" * 10_000}).encode()),
            ("/plain", b'{"model": "openai/own-7b\\n"}'),
            ("/plain?model=gpt-99", b'{"model": "gpt-4o-mini"}'),
            ("/plain", b'{"model": "qwen/qwen3-32b"}'),  # Its price depends on the provider.
            ("/search", b'{"model": "sonar-99"}'),
            ("/search", b'{"request": {"model": "sonar-99"}}'),
            (
                "/plain",
                b'{"model": "gpt-4o-mini", "tools": [{"type": "image_generation", "model": "gpt-99"}]}',
            ),
            ("/model/anthropic.claude-99/converse", b'{"messages": []}'),
        ):
            status, problem = await post(at, path, body)
            assert (status, problem["type"]) == (400, NOT_PRICED), body[:60]
            assert len(problem["model"]) <= 257
        said = (
            "The model 'anthropic.claude-99' is not sold here, because it has no price. Name another model."
        )
        assert problem["detail"] == said
        status, problem = await post(at, "/plain", {"model": "qwen/qwen3-32b"})
        assert "because its price depends on the provider: groq, " in problem["detail"]
        assert (await at.kit.usage("acme"))["balance"] == {"usd": 5}


async def test_a_model_is_refused_in_shadow_only_in_the_log(store_url: str) -> None:
    async with metered(answering(), store_url, plans=DENYING) as at:
        await give(at, 5, "usd")
        assert await post(at, "/shadow", {"model": "gpt-99"}) == (200, {})
        assert (await at.kit.usage("acme"))["meters"]["requests"]["recorded"] == 1


async def test_a_websocket_for_an_unpriced_model_is_refused(store_url: str) -> None:
    async with metered(echo, store_url, plans=DENYING) as at:
        await give(at, 5, "usd")
        for path, query, opens in (
            ("/live", b"model=gpt-4o-realtime-preview", True),
            ("/live", b"", True),
            ("/live", b"model=gpt-4o&model=gpt-99", False),
            ("/quiet", b"model=gpt-99", True),
        ):
            async with opened(at, path, query=query, extensions={"websocket.http.response": {}}) as socket:
                assert socket.is_open == opens
            if not opens:
                assert socket.sent[0]["status"] == 400
                assert json.loads(socket.sent[1]["body"])["type"] == NOT_PRICED


async def test_shadow_takes_no_later_websocket_for_an_unpriced_one(caplog: pytest.LogCaptureFixture) -> None:
    async with metered(echo, "memory://", plans=DENYING) as at:
        await give(at, 5, "usd")
        for model in (b"gpt-4o-mini", b"gpt-99", b"gpt-4o-mini"):
            async with opened(at, "/quiet", query=b"model=" + model) as socket:
                assert socket.is_open
    assert len([line for line in caplog.messages if "would be refused" in line]) == 1


@pytest.mark.parametrize("plans", [TABLE, OVERAGE], ids=["credits", "overage"])
async def test_a_table_without_a_default_refuses_models_of_no_pattern(plans: str, store_url: str) -> None:
    async with metered(answering(), store_url, plans=plans) as at:
        if "credits:" in plans:
            await give(at, 5)
        assert await post(at, "/plain", {"model": "gpt-5-mini"}) == (200, {})
        status, problem = await post(at, "/plain", {"model": "claude-opus-5"})
        assert (status, problem["type"]) == (400, NOT_PRICED)


async def test_a_default_is_a_price_of_every_model(store_url: str) -> None:
    plans = TABLE.replace("{unknown_model: deny,", "{unknown_model: deny, default: 1 per 1000,")
    async with metered(answering(), store_url, plans=plans) as at:
        await give(at, 5)
        assert await post(at, "/plain", {"model": "claude-opus-5"}) == (200, {})
        notes = [note.path for note in at.kit.catalog.notes if note.kind != "no_rate"]
        assert notes == ["prices.output.unknown_model"]


async def test_unpriced_calls_are_counted_and_found(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    plans = completed(DENYING.replace("    unknown_model: deny\n", ""))
    async with metered(answering(), store_url, plans=plans) as at:
        await give(at, 5, "usd")
        tallies = at.kit.store.tally()
        for model in ("gpt-99", "gpt-4o-mini", "gpt-99", "own-7b"):
            assert await ask(at, 5, model=model, said=model, path="/plain") == 200
        assert tallies.unpriced == {("gpt-99", "none"): 2}
        assert (await at.kit.usage("acme"))["balance_micros"]["usd"] > 4_999_900
        keys = at.kit.store.keys
        same: Any = {"key_prefix": keys.prefix, "shards": keys.shards, "clock": at.kit.store.clock}
        said = "1 model has no price, so calls of today and yesterday cost nothing: 'gpt-99' (calls: 2)"
        async with MeterKit(loads(plans), redis_url=store_url, **same) as other:
            for kit in (at.kit, other):  # Another process finds them, too.
                assert await models_found(kit) == [said]
        async with MeterKit(loads(plans.replace("own-*", "gpt-9*")), redis_url=store_url, **same) as priced:
            assert await models_found(priced) == []
    (error,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert error.startswith("nothing is charged for calls of model 'gpt-99':")


async def test_f_322_doctor_lists_the_providers_to_choose_from(store_url: str) -> None:
    async with metered(answering(), store_url, plans=DENYING.replace("    unknown_model: deny\n", "")) as at:
        await give(at, 5, "usd")
        model = "deepseek-r1-distill-llama-70b"
        assert await ask(at, 5, model=model, said=model, path="/plain") == 200
        (found,) = await models_found(at.kit)
        assert found.endswith(f"'{model}' (calls: 1; `provider` may be: groq, ovhcloud)")


async def models_found(kit: MeterKit) -> list[str]:
    return [one.problem for one in await findings(kit, "models")]


async def test_a_model_of_no_pattern_is_counted_and_found(store_url: str) -> None:
    plans = TABLE.replace("unknown_model: deny", "unknown_model: free")
    async with metered(answering(), store_url, plans=plans) as at:
        await give(at, 5)
        for model in ("gpt-5-mini", "claude-opus-5"):
            assert await ask(at, 5, model=model, said=model, path="/plain") == 200
        (finding,) = await models_found(at.kit)
        assert "'claude-opus-5' (calls: 1)" in finding
