"""F-223: a plan that changes within a period gives what its share of the period pays for."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.plans import plans_text
from drivers.priced_shop import metered_lines, renewed
from drivers.shop import END, HALF, shop
from meterkit.catalog import loads

if TYPE_CHECKING:
    from drivers.shop import Shop

pytestmark = pytest.mark.anyio

HOUR: Final = timedelta(hours=1)
PLANS: Final = plans_text("allowance")
CATALOG: Final = loads(PLANS)
AT_ONCE: Final = loads(PLANS + "billing: {changes: {downgrade: now}}\n")
WHOLE: Final = loads(PLANS + "billing: {changes: {downgrade: now, allowance: whole}}\n")


async def given(at: Shop, customer: str = "acme") -> tuple[Any, Any, int]:
    """Included requests and tokens, and the balance of credits."""
    usage = await at.kit.usage(customer)
    meters = usage["meters"]
    return meters["requests"]["included"], meters["tokens"]["included"], usage["balance"]["usd"]


async def change(at: Shop, plan: str, when: datetime | None = None) -> None:
    if when is not None:
        at.clock.set(when)
    await at.kit.subscriptions.change_plan("acme", plan)


async def test_an_upgrade_adds_its_share_of_the_time_left(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG) as at:
        await at.subscribed(plan="team")
        assert await given(at) == (100, 100, 20)
        await change(at, "pro", HALF)
        assert await given(at) == (550, 550, 100)
        assert (await at.kit.consume("acme", "requests", 530)).remaining == 20 + 100
        await at.kit.record("acme", "tokens", 560)
        tokens = (await at.kit.usage("acme"))["meters"]["tokens"]
        assert (tokens["overage"], tokens["overage_cents"]) == (10, 20)
        await at.kit.flush(everything=True)
        at.clock.set(END)
        assert await given(at) == (1_000, 1_000, 180)  # Before any webhook.
        await renewed(at)
        assert [invoice["total"] for invoice in await at.invoices()] == [1500, 700, 2900 + 20]
        assert await metered_lines(at) == [("price_pro_ai_tokens", 10, 2)]


async def test_the_whole_allowance_is_had_where_the_plans_file_says_so(store_url: str) -> None:
    async with shop(store_url, catalog=WHOLE) as at:
        await at.subscribed(plan="team")
        await change(at, "pro", END - HOUR)
        assert await given(at) == (1_000, 1_000, 180)


async def test_a_downgrade_at_once_takes_back_unused_credit_only(store_url: str) -> None:
    async with shop(store_url, catalog=AT_ONCE) as at:
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "requests", 1_030)  # 30 of them paid with credit.
        assert await given(at) == (1_000, 1_000, 150)
        await change(at, "team", HALF)
        # Half of 180 and half of 20 are 100; 30 are used.
        assert await given(at) == (550, 550, 70)
        used = (await at.kit.usage("acme"))["meters"]["requests"]
        assert (used["recorded"], used["remaining"]) == (1_030, 70)
        grants = await at.kit.grants.list("acme")
        assert [(grant.quantity, grant.remaining) for grant in grants] == [(100, 70)]
        assert not (await at.kit.consume("acme", "requests", 71)).allowed
        assert (await at.kit.consume("acme", "requests")).allowed
        at.clock.set(END)
        await at.kit.record("acme", "requests", 101)  # One beyond what the next period includes.
        lines = await at.kit.grants.ledger("acme")
        june = [(line.entry, line.quantity // 10**6) for line in lines if "06-01" in line.grant_id]
        assert sorted(june) == [("adjustment", -80), ("burn", -31), ("expire", -69), ("grant", 180)]


async def test_usage_without_a_limit_counts_as_included(
    store_url: str,
) -> None:
    async with shop(store_url, catalog=AT_ONCE) as at:
        await at.subscribed(plan="endless")
        await at.kit.record("acme", "requests", 7_000)
        assert (await given(at))[:2] == ("unlimited", 4_000)
        await change(at, "pro", HALF)
        assert await given(at) == (7_500, 2_500, 90)
        usage = await at.kit.usage("acme")
        assert usage["meters"]["requests"]["remaining"] == 500 + 90
        await change(at, "endless", HALF + HOUR)
        assert (await given(at))[0] == "unlimited"


async def test_a_portal_switch_counts_from_stripes_second(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG) as at:
        begun = await at.subscribed(plan="team")
        at.clock.set(HALF)
        items = (await at.stripe_subscription(begun.id))["items"]["data"]
        item = next(one["id"] for one in items if one["price"]["id"] == "price_team")
        await at.stripe_change(f"/v1/subscription_items/{item}", price="price_pro")
        at.clock.set(HALF + 9 * HOUR)
        await at.stripe_change(f"/v1/subscriptions/{begun.id}", description="Later")
        at.clock.set(END - HOUR)
        await at.kit.subscriptions.sync("acme")
        assert await given(at) == (550, 550, 100)
