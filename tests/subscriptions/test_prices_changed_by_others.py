"""I13: usage that waits while a portal, the Dashboard or another program changes its price at Stripe."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.priced_shop import CATALOG, item_lines, metered_lines, renewed, sell
from drivers.shop import END, HALF, START, shop
from faults.inner_steps import failing
from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.shop import Shop

pytestmark = pytest.mark.anyio

GATHERED: Final = timedelta(seconds=310)
LOOKS: Final = "/v1/subscriptions"


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    """A shop with a subscriber who has 500 units of overage at 5 cents that Stripe has counted."""
    async with shop(store_url, catalog=CATALOG, selling=sell) as opened:
        await opened.subscribed(plan="basic")
        opened.clock.set(HALF + timedelta(seconds=20))
        await opened.kit.record("acme", "tokens", 600)
        await opened.kit.flush(everything=True)
        opened.clock.advance(timedelta(minutes=5))
        yield opened


async def switch(at: Shop) -> None:
    """Change the price from 5 to 3 cents past the kit, of which no webhook tells."""
    (begun,) = await at.stripe_list("/v1/subscriptions")
    items = {item["price"]["id"]: item["id"] for item in begun["items"]["data"]}
    prices = {"price_basic": "price_cheaper", "price_basic_tokens": "price_cheaper_tokens"}
    changed: dict[str, str] = {}
    for place, (old, new) in enumerate(prices.items()):
        changed |= {f"items[{place}][id]": items[old], f"items[{place}][price]": new}
    await at.stripe_change(f"/v1/subscriptions/{begun['id']}", **changed)


async def refused(at: Shop) -> None:
    """What is pending is sealed, and Stripe refuses it for the moment."""
    at.clock.advance(GATHERED)
    at.emulator.fail_next("error", status=429, times=None)
    at.emulator.fail_next("error", status=503, times=None, path=LOOKS)
    await at.kit.flush()
    at.emulator.clear_faults()


async def counted(at: Shop) -> int:
    (begun,) = await at.stripe_list("/v1/subscriptions")
    return int(at.emulator.accepted(begun["customer"], "ai_tokens"))


async def late(at: Shop) -> tuple[int, int]:
    """Units of the period that are late; of those of tokens that are pending or on their way."""
    tokens = (await at.kit.usage("acme"))["meters"]["tokens"]
    return tokens["late"], tokens["pending"]


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_i13_usage_that_has_waited_is_sent_after_a_look(
    at: Shop, is_sealed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await at.kit.record("acme", "tokens", 50)
    if is_sealed:
        await refused(at)
    at.clock.advance(timedelta(minutes=30))
    await switch(at)
    at.clock.advance(timedelta(minutes=30))
    at.emulator.clear_faults()
    await at.kit.flush(everything=True)
    assert "50 units of tokens that customer 'acme' used at USD 0.05 each were not delivered" in caplog.text
    assert "an invoice item bills them at that price" in caplog.text
    assert await late(at) == (50, 0)
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 500, 5)]
    assert await item_lines(at) == [("Tokens, 50 units of 1\N{EN DASH}16 Jun 2031", 50, 250)]


async def test_i13_usage_sealed_after_the_change_has_the_new_price(at: Shop) -> None:
    for quantity in (50, 20, 7):  # Before the change; around it; after it.
        await at.kit.record("acme", "tokens", quantity)
        if quantity == 20:
            await switch(at)
        await refused(at)
    at.emulator.clear_faults()
    await at.kit.flush(everything=True)
    assert await late(at) == (70, 0)
    await renewed(at)
    cheaper = sum(units for price, units, _ in await metered_lines(at) if price == "price_cheaper_tokens")
    assert cheaper == 7
    assert [(units, cents) for _, units, cents in await item_lines(at)] == [(70, 350)]


@pytest.mark.parametrize("stripe_has_it", [True, False])
async def test_i13_usage_in_doubt_is_late_once_its_summary_lacks_it(at: Shop, stripe_has_it: bool) -> None:
    await at.kit.record("acme", "tokens", 50)
    at.clock.advance(GATHERED)
    at.emulator.fail_next("drop", when="after" if stripe_has_it else "before", times=1)
    await at.kit.flush()
    at.clock.advance(timedelta(minutes=30))
    await switch(at)
    await at.kit.subscriptions.sync("acme")
    await at.kit.flush(everything=True, timeout_s=0.1)
    assert await late(at) == (0, 0)  # Nobody knows yet.
    for _ in range(2):
        at.clock.advance(timedelta(hours=26))
        await at.kit.flush(everything=True)
    assert await late(at) == (0 if stripe_has_it else 50, 0)
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 550 if stripe_has_it else 500, 5)]
    items = [(units, cents) for _, units, cents in await item_lines(at)]
    assert items == ([] if stripe_has_it else [(50, 250)])


async def test_i13_an_interrupted_look_makes_nothing_late_twice(at: Shop) -> None:
    await at.kit.record("acme", "tokens", 50)
    await switch(at)
    with failing("a state is stored"), pytest.raises(StoreError):
        await at.kit.subscriptions.sync("acme")
    at.clock.advance(timedelta(minutes=3))
    await at.kit.subscriptions.sync("acme")
    assert await late(at) == (50, 0)
    await at.kit.flush(everything=True)
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 500, 5)]
    assert [(units, cents) for _, units, cents in await item_lines(at)] == [(50, 250)]


async def test_a_key_that_may_not_read_subscriptions_holds_nothing_up(at: Shop) -> None:
    await at.kit.record("acme", "tokens", 50)
    at.clock.advance(timedelta(minutes=30))
    at.emulator.fail_next("error", status=403, times=None, path=LOOKS)
    await at.kit.flush()
    at.emulator.clear_faults()
    assert await counted(at) == 550


@pytest.mark.parametrize("ago", [timedelta(hours=1), timedelta(seconds=1), -timedelta(minutes=10)])
async def test_i13_pending_usage_of_a_closed_period_keeps_its_price(at: Shop, ago: timedelta) -> None:
    """F-226: webhook and worker were late, and the draft had the price of the portal, or no line at all."""
    at.clock.set(END - timedelta(minutes=3) - max(ago, timedelta()))
    await at.kit.record("acme", "tokens", 50)
    at.clock.set(END - ago)
    at.emulator.advance()
    await switch(at)
    at.clock.set(END + timedelta(minutes=20))
    at.emulator.advance()
    await at.kit.record("acme", "tokens", 10)
    await at.kit.flush(everything=True)
    at.clock.set(END + timedelta(hours=2))
    at.emulator.advance()
    at.clock.set(END + timedelta(days=31))
    at.emulator.advance()
    assert await metered_lines(at) == [("price_basic_tokens", 500, 5)]
    assert [(units, cents) for _, units, cents in await item_lines(at)] == [(50, 250)]
    assert all(one.agrees for one in await at.kit.reconcile("acme", at=HALF))


async def test_i13_a_correction_unknown_at_a_price_change_is_undone(
    at: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """F-222: units were shown as taken back, and their line or their invoice item billed them."""
    await at.kit.record("acme", "tokens", 20)
    await refused(at)
    at.clock.advance(timedelta(minutes=2))
    (first,) = await at.kit.correct("acme", {"tokens": 50}, reason="a loop", correction_id="c-1")
    assert (first.taken_back, first.by_hand) == (50, 0)
    await switch(at)
    at.clock.advance(timedelta(minutes=2))
    await at.kit.subscriptions.sync("acme")
    # Of 50 units Stripe did not have 20, and no invoice bills these.
    usage = (await at.kit.usage("acme"))["meters"]["tokens"]
    assert (usage["overage"], usage["overage_cents"], usage["late"]) == (500, 2_500, 0)
    assert (
        "a correction took back 30 units of tokens that customer 'acme' used at USD 0.05 each" in caplog.text
    )
    at.clock.advance(timedelta(minutes=5))
    await at.kit.flush(everything=True)
    (again,) = await at.kit.correct("acme", {"tokens": 30}, reason="a loop", correction_id="c-2")
    assert (again.taken_back, again.by_hand, again.by_hand_cents) == (0, 30, 150)
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 500, 5)]
    assert await item_lines(at) == []
    assert all(one.agrees for one in await at.kit.reconcile("acme", at=HALF))


async def test_i13_pending_units_that_are_taken_back_are_not_sent(
    at: Shop,
) -> None:
    """As many units are pending as a correction takes back that Stripe does not have: neither is sent."""
    (first,) = await at.kit.correct("acme", {"tokens": 30}, reason="a loop", correction_id="c-1")
    assert (first.taken_back, first.by_hand) == (30, 0)
    await at.kit.record("acme", "tokens", 30)
    await switch(at)
    at.clock.advance(timedelta(minutes=2))
    await at.kit.subscriptions.sync("acme")
    assert await late(at) == (0, 0)
    at.clock.advance(timedelta(minutes=5))
    await at.kit.flush(everything=True)
    assert await counted(at) == 500
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 500, 5)]
    assert await item_lines(at) == []
    assert all(one.agrees for one in await at.kit.reconcile("acme", at=HALF))


async def test_i13_each_invoice_item_says_its_own_period(at: Shop) -> None:
    at.clock.set(END - timedelta(minutes=3))
    await at.kit.record("acme", "tokens", 50)
    at.clock.set(END + timedelta(minutes=10))
    at.emulator.advance()
    await at.kit.record("acme", "tokens", 110)
    await switch(at)
    changed = int(at.clock())
    await at.kit.subscriptions.sync("acme")
    at.clock.advance(timedelta(minutes=2))
    await at.kit.flush(everything=True)
    items = await at.stripe_list("/v1/invoiceitems")
    spans = sorted(
        (one["period"]["start"], one["period"]["end"], int(float(one["quantity_decimal"])))
        for one in items
        if one["metadata"].get("meterkit_meter") == "tokens"
    )
    ended, began = int(END.timestamp()), int(START.timestamp())
    assert spans == [(began, ended, 50), (ended, changed, 10)]
