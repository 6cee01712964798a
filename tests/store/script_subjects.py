"""A random life of users and teams: the scripts, and a model that says what they answer and store."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import floor
from random import Random
from typing import Any, Final, cast

from meterkit.catalog import Rate, loads
from meterkit.catalog.models import SPEND, SubjectPlan
from meterkit.decisions.keys import concurrency_field, meter_field, rate_field
from meterkit.decisions.limit_policies import Demand, rate_numbers
from meterkit.decisions.packed import MeterCounts, unpack_field
from meterkit.decisions.periods import HOUR_MS, bounds_at
from meterkit.redis.connection import pack
from meterkit.store.prepared_decisions import prepare_asking
from meterkit.store.request_idempotency import MarkedDecision
from meterkit.store.reservations import prepare_renewing
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities, RateCorrection, RepeatMark, UsedQuantities
from meterkit.store.views import CustomerView, PreparedDecision
from store.script_counts import (
    DAY_MS,
    IN_FLIGHT,
    MINUTE_MS,
    QUARTER_HOUR_MS,
    REPEAT,
    SLOT_MS,
    Bucket,
    Marks,
    Slots,
    Windows,
)
from store.script_model import span_ms
from store.script_wires import Wire
from store.script_world import MismatchError, ScriptWorld, fields_of

Given = tuple[tuple[str, str], ...]

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
billing: {late_usage: dead_letter}
meters:
  calls: {unit: call}
  words: {unit: word, stripe: {event_name: words}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    meters:
      calls: {included: unlimited}
      words: {included: 1_800_000, overage: {bill: {per: 10_000, amount_cents: 1, cap: 120_000}}}
    subjects:
      user:
        calls:
          rate:
            - 7/minute
            - {limit: 20/hour, algorithm: fixed-window}
            - {limit: 6/5 minutes, algorithm: token-bucket, burst: 9}
          concurrency: FLIGHT
        words: {included: WORDS}
        budget: {amount_cents: 5, per: SPAN}
      team:
        words: {included: 100_000}
        budget: {amount_cents: TEAM}
"""
CENT: Final = 10_000
"""A word costs a ten-thousandth of one."""
INCLUDED, CAP = 1_800_000, 120_000
MOST: Final = 200
"""Subjects of one customer: so few here that a crowd of them is cheap."""
_MOST_IN_SCRIPTS: Final = 100_000
QUANTITIES: Final = {"calls": (1, 1, 2, 3, 7, 9), "words": (1, 1, 139, 2000, 6667, 20_000, 50_000)}
NAMES: Final = {"user": ("u0", "u1", "u2"), "team": ("red", "blue")}


@dataclass(slots=True)
class Policy:
    """What a policy says of a demand: three numbers where it refuses; its share; whether it is a rate's."""

    refuses: bool
    told: tuple[int, int, int]
    left: int
    whole: float
    is_rate: bool = False


class Counts:
    def __init__(self) -> None:
        self.recorded: Counter[int] = Counter()
        self.holds = Slots()


