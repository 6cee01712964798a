"""I3: decisions about money in four processes are those of rational numbers, worked out here once more.

All four processes decide for each customer: about its balance, overage by model, its budget and those of its
users and teams. The decisions of one customer follow one another, so a reference knows their order; those of
different customers race. ``METERKIT_DECISIONS`` says how many there are.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from datetime import timedelta
from random import Random
from typing import Any, Final, Literal

import pytest

from drivers.delivery import NOW
from drivers.worker_process import Calling
from drivers.workers import Worker, start
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from promises.exact_books import BUDGET, CENT, OVERAGE, PLANS, Account, Hold

pytestmark = pytest.mark.anyio

DECISIONS: Final = int(os.environ.get("METERKIT_DECISIONS", "350"))
CUSTOMERS: Final = 16
STEPS: Final = 40
PROCESSES: Final = 4
KINDS: Final[tuple[Literal["user"], Literal["team"]]] = ("user", "team")
MODELS: Final = tuple(OVERAGE)
COUNTED: Final = (
    *("usd_charged", "images", "spend", "output_tokens"),
    *("output_tokens:large-*", "output_tokens:(default)", "output_tokens:small-*"),
)


class Customer:
    """A customer, whose decisions follow one another."""

    def __init__(self, name: str, racers: list[tuple[Worker, asyncio.Lock]], kit: MeterKit) -> None:
        self.name, self.racers, self.kit = name, racers, kit
        self.random = Random(name)  # noqa: S311 - repeatable
        self.day_cents = self.random.choice((None, None, 40, 120))
        self.account = Account(self.day_cents)
        self.open: dict[str, tuple[int, int, dict[str, str]]] = {}
        self.decided = self.number = 0
        self.seen: set[str] = set()

    async def ask(self, process: int, do: str, **arguments: Any) -> Any:
        worker, lock = self.racers[process]
        async with lock:
            return await worker.ask(do, **arguments)

    async def live(self) -> None:
        """Some steps, at whose end no call is open."""
        steps = (self.begin, self.end, self.images, self.record, self.words, self.grant, self.limit)
        for _ in range(STEPS):
            await self.random.choices(steps, (8, 6, 4, 1, 1, 2, 1))[0]()
        while self.open:
            await self.end()
        await self.check()

    def someone(self) -> tuple[int, dict[str, str]]:
        """A process, and the subjects of a call: none, a user, a team, or both."""
        chance, given = self.random, dict[str, str]()
        if chance.random() < 0.7:
            given["user"] = chance.choice(("u1", "u2"))
        if chance.random() < 0.5:
            given["team"] = chance.choice(("red", "blue"))
        return chance.randrange(PROCESSES), given

    async def begin(self) -> None:
        model, (process, given) = self.random.choice(MODELS), self.someone()
        at_most = self.random.choice((1, 50, 1000, 9000, 40_000, 0, 0))
        if not at_most:  # The last token that fits, or one more.
            at_most = max(1, self.most_that_fits(model, given) + self.random.randrange(2))
        self.number += 1
        call, hold = f"{self.name}-{self.number}", Hold.of(model, at_most)
        against = self.account.refuses_call(hold, given)
        arguments = {"customer": self.name, "model": model, "at_most": at_most, "subjects": given}
        found = await self.ask(process, "begin", call=call, **arguments)
        self.agree(set(found), against, call, model, at_most, given)
        if not against:
            self.account.holds(call, hold, given)
            self.open[call] = process, at_most, given
        self.seen |= against or {"served"}

    def most_that_fits(self, model: str, given: dict[str, str]) -> int:
        """The most tokens that a call may ask for; 0: none."""
        return bisect_left(
            range(1, 100_000),
            1,
            key=lambda most: bool(self.account.refuses_call(Hold.of(model, most), given)),
        )

    async def end(self) -> None:
        if not self.open:
            return
        call = self.random.choice(tuple(self.open))
        process, at_most, given = self.open.pop(call)
        # The provider may report another model, and more input than the hold allowed for.
        model, entered = self.random.choice(MODELS), self.random.choice((0, 0, 7, 999))
        left = self.random.choice((at_most, self.random.randrange(at_most + 1), 0))
        status = await self.ask(process, "end", call=call, model=model, entered=entered, left=left)
        self.agree(status, 200, call)
        self.account.gives_back(call, given)
        self.account.uses(process, model, entered, left, given)

    async def record(self) -> None:
        model, entered, left = self.random.choice(MODELS), self.random.randrange(500), 77
        process, given = self.someone()
        arguments = {"model": model, "entered": entered, "left": left, "subjects": given}
        await self.ask(process, "record", customer=self.name, **arguments)
        self.account.uses(process, model, entered, left, given)

    async def words(self) -> None:
        """Tokens of no model have the price of the default, and cost what the pattern ``*`` says."""
        quantity = self.random.choice((1, 301, 5000))
        process, given = self.someone()
        await self.ask(process, "record_words", customer=self.name, quantity=quantity, subjects=given)
        self.account.uses(process, "other", 0, quantity, given)

    async def images(self) -> None:
        quantity = self.random.choice((1, 1, 2, 4))
        process, given = self.someone()
        against = self.account.refuses_images(quantity, given)
        found = await self.ask(process, "consume", customer=self.name, quantity=quantity, subjects=given)
        self.agree(set(found), against, "images", quantity, given)
        if not against:
            self.account.takes_images(process, quantity, given)
        self.seen |= {f"images {name}" for name in against} or {"images"}

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
        self.account.limits["period"] = BUDGET if cents is None else cents * CENT

    async def check(self) -> None:
        """Compare the counts of the store with the reference."""
        account, usage = self.account, await self.kit.usage(self.name)
        meters = usage["meters"]
        found = [meters[name]["recorded"] for name in COUNTED]
        counts = account.charged, account.images, account.spent["period"], account.tokens
        self.agree(found, [*counts, *account.overage.values()], "counts")
        self.agree([name for name, one in meters.items() if one["held"]], [], "held")
        self.agree(usage["balance_micros"].get("usd", 0), account.balance, "balance")
        ledger = await self.kit.grants.ledger(self.name)
        self.agree(sum(line.quantity for line in ledger), account.granted - account.paid, "ledger")
        for kind in KINDS:
            spent = {one.subject: one.spent_micros for one in await self.kit.usage(self.name, by=kind)}
            for (of, name), subject in account.subjects.items():
                if of == kind:
                    self.agree(spent.get(name, 0), subject.spent[subject.span], kind, name)

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
            {place: vars(subject) for place, subject in account.subjects.items()},
        )


@pytest.mark.dear("four processes decide 350 times, each against rational numbers")
@pytest.mark.whole
async def test_i3_money_is_exact_in_four_processes(store_url: str) -> None:
    options = {"store": store_url, "plans": PLANS, "now": NOW.isoformat()}
    started = await asyncio.gather(*(start(options, Calling) for _ in range(PROCESSES)))
    racers = [(worker, asyncio.Lock()) for worker in started]
    clock, now, chance = Clock(NOW), NOW, Random(1)  # noqa: S311 - repeatable
    settings: dict[str, Any] = {"flush": False, "shards": 4, "store_timeout": 60.0, "clock": clock}
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
            await worker.end()
    seen = set[str]().union(*(customer.seen for customer in customers))
    refused = {"usd_charged-period", "spend-period", "user:spend-period", "team:spend-1d"}
    assert seen >= refused | {"served", "images", "images spend-period", "images team:images-period"}
