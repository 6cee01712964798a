"""Invoice lines of meters whose units go to Stripe in parts: by derived meters, and by prices by model."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_lines import usage_lines
from meterkit.catalog import Catalog, loads

pytestmark = pytest.mark.anyio

OWN_PRICE = "{included: 2, overage: {bill: {per: 1, amount_cents: CENTS}}}"
NO_PRICE = "{included: 1000, overage: deny}"


def catalog_of(large: str) -> Catalog:
    """A plans file whose meter of large models has this entitlement: its CENTS are 9, later 11."""
    text = """
schema: 1
currency: usd
default_plan: free
billing: {usage: lines}
meters:
  output_tokens: {unit: token, stripe: {event_name: output}}
  large_output: {unit: token, from: output_tokens, where: {model: "*-large"}, stripe: {event_name: large}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      output_tokens: {included: 0, overage: deny}
      large_output: {included: 0, overage: deny}
"""
    for plan, rank, cents, cents_of_large in (("pro", 10, 4, "9"), ("team", 20, 7, "11")):
        text += f"""
  {plan}:
    rank: {rank}
    price: {{amount_cents: 1900, interval: month}}
    meters:
      output_tokens: {{included: 10, overage: {{bill: {{per: 1, amount_cents: {cents}}}}}}}
      large_output: {large.replace("CENTS", cents_of_large)}
"""
    return loads(text)


def answer_of(model: str, tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
    return {"object": "chat.completion", "model": model, "choices": [], "usage": usage}


async def use(at: Shop, small: int, large: int) -> None:
    await at.kit.record_usage("acme", answer_of("our-small", small))
    await at.kit.record_usage("acme", answer_of("our-large", large))


@pytest.mark.parametrize(
    ("large", "prices"),
    [(OWN_PRICE, ("9", "11")), (NO_PRICE, ("4", "7"))],
    ids=["own price", "price of the source"],
)
async def test_each_part_has_the_price_at_which_it_was_recorded(
    store_url: str, large: str, prices: tuple[str, str]
) -> None:
    async with shop(store_url, catalog=catalog_of(large), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await use(at, 30, 5)
        at.clock.set(HALF)
        await at.kit.subscriptions.change_plan("acme", "team")
        await use(at, 2, 3)
        at.go(END + timedelta(minutes=3))
        await at.kit.subscriptions.sync("acme")
        report = await at.kit.flush(everything=True)
        assert (report.lines, report.late) == (4, [])
        shown = {(name, units, price) for name, units, price, _ in await usage_lines(at)}
        of_large = {("Large output", "5", prices[0]), ("Large output", "3", prices[1])}
        assert shown == {("Output tokens", "20", "4"), ("Output tokens", "2", "7")} | of_large


async def test_each_price_by_model_has_a_line(store_url: str) -> None:
    table = '{default: 3 per 1000, models: {"small-*": 1 per 1000, "large-*": 4 per 1000}}'
    text = plans_text("prices_by_model").replace("TABLE", table)
    by_lines = text.replace("default_plan: free\n", "default_plan: free\nbilling: {usage: lines}\n")
    async with shop(store_url, catalog=loads(by_lines), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        for model, tokens in (("small-1", 1_000), ("small-1", 5_000), ("large-1", 2_000), ("other", 1_000)):
            await at.kit.record_usage("acme", answer_of(model, tokens))
        open_cents = (await at.kit.usage("acme"))["meters"]["output_tokens"]["overage_cents"]
        at.go(END + timedelta(minutes=3))
        await at.kit.subscriptions.sync("acme")
        await at.kit.flush(everything=True)
        found = {(units, price, cents) for _, units, price, cents in await usage_lines(at)}
        assert found == {("5000", "0.001", 5), ("2000", "0.004", 8), ("1000", "0.003", 3)}
        assert open_cents == 16
        assert {one.advice for one in await at.kit.reconcile("acme", at=HALF)} == {""}
