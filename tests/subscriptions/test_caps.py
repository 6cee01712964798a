"""A cap bounds the bill: units over it are recorded and counted apart, and reach no invoice."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

import meterkit
from drivers.plans import plans_text
from drivers.priced_shop import renewed
from drivers.shop import HALF, sell_nothing, shop
from meterkit import MeterMiddleware, identify
from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

    from drivers.shop import Shop

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("caps")
CATALOG: Final = loads(PLANS)


async def begin(at: Shop, plan: str = "pro") -> None:
    await at.kit.stripe.sync()
    await at.subscribed(plan=plan)
    at.clock.set(HALF)


async def charged(at: Shop) -> list[tuple[int, int]]:
    """Units and cents of each line of usage on all invoices, once the period is over."""
    await at.kit.flush(everything=True)
    await renewed(at)
    metered = {price["id"] for price in await at.stripe_list("/v1/prices") if price["recurring"].get("meter")}
    lines = [
        line
        for invoice in await at.invoices()
        for line in await at.stripe_list(f"/v1/invoices/{invoice['id']}/lines")
    ]
    found = [
        (int(line["quantity_decimal"]), line["amount"])
        for line in lines
        if line["pricing"]["price_details"]["price"] in metered
    ]
    return [(units, cents) for units, cents in found if units]


def sent(at: Shop, event_name: str) -> int:
    return sum(int(one.value) for one in at.emulator.events if one.counted and one.event_name == event_name)


async def counted(at: Shop, meter: str = "words") -> tuple[int, int, int]:
    """Recorded units, of these the overage, and those over the cap."""
    found = (await at.kit.usage("acme"))["meters"][meter]
    return found["recorded"], found["overage"], found["over_cap"]


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing) as opened:
        yield opened


async def test_ten_requests_at_once_bill_no_more_than_the_cap(store_url: str) -> None:
    together = asyncio.Barrier(10)

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await together.wait()
        meterkit.record(words=50_000)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with shop(store_url, catalog=CATALOG, selling=sell_nothing) as at:
        await begin(at)
        wrapped = MeterMiddleware(app, kit=at.kit, identify=identify.header("x-customer-id"))
        transport = httpx.ASGITransport(app=wrapped)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            asked = (client.get("/", headers={"x-customer-id": "acme"}) for _ in range(10))
            answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {200}
        assert await counted(at) == (500_000, 100_000, 399_000)
        assert (await at.kit.usage("acme"))["meters"]["words"]["overage_cents"] == 1_200
        assert (await at.kit.check("acme", "words")).reason == "cap"
        assert await charged(at) == [(100_000, 1_200)]
        assert all(one.agrees for one in await at.kit.reconcile("acme", at=HALF))


@pytest.mark.parametrize("parts", [[50_000], [1_000, 4_999, 2, 43_999], [5_000] * 10])
async def test_what_is_recorded_at_once_or_in_parts_costs_the_same(at: Shop, parts: list[int]) -> None:
    await begin(at, "small")
    for quantity in parts:
        await at.kit.record("acme", "words", quantity)
    assert await counted(at) == (50_000, 5_000, 44_000)
    assert await charged(at) == [(5_000, 60)]


@pytest.mark.parametrize(
    ("change", "more", "lines"),
    [
        ("twice", 150_000, [(5_000, 60), (150_000, 3_600)]),
        ("twice", 300_000, [(5_000, 60), (195_000, 4_680)]),
        ("override", 300, [(5_300, 64)]),
    ],
)
async def test_a_higher_cap_bills_what_is_recorded_from_then_on(
    store_url: str, change: str, more: int, lines: list[tuple[int, int]]
) -> None:
    # Plans that bill a meter with `report: usage` change at the period's end.
    catalog = loads(PLANS.replace(", report: usage", ""))
    async with shop(store_url, catalog=catalog, selling=sell_nothing) as at:
        await begin(at, "small")
        await at.kit.record("acme", "words", 9_000)
        if change == "override":
            await at.kit.customers.override("acme", {"words": {"overage": {"bill": {"cap": 7_000}}}})
        else:
            await at.kit.subscriptions.change_plan("acme", change)
        await at.kit.record("acme", "words", more)
        recorded, overage, _ = await counted(at)
        assert (recorded, overage) == (9_000 + more, sum(units for units, _ in lines))
        assert sorted(await charged(at)) == lines


async def test_late_usage_fills_the_cap_of_the_period_that_bills_it(at: Shop) -> None:
    await begin(at, "small")
    await at.kit.record("acme", "words", 11_000)
    assert await charged(at) == [(5_000, 60)]
    at.clock.advance(timedelta(days=1))
    await at.kit.record("acme", "words", 4_000)
    await at.kit.record("acme", "words", 7_000, occurred_at=HALF)
    assert await counted(at) == (11_000, 5_000, 5_000)
    before = (await at.kit.usage("acme", period=HALF))["meters"]["words"]
    assert (before["recorded"], before["over_cap"], before["late"]) == (11_000, 5_000, 7_000)
    await at.kit.flush(everything=True)
    assert sent(at, "words") == 10_000


async def test_a_correction_takes_units_over_the_cap_first(at: Shop) -> None:
    await begin(at, "small")
    await at.kit.record("acme", "words", 8_000)
    await at.kit.flush(everything=True)
    at.clock.advance(timedelta(minutes=9))
    (first,) = await at.kit.correct("acme", {"words": 1_500}, reason="a loop", correction_id="c-1")
    assert (first.taken_back, first.over_cap, first.overage) == (1_500, 1_500, 0)
    (second,) = await at.kit.correct("acme", {"words": 1_500}, reason="a loop", correction_id="c-2")
    assert (second.taken_back, second.over_cap, second.overage, second.sent_back) == (
        1_500,
        500,
        1_000,
        1_000,
    )
    assert await counted(at) == (5_000, 4_000, 0)
    assert await charged(at) == [(4_000, 48)]


async def test_grants_and_credits_pay_before_the_cap_is_reached(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing) as at:
        await begin(at, "small")
        await at.kit.grants.add("acme", {"words": 300, "ai": 2}, grant_id="gift")
        await at.kit.record("acme", "words", 1_000 + 300 + 2_000 + 5_000 + 7)
        assert await counted(at) == (8_307, 5_000, 7)
        await at.kit.grants.add("acme", {"words": 10}, grant_id="later")
        await at.kit.record("acme", "words", 12)
        assert await counted(at) == (8_319, 5_000, 9)
        assert await charged(at) == [(5_000, 60)]


async def use(at: Shop, model: str, **tokens: int) -> None:
    usage = {"prompt_tokens": tokens.get("input", 0), "completion_tokens": tokens.get("output", 0)}
    answer: dict[str, Any] = {"object": "chat.completion", "model": model, "choices": [], "usage": usage}
    await at.kit.record_usage("acme", answer)


async def test_prices_by_model_share_one_cap(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing) as at:
        await begin(at)
        await use(at, "opus", input=3_000)
        await use(at, "mini", input=6_000)
        await use(at, "opus", input=500)
        assert await counted(at, "input_tokens") == (9_500, 5_000, 4_500)
        assert (await at.kit.usage("acme"))["meters"]["input_tokens"]["overage_cents"] == 300 + 20
        assert sorted(await charged(at)) == [(2_000, 20), (3_000, 300)]
