"""Grants and credits: what pays for what, in which order, and that nothing is spent twice."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.counters import paid_by
from meterkit import CustomerError, MeterKit, MeterkitError, QuantityError, UnknownMeterError
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from servers.stores import Server


pytestmark = pytest.mark.anyio

NOW = datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC)
PLANS = """
schema: 1
currency: usd
default_plan: free
anonymous: {plan: free, by: ip}
meters:
  requests:      {unit: request}
  input_tokens:  {unit: token, stripe: {event_name: in}}
  output_tokens: {unit: token, stripe: {event_name: out}}
  pages:         {unit: page, stripe: {event_name: pages, report: usage}}
credits:
  ai: {costs: {input_tokens: 1 per 1000, output_tokens: 4 per 1000}, low_balance: 20%}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      input_tokens:  {included: 1000, overage: deny}
      output_tokens: {included: 100, overage: deny}
      pages:         {included: 10, overage: {bill: {cap: 5, per: 2, amount_cents: 5}}}
  pro:
    rank: 10
    price: {amount_cents: 2900, interval: month}
    meters:
      output_tokens: {included: 100, overage: deny}
    grants:
      - {credit: ai, quantity: 2, every: period, priority: 10}
      - {meter: output_tokens, quantity: 50, every: period, priority: 20, expires: 45d}
  max:
    extends: pro
    rank: 20
    grants: [{credit: ai, quantity: 5, every: period, priority: 10}]
