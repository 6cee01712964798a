"""`unknown_model`: a model without a price costs nothing, or a request that names it is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from asgi.test_llm_model_prices import answering, ask
from drivers.llm_apps import metered
from meterkit import MeterKit
from meterkit.catalog import loads
from tokens.recordings import compact

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

NOT_PRICED: Final = "urn:meterkit:problem:model-not-priced"
PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  input_tokens: {unit: token}
  output_tokens: {unit: token}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
    unknown_model: deny
    models: {"own-*": {input_tokens: 2 per 1_000_000, output_tokens: 6 per 1_000_000}}
routes:
  - match: "POST /chat"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
  - {match: "POST /plain", usage: openai}
  - {match: "POST /shadow", usage: openai, consume: {requests: 1}, enforcement: shadow}
  - {match: "POST /fixed", usage: openai, model: own-7b}
  - {match: "POST /chosen", usage: openai, model: any}
  - {match: "POST /other", consume: {requests: 1}}
  - {match: "POST /model/{model:path}", usage: bedrock}
  - match: "POST /auto/{path:path}"
    usage: auto
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 1_000_000}}
  - {match: "POST /search", usage: openai, provider: perplexity}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""
SOCKETS: Final = PLANS.replace(
    "routes:\n",
    'routes:\n  - {match: "WS /live", usage: openai}\n'
    '  - {match: "WS /quiet", usage: openai, enforcement: shadow}\n',
)
TABLE: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  output_tokens: {unit: token, stripe: {event_name: out}}
prices:
  output: {unknown_model: deny, models: {"gpt-*": 4 per 1000}}
credits:
  ai: {costs: {output_tokens: prices.output}}
routes:
  - {match: "POST /plain", usage: openai}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {output_tokens: {included: 0, overage: deny}}}
"""
OVERAGE: Final = TABLE.replace("credits:\n  ai: {costs: {output_tokens: prices.output}}\n", "").replace(
    "included: 0, overage: deny", "included: 5, overage: {bill: {price: prices.output}}"
)


