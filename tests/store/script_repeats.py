"""A random life of requests with idempotency keys: the scripts, and a model that says what they answer."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.catalog import loads
from meterkit.decisions.asked import Demand
from meterkit.decisions.keys import concurrency_field, meter_field
from meterkit.decisions.packed import MeterCounts
from meterkit.decisions.program import compile_program
from meterkit.decisions.verdict import refused
from meterkit.redis.connection import pack
from meterkit.store.hold import Held, Mark, Used
from meterkit.store.idempotency import MarkedDecision
from meterkit.store.settlement import Settlement
from meterkit.store.views import PreparedDecision
from store.script_counts import DAY_MS, SLOT_MS
from store.script_gauges import GaugeWorld

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from store.script_wires import Wire

MOST: Final = 4
HOUR_MS: Final = 3_600_000
PLANS: Final = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  jobs:    {unit: job}
  calls:   {unit: call, stripe: {event_name: calls}}
  notes:   {unit: note}
  storage: {unit: byte, kind: gauge}
credits:
  coin: {costs: {calls: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      jobs:    {rate: {limit: 12/hour, algorithm: fixed-window}, included: 40, concurrency: 9}
      calls:   {included: 0, overage: bill}
      storage: {included: 100}
    grants: [{credit: coin, quantity: 5, every: period}]
""")


class Admitted(NamedTuple):
    """A request that was admitted: how, what holds for it by now, and since which slot."""

    decision: PreparedDecision
    holder: PreparedDecision
    slot: int


