"""Grants and credits: what pays for what, in which order, what plans give, and nothing is spent twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers.counters import paid_by
from drivers.delivery import NOW
from drivers.plans import completed
from drivers.subscribed_customer import fetched, kit_of, subscription
from meterkit import CustomerError, MeterKit, MeterkitError, PlansError, QuantityError, UnknownMeterError
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = """
meters:
  requests:      {unit: request}
  input_tokens:  {unit: token, stripe: {event_name: in}}
  output_tokens: {unit: token, stripe: {event_name: out}}
  pages:         {unit: page, stripe: {event_name: pages, report: usage}}
credits:
  ai: {costs: {input_tokens: 1 per 1000, output_tokens: 4 per 1000}}
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
# One token is a credit.
TOKENS = """
default_plan: none
meters: {tokens: {unit: token}, pages: {unit: page}}
credits: {ai: {costs: {tokens: 1 per 1}}}
plans:
  none: {price: {amount_cents: 0, interval: month}, meters: {tokens: {included: 0, overage: deny}}}
"""


async def give(kit: MeterKit, grant_id: str = "g1", /, customer: str = "acme", **quantities: int) -> None:
    await kit.grants.add(customer, quantities, grant_id=grant_id)


async def balance_of(kit: MeterKit, customer: str = "acme") -> int:
    return (await kit.usage(customer))["balance"]["ai"]


async def test_units_are_paid_by_included_grants_credits_overage(kit: MeterKit) -> None:
    await give(kit, output_tokens=30, ai=1)
    # One credit pays for 250 tokens.
    for quantity, paid in ((90, (90, 0, 0, 0)), (20, (100, 10, 0, 0)), (220, (100, 30, 200, 0))):
        await kit.record("acme", "output_tokens", quantity)
        assert await paid_by(kit, "acme", "output_tokens") == paid
    await kit.record("acme", "output_tokens", 100)
    assert await paid_by(kit, "acme", "output_tokens") == (100, 30, 250, 50)
    assert await balance_of(kit) == 0
    row = (await kit.usage("acme"))["meters"]["output_tokens"]
    assert (row["recorded"], row["granted"], row["overage"], row["remaining"]) == (430, 30, 50, 0)


async def test_grants_are_used_by_priority_then_expiry_then_creation(kit: MeterKit, clock: Clock) -> None:
    soon, later = NOW + timedelta(days=5), NOW + timedelta(days=9)
    for name, *terms in (
        ("never", 50, None),
        ("later", 50, later),
        ("soon", 50, soon),
        ("soon, younger", 50, soon),
        ("first", 10, None),
    ):
        given: dict[str, Any] = dict(zip(("priority", "expires_at"), terms, strict=True))
        await kit.grants.add("acme", {"output_tokens": 10}, grant_id=name, **given)
        clock.advance(timedelta(milliseconds=1))
    order: list[str] = []
    await kit.record("acme", "output_tokens", 100)
    for _ in range(5):
        await kit.record("acme", "output_tokens", 10)
        found = await kit.grants.list("acme")
        order += [g.grant_id for g in found if g.status == "used_up" and g.grant_id not in order]
    assert order == ["first", "soon", "soon, younger", "later", "never"]


async def test_a_decision_counts_what_grants_and_credits_add(kit: MeterKit) -> None:
    assert not (await kit.check("acme", "output_tokens", 101)).allowed
    await give(kit, output_tokens=30, ai=1)
    assert (await kit.check("acme", "output_tokens", 100 + 30 + 250)).allowed
    refused = await kit.check("acme", "output_tokens", 100 + 30 + 251)
    assert (refused.allowed, refused.reason) == (False, "credits")
    meters = (await kit.usage("acme"))["meters"]
    assert (meters["output_tokens"]["remaining"], meters["input_tokens"]["remaining"]) == (380, 1000 + 1000)


