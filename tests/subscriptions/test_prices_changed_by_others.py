"""I13: usage that waits while a portal, the Dashboard or another program changes its price at Stripe."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from meterkit.customers import states
from meterkit.errors import StoreError
from priced_shop import CATALOG, item_lines, metered_lines, renewed, sell
from shopping import HALF, shop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from shopping import Shop

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
    """What Stripe has taken."""
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


async def test_i13_what_was_sealed_after_the_change_has_the_new_price_and_is_not_late(at: Shop) -> None:
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
async def test_i13_what_stripe_may_have_is_late_only_once_its_summary_lacks_it(
    at: Shop, stripe_has_it: bool
) -> None:
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


async def test_i13_a_look_that_dies_half_way_is_made_again_and_makes_nothing_late_twice(
    at: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await at.kit.record("acme", "tokens", 50)
    await switch(at)
    with monkeypatch.context() as patched:

        async def die(*_: object, **__: object) -> None:
            raise StoreError("dead")

        patched.setattr(states.States, "change", die)
        with pytest.raises(StoreError):
            await at.kit.subscriptions.sync("acme")
    at.clock.advance(timedelta(minutes=3))
    await at.kit.subscriptions.sync("acme")
    assert await late(at) == (50, 0)
    await at.kit.flush(everything=True)
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 500, 5)]
    assert [(units, cents) for _, units, cents in await item_lines(at)] == [(50, 250)]


async def test_usage_waits_while_stripe_does_not_show_the_subscription(at: Shop) -> None:
    await at.kit.record("acme", "tokens", 50)
    await refused(at)
    at.clock.advance(timedelta(minutes=30))
    at.emulator.fail_next("error", status=503, times=None, path=LOOKS)
    await at.kit.flush()
    at.emulator.clear_faults()
    assert await counted(at) == 500
    at.clock.advance(timedelta(minutes=30))
    await at.kit.flush()
    at.emulator.clear_faults()
    assert await counted(at) == 550


async def test_a_key_that_may_not_read_subscriptions_holds_nothing_up(at: Shop) -> None:
    await at.kit.record("acme", "tokens", 50)
    at.clock.advance(timedelta(minutes=30))
    at.emulator.fail_next("error", status=403, times=None, path=LOOKS)
    await at.kit.flush()
    at.emulator.clear_faults()
    assert await counted(at) == 550
