"""I3: decisions about money in four processes are those of rational numbers, worked out here once more.

All four processes decide for each customer. The decisions of one customer follow one another, so a reference
knows their order; those of different customers race. ``METERKIT_DECISIONS`` says how many there are.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from datetime import timedelta
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import pytest

from delivering import NOW
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from workers import start

if TYPE_CHECKING:
    from workers import Worker

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  input_tokens:  {unit: token}
  output_tokens: {unit: token}
  images:        {unit: image, stripe: {event_name: images}}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices, markup: 37%}
    models:
      "small-*": {input_tokens: 0.15 per 1_000_000, output_tokens: 0.61 per 1_000_000}
      "large-*": {input_tokens: 3 per 1_000_000, output_tokens: 15 per 1_000_000}
      "*":       {input_tokens: 0.7 per 1_000_000, output_tokens: 1.9 per 1_000_000}
routes:
  - match: "POST /chat"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 1_000, ceiling: 1_000_000}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    budget: {amount_cents: 300}
    meters:
      images: {included: 2, overage: {bill: {per: 3, amount_cents: 50}}}
"""
DECISIONS: Final = int(os.environ.get("METERKIT_DECISIONS", "3000"))
PROGRAM: Final = Path(__file__).parents[1] / "exact_process.py"
CUSTOMERS: Final = 25
STEPS: Final = 60
PROCESSES: Final = 4
CENT: Final = 10_000
# Dollars for a million tokens are micro-dollars for one.
MARKUP: Final = Fraction(137, 100)
PRICES: Final = {
    "small-1": (Fraction(15, 100), Fraction(61, 100)),
    "large-1": (Fraction(3), Fraction(15)),
    "other": (Fraction(7, 10), Fraction(19, 10)),
}
IMAGE: Final = Fraction(50 * CENT, 3)


def charged(model: str, entered: int, left: int) -> Fraction:
    """What a call costs, in micro-dollars."""
    price_in, price_out = PRICES[model]
    return (entered * price_in + left * price_out) * MARKUP


class Account:
    """What the reference knows of a customer. All amounts are micro-dollars."""

    def __init__(self, day_cents: int | None) -> None:
        self.balance = self.granted = self.paid = 0
        self.limits = {"period": 300 * CENT} | ({} if day_cents is None else {"day": day_cents * CENT})
        self.spent = {"period": 0, "day": 0}
        self.charged = self.images = 0
        self.held: dict[str, int] = {}
        self.carried: dict[int, Fraction] = defaultdict(Fraction)

    def begins(self, span: str) -> None:
        """A day or a period begins."""
        self.spent["day"] = 0
        if span == "period":
            self.spent["period"] = self.charged = self.images = 0

    def refuses(self, needed: int, *, is_prepaid: bool) -> set[str]:
        """The limits that refuse such a cost."""
        held = sum(self.held.values())
        found = {"balance"} if is_prepaid and needed > self.balance - held else set[str]()
        if needed > 0 and any(needed > most - self.spent[span] - held for span, most in self.limits.items()):
            found.add("spend")
        return found

    def uses(self, process: int, cost: Fraction) -> None:
        """A call was charged; what a process cannot count in whole units it carries."""
        total = self.carried[process] + cost
        units = floor(total)
        self.carried[process] = total - units
        self.paid += min(units, self.balance)
        self.balance -= min(units, self.balance)
        self.charged += units
        self._spend(units)

    def image_cost(self, quantity: int) -> int:
        """What so many more images cost."""
        return self._overage(self.images + quantity) - self._overage(self.images)

    def takes_images(self, quantity: int) -> None:
        self._spend(self.image_cost(quantity))
        self.images += quantity

    def _spend(self, micros: int) -> None:
        for span in self.spent:
            self.spent[span] += micros

    def _overage(self, images: int) -> int:
        return ceil(max(0, images - 2) * IMAGE)


