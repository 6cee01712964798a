"""What calls used is shown by unit of the price table: on meters that bear their names, and by model."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from genai_prices import Usage, calc_price

from drivers.audited_kit import audited
from drivers.delivery import NOW
from drivers.plans import plans_text
from meterkit.catalog import loads

if TYPE_CHECKING:
    from drivers.audited_kit import Audited

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("units_shown")
CLAUDE: Final = "claude-sonnet-4-5-20250929"
SOUND: Final = "gpt-audio-2025-08-28"


def searching(nth: int) -> dict[str, Any]:
    """An answer of Anthropic: 3,600 tokens in, 3,000 of them written to a cache, 2,000 for an hour."""
    return {
        "id": f"msg_{nth}",
        "type": "message",
        "role": "assistant",
        "model": CLAUDE,
        "content": [{"type": "text", "text": "Four."}],
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 100,
            "output_tokens": 50,
            "cache_creation_input_tokens": 3000,
            "cache_read_input_tokens": 500,
            "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000},
            "server_tool_use": {"web_search_requests": 3},
        },
    }


def priced(model: str, **units: int) -> int:
    """What the price table says that units cost, in micro-dollars."""
    found = calc_price(Usage(**units), model, genai_request_timestamp=NOW)
    return int(Fraction(found.total_price) * 10**6)


def _written(tokens: int, time_to_live: str) -> dict[str, int]:
    """Tokens that were written to a cache, as the price table asks for them: all, and of this kind."""
    return {"cache_write_tokens": tokens, f"cache_write_{time_to_live}_tokens": tokens}


async def _use(at: Audited, customer: str) -> int:
    """Two calls with searches and one with sound, by figures that the app gives; what was charged."""
    await at.kit.grants.add(customer, {"usd": 10}, grant_id="g")
    for nth in range(2):
        await at.kit.record_usage(customer, searching(nth))
    async with at.kit.reserve(customer, {"output_tokens": 500}) as held:
        figures = {"input_tokens": 1000, "input_audio_tokens": 400, "output_tokens": 200}
        await held.capture(figures, model=SOUND)
    return (await at.kit.usage(customer))["meters"]["usd_charged"]["recorded"]


async def test_each_unit_is_costed_on_one_meter(store_url: str, audit_url: str) -> None:
    async with audited(store_url, audit_url, catalog=loads(PLANS)) as at:
        await _use(at, "eve")
        charged = await _use(at, "ada")
        rows = await at.rows()
        found = await at.kit.usage("ada", by="model")
    meters = {
        model: {
            name: (one["recorded"], one["cost_micros"])
            for name, one in of_model["meters"].items()
            if name != "usd_charged"
        }
        for model, of_model in found["models"].items()
    }
    # Of 3,600 tokens in, 500 were read from the cache and 2,000 written for an hour.
    claude = {
        "input_tokens": (7200, 2 * priced(CLAUDE, input_tokens=1100, **_written(1000, "5m"))),
        "cached_input_tokens": (1000, 2 * priced(CLAUDE, input_tokens=500, cache_read_tokens=500)),
        "cache_write_1h_tokens": (4000, 2 * priced(CLAUDE, input_tokens=2000, **_written(2000, "1h"))),
        "output_tokens": (100, 2 * priced(CLAUDE, output_tokens=50)),
        "web_searches": (6, 2 * priced(CLAUDE, web_searches=3)),
    }
    sound = {
        "input_tokens": (1000, priced(SOUND, input_tokens=600)),
        "input_audio_tokens": (400, priced(SOUND, input_tokens=400, input_audio_tokens=400)),
        "output_tokens": (200, priced(SOUND, output_tokens=200)),
    }
    assert meters == {CLAUDE: claude, SOUND: sound}
    assert found["cost_micros"] == sum(row["cost_micros"] or 0 for row in rows if row["customer"] == "ada")
    assert charged == found["cost_micros"] * 13 // 10
    paid = [one["meters"]["usd_charged"]["recorded"] for one in found["models"].values()]
    assert paid == [sum(cost for _, cost in costs.values()) * 13 // 10 for costs in (claude, sound)]
    # 300 of the sound are billed at 70 micro-dollars each.
    assert found["revenue_micros"] == charged + 300 * 70
    assert {model: one["units"] for model, one in found["models"].items()} == {
        CLAUDE: {
            "input_tokens": 7200,
            "cache_read_tokens": 1000,
            "cache_write_tokens": 6000,
            "cache_write_5m_tokens": 2000,
            "cache_write_1h_tokens": 4000,
            "output_tokens": 100,
            "web_searches": 6,
        },
        SOUND: {"input_tokens": 1000, "input_audio_tokens": 400, "output_tokens": 200},
    }
    logged = [json.loads(row["units"]) for row in rows if row["units"] and row["customer"] == "ada"]
    assert len(logged) == 3


async def test_the_page_of_money_shows_usage_by_model_as_it_is(store_url: str, audit_url: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "money.md").read_text("utf-8")
    plans, shown = (page.split(f"```{language}\n")[1].split("```")[0] for language in ("yaml", "json"))
    used: dict[str, Any] = {"object": "chat.completion", "model": "our-llama-70b", "choices": []}
    figures = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}
    nothing = {"prompt_tokens_details": {"cached_tokens": 0}}
    async with audited(store_url, audit_url, catalog=loads(plans)) as at:
        await at.kit.grants.add("bo", {"usd": 10}, grant_id="in_43")
        await at.kit.record_usage("bo", used | {"usage": figures | nothing})
        await at.rows()
        found = await at.kit.usage("bo", by="model")
    assert found["models"] == json.loads(shown)
