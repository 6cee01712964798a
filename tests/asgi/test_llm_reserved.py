"""Tokens that are set aside before the app runs, and captured when its answer ends."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.app import hello, http_scope
from drivers.delivery import until
from drivers.llm_apps import metered, openai_stream, read_all
from faults.refusals import stopped
from tokens.recordings import chat, compact, sse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from drivers.app import Served
    from servers.stores import Server

pytestmark = pytest.mark.anyio

SSE = [(b"content-type", b"text/event-stream")]
PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests:      {unit: request}
  input_tokens:  {unit: token}
  output_tokens: {unit: token, stripe: {event_name: out}}
  large_output:  {unit: token, from: output_tokens, where: {model: "*-large"}, stripe: {event_name: large}}
routes:
  - match: "/chat"
    consume: {requests: 1}
    usage: auto
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 1000}}
  - {match: "/plain", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests:      {rate: 10000/hour}
      input_tokens:  {included: 1000, overage: deny}
      output_tokens: {rate: 5000/hour, included: 1000, overage: deny}
  large:
    extends: free
    meters:
      large_output: {included: 300, overage: deny}
"""
MESSAGES = [{"role": "user", "content": "0123456789ab"}]  # Four tokens, by estimate.


def body(max_tokens: int = 400, **more: Any) -> bytes:
    return compact({"model": "m", "messages": MESSAGES, "max_tokens": max_tokens, **more})


def usage(output: int, model: str = "m") -> bytes:
    spent = {"prompt_tokens": 9, "completion_tokens": output, "total_tokens": 9 + output}
    return sse({**chat({}), "model": model, "choices": [], "usage": spent})


def streaming(*chunks: bytes, meanwhile: Callable[[], Awaitable[None]] | None = None) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await read_all(receive)
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        for n, chunk in enumerate(chunks):
            if n == 1 and meanwhile is not None:
                await meanwhile()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


async def row(at: Served, meter: str = "output_tokens") -> tuple[int, int]:
    found = (await at.kit.usage("acme"))["meters"][meter]
    return found["recorded"], found["held"]


async def settled(at: Served) -> None:
    lanes = at.kit.store.lanes.values()
    await until(lambda: not any(lane.unsettled for lane in lanes))


async def test_tokens_are_held_over_all_limits_and_captured(store_url: str) -> None:
    held: list[Any] = []

    async def look() -> None:
        held.append(
            (await row(at), await row(at, "input_tokens"), await at.kit.check("acme", "output_tokens", 601))
        )

    app = streaming(*openai_stream("Hello", " you"), usage(150), meanwhile=look)
    async with metered(app, store_url, plans=PLANS) as at:
        answer = await at.client.post("/chat", content=body())
        assert answer.status_code == 200
        await settled(at)
        ((output, entered, check),) = held
        assert (output, entered, check.allowed) == ((0, 400), (0, 4), False)
        assert await row(at) == (150, 0)
        assert await row(at, "input_tokens") == (9, 0)
        # The rate counts the true quantity, not the one that was set aside.
        await at.kit.customers.override("acme", {"output_tokens": {"included": "unlimited"}})
        assert (await at.kit.check("acme", "output_tokens", 4850)).allowed
        assert not (await at.kit.check("acme", "output_tokens", 4851)).allowed


async def test_i1_reserve_and_capture_cost_two_script_calls(store_url: str, valkey: Server) -> None:
    async with metered(streaming(*openai_stream("Hello"), usage(150)), store_url, plans=PLANS) as at:
        for _ in range(2):  # The first one may have to learn the customer's state.
            valkey.command("CONFIG", "RESETSTAT")
            await at.client.post("/chat", content=body())
            await settled(at)
        assert valkey.command("INFO", "commandstats")["cmdstat_evalsha"]["calls"] == 2


async def test_i3_a_hundred_parallel_streams_never_pass_the_budget(store_url: str) -> None:
    turn = asyncio.Event()

    async def wait() -> None:
        await turn.wait()

    async with metered(
        streaming(*openai_stream("a", "b"), usage(90), meanwhile=wait), store_url, plans=PLANS
    ) as at:
        asked = [asyncio.ensure_future(at.client.post("/chat", content=body(100))) for _ in range(100)]
        # All that are admitted hold what they asked for; the others are refused at once.
        await until(lambda: sum(task.done() for task in asked) == 90)
        assert await row(at) == (0, 1000)
        turn.set()
        answers = await asyncio.gather(*asked)
        assert sorted({answer.status_code for answer in answers}) == [200, 429]
        await settled(at)
        assert await row(at) == (900, 0)


