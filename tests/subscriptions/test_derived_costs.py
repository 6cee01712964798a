"""Usage shows for a derived meter and its source what the invoice charges for them."""

from __future__ import annotations

from typing import Any, Final

import pytest

from drivers.customer_states import closed_period_cents
from drivers.plans import plans_text
from drivers.priced_shop import renewed
from drivers.shop import HALF, Shop, sell_nothing, shop
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("derived_costs")


def answer_of(model: str, tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
    return {"object": "chat.completion", "model": model, "choices": [], "usage": usage}


async def charged_cents(at: Shop) -> int:
    metered = {price["id"] for price in await at.stripe_list("/v1/prices") if price["recurring"].get("meter")}
    return sum(
        line["amount"]
        for invoice in await at.invoices()
        for line in invoice["lines"]["data"]
        if line["pricing"]["price_details"]["price"] in metered
    )


@pytest.mark.parametrize(
    ("large", "then", "granted", "cents"),
    [
        # 10,000 included, then 90,000 at 2 cents a thousand and 100,000 of the large model at 6.
        ("{overage: {bill: {per: 1000, amount_cents: 6}}}", None, 0, 180 + 600),
        ("{included: unlimited}", None, 0, 180 + 200),  # Stripe has the source's price for both.
        ("{overage: {bill: {per: 1000, amount_cents: 6}}}", None, 50_000, 80 + 600),
        # The same again on another plan, at 1 and 4 cents.
        ("{overage: {bill: {per: 1000, amount_cents: 6}}}", "more", 0, 180 + 600 + 100 + 400),
    ],
    ids=["own price", "price of the source", "grant", "change of plan"],
)
async def test_costs_that_are_shown_are_those_of_the_invoice(
    large: str, then: str | None, granted: int, cents: int
) -> None:
    catalog = loads(PLANS.replace("LARGE", large))
    async with shop("memory://", catalog=catalog, selling=sell_nothing, key_prefix=f"{cents}") as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        at.clock.set(HALF)
        if granted:
            await at.kit.grants.add("acme", {"output_tokens": granted}, grant_id="sorry")
        for plan in filter(None, ("pro", then)):
            if plan == then:
                await at.kit.subscriptions.change_plan("acme", plan)
            await at.kit.record_usage("acme", answer_of("our-small", 100_000))
            await at.kit.record_usage("acme", answer_of("our-large", 100_000))
        meters = (await at.kit.usage("acme"))["meters"]
        assert sum(meters[name]["overage_cents"] or 0 for name in catalog.meters) == cents
        period = (await at.kit.usage("acme"))["period"]
        await at.kit.flush(everything=True)
        await renewed(at)
        assert await charged_cents(at) == cents
        ended = await at.kit.usage("acme", period=period["start"])
        assert await closed_period_cents(at.kit, ended) == cents