async def test_a_grant_is_not_used_up_by_overage_recorded_before_it(kit: MeterKit) -> None:
    """F-134: usage may go beyond the cap, and a grant bought after that is whole."""
    await kit.record("acme", "pages", 10 + 8)  # The cap is 5.
    assert not (await kit.check("acme", "pages")).allowed
    await give(kit, pages=4)
    assert (await kit.usage("acme"))["meters"]["pages"]["remaining"] == 4
    assert not (await kit.consume("acme", "pages", 5)).allowed
    assert (await kit.consume("acme", "pages", 4)).allowed
    assert await paid_by(kit, "acme", "pages") == (10, 4, 0, 5)
    assert not (await kit.check("acme", "pages")).allowed


async def test_used_up_credits_are_402s_and_never_had_ones_are_not(kit: MeterKit, clock: Clock) -> None:
    await kit.record("zeta", "output_tokens", 100)
    assert (await kit.check("zeta", "output_tokens")).reason == "included"
    await kit.grants.add("acme", {"ai": 1}, grant_id="g1", expires_at=NOW + timedelta(days=2))
    await kit.record("acme", "output_tokens", 350)
    assert (await kit.check("acme", "output_tokens")).reason == "credits"
    # Of a credit that ended in an earlier period nobody speaks any more.
    clock.advance(timedelta(days=30))
    await kit.record("acme", "output_tokens", 100)
    assert (await kit.check("acme", "output_tokens")).reason == "included"


async def test_i3_races_cannot_spend_a_credit_twice(kit: MeterKit, store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, PLANS) as other:
        await give(kit, ai=10)
        await kit.record("acme", {"output_tokens": 100, "input_tokens": 1000})
        tries = [
            which.consume("acme", meter, quantity)
            for which in (kit, other)
            for meter, quantity in (("output_tokens", 250), ("input_tokens", 1000)) * 20
        ]
        assert sum(decision.allowed for decision in await asyncio.gather(*tries)) == 10
        assert await balance_of(kit) == 0
        for meter in ("output_tokens", "input_tokens"):
            assert (await paid_by(kit, "acme", meter))[3] == 0


async def test_a_grant_pays_only_while_it_is_effective(kit: MeterKit, clock: Clock) -> None:
    begins, ends = NOW + timedelta(days=2), NOW + timedelta(days=4)
    terms: dict[str, Any] = {"effective_at": begins, "expires_at": ends}
    await kit.grants.add("acme", {"output_tokens": 30}, grant_id="g1", **terms)
    await kit.record("acme", "output_tokens", 100)
    assert [grant.status for grant in await kit.grants.list("acme")] == ["pending"]
    assert not (await kit.check("acme", "output_tokens")).allowed
    clock.advance(timedelta(days=2))
    assert (await kit.check("acme", "output_tokens", 30)).allowed
    await kit.record("acme", "output_tokens", 10)
    clock.advance(timedelta(days=2))
    assert not (await kit.check("acme", "output_tokens")).allowed
    (expired,) = await kit.grants.list("acme")
    assert (expired.status, expired.remaining) == ("expired", 0)
    lines = [(line.entry, line.quantity) for line in await kit.grants.ledger("acme")]
    assert sorted(lines) == [("burn", -10), ("expire", -20), ("grant", 30)]


async def test_a_void_grant_pays_no_more_and_what_it_paid_stays(kit: MeterKit) -> None:
    await give(kit, output_tokens=30)
    await kit.record("acme", "output_tokens", 110)
    for _ in range(2):
        await kit.grants.void("acme", "g1")
    await kit.record("acme", "output_tokens", 10)
    assert await paid_by(kit, "acme", "output_tokens") == (100, 10, 0, 10)
    (grant,) = await kit.grants.list("acme")
    assert (grant.status, grant.remaining) == ("void", 0)
    with pytest.raises(MeterkitError, match="has no grant 'g2'"):
        await kit.grants.void("acme", "g2")


