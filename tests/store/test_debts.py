"""A balance in money that ends below zero: what is owed, and which grants repay it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import until
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from meterkit import CreditsLow

pytestmark = pytest.mark.anyio

NOW: Final = datetime(2031, 6, 10, 12, tzinfo=UTC)
DAY: Final = timedelta(days=1)
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


async def test_the_next_grant_first_repays_what_was_used_beyond_the_balance(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, _):
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


async def test_a_grant_smaller_than_the_debt_leaves_the_rest_owed(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, _):
        await give(kit, 1, "first")
        await charge(kit, 36_000_001)
        for nth, left in enumerate((-25_000_001, -15_000_001, -5_000_001)):
            await give(kit, 10, f"small {nth}")
            assert await balance(kit) == left
            assert (await kit.grants.list("ada"))[0].status == "used_up"
        await charge(kit, 1)
        assert await balance(kit) == -5_000_002


async def test_use_before_the_first_grant_is_owed(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, _):
        await charge(kit, 3 * DOLLAR)
        assert await balance(kit) == -3 * DOLLAR
        await give(kit, 10, "first")
        assert await balance(kit) == 7 * DOLLAR


async def test_a_void_grant_takes_back_nothing_of_what_it_repaid(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, _):
        await charge(kit, 30 * DOLLAR)
        await give(kit, 40, "paid")
        await kit.grants.void("ada", "paid")
        assert await balance(kit) == 0
        await give(kit, 5, "next")
        await charge(kit, 6 * DOLLAR)
        await kit.grants.void("ada", "next")
        assert await balance(kit) == -DOLLAR


async def test_a_grant_repays_when_it_comes_into_effect_and_not_before(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, clock):
        await charge(kit, 3 * DOLLAR)
        await give(kit, 10, "voided", effective_at=NOW + DAY)
        await give(kit, 2, "later", effective_at=NOW + DAY, expires_at=NOW + 2 * DAY)
        assert await balance(kit) == -3 * DOLLAR
        await kit.grants.void("ada", "voided")
        assert await balance(kit) == -3 * DOLLAR
        clock.advance(DAY)
        assert await balance(kit) == -DOLLAR


@pytest.mark.parametrize("is_asked", [False, True])
async def test_a_grant_that_has_expired_meanwhile_has_repaid(any_store_url: str, *, is_asked: bool) -> None:
    async with kit_on(any_store_url) as (kit, clock):
        await charge(kit, 3 * DOLLAR)
        await give(kit, 10, "short", expires_at=NOW + DAY)
        if is_asked:
            assert (await kit.check("ada", "usd_charged")).allowed
        clock.advance(2 * DAY)
        assert await balance(kit) == 0
        await give(kit, 1, "next")
        assert await balance(kit) == DOLLAR
        await charge(kit, DOLLAR // 2)
        assert await balance(kit) == DOLLAR // 2


async def test_what_expired_before_the_debt_arose_repays_nothing(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, clock):
        await give(kit, 10, "short", expires_at=NOW + DAY)
        clock.advance(DAY)
        await charge(kit, 3 * DOLLAR)
        assert await balance(kit) == -3 * DOLLAR


async def test_each_grant_of_the_plan_repays_also_while_every_request_is_refused(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, clock):
        await kit.customers.set_plan("ada", "pro")
        await charge(kit, 55 * DOLLAR)
        assert await balance(kit) == -40 * DOLLAR
        for left in (-25, -10, 5):
            clock.advance(timedelta(days=31))
            assert await balance(kit) == left * DOLLAR
        await kit.customers.set_plan("ada", "payg")
        assert await balance(kit) == 5 * DOLLAR


async def test_another_plan_keeps_the_debt(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, clock):
        await charge(kit, 5 * DOLLAR)
        await kit.customers.set_plan("ada", "pro")
        assert await balance(kit) == 10 * DOLLAR
        await charge(kit, 12 * DOLLAR)
        await kit.customers.set_plan("ada", "payg")
        clock.advance(timedelta(days=62))
        assert await balance(kit) == -2 * DOLLAR


async def test_what_is_included_is_admitted_less_what_is_owed(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, clock):
        await kit.customers.set_plan("ada", "within")
        await charge(kit, 7 * DOLLAR)
        assert await balance(kit) == -2 * DOLLAR
        clock.advance(timedelta(days=31))
        assert await balance(kit) == -2 * DOLLAR
        assert not (await kit.check("ada", "usd_charged", 3 * DOLLAR + 1)).allowed
        assert (await kit.check("ada", "usd_charged", 3 * DOLLAR)).allowed
        await charge(kit, 4 * DOLLAR)
        assert await balance(kit) == -2 * DOLLAR


async def test_grants_of_another_credit_repay_nothing_and_owe_nothing(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, _):
        await charge(kit, DOLLAR)
        await kit.grants.add("ada", {"ai": 7, "words": 3}, grant_id="others")
        assert await balance(kit) == -DOLLAR
        await kit.record("ada", "words", 100)
        usage = await kit.usage("ada")
        assert usage["balance"] == {"usd": -1, "ai": 0}
        assert usage["meters"]["words"]["overage"] == 27


async def test_a_correction_first_lowers_the_debt_then_what_repaid_it_then_what_paid(
    any_store_url: str,
) -> None:
    async with kit_on(any_store_url) as (kit, _):

        async def correct(micros: int, correction_id: str) -> Mapping[str, int]:
            await kit.correct("ada", {"usd_charged": micros}, reason="wrong", correction_id=correction_id)
            return {grant.grant_id: grant.remaining for grant in await kit.grants.list("ada")}

        await give(kit, 2, "first")
        await charge(kit, 10 * DOLLAR)
        await give(kit, 5, "second")
        assert await balance(kit) == -3 * DOLLAR
        assert await correct(DOLLAR, "c1") == {"first": 0, "second": 0}
        assert await balance(kit) == -2 * DOLLAR
        assert await correct(4 * DOLLAR, "c2") == {"first": 0, "second": 2}
        assert await balance(kit) == 2 * DOLLAR
        assert await correct(4 * DOLLAR, "c3") == {"first": 1, "second": 5}
        assert await balance(kit) == 6 * DOLLAR
        assert await correct(5 * DOLLAR, "c4") == {"first": 2, "second": 5}
        assert await balance(kit) == 7 * DOLLAR


async def test_consuming_and_reserving_spend_no_more_than_the_balance(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, _):
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


async def test_racing_charges_and_grants_of_two_processes_are_exact(store_url: str) -> None:
    async with kit_on(store_url) as (one, _), kit_on(store_url) as (other, _):
        tasks = [charge(kit, 1_000_003) for kit in (one, other) for _ in range(40)]
        tasks += [give(kit, 7, f"{nth}{id(kit)}") for kit in (one, other) for nth in range(5)]
        await asyncio.gather(*tasks)
        assert await balance(one) == await balance(other) == 70 * DOLLAR - 80 * 1_000_003


async def test_a_balance_that_falls_below_zero_is_told_of_once(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _):
        told: list[int] = []

        @kit.on("credits.low")
        async def remember(event: CreditsLow) -> None:
            told.append(event.balance)

        await give(kit, 10, "first")
        await charge(kit, 12_500_000)
        await charge(kit, DOLLAR)
        await give(kit, 4, "second")
        await charge(kit, DOLLAR // 4)
        await kit.store.usage("ada")
        await until(lambda: bool(told))
    assert told == [-3]


async def test_a_deleted_customer_owes_nothing(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, _):
        await charge(kit, DOLLAR)
        await kit.customers.delete("ada")
        assert await balance(kit) == 0
        assert await kit.grants.ledger("ada") == []


async def test_what_is_owed_outlives_the_period_of_a_customer_without_a_record(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _):
        await charge(kit, DOLLAR)
        keys, client = kit.store.keys.customer("ada"), (await kit.store.admin()).client
        assert [await client.ttl(key) for key in (keys.grants, keys.ledger)] == [-1, -1]


async def test_nothing_is_owed_in_shadow(any_store_url: str) -> None:
    async with kit_on(any_store_url, enforcement="shadow") as (kit, _):
        await give(kit, 1, "first")
        await charge(kit, 3 * DOLLAR)
        usage = await kit.usage("ada")
        assert (usage["balance_micros"]["usd"], usage["meters"]["usd_charged"]["overage"]) == (0, 2 * DOLLAR)


async def test_an_anonymous_customer_owes_nothing(any_store_url: str) -> None:
    async with kit_on(any_store_url) as (kit, _):
        view = kit.store.cache.get("2001:db8::/64", anonymous=True)
        assert view.prepaid is None
