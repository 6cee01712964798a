"""I5, I6: in whatever order the steps of delivery come, by two flushers that may crash between any two."""
# Internals: the steps of a flush in any order; a kit flushes as a whole.

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from books.conservation import assert_conserved, sample
from drivers.delivery import FAULTS, NOW, aclosing_transport, kit_for
from meterkit import MeterKit
from meterkit.decisions.periods import bounds_at
from meterkit.delivery.flush_report import FlushReport
from meterkit.delivery.flusher_setup import StripeTransport
from meterkit.delivery.intent_comparer import IntentComparer
from meterkit.delivery.sender import Elapsed, IntentSender, ShardLease, stopwatch
from meterkit.delivery.summaries import StripeSummaries
from meterkit.outbox.intents import IntentMove, SendAttempt
from meterkit.outbox.outbox import Outbox
from meterkit.stripe.api import StripeApi
from meterkit.testing import Clock, StripeEmulator
from servers.stores import Server

IS_SOAK: Final = os.environ.get("METERKIT_HYPOTHESIS_PROFILE") == "soak"
CUSTOMERS: Final = ("acme", "zeta")
EVENTS: Final = {"requests": "api_requests", "tokens": "ai_tokens"}
INCLUDED: Final = {"requests": 0, "tokens": 100}  # Of what is recorded, so much is not reported.
SHARD: Final = 0
LEASE_S: Final = 60
LIFE_S: Final = 30 * 86_400  # Stripe takes nothing that is older than 35 days.
WHICH: Final = st.integers(0, 1)


@dataclass(slots=True)
class Hands:
    """A flusher: what it remembers is what a crash makes it forget."""

    outbox: Outbox
    sender: IntentSender
    lease: ShardLease
    asked: Elapsed | None = None
    attempts: list[SendAttempt] = field(default_factory=list["SendAttempt"])
    moves: list[IntentMove] = field(default_factory=list["IntentMove"])