class RepeatWorld(GaugeWorld):
    """One customer without a state, few keys, and room for four of them."""

    catalog = PLANS

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        few = {name: text.replace("'+inf') < 10000", f"'+inf') < {MOST}") for name, text in texts.items()}
        super().__init__(wire, few, random)
        del self.gauges["seats"]
        self.admitted: list[Admitted] = []
        self.marks: dict[str, int] = {}
        self.rated: Counter[int] = Counter()
        self.recorded: Counter[str] = Counter()
        self.held: Counter[tuple[str, int]] = Counter()
        self.month: tuple[int, int] | None = None

    def step(self) -> None:
        """Let time pass or not, then something is done; then all is compared."""
        if self.random.random() < 0.6:
            self.wall += self.random.choice((1, 1000, 60_000, *self._turns()))
        deeds = (self.decide, self.decide, self.settle, self.settle, self.renew, self.change)
        self.random.choice(deeds)()
        self._compare_all()

    def _turns(self) -> list[int]:
        left = [SLOT_MS - self.wall % SLOT_MS, 2 * SLOT_MS, HOUR_MS - self.wall % HOUR_MS]
        left += [until - self.wall for until in self.marks.values() if until > self.wall]
        left += [DAY_MS] * (self.random.random() < 0.3)
        return [max(0, some + self.random.choice((-1, 0, 0, 1))) for some in left]

    def change(self) -> None:
        self.gauges["storage"].level = self.random.choice((0, 50, 90))
        self.gauges["storage"].over_ms = 0
        stored = self.gauges["storage"].stored()
        keys = self.keys.customer("ada")
        self.wire(pack("HDEL", keys.levels, "storage"))
        if stored is not None:
            self.wire(pack("HSET", keys.levels, "storage", stored))

    def decide(self) -> None:
        meters = self.random.sample(("jobs", "calls", "storage", "notes"), self.random.choice((1, 2, 3, 4)))
        most = {"jobs": 6, "calls": 4, "storage": 60, "notes": 3}
        demands = {name: Demand.of(self.random.randrange(1, most[name])) for name in meters}
        mode = self.random.choice("dddfs")
        digest = self.random.choice((None, "d0", "d1", "d2", "d3", "d4", "d5"))
        known = self.processes[0].get("ada")
        decision = known.prepare_asking(demands, mode, in_flight=True)
        at_once = self.random.random() < 0.3  # Notes are recorded by the decision itself.
        if at_once:
            program = compile_program(
                known.entitlements, PLANS, demands, billed_always=True, prepaid=known.prepaid
            )
            decision = PreparedDecision(known, program, mode)
        if digest is not None:
            decision = MarkedDecision(decision, digest)
        reply: Any = self.send(b"".join(decision.packed))
        if reply[0] == 2:
            self.processes[0].learn(known, reply)
            return
        self._roll()
        twin = self._twin(digest)
        what = f"{mode} {digest} {demands}"
        if twin == 7 and mode != "s":
            self.seen.add("in flight")
            self.compare(what, [7, self.wall, 0, 0, 0], reply)
            return
        full = self._violated(demands, is_repeat=twin == 6)
        code = twin
        if full and not (mode == "s" and twin):
            code = 5 if mode == "s" else 8 if twin else 1
        self.seen.add(f"{mode} {code}")
        self.compare(what, code, reply[0])
        if code in {1, 8}:
            self.compare(f"violated {what}", tuple(full), refused(decision.exact(), reply, 0).violated)
            return
        if code not in {1, 5, 8} and reply[2]:
            nearest = decision.program.measures[int(reply[2]) - 1].policy
            self.compare("nearest", "jobs", nearest.meter)
            if nearest.kind == "period":
                left = max(0, 40 - self.recorded["jobs"]) - self._live("jobs")
                taken = 0 if twin == 6 else demands["jobs"].taken
                self.compare("what is left of it", left - taken, reply[3])
        if twin == 6:
            assert isinstance(decision, MarkedDecision)
            decision = decision.as_repeat()
        if "jobs" in demands:
            self.rated[self.wall // HOUR_MS] += demands["jobs"].taken
        if at_once and twin != 6 and "notes" in demands:
            self.recorded["notes"] += demands["notes"].taken
        self._hold(decision)
        if twin == 0 and digest is not None:
            self._remember(f"f{digest}", (self.wall // SLOT_MS + 2) * SLOT_MS)
        self.admitted.append(Admitted(decision, decision, self.wall // SLOT_MS))

    def _twin(self, digest: str | None) -> int:
        if digest is None:
            return 0
        if self.marks.get(digest, 0) > self.wall:
            return 6
        return 7 if self.marks.get(f"f{digest}", 0) > self.wall else 0

    def _violated(self, demands: Mapping[str, Demand], *, is_repeat: bool) -> list[str]:
        """The policies that refuse, in the order in which they are weighed."""
        full: list[str] = []
        jobs, storage = demands.get("jobs"), demands.get("storage")
        if jobs and self.rated[self.wall // HOUR_MS] + jobs.needed > 12:
            full.append("jobs-1h")
        if jobs and not is_repeat:
            left = max(0, 40 - self.recorded["jobs"]) - self._live("jobs")
            full += ["jobs-period"] * (jobs.needed > left)
        if jobs and self._live("flight") + 1 > 9:
            full.append("jobs-concurrency")
        if storage and not is_repeat:
            used = self.gauges["storage"].level + self._live("storage")
            full += ["storage"] * (used + storage.needed > 100)
        return full

    def settle(self) -> None:
        if not self.admitted:
            return
        decision, holder, slot = self.admitted.pop(self.random.randrange(len(self.admitted)))
        billed = not decision.is_repeat and self.random.random() < 0.6
        recorded = decision.recorded if billed else {}
        mark = Mark.of(decision, billed=billed)
        is_repeat = self._settle(holder, slot, Used(recorded=recorded), mark)
        if not is_repeat:
            self.recorded.update(recorded)
        self.seen.add(f"settled {is_repeat}")

    def _settle(self, holder: PreparedDecision, slot: int, used: Used, mark: Mark | None) -> bool:
        """Settle; whether another request with this key was billed."""
        settlement = Settlement(holder.view, held=Held.of(holder, slot), used=used, mark=mark)
        self.settled(settlement)
        self._roll()
        for meter, quantity in holder.held.items():
            self.held[meter, slot] = max(0, self.held[meter, slot] - quantity)
        for _ in holder.program.concurrency:
            self.held["flight", slot] = max(0, self.held["flight", slot] - 1)
        if mark is None:
            return False
        is_repeat = self.marks.get(mark.digest, 0) > self.wall
        if self.marks.get(f"f{mark.digest}") == (slot + 2) * SLOT_MS:
            del self.marks[f"f{mark.digest}"]
        if mark.billed and not is_repeat:
            self._remember(mark.digest, self.wall + DAY_MS)
        return is_repeat

    def renew(self) -> None:
        due = [found for found in self.admitted if found.slot < self.wall // SLOT_MS]
        if not due:
            return
        found = self.random.choice(due)
        held, digest = found.holder.held, found.decision.digest
        renewing = found.decision.view.prepare_renewing(held, found.holder.program.concurrency)
        if digest:
            renewing = MarkedDecision(renewing, digest)
        reply = self.send(b"".join(renewing.packed))
        if reply[0] == 2:
            self.processes[0].learn(renewing.view, reply)
            return
        self.compare("renewed", 0, reply[0])
        self._roll()
        slot = self.wall // SLOT_MS
        self._hold(renewing)
        if digest:
            self._remember(f"f{digest}", (slot + 2) * SLOT_MS)
        self._settle(found.holder, found.slot, Used(), Mark.of(found.decision, billed=False))
        self.admitted[self.admitted.index(found)] = Admitted(found.decision, renewing, slot)

    def _hold(self, decision: PreparedDecision) -> None:
        slot = self.wall // SLOT_MS
        for meter, quantity in decision.held.items():
            self.held[meter, slot] += quantity
        for _ in decision.program.concurrency:
            self.held["flight", slot] += 1

    def _live(self, meter: str) -> int:
        slot = self.wall // SLOT_MS
        return self.held[meter, slot] + self.held[meter, slot - 1]

    def _remember(self, member: str, until: int) -> None:
        self.marks = {name: ends for name, ends in self.marks.items() if ends > self.wall}
        if len(self.marks) < MOST:
            self.marks[member] = until

    def _roll(self) -> None:
        """What is recorded begins anew with the month."""
        now = datetime.fromtimestamp(self.wall / 1000, UTC)
        if self.month != (now.year, now.month):
            self.month = now.year, now.month
            self.recorded.clear()

    def _compare_all(self) -> None:
        keys = self.keys.customer("ada")
        for meter in ("jobs", "calls", "notes", "storage"):
            counts = MeterCounts.read(self.wire(pack("HGET", keys.counters, meter_field(meter))))
            self.compare(f"recorded of {meter}", self.recorded[meter], counts.recorded)
            self.compare(f"held of {meter}", self._live(meter), counts.held_at(self.wall))
        flight = MeterCounts.read(self.wire(pack("HGET", keys.counters, concurrency_field("jobs"))))
        self.compare("in flight", self._live("flight"), flight.held_at(self.wall))
        flat = self.wire(pack("ZRANGE", keys.marks, 0, -1, "WITHSCORES"))
        found = {name.decode(): int(float(score)) for name, score in zip(flat[::2], flat[1::2], strict=True)}
        self.compare("marks", self.marks, found)
        lives = self.wire(pack("PEXPIRETIME", keys.marks))
        lasting = not found or max(found.values()) <= lives <= self.wall + DAY_MS
        self.compare("life of the marks", True, lasting)