"""


@asynccontextmanager
async def kit_on(url: str, text: str = PLANS, **settings: Any) -> AsyncGenerator[tuple[MeterKit, Clock]]:
    clock = Clock(NOW)
    async with MeterKit(
        loads(text), clock=clock, redis_url=url, flush=False, shards=4, store_timeout=10.0, **settings
    ) as kit:
        yield kit, clock


async def test_units_are_paid_by_included_grants_credits_overage(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _):
        await kit.grants.add("acme", {"output_tokens": 30, "ai": 1}, grant_id="g1")
        await kit.record("acme", "output_tokens", 90)
        assert await paid_by(kit, "acme", "output_tokens") == (90, 0, 0, 0)
        await kit.record("acme", "output_tokens", 20)
        assert await paid_by(kit, "acme", "output_tokens") == (100, 10, 0, 0)
        # One credit pays for 250 tokens.
        await kit.record("acme", "output_tokens", 220)
        assert await paid_by(kit, "acme", "output_tokens") == (100, 30, 200, 0)
        await kit.record("acme", "output_tokens", 100)
        assert await paid_by(kit, "acme", "output_tokens") == (100, 30, 250, 50)
        usage = await kit.usage("acme")
        assert usage["balance"] == {"ai": 0}
        row = usage["meters"]["output_tokens"]
        assert (row["recorded"], row["granted"], row["overage"], row["remaining"]) == (430, 30, 50, 0)


async def test_grants_are_used_by_priority_then_expiry_then_creation(store_url: str) -> None:
    async with kit_on(store_url) as (kit, clock):
        soon, later = NOW + timedelta(days=5), NOW + timedelta(days=9)
        for grant_id, priority, expires_at in (
            ("never", 50, None),
            ("later", 50, later),
            ("soon", 50, soon),
            ("soon, younger", 50, soon),
            ("first", 10, None),
        ):
            await kit.grants.add(
                "acme", {"output_tokens": 10}, grant_id=grant_id, priority=priority, expires_at=expires_at
            )
            clock.advance(timedelta(milliseconds=1))
        order: list[str] = []
        await kit.record("acme", "output_tokens", 100)
        for _ in range(5):
            await kit.record("acme", "output_tokens", 10)
            found = await kit.grants.list("acme")
            order += [g.grant_id for g in found if g.status == "used_up" and g.grant_id not in order]
        assert order == ["first", "soon", "soon, younger", "later", "never"]


async def test_a_decision_counts_what_grants_and_credits_add(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _):
        assert not (await kit.check("acme", "output_tokens", 101)).allowed
        await kit.grants.add("acme", {"output_tokens": 30, "ai": 1}, grant_id="g1")
        assert (await kit.check("acme", "output_tokens", 100 + 30 + 250)).allowed
        refused = await kit.check("acme", "output_tokens", 100 + 30 + 251)
        assert (refused.allowed, refused.reason) == (False, "credits")
        assert (await kit.usage("acme"))["meters"]["output_tokens"]["remaining"] == 380
        assert (await kit.usage("acme"))["meters"]["input_tokens"]["remaining"] == 1000 + 1000


async def test_a_grant_is_not_used_up_by_overage_recorded_before_it(store_url: str) -> None:
    """F-134: usage may go beyond the cap, and a grant bought after that is whole."""
    async with kit_on(store_url) as (kit, _):
        await kit.record("acme", "pages", 10 + 8)  # The cap is 5.
        assert not (await kit.check("acme", "pages")).allowed
        await kit.grants.add("acme", {"pages": 4}, grant_id="g1")
        assert (await kit.usage("acme"))["meters"]["pages"]["remaining"] == 4
        assert not (await kit.consume("acme", "pages", 5)).allowed
        assert (await kit.consume("acme", "pages", 4)).allowed
        assert await paid_by(kit, "acme", "pages") == (10, 4, 0, 5)
        assert not (await kit.check("acme", "pages")).allowed


async def test_used_up_credits_are_402s_and_never_had_ones_are_not(store_url: str) -> None:
    async with kit_on(store_url) as (kit, clock):
        await kit.record("zeta", "output_tokens", 100)
        assert (await kit.check("zeta", "output_tokens")).reason == "included"
        await kit.grants.add("acme", {"ai": 1}, grant_id="g1", expires_at=NOW + timedelta(days=2))
        await kit.record("acme", "output_tokens", 350)
        assert (await kit.check("acme", "output_tokens")).reason == "credits"
        # Of a credit that ended in an earlier period nobody speaks any more.
        clock.advance(timedelta(days=30))
        await kit.record("acme", "output_tokens", 100)
        assert (await kit.check("acme", "output_tokens")).reason == "included"


async def test_i3_racing_requests_cannot_spend_a_credit_twice(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _), kit_on(store_url) as (other, _):
        await kit.grants.add("acme", {"ai": 10}, grant_id="g1")
        await kit.record("acme", "output_tokens", 100)
        await kit.record("acme", "input_tokens", 1000)
        tries = [
            which.consume("acme", meter, quantity)
            for which in (kit, other)
            for meter, quantity in (("output_tokens", 250), ("input_tokens", 1000)) * 20
        ]
        allowed = sum(decision.allowed for decision in await asyncio.gather(*tries))
        assert allowed == 10
        assert (await kit.usage("acme"))["balance"] == {"ai": 0}
        for meter in ("output_tokens", "input_tokens"):
            assert (await paid_by(kit, "acme", meter))[3] == 0


async def test_a_grant_pays_only_while_it_is_effective(store_url: str) -> None:
    async with kit_on(store_url) as (kit, clock):
        begins, ends = NOW + timedelta(days=2), NOW + timedelta(days=4)
        await kit.grants.add(
            "acme", {"output_tokens": 30}, grant_id="g1", effective_at=begins, expires_at=ends
        )
        await kit.record("acme", "output_tokens", 100)
        (pending,) = await kit.grants.list("acme")
        assert pending.status == "pending"
        assert not (await kit.check("acme", "output_tokens")).allowed
        clock.advance(timedelta(days=2))
        assert (await kit.check("acme", "output_tokens", 30)).allowed
        await kit.record("acme", "output_tokens", 10)
        clock.advance(timedelta(days=2))
        assert not (await kit.check("acme", "output_tokens")).allowed
        (expired,) = await kit.grants.list("acme")
        assert (expired.status, expired.remaining) == ("expired", 0)


async def test_a_void_grant_pays_no_more_and_what_it_paid_stays(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _):
        await kit.grants.add("acme", {"output_tokens": 30}, grant_id="g1")
        await kit.record("acme", "output_tokens", 110)
        for _ in range(2):
            await kit.grants.void("acme", "g1")
        await kit.record("acme", "output_tokens", 10)
        assert await paid_by(kit, "acme", "output_tokens") == (100, 10, 0, 10)
        (grant,) = await kit.grants.list("acme")
        assert (grant.status, grant.remaining) == ("void", 0)
        with pytest.raises(MeterkitError, match="has no grant 'g2'"):
            await kit.grants.void("acme", "g2")


async def test_a_plans_grant_recurs_once_a_period(store_url: str) -> None:
    async with kit_on(store_url) as (kit, clock):
        await kit.customers.set_plan("acme", "pro")
        assert (await kit.usage("acme"))["balance"] == {"ai": 2}
        await kit.record("acme", "output_tokens", 100 + 50 + 250)  # One of two credits.
        assert (await kit.usage("acme"))["balance"] == {"ai": 1}
        for plan in ("free", "pro", "free", "pro"):
            await kit.customers.set_plan("acme", plan)
            await kit.record("acme", "output_tokens", 1)
        # Four more tokens are 16,000 of a million micro-credits.
        assert (await kit.usage("acme"))["balance"] == {"ai": 0}
        await kit.customers.set_plan("acme", "max")
        assert (await kit.usage("acme"))["balance"] == {"ai": 3}
        await kit.record("acme", "output_tokens", 250)
        await kit.customers.set_plan("acme", "pro")
        assert (await kit.usage("acme"))["balance"] == {"ai": 2}
        clock.advance(timedelta(days=30))
        assert (await kit.usage("acme"))["balance"] == {"ai": 2}


async def test_a_plans_grant_with_an_expiry_outlives_its_period(store_url: str) -> None:
    async with kit_on(store_url) as (kit, clock):
        await kit.customers.set_plan("acme", "pro")
        await kit.record("acme", "output_tokens", 110)  # 40 of 50 are left, until 16 July.
        clock.advance(timedelta(days=30))
        assert (await kit.usage("acme"))["meters"]["output_tokens"]["granted"] == 40 + 50
        await kit.record("acme", "output_tokens", 100 + 45)
        # The older one expires first, and is used first.
        left = [(g.remaining, g.status) for g in await kit.grants.list("acme") if g.kind == "meter"]
        assert left == [(0, "used_up"), (45, "active")]


async def test_units_paid_by_grants_or_credits_are_never_reported(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _):
        await kit.customers.link("acme", "cus_acme")
        await kit.grants.add("acme", {"pages": 3}, grant_id="g1")
        await kit.record("acme", "pages", 10 + 3 + 3)
        row = (await kit.usage("acme"))["meters"]["pages"]
        assert (row["recorded"], row["overage"], row["pending"]) == (16, 3, 13)
        # 3 units at 5 cents per 2 are 7.5 cents.
        assert row["overage_cents"] == 8


async def test_money_is_rounded_half_up_as_invoice_lines_are(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _):
        await kit.record("acme", "pages", 10)
        cents: list[int | None] = []
        for _ in range(5):
            await kit.record("acme", "pages", 1)
            cents.append((await kit.usage("acme"))["meters"]["pages"]["overage_cents"])
        assert cents == [3, 5, 8, 10, 13]


async def test_what_cannot_be_granted_is_refused_with_a_reason(store_url: str) -> None:
    async with kit_on(store_url) as (kit, _):
        add: Any = kit.grants.add
        for quantities in ({"ai": 0}, {"ai": True}, {"ai": 9 * 10**9 + 1}, {"pages": 10**15}):
            with pytest.raises(QuantityError, match="allowed is an integer from 1 to"):
                await add("acme", quantities, grant_id="g")
        with pytest.raises(MeterkitError, match="quantities: allowed is a mapping"):
            await add("acme", {}, grant_id="g")
        with pytest.raises(UnknownMeterError, match="did you mean 'pages'"):
            await add("acme", {"page": 1}, grant_id="g")
        with pytest.raises(CustomerError):
            await add("", {"ai": 1}, grant_id="g")
        for grant_id in ("", "a\nb", "x" * 257, None):
            with pytest.raises(MeterkitError, match="grant_id: allowed is a text"):
                await add("acme", {"ai": 1}, grant_id=grant_id)
        for priority in (-1, 1001, "high"):
            with pytest.raises(MeterkitError, match="priority: found"):
                await add("acme", {"ai": 1}, grant_id="g", priority=priority)
        with pytest.raises(MeterkitError, match=r"expires_at: found .*; it must lie in the future"):
            await add("acme", {"ai": 1}, grant_id="g", expires_at=NOW)
        for instant in (datetime(1969, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
            with pytest.raises(MeterkitError, match="instants from 1970 to 9998"):
                await add("acme", {"ai": 1}, grant_id="g", effective_at=instant)
        with pytest.raises(MeterkitError, match="naive"):
            await add("acme", {"ai": 1}, grant_id="g", expires_at=datetime(2040, 1, 1))  # noqa: DTZ001
        assert await kit.grants.list("acme") == []
        await add("acme", {"ai": 9 * 10**9}, grant_id="g1")
        with pytest.raises(QuantityError, match="nothing was granted"):
            await add("acme", {"ai": 1}, grant_id="g2")
        assert (await kit.usage("acme"))["balance"] == {"ai": 9 * 10**9}


# Customers with many grants: what they cost others, and how many there may be.


SINGLE = """
schema: 1
currency: usd
default_plan: free
meters:
  tokens: {unit: token}
  pages:  {unit: page}