@dataclass(slots=True)
class Owner:
    """A user or a team: its counters matter until `lives`, may be kept until `most`, are until `expires`."""

    limits: SubjectPlan
    exists: bool = False
    lives: int = 0
    most: int = 0
    expires: int = 0
    rates: dict[str, tuple[Rate, Windows | Bucket]] = field(default_factory=dict[str, Any])
    meters: dict[str, Counts] = field(
        default_factory=lambda: {name: Counts() for name in ("calls", "words", SPEND)}
    )
    flight: Slots = field(default_factory=Slots)
    spent: Counter[int] = field(default_factory=Counter[int])

    def __post_init__(self) -> None:
        given = self.limits.limits.get("calls")
        for rate in given.rates if given is not None else ():
            counted = Bucket() if rate.algorithm == "token-bucket" else Windows()
            self.rates[rate_field("calls", rate.window_ms, rate.algorithm)] = rate, counted

    @property
    def window_ms(self) -> int:
        return 0 if self.limits.budget is None else self.limits.budget.window_ms

    def hold(self, now: int, words: int, spent: int, in_flight: int) -> None:
        self.meters["words"].holds.take(now, words)
        self.meters[SPEND].holds.take(now, spent)
        self.flight.take(now, in_flight)

    def policies(
        self, demands: Mapping[str, Demand], now: int, period: int, in_flight: bool, asks: bool, takes: bool
    ) -> Iterator[Policy]:
        """What each of its policies says, in the order in which they are weighed."""
        calls, words = demands.get("calls"), demands.get("words")
        if calls is not None:
            for rate, counted in self.rates.values():
                whole, used = rate_numbers(rate, "calls")[2], counted.used(rate, now)
                numbers = (*counted.numbers(rate, now), 0)
                left = whole - used - (calls.taken if takes else 0)
                yield Policy(used + calls.needed > whole, numbers, left, whole, is_rate=True)
        if words is not None:
            most = self.limits.limits["words"].included
            assert most is not None
            available = max(0, most - self.meters["words"].recorded[period])
            live = self.meters["words"].holds.live(now)
            left = available - sum(live)
            taken = words.taken if takes and asks else 0
            yield Policy(asks and words.needed > left, (available, *live), left - taken, max(1, most))
        if calls is not None and in_flight and self.rates:
            live = self.flight.live(now)
            most = self.limits.limits["calls"].concurrency
            assert most is not None
            left = most - sum(live)
            yield Policy(left < 1, (most, *live), left - takes, most)
        if words is not None and self.limits.budget is not None:
            micros, recorded = self.limits.budget.micros, self.meters[SPEND].recorded
            spent = self.spent[now // self.window_ms] if self.window_ms else recorded[period]
            held = sum(self.meters[SPEND].holds.live(now))
            needed, taken = words.needed if asks else 0, words.taken if asks and takes else 0
            left = micros - spent - held
            share = floor((left - taken) / CENT)
            yield Policy(0 < needed > left, (micros - spent, held, needed), share, max(1, micros / CENT))

    def keep(self, lives: int, spare: int = 0) -> None:
        self.exists = True
        self.most = max(self.most, lives + spare if lives > self.lives else 0)
        self.lives = max(self.lives, lives)


@dataclass(frozen=True, slots=True)
class Open:
    """A request that was admitted: its subjects, when it was decided, and its idempotency key."""

    decision: PreparedDecision
    given: Given
    calls: int
    decided_ms: int
    digest: str = ""
    is_repeat: bool = False

    @property
    def slot(self) -> int:
        return self.decided_ms // SLOT_MS


class SubjectWorld(ScriptWorld):
    """One customer, its users and teams, two processes, and a clock."""

    span, most_words, most_in_flight, most_of_team = "period", 40_000, 2, 9

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        pattern = rf"\b{_MOST_IN_SCRIPTS}\b"
        few = {name: re.sub(pattern, str(MOST), texts[name]) for name in ("decide", "settle")}
        super().__init__(wire, few, random)
        self.others = Counter[int]()
        plans = PLANS.replace("SPAN", self.span).replace("WORDS", str(self.most_words))
        plans = plans.replace("TEAM", str(self.most_of_team))
        self.catalog = loads(plans.replace("FLIGHT", str(self.most_in_flight)))
        self.processes = [self.process() for _ in range(2)]
        self.words = Counts()
        self.owners = {of: self._owner(of[0]) for of in ((k, n) for k, names in NAMES.items() for n in names)}
        self.marks = Marks()
        self.open: list[Open] = []
        self.seen: Counter[str] = Counter()

    def _owner(self, kind: str) -> Owner:
        return Owner(self.catalog.plans["pro"].subjects[kind])

    # Steps.

    def step(self) -> None:
        if self.random.random() < 0.55:
            self.wall += self.random.choice((1, 500, *self._edges()))
        for of, owner in self.owners.items():
            if owner.exists and owner.expires <= self.wall:
                self.wire(pack("DEL", self.keys.subject("ada", *of)))
                self.owners[of] = self._owner(of[0])
                self.seen["expired"] += 1
        kinds = self.random.choice((("user",), ("user", "team"), ("user", "team"), ("team",), ()))
        given = tuple((kind, self.random.choice(NAMES[kind])) for kind in kinds)
        deeds = (self.decide, self.settle, self.record, self.renew, self.damage, self.crowd)
        with suppress(StaleError):  # It is asked again by another step.
            self.random.choices(deeds, (50, 30, 12, 6, 1, 1.5))[0](given)

    def _edges(self) -> Iterator[int]:
        month = bounds_at(self.wall).end_ms - self.wall
        turns = [SLOT_MS, SLOT_MS, MINUTE_MS, MINUTE_MS, HOUR_MS, *([DAY_MS] * (self.random.random() < 0.2))]
        ends = [owner.expires - self.wall for owner in self.owners.values() if owner.exists]
        left_ms = [window - self.wall % window for window in turns]
        left_ms += [min(ends)] if ends and self.random.random() < 0.1 else []
        left_ms += [month] if self.random.random() < 0.03 else []
        for left in left_ms:
            yield max(0, left + self.random.choice((-1, 0, 0, 1)))

    @property
    def period(self) -> int:
        return bounds_at(self.wall).start_ms

    def decide(self, given: Given) -> None:
        asked = self.random.choice((("calls",), ("calls", "words"), ("words",), ("words",)))
        demands = {name: self._demand(name) for name in asked}
        mode, in_flight = self.random.choice("dddccs"), self.random.random() < 0.4
        digest = self.random.choice(("", "", "", "d0", "d1", "d2")) if mode != "c" else ""
        decision, reply = self._ask(given, demands, mode, digest, in_flight=in_flight)
        twin = self.marks.twin(digest, self.wall)
        what = f"{mode} {given} {demands} {digest} {in_flight} {self.wall}"
        self.seen[f"twin {twin}"] += bool(given)
        if twin == IN_FLIGHT and mode != "s":
            self.compare(what, [IN_FLIGHT, self.wall, 0, 0, 0], reply)
            return
        asks, takes = twin != REPEAT, mode != "c"
        policies = list(self._policies(given, demands, in_flight=in_flight, asks=asks, takes=takes))
        is_refused = any(one.refuses for one in policies)
        code = twin
        if is_refused and not (twin and mode == "s"):
            code = 5 if mode == "s" else 8 if twin else 1
        self.seen[f"decide {code}"] += bool(given)
        self._compare_reply(what, code, policies, reply)
        if not takes or code in {1, 8}:
            self._check(given)
            return
        self._take(given, demands, in_flight=in_flight, asks=asks)
        calls = demands["calls"].taken if "calls" in demands else 0
        if twin == REPEAT:
            assert isinstance(decision, MarkedDecision)
            decision = decision.as_repeat()
        if digest and not twin:
            self.marks.begin(digest, self.wall)
        self.open.append(Open(decision, given, calls, self.wall, digest if not twin else "", twin != 0))
        self._check(given)

    def _demand(self, name: str) -> Demand:
        quantity = self.random.choice(QUANTITIES[name])
        known, opened = Demand.of(quantity), Demand(needed=1, taken=quantity)
        nothing = Demand(needed=1, taken=0), Demand(needed=0, taken=0)
        return self.random.choice((known, known, opened, *nothing))

    def _policies(
        self, given: Given, demands: Mapping[str, Demand], *, in_flight: bool, asks: bool, takes: bool
    ) -> Iterator[Policy]:
        words = demands.get("words")
        if words is not None:
            recorded = self.words.recorded[self.period]
            available, live = INCLUDED + CAP - min(recorded, INCLUDED + CAP), self.words.holds.live(self.wall)
            left = available - sum(live)
            taken = words.taken if takes and asks else 0
            yield Policy(asks and words.needed > left, (available, *live), left - taken, INCLUDED + CAP)
        for of in given:
            yield from self.owners[of].policies(demands, self.wall, self.period, in_flight, asks, takes)

    def _compare_reply(self, what: str, code: int, policies: list[Policy], reply: Any) -> None:
        told = [number for one in policies for number in one.told]
        if code in {1, 5, 8}:
            self.compare(what, [code, *told], [reply[0], *reply[3:]])
            return
        shares = [one.left / one.whole for one in policies]
        nearest = shares.index(min(shares)) if shares else -1
        expected = [code, self.wall, nearest + 1, policies[nearest].left if policies else 0]
        self.compare(what, expected, reply[:4])
        self.compare(f"rests {what}", [one.left for one in policies], reply[5:])
        if policies and policies[nearest].is_rate:
            self.compare(f"before {what}", policies[nearest].told[1], reply[4])

    def _take(self, given: Given, demands: Mapping[str, Demand], *, in_flight: bool, asks: bool) -> None:
        calls, words = demands.get("calls"), demands.get("words")
        taken = words.taken if words is not None and asks else 0
        self.words.holds.take(self.wall, taken)
        now = self.wall
        for of in given:
            owner = self.owners[of]
            rated = calls is not None and bool(owner.rates)
            if not (rated or taken) or not self._has_room(owner):
                continue
            windows = [span_ms(rate) for rate, _ in owner.rates.values()]
            keep_ms = QUARTER_HOUR_MS + (max(windows, default=0) if calls is not None else 0)
            owner.keep(now + keep_ms, keep_ms // 8)
            for rate, counted in owner.rates.values() if calls is not None else ():
                counted.add(rate, now, calls.taken if calls else 0)
            is_in_flight = calls is not None and in_flight and bool(owner.rates)
            owner.hold(now, taken, taken, int(is_in_flight))

    def _has_room(self, owner: Owner) -> bool:
        live = [one for one in self.owners.values() if one.exists and max(one.lives, one.expires) > self.wall]
        others = sum(count for until, count in self.others.items() if until > self.wall)
        return owner.exists or len(live) + others < MOST

    def settle(self, _given: Given) -> None:
        """A request ends: with what it came to, or without."""
        if not self.open:
            return
        one, recorded = self.open.pop(self.random.randrange(len(self.open))), dict[str, int]()
        for name, quantity in one.decision.held.items():
            recorded[name] = self.random.choice((quantity, quantity, quantity // 2, 2 * quantity, 0))
        if one.is_repeat or self.random.random() < 0.2:
            recorded = {}
        elif self.random.random() < 0.3:
            recorded["calls"] = self.random.choice(QUANTITIES["calls"])
        rates = one.decision.subjects["user"].rates if "user" in one.decision.subjects else frozenset[str]()
        is_corrected = bool(one.calls and rates) and self.random.random() < 0.4
        actual = self.random.choice((0, 1, one.calls, one.calls + 2))
        used = UsedQuantities(recorded, {"calls": actual}) if is_corrected else UsedQuantities(recorded)
        correction = (
            RateCorrection({"calls": one.calls}, rates, one.decided_ms) if is_corrected else RateCorrection()
        )
        mark = RepeatMark(one.digest, bool(recorded)) if one.digest else None
        held = HeldQuantities.of(one.decision, one.slot)
        more = (actual - one.calls, one.decided_ms) if is_corrected else None
        settlement = Settlement(self._view(one.given), held=held, used=used, correction=correction, mark=mark)
        self._settle(settlement, one, more)

    def record(self, given: Given) -> None:
        """Record what no decision has seen: of now, of some time ago, or of a period that is over."""
        name = self.random.choice(("calls", "words"))
        quantity = self.random.choice(QUANTITIES[name])
        ago = self.random.choice((0, 0, 1, 1000, MINUTE_MS, HOUR_MS, DAY_MS))
        rated_ms = self.wall - ago if ago else 0
        occurred_ms = self.random.choice((None, self.wall - ago, self.period - 1))
        view, used = self._view(given), UsedQuantities.of({name: quantity})
        settlement = Settlement(view, used=used, occurred_ms=occurred_ms, rated_ms=rated_ms)
        self._settle(settlement, None, (quantity, rated_ms) if name == "calls" else None)

    def _settle(self, settlement: Settlement, one: Open | None, rated: tuple[int, int] | None) -> None:
        reply, now = self.settled(settlement), self.wall
        subjects = settlement.view.subjects
        given: Given = subjects.given if subjects is not None else ()
        what = f"settled {given} {settlement.used} {settlement.occurred_ms} {rated} {one} {now}"
        mark, slot = settlement.mark, settlement.slot
        is_repeat = mark is not None and self.marks.end(mark.digest, slot, now, billed=mark.billed)
        is_dead = settlement.occurred_ms is not None and settlement.occurred_ms < self.period
        self.seen["dead"] += is_dead
        self.seen["repeat"] += is_repeat
        recorded: Mapping[str, int] = {} if is_repeat or is_dead else settlement.used.recorded
        quantity = recorded.get("words", 0)
        self.words.recorded[self.period] += quantity
        self.words.holds.give_back(now, settlement.slot, settlement.held.quantities.get("words", 0))
        is_full = False
        for of in given:
            is_full |= not self._settle_one(self.owners[of], of[0], settlement, recorded, rated)
        told = [word for word in reply[2:] if word == b"subjects"]
        self.compare(f"told of {what}", [b"subjects"] * is_full, told)
        self.seen["no room"] += is_full
        self._check(given)

    def _settle_one(
        self,
        owner: Owner,
        kind: str,
        settlement: Settlement,
        recorded: Mapping[str, int],
        rated: tuple[int, int] | None,
    ) -> bool:
        """Count for one subject; whether there was room for it."""
        now, hold = self.wall, settlement.held.subjects.get(kind)
        rates = owner.rates.values() if rated is not None and any(rated) else ()
        is_held = hold is not None and bool(hold.quantities or hold.concurrency)
        if not (settlement.used.recorded or rates or is_held):
            return True
        if not self._has_room(owner):
            return False
        longest, ends = 0, bounds_at(now).end_ms if any(recorded.values()) else 0
        for name, quantity in recorded.items():
            owner.meters[name].recorded[self.period] += quantity
        spent = recorded.get("words", 0)
        owner.meters[SPEND].recorded[self.period] += spent
        if owner.window_ms and settlement.used.recorded.get("words"):
            window, at = owner.window_ms, settlement.rated_ms or now
            if at // window >= now // window - 1:
                owner.spent[at // window] += spent
            longest = 2 * window
        if hold is not None:
            for name, quantity in {**hold.quantities, SPEND: hold.spent}.items():
                owner.meters[name].holds.give_back(now, settlement.slot, quantity)
            owner.flight.give_back(now, settlement.slot, len(hold.concurrency))
        for rate, counted in rates:
            self._rate(rate, counted, settlement, rated or (0, 0))
            longest = max(longest, counted.keeps_ms(rate))
        owner.keep(QUARTER_HOUR_MS + max(ends, now + longest), longest // 8)
        return True

    def _rate(
        self, rate: Rate, counted: Windows | Bucket, settlement: Settlement, rated: tuple[int, int]
    ) -> None:
        quantity, at = rated
        if settlement.rated_ms:
            _, window, _, refill = rate_numbers(rate, "calls")
            quantity = max(0, quantity - max(0, self.wall - at) * refill // window)
        counted.correct(rate, self.wall, quantity, at or self.wall)

    def renew(self, _given: Given) -> None:
        """Holds of an earlier slot are taken anew, and given back where they were."""
        due = [one for one in self.open if one.slot < self.wall // SLOT_MS and not one.digest and one.given]
        if not due:
            return
        one = self.random.choice(due)
        decision, subjects = one.decision, one.decision.subjects
        if not (decision.held or any(hold.quantities or hold.concurrency for hold in subjects.values())):
            return
        in_flight = decision.program.concurrency
        renewing = prepare_renewing(self._view(one.given), decision.held, in_flight, subjects=subjects)
        reply = self._send(renewing)
        self.compare("renewed", [0, self.wall], reply[:2])
        self.words.holds.take(self.wall, decision.held.get("words", 0))
        for of in one.given:
            hold, owner = subjects.get(of[0]), self.owners[of]
            if hold is None or not (hold.quantities or hold.concurrency) or not self._has_room(owner):
                continue
            owner.keep(self.wall + QUARTER_HOUR_MS, QUARTER_HOUR_MS // 8)
            owner.hold(self.wall, hold.quantities.get("words", 0), hold.spent, len(hold.concurrency))
        self.seen["renewed"] += 1
        self.open[self.open.index(one)] = Open(renewing, one.given, 0, self.wall, is_repeat=one.is_repeat)
        self._settle(Settlement(self._view(one.given), held=HeldQuantities.of(decision, one.slot)), one, None)

    def damage(self, _given: Given) -> None:
        """A damaged head is not taken for 0: the request gets an error."""
        of = self.random.choice([of for of, owner in self.owners.items() if owner.exists] or [None])
        if of is None:
            return
        key = self.keys.subject("ada", *of)
        head = self.wire(pack("HGET", key, "h"))
        wrong = self.random.choice((head[:1], head + b"\0", b"\xfc" + head[1:]))
        decision = prepare_asking(self._view((of,)), {"calls": Demand(needed=0, taken=0)}, "s")
        self.wire(pack("HSET", key, "h", wrong))
        reply = self.send(b"".join(decision.packed))
        self.wire(pack("HSET", key, "h", head))
        if isinstance(reply, list):
            self.compare("of a damaged head", 2, reply[0])  # Before it is read: the view is of another state.
            decision.view.cache.learn(decision.view, cast("list[object]", reply))
            return
        self.compare(f"of a damaged head: {reply}", True, "DAMAGED field h" in str(reply))
        self.seen["damaged"] += 1

    def crowd(self, _given: Given) -> None:
        """So many others come that room is left for few; some of them are gone soon."""
        index = self.keys.subjects("ada")
        self.wire(pack("DEL", index, *(self.keys.subject("ada", *of) for of in self.owners)))
        self.owners = {of: self._owner(of[0]) for of in self.owners}
        self.others = Counter({self.wall + 40 * DAY_MS: MOST - self.random.randrange(4)})
        soon = self.random.choice((0, 1, 1, 59))
        self.others[self.wall + 40 * DAY_MS] -= soon
        self.others[self.wall + SLOT_MS] += soon
        fill = "for i = 1, ARGV[1] do redis.call('ZADD', KEYS[1], ARGV[2], ARGV[2] .. i) end"
        for until, count in self.others.items():
            self.wire(pack("EVAL", fill, 1, index, count, until))
        self.wire(pack("PEXPIREAT", index, max(self.others)))
        self.open.clear()

    # Requests to the store, and comparisons.

    def _view(self, given: Given) -> CustomerView:
        return self.random.choice(self.processes).get("ada", subjects=given)

    def _ask(
        self, given: Given, demands: Mapping[str, Demand], mode: str, digest: str, *, in_flight: bool
    ) -> tuple[PreparedDecision, Any]:
        decision: PreparedDecision = prepare_asking(self._view(given), demands, mode, in_flight=in_flight)
        if digest:
            decision = MarkedDecision(decision, digest)
        return decision, self._send(decision)

    def _send(self, decision: PreparedDecision) -> Any:
        reply = self.send(b"".join(decision.packed))
        if isinstance(reply, Exception):
            raise MismatchError(f"{decision.packed}: {reply}")
        if reply[0] == 2:
            decision.view.cache.learn(decision.view, reply)
            raise StaleError
        return reply

    def _check(self, given: Given) -> None:
        index, keys = self.keys.subjects("ada"), {of: self.keys.subject("ada", *of) for of in self.owners}
        fields, last, lives, *others = self.wire(
            pack("HGET", self.keys.customer("ada").counters, meter_field("words")),
            pack("ZRANGE", index, -1, -1, "WITHSCORES"),
            pack("PEXPIRETIME", index),
            *(pack("PEXPIRETIME", key) for key in keys.values()),
            *(pack("ZSCORE", index, ":".join(of)) for of in keys),
            *(pack("HGETALL", keys[of]) for of in given),
        )
        expires = dict(zip(keys, others, strict=False))
        scores = dict(zip(keys, others[len(keys) :], strict=False))
        held = sum(self.words.holds.live(self.wall))
        self.compare("held", held, MeterCounts.read(fields).held_at(self.wall))
        for of, flat in zip(given, others[2 * len(keys) :], strict=True):
            found = fields_of(flat)
            self.compare(f"{of} is there", self.owners[of].exists, bool(found))
            if found:
                self._check_owner(of, found, expires[of])
        for of, owner in self.owners.items():
            if owner.exists:
                self.compare(f"score of {of}", expires[of], scores[of] and int(float(scores[of])))
        if last:
            self.compare("life of the index", int(float(last[1])), lives)

    def _check_owner(self, of: tuple[str, str], found: Mapping[str, bytes], expires: int) -> None:
        owner = self.owners[of]
        owner.expires = expires
        self.compare(f"expiry of {of}", [expires], unpack_field(found["h"]))
        lasting = owner.lives <= expires <= owner.most
        self.compare(f"life of {of}: {owner.lives} {expires} {owner.most}", True, lasting)
        for name, counts in owner.meters.items():
            known = MeterCounts.read(found.get(meter_field(name)))
            recorded = known.included if known.pending == self.period else 0
            expected = counts.recorded[self.period], 0, sum(counts.holds.live(self.wall))
            self.compare(f"{name} of {of}", expected, (recorded, known.overage, known.held_at(self.wall)))
        flight = MeterCounts.read(found.get(concurrency_field("calls")))
        self.compare(f"in flight of {of}", sum(owner.flight.live(self.wall)), flight.held_at(self.wall))
        for name, (_, counted) in owner.rates.items():
            if name in found:
                self.compare(f"{name} of {of}", counted.fields(), tuple(unpack_field(found[name])))
        if owner.window_ms:
            packed = found.get(rate_field(SPEND, owner.window_ms, "fixed-window"))
            slot, spent, _ = (0, 0, 0) if packed is None else unpack_field(packed)
            now = self.wall // owner.window_ms
            self.compare(f"spent by {of}", owner.spent[now], spent if slot == now else 0)


class StaleError(Exception):
    """The store has a newer state; it is known now."""


class DayWorld(SubjectWorld):
    span, most_words, most_in_flight, most_of_team = "day", 120_000, 1, 1


class HourWorld(SubjectWorld):
    span, most_words, most_of_team = "hour", 120_000, 0