async def test_a_model_with_its_own_meter_is_limited_by_it(store_url: str) -> None:
    app = streaming(*openai_stream("a"), usage(200, model="gpt-large"))
    async with metered(app, store_url, plans=PLANS) as at:
        await at.kit.customers.set_plan("acme", "large")
        asked = body(250, model="gpt-large")
        assert (await at.client.post("/chat", content=asked)).status_code == 200
        await settled(at)
        assert await row(at, "large_output") == (200, 0)
        assert await row(at) == (200, 0)
        refused = await at.client.post("/chat", content=asked)
        assert refused.status_code == 429
        assert refused.json()["violated-policies"][0] == "large_output-period"
        assert (await at.client.post("/chat", content=body(250, model="gpt-small"))).status_code == 200


async def test_a_stream_over_a_period_end_counts_where_it_ends(store_url: str) -> None:
    async def month() -> None:
        at.clock.advance(timedelta(days=30))

    app = streaming(*openai_stream("a", "b"), usage(150), meanwhile=month)
    async with metered(app, store_url, plans=PLANS) as at:
        await at.kit.record("acme", "output_tokens", 500)
        await at.client.post("/chat", content=body())
        await settled(at)
        assert await row(at) == (150, 0)


async def test_an_estimator_of_the_apps_own_measures_the_input(store_url: str) -> None:
    held: list[int] = []

    def estimate(body: object, model: str | None) -> int:
        return 321 if body and model == "m" else 0

    async def look() -> None:
        held.append((await row(at, "input_tokens"))[1])

    app = streaming(*openai_stream("a", "b"), usage(1), meanwhile=look)
    async with metered(app, store_url, plans=PLANS, settings={"estimate_input": estimate}) as at:
        await at.client.post("/chat", content=body())
    assert held == [321]


@pytest.mark.parametrize("wrong", [ValueError("a word of the client's"), -5, 1.5])
async def test_an_estimator_that_fails_lets_nobody_pass(
    store_url: str, wrong: object, caplog: pytest.LogCaptureFixture
) -> None:
    def estimate(body: object, model: str | None) -> Any:
        del body, model
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    settings = {"estimate_input": estimate}
    async with metered(streaming(usage(1)), store_url, plans=PLANS, settings=settings) as at:
        await at.kit.record("acme", "output_tokens", 1_000)
        assert (await at.client.post("/chat", content=body())).status_code == 429
    assert "the default estimate is taken" in caplog.text
    assert "a word of the client" not in caplog.text


async def test_a_body_that_fails_leaves_the_request_undecided(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    answered: list[Any] = []

    async def broken() -> Any:
        raise LookupError("what stands outside has failed")

    async def send(message: Any) -> None:
        answered.append(message)

    async with metered(hello, store_url, plans=PLANS) as at:
        await at.app(http_scope("/chat", method="POST"), broken, send)
    assert answered[0]["status"] == 200
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "a request under the line '/chat' could not be decided"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


async def test_an_unconfirmed_refusal_counts_in_full(store_url: str, valkey: Server) -> None:
    plans = PLANS.replace('"/chat"\n', '"/chat"\n    feature: extra\n    on_store_failure: allow\n').replace(
        "routes:\n", "features: [extra]\nroutes:\n"
    )
    app = streaming(*openai_stream("Hello"))
    async with metered(app, store_url, plans=plans, settings={"store_timeout": 0.1}) as at:
        assert (await at.client.post("/chat", content=body())).status_code == 403
        with stopped(valkey):
            for _ in range(3):  # One that is not answered, one that waits for a connection, and one at once.
                assert (await at.client.post("/chat", content=body())).status_code == 200
        await settled(at)
        await at.kit.check("acme", "requests")
        assert await row(at, "requests") == (3, 0)
        assert await row(at, "input_tokens") == (3 * 3, 0)  # As the app has read the body.
        # Nothing was asked of the store but whether they are refused: rates have not seen them before.
        assert (await at.kit.check("acme", "requests", 9_997)).allowed
        assert not (await at.kit.check("acme", "requests", 9_998)).allowed
