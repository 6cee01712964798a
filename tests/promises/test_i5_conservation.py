"""I5: at every instant, what was recorded and is reportable is somewhere, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from redis.exceptions import RedisError

from books.conservation import REPORTED, SOMEWHERE, Sample, assert_conserved, sample
from drivers.delivery import NOW, PLANS, STRIPE_KEY, Desk, desk, flusher_of, kit_for
from drivers.sampled import some
from meterkit import MeterkitError, StoreError
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = [pytest.mark.anyio, pytest.mark.each_store(sampled=True)]

INCLUDED = {"requests": 1_000, "tokens": 100, "pages": 0}  # Of rows there is no end.
CUSTOMERS = ("acme", "zeta", "mono")


async def leases_run_out(at: Desk) -> None:
    """What a flush may have left that was cancelled; the store's own clock does not follow the test's."""
    store = at.kit.store
    client: Any = (await store.admin()).client
    for shard in range(store.keys.shards):
        await client.delete(store.keys.shard(shard, "lease"))


def month_of(clock: Clock) -> datetime:
    """When the period began that the clock is in: calendar months are counted."""
    return clock.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


class Walk:
    """A random life of three customers, with a model of what each recorded in which period."""

    def __init__(self, at: Desk, second: Any, seed: int) -> None:
        self.at = at
        self.second = second
        self.random = Random(seed)  # noqa: S311 - a schedule, not a secret
        self.linked: set[str] = set()
        self.corrected: list[tuple[str, str, str]] = []
        self.recorded: dict[tuple[str, str, str], int] = {}
        self.steps: list[Callable[[], Coroutine[Any, Any, None]]] = [
            *[self.record] * 6,
            *[self.consume] * 2,
            *[self.flush] * 3,
            self.fault,
            self.link,
            *[self.see_to] * 2,
            self.correct,
            *[self.wait] * 2,
            self.month,
        ]

    async def step(self) -> None:
        await self.random.choice(self.steps)()

    def _count(self, customer: str, meter: str, quantity: int) -> None:
        period = str(_ms(month_of(self.at.clock)))
        place = (customer, period, meter)
        self.recorded[place] = self.recorded.get(place, 0) + quantity

    async def record(self) -> None:
        customer, meter = self.random.choice(CUSTOMERS), self.random.choice(list(REPORTED))
        quantity = self.random.choice([0, 1, 7, 60, 10**9])
        await self.at.kit.record(customer, meter, quantity)
        self._count(customer, meter, quantity)

    async def consume(self) -> None:
        customer, meter = self.random.choice(CUSTOMERS), self.random.choice(list(REPORTED))
        if (await self.at.kit.consume(customer, meter, 3)).allowed:
            self._count(customer, meter, 3)

    async def flush(self) -> None:
        flushers = [self.at.flusher, self.second] if self.random.random() < 0.5 else [self.at.flusher]
        everything = self.random.random() < 0.7
        flushing = [
            asyncio.ensure_future(flusher.flush(everything=everything, timeout_s=0)) for flusher in flushers
        ]
        if self.random.random() < 0.2:
            await asyncio.sleep(self.random.random() / 50)
            flushing[0].cancel()
        while not all(task.done() for task in flushing):
            await assert_conserved(self.at.kit, CUSTOMERS)
        for task in flushing:
            with suppress(asyncio.CancelledError):
                task.result()

    async def fault(self) -> None:
        options: list[dict[str, Any]] = [
            {"action": "drop", "when": "after"},
            {"action": "drop", "when": "before"},
            {"action": "error", "when": "before", "status": 429},
            {"action": "error", "when": "before", "status": 401},
            {"action": "error", "when": "after", "status": 500},
            {"action": "error", "when": "before", "status": 400, "message": "This is not allowed."},
        ]
        self.at.emulator.fail_next(**self.random.choice(options))

    async def link(self) -> None:
        left = [customer for customer in CUSTOMERS if customer not in self.linked]
        if left:
            self.linked.add(left[0])
            await self.at.link(left[0])

    async def see_to(self) -> None:
        """Somebody sees to what is not delivered."""
        outbox, found = self.at.kit.outbox, await self.at.kit.outbox.list()
        if not found:
            return
        identifier = self.random.choice(found).identifier
        with suppress(MeterkitError):  # What is in another state is refused.
            chosen = self.random.choice(["redrive", "park", "drop"])
            await getattr(outbox, chosen)(identifier, reason="the test wants it")

    async def correct(self) -> None:
        """Somebody takes units back."""
        customer, meter = self.random.choice(CUSTOMERS), self.random.choice(list(REPORTED))
        asked, name = {meter: self.random.choice([1, 50, 10**9])}, f"c-{len(self.corrected)}"
        (found,) = await self.at.kit.correct(customer, asked, reason="a walk", correction_id=name)
        self._count(customer, meter, -found.taken_back)
        self.corrected.append((customer, str(_ms(month_of(self.at.clock))), meter))

    async def wait(self) -> None:
        self.at.clock.advance(timedelta(seconds=self.random.choice([1, 30, 70, 400, 7_000])))

    async def month(self) -> None:
        end = _ms((month_of(self.at.clock) + timedelta(days=31)).replace(day=1))
        ahead = end - self.at.clock.now_ms - self.random.choice([90_000, 30_000, 0])
        self.at.clock.advance(timedelta(milliseconds=max(ahead, 0)))

    def assert_recorded(self, customer: str, found: Sample) -> None:
        """What the store says was recorded is what was."""
        for (owner, period, meter), quantity in self.recorded.items():
            if owner == customer:
                counts = found.get((period, meter), {})
                if (owner, period, meter) in self.corrected:  # What was sent stays in its class.
                    paid = sum(counts.get(kind, 0) for kind in "igco")
                    assert paid == quantity, (customer, period, meter)
                    continue
                within = min(quantity, INCLUDED.get(meter, quantity))
                expected = (within, quantity - within)
                assert (counts.get("i", 0), counts.get("o", 0)) == expected, (customer, period, meter)


@pytest.mark.dear("all counts are compared after each of 60 steps")
@pytest.mark.parametrize("seed", some(range(6), {0}))
async def test_i5_whatever_happens_usage_is_somewhere_once(any_store_url: str, seed: int) -> None:
    async with (
        desk(any_store_url, clock=Clock(NOW)) as at,
        kit_for(any_store_url, at.url, clock=at.clock) as other,
    ):
        walk = Walk(at, flusher_of(other, at.transport), seed)
        for _ in range(60):
            await walk.step()
            await assert_conserved(at.kit, CUSTOMERS)
        for customer in CUSTOMERS:
            walk.assert_recorded(customer, await sample(at.kit, customer))

        # In the end Stripe has what was recorded and reportable, but for what it refused for good.
        while len(walk.linked) < len(CUSTOMERS):
            await walk.link()
        at.emulator.clear_faults()
        for _ in range(3):
            await leases_run_out(at)
            await at.flush(everything=True, timeout_s=0)
            at.clock.advance(timedelta(minutes=11))
        await assert_conserved(at.kit, CUSTOMERS)
        for customer in CUSTOMERS:
            found = await sample(at.kit, customer)
            for event, meter in (("api_requests", "requests"), ("ai_tokens", "tokens")):
                counts = [value for (_, name), value in found.items() if name == meter]
                letters = SOMEWHERE + SOMEWHERE.upper()
                final = {kind: sum(count.get(kind, 0) for count in counts) for kind in letters}
                assert {final[kind] for kind in "pqlQL"} == {0}, (customer, meter, final)
                # Of what is parked or was dropped nobody knows; none of it was counted twice.
                sure, accepted = final["d"] - final["D"], at.accepted(customer, event)
                assert sure - final["K"] - final["Z"] <= accepted <= sure + final["k"] + final["z"]


async def test_i5_a_store_lost_during_a_flush_changes_nothing(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link(*CUSTOMERS)
        for customer in CUSTOMERS:
            await at.kit.record(customer, "requests", 5)
        client: Any = (await at.kit.store.admin()).client
        send = at.transport.send

        async def send_and_lose_the_store(*intents: Any) -> Any:
            outcome = await send(*intents)
            with suppress(RedisError):  # Whoever kills is killed, too.
                await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
            return outcome

        at.transport.send = send_and_lose_the_store  # type: ignore[method-assign] # a fault
        with suppress(StoreError):
            await at.flush(everything=True, timeout_s=0)
        at.transport.send = send  # type: ignore[method-assign] # the fault is over
        await assert_conserved(at.kit, CUSTOMERS)
        await at.flush(everything=True, timeout_s=0)
        await assert_conserved(at.kit, CUSTOMERS)
        for customer in CUSTOMERS:
            assert at.accepted(customer) == 5
        assert STRIPE_KEY not in repr(at.transport)


YEARLY = (
    PLANS
    + """
  yearly:
    extends: pro
    price: {amount_cents: 29000, interval: year, included_per: interval}
