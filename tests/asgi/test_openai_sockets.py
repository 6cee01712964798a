"""F-215, F-218: what OpenAI's websockets report beside tokens of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from asgi.test_openai_charges import PLANS, spent
from asgi.test_socket_usage import done, provider, talk
from drivers.llm_apps import metered, tokens
from tokens.openai_payloads import PAYLOADS, TRANSCRIBED, response

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio

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
    async with metered(provider, "memory://", plans=SOCKETS) as at:
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
    path: str, query: str, session: dict[str, Any] | None, micros: int,
) -> None:
    begun = [] if session is None else [{"type": "session.created", "session": session}]
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await at.kit.grants.add("acme", {"usd": 100}, grant_id="1")
        await talk(at, path, [*begun, TRANSCRIBED], query=query)
        assert await spent(at, "acme") == micros


@pytest.mark.parametrize("path", ["/auto", "/openai"])
@pytest.mark.parametrize(("left_after", "micros"), [(4, 52_250), (3, 39_750), (2, 2_250), (1, 16_666)])
async def test_a_live_session_costs_its_length_and_what_it_has_asked(
    path: str, left_after: int, micros: int,
) -> None:
    first, second, closed = events_of("live session")
    # 20, 45 and 60 seconds at 3 dollars an hour; and 1000 * 1.25 + 100 * 10
    events = [first, events_of("response in a live session")[1], second, closed][:left_after]
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await at.kit.grants.add("acme", {"usd": 100}, grant_id="1")
        await talk(at, path, events, query="model=gpt-live-1")
        assert await spent(at, "acme") == micros


async def test_a_response_over_a_websocket_has_its_tools() -> None:
    painted = PAYLOADS["image tool"].said
    async with metered(provider, "memory://", plans=SOCKETS) as at:
        await at.kit.grants.add("acme", {"usd": 100}, grant_id="1")
        event = {"type": "response.completed", "response": painted}
        await talk(
            at,
            "/auto",
            [event, event, {"type": "response.completed", "response": {**response(), "id": "resp_2"}}],
        )
        assert await spent(at, "acme") == 226_270 + 2_250
