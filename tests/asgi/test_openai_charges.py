"""F-210, F-212, F-213, F-216: what OpenAI-shaped answers cost a balance in money, to the micro-dollar."""

from __future__ import annotations

import json
from math import floor
from typing import TYPE_CHECKING, Any, Final

import pytest

from asgi.test_socket_usage import done, talk
from asgi.test_socket_usage import provider as socket_provider
from drivers.llm_apps import metered, read_all, tokens
from faults.refusals import eventually, settled
from tokens.openai_payloads import PAYLOADS, TRANSCRIBED, response
from tokens.recordings import JSON_TYPE, SSE_TYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send

    from drivers.app import Served
    from tokens.openai_payloads import Payload

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  input_tokens: {unit: token}
  output_tokens: {unit: token}
  input_audio_tokens: {unit: token}
  output_image_tokens: {unit: token}
  web_searches: {unit: search}
credits:
  usd: {unit: money, costs: {tokens: provider_prices}}
routes:
  - {match: "POST /auto", usage: auto}
  - {match: "POST /openai", usage: openai}
  - {match: "POST /mistral", usage: mistral}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""
PRICED: Final = {
    name: payload for name, payload in PAYLOADS.items() if payload.micros is not None and name != "batch"
}


async def provider(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the payload that the request names, in two pieces."""
    assert scope["type"] == "http"
    payload = PAYLOADS[json.loads(await read_all(receive))["payload"]]
    kind = SSE_TYPE if payload.is_stream else JSON_TYPE
    head = {"status": 200, "headers": [(b"content-type", kind.encode())]}
    await send({"type": "http.response.start", **head})
    middle = len(payload.body) // 2
    await send({"type": "http.response.body", "body": payload.body[:middle], "more_body": True})
    await send({"type": "http.response.body", "body": payload.body[middle:]})


async def spent(at: Served, customer: str) -> int:
    """What a customer's balance has paid, in micro-dollars."""
    return -sum(line.quantity for line in await at.kit.grants.ledger(customer) if line.entry == "burn")


async def ask(at: Served, word: str, name: str, payload: Payload) -> int:
    """Ask for a payload as a customer of its own; what that costs."""
    customer = name.replace(" ", "-")
    await at.kit.grants.add(customer, {"usd": 100}, grant_id="1")
    asked = {"model": payload.asked, "payload": name}
    sent = await at.client.post(f"/{word}", json=asked, headers={"x-customer-id": customer})
    assert sent.content == payload.body
    await settled(at.kit)
    return await spent(at, customer)


@pytest.mark.parametrize("word", ["auto", "mistral"])
async def test_each_answer_costs_what_its_provider_asks(word: str) -> None:
    async with metered(provider, "memory://", plans=PLANS) as at:
        found = {name: await ask(at, word, name, payload) for name, payload in PRICED.items()}
        assert found == {name: floor(payload.micros or 0) for name, payload in PRICED.items()}
        heard = (await at.kit.usage("chat-with-sound"))["meters"]
        assert heard["input_audio_tokens"]["recorded"] == 800
        drawn = (await at.kit.usage("image-tool"))["meters"]
        assert (drawn["input_tokens"]["recorded"], drawn["output_image_tokens"]["recorded"]) == (1850, 7024)
        assert (await at.kit.usage("searches"))["meters"]["web_searches"]["recorded"] == 2


async def test_a_batch_costs_what_batches_cost_once(store_url: str) -> None:
    async with metered(provider, store_url, plans=PLANS) as at:

        async def is_charged() -> bool:
            return await spent(at, "batch") == 1_125

        await ask(at, "auto", "batch", PAYLOADS["batch"])
        await eventually(is_charged)
        asked = {"model": "gpt-5", "payload": "batch"}
        await at.client.post("/auto", json=asked, headers={"x-customer-id": "batch"})
        await settled(at.kit)
        assert await is_charged()


async def test_a_line_of_a_batch_costs_what_batches_cost() -> None:
    line: dict[str, Any] = {"custom_id": "a", "response": {"status_code": 200, "body": response()}}
    async with metered(provider, "memory://", plans=PLANS) as at:
        await at.kit.grants.add("acme", {"usd": 100}, grant_id="1")
        found = await at.kit.record_usage("acme", line, call_id="batch_1")
        assert found is not None
        # Half of 1000 * 1.25 + 100 * 10
        assert found.cost_micros == 1_125
        assert found.charged_micros == 1_125
        assert await spent(at, "acme") == 1_125


# F-215, F-218: what OpenAI's websockets report beside tokens of answers.

SOCKETS: Final = PLANS.replace(
    "routes:\n",
    'routes:\n  - {match: "WS /auto", usage: auto}\n  - {match: "WS /openai", usage: openai}\n',
)


def events_of(name: str) -> Sequence[dict[str, Any]]:
    said = PAYLOADS[name].said
    return said if isinstance(said, list) else [said]


@pytest.mark.parametrize("path", ["/auto", "/openai"])
async def test_each_transcription_of_what_a_user_says_counts_once(path: str) -> None:
    events = [TRANSCRIBED, TRANSCRIBED, done("r1", 40, 10), {**TRANSCRIBED, "item_id": "item_2"}, TRANSCRIBED]
    async with metered(socket_provider, "memory://", plans=SOCKETS) as at:
        await at.kit.grants.add("acme", {"usd": 100}, grant_id="1")
        await talk(at, path, events)
        assert await tokens(at.kit, "input_tokens", "output_tokens", "input_audio_tokens") == (320, 50, 260)


NAMED: Final = {"audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}


@pytest.mark.parametrize("path", ["/auto", "/openai"])
@pytest.mark.parametrize(
    ("query", "session", "micros"),
    [
        # 130 * 6 + 10 * 2.5 + 20 * 10, whatever model answers
        ("model=gpt-realtime", {"model": "gpt-realtime", **NAMED}, 1_005),
        ("intent=transcription", {"type": "transcription", **NAMED}, 1_005),
        ("intent=transcription&deployment=gpt-4o-transcribe", {"type": "transcription"}, 1_005),
        # Another model than the one that answers, without a name.
        ("model=gpt-realtime", {"model": "gpt-realtime"}, 0),
        ("model=gpt-realtime", None, 0),
    ],
)
async def test_a_transcription_costs_its_sessions_model(
    path: str,
    query: str,
    session: dict[str, Any] | None,
    micros: int,
) -> None:
    begun = [] if session is None else [{"type": "session.created", "session": session}]
    async with metered(socket_provider, "memory://", plans=SOCKETS) as at:
        await at.kit.grants.add("acme", {"usd": 100}, grant_id="1")
        await talk(at, path, [*begun, TRANSCRIBED], query=query)
        assert await spent(at, "acme") == micros


@pytest.mark.parametrize("path", ["/auto", "/openai"])
@pytest.mark.parametrize(("left_after", "micros"), [(4, 52_250), (3, 39_750), (2, 2_250), (1, 16_666)])
async def test_a_live_session_costs_its_length_and_what_it_has_asked(
    path: str,
    left_after: int,
    micros: int,
) -> None:
    first, second, closed = events_of("live session")
    # 20, 45 and 60 seconds at 3 dollars an hour; and 1000 * 1.25 + 100 * 10
    events = [first, events_of("response in a live session")[1], second, closed][:left_after]
    async with metered(socket_provider, "memory://", plans=SOCKETS) as at:
        await at.kit.grants.add("acme", {"usd": 100}, grant_id="1")
        await talk(at, path, events, query="model=gpt-live-1")
        assert await spent(at, "acme") == micros


async def test_a_response_over_a_websocket_has_its_tools() -> None:
    painted = PAYLOADS["image tool"].said
    async with metered(socket_provider, "memory://", plans=SOCKETS) as at:
        await at.kit.grants.add("acme", {"usd": 100}, grant_id="1")
        event = {"type": "response.completed", "response": painted}
        await talk(
            at,
            "/auto",
            [event, event, {"type": "response.completed", "response": {**response(), "id": "resp_2"}}],
        )
        assert await spent(at, "acme") == 226_270 + 2_250