async def post(at: Served, path: str, body: bytes | dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The status and the problem of a request; no problem: empty."""
    content = body if isinstance(body, bytes) else compact(body)
    answer = await at.client.post(path, content=content, headers={"x-tokens": "5"})
    return answer.status_code, {} if answer.status_code == 200 else answer.json()


async def funded(at: Served, credit: str = "usd") -> None:
    await at.kit.grants.add("acme", {credit: 5}, grant_id="first")


async def test_other_requests_are_served(store_url: str) -> None:
    bedrock = "model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse"
    async with metered(answering(), store_url, plans=PLANS) as at:
        await funded(at)
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


@pytest.mark.parametrize(
    ("deny", "most", "status"), [("unknown_model: deny", 300_000, 200), ("unknown_model: free", 400_000, 402)]
)
async def test_a_model_of_bedrock_is_held_at_its_price_under_auto(
    deny: str, most: int, status: int, store_url: str
) -> None:
    """F-210. A million tokens cost 15 dollars, and the table knows such names as Bedrock's alone."""
    path = "/auto/model/us.anthropic.claude-sonnet-4-20250514-v1:0/converse"
    async with metered(answering(), store_url, plans=PLANS.replace("unknown_model: deny", deny)) as at:
        await funded(at)
        assert (await post(at, path, {"max_tokens": most}))[0] == status


async def test_no_spelling_passes_a_model_without_a_price(store_url: str) -> None:
    large = b"x" * (1 << 20)
    async with metered(answering(), store_url, plans=PLANS) as at:
        await funded(at)
        for path, body in (
            ("/chat", b'{"model": "gpt-4o-mini", "model": "gpt-99"}'),
            ("/plain", b'{"model": "gpt-99", "model": "gpt-4o-mini"}'),
            ("/plain", b'{"Model": "gpt-99", "model": "gpt-4o-mini"}'),
            ("/plain", json.dumps({"model": "x" * 10_000}).encode()),
            ("/plain", b'{"model": "openai/own-7b\\n"}'),
            ("/plain", b'{"m\\u006Fdel": "gpt\\u002d99", "input": "' + large + b'"}'),
            ("/plain?model=gpt-99", b'{"model": "gpt-4o-mini"}'),
            ("/plain", b'{"model": "sonar-pro"}'),  # The name alone does not say whose it is.
            ("/search", b'{"model": "sonar-99"}'),
            ("/model/anthropic.claude-99/converse", b'{"messages": []}'),
        ):
            status, problem = await post(at, path, body)
            assert (status, problem["type"]) == (400, NOT_PRICED), body[:60]
            assert len(problem["model"]) <= 257
        said = (
            "The model 'anthropic.claude-99' is not sold here, because it has no price. Name another model."
        )
        assert problem["detail"] == said
        assert (await at.kit.usage("acme"))["balance"] == {"usd": 5}


async def test_a_model_is_refused_in_shadow_only_in_the_log(store_url: str) -> None:
    async with metered(answering(), store_url, plans=PLANS) as at:
        await funded(at)
        assert await post(at, "/shadow", {"model": "gpt-99"}) == (200, {})
        assert (await at.kit.usage("acme"))["meters"]["requests"]["recorded"] == 1


async def test_a_websocket_for_an_unpriced_model_is_refused(store_url: str) -> None:
    async with metered(accepting, store_url, plans=SOCKETS) as at:
        await funded(at)
        for path, query, opened in (
            ("/live", b"model=gpt-4o-realtime-preview", True),
            ("/live", b"", True),
            ("/live", b"model=gpt-4o&model=gpt-99", False),
            ("/quiet", b"model=gpt-99", True),
        ):
            sent: list[Message] = []
            coming = ["websocket.connect", "websocket.disconnect"]

            async def send(message: Message, sent: list[Message] = sent) -> None:
                sent.append(message)

            async def receive(coming: list[str] = coming) -> Message:
                return {"type": coming.pop(0), "code": 1000}

            scope: Scope = {
                "type": "websocket",
                "path": path,
                "query_string": query,
                "headers": [(b"x-customer-id", b"acme")],
                "extensions": {"websocket.http.response": {}},
            }
            await at.app(scope, receive, send)
            assert (sent[0]["type"] == "websocket.accept") == opened
            if not opened:
                assert sent[0]["status"] == 400
                assert json.loads(sent[1]["body"])["type"] == NOT_PRICED


async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
    del scope
    await receive()
    await send({"type": "websocket.accept"})
    await receive()


@pytest.mark.parametrize("plans", [TABLE, OVERAGE], ids=["credits", "overage"])
async def test_a_table_without_a_default_refuses_models_of_no_pattern(plans: str, store_url: str) -> None:
    async with metered(answering(), store_url, plans=plans) as at:
        if "credits:" in plans:
            await funded(at, "ai")
        assert await post(at, "/plain", {"model": "gpt-5-mini"}) == (200, {})
        status, problem = await post(at, "/plain", {"model": "claude-opus-5"})
        assert (status, problem["type"]) == (400, NOT_PRICED)


async def test_a_default_is_a_price_of_every_model(store_url: str) -> None:
    plans = TABLE.replace("{unknown_model: deny,", "{unknown_model: deny, default: 1 per 1000,")
    async with metered(answering(), store_url, plans=plans) as at:
        await funded(at, "ai")
        assert await post(at, "/plain", {"model": "claude-opus-5"}) == (200, {})
        assert [note.path for note in at.kit.catalog.notes] == ["prices.output.unknown_model"]


async def test_calls_of_a_model_without_a_price_are_counted_and_found(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    plans = PLANS.replace("    unknown_model: deny\n", "")
    async with metered(answering(), store_url, plans=plans) as at:
        await funded(at)
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
                (finding,) = [one for one in (await kit.health()).findings if one.check == "models"]
                assert finding.problem == said
        async with MeterKit(loads(plans.replace("own-*", "gpt-9*")), redis_url=store_url, **same) as priced:
            assert "models" not in {one.check for one in (await priced.health()).findings}
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert [message.split(":")[0] for message in errors] == ["nothing is charged for calls of model 'gpt-99'"]


async def test_a_model_of_no_pattern_is_counted_and_found(store_url: str) -> None:
    plans = TABLE.replace("unknown_model: deny", "unknown_model: free")
    async with metered(answering(), store_url, plans=plans) as at:
        await funded(at, "ai")
        for model in ("gpt-5-mini", "claude-opus-5"):
            assert await ask(at, 5, model=model, said=model, path="/plain") == 200
        (finding,) = [one for one in (await at.kit.health()).findings if one.check == "models"]
        assert "'claude-opus-5' (calls: 1)" in finding.problem