class Customer:
    """A customer, whose decisions follow one another."""

    def __init__(self, name: str, racers: list[tuple[Worker, asyncio.Lock]], kit: MeterKit) -> None:
        self.name, self.racers, self.kit = name, racers, kit
        self.random = Random(name)  # noqa: S311 - repeatable
        self.day_cents = self.random.choice((None, None, 40, 120))
        self.account = Account(self.day_cents)
        self.open: dict[str, tuple[int, int]] = {}
        self.decided = self.number = 0
        self.seen: set[str] = set()

    async def ask(self, process: int, do: str, **arguments: Any) -> Any:
        worker, lock = self.racers[process]
        async with lock:
            return await worker.ask(do, **arguments)

    async def live(self) -> None:
        """Some steps, at whose end no call is open."""
        chance = self.random
        for _ in range(STEPS):
            step = chance.choices(
                (self.begin, self.end, self.images, self.record, self.grant, self.limit), (8, 6, 4, 1, 2, 1)
            )[0]
            await step()
        while self.open:
            await self.end()
        await self.check()

    async def begin(self) -> None:
        model, at_most = self.random.choice(tuple(PRICES)), self.random.choice((1, 50, 1000, 9000, 40_000))
        process = self.random.randrange(PROCESSES)
        self.number += 1
        call = f"{self.name}-{self.number}"
        needed = ceil(charged(model, 0, at_most))
        against = self.account.refuses(needed, is_prepaid=True)
        found = await self.ask(process, "begin", customer=self.name, call=call, model=model, at_most=at_most)
        self.agree(found == "", not against, call, model, at_most, found)
        # If only one limit refuses, the answer names it.
        if len(against) == 1:
            self.agree(found == "spend-limit-reached", against == {"spend"}, call, found)
        if not against:
            self.account.held[call] = needed
            self.open[call] = process, at_most
        self.seen |= against or {"served"}

    async def end(self) -> None:
        if not self.open:
            return
        call = self.random.choice(tuple(self.open))
        process, at_most = self.open.pop(call)
        # The provider may report another model, and more input than the hold allowed for.
        model, entered = self.random.choice(tuple(PRICES)), self.random.choice((0, 0, 7, 999))
        left = self.random.choice((at_most, self.random.randrange(at_most + 1), 0))
        status = await self.ask(process, "end", call=call, model=model, entered=entered, left=left)
        self.agree(status, 200, call)
        del self.account.held[call]
        self.account.uses(process, charged(model, entered, left))

    async def record(self) -> None:
        model, entered, left = self.random.choice(tuple(PRICES)), self.random.randrange(500), 77
        process = self.random.randrange(PROCESSES)
        await self.ask(process, "record", customer=self.name, model=model, entered=entered, left=left)
        self.account.uses(process, charged(model, entered, left))

    async def images(self) -> None:
        quantity = self.random.choice((1, 1, 2, 4))
        against = self.account.refuses(self.account.image_cost(quantity), is_prepaid=False)
        process = self.random.randrange(PROCESSES)
        found = await self.ask(process, "consume", customer=self.name, quantity=quantity)
        self.agree(found, "spend" if against else "", "images", quantity)
        if not against:
            self.account.takes_images(quantity)
        self.seen |= {f"images {found}"}

    async def grant(self) -> None:
        if self.account.balance > 1000 * CENT:
            return
        self.number += 1
        await self.kit.grants.add(self.name, {"usd": 1}, grant_id=f"{self.number}")
        self.account.balance += 100 * CENT
        self.account.granted += 100 * CENT

    async def limit(self) -> None:
        cents = self.random.choice((None, 0, 90, 250))
        await self.kit.customers.spend_limit(self.name, cents)
        self.account.limits["period"] = (300 if cents is None else cents) * CENT

    async def check(self) -> None:
        """Compare the counts of the store with the reference."""
        account, usage = self.account, await self.kit.usage(self.name)
        meters = usage["meters"]
        found = [meters[name]["recorded"] for name in ("usd_charged", "images", "spend")]
        self.agree(found, [account.charged, account.images, account.spent["period"]], "counts")
        self.agree(meters["usd_charged"]["held"], 0, "held")
        self.agree(usage["balance_micros"].get("usd", 0), account.balance, "balance")
        ledger = await self.kit.grants.ledger(self.name)
        self.agree(sum(line.quantity for line in ledger), account.granted - account.paid, "ledger")

    def agree(self, found: object, expected: object, *what: object) -> None:
        self.decided += 1
        account = self.account
        assert found == expected, (
            self.name,
            what,
            account.balance,
            account.limits,
            account.spent,
            account.held,
        )


async def test_i3_money_is_exact_in_four_processes(store_url: str) -> None:
    options = {"store": store_url, "plans": PLANS, "now": NOW.isoformat()}
    started = await asyncio.gather(*(start(options, PROGRAM) for _ in range(PROCESSES)))
    racers = [(worker, asyncio.Lock()) for worker in started]
    clock, now, chance = Clock(NOW), NOW, Random(1)  # noqa: S311 - repeatable
    settings: dict[str, Any] = {"flush": False, "shards": 4, "store_timeout": 10.0, "clock": clock}
    try:
        async with MeterKit(loads(PLANS), redis_url=store_url, **settings) as kit:
            customers = [Customer(f"c{place}", racers, kit) for place in range(CUSTOMERS)]
            for customer in customers:
                if customer.day_cents is not None:
                    await kit.customers.spend_limit(customer.name, customer.day_cents, per="day")
            while sum(customer.decided for customer in customers) < DECISIONS:
                await asyncio.gather(*(customer.live() for customer in customers))
                later = now + timedelta(days=chance.choice((1, 1, 31)))
                span = "period" if (later.year, later.month) != (now.year, now.month) else "day"
                now = later
                clock.set(now)
                for worker in started:
                    await worker.ask("now", at=now.isoformat())
                for customer in customers:
                    customer.account.begins(span)
    finally:
        for worker in started:
            worker.process.stdin.close()
            await worker.process.wait()
    seen = set[str]().union(*(customer.seen for customer in customers))
    assert seen >= {"served", "balance", "spend", "images ", "images spend"}
