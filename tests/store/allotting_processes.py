"""Processes that admit by allotments against a real store, one step at a time, under a clock that is set.

Each admitted request is counted here as well, and so are units that are not used. At each step the store
must have counted and held exactly these; after a kill or another plan, at least these. One who decides a
request at a time must admit it, too. Recorded and held units, and requests in flight, stay within the
limits. No reply tells of more than is left.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, ClassVar, Final, cast

from meterkit.catalog import Catalog, Entitlement, loads
from meterkit.decisions.customer_state import NO_STATE, CustomerState
from meterkit.decisions.fallback_rules import EMPTY, advance
from meterkit.decisions.keys import FORMAT, concurrency_field, meter_field
from meterkit.decisions.limit_policies import CEILING, CONCURRENCY, ceiling_of
from meterkit.decisions.packed import MeterCounts, unpack_field
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import StoreError
from meterkit.redis.connection import StoreCall, pack
from meterkit.redis.lane import Lane
from meterkit.store.allotment import TERM_MS, Allotments
from meterkit.store.settlement import Settlement, settle_decision
from meterkit.store.views import PreparedDecision
from store.script_plans import START_MS
from store.script_wires import Wire
from store.script_world import ScriptWorld, amended, fields_of, weighed

CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: small
allotment: 250ms
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  words: {unit: word, stripe: {event_name: words}}
routes:
  - {match: "GET /words", consume: {requests: 1, words: 3}, charge_on: attempt}
  - {match: "*", consume: {requests: 1}}
plans:
  bare:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {included: 400, overage: deny}}
  small:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: [200/second, 2500/9 seconds], included: 500, overage: {bill: {cap: 150}}}
      words: {rate: {limit: 5000/9 seconds, algorithm: fixed-window}}
  large:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 600/second, concurrency: 120, included: 900, overage: deny}
      words: {rate: {limit: 9000/9 seconds, algorithm: fixed-window}, included: 50_000, overage: deny}
""")
CUSTOMER: Final = "acme"
_DEEDS: Final = weighed(
    "requests 24, end_some 22, execute 12, answer 12, settle_some 12, timers 12, tick 6, lose 3, kill 0.6"
    ", stop 0.4, amend 0.4"
)
_TERM_US: Final = 1000 * TERM_MS


class Reply:
    """A future without an event loop: what is done with it is done at once."""

    def __init__(self) -> None:
        self._done: list[Callable[[Any], None]] = []
        self._outcome: Any = None
        self.is_done = False

    def add_done_callback(self, do: Callable[[Any], None]) -> None:
        self._done.append(do)

    def end(self, outcome: Any) -> None:
        self._outcome, self.is_done = outcome, True
        for do in self._done:
            do(self)

    def cancelled(self) -> bool:
        return False

    def exception(self) -> Exception | None:
        return self._outcome if isinstance(self._outcome, Exception) else None

    def result(self) -> Any:
        return self._outcome


@dataclass(eq=False)
class Timer:
    at_s: float
    do: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass(eq=False)
class Request:
    decided: PreparedDecision
    slot: int


@dataclass(eq=False)
class Granted:
    """The newest units of a line: what the store had left then of a policy, what each takes of that."""

    left: int
    unused: int
    taken: int


@dataclass(eq=False)
class Queue:
    waiting: deque[Settlement] = field(default_factory=deque["Settlement"])

    def settle(self, settlement: Settlement) -> None:
        self.waiting.append(settlement)


