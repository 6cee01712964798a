"""F-223: a plan that changes within a period gives what its share of the period pays for."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.plans import plans_text
from drivers.priced_shop import metered_lines, renewed
from drivers.shop import END, HALF, shop
from meterkit import MeterKit
from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

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


@asynccontextmanager
async def process_of(at: Shop, store_url: str) -> AsyncGenerator[MeterKit]:
    """Another process on the same store."""
    catalog = at.kit.store.catalog
    async with MeterKit(
        catalog, clock=at.clock, redis_url=store_url, flush=False, shards=4, store_timeout=10.0
    ) as kit:
        yield kit


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
        at.clock.set(END)
        at.emulator.advance()
        assert await given(at) == (1_000, 1_000, 180)
        assert [invoice["total"] for invoice in await at.invoices()] == [1500, 700, 2900]


async def test_an_upgrade_in_the_last_hour_gives_an_hour_of_credit(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG) as at:
        await at.subscribed(plan="team")
        await change(at, "pro", END - HOUR)
        # 720 hours: 719 of team, one of pro.
        assert await given(at) == (102, 102, 21)


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


async def test_a_portal_switch_counts_from_stripes_second(
    store_url: str,
) -> None:
    async with shop(store_url, catalog=CATALOG) as at:
        begun = await at.subscribed(plan="team")
        at.clock.set(HALF)
        (item,) = [
            one["id"]
            for one in (await at.stripe_subscription(begun.id))["items"]["data"]
            if one["price"]["id"] == "price_team"
        ]
        await at.stripe_change(f"/v1/subscription_items/{item}", price="price_pro")
        at.clock.set(END - HOUR)
        await at.kit.subscriptions.sync("acme")
        assert await given(at) == (550, 550, 100)


async def test_another_process_sees_it_with_its_first_call(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG) as at, process_of(at, store_url) as other:
        await at.subscribed(plan="team")
        await at.kit.record("acme", "requests", 120)  # All that is included, and all the credit.
        assert not (await other.check("acme", "requests")).allowed
        await change(at, "pro", HALF)
        assert (await other.check("acme", "requests", 450 + 80)).allowed
        assert not (await other.check("acme", "requests", 450 + 80 + 1)).allowed


async def test_overage_begins_where_the_prorated_quantity_ends(
    store_url: str,
) -> None:
    async with shop(store_url, catalog=CATALOG) as at:
        await at.subscribed(plan="team")
        await change(at, "pro", HALF)
        await at.kit.record("acme", "tokens", 560)
        usage = (await at.kit.usage("acme"))["meters"]["tokens"]
        assert (usage["included"], usage["overage"], usage["overage_cents"]) == (550, 10, 20)
        await at.kit.flush(everything=True)
        await renewed(at)
        assert await metered_lines(at) == [("price_pro_ai_tokens", 10, 2)]


async def test_the_next_period_is_whole_before_any_webhook(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG) as at:
        await at.subscribed(plan="team")
        await change(at, "pro", HALF)
        assert (await at.kit.check("acme", "requests", 650)).allowed
        at.clock.set(END)
        assert (await at.kit.check("acme", "requests", 1_180)).allowed
        assert await given(at) == (1_000, 1_000, 180)
        await at.kit.record("acme", "requests", 1_001)
        assert (await given(at))[2] == 179


async def test_a_cancellation_ahead_changes_nothing_of_the_period(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG) as at:
        begun = await at.subscribed(plan="team")
        await change(at, "pro", HALF)
        soon = int((HALF + timedelta(days=5)).timestamp())
        await at.stripe_change(
            f"/v1/subscriptions/{begun.id}", cancel_at=str(soon), proration_behavior="none"
        )
        await at.kit.subscriptions.sync("acme")
        assert await given(at) == (550, 550, 100)


async def test_limits_that_clients_see_go_by_the_prorated_quantity(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG) as at:
        await at.subscribed(plan="team")
        await change(at, "pro", HALF)
        decision = await at.kit.consume("acme", "requests", 530)
        assert decision.remaining == 20 + 100