"""
)


@pytest.mark.dear("all counts are compared after each of 50 steps")
@pytest.mark.parametrize("seed", some(range(4), {0}))
async def test_i5_holds_when_a_plan_changes_its_interval_in_mid_period(any_store_url: str, seed: int) -> None:
    random = Random(seed)  # noqa: S311 - a schedule, not a secret
    async with desk(any_store_url, clock=Clock(NOW), catalog=loads(YEARLY)) as at:
        await at.link(*CUSTOMERS)
        recorded = dict.fromkeys(CUSTOMERS, 0)
        for _ in range(50):
            customer = random.choice(CUSTOMERS)
            if random.random() < 0.4:
                await at.kit.customers.set_plan(customer, random.choice(["pro", "yearly"]))
            quantity = random.choice([1, 7, 60])
            await at.kit.record(customer, "requests", quantity)
            recorded[customer] += quantity
            hours = random.choice([0.01, 1, 30, 20 * 24])
            at.clock.advance(timedelta(hours=hours))
            if random.random() < 0.5:
                await at.flush(everything=random.random() < 0.7, timeout_s=0)
            await assert_conserved(at.kit, CUSTOMERS)
        for _ in range(3):
            await leases_run_out(at)
            await at.flush(everything=True, timeout_s=0)
            at.clock.advance(timedelta(minutes=11))
        await assert_conserved(at.kit, CUSTOMERS)
        for customer in CUSTOMERS:
            counts = (await sample(at.kit, customer)).values()
            # Stripe takes nothing older than 35 days: that waits for a person.
            find_too_late = sum(count.get("x", 0) + count.get("k", 0) for count in counts)
            assert at.accepted(customer) == recorded[customer] - find_too_late
            minutes = [event.timestamp for event in at.emulator.events if event.customer == f"cus_{customer}"]
            assert len(minutes) == len(set(minutes))