async def test_a_plans_grant_recurs_once_a_period(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.set_plan("acme", "pro")
    assert await balance_of(kit) == 2
    await kit.record("acme", "output_tokens", 100 + 50 + 250)  # One of two credits.
    assert await balance_of(kit) == 1
    for plan in ("free", "pro", "free", "pro"):
        await kit.customers.set_plan("acme", plan)
        await kit.record("acme", "output_tokens", 1)
    # Four more tokens are 16,000 of a million micro-credits.
    assert await balance_of(kit) == 0
    await kit.customers.set_plan("acme", "max")
    assert await balance_of(kit) == 3
    await kit.record("acme", "output_tokens", 250)
    await kit.customers.set_plan("acme", "pro")
    assert await balance_of(kit) == 2
    clock.advance(timedelta(days=30))
    assert await balance_of(kit) == 2


async def test_a_plans_grant_with_an_expiry_outlives_its_period(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.set_plan("acme", "pro")
    await kit.record("acme", "output_tokens", 110)  # 40 of 50 are left, until 16 July.
    clock.advance(timedelta(days=30))
    assert (await kit.usage("acme"))["meters"]["output_tokens"]["granted"] == 40 + 50
    await kit.record("acme", "output_tokens", 100 + 45)
    # The older one expires first, and is used first.
    left = [(g.remaining, g.status) for g in await kit.grants.list("acme") if g.kind == "meter"]
    assert left == [(0, "used_up"), (45, "active")]


async def test_units_paid_by_grants_or_credits_are_never_reported(kit: MeterKit) -> None:
    await kit.customers.link("acme", "cus_acme")
    await give(kit, pages=3)
    await kit.record("acme", "pages", 10 + 3 + 3)
    row = (await kit.usage("acme"))["meters"]["pages"]
    assert (row["recorded"], row["overage"], row["pending"]) == (16, 3, 13)
    # 3 units at 5 cents per 2 are 7.5 cents.
    assert row["overage_cents"] == 8


async def test_money_is_rounded_half_up_as_invoice_lines_are(kit: MeterKit) -> None:
    await kit.record("acme", "pages", 10)
    cents: list[int | None] = []
    for _ in range(5):
        await kit.record("acme", "pages", 1)
        cents.append((await kit.usage("acme"))["meters"]["pages"]["overage_cents"])
    assert cents == [3, 5, 8, 10, 13]


async def test_what_cannot_be_granted_is_refused_with_a_reason(kit: MeterKit) -> None:
    add: Any = kit.grants.add
    naive = datetime(2040, 1, 1)  # noqa: DTZ001 - it is refused
    usual: dict[str, Any] = {"customer": "acme", "quantities": {"ai": 1}, "grant_id": "g"}
    refused: tuple[tuple[type[Exception], str, dict[str, Any]], ...] = (
        (QuantityError, "is an integer from 1 to", {"quantities": {"ai": 0}}),
        (QuantityError, "is an integer from 1 to", {"quantities": {"ai": True}}),
        (QuantityError, "is an integer from 1 to", {"quantities": {"ai": 9 * 10**9 + 1}}),
        (QuantityError, "is an integer from 1 to", {"quantities": {"pages": 10**15}}),
        (MeterkitError, "quantities: allowed is a mapping", {"quantities": {}}),
        (UnknownMeterError, "did you mean 'pages'", {"quantities": {"page": 1}}),
        (CustomerError, "customer", {"customer": ""}),
        *((MeterkitError, "grant_id: allowed is a text", {"grant_id": i}) for i in ("", "a\nb", "x" * 257)),
        *((MeterkitError, "priority: found", {"priority": priority}) for priority in (-1, 1001, "high")),
        (MeterkitError, r"expires_at: found .*; it must lie in the future", {"expires_at": NOW}),
        (MeterkitError, "from 1970 to 9998", {"effective_at": datetime(1969, 1, 1, tzinfo=UTC)}),
        (MeterkitError, "from 1970 to 9998", {"effective_at": datetime.max.replace(tzinfo=UTC)}),
        (MeterkitError, "naive", {"expires_at": naive}),
    )
    for error, said, asked in refused:
        with pytest.raises(error, match=said):
            await add(**usual | asked)
    assert await kit.grants.list("acme") == []
    await give(kit, ai=9 * 10**9)
    with pytest.raises(QuantityError, match="nothing was granted"):
        await give(kit, "g2", ai=1)
    assert await balance_of(kit) == 9 * 10**9


async def test_a_repeat_after_the_end_of_a_grant_changes_nothing(kit: MeterKit, clock: Clock) -> None:
    async def add(quantity: int) -> None:
        await kit.grants.add("acme", {"ai": quantity}, grant_id="g", expires_at=NOW + timedelta(days=1))

    await add(5)
    clock.advance(timedelta(days=1))
    await add(5)
    assert [grant.status for grant in await kit.grants.list("acme")] == ["expired"]
    assert await balance_of(kit) == 0
    with pytest.raises(MeterkitError, match="was used for another quantity already"):
        await add(6)


# Customers with many grants: what they cost others, and how many there may be.


async def test_many_grants_cost_decisions_no_more_commands(valkey: Server, clock: Clock) -> None:
    """F-20: commands of the store, which no busy machine changes."""
    async with kit_of(valkey.url, clock, TOKENS) as kit:
        seen: list[set[str]] = []
        for customer, live in (("few", 1), ("many", 256)):
            for nth in range(live):
                await give(kit, f"g{nth}", customer, ai=1000)
            await kit.record(customer, "tokens", 1)
            valkey.command("CONFIG", "RESETSTAT")
            for _ in range(20):
                assert (await kit.consume(customer, "tokens", 2)).allowed
                assert (await kit.check(customer, "tokens")).allowed
                await kit.record(customer, "tokens", 3)
            seen.append(set(valkey.command("INFO", "commandstats")))
            assert await balance_of(kit, customer) == live * 1000 - 1 - 20 * 5
        assert seen[0] == seen[1]
        assert "cmdstat_hgetall" not in seen[0]


async def test_at_most_256_grants_are_live_and_the_next_is_refused(store_url: str, clock: Clock) -> None:
    """F-20."""
    async with kit_of(store_url, clock, TOKENS) as kit:
        for nth in range(255):
            await give(kit, f"g{nth}", ai=10)
        with pytest.raises(MeterkitError, match=r"'acme' has 255 .* at most 256.*nothing was granted"):
            await give(kit, "two", ai=1, pages=1)
        await give(kit, "g255", ai=10)
        await give(kit, "g3", ai=10)  # A repeat is none too many.
        with pytest.raises(MeterkitError, match="has 256 grants"):
            await give(kit, "one", pages=1)
        assert await balance_of(kit) == 2560
        await kit.record("acme", "tokens", 10)  # One is used up.
        await give(kit, "one", pages=1)


async def test_a_grant_id_that_races_for_two_things_grants_one(store_url: str, clock: Clock) -> None:
    """F-27."""
    async with kit_of(store_url, clock, TOKENS) as kit, kit_of(store_url, clock, TOKENS) as other:
        for name in (f"g{nth}" for nth in range(20)):
            tries = give(kit, name, ai=1), give(other, name, pages=1), give(kit, name, pages=1, ai=1)
            done = await asyncio.gather(*tries, return_exceptions=True)
            refused = [error for error in done if error is not None]
            assert len(refused) == 2
            assert all("other meters or credits" in str(error) for error in refused)
            assert sum(line.grant_id == name for line in await kit.grants.ledger("acme")) in {1, 2}


# A balance in money that ends below zero: what is owed, and which grants repay it.


DOLLAR: Final = 1_000_000
IN_MONEY: Final = """
default_plan: payg
meters: {input_tokens: {unit: token}}
credits: {usd: {unit: money, costs: {tokens: provider_prices}}}
plans:
  payg: {price: {amount_cents: 0, interval: month}}
  pro:
    extends: payg
    price: {amount_cents: 2000, interval: month}
    grants: [{credit: usd, quantity: 15, every: period}]
"""


async def money_of(kit: MeterKit) -> int:
    """In micro-dollars, and as all that is shown agrees on."""
    usage = await kit.usage("acme")
    found = usage["balance_micros"]["usd"]
    assert usage["balance"]["usd"] == found // DOLLAR
    assert sum(line.quantity for line in await kit.grants.ledger("acme")) == found
    row = usage["meters"]["usd_charged"]
    assert (row["included"], row["remaining"]) == (0, max(0, found - row["held"]))
    assert (row["overage"], row["over_cap"]) == (0, 0)
    assert (await kit.check("acme", "usd_charged")).allowed == bool(row["remaining"])
    return found


async def test_the_next_grant_first_repays_the_debt(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, IN_MONEY) as kit:
        await give(kit, "first", usd=1)
        for _ in range(20):
            await kit.record("acme", "usd_charged", 1_820_000)
        assert await money_of(kit) == -35_400_000
        refused = await kit.check("acme", "usd_charged")
        assert (refused.reason, refused.remaining) == ("credits", 0)
        await give(kit, "second", usd=40)
        assert await money_of(kit) == 4_600_000
        await kit.record("acme", "usd_charged", 600_000)
        assert await money_of(kit) == 4_000_000
        assert {(one.entry, one.grant_id, one.quantity) for one in await kit.grants.ledger("acme")} == {
            ("grant", "first", DOLLAR),
            ("burn", "first", -DOLLAR),
            ("debt", "", -35_400_000),
            ("grant", "second", 40 * DOLLAR),
            ("repayment", "second", -35_400_000),
            ("repayment", "", 35_400_000),
            ("burn", "second", -600_000),
        }


async def test_grants_of_the_plan_repay_while_requests_are_refused(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, IN_MONEY) as kit:
        await kit.customers.set_plan("acme", "pro")
        await kit.record("acme", "usd_charged", 55 * DOLLAR)
        assert await money_of(kit) == -40 * DOLLAR
        for left in (-25, -10, 5):
            clock.advance(timedelta(days=31))
            assert await money_of(kit) == left * DOLLAR
        await kit.customers.set_plan("acme", "payg")
        assert await money_of(kit) == 5 * DOLLAR


async def test_consuming_and_reserving_spend_no_more_than_the_balance(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, IN_MONEY) as kit:
        await give(kit, "first", usd=1)
        assert (await kit.consume("acme", "usd_charged", DOLLAR)).allowed
        assert not (await kit.consume("acme", "usd_charged", 1)).allowed
        assert await money_of(kit) == 0
        await give(kit, "second", usd=1)
        async with kit.reserve("acme", {"usd_charged": DOLLAR}) as reservation:
            assert reservation.decision.allowed
            await reservation.capture({"usd_charged": 3 * DOLLAR})
        assert await money_of(kit) == -2 * DOLLAR
        async with kit.reserve("acme", {"usd_charged": 1}) as reservation:
            assert not reservation.decision.allowed
        assert not (await kit.consume("acme", "usd_charged", 1)).allowed
    async with kit_of(store_url, clock, IN_MONEY, enforcement="shadow") as kit:  # Nothing is owed there.
        await give(kit, "g1", "zeta", usd=1)
        await kit.record("zeta", "usd_charged", 3 * DOLLAR)
        usage = await kit.usage("zeta")
        assert (usage["balance_micros"]["usd"], usage["meters"]["usd_charged"]["overage"]) == (0, 2 * DOLLAR)


# Grants that a plan gives every period: known by what they are, never more than the best plan gives. F-21


MICRO: Final = 10**6


def giving(**grants: Sequence[str]) -> str:
    """A plans file whose plans differ by what they grant only."""
    text = TOKENS
    for name, terms in grants.items():
        lines = ", ".join(f"{{{line}, every: period}}" for line in terms)
        text += f"  {name}: {{extends: none, grants: [{lines}]}}\n"
    return text


async def given_of(kit: MeterKit) -> int:
    """Credits that were given in all, by the ledger."""
    lines = await kit.grants.ledger("acme")
    return sum(line.quantity for line in lines if line.entry in {"grant", "adjustment"}) // MICRO


async def test_two_lines_that_change_places_give_nothing_again(store_url: str, clock: Clock) -> None:
    lines = "credit: ai, quantity: 500, priority: 10", "credit: ai, quantity: 48, priority: 20, expires: 45d"
    async with (
        kit_of(store_url, clock, giving(pro=lines)) as kit,
        kit_of(store_url, clock, giving(pro=lines[::-1])) as later,
    ):
        await kit.customers.set_plan("acme", "pro")
        await kit.record("acme", "tokens", 100)
        assert await balance_of(later) == 448
        await later.record("acme", "tokens", 100)
        await kit.record("acme", "tokens", 100)
        assert await balance_of(kit) == 248
        assert await given_of(kit) == 548


async def test_a_grant_with_an_id_stays_one_where_its_terms_change(store_url: str, clock: Clock) -> None:
    before = giving(pro=["credit: ai, quantity: 20, id: monthly, priority: 10"])
    after = giving(pro=["credit: ai, quantity: 30, id: monthly, priority: 99"])
    async with kit_of(store_url, clock, before) as kit, kit_of(store_url, clock, after) as later:
        await kit.customers.set_plan("acme", "pro")
        await kit.record("acme", "tokens", 5)
        await later.record("acme", "tokens", 5)
        (grant,) = await later.grants.list("acme")
        assert (grant.quantity, grant.remaining, grant.priority) == (30, 20, 10)
        assert grant.grant_id == "plan/2031-06-01/monthly"


async def test_lines_that_differ_in_quantity_only_are_one_grant(store_url: str, clock: Clock) -> None:
    text = giving(pro=["credit: ai, quantity: 20", "credit: ai, quantity: 5"])
    async with kit_of(store_url, clock, text) as kit:
        await kit.customers.set_plan("acme", "pro")
        await kit.record("acme", "tokens", 5)
        (grant,) = await kit.grants.list("acme")
        assert (grant.grant_id, grant.remaining) == ("plan/2031-06-01/50-period", 20)
    # An id names one grant of a plan.
    with pytest.raises(PlansError, match="'a' is the id of another grant of ai"):
        loads(completed(giving(pro=["credit: ai, quantity: 20, id: a", "credit: ai, quantity: 5, id: a"])))
    loads(completed(giving(pro=["credit: ai, quantity: 20, id: a", "meter: tokens, quantity: 5, id: a"])))


GRANT = st.builds(
    "credit: ai, quantity: {}, priority: {}{}".format,
    st.integers(1, 9),
    st.sampled_from([1, 2]),
    st.sampled_from(["", ", expires: 9d", ", expires: 90d", ", id: a", ", id: b"]),
)
OFFER = st.lists(GRANT, max_size=4, unique_by=lambda line: line.partition("id: ")[2] or line)


@pytest.mark.dear("ten sequences of plans")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offers=st.lists(OFFER, min_size=2, max_size=4),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=12),
)
async def test_no_sequence_of_plans_gives_more_than_the_most_generous(
    valkey: Server, offers: list[list[str]], steps: list[tuple[int, int]]
) -> None:
    valkey.command("FLUSHALL")
    text = giving(**{f"p{nth}": offer for nth, offer in enumerate(offers)})
    totals = [sum(int(line.split("quantity: ")[1].split(",")[0]) for line in offer) for offer in offers]
    most = 0
    async with kit_of(valkey.url, Clock(NOW), text) as kit:
        for plan, used in steps:
            nth = plan % len(offers)
            await kit.customers.set_plan("acme", f"p{nth}")
            await kit.record("acme", "tokens", used)
            if used:
                most = max(most, totals[nth])
            assert await given_of(kit) == max(most, totals[nth])


