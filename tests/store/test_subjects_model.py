"""Users and teams inside a customer's limits, against an independent reference in exact integers."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil
from random import Random
from typing import TYPE_CHECKING, Final

import pytest

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.decisions.periods import bounds_at
from meterkit.testing import Clock
from store.subject_books import DAY_MS, HOUR_MS, MINUTE_MS, SLOT_MS, Hold, Limits, Owner

if TYPE_CHECKING:
    from meterkit.store.holds import Reservation

pytestmark = [pytest.mark.anyio, pytest.mark.each_store]

NOW: Final = datetime(2031, 6, 27, 23, 50, 30, tzinfo=UTC)
PRICE: Final = Fraction(70_000, 3000)  # Seven cents for 3000 words, in micro-units.
PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  calls: {unit: call}
  words: {unit: word, stripe: {event_name: words}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    meters:
      calls: {rate: 40/minute}
      words: {included: 9000, overage: {bill: {per: 3000, amount_cents: 7, cap: 6000}}}
    subjects:
      user:
        calls:
          rate:
            - 7/minute
            - {limit: 20/hour, algorithm: fixed-window}
            - {limit: 6/5 minutes, algorithm: token-bucket, burst: 9}
        words: {included: 5000}
        budget: {amount_cents: 9, per: SPAN}
      team:
        words: {included: 8000}
        budget: {amount_cents: 15}
"""
NAMES: Final = {
    "sliding": "calls-1m",
    "fixed": "calls-1h",
    "bucket": "calls-5m",
    "words": "words-period",
}