class Process:
    """One process: what it knows, asks, serves and settles; it stands for its lane, too."""

    def __init__(self, world: Processes) -> None:
        self.world = world
        self.connected, self.is_open = True, False
        self.cache = world.process()
        self.queues = [Queue()]
        self.timers: list[Timer] = []
        self.calls: list[tuple[StoreCall, Reply]] = []
        self.replies: list[tuple[StoreCall, Reply, Any]] = []
        self.serving: list[Request] = []
        self.granted: dict[PreparedDecision, Granted] = {}
        self.producer, self.number, self.taken = f"p{next(world.numbers)}", 0, 0
        self.allotments = Allotments(cast("Lane", self), clock=lambda: world.mono_us / 10**6)

    def settle(self, settlement: Settlement) -> None:
        self.queues[0].settle(settlement)

    def call(self, call: StoreCall) -> Any:
        reply = Reply()
        self.calls.append((call, reply))
        return reply

    def call_later(self, after_s: float, do: Callable[[], None]) -> Timer:
        timer = Timer(self.world.mono_us / 10**6 + after_s, do)
        self.timers.append(timer)
        return timer

    def run_timers(self) -> None:
        """Do what is due; what that sets for now is due the next time."""
        now_s = self.world.mono_us / 10**6
        due = [timer for timer in self.timers if timer.at_s <= now_s]
        self.timers = [timer for timer in self.timers if timer.at_s > now_s]
        for timer in due:
            if not timer.is_cancelled:
                timer.do()


