"""Budgets of users where the price of overage depends on the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meterkit import MeterKit
from meterkit.catalog import loads

if TYPE_CHECKING:
    from meterkit import SubjectUsage

pytestmark = pytest.mark.anyio

PLANS = """\
schema: 1
currency: usd
default_plan: pro
meters:
  output_tokens: {unit: token, stripe: {event_name: out}}
prices:
  out: {default: 4 per 1000, models: {"small-*": 1 per 1000, "large-*": 20 per 1000}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    subjects: {user: {budget: {amount_cents: 10}}}
    meters: {output_tokens: {included: 100, overage: {bill: {price: prices.out}}}}
"""
ADA = {"user": "ada"}


def answer(model: str, tokens: int) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": {"content": "Four."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens},
    }


async def used_by_ada(kit: MeterKit) -> SubjectUsage:
    (found,) = await kit.usage("acme", by="user")
    return found


async def test_each_unit_counts_at_the_price_of_its_model(any_store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=any_store_url, flush=False) as kit:
        await kit.record_usage("acme", answer("small-1", 300), subjects=ADA)
        assert (await used_by_ada(kit)).spent_micros == 300 * 10
        await kit.record_usage("acme", answer("large-1", 50), subjects=ADA)
        await kit.record_usage("acme", answer("other", 10), subjects=ADA)
        await kit.record("acme", "output_tokens", 1, subjects=ADA)
        assert (await used_by_ada(kit)).spent_micros == 300 * 10 + 50 * 200 + 10 * 40 + 40


async def test_a_hold_of_no_known_model_costs_the_highest_price(any_store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=any_store_url, flush=False) as kit:
        async with kit.reserve("acme", {"output_tokens": 500}, subjects=ADA) as reservation:
            assert reservation.decision.allowed  # USD 0.10 at the highest price, all of the budget.
            refused = await kit.consume("acme", "output_tokens", 1, subjects=ADA)
            assert (refused.allowed, refused.violated) == (False, ("user:spend-period",))
            await reservation.capture(answer("small-1", 500))
        assert (await used_by_ada(kit)).spent_micros == 500 * 10
        assert (await kit.consume("acme", "output_tokens", 1, subjects=ADA)).allowed


async def fits(kit: MeterKit, tokens: int, model: str) -> bool:
    async with kit.reserve("acme", {"output_tokens": tokens}, model=model, subjects=ADA) as reservation:
        decision = reservation.decision
    assert decision.allowed or decision.violated == ("user:spend-period",)
    return decision.allowed


@pytest.mark.parametrize("of_customer", ["", "budget: {amount_cents: 900}"])
async def test_a_hold_costs_the_price_of_the_requested_model(any_store_url: str, of_customer: str) -> None:
    plans = PLANS.replace("    meters: {output", f"    {of_customer}\n    meters: {{output")
    async with MeterKit(loads(plans), redis_url=any_store_url, flush=False) as kit:
        asked = {"output_tokens": 5_000}
        async with kit.reserve("acme", asked, model="small-1", subjects=ADA) as reservation:
            assert reservation.decision.allowed  # USD 0.05 of USD 0.10.
            for model, most in (("small-1", 5_000), ("large-1", 250), ("other", 1_250)):
                assert await fits(kit, most, model)
                assert not await fits(kit, most + 1, model)
            await reservation.capture(answer("small-1", 10_000))
        assert not await fits(kit, 1, "small-1")
        assert (await used_by_ada(kit)).spent_micros == 10_000 * 10