class World:
    """One customer, some users and teams, and the same in the books."""

    def __init__(self, kit: MeterKit, clock: Clock, span: str, seed: int) -> None:
        self.kit, self.clock, self.span = kit, clock, span
        self.random = Random(seed)  # noqa: S311 - repeatable
        window = {"period": 0, "day": DAY_MS, "hour": HOUR_MS}[span]
        user = Limits(5000, (7, MINUTE_MS), (20, HOUR_MS), (6, SLOT_MS, 9), (90_000, window))
        self.customer = Owner(Limits(15_000, (40, MINUTE_MS)))
        self.subjects = {("user", f"u{n}"): Owner(user) for n in range(3)}
        self.subjects |= {
            ("team", name): Owner(Limits(8000, budget=(150_000, 0))) for name in ("red", "blue")
        }
        self.stack = AsyncExitStack()
        self.open: list[tuple[Reservation, dict[str, str], int]] = []
        self.seen: set[str] = set()

    @property
    def now(self) -> int:
        return int(self.clock() * 1000)

    def owners(self, given: dict[str, str]) -> dict[str, Owner]:
        period = bounds_at(self.now).start_ms
        found = {"": self.customer, **{kind: self.subjects[kind, name] for kind, name in given.items()}}
        for owner in found.values():
            owner.at(self.now, period)
        return found

    def refusals(self, owners: dict[str, Owner], calls: int, words: int) -> set[str]:
        found: set[str] = set()
        for kind, owner in owners.items():
            for limit in owner.refusals(self.now, calls, words, ceil(words * PRICE)):
                span = {"period": "period", "day": "1d", "hour": "1h"}[
                    self.span if kind == "user" else "period"
                ]
                name = f"spend-{span}" if limit == "budget" else NAMES[limit]
                found.add(f"{kind}:{name}" if kind else name)
        return found

    async def step(self) -> None:
        given = {"user": f"u{self.random.randrange(3)}"}
        if self.random.random() < 0.6:
            given["team"] = self.random.choice(("red", "blue"))
        if self.random.random() < 0.1:
            given = {}
        deed = self.random.choices(("call", "words", "record", "hold", "end", "wait"), (6, 4, 2, 4, 4, 3))[0]
        quantity = self.random.choice((1, 1, 2, 7, 100, 333, 1000, 2500))
        owners = self.owners(given)
        if deed == "wait":
            self.clock.advance(timedelta(milliseconds=self.random.choice(WAITS)))
        elif deed == "call":
            quantity = min(quantity, 5)
            expected = self.refusals(owners, quantity, 0)
            decision = await self.kit.consume("ada", "calls", quantity, subjects=given)
            self.compare(expected, decision.violated, allowed=decision.allowed)
            for owner in owners.values() if not expected else ():
                owner.admit(self.now, quantity, None)
        elif deed == "words":
            expected = self.refusals(owners, 0, quantity)
            decision = await self.kit.consume("ada", "words", quantity, subjects=given)
            self.compare(expected, decision.violated, allowed=decision.allowed)
            for owner in owners.values() if not expected else ():
                owner.record(self.now, quantity, PRICE)
        elif deed == "record":
            await self.kit.record("ada", "words", quantity, subjects=given)
            for owner in owners.values():
                owner.record(self.now, quantity, PRICE)
        elif deed == "hold":
            await self.hold(given, owners, quantity)
        elif self.open:
            await self.end()

    async def hold(self, given: dict[str, str], owners: dict[str, Owner], quantity: int) -> None:
        expected = self.refusals(owners, 0, quantity)
        reservation = self.kit.reserve("ada", {"words": quantity}, subjects=given)
        await reservation.__aenter__()
        self.compare(expected, reservation.decision.violated, allowed=reservation.decision.allowed)
        if not expected:
            slot = self.now // SLOT_MS
            for owner in owners.values():
                owner.admit(self.now, 0, Hold(slot, quantity, ceil(quantity * PRICE)))
            self.open.append((reservation, given, slot))

    async def end(self) -> None:
        reservation, given, slot = self.open.pop(self.random.randrange(len(self.open)))
        used = self.random.choice((0, 1, 50, 500, 2000))
        quantity = dict(reservation._quantities)["words"]  # pyright: ignore[reportPrivateUsage] - what it holds
        await reservation.capture({"words": used})
        for owner in self.owners(given).values():
            hold = next((one for one in owner.holds if (one.slot, one.words) == (slot, quantity)), None)
            if hold is not None:
                owner.holds.remove(hold)
            owner.record(self.now, used, PRICE)

    def compare(self, expected: set[str], violated: tuple[str, ...], *, allowed: bool) -> None:
        assert (expected, not expected) == (set(violated), allowed)
        self.seen |= expected

    async def figures(self) -> None:
        """What the kit says of each user and team is what the books say."""
        for kind in ("user", "team"):
            for one in await self.kit.usage("ada", by=kind):
                owner = self.subjects[kind, one.subject]
                owner.at(self.now, bounds_at(self.now).start_ms)
                assert one.meters["words"].recorded == owner.words
                assert one.meters["words"].held == sum(hold.words for hold in owner.holds)
                span = owner.limits.budget[1] if owner.limits.budget else 0
                spent = sum(m for at, m in owner.spent if span and at // span == self.now // span)
                assert one.spent_micros == (spent if span else owner.micros)


SPANS: Final = {"period": "period", "day": "1d", "hour": "1h"}
WAITS: Final = (10, 900, 7000, 31_000, 65_000, 299_000, 301_000, 700_000, 3_600_000, 40_000_000, 90_000_000)


@pytest.mark.parametrize("span", ["period", "day", "hour"])
@pytest.mark.parametrize("seed", range(4))
async def test_users_and_teams_are_limited_to_the_unit(any_store_url: str, span: str, seed: int) -> None:
    clock = Clock(NOW)
    catalog = loads(PLANS.replace("SPAN", span))
    async with MeterKit(
        catalog, clock=clock, redis_url=any_store_url, flush=False, shards=4, store_timeout=10
    ) as kit:
        world = World(kit, clock, span, seed)
        for nth in range(200):
            await world.step()
            if nth % 10 == 0:
                await world.figures()
        await world.figures()
        for reservation, _, _ in world.open:
            await reservation.release()
    assert world.seen & {"user:words-period", f"user:spend-{SPANS[span]}"}
    assert world.seen & {"user:calls-1m", "user:calls-5m", "user:calls-1h"}