class Processes(ScriptWorld):
    catalog: Catalog = CATALOG
    says: ClassVar = frozenset(
        {"unit", "decided", "refused", "killed", "stopped", "late", "full c", "exact", "exact c", "exact n"}
    )
    """What a run comes to, so that no check is idle."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.numbers, self.own = count(), self.keys.customer(CUSTOMER)
        self.wall_us, self.mono_us, self.seen = START_MS * 1000, 10**9, 0
        self.stepped_us = -1  # When the store's clock was set forward last, by the clock that is not.
        self.rev, self.amended_us = NO_STATE, -1
        self.inexact_ms = 0  # A kill or another plan leaves units counted in the windows that are on.
        self.admitted = Counter[tuple[str, int]]()  # Of each rate and window.
        self.billed = self.lost = 0
        self.plan = self.catalog.default_plan
        self.least = Counter[tuple[str, str]]()  # Of each meter by kind: what is left below 0 already.
        self.unheld = Counter[str]()  # Units recorded since the last step without a hold.
        self.looked_ms = 0  # When that was.
        self.said = Counter[str]()
        self.processes = [Process(self) for _ in range(3)]
        self.rates = self._rates()

    # Steps.

    def step(self) -> None:
        process = self.random.choice(self.processes)
        self.one_of(_DEEDS)(process)
        self.check()

    def requests(self, process: Process) -> None:
        """Some requests come one after the other; the store answers meanwhile."""
        route = self.random.choice(self.catalog.routes)
        for _ in range(self.random.choice((1, 3, 12, 40))):
            self.request(process, route)
            if self.random.random() < 0.2:
                self.execute(process)

    def request(self, process: Process, route: Any) -> None:
        view = process.cache.get(CUSTOMER)
        asked = view.decisions.get(id(route)) or view.prepare(route)
        decided, reply = process.allotments.admit(asked, route)
        if reply is not None:
            process.taken += 1
            is_old = view.rev != self.rev
            assert not is_old or self.mono_us - self.amended_us < _TERM_US, "a state binds within a term"
            granted = process.granted[decided]
            granted.unused -= 1
            most = granted.left + granted.unused * granted.taken
            assert reply[3] <= most, f"{reply[3]} told, {most} left"
            self._admit(process, decided, reply, is_judged=not is_old)
            self.said["unit"] += 1
            return
        decided, reply = self.decided(view, lambda view: view.prepare(route))
        if reply[0] == 0:
            # What it records by itself is not looked at: its settlement holds nothing.
            self._admit(process, decided, reply, is_judged=True)
            self.said["decided"] += 1
        else:
            self.said["refused"] += 1

    def _admit(self, process: Process, decided: PreparedDecision, reply: Any, *, is_judged: bool) -> None:
        program, granted_ms = decided.program, reply[1]
        now, bounds = max(self.seen, self.wall), decided.view.effective.bounds
        for end_ms in (bounds.end_ms, bounds.next_end_ms):
            assert (granted_ms < end_ms) is (now < end_ms) or self._was_set_forward, (
                "a period ended within a term"
            )
        for name, kind, window, limit, _, _, taken in program.rate_terms:
            its_slot, slot = granted_ms // window, now // window
            assert its_slot == slot or self._was_set_forward, f"a window of {window} ms ended within a term"
            self.admitted[name, its_slot] += taken
            counted = slot, self.admitted[name, slot], self.admitted[name, slot - 1]
            _, used = advance(kind, window, 0, counted, now)
            assert used <= limit or not is_judged, f"{used} of {limit} admitted in {window} ms"
        process.serving.append(Request(decided, granted_ms // HOLD_SLOT_MS))

    @property
    def _was_set_forward(self) -> bool:
        """Whether the clock was set forward within a term: what was granted before counts as of then."""
        return self.stepped_us >= 0 and self.mono_us - self.stepped_us < _TERM_US

    def end_some(self, process: Process) -> None:
        self.random.shuffle(process.serving)
        for _ in range(self.random.choice((1, 10, 100))):
            if process.serving:
                self.end(process, process.serving.pop())

    def end(self, process: Process, request: Request) -> None:
        decided = request.decided
        if decided.program.settles:
            settlement = settle_decision(decided, request.slot, billed=self.random.random() < 0.8)
            self.billed += settlement.used.recorded.get("requests", 0)
            (process.allotments if decided.is_allotted else process.queues[0]).settle(settlement)

    def execute(self, process: Process) -> None:
        """The store executes what it was asked; the replies are on their way."""
        self._ask(process)
        if self.random.random() < 0.7:
            self.answer(process)

    def _ask(self, process: Process) -> None:
        for call, reply in process.calls:
            answer = self.send(b"".join(call.packed))
            if answer[0] == 0:
                self._check_told(cast("Any", call)._unit, answer)
            process.replies.append((call, reply, answer))
        process.calls.clear()

    def answer(self, process: Process) -> None:
        replies, process.replies = process.replies, []
        for call, reply, answer in replies:
            if reply.is_done:
                call.on_unclaimed_reply(answer)
                self.said["late"] += 1
            else:
                if answer[0] == 0:
                    unit = cast("Any", call)._unit
                    process.granted[unit] = Granted(answer[3], answer[5], answer[6])
                reply.end(answer)

    def lose(self, process: Process) -> None:
        """A connection ends: what was asked may be executed, and replies may still come, late."""
        if self.random.random() < 0.7:
            self._ask(process)
        for _, reply in process.calls:
            reply.end(StoreError("gone"))
        process.calls.clear()
        for _, reply, _ in process.replies:
            if not reply.is_done:
                reply.end(StoreError("gone"))

    def timers(self, process: Process) -> None:
        process.run_timers()

    def settle_some(self, process: Process) -> None:
        self.apply_all(process, self.random.choice((1, 5, 50)))

    def apply_all(self, process: Process, most: int | None = None) -> None:
        """Apply the settlements of a process, or as many at most."""
        waiting = process.queues[0].waiting
        while waiting and most != 0:
            self.apply(process, waiting.popleft())
            most = most and most - 1

    def apply(self, process: Process, settlement: Settlement) -> None:
        while True:
            reply = self.send(self.packed(settlement, process.producer, process.number + 1))
            if reply[0] == 0:
                process.number += 1
                self._add_unheld(settlement)
                return
            assert reply[0] == 4, reply
            settlement.on_stale(reply)

    def kill(self, process: Process) -> None:
        """A process ends at this point; what it has not settled is lost, and no more than that."""
        allotments: Any = process.allotments
        unsettled = (*process.queues[0].waiting, *allotments._ended)
        self.lost += sum(settlement.used.recorded.get("requests", 0) for settlement in unsettled)
        self.replace(process)
        self.said["killed"] += 1
        self.inexact_ms = max(self.seen, self.wall)

    def stop(self, process: Process) -> None:
        """A process stops in order: what it serves ends before or after that."""
        if self.random.random() < 0.5:
            process.allotments.close()
        for request in process.serving:
            self.end(process, request)
        process.allotments.close()
        self.execute(process)
        self.answer(process)
        self.apply_all(process)
        self.replace(process)
        self.said["stopped"] += 1

    def replace(self, process: Process) -> None:
        self.processes.remove(process)
        self.processes.append(Process(self))

    def amend(self, process: Process) -> None:
        del process
        self.put(CustomerState(plan=self.random.choice(("bare", "small", "large"))))

    def put(self, state: CustomerState) -> None:
        before, self.rev = self.rev, f"{FORMAT}:{next(self.numbers):012x}"
        amend, revs = self.scripts["amend_state"], (before, self.rev)
        assert self.wire(amended(self.keys, amend, CUSTOMER, revs, state.dump(), self.wall)) == [0]
        self.amended_us = self.mono_us
        self.plan = state.plan or self.plan
        self.least = self.below(self.stored())
        self.inexact_ms = max(self.seen, self.wall)

    def tick(self, process: Process) -> None:
        """Time passes: a little, to an edge, or in a step of the clock."""
        chance, passed_us = self.random.random(), 0
        if chance < 0.6:
            passed_us = self.random.choice((300, 1000, 5000, 5700, 20_000, 50_000, 120_000, 249_000, 250_000))
        elif chance < 0.9:
            window_us = 1000 * self.random.choice((1000, 1000, 9000, HOLD_SLOT_MS))
            early_us = self.random.choice((-100, 0, 100, 1000, 30_000, 30_400))
            passed_us = window_us - self.wall_us % window_us - early_us
        elif chance < 0.95:
            self.turn(-self.random.choice((1000, 500_000)))
        elif chance < 0.97:
            self.turn(self.random.choice((300_000, 9_000_000)))
            self.stepped_us = self.mono_us
        else:
            self.drain()
            bounds = process.cache.get(CUSTOMER).effective.bounds
            end_ms = bounds.end_ms if self.wall < bounds.end_ms else bounds.next_end_ms
            passed_us = 1000 * self.random.choice((HOLD_SLOT_MS * 2, 9 * 86_400_000, end_ms - 40 - self.wall))
        self.go_on(max(0, passed_us))

    def go_on(self, passed_us: int) -> None:
        """Let time pass: the store's clock is a little faster than those of processes."""
        self.turn(passed_us)
        self.mono_us += passed_us - passed_us // 1000

    def turn(self, by_us: int) -> None:
        """Set the store's clock, which tells whole milliseconds."""
        self.wall_us += by_us
        self.wall = self.wall_us // 1000

    def drain(self) -> None:
        """End and settle all requests that are served: their holds must not vanish before."""
        for one in self.processes:
            for request in one.serving:
                self.end(one, request)
            one.serving.clear()
            one.allotments.flush()
            self.apply_all(one)

    # What must hold at each step.

    def check(self) -> None:
        """The store has counted at least what was admitted; units are somewhere."""
        stored = self.stored()
        if not stored:
            return
        # A script that closes a period remembers when, whatever else it comes to.
        self.seen = max(self.seen, int(unpack_field(stored["h"])[0]))
        now = max(self.seen, self.wall)
        for process in self.processes:
            allotments: Allotments = process.allotments
            assert allotments.granted == allotments.unused + process.taken + allotments.returned
        outstanding = self._outstanding
        for (name, slot), admitted in tuple(self.admitted.items()):
            window = self.rates[name][1]
            if slot < self.seen // window - 1:
                del self.admitted[name, slot]  # No clock goes back so far.
            elif slot >= now // window - 1:
                at, counted, before = self._window(stored, name)
                found = {at: counted, at - 1: before}.get(slot, 0)
                assert found >= admitted, f"{name}: {found} counted, {admitted} admitted"
                if slot * window > self.inexact_ms:
                    there = admitted + outstanding[name, slot]
                    assert found == there, f"{name}: {found} counted, {there} admitted or unused"
                    self.said["exact"] += 1
        slots, holds = now // HOLD_SLOT_MS - 1, self._holds
        for what, field_of in (("c", meter_field), ("n", concurrency_field)):
            found = MeterCounts.read(stored.get(field_of("requests"))).held_at(now)
            there = sum(units for (kind, slot), units in holds.items() if kind == what and slot >= slots)
            assert found >= there, f"{found} held, {there} served or unused"
            if slots * HOLD_SLOT_MS > self.inexact_ms:
                assert found == there, f"{found} held, {there} served or unused"
                self.said[f"exact {what}"] += 1
        self._check_limits(stored, now)

    def _check_limits(self, stored: Mapping[str, bytes], now: int) -> None:
        """Recorded and held units, and requests in flight, grow up to the limits of the plan, and no further.

        Another plan may leave less than is there already. What is recorded after its hold has vanished, or
        without one, goes beyond limits.
        """
        for (kind, meter), left in self.room(stored, now).items():
            least = self.least[kind, meter] - (self.unheld[meter] if kind == "c" else 0)
            is_back = now < self.looked_ms  # Holds that had vanished count again.
            assert left >= least or is_back, f"{left} left of {meter} ({kind}), {least} at least"
            if left <= 0:
                self.said[f"full {kind}"] += 1
        self.least, self.looked_ms = self.below(stored), now
        self.unheld.clear()

    def below(self, stored: Mapping[str, bytes]) -> Counter[tuple[str, str]]:
        """How far each meter is beyond its limits, as a number that is not above 0."""
        room = self.room(stored, max(self.seen, self.wall))
        return Counter({of: min(0, left) for of, left in room.items()})

    def room(self, stored: Mapping[str, bytes], now: int) -> dict[tuple[str, str], int]:
        """What limits leave of each meter by kind: c: of a period, n: in flight."""
        found: dict[tuple[str, str], int] = {}
        for meter, entitlement in self.catalog.plans[self.plan].entitlements.items():
            if ceiling_of(entitlement) is not None:
                found["c", meter] = self._left_of_period(stored, entitlement, now)
            if entitlement.concurrency is not None:
                in_flight = MeterCounts.read(stored.get(concurrency_field(meter))).held_at(now)
                found["n", meter] = entitlement.concurrency - in_flight
        return found

    @staticmethod
    def _left_of_period(stored: Mapping[str, bytes], entitlement: Entitlement, now: int) -> int:
        """What included and cap leave; what another plan included counts in the cap of none."""
        counts = MeterCounts.read(stored.get(meter_field(entitlement.meter)))
        left = max(0, (entitlement.included or 0) - counts.included)
        left += max(0, (entitlement.overage.cap or 0) - counts.overage)
        return left - counts.held_at(now)

    def _add_unheld(self, settlement: Settlement) -> None:
        held, now = settlement.held, max(self.seen, self.wall)
        is_held = held.slot >= now // HOLD_SLOT_MS - 1
        for meter, units in settlement.used.recorded.items():
            covered = held.quantities.get(meter, 0) if is_held else 0
            self.unheld[meter] += max(0, units - covered)

    def _check_told(self, unit: PreparedDecision, answer: Sequence[int]) -> None:
        """The reply that grants units tells of no more than the store has left then."""
        _, now, nth, told, *_ = answer
        left = self.left_of(unit, nth, now) if nth else None
        assert left is None or told <= left, f"{told} told, {left} left"

    def left_of(self, unit: PreparedDecision, nth: int, now: int) -> int | None:
        """What the store has left of one policy, counted from 1; None: others pay for it, too."""
        stored, program = self.stored(), unit.program
        measure = program.measures[nth - 1]
        if nth <= len(program.rate_terms):
            name, kind, window, limit, *_ = program.rate_terms[nth - 1]
            return limit - advance(kind, window, 0, self._window(stored, name), now)[1]
        meter = measure.policy.meter
        if measure.kind == CEILING:
            return self._left_of_period(stored, unit.view.entitlements[meter], now)
        if measure.kind != CONCURRENCY:
            return None
        return measure.limit - MeterCounts.read(stored.get(concurrency_field(meter))).held_at(now)

    @property
    def _unused(self) -> Iterator[tuple[PreparedDecision, int, int]]:
        """Units that are not used: what each stands for, when they were granted, how many."""
        for process in self.processes:
            allotments: Any = process.allotments
            for line in allotments._lines.values():
                if line.allotment is not None:
                    yield line.unit, line.allotment.at_ms, line.allotment.unused
            for call, _, answer in process.replies:
                if answer[0] == 0:
                    yield cast("Any", call)._unit, answer[1], answer[5]

    @property
    def _outstanding(self) -> Counter[tuple[str, int]]:
        """What each window has counted of units that are not used: these are here, or on their way."""
        found = Counter[tuple[str, int]]()
        for unit, at_ms, units in self._unused:
            for name, _, window, *_, taken in unit.program.rate_terms:
                found[name, at_ms // window] += units * taken
        for process in self.processes:
            for correction in (settlement.correction for settlement in process.queues[0].waiting):
                for name in correction.rates:
                    meter, window = self.rates[name]
                    found[name, correction.at_ms // window] += correction.reserved.get(meter, 0)
        return found

    @property
    def _holds(self) -> Counter[tuple[str, int]]:
        """What units and requests hold in each slot, until the store has settled these."""
        found = Counter[tuple[str, int]]()

        def add(quantities: Mapping[str, int], concurrency: Sequence[str], slot: int, times: int = 1) -> None:
            found["c", slot] += times * quantities.get("requests", 0)
            found["n", slot] += times * ("requests" in concurrency)

        for unit, at_ms, units in self._unused:
            add(unit.held, unit.program.concurrency, at_ms // HOLD_SLOT_MS, units)
        for process in self.processes:
            for request in process.serving:
                add(request.decided.held, request.decided.program.concurrency, request.slot)
            allotments: Any = process.allotments
            for settlement in (*process.queues[0].waiting, *allotments._ended):
                add(settlement.held.quantities, settlement.held.concurrency, settlement.held.slot)
        return found

    def settle_all(self) -> None:
        """Stop all processes in order: then all is recorded except what was lost with those killed."""
        for process in tuple(self.processes):
            self.stop(process)
        self.check()

    @property
    def recorded(self) -> int:
        """Requests that are recorded, in this period and those before."""
        kept = MeterCounts.read(self.stored().get(meter_field("requests"))).recorded
        closed = fields_of(self.wire(pack("HGETALL", self.own.totals)))
        token = meter_field("requests")[:4]
        of_meter = {name: int(units) for name, units in closed.items() if name.split("|")[1][:4] == token}
        return kept + sum(units for name, units in of_meter.items() if name[-1] in "iogcj")

    # What they are made of.

    def send(self, packed: bytes) -> Any:
        """A script's reply; the store never goes back behind what it has seen."""
        reply = super().send(packed)
        assert not isinstance(reply, Exception), reply
        if reply[0] == 0:
            self.seen = max(self.seen, reply[1])
        return reply

    def stored(self) -> dict[str, bytes]:
        return fields_of(self.wire(pack("HGETALL", self.own.counters)))

    def _rates(self) -> dict[str, tuple[str, int]]:
        """Of each rate its meter and its window."""
        view = self.processes[0].cache.get(CUSTOMER)
        found: dict[str, tuple[str, int]] = {}
        for plan in self.catalog.plans.values():
            for route in self.catalog.routes:
                program = view.cache.compile_route(plan.entitlements, route, None)
                for measure, terms in zip(program.measures, program.rate_terms, strict=False):
                    found[terms[0]] = measure.policy.meter, terms[2]
        return found

    @staticmethod
    def _window(stored: Mapping[str, bytes], name: str) -> tuple[int, int, int]:
        if name not in stored:
            return EMPTY
        slot, counted, before = unpack_field(stored[name])
        return int(slot), int(counted), int(before)
