"""Rollover: what is left of a period's grant lives on, capped; and grants that are given once in a life."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil
from typing import Any, Final

import pytest

from drivers.delivery import NOW
from drivers.subscribed_customer import erase, fetched, kit_of, moved, recorder, subscription
from meterkit import MeterKit
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

MICRO: Final = 1_000_000
JUNE, JULY, AUGUST, SEPTEMBER, OCTOBER = (datetime(2031, month, 1, tzinfo=UTC) for month in (6, 7, 8, 9, 10))
# One token is a credit.
PLANS: Final = """
default_plan: none
meters: {tokens: {unit: token}, pages: {unit: page}}
credits: {ai: {costs: {tokens: 1 per 1}, low_balance: 20%}}
plans:
  none: {price: {amount_cents: 0, interval: month}, meters: {tokens: {included: 0, overage: deny}}}
  pro:
    extends: none
    grants:
      - {credit: ai, quantity: 500, every: period, id: monthly, rollover: {at_most: 1_000, for: 2 periods}}
  small:
    extends: none
    grants:
      - {credit: ai, quantity: 100, every: period, id: monthly, rollover: {at_most: 150, for: 2 periods}}
  wide:
    extends: none
    grants:
      - {credit: ai, quantity: 100, every: period, id: monthly, rollover: {at_most: 9_000, for: 1 period}}
  plain:
    extends: none
    grants: [{credit: ai, quantity: 300, every: period, id: monthly}]
  units:
    extends: none
    grants: [{meter: tokens, quantity: 40, every: period, rollover: {at_most: 60, for: 3 periods}}]
  yearly:
    extends: pro
    price: {amount_cents: 99_000, interval: year}
  large:
    extends: pro
    addons: [boost]
    grants:
      - {credit: ai, quantity: 2_000, every: period, id: monthly, rollover: {at_most: 4_000, for: 2 periods}}
addons:
  boost:
    price: {amount_cents: 500, interval: month}
    grants: [{credit: ai, quantity: 10, every: period, rollover: {at_most: 15, for: 1 period}}]
