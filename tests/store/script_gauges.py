"""A random life of gauges: the scripts, and a model of a few lines that says what they must answer."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, NamedTuple

from drivers.counters import pack_field
from meterkit.catalog import Catalog, loads
from meterkit.decisions.compiled_decision import compile_program
from meterkit.decisions.customer_state import NO_STATE, CustomerState
from meterkit.decisions.gauges import GaugeLimit
from meterkit.decisions.keys import concurrency_field, meter_field, meter_token
from meterkit.decisions.limit_policies import Demand
from meterkit.decisions.packed import MeterCounts, read_gauge_mark
from meterkit.decisions.periods import HOUR_MS, bounds_at
from meterkit.decisions.refusal_reasons import refused_decision
from meterkit.decisions.subscription import Status
from meterkit.redis.connection import pack, pack_each
from meterkit.store.prepared_decisions import prepare_asking
from meterkit.store.request_idempotency import MarkedDecision
from meterkit.store.reservations import prepare_renewing
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities, RepeatMark, UsedQuantities
from meterkit.store.views import CustomerView, PreparedDecision
from store.script_counts import DAY_MS, SLOT_MS, Marks, Slots
from store.script_wires import Wire
from store.script_world import OneCustomer, amended, fields_of

MOST: Final = 10**15 - 1
_FILE: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  jobs:    {unit: job}
  storage: {unit: byte, kind: gauge}
  seats:   {unit: seat, kind: gauge}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      jobs:    {rate: 9_000_000_000/hour, included: 9_000_000_000, concurrency: 9_000_000}
      storage: {included: 100, overage: {percent: 5, grace: 7d}, warn_at: [80, 100, 104]}
      seats:   {included: 3, warn_at: [50]}
    grants: [{meter: jobs, quantity: 5, every: period}]
  more:
    price: {amount_cents: 0, interval: month}
    meters:
      storage: {included: 150, overage: {percent: 10, grace: 1d}, warn_at: [99]}
      seats:   {included: 0, warn_at: [90]}
  open:
    price: {amount_cents: 0, interval: month}
    meters: {seats: {included: 5, overage: {percent: 50, grace: 1h}}}
dunning: {grace: 7d, restrict_to: more, suspend_after: 14d}
"""
PLANS: Final = loads(_FILE)
ALLOWING: Final = loads(f"{_FILE}billing: {{changes: {{over_limit: allow}}}}")
GAUGES: Final = ("storage", "seats")