credits: {ai: {costs: {tokens: 1 per 1}}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {tokens: {included: 0, overage: deny}}}
"""


async def test_many_grants_cost_decisions_no_more_commands(valkey: Server) -> None:
    """F-20: commands of the store, which no busy machine changes."""
    async with kit_on(valkey.url, SINGLE) as (kit, _):
        seen: list[set[str]] = []
        for customer, live in (("few", 1), ("many", 256)):
            for nth in range(live):
                await kit.grants.add(customer, {"ai": 1000}, grant_id=f"g{nth}")
            await kit.record(customer, "tokens", 1)
            valkey.command("CONFIG", "RESETSTAT")
            for _ in range(20):
                assert (await kit.consume(customer, "tokens", 2)).allowed
                assert (await kit.check(customer, "tokens")).allowed
                await kit.record(customer, "tokens", 3)
            stats = valkey.command("INFO", "commandstats")
            seen.append(set(stats))
            assert "cmdstat_hgetall" not in stats
            assert (await kit.usage(customer))["balance"]["ai"] == live * 1000 - 1 - 20 * 5
        assert seen[0] == seen[1]


async def test_at_most_256_grants_are_live_and_the_next_is_refused(store_url: str) -> None:
    """F-20."""
    async with kit_on(store_url, SINGLE) as (kit, _):
        for nth in range(255):
            await kit.grants.add("acme", {"ai": 10}, grant_id=f"g{nth}")
        with pytest.raises(MeterkitError, match=r"'acme' has 255 .* at most 256.*nothing was granted"):
            await kit.grants.add("acme", {"ai": 1, "pages": 1}, grant_id="two")
        await kit.grants.add("acme", {"ai": 10}, grant_id="g255")
        await kit.grants.add("acme", {"ai": 10}, grant_id="g3")  # A repeat is none too many.
        with pytest.raises(MeterkitError, match="has 256 grants"):
            await kit.grants.add("acme", {"pages": 1}, grant_id="one")
        assert (await kit.usage("acme"))["balance"] == {"ai": 2560}
        await kit.record("acme", "tokens", 10)  # One is used up.
        await kit.grants.add("acme", {"pages": 1}, grant_id="one")


async def test_a_grant_id_that_races_for_two_things_grants_one(store_url: str) -> None:
    """F-27."""
    async with kit_on(store_url, SINGLE) as (kit, _), kit_on(store_url, SINGLE) as (other, _):
        for nth in range(20):
            done = await asyncio.gather(
                kit.grants.add("acme", {"ai": 1}, grant_id=f"g{nth}"),
                other.grants.add("acme", {"pages": 1}, grant_id=f"g{nth}"),
                kit.grants.add("acme", {"pages": 1, "ai": 1}, grant_id=f"g{nth}"),
                return_exceptions=True,
            )
            refused = [error for error in done if error is not None]
            assert len(refused) == 2
            assert all("other meters or credits" in str(error) for error in refused)
            lines = [line for line in await kit.grants.ledger("acme") if line.grant_id == f"g{nth}"]
            assert len(lines) in {1, 2}


# A balance in money that ends below zero: what is owed, and which grants repay it.


DOLLAR: Final = 1_000_000
IN_MONEY: Final = """
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
    async with kit_on(store_url, IN_MONEY) as (kit, _):
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
    async with kit_on(store_url, IN_MONEY) as (kit, clock):
        await kit.customers.set_plan("ada", "pro")
        await charge(kit, 55 * DOLLAR)
        assert await balance(kit) == -40 * DOLLAR
        for left in (-25, -10, 5):
            clock.advance(timedelta(days=31))
            assert await balance(kit) == left * DOLLAR
        await kit.customers.set_plan("ada", "payg")
        assert await balance(kit) == 5 * DOLLAR


async def test_consuming_and_reserving_spend_no_more_than_the_balance(store_url: str) -> None:
    async with kit_on(store_url, IN_MONEY) as (kit, _):
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
    async with kit_on(store_url, IN_MONEY, enforcement="shadow") as (kit, _):
        await give(kit, 1, "first")
        await charge(kit, 3 * DOLLAR)
        usage = await kit.usage("ada")
        assert (usage["balance_micros"]["usd"], usage["meters"]["usd_charged"]["overage"]) == (0, 2 * DOLLAR)