# F-22c: a recurring grant that outlives its period is given though nothing was used in that period.


JUNE, JULY, AUGUST, SEPTEMBER = (datetime(2031, month, 10, 12, tzinfo=UTC) for month in (6, 7, 8, 9))
KEPT = giving(kept=["credit: ai, quantity: 100, expires: 61d"])


async def decided_balance_of(kit: MeterKit) -> int:
    """The balance as it is shown; decisions know the same."""
    shown = await balance_of(kit)
    assert (await kit.check("acme", "tokens", max(1, shown))).allowed == (shown > 0)
    assert not (await kit.check("acme", "tokens", shown + 1)).allowed
    return shown


async def test_grants_of_periods_without_use_count_until_they_expire(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, KEPT) as kit:
        await kit.customers.set_plan("acme", "kept")
        clock.set(JULY)
        assert await decided_balance_of(kit) == 200
        assert (await kit.consume("acme", "tokens", 130)).allowed
        assert [grant.remaining for grant in await kit.grants.list("acme")] == [0, 70]
        clock.set(SEPTEMBER)  # That of June has expired; in August nothing was used.
        assert await decided_balance_of(kit) == 200
        await kit.record("acme", "tokens", 1)
        found = [(f"{grant.effective_at:%b}", grant.remaining) for grant in await kit.grants.list("acme")]
        assert found == [("Aug", 99), ("Sep", 100), ("Jun", 0), ("Jul", 0)]
        assert sum(line.quantity for line in await kit.grants.ledger("acme")) == 199 * MICRO


