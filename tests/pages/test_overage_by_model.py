"""Prices by model on the usage page: the cost on other plans, the forecast, and the prices in words."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.plans import plans_text
from drivers.shop import START
from drivers.usage_figures import JSON, page_of
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from pages.test_cards import card_of, cards_in

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("overage_by_model")


def answer_of(model: str, tokens: int) -> dict[str, Any]:
    used = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
    said = [{"index": 0, "message": {"content": "Four."}, "finish_reason": "stop"}]
    return {"object": "chat.completion", "model": model, "choices": said, "usage": used}


async def test_other_plans_cost_what_their_prices_by_model_do(store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.record_usage("acme", answer_of("gpt-5", 600_000))
        figures, html = (await client.get("/", headers=JSON)).json(), (await client.get("/")).text
        others = {one.pop("plan"): one for one in figures["other_plans"]}
        # 550,000 at $0.02 per 1,000; patterns that differ may divide the same models differently.
        assert others["team"] == {"name": "team", "cost_cents": 4900 + 1100, "refused": [], "unpriced": []}
        assert (others["other"]["cost_cents"], others["other"]["unpriced"]) == (9900, ["output_tokens"])
        assert "Your usage so far would cost $60.00 there." in card_of(html, "plan")
        assert "without Output tokens" in html

        await kit.record_usage("acme", answer_of("o9", 100_000))
        (team, other) = (await client.get("/", headers=JSON)).json()["other_plans"][1:3]
        # 650,000 of 695,000: 595,000 of gpt-5 and 100,000 of other models.
        assert (team["cost_cents"], team["estimated"], other["plan"]) == (4900 + 1113 + 374, True, "other")
        assert "would cost about $63.87 there." in card_of((await client.get("/")).text, "plan")


async def test_a_card_shows_each_price_by_model(store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.record_usage("acme", answer_of("gpt-5", 600_000))
        shown = "$0.02 (gpt-5*) or $0.04 (other models) per 1,000 tokens"
        words = cards_in((await client.get("/")).text)["output_tokens"]
        assert words.endswith(f"Beyond that: {shown}, $11.90 so far")
        await kit.customers.set_plan("acme", "other")
        words = cards_in((await client.get("/")).text)["output_tokens"]
        assert "Beyond that: $0.01 to $0.06 per 1,000 tokens, by model" in words


async def test_a_forecast_has_the_overage_of_prices_by_model(store_url: str, tmp_path: Path) -> None:
    url, clock = sqlite_in(tmp_path), Clock(START)
    async with (
        MeterKit(loads(PLANS), redis_url=store_url, clock=clock, audit_url=url) as kit,
        page_of(kit) as client,
    ):
        # All is included until now; 30 days of 1,000 are 25,000 beyond it, at the default price.
        for _ in range(2):
            await kit.record("acme", "output_tokens", 1_000)
            clock.advance(timedelta(days=1))
        await drain_all(kit, url)
        assert (await client.get("/", headers=JSON)).json()["forecast"]["cost_cents"][0] == 2900 + 100