@dataclass(slots=True)
class Gauge:
    level: int = 0
    over_ms: int = 0  # Since when that is too much; 0: it is not.
    fitted: int = 0  # What was included when it last was not; -1: it was unlimited.
    held: Slots = field(default_factory=Slots)
    presigned: Counter[int] = field(default_factory=Counter[int])  # By the slot before which it ends.

    def live(self, now: int) -> int:
        presigned = sum(held for slot, held in self.presigned.items() if slot > now // SLOT_MS)
        return presigned + sum(self.held.live(now))

    def look(self, limit: GaugeLimit | None, now: int) -> int:
        """Note whether the level is too much by now; the limit."""
        if limit is None or self.level <= limit.included:
            self.over_ms, self.fitted = 0, -1 if limit is None else limit.included
        elif not self.over_ms:
            self.over_ms = now
        if limit is None or (self.over_ms and limit.keeps and self.fitted < 0):
            return MOST
        most = limit.included if self.over_ms and now - self.over_ms >= limit.grace_ms else limit.most
        return max(most, self.fitted) if self.over_ms and limit.keeps else most

    def keeping(self, limit: GaugeLimit) -> set[str]:
        """What a limit of before comes to."""
        if not limit.keeps or self.level <= limit.included or 0 <= self.fitted <= limit.most:
            return set()
        return {"kept unlimited" if self.fitted < 0 else "kept"}

    def stored(self) -> bytes | None:
        return pack_field(self.level, self.over_ms, self.fitted) if self.level else None


class GaugeWorld(OneCustomer):
    """What a customer stores, and its limits."""

    catalog: Catalog = PLANS
    allows: bool = False

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.plan, self.is_restricted, self.number_of_keys = "free", False, 0
        self.gauges = {name: Gauge() for name in GAUGES}
        self.events: dict[tuple[str, str], str] = {}
        self.over: dict[str, int] = {}

    def step(self) -> None:
        if self.random.random() < 0.6:
            self.wall += self.random.choice((1, 1000, *self._edges()))
        deeds = (self.decide, self.decide, self.decide, self.settle, self.change, self.change, self.move)
        self.random.choice((*deeds, self.presign))()
        for name, gauge in self.gauges.items():
            self.compare(name, gauge.stored(), self.wire(pack("HGET", self.own.levels, name)))
        over = fields_of(self.wire(pack("ZRANGE", self.own.over, 0, -1, "WITHSCORES")))
        listed = {f"{name}:ada": since_ms for name, since_ms in self.over.items()}
        self.compare("over", listed, {name: int(float(since_ms)) for name, since_ms in over.items()})

    def _edges(self) -> list[int]:
        """What is left until something turns, and one more or less."""
        left = [SLOT_MS - self.wall % SLOT_MS, 2 * SLOT_MS]
        known = [cache.get("ada") for cache in self.processes if self.random.random() < 0.05]
        left += [view.effective.bounds.next_end_ms - self.wall for view in known]
        for name, gauge in self.gauges.items():
            limit = self._limit(name)
            if gauge.over_ms and limit is not None:
                left += [max(1, gauge.over_ms + limit.grace_ms - self.wall)] * 3
        return [max(0, some + self.random.choice((-1, 0, 0, 1))) for some in left]

    def decide(self) -> None:
        asked = self.random.choice((("storage",), ("seats",), GAUGES, ("seats", "storage")))
        quantities = {name: self._asked(name) for name in asked}
        demands = {name: Demand.of(quantity) for name, quantity in quantities.items()}
        if self.random.random() < 0.5:
            demands = {"jobs": Demand.of(1), **demands}
        mode = self.random.choice("dddcsf")
        decision, reply = self.decided(
            self.view, lambda view: prepare_asking(view, demands, mode, in_flight=True)
        )
        if mode != "f":  # Which goes by what its process knows, whatever that is.
            self.compare("plan", self.plan, decision.view.effective.plan.key)
        limits: dict[str, int] = {}
        for name in asked:
            gauge, limit = self.gauges[name], self._limit_of(decision.view, name)
            if limit is not None:
                self.seen |= gauge.keeping(limit)
                known = (gauge.over_ms, gauge.fitted)
                limits[name] = gauge.look(limit, self.wall)
                if mode == "c":
                    gauge.over_ms, gauge.fitted = known
        used = {name: self.gauges[name].level + self.gauges[name].live(self.wall) for name in limits}
        full = [name for name in limits if used[name] + demands[name].needed > limits[name]]
        expected = (5 if mode == "s" else 1) if full else 0
        self.compare(f"{mode} {demands} {used} {limits}", expected, reply[0])
        self.seen.add(f"{mode} {expected}")
        if full:
            told = refused_decision(decision.exact(), reply, 0)
            first = "storage" if "storage" in full else "seats"
            self.compare("violated", (tuple(full), first), (told.violated, told.reason))
            assert told.gauge is not None
            shown = (told.gauge.limit, told.gauge.used, told.gauge.requested)
            self.compare("told", (limits[first], used[first], demands[first].needed), shown)
        elif reply[2]:
            nearest = decision.program.measures[int(reply[2]) - 1].policy.meter
            self.compare("nearest", "jobs", nearest)
        if mode != "c" and reply[0] != 1:
            for name in limits:
                self.gauges[name].held.take(self.wall, demands[name].taken)
            self.open.append((decision, self.wall // SLOT_MS))

    def _asked(self, name: str) -> int:
        """So much that it just fits, or does not, or anything."""
        gauge, limit = self.gauges[name], self._limit(name)
        most = limit.most if limit is not None and self.random.random() < 0.7 else 100
        left = most - gauge.level - gauge.live(self.wall)
        return max(0, self.random.choice((left, left + 1, left - 1, 0, 1, self.random.randrange(40))))

    def settle(self) -> None:
        if not self.open:
            return
        decision, slot = self.open.pop(self.random.randrange(len(self.open)))
        held = HeldQuantities.of(decision, slot)
        self.settled(Settlement(decision.view, held=held))
        for name in GAUGES:
            self.gauges[name].held.give_back(self.wall, slot, held.quantities.get(name, 0))

    def presign(self) -> None:
        """Presigned uploads hold something, each of a key of its own."""
        name, size = self.random.choice(GAUGES), self.random.choice((1, 9, 29, 29, 10**9))
        gauge, ends = self.gauges[name], (self.wall + HOUR_MS) // SLOT_MS
        if self.random.random() < 0.3:
            gauge.presigned.clear()
            self.wire(pack("HDEL", self.own.levels, f"{name}+"))
        self.number_of_keys += 1
        upload = f"upload{self.number_of_keys}"
        reply = self.run("hold_upload", (self.own.levels, "uploads"), name, upload, size, self.wall)
        self.compare("presign", [0, self.wall, ends * SLOT_MS], reply)
        gauge.presigned[ends] += size
        kept = {slot: held for slot, held in gauge.presigned.items() if slot > self.wall // SLOT_MS}
        flat = [number for held in kept.items() for number in held]
        self.compare("held", pack_field(*flat), self.wire(pack("HGET", self.own.levels, f"{name}+")))
        expected = pack_field(size, self.wall, ends, "")
        self.compare("upload", expected, self.wire(pack("HGET", "uploads", upload)))
        self.seen.add("presign")

    def change(self) -> None:
        name, how = self.random.choice(GAUGES), self.random.choice(("set", "adjust"))
        gauge, limit = self.gauges[name], self._limit(name)
        near = [limit.included, limit.included + 1, limit.most, limit.most + 1] if limit else [120]
        quantity = self.random.choice((*near, 0, MOST))
        if how == "adjust":
            to_zero, to_most = -gauge.level, MOST - gauge.level
            by = (to_zero, to_zero - 1, quantity - gauge.level, to_most + 1, 1, -1, 0)
            quantity = self.random.choice(by)
        event = self.random.choice((None, None, f"e{self.random.randrange(40)}"))
        counted = None if event is None else self.events.get((event, name))
        if counted is not None and self.random.random() < 0.5:
            how, quantity = counted.split(" ")[0], int(counted.split(" ")[1])
        known = self.view
        keys = [self.own.levels, self.own.state, self.own.notices, self.own.over]
        keys += [] if event is None else [f"mk:{{0}}:e:{event}"]
        reply: Any = [2]
        while reply[0] == 2:
            if len(reply) > 1:
                known = known.cache.learn(known, reply)
            bounds, given = known.effective.bounds, known.entitlements[name]
            thresholds = " ".join(f"{least} {percent}" for least, percent in given.thresholds)
            argv = (
                *(known.rev, bounds.next_end_ms, bounds.start_ms, bounds.end_ms, bounds.next_end_ms, name),
                *(-1 if given.included is None else given.included, how, quantity, "ada", thresholds),
                *(meter_token(name), self.wall),
            )
            reply = self.run("set_level", keys, *argv)
            is_known = known.rev == self.rev and bounds.start_ms <= self.wall < bounds.next_end_ms
            self.compare("whether it is stale", not is_known, reply[0] == 2)
        changed = quantity if how == "set" else gauge.level + quantity
        code = 0 if 0 <= changed <= MOST else 4
        if counted is not None:
            code = 1 if counted == f"{how} {quantity}" else 5
        notices: list[str] = []
        if code == 0:
            notices = self._crossed(known, name, gauge.level, changed)
            gauge.look(limit, self.wall)
            gauge.level = changed
            gauge.look(limit, self.wall)
            self._list_over(name)
            if event:
                self.events[event, name] = f"{how} {quantity}"
                lives = self.wire(pack("PTTL", keys[-1]))
                self.compare("life of an event", True, 34 * DAY_MS < lives <= 35 * DAY_MS)
        self.seen.add(f"level {code}")
        if counted is not None and code == 5:
            self.compare("what an event id has changed", counted, read_gauge_mark(reply.pop(), name))
        answer = [code, self.wall, gauge.level, *([b"notice"] if notices else [])]
        self.compare(f"{how} {name} {quantity} {event}", answer, reply)
        self._check_notices(name, notices)

    def _crossed(self, known: CustomerView, name: str, before: int, after: int) -> list[str]:
        """The percentages of what is included that a gauge has reached, as they are noticed."""
        given, bounds = PLANS.plans[self.plan].entitlements[name], known.effective.bounds
        is_next, included = self.wall >= bounds.end_ms, given.included or 0
        period = (bounds.end_ms, bounds.next_end_ms) if is_next else (bounds.start_ms, bounds.end_ms)
        crossed = [one for one in given.warn_at if 100 * before < one * included <= 100 * after]
        return [f"{self.wall} {period[0]} {period[1]} {after} {one} {included}" for one in crossed]

    def _check_notices(self, name: str, notices: list[str]) -> None:
        head = {"kind": "usage.threshold", "customer": "ada", "of": name}
        told = [{**head, "numbers": numbers} for numbers in notices]
        self.compare("notices", told, self.pop_notices(self.own.notices))
        self.seen |= {"notice"} if notices else set()

    def move(self) -> None:
        """Put the customer on another plan, or on the one of who owes: somebody does, or the clock."""
        self.is_restricted = self.random.random() < 0.2
        status: Status | None = "paused" if self.is_restricted else None
        plan = self.random.choice(tuple(self.catalog.plans))
        self.plan = self.catalog.dunning.restrict_to if self.is_restricted else plan
        known, data = self.next_rev(), CustomerState(plan=plan, status=status).dump()
        if self.random.random() < 0.7:
            self._amend(known, data)
        else:
            self.put_state(data)

    def _amend(self, known: str, data: str) -> None:
        """By the script, which is told what is included from now on."""
        limits = {name: self._limit(name) for name in self.gauges}
        gauges = {name: -1 if limit is None else limit.included for name, limit in limits.items()}
        self.compare(f"amend {data}", [0], self.wire(self._amending("ada", known, data, gauges)))
        for name, gauge in self.gauges.items():
            gauge.look(limits[name], self.wall)
            self._list_over(name, exists=gauge.level > 0)
        self.seen.add("amend")

    def _list_over(self, name: str, *, exists: bool = True) -> None:
        if exists:
            self.over.pop(name, None)
        if self.gauges[name].over_ms:
            self.over[name] = self.gauges[name].over_ms

    def _amending(self, customer: str, known: str, data: str, gauges: Mapping[str, int]) -> bytes:
        ended: dict[str, object] = {"at": "0", "labels": {}}
        told = {"entries": [], "notices": [], "gauges": list(gauges.items())}
        changes = json.dumps({**told, "ended": ended, "period": [0, 0]})
        amend = self.scripts["amend_state"]
        return amended(self.keys, amend, customer, (known, self.rev), data, self.wall, changes)

    def damage(self) -> None:
        """What cannot be a level is told, and stays as it is."""
        keys, known = self.keys.customer("ida"), self.processes[0].get("ida")
        names = (keys.levels, keys.state, keys.notices, keys.over)
        view = (known.rev, 9 * 10**15, 0, 9 * 10**15, 9 * 10**15)
        argv = (*view, "storage", 5, "set", 1, "ida", "", "t", self.wall)
        level = pack("EVALSHA", self.scripts["set_level"].sha, len(names), *names, *argv)
        packed = b"".join(prepare_asking(known, {"storage": Demand.of(1)}, "f").packed)
        amend = self._amending("ida", NO_STATE, "{}", {"storage": 5})
        for wrong in (b"1x", b"", pack_field(1, 2), pack_field(*range(4)), b"\x07" + pack_field(1, 2, 3)[1:]):
            self.wire(pack("HSET", keys.levels, "storage", wrong))
            for request in (level, amend, packed + pack_each([self.wall])):
                self.compare(f"{wrong!r}", True, "DAMAGED field storage" in str(self.wire(request)))
            self.compare("state", 0, self.wire(pack("EXISTS", keys.state)))
            self.compare(f"after {wrong!r}", wrong, self.wire(pack("HGET", keys.levels, "storage")))
        self.wire(pack("HDEL", keys.levels, "storage"))
        sha, asked = self.scripts["hold_upload"].sha, ("storage", "a", 1, self.wall)
        presign = pack("EVALSHA", sha, 2, keys.levels, "u", *asked)
        for wrong in (b"1x", pack_field(1), pack_field(1, 2, 3), b"\x07" + pack_field(1, 2)[1:]):
            self.wire(pack("HSET", keys.levels, "storage+", wrong))
            for request in (presign, packed + pack_each([self.wall])):
                self.compare(f"{wrong!r}+", True, "DAMAGED holds storage" in str(self.wire(request)))
            self.compare("uploads", 0, self.wire(pack("EXISTS", "u")))

    def _limit(self, name: str) -> GaugeLimit | None:
        given = self.catalog.plans[self.plan].entitlements[name]
        return GaugeLimit.of(given, keeps=self.allows and not self.is_restricted)

    def _limit_of(self, view: CustomerView, name: str) -> GaugeLimit | None:
        """What a process knows, which need not be so any more."""
        keeps = self.allows and view.effective.access != "restricted"
        return GaugeLimit.of(view.entitlements[name], keeps=keeps)


class KeepingWorld(GaugeWorld):
    """The same, where gauges above their limits keep those of before."""

    catalog = ALLOWING
    allows = True


MARKS: Final = 4
REPEATED: Final = loads("""
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

    catalog = REPEATED

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        few = {name: text.replace("MOST = 10000 ", f"MOST = {MARKS} ") for name, text in texts.items()}
        super().__init__(wire, few, random)
        del self.gauges["seats"]
        self.admitted: list[Admitted] = []
        self.marks = Marks(MARKS)
        self.rated, self.recorded = Counter[int](), Counter[str]()
        self.held: defaultdict[str, Slots] = defaultdict(Slots)
        self.month = 0

    def step(self) -> None:
        if self.random.random() < 0.6:
            self.wall += self.random.choice((1, 1000, 60_000, *self._turns()))
        deeds = (self.decide, self.decide, self.settle, self.settle, self.renew, self.change)
        self.random.choice(deeds)()
        self._compare_all()

    def _turns(self) -> list[int]:
        left = [SLOT_MS - self.wall % SLOT_MS, 2 * SLOT_MS, HOUR_MS - self.wall % HOUR_MS]
        left += [until - self.wall for until in self.marks.until.values() if until > self.wall]
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
        digest = self.random.choice(("", "d0", "d1", "d2", "d3", "d4", "d5"))
        known = self.processes[0].get("ada")
        decision = prepare_asking(known, demands, mode, in_flight=True)
        at_once = self.random.random() < 0.3  # Notes are recorded by the decision itself.
        if at_once:
            more: dict[str, Any] = {"billed_always": True, "prepaid": known.prepaid}
            program = compile_program(known.entitlements, REPEATED, demands, **more)
            decision = PreparedDecision(known, program, mode)
        if digest:
            decision = MarkedDecision(decision, digest)
        reply: Any = self.send(b"".join(decision.packed))
        if reply[0] == 2:
            self.processes[0].learn(known, reply)
            return
        self._roll()
        twin = self.marks.twin(digest, self.wall)
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
            self.compare(
                f"violated {what}", tuple(full), refused_decision(decision.exact(), reply, 0).violated
            )
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
        if twin == 0 and digest:
            self.marks.begin(digest, self.wall)
        self.admitted.append(Admitted(decision, decision, self.wall // SLOT_MS))

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
        mark = RepeatMark.of(decision, billed=billed)
        is_repeat = self._settle(holder, slot, UsedQuantities(recorded=recorded), mark)
        if not is_repeat:
            self.recorded.update(recorded)
        self.seen.add(f"settled {is_repeat}")

    def _settle(
        self, holder: PreparedDecision, slot: int, used: UsedQuantities, mark: RepeatMark | None
    ) -> bool:
        """Settle; whether another request with this key was billed."""
        settlement = Settlement(holder.view, held=HeldQuantities.of(holder, slot), used=used, mark=mark)
        self.settled(settlement)
        self._roll()
        for meter, quantity in {**holder.held, "flight": len(holder.program.concurrency)}.items():
            self.held[meter].give_back(self.wall, slot, quantity)
        return mark is not None and self.marks.end(mark.digest, slot, self.wall, billed=mark.billed)

    def renew(self) -> None:
        due = [found for found in self.admitted if found.slot < self.wall // SLOT_MS]
        if not due:
            return
        found = self.random.choice(due)
        held, digest = found.holder.held, found.decision.digest
        renewing = prepare_renewing(found.decision.view, held, found.holder.program.concurrency)
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
            self.marks.begin(digest, self.wall)
        self._settle(found.holder, found.slot, UsedQuantities(), RepeatMark.of(found.decision, billed=False))
        self.admitted[self.admitted.index(found)] = Admitted(found.decision, renewing, slot)

    def _hold(self, decision: PreparedDecision) -> None:
        for meter, quantity in {**decision.held, "flight": len(decision.program.concurrency)}.items():
            self.held[meter].take(self.wall, quantity)

    def _live(self, meter: str) -> int:
        return sum(self.held[meter].live(self.wall))

    def _roll(self) -> None:
        """What is recorded begins anew with the month."""
        if self.month != bounds_at(self.wall).start_ms:
            self.month = bounds_at(self.wall).start_ms
            self.recorded.clear()

    def _compare_all(self) -> None:
        keys = self.keys.customer("ada")
        for meter in ("jobs", "calls", "notes", "storage"):
            counts = MeterCounts.read(self.wire(pack("HGET", keys.counters, meter_field(meter))))
            self.compare(f"recorded of {meter}", self.recorded[meter], counts.recorded)
            self.compare(f"held of {meter}", self._live(meter), counts.held_at(self.wall))
        flight = MeterCounts.read(self.wire(pack("HGET", keys.counters, concurrency_field("jobs"))))
        self.compare("in flight", self._live("flight"), flight.held_at(self.wall))
        scores = fields_of(self.wire(pack("ZRANGE", keys.marks, 0, -1, "WITHSCORES")))
        found = {name: int(float(score)) for name, score in scores.items()}
        self.compare("marks", self.marks.until, found)
        lives = self.wire(pack("PEXPIRETIME", keys.marks))
        lasting = not found or max(found.values()) <= lives <= self.wall + DAY_MS
        self.compare("life of the marks", True, lasting)