async def test_they_count_in_restricted_access_used_or_not(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, KEPT) as kit:
        for customer in ("acme", "idle"):
            await kit.customers.set_plan(customer, "kept")
        await kit.record("acme", "tokens", 1)
        clock.set(JULY)
        for customer, left in (("acme", 99), ("idle", 100)):
            await kit.customers.set_status(customer, "paused")
            assert (await kit.usage(customer))["balance"]["ai"] == left
            assert (await kit.check(customer, "tokens", left)).allowed
            assert not (await kit.check(customer, "tokens", left + 1)).allowed


async def test_a_subscription_gets_them_from_its_beginning_on(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, KEPT) as kit:
        first = subscription(plan="kept", start_ms=JUNE, end_ms=JULY, anchor_ms=JUNE, created_ms=JUNE)
        clock.set(JUNE + timedelta(days=2))
        await fetched(kit, first)
        assert await decided_balance_of(kit) == 100
        clock.set(JULY + timedelta(days=1))  # Before any word of the renewal.
        assert await decided_balance_of(kit) == 200
        clock.set(AUGUST + timedelta(days=1))
        assert await decided_balance_of(kit) == 200


SHORT: Final = "credit: ai, quantity: 20, expires: 31d"
LONG: Final = "credit: ai, quantity: 20, expires: 150d"
ROLLING: Final = "credit: ai, quantity: 20, rollover: {at_most: 100, for: 3 periods}"