class World:
    """A store, Stripe, a clock for both, and two flushers."""

    kit: MeterKit
    transport: StripeTransport
    summaries: StripeSummaries

    def __init__(self, server: Server, emulator: StripeEmulator, clock: Clock, url: str) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.emulator, self.clock, self.server = emulator, clock, server
        self.recorded: dict[tuple[str, str, int], int] = {}
        self.hands: list[Hands] = []
        server.ask("FLUSHALL")
        emulator.reset()
        clock.set(NOW)
        self.run(self._start(server.url, url))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def _start(self, store: str, stripe: str) -> None:
        self.kit = await self.stack.enter_async_context(kit_for(store, stripe, clock=self.clock, shards=1))
        self.transport = await self.stack.enter_async_context(aclosing_transport(stripe))
        self.summaries = StripeSummaries(StripeApi(self.kit.settings))
        self.stack.push_async_callback(self.summaries.close)
        for event in EVENTS.values():
            self.emulator.add_meter(event)
        for customer in CUSTOMERS:
            self.emulator.add_customer(f"cus_{customer}")
            await self.kit.customers.link(customer, f"cus_{customer}")
        self.hands = [await self.newcomer() for _ in range(2)]

    async def newcomer(self) -> Hands:
        """A flusher that has just started."""
        store = self.kit.store
        outbox = Outbox(store, await store.admin())
        sender = IntentSender(store, self.transport, calls_per_s=1e6, calls_at_once=1, timeout_s=10.0)
        return Hands(outbox=outbox, sender=sender, lease=ShardLease(outbox, SHARD, clock=store.clock))

    def close(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    async def record(self, customer: str, meter: str, quantity: int) -> None:
        place = (customer, meter, bounds_at(self.clock.now_ms).start_ms)
        await self.kit.record(customer, meter, quantity)
        self.recorded[place] = self.recorded.get(place, 0) + quantity

    async def go_on(self, who: Hands, most: int, *, tells_at_once: bool) -> None:
        if who.moves and (tells_at_once or not who.attempts):
            await self.acknowledge(who)
        elif who.attempts:
            await self.deliver(who)
        else:
            await self.claim(who, most)

    async def claim(self, who: Hands, most: int) -> None:
        """Take the shard, and intents of it."""
        if not await who.lease.outlives(0):
            return
        who.asked = stopwatch(self.kit.store.clock)
        due = await who.outbox.due(SHARD, due_ms=None, most=most)
        who.attempts = await who.outbox.attempt(SHARD, due)

    async def deliver(self, who: Hands) -> None:
        """Send the first of them."""
        if who.attempts and who.asked is not None:
            moves = await who.sender.send(who.lease, [who.attempts.pop(0)], who.asked, alone=True)
            who.moves += moves

    async def acknowledge(self, who: Hands) -> None:
        """Have the store know what became of what was sent."""
        moves, who.moves = who.moves, []
        await who.outbox.settle(SHARD, moves)

    async def give_back(self, who: Hands) -> None:
        """Let others have the shard."""
        if not who.attempts and not who.moves:
            await who.outbox.lease(SHARD, ttl_ms=0)
            who.lease = ShardLease(who.outbox, SHARD, clock=self.kit.store.clock)

    def wait(self, span_s: float) -> None:
        if self.clock() + span_s > NOW.timestamp() + LIFE_S:
            return
        self.clock.advance(timedelta(seconds=span_s))
        if span_s >= LEASE_S:
            self.server.ask("DEL", f"mk:{{{SHARD}}}:lease")  # The server goes by a clock of its own.

    async def check(self) -> None:
        """I5, and what of I6 holds at every instant: Stripe has what is delivered, and nothing unrecorded."""
        await assert_conserved(self.kit, CUSTOMERS)
        billed: dict[tuple[str, str, int], int] = {}
        for event in self.emulator.events:
            place = (event.customer[4:], event.event_name, bounds_at(event.timestamp * 1000).start_ms)
            billed[place] = billed.get(place, 0) + int(event.value)
        for customer in CUSTOMERS:
            found = await sample(self.kit, customer)
            for (period, meter), counts in found.items():
                if meter in EVENTS:
                    has = billed.pop((customer, EVENTS[meter], int(period)), 0)
                    sure, open_ = counts.get("d", 0), sum(counts.get(kind, 0) for kind in "qlk")
                    assert sure <= has <= sure + open_, (customer, meter, period, has, counts)
        assert billed == {}

    async def finish(self) -> None:
        """Nothing fails any more: what is billed is what was recorded, to the unit."""
        self.emulator.clear_faults()
        for span_s in (120, 660, 27 * 3600, 660, 660, 120, 660):
            self.wait(span_s)
            report = await self.kit.flush(everything=True, timeout_s=0)
        assert (report.left, report.undelivered) == (0, [])
        await self.check()
        for (customer, meter, start_ms), quantity in self.recorded.items():
            counts = (await sample(self.kit, customer)).get((f"{start_ms}", meter), {})
            assert counts.get("d", 0) == max(0, quantity - INCLUDED[meter]), (customer, meter, start_ms)


class Life(RuleBasedStateMachine):
    """What happens to it.

    Any step may be taken at any time: which of them mean something hangs on identifiers and pauses, which are
    of chance, and what is drawn must not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = self.born()

    def born(self) -> World:
        """Where it begins."""
        raise NotImplementedError

    @rule(
        customer=st.sampled_from(CUSTOMERS),
        meter=st.sampled_from(sorted(EVENTS)),
        quantity=st.sampled_from((1, 7, 150, 10**9)),
        is_sealed=st.booleans(),
    )
    def record(self, customer: str, meter: str, quantity: int, *, is_sealed: bool) -> None:
        self.world.run(self.world.record(customer, meter, quantity))
        if is_sealed:
            self.world.run(self.world.hands[0].outbox.seal(SHARD, due_ms=None, most=50))

    @rule(
        which=WHICH,
        steps=st.integers(1, 3),
        most=st.integers(1, 3),
        fault=st.sampled_from((*FAULTS, *[None] * 4)),
        tells_at_once=st.booleans(),
    )
    def go_on(
        self, which: int, steps: int, most: int, fault: Mapping[str, Any] | None, *, tells_at_once: bool
    ) -> None:
        """What a flusher does next: it takes intents, sends one of them, or says what became of some."""
        self.world.emulator.clear_faults()
        if fault is not None:
            self.world.emulator.fail_next(**fault)
        for _ in range(steps):
            self.world.run(self.world.go_on(self.world.hands[which], most, tells_at_once=tells_at_once))

    @rule(which=WHICH)
    def give_back(self, which: int) -> None:
        self.world.run(self.world.give_back(self.world.hands[which]))

    @rule(which=WHICH)
    def crash(self, which: int) -> None:
        del self.world.hands[which]
        self.world.hands.append(self.world.run(self.world.newcomer()))

    @rule(span_s=st.sampled_from((1, 30, 61, 61, 61, 400, 7_200, 82_000, 26 * 3_600)))
    def wait(self, span_s: int) -> None:
        self.world.wait(span_s)

    @rule(before_s=st.sampled_from((90, 30, 1, 0)))
    def month(self, before_s: int) -> None:
        ahead_s = (bounds_at(self.world.clock.now_ms).end_ms - self.world.clock.now_ms) / 1000 - before_s
        if ahead_s > 0:
            self.world.wait(ahead_s)

    @rule()
    def compare(self) -> None:
        comparer = IntentComparer(self.world.kit.store, self.world.summaries)
        self.world.run(comparer.compare_due(FlushReport()))

    @invariant()
    def holds(self) -> None:
        self.world.run(self.world.check())

    def teardown(self) -> None:
        try:
            self.world.run(self.world.finish())
        finally:
            self.world.close()


@pytest.mark.dear("ten lives in any order of 50 steps")
def test_i5_i6_in_any_order_of_steps(valkey: Server) -> None:
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock)
    logging.getLogger("meterkit").setLevel(logging.CRITICAL)  # It says what it is made to say, at length.
    # A life takes half a second: a shorter one that fails as well would be looked for for minutes.
    given = settings(settings() if IS_SOAK else settings(max_examples=10), phases=[Phase.generate])
    with emulator.running() as url:

        class Here(Life):
            def born(self) -> World:
                return World(valkey, emulator, clock, url)

        run_state_machine_as_test(Here, settings=settings(given, stateful_step_count=40))
