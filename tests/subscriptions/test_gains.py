"""Money that is given back buys no quantity: no order of acts includes a month again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.gains import CATALOG, DAY, HOUR, WHOLE, Gainer
from drivers.shop import END, shop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.shop import Shop
    from meterkit.catalog import Catalog

pytestmark = pytest.mark.anyio


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=CATALOG) as opened:
        yield opened


@pytest.mark.parametrize(
    ("catalog", "end"),
    [
        pytest.param(CATALOG, "cancel back", id="prorated, cancel back"),
        pytest.param(WHOLE, "portal invoice", id="whole, portal invoice"),
    ],
)
async def test_a_month_that_was_given_back_is_not_included_again(
    store_url: str, catalog: Catalog, end: str
) -> None:
    async with shop(store_url, catalog=catalog) as at:
        gainer = Gainer(at=at)
        await gainer.do("create pro")
        assert gainer.taken == 1_210
        at.clock.advance(HOUR)
        await gainer.do(end)
        before = gainer.taken
        at.clock.advance(HOUR)
        await gainer.do("create pro")
        assert gainer.taken - before == 2 + 1  # An hour of 720 pays for 1.39 requests and 0.29 credits.
        await gainer.do("wait 744")
        assert gainer.taken - before == 1_210 + 2 + 1


async def test_unused_credit_goes_back_with_the_money(store_url: str) -> None:
    async with shop(store_url, catalog=WHOLE) as at:
        for credits_ in (1, 2):  # One for each hour, of the grant that lives for 61 days.
            await at.subscribed(plan="pro")
            await at.kit.consume("acme", "requests")
            at.clock.advance(HOUR)
            await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
            assert (await at.kit.usage("acme"))["balance"] == {"usd": credits_}
        await at.subscribed(plan="pro")
        assert (await at.kit.usage("acme"))["balance"] == {"usd": 210 + 2}


async def test_a_plan_without_a_price_includes_its_quantity_once(at: Shop) -> None:
    gainer = Gainer(at=at)
    for _ in range(4):
        await gainer.do("create payg")
        at.clock.advance(HOUR)
        await gainer.do("cancel now")
    await gainer.do("create payg")
    assert gainer.taken <= 50 + 4 + 10
    await gainer.do("wait 744")


async def test_a_month_that_was_kept_is_included_again(at: Shop) -> None:
    """The money of two months pays for two months."""
    gainer = Gainer(at=at)
    await gainer.do("create pro")
    for end in ("cancel now", "portal keep"):
        at.clock.advance(DAY)
        before = gainer.taken
        await gainer.do(end)
        await gainer.do("create pro")
        assert gainer.taken - before >= 1_210


async def test_what_was_overdrawn_is_made_up_for_once(at: Shop) -> None:
    """A smaller plan makes up for it over several periods, also where it ends and begins again."""
    await at.subscribed(plan="pro")
    assert (await at.kit.consume("acme", "requests", 252)).allowed
    at.clock.advance(HOUR)
    await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
    await at.subscribed(plan="team")
    given = list[object]()
    for _ in range(4):  # 250 of 252 requests were not paid.
        given.append((await at.kit.usage("acme"))["meters"]["requests"]["included"])
        await at.kit.subscriptions.cancel("acme")
        at.clock.advance(31 * DAY)
        at.emulator.advance()
        await at.kit.subscriptions.sync("acme")
        await at.subscribed(plan="team")
    assert given == [0, 0, 50, 100]


@pytest.mark.parametrize(
    "acts",
    [
        ["create pro", "portal anew", "wait 30", "portal anew", "cancel back", "late cancel", "create pro"],
        [
            "create payg",
            "cancel now",
            "create payg",
            "change pro",
            "late anew",
            "portal invoice",
            "create pro",
        ],
    ],
)
async def test_no_order_of_acts_gives_more_than_the_money_pays_for(at: Shop, acts: list[str]) -> None:
    gainer = Gainer(at=at)
    for act in (*acts, "wait 744"):
        await gainer.do(act)
    assert gainer.taken <= await gainer.paid_for(), gainer.acts


async def test_a_key_that_may_not_read_invoices_is_told_of(
    at: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    gainer = Gainer(at=at)
    await gainer.do("create pro")
    at.clock.advance(HOUR)
    await gainer.portal("invoice")
    at.emulator.fail_next("error", path="/v1/invoices", status=403, times=1)
    await at.kit.subscriptions.sync("acme")
    await gainer.do("create pro")
    assert gainer.taken == 2 * 1_210
    assert "allow the key to read invoices" in caplog.text


async def left(at: Shop) -> int:
    """Included requests that are left; live credits pay for more."""
    usage = await at.kit.usage("acme")
    remaining = usage["meters"]["requests"]["remaining"]
    assert isinstance(remaining, int)
    return remaining - usage["balance"]["usd"]


async def test_the_default_plan_is_included_once_a_month(at: Shop) -> None:
    """Who begins a subscription and ends it again has the rest of the month, not another one."""
    assert (await at.kit.consume("acme", "requests", 7)).allowed
    given = list[int]()
    for plan in ("payg", "pro", "payg"):
        at.clock.advance(HOUR)
        await at.subscribed(plan=plan)
        assert (await at.kit.consume("acme", "requests")).allowed
        at.clock.advance(HOUR)
        await at.kit.subscriptions.cancel("acme", immediately=True, give_back=plan == "pro")
        given.append(await left(at))
        await at.kit.consume("acme", "requests")
    assert given == [3, 2, 1]
    at.clock.set(END)
    assert await left(at) == 10


async def test_a_renewal_that_is_never_collected_is_not_paid(at: Shop) -> None:
    """Stripe stops the collection of a draft if its subscription is canceled."""
    gainer = Gainer(at=at)
    await gainer.do("create pro")
    at.clock.set(END + HOUR / 6)
    await gainer.do("wait 0")
    (draft,) = await at.stripe_list("/v1/invoices", status="draft")
    await at.stripe_change(f"/v1/invoices/{draft['id']}", auto_advance="false")
    await gainer.do("portal keep")
    at.clock.advance(HOUR)
    before = gainer.taken
    await gainer.do("create pro")
    assert gainer.taken - before == 1 + 1