@pytest.mark.parametrize("is_used", [True, False], ids=["used in August", "not used yet"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(SHORT, LONG, id="a longer life"),
        pytest.param(f"{SHORT}, id: monthly", f"{LONG}, id: monthly", id="a longer life of one id"),
        pytest.param(ROLLING, f"{ROLLING}, priority: 9", id="another priority"),
        pytest.param("credit: ai, quantity: 20", f"{ROLLING}, id: monthly", id="it lives on, and has an id"),
    ],
)
async def test_an_edit_gives_no_earlier_period_again(
    store_url: str, clock: Clock, before: str, after: str, *, is_used: bool
) -> None:
    """What June and July gave was used up, and given once more."""
    async with (
        kit_of(store_url, clock, giving(pro=[before])) as kit,
        kit_of(store_url, clock, giving(pro=[after])) as later,
    ):
        await kit.customers.set_plan("acme", "pro")
        for month in (JUNE, JULY, AUGUST)[: 2 + is_used]:
            clock.set(month)
            await kit.record("acme", "tokens", 20)
        clock.set(AUGUST)
        assert await decided_balance_of(later) == 20 * (not is_used)
        await later.record("acme", "tokens", 20)
        assert await given_of(later) == 60
        await later.customers.set_plan("acme", "none")
        assert await decided_balance_of(later) == 0