"""


async def standing_of(kit: MeterKit, customer: str = "acme") -> tuple[int, int]:
    """The balance and what of it has lived on; decisions and the ledger know the same."""
    usage = await kit.usage(customer)
    balance = usage["balance"]["ai"]
    assert not (await kit.check(customer, "tokens", balance + 1)).allowed
    assert (await kit.check(customer, "tokens", max(1, balance))).allowed == (balance > 0)
    lines = await kit.grants.ledger(customer)
    assert sum(line.quantity for line in lines if line.name == "ai") == balance * MICRO
    held = [grant for grant in await kit.grants.list(customer) if grant.status == "active"]
    assert sum(grant.remaining for grant in held) == balance
    return balance, usage["rolled_over"]["ai"]


async def lines_of(kit: MeterKit, *entries: str) -> Counter[str]:
    """The lines of some kinds: what they take and what they add, in credits."""
    found: Counter[str] = Counter()
    for line in await kit.grants.ledger("acme"):
        if line.entry in entries:
            found[f"{line.entry} {line.grant_id} {'+' if line.quantity > 0 else '-'}"] += (
                line.quantity // MICRO
            )
    return found


async def use(kit: MeterKit, quantity: int) -> None:
    assert (await kit.consume("acme", "tokens", quantity)).allowed


async def test_three_periods_by_hand(kit: MeterKit, clock: Clock) -> None:
    """500 a month, at most 1,000, for two periods."""
    await kit.customers.set_plan("acme", "pro")
    assert await standing_of(kit) == (500, 0)
    await use(kit, 100)
    assert await standing_of(kit) == (400, 0)
    clock.set(JULY)
    # 400 of June live on, and July gives 500.
    assert await standing_of(kit) == (900, 400)
    await use(kit, 150)  # The oldest first: of June 250 are left.
    assert await standing_of(kit) == (750, 250)
    clock.set(AUGUST)
    # August gives 500, so there is room for 500: those of July. The 250 of June are cut.
    assert await standing_of(kit) == (1000, 500)
    await use(kit, 1)
    assert await standing_of(kit) == (999, 499)
    assert await lines_of(kit, "rollover") == {
        "rollover plan/2031-06-01/monthly -": -400,
        "rollover plan/2031-06-01/monthly +": 400,
        "rollover plan/2031-07-01/monthly -": -500,
        "rollover plan/2031-07-01/monthly +": 500,
    }
    assert await lines_of(kit, "expire") == {"expire plan/2031-06-01/monthly -": -250}
    moves = [line for line in await kit.grants.ledger("acme") if line.entry == "rollover"]
    assert {(line.quantity, line.period_start) for line in moves} == {
        (-400 * MICRO, JUNE),
        (400 * MICRO, JULY),
        (-500 * MICRO, JULY),
        (500 * MICRO, AUGUST),
    }


async def test_periods_without_use_roll_too(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.set_plan("acme", "pro")
    for month, found in ((JULY, (1000, 500)), (AUGUST, (1000, 500)), (OCTOBER, (1000, 500))):
        clock.set(month + timedelta(days=3))
        assert await standing_of(kit) == found
    await use(kit, 620)
    assert await standing_of(kit) == (380, 0)
    clock.set(datetime(2031, 12, 5, tzinfo=UTC))
    assert await standing_of(kit) == (1000, 500)  # Of November; the 380 of October are cut.


async def test_it_lives_for_so_many_periods(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.set_plan("acme", "wide")
    await use(kit, 30)
    clock.set(JULY)
    assert await standing_of(kit) == (170, 70)
    await use(kit, 20)
    clock.set(AUGUST)
    assert await standing_of(kit) == (200, 100)  # The 50 of June have lived for their one period.
    await use(kit, 1)
    assert await lines_of(kit, "expire") == {"expire plan/2031-06-01/monthly -": -50}


async def test_it_is_used_before_what_is_younger(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.set_plan("acme", "wide")
    await use(kit, 10)
    clock.set(JULY)
    await kit.grants.add("acme", {"ai": 5}, grant_id="first", priority=1)
    await kit.grants.add("acme", {"ai": 5}, grant_id="last")  # Never expires.
    await use(kit, 5 + 90 + 20)
    left = {grant.grant_id: grant.remaining for grant in await kit.grants.list("acme")}
    assert left == {
        "first": 0,
        "plan/2031-06-01/monthly": 0,
        "plan/2031-07-01/monthly": 80,
        "last": 5,
    }


@pytest.mark.parametrize(("plan", "found"), [("none", (0, 0)), ("plain", (300, 0)), ("small", (150, 50))])
async def test_the_plan_in_force_at_the_periods_end_decides(
    kit: MeterKit, clock: Clock, plan: str, found: tuple[int, int]
) -> None:
    await kit.customers.set_plan("acme", "pro")
    await use(kit, 100)
    clock.set(JULY - timedelta(days=1))
    await kit.customers.set_plan("acme", plan)
    clock.set(JULY + timedelta(days=1))
    assert await standing_of(kit) == found
    await kit.customers.set_plan("acme", "pro")  # Too late.
    assert await standing_of(kit) == (500 + found[1], found[1])


async def test_a_change_within_the_period_takes_nothing(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.set_plan("acme", "pro")
    await use(kit, 100)
    clock.set(JULY + timedelta(days=1))
    await use(kit, 1)
    await kit.customers.set_plan("acme", "none")
    assert await standing_of(kit) == (899, 399)
    clock.set(AUGUST + timedelta(hours=1))
    assert await standing_of(kit) == (0, 0)
    await kit.customers.set_plan("acme", "pro")
    assert await standing_of(kit) == (500, 0)


async def test_units_of_a_meter_live_on_too(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.set_plan("acme", "units")
    await kit.record("acme", "tokens", 15)
    for month in (JULY, AUGUST):
        clock.set(month)
        usage = await kit.usage("acme")
        assert (usage["meters"]["tokens"]["granted"], usage["rolled_over"]) == (60, {"ai": 0})
    await kit.record("acme", "tokens", 61)
    assert (await kit.usage("acme"))["meters"]["tokens"]["overage"] == 1


async def test_a_rollover_added_later_gives_nothing_again(store_url: str, clock: Clock) -> None:
    text = PLANS.replace("default_plan: none", "default_plan: pro")
    before = text.replace(", rollover: {at_most: 1_000, for: 2 periods}", "")
    async with kit_of(store_url, clock, before) as kit:
        for month, used in ((JUNE, 500), (JULY, 200), (AUGUST, 100)):
            clock.set(month + timedelta(days=9))
            await use(kit, used)
    async with kit_of(store_url, clock, text) as kit:
        assert await standing_of(kit) == (400, 0)
        clock.set(SEPTEMBER)
        assert await standing_of(kit) == (900, 400)


async def test_a_grant_of_the_app_in_between_ends_nothing(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.set_plan("acme", "pro")
    await use(kit, 100)
    clock.set(JULY)
    await kit.grants.add("acme", {"ai": 7}, grant_id="g")
    await kit.grants.void("acme", "g")
    assert await standing_of(kit) == (900, 400)


async def test_a_correction_gives_back_what_has_lived_on(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.set_plan("acme", "pro")
    await use(kit, 100)
    clock.set(JULY)
    await use(kit, 450)  # All 400 of June.
    assert await standing_of(kit) == (450, 0)
    await kit.correct("acme", {"tokens": 60}, reason="twice", correction_id="c1")
    assert await standing_of(kit) == (510, 10)


async def test_credits_are_low_by_the_newest_grant(kit: MeterKit, clock: Clock) -> None:
    told = recorder(kit, "credits.low")
    await kit.customers.set_plan("acme", "pro")
    await use(kit, 100)
    clock.set(JULY)
    await use(kit, 800)  # 100 of 900 are 20 % of 500.
    assert told == []
    await use(kit, 1)
    await kit.stop()
    assert [event.credit for event in told] == ["ai"]


SUBSCRIBED: Final[dict[str, Any]] = {
    "start_ms": NOW,
    "end_ms": NOW.replace(month=7),
    "anchor_ms": NOW,
    "created_ms": NOW,
}
RENEWALS: Final = [NOW.replace(month=month) for month in (7, 8, 9)]


async def test_a_subscription_rolls_at_its_renewals(kit: MeterKit, clock: Clock) -> None:
    await fetched(kit, subscription(**SUBSCRIBED))
    await use(kit, 100)
    for at, found in zip(RENEWALS, ((900, 400), (1000, 500), (1000, 500)), strict=True):
        clock.set(at)
        assert await standing_of(kit) == found


async def test_a_period_that_is_cut_short_rolls_at_its_cut(kit: MeterKit, clock: Clock) -> None:
    await fetched(kit, subscription(**SUBSCRIBED))
    await use(kit, 100)
    clock.set(RENEWALS[0])
    await use(kit, 1)  # Of June 399 are left, of July 500; both end with this period.
    clock.set(AUGUST)
    await moved(kit, RENEWALS, [AUGUST, SEPTEMBER, OCTOBER])
    cycle = {"start_ms": AUGUST, "anchor_ms": AUGUST, "end_ms": SEPTEMBER, "created_ms": NOW}
    await fetched(kit, subscription(**cycle))
    assert await standing_of(kit) == (1000, 500)


BRIEF: Final = """\
  brief:
    extends: none
    grants: [{credit: ai, quantity: 50, every: period, id: monthly}]
