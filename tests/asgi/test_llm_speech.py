"""Speech: sound without usage, which costs by the characters of its request."""

from __future__ import annotations

from typing import Any, Final

import pytest

from asgi.test_call_location import PLANS, ask
from asgi.test_llm_money import give, spent
from drivers.llm_apps import answering, metered

pytestmark = pytest.mark.anyio

TEXT: Final = "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich."
ASKED: Final[dict[str, Any]] = {"model": "tts-1", "input": TEXT * 10, "voice": "alloy"}


@pytest.mark.parametrize("usage", ["auto", "openai"])
async def test_f_327_speech_costs_by_the_characters_of_the_request(usage: str, store_url: str) -> None:
    plans = PLANS.replace("usage: auto", f"usage: {usage}").replace(
        "meters: {", "meters: {input_characters: {unit: character}, "
    )
    async with metered(answering([b"ID3", b"\0\xff"], "audio/mpeg"), store_url, plans=plans) as at:
        await give(at, 10)
        assert await ask(at, "/v1/audio/speech", ASKED) == 200
        assert await spent(at) == 15 * len(TEXT) * 10  # $15 a million characters.
        meters = (await at.kit.usage("acme"))["meters"]
        assert {name: meters[name]["recorded"] for name in ("input_characters", "output_tokens")} == {
            "input_characters": len(TEXT) * 10,
            "output_tokens": 0,
        }


async def test_f_327_speech_that_is_billed_by_tokens_is_estimated(store_url: str) -> None:
    async with metered(answering([b"ID3"], "audio/mpeg"), store_url, plans=PLANS) as at:
        await give(at, 10)
        assert (
            await ask(at, "/v1/audio/speech", ASKED | {"model": "gpt-4o-mini-tts", "input": "x" * 900}) == 200
        )
        assert await spent(at) == 15_147  # A minute: 1,251 tokens at $12 a million, and 225 at 0.60.


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"file": "song.mp3", "input": "quiet"}, "audio/mpeg"),  # An app's own sound.
        (ASKED, "image/png"),
    ],
)
async def test_f_327_other_sound_costs_nothing(asked: Any, kind: str, store_url: str) -> None:
    async with metered(answering([b"ID3"], kind), store_url, plans=PLANS) as at:
        await give(at, 10)
        assert await ask(at, "/sound", asked) == 200
        assert await spent(at) == 0


async def test_f_327_speech_that_fails_costs_nothing(store_url: str) -> None:
    async with metered(answering([b"ID3"], "audio/mpeg", status=503), store_url, plans=PLANS) as at:
        await give(at, 10)
        assert await ask(at, "/v1/audio/speech", ASKED) == 503
        assert await spent(at) == 0


async def test_i3_speech_is_held_at_its_price(store_url: str) -> None:
    async with metered(answering([b"ID3"], "audio/mpeg"), store_url, plans=PLANS) as at:
        await give(at, 1)
        # $15 a million characters, and a minute of sound for $0.015.
        for model, characters in (("tts-1", 70_000), ("gpt-4o-mini-tts", 62_000)):
            asked = {"model": model, "voice": "alloy", "max_tokens": 1}
            assert await ask(at, "/v1/audio/speech", asked | {"input": "x" * characters}) == 402, model
