"""A balance in money that ends below zero: what is owed, and which grants repay it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


pytestmark = pytest.mark.anyio

NOW: Final = datetime(2031, 6, 10, 12, tzinfo=UTC)
DOLLAR: Final = 1_000_000
PLANS: Final = """
schema: 1
currency: usd
default_plan: payg
anonymous: {plan: payg, by: ip}
meters:
  input_tokens: {unit: token}
  words: {unit: word}
credits:
  usd: {unit: money, costs: {tokens: provider_prices}, low_balance: 20%}
  ai: {costs: {words: 1 per 10}}
plans:
  payg: {price: {amount_cents: 0, interval: month}, meters: {words: {included: 0, overage: deny}}}
  pro:
    extends: payg
    price: {amount_cents: 2000, interval: month}
    grants: [{credit: usd, quantity: 15, every: period}]
  within:
    extends: payg
    meters: {usd_charged: {included: 5_000_000}}
"""


@asynccontextmanager
async def kit_on(url: str, **settings: Any) -> AsyncGenerator[tuple[MeterKit, Clock]]:
    clock = Clock(NOW)
    async with MeterKit(loads(PLANS), clock=clock, redis_url=url, flush=False, **settings) as kit:
        yield kit, clock


async def charge(kit: MeterKit, micros: int, customer: str = "ada") -> None:
    await kit.record(customer, "usd_charged", micros)


async def give(kit: MeterKit, dollars: int, grant_id: str, customer: str = "ada", **terms: Any) -> None:
    await kit.grants.add(customer, {"usd": dollars}, grant_id=grant_id, **terms)


async def balance(kit: MeterKit, customer: str = "ada") -> int:
    """In micro-dollars, and as all that is shown agrees on."""
    usage = await kit.usage(customer)
    found = usage["balance_micros"]["usd"]
    assert usage["balance"]["usd"] == found // DOLLAR
    lines = [line for line in await kit.grants.ledger(customer) if line.name == "usd"]
    pending = [grant for grant in await kit.grants.list(customer) if grant.status == "pending"]
    assert sum(line.quantity for line in lines) == found + DOLLAR * sum(grant.remaining for grant in pending)
    row = usage["meters"]["usd_charged"]
    included = row["included"]
    assert included != "unlimited"
    assert row["remaining"] == max(0, max(0, included - row["recorded"]) + found - row["held"])
    assert (row["overage"], row["over_cap"]) == (0, 0)
    assert (await kit.check(customer, "usd_charged")).allowed == bool(row["remaining"])
    return found


async def lines(kit: MeterKit) -> set[tuple[str, str, int]]:
    return {(one.entry, one.grant_id, one.quantity) for one in await kit.grants.ledger("ada")}


async def test_the_next_grant_first_repays_the_debt(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _):
        await give(kit, 1, "first")
        for _ in range(20):
            await charge(kit, 1_820_000)
        assert await balance(kit) == -35_400_000
        refused = await kit.check("ada", "usd_charged")
        assert (refused.reason, refused.remaining) == ("credits", 0)
        await give(kit, 40, "second")
        assert await balance(kit) == 4_600_000
        await charge(kit, 600_000)
        assert await balance(kit) == 4_000_000
        assert await lines(kit) == {
            ("grant", "first", DOLLAR),
            ("burn", "first", -DOLLAR),
            ("debt", "", -35_400_000),
            ("grant", "second", 40 * DOLLAR),
            ("repayment", "second", -35_400_000),
            ("repayment", "", 35_400_000),
            ("burn", "second", -600_000),
        }


async def test_grants_of_the_plan_repay_while_requests_are_refused(store_url: str) -> None:
    async with kit_on(store_url) as (kit, clock):
        await kit.customers.set_plan("ada", "pro")
        await charge(kit, 55 * DOLLAR)
        assert await balance(kit) == -40 * DOLLAR
        for left in (-25, -10, 5):
            clock.advance(timedelta(days=31))
            assert await balance(kit) == left * DOLLAR
        await kit.customers.set_plan("ada", "payg")
        assert await balance(kit) == 5 * DOLLAR


async def test_consuming_and_reserving_spend_no_more_than_the_balance(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _):
        await give(kit, 1, "first")
        assert (await kit.consume("ada", "usd_charged", DOLLAR)).allowed
        assert not (await kit.consume("ada", "usd_charged", 1)).allowed
        assert await balance(kit) == 0
        await give(kit, 1, "second")
        async with kit.reserve("ada", {"usd_charged": DOLLAR}) as reservation:
            assert reservation.decision.allowed
            await reservation.capture({"usd_charged": 3 * DOLLAR})
        assert await balance(kit) == -2 * DOLLAR
        async with kit.reserve("ada", {"usd_charged": 1}) as reservation:
            assert not reservation.decision.allowed
        assert not (await kit.consume("ada", "usd_charged", 1)).allowed


async def test_nothing_is_owed_in_shadow(store_url: str) -> None:
    async with kit_on(store_url, enforcement="shadow") as (kit, _):
        await give(kit, 1, "first")
        await charge(kit, 3 * DOLLAR)
        usage = await kit.usage("ada")
        assert (usage["balance_micros"]["usd"], usage["meters"]["usd_charged"]["overage"]) == (0, 2 * DOLLAR)