"""
LASTING: Final = """\
  lasting:
    extends: none
    grants: [{credit: ai, quantity: 50, every: period, id: monthly, expires: 90d}]
"""


@pytest.mark.parametrize("plans", [BRIEF + LASTING, LASTING + BRIEF], ids=["brief first", "lasting first"])
async def test_a_grant_ends_with_its_period_by_its_own_terms(
    store_url: str, clock: Clock, plans: str
) -> None:
    """Two plans give one of the same id: the one listed last in the file decided for both."""
    text = PLANS.partition("  pro:\n")[0] + plans
    async with kit_of(store_url, clock, text) as kit:
        for plan, left in (("brief", 50), ("lasting", 50 + 40)):
            clock.set(NOW)
            await fetched(kit, subscription(**SUBSCRIBED, plan=plan))
            await use(kit, 10)
            again = NOW + timedelta(days=10)
            clock.set(again)
            cycle = {"start_ms": again, "anchor_ms": again, "end_ms": again + timedelta(days=30)}
            await moved(kit, [NOW, *RENEWALS[:2]], [again, RENEWALS[1], RENEWALS[2]])
            await fetched(kit, subscription(**SUBSCRIBED | cycle, plan=plan))
            assert await standing_of(kit) == (left, 0)
            await erase(kit, "acme")


async def test_scheduled_changes_bind_at_their_second(kit: MeterKit, clock: Clock) -> None:
    first = SUBSCRIBED
    await fetched(kit, subscription(**first, pending_plan="small", pending_at_ms=RENEWALS[0]))
    await fetched(kit, subscription(**first, cancel_at_ms=RENEWALS[0]), customer="zeta")
    for customer in ("acme", "zeta"):
        await kit.record(customer, "tokens", 100)
    clock.set(RENEWALS[0])
    assert await standing_of(kit) == (150, 50)
    assert await standing_of(kit, "zeta") == (0, 0)


async def test_a_change_as_a_period_begins_rolls_by_its_terms(kit: MeterKit, clock: Clock) -> None:
    await fetched(kit, subscription(**SUBSCRIBED))
    clock.set(RENEWALS[0] + timedelta(seconds=20))  # Stripe's webhook comes a little later.
    july = {"start_ms": RENEWALS[0], "end_ms": RENEWALS[1]}
    await fetched(kit, subscription(**SUBSCRIBED | july, plan="small"))
    assert await standing_of(kit) == (150, 50)


async def test_what_has_rolled_over_outlives_its_plan_in_the_file(store_url: str, clock: Clock) -> None:
    """Its customers were moved, as in a migration, and then it left the plans file."""
    july: dict[str, Any] = SUBSCRIBED | {"start_ms": RENEWALS[0], "end_ms": RENEWALS[1]}
    async with kit_of(store_url, clock, PLANS) as kit:
        await fetched(kit, subscription(**SUBSCRIBED, plan="small"))
        await use(kit, 20)
        clock.set(RENEWALS[0] + timedelta(days=1))
        await fetched(kit, subscription(**july, plan="small"))
        await fetched(kit, subscription(**july, plan="pro"))
        before = await standing_of(kit)
        assert before[1] == 50
    text = PLANS.replace("  small:\n", "  tiny:\n")
    async with kit_of(store_url, clock, text) as kit:
        assert await standing_of(kit) == before


async def test_a_share_of_a_period_rolls(kit: MeterKit, clock: Clock) -> None:
    await fetched(kit, subscription(**SUBSCRIBED))
    clock.set(NOW + timedelta(days=15))  # Half of the period.
    await fetched(kit, subscription(**SUBSCRIBED, plan="large"))
    assert await standing_of(kit) == (250 + 1000, 0)
    clock.set(RENEWALS[0])
    assert await standing_of(kit) == (2000 + 1250, 1250)
    await use(kit, 1)
    clock.set(RENEWALS[1])
    assert await standing_of(kit) == (4000, 2000)


async def test_grants_of_addons_roll_with_their_number(kit: MeterKit, clock: Clock) -> None:
    bought = {**SUBSCRIBED, "plan": "large", "addons": (("boost", 3),)}
    await fetched(kit, subscription(**bought))
    await use(kit, 2_020)
    assert await standing_of(kit) == (10, 0)
    clock.set(RENEWALS[0])
    assert await standing_of(kit) == (2040, 10)
    clock.set(RENEWALS[1])
    assert await standing_of(kit) == (2030 + 2000 + 15, 2000 + 15)


async def test_many_purchases_take_nothing_away(kit: MeterKit, clock: Clock) -> None:
    """From the 64th purchase on, what had lived on was gone, and each one took a part of the plan's grant."""
    await fetched(kit, subscription(**SUBSCRIBED, plan="large"))
    await use(kit, 500)
    july, given = {"start_ms": RENEWALS[0], "end_ms": RENEWALS[1]}, Fraction(0)
    for bought in range(1, 68):
        clock.set(RENEWALS[0] + timedelta(hours=8) * bought)
        addons = (("boost", bought),)
        await fetched(kit, subscription(**SUBSCRIBED | july, plan="large", addons=addons), cause=f"e{bought}")
        given += 10 * Fraction((RENEWALS[1] - clock.now()) // timedelta(hours=8), 31 * 3)
    assert await standing_of(kit) == (1500 + 2000 + ceil(given), 1500)


async def test_a_yearly_plan_rolls_by_the_month(kit: MeterKit, clock: Clock) -> None:
    yearly = {**SUBSCRIBED, "end_ms": NOW.replace(year=2032)}
    await fetched(kit, subscription(**yearly, plan="yearly"))
    await use(kit, 400)
    clock.set(RENEWALS[0])
    assert await standing_of(kit) == (600, 100)
    clock.set(RENEWALS[2])
    assert await standing_of(kit) == (1000, 500)


async def test_what_a_free_plan_left_lives_on(store_url: str, clock: Clock) -> None:
    text = PLANS.replace("default_plan: none", "default_plan: small")
    async with kit_of(store_url, clock, text) as kit:
        await use(kit, 20)
        clock.set(JULY + timedelta(days=9))  # Nothing was used in July.
        assert await standing_of(kit) == (150, 50)
        begun = {"start_ms": clock.now(), "anchor_ms": clock.now(), "created_ms": clock.now()}
        await fetched(kit, subscription(**begun, end_ms=clock.now() + timedelta(days=31)))
        assert await standing_of(kit) == (650, 150)
        await use(kit, 1)
        clock.set(AUGUST + timedelta(days=20))
        assert await standing_of(kit) == (1000, 500)


def _next(begun: datetime, **changed: Any) -> dict[str, Any]:
    """Another subscription that begins at an instant."""
    ends = begun + timedelta(days=30)
    return {
        "id": "sub_2",
        "start_ms": begun,
        "anchor_ms": begun,
        "created_ms": begun,
        "end_ms": ends,
        **changed,
    }


@pytest.mark.parametrize("days", [1, 20, 26])
async def test_what_lapsed_with_a_subscription_stays_lapsed(kit: MeterKit, clock: Clock, days: int) -> None:
    """It came back with the next subscription, even with an unpaid sign-up, if the month was the same."""
    await fetched(kit, subscription(**SUBSCRIBED))
    await use(kit, 100)
    clock.set(RENEWALS[0] + timedelta(hours=1))
    await fetched(kit, subscription(**SUBSCRIBED, status="canceled", ended_at_ms=RENEWALS[0]))
    assert await standing_of(kit) == (0, 0)
    clock.set(RENEWALS[0] + timedelta(days=days))
    await fetched(kit, subscription(**_next(clock.now(), status="incomplete")))
    assert await standing_of(kit) == (0, 0)
    await fetched(kit, subscription(**_next(clock.now())))
    assert await standing_of(kit) == (500, 0)
    clock.advance(timedelta(days=30))
    assert await standing_of(kit) == (1000, 500)


async def test_what_lapsed_with_a_trial_stays_lapsed(kit: MeterKit, clock: Clock) -> None:
    trial = {**SUBSCRIBED, "status": "trialing", "end_ms": JULY + timedelta(days=8)}
    await fetched(kit, subscription(**trial, trial_end_ms=trial["end_ms"], trial_end_action="cancel"))
    await use(kit, 100)
    clock.set(JULY + timedelta(days=9))
    assert await standing_of(kit) == (0, 0)
    await fetched(kit, subscription(**_next(clock.now())))
    assert await standing_of(kit) == (500, 0)


async def test_what_lives_on_after_a_subscription_counts_its_periods(store_url: str, clock: Clock) -> None:
    """The rest of June lives on at its end, and again where the next subscription begins."""
    async with kit_of(store_url, clock, PLANS.replace("default_plan: none", "default_plan: small")) as kit:
        await fetched(kit, subscription(**SUBSCRIBED))
        await use(kit, 480)
        clock.set(RENEWALS[0] + timedelta(hours=1))
        await fetched(kit, subscription(**SUBSCRIBED, status="canceled", ended_at_ms=RENEWALS[0]))
        assert await standing_of(kit) == (120, 20)
        await kit.record("acme", "pages", 1)
        clock.advance(timedelta(days=9))
        await fetched(kit, subscription(**_next(clock.now())))
        assert await standing_of(kit) == (620, 120)
        moves = [line for line in await kit.grants.ledger("acme") if line.entry == "rollover"]
        assert {line.period_start for line in moves} == {NOW, RENEWALS[0], clock.now()}


async def test_in_restricted_access_it_lives_on(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.set_plan("acme", "pro")
    await use(kit, 100)
    await kit.customers.set_status("acme", "unpaid")
    clock.set(JULY + timedelta(days=1))
    await kit.record("acme", "tokens", 1)
    clock.set(JULY + timedelta(days=2))
    await kit.customers.set_status("acme", "active")
    assert (await kit.usage("acme"))["rolled_over"] == {"ai": 399}


# Given once in a customer's life.


_GIVEN_ONCE: Final = """\
  start:
    extends: none
    grants: [{credit: ai, quantity: 70, every: once, id: welcome, expires: 90d}]
  other:
    extends: none
    grants: [{credit: ai, quantity: 900, every: once, id: welcome, expires: 90d}]
  short:
    extends: none
    grants: [{credit: ai, quantity: 30, every: once}]
"""
ONCE: Final = PLANS.replace("addons:\n  boost", f"{_GIVEN_ONCE}addons:\n  boost")


@pytest.fixture
async def giving(store_url: str, clock: Clock) -> AsyncIterator[MeterKit]:
    async with kit_of(store_url, clock, ONCE) as kit:
        yield kit


async def test_once_is_once_in_a_life(giving: MeterKit, clock: Clock) -> None:
    kit = giving
    await kit.customers.set_plan("acme", "start")
    await use(kit, 20)
    (grant,) = await kit.grants.list("acme")
    assert (grant.grant_id, grant.source, grant.remaining) == ("plan/once/welcome", "plan", 50)
    for plan in ("none", "start", "other"):
        await kit.customers.set_plan("acme", plan)
        assert await standing_of(kit) == (50, 0)
    clock.set(JULY)
    await use(kit, 10)
    assert await standing_of(kit) == (40, 0)
    for at in (JUNE + timedelta(days=91), datetime(2032, 10, 1, tzinfo=UTC)):
        clock.set(at)
        assert await standing_of(kit) == (0, 0)
        await kit.record("acme", "pages", 1)
    await erase(kit, "acme")
    await kit.customers.set_plan("acme", "start")
    assert await standing_of(kit) == (70, 0)


async def test_once_is_not_given_again_after_a_return(giving: MeterKit, clock: Clock) -> None:
    kit = giving
    await fetched(kit, subscription(**SUBSCRIBED, plan="start"))
    assert await standing_of(kit) == (70, 0)
    clock.advance(timedelta(days=2))
    ended = subscription(**SUBSCRIBED, plan="start", status="canceled", ended_at_ms=clock.now())
    await fetched(kit, ended)
    clock.set(NOW + timedelta(days=100))
    again = {**SUBSCRIBED, "id": "sub_2", "start_ms": clock.now(), "anchor_ms": clock.now()}
    again |= {"created_ms": clock.now(), "end_ms": clock.now() + timedelta(days=30)}
    await fetched(kit, subscription(**again, plan="other"))
    assert await standing_of(kit) == (0, 0)  # Given in June, though nothing was used; it has expired.
    await kit.record("acme", "pages", 1)
    assert await standing_of(kit) == (0, 0)


async def test_once_outlives_its_plan_even_without_usage(giving: MeterKit, clock: Clock) -> None:
    kit = giving
    await fetched(kit, subscription(**SUBSCRIBED, plan="start"))
    await kit.customers.set_plan("zeta", "start")
    await kit.customers.set_plan("zeta", "none")  # In the same period, and nothing was used.
    clock.set(RENEWALS[0] + timedelta(hours=1))
    ended = subscription(**SUBSCRIBED, plan="start", status="canceled", ended_at_ms=RENEWALS[0])
    await fetched(kit, ended)
    for customer, found in (("acme", 70), ("zeta", 0)):
        assert await standing_of(kit, customer) == (found, 0)
    clock.advance(timedelta(days=9))
    await fetched(kit, subscription(**_next(clock.now(), plan="plain")))
    assert await standing_of(kit) == (370, 0)
    clock.set(NOW + timedelta(days=90))
    assert await standing_of(kit) == (300, 0)
    await fetched(kit, subscription(**_next(clock.now() - timedelta(days=5), plan="other")))
    assert await standing_of(kit) == (50, 0)  # The part of `plain`; `other` does not give it again.


@pytest.mark.parametrize(("default", "found"), [("none", 70), ("plain", 77)])
async def test_once_added_later_counts_from_the_first_known_period(
    store_url: str, clock: Clock, default: str, found: int
) -> None:
    """What the file said earlier is not known, nor since when a customer is on the default plan."""
    before = PLANS.replace("default_plan: none", f"default_plan: {default}")
    once = "{credit: ai, quantity: 7, every: once}, {credit: ai, quantity: 70, every: once, expires: 90d}"
    after = before.replace("{credit: ai, quantity: 300, every: period, id: monthly}", once)
    async with kit_of(store_url, clock, before) as kit:
        await kit.customers.set_plan("acme", "plain")
        await kit.record("acme", "pages", 1)
    clock.set(JULY + timedelta(days=1))
    async with kit_of(store_url, clock, after) as kit:
        await kit.customers.set_plan("newcomer", "plain")
        assert await standing_of(kit) == (found, 0)
        assert await standing_of(kit, "newcomer") == (77, 0)


async def test_once_without_a_life_ends_with_its_period(giving: MeterKit, clock: Clock) -> None:
    kit = giving
    await kit.customers.set_plan("acme", "short")
    await kit.customers.set_plan("zeta", "short")
    await use(kit, 10)
    for at in (JULY, AUGUST):
        clock.set(at)
        for customer in ("acme", "zeta"):
            assert await standing_of(kit, customer) == (0, 0)


async def test_once_is_remembered_without_a_record(valkey: Server, clock: Clock) -> None:
    text = ONCE.replace("default_plan: none", "default_plan: start")
    async with kit_of(valkey.url, clock, text) as kit:
        await use(kit, 10)
        (grants,) = valkey.command("KEYS", "*:g:*")
        assert valkey.command("PTTL", grants) == -1
