"""Two customers to whom the same happens: one is decided for many requests at once, the other one by one.

So the decision script says what the allotting script must leave behind. For how many requests, and how long,
is worked out here, from what is stored. Where grants, credits and a budget stand behind plans, as many
decisions, one after the other, show for how many requests there is room; then the store is put back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from meterkit.catalog import loads
from meterkit.decisions.compiled_decision import Program, compile_program
from meterkit.decisions.customer_state import NO_STATE, CustomerState
from meterkit.decisions.fallback_rules import EMPTY, advance
from meterkit.decisions.keys import FORMAT
from meterkit.decisions.limit_policies import CONCURRENCY, SPENT, Demand
from meterkit.decisions.packed import MeterCounts, unpack_field
from meterkit.redis.connection import pack, pack_each, pack_numbers
from meterkit.store.allotment import return_units
from meterkit.store.script_arguments import pack_head
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities, UsedQuantities
from meterkit.store.views import CustomerView, PreparedDecision
from store.script_counts import DAY_MS, MINUTE_MS, SLOT_MS
from store.script_model import NEVER_MS
from store.script_wires import Wire
from store.script_world import ScriptWorld, amended, fields_of

CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: small
dunning: {grace: 1d, restrict_to: large, suspend_after: 5d}
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  words: {unit: word, stripe: {event_name: words}}
  jobs: {unit: job}
plans:
  small:
    price: {amount_cents: 0, interval: month}
    meters:
      requests:
        {rate: [40/second, 900/9 seconds], concurrency: 60, included: 150, overage: {bill: {cap: 120}}}
      words: {rate: {limit: 600/9 seconds, algorithm: fixed-window}, included: 300, overage: deny}
      jobs: {rate: 300/26 hours, included: 300, overage: deny}
  large:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: [100/second, 5000/26 hours], included: 0, overage: {bill: {cap: 300}}}
      words: {included: 90_000, overage: deny}
""")
ONE, MANY = "one", "many"
_EDGES_MS: Final = (1000, 1000, 1000, 9000, 9000, SLOT_MS, SLOT_MS, 26 * 3_600_000)


class AllotWorld(ScriptWorld):
    """Two customers with one history, and a clock."""

    catalog = CATALOG

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.caches = [self.process(), self.process()]
        self.open: list[tuple[Program, int]] = []
        self.rev = NO_STATE
        self.seen = Counter[str]()

    # Steps.

    def step(self) -> None:
        self._tick()
        self.cache = self.random.choice(self.caches)
        deeds = (self.ask, self.allot, self.settle, self.record, self.amend, self.give_back)
        self.random.choices(deeds, (20, 30, 25, 3, 2, 8))[0]()
        self._compare_all()

    def _tick(self) -> None:
        chance = self.random.random()
        if chance < 0.5:
            self.wall += self.random.choice((0, 0, 1, 5, 40, 240, 300))
        elif chance < 0.93:
            window = self.random.choice(_EDGES_MS)
            edge = self.wall - self.wall % window + window
            self.wall = max(self.wall, edge - self.random.choice((0, 0, 1, 24, 25, 26, 249, 250, 251)))
        elif chance < 0.96:
            self.wall -= self.random.choice((1, 999, 60_000))
        elif chance < 0.985:
            known = self.random.choice(self.caches).get(ONE).effective
            end_ms = self.random.choice((known.bounds.end_ms, min(known.valid_until_ms, known.bounds.end_ms)))
            self.wall = max(self.wall, end_ms - self.random.choice((0, 1, 24, 25, 26, 250, 9000, 60_000)))
        else:
            self.wall += self.random.choice((2 * SLOT_MS, 25 * 60 * MINUTE_MS, 9 * DAY_MS))

    def ask(self) -> None:
        _, replies = self._decide_both(self._demands(), "d")
        self.seen[f"decide {replies[0][0]}"] += 1

    def allot(self) -> None:
        """Decide for many requests of one, and for each of as many of the other."""
        asked = self._asked()
        demands = self._demands()
        program, reply = self._ask_many(demands, asked)
        if reply[0] == 2:
            one = self.send(self._packed(self._view(ONE), program, "c"))
            self.compare("ending", one, reply)
            self._learn(reply)
            self.seen["allot 2"] += 1
            return
        self._look(program)
        expected, lasts_ms = self._room(program, asked, reply)
        if expected < asked[1] or lasts_ms < asked[4]:
            self.compare("nothing", [1, reply[1]], reply)
            self.seen["allot 1"] += 1
            return
        last = self._decide_each(program, expected, reply[1])
        nth = last[2]
        if nth > program.numbers[0]:
            last[4] = 0  # Of rates only.
        taken = self._taken(program)[nth - 1]
        self.compare("told", [*last[:5], expected, taken, lasts_ms, *last[5:]], reply)
        self.seen["allot 0" if expected > 1 else "allot one"] += 1

    def settle(self) -> None:
        if self.open:
            program, slot = self.open.pop()
            held = HeldQuantities(program.held, program.concurrency, slot, program.costs)
            used = (
                UsedQuantities(recorded=program.settled) if self.random.random() < 0.8 else UsedQuantities()
            )
            self._settle_both(held, used)

    def record(self) -> None:
        recorded = {self.random.choice(("requests", "words")): self.random.choice((1, 30, 300))}
        self._settle_both(HeldQuantities(), UsedQuantities(recorded, recorded))

    def give_back(self) -> None:
        """Grant units to one and give them back: in this window and the next, as if that had not been."""
        demands = self._demands()
        before = self._fields(MANY)
        program, reply = self._ask_many(demands, (16, 1, 2, 250, 1))
        if reply[0] == 2:
            self._learn(reply)
            return
        self._look(program)
        if reply[0] == 1:
            return
        self.wall += self.random.choice((0, 0, 100, 1000, 9000))
        view = self._view(MANY)
        unit = PreparedDecision(view, program, "d")
        for settlement in return_units(unit, reply[1], reply[5]):
            self.settled(settlement)
        after = self._fields(MANY)
        now = int(unpack_field(after["h"])[0])
        # Another plan, as at the end of a grace, may not have these rates: then they keep what they counted.
        is_same = self._view(MANY).effective.plan is view.effective.plan
        for place, (field, kind, window, _, refill, *_) in enumerate(program.rate_terms if is_same else ()):
            first, second = self._window(before, field), self._window(after, field)
            expected, _ = advance(kind, window, refill, first, now)
            found, _ = advance(kind, window, refill, second, now)
            self.compare(f"rate {place} as before", expected, found)
        for field in program.fields[len(program.rate_terms) :]:
            expected_held = MeterCounts.read(before.get(field)).held_at(now)
            self.compare(f"{field} as before", expected_held, MeterCounts.read(after.get(field)).held_at(now))
        self.seen["given back"] += 1
        for name in (ONE, MANY):
            self.wire(pack("DEL", self._keys(name).counters, self._keys(name).totals))
        self.open.clear()

    def amend(self) -> None:
        late = self.random.random() < 0.4
        state = CustomerState(
            plan=self.random.choice(("small", "large")),
            status="past_due" if late else None,
            status_since_ms=self.wall if late else 0,
            anchor_ms=self.random.choice((None, self.wall)),
        )
        self._put(state)

    def _put(self, state: CustomerState) -> None:
        rev = f"{FORMAT}:{self.random.randrange(10**12):012x}"
        amend = self.scripts["amend_state"]
        for name in (ONE, MANY):
            request = amended(self.keys, amend, name, (self.rev, rev), state.dump(), self.wall)
            self.compare("amended", [0], self.wire(request))
        self.rev = rev

    def damage(self) -> None:
        """Damage each field of what is stored: nothing is allotted by it."""
        while "h" not in self._fields(MANY):
            self.ask()
        program = self._compile(self._view(MANY), {"requests": _one(1)})
        for field in self._fields(MANY):
            if field == "h" or field in program.fields:
                self._damage(program, field, f"DAMAGED field {field}")
        ends_ms = int(unpack_field(self._fields(MANY)["h"])[2])
        self.wall = max(self.wall, ends_ms)
        field = program.fields[-1]
        totals, begins_ms = self._keys(MANY).totals, int(unpack_field(self._fields(MANY)["h"])[1])
        self.wire(pack("HSET", totals, f"{begins_ms}|e", "1x"))
        reply = self._insist(program)
        self.compare("a period that cannot be closed", True, f"in field {begins_ms}|e" in str(reply))
        self.wire(pack("HDEL", totals, f"{begins_ms}|e"))

    def _damage(self, program: Program, field: str, refusal: str) -> None:
        counters = self._keys(MANY).counters
        whole = self.wire(pack("HGET", counters, field))
        self.wire(pack("HSET", counters, field, b"1x"))
        self.compare(f"damaged {field}", True, refusal in str(self._insist(program)))
        self.wire(pack("HDEL", counters, field) if whole is None else pack("HSET", counters, field, whole))

    # What they are made of.

    def _asked(self) -> tuple[int, ...]:
        """At most and at least how many requests, the share, how long at most and at least (ms)."""
        choices = (1, 4, 16, 64, 4096), (1, 1, 2, 4), (1, 1, 2, 8), (250, 250, 10_000), (1, 25)
        return tuple(map(self.random.choice, choices))

    def _demands(self) -> dict[str, Demand]:
        found = {"requests": _one(self.random.choice((1, 1, 3)))}
        if self.random.random() < 0.5:
            found["words"] = _one(self.random.choice((1, 20)))
        if self.random.random() < 0.3:
            found = {"jobs": _one(self.random.choice((1, 2)))} | found
        return {} if self.random.random() < 0.03 else found

    def _ask_many(self, demands: Mapping[str, Demand], asked: tuple[int, ...]) -> tuple[Program, Any]:
        view = self._view(MANY)
        program = self._compile(view, demands)
        return program, self._allot(view, program, asked)

    def _compile(self, view: CustomerView, demands: Mapping[str, Demand]) -> Program:
        return compile_program(view.entitlements, self.catalog, demands, prepaid=view.prepaid)

    def _allot(self, view: CustomerView, program: Program, asked: tuple[int, ...]) -> Any:
        head = pack_head(program, view.keys, sha=self.scripts["allot_requests"].sha, rev=view.rev)
        terms = view.terms(program.keep_ms, *program.numbers)
        return self.send(head + pack_each((terms, pack_numbers(asked), *program.trailing_arguments("d")[1:])))

    def _look(self, program: Program) -> None:
        """Have the other's period closed as well, if it is over, by the newest state."""
        while (reply := self.send(self._packed(self._view(ONE), program, "c")))[0] == 2:
            self.cache.learn(self._view(ONE), reply)

    def _insist(self, program: Program) -> Any:
        """Ask for some requests, with the newest state."""
        while True:
            reply: Any = self._allot(self._view(MANY), program, (4, 1, 1, 250, 1))
            if isinstance(reply, Exception) or reply[0] != 2:
                return reply
            self._learn(reply)

    def _decide_each(self, program: Program, times: int, now: int) -> list[int]:
        """Have as many requests of the other decided as were granted; the last reply."""
        request = self._packed(self._view(ONE), program, "d") + pack_each([self.wall])
        replies = self.wire(*[request] * times, pack("PING"))[:-1]
        self.compare("each is allowed", [[0, now]] * times, [reply[:2] for reply in replies])
        self.open += [(program, now // SLOT_MS)] * times
        self.random.shuffle(self.open)
        return list(replies[-1])

    def _learn(self, reply: Any) -> None:
        for name in (ONE, MANY):
            self.cache.learn(self._view(name), reply)

    def _decide_both(self, demands: Mapping[str, Demand], mode: str) -> tuple[Program, list[Any]]:
        replies: list[Any] = []
        for name in (ONE, MANY):
            while True:
                program = self._compile(self._view(name), demands)
                reply = self.send(self._packed(self._view(name), program, mode))
                if reply[0] != 2:
                    break
                self.cache.learn(self._view(name), reply)
            replies.append(reply)
        self.compare("decided alike", *replies)
        if replies[0][0] == 0:
            self.open.append((program, replies[0][1] // SLOT_MS))
        return program, replies

    def _settle_both(self, held: HeldQuantities, used: UsedQuantities) -> None:
        for name in (ONE, MANY):
            self.settled(Settlement(self._view(name), held=held, used=used))

    def _packed(self, view: CustomerView, program: Program, mode: str) -> bytes:
        return b"".join(view.pack_decide(program, mode))

    def _room(self, program: Program, asked: tuple[int, ...], reply: Any) -> tuple[int, int]:
        """For how many requests there is room, and how long nothing ends, by what is stored of the other."""
        now = reply[1]
        most, _, share, *_ = asked
        stored, view = self._fields(ONE), self._view(ONE)
        rooms = [most, *self._rooms_of_rates(stored, program, share, now)]
        rates = len(program.rate_terms)
        for field, measure in zip(program.fields[rates:], program.measures[rates:], strict=True):
            kept = MeterCounts.read(stored.get(field))
            given = view.entitlements[measure.policy.meter]
            own, cap = given.included or 0, (given.overage.cap or 0) - kept.overage
            if measure.kind == CONCURRENCY:
                own, cap = measure.limit, 0
            left = max(0, own - kept.included) + max(0, cap) - kept.held_at(now)
            needed = measure.needed
            rooms.append((left - needed) // (share * needed) + 1 if needed <= left else 0)
        return min(rooms), self._lasts_ms(program, asked, now)

    def _lasts_ms(self, program: Program, asked: tuple[int, ...], now: int) -> int:
        """How long no period or window ends."""
        effective = self._view(ONE).effective
        bounds = effective.bounds
        end_ms = bounds.end_ms if now < bounds.end_ms else bounds.next_end_ms
        windows = [window - now % window for _, _, window, *_ in program.rate_terms]
        return min(asked[3], end_ms - now, effective.valid_until_ms - now, *windows)

    def _rooms_of_rates(
        self, stored: Mapping[str, bytes], program: Program, share: int, now: int
    ) -> list[int]:
        rooms = list[int]()
        for field, kind, window, limit, refill, needed, _ in program.rate_terms:
            _, used = advance(kind, window, refill, self._window(stored, field), now)
            rooms.append((limit - used - needed) // (share * needed) + 1 if used + needed <= limit else 0)
        return rooms

    @staticmethod
    def _taken(program: Program) -> list[int]:
        return [measure.needed for measure in program.measures] or [0]

    @staticmethod
    def _window(stored: Mapping[str, bytes], field: str) -> tuple[int, int, int]:
        if field not in stored:
            return EMPTY
        slot, counted, previous = unpack_field(stored[field])
        return int(slot), int(counted), int(previous)

    def _compare_all(self) -> None:
        one, many = (self._fields(name) for name in (ONE, MANY))
        self.compare("counters", one, many)
        expiries = [self.wire(pack("PEXPIRETIME", self._keys(name).counters)) for name in (ONE, MANY)]
        self.compare("expiries", *expiries)
        totals = [self.wire(pack("HGETALL", self._keys(name).totals)) for name in (ONE, MANY)]
        self.compare("totals", *totals)

    def _fields(self, name: str) -> dict[str, bytes]:
        return fields_of(self.wire(pack("HGETALL", self._keys(name).counters)))

    def _view(self, name: str) -> CustomerView:
        return self.cache.get(name)

    def _keys(self, name: str) -> Any:
        return self.keys.customer(name)


def _one(quantity: int) -> Demand:
    return Demand(needed=quantity, taken=quantity)


PAID: Final = loads("""
schema: 1
currency: usd
default_plan: bounded
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  words: {unit: word, stripe: {event_name: words}}
  pages: {unit: page, stripe: {event_name: pages}}
  images: {unit: image, stripe: {event_name: images}}
prices:
  images: {default: 1, models: {opus: 3}}
credits:
  ai: {costs: {requests: 1 per 4, pages: 2, images: prices.images}}
plans:
  spare:
    price: {amount_cents: 0, interval: month}
    grants:
      - {credit: ai, quantity: 90, every: period}
      - {meter: words, quantity: 40, every: period}
    meters:
      requests: {rate: 400/second, concurrency: 90, included: 30, overage: deny}
      words: {included: 0, overage: deny}
      pages: {included: 4, overage: {bill: {per: 1, amount_cents: 2}}}
      images: {included: 5, overage: {bill: {cap: 20}}}
  bounded:
    price: {amount_cents: 0, interval: month}
    budget: {amount_cents: 120}
    meters:
      requests: {included: 200, overage: {bill: {per: 4, amount_cents: 1}}}
      words: {rate: 900/9 seconds, included: 20, overage: {bill: {per: 1, amount_cents: 1}}}
      pages: {included: 0, overage: {bill: {per: 1, amount_cents: 2}}}
      images: {included: 0, overage: deny}
""")
_METERS: Final = ("requests", "words", "pages", "images")
# A grant; a budget; what the last one takes of the credit counts.
_EDGES: Final = (("spare", "words", 40), ("bounded", "words", 140), ("bounded", "pages requests", 67))


_GRANTS_MAX: Final = 8


class PaidAllotWorld(AllotWorld):
    """Two customers with one history, who have prepaid something or may spend so much."""

    catalog = PAID

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.granted: list[str] = []  # Nothing stands behind their plan before they have a state.

    def step(self) -> None:
        chance = self.random.random()
        if chance < 0.05:
            self.grant()
        # Else in a long life nothing would be refused any more.
        if chance < 0.01 or len(self.granted) > _GRANTS_MAX:
            self.void()
        super().step()

    def grant(self) -> None:
        target = self.random.choice(("c:ai", "c:ai", "m:requests", "m:words", "m:images"))
        quantity = self.random.choice((20, 60, 200)) * (10**6 if target == "c:ai" else 1)
        expires_ms = self.random.choice((NEVER_MS, self.wall + 400, self.wall + 9000, self.wall + DAY_MS))
        begins_ms = self.random.choice((0, 0, self.wall + 100))
        grant_id = f"g{self.random.randrange(10**9)}"
        words = (grant_id, 256, 100, begins_ms, expires_ms, target, quantity, self.wall)
        self._both("add_grant", words)
        self.granted.append(f"a {target} {grant_id}")
        self.seen["grant"] += 1

    def void(self) -> None:
        if self.granted:
            voided = self.granted.pop(self.random.randrange(len(self.granted)))
            self._both("void_grants", (voided, self.wall))

    def amend(self) -> None:
        self._put(CustomerState(plan=self.random.choice(("spare", "bounded")), granted=True))

    def record(self) -> None:
        recorded = {self.random.choice(_METERS): self.random.choice((1, 5, 30))}
        self._settle_both(HeldQuantities(), UsedQuantities(recorded, recorded))

    def damage(self) -> None:
        """Damage each field that the script reads: it allots nothing."""
        for plan, demands, times in _EDGES:
            self.edge(plan, {name: Demand.of(1) for name in demands.split()}, times)
        while "h" not in self._fields(MANY):
            self.ask()
        program = self._compile(self._view(MANY), {"requests": Demand.of(1)})
        for field in program.fields:
            self._damage(program, field, "DAMAGED field")

    def edge(self, plan: str, demands: dict[str, Demand], times: int) -> None:
        """Allot to new customers all that there is, to the last unit."""
        for name in (ONE, MANY):
            keys = self._keys(name)
            self.wire(pack("DEL", keys.counters, keys.totals, keys.grants, keys.ledger))
        self._put(CustomerState(plan=plan, granted=True))
        self._both("add_grant", ("edge", 256, 100, 0, NEVER_MS, "c:ai", 50 * 10**6, self.wall))
        self._settle_both(HeldQuantities(), UsedQuantities({"requests": 200}))
        program, reply = self._ask_many(demands, (times + 1, times + 1, 1, 250, 1))
        while reply[0] == 2:
            self._learn(reply)
            program, reply = self._ask_many(demands, (times + 1, times + 1, 1, 250, 1))
        self.compare(f"more than all of {plan}", 1, reply[0])
        program, reply = self._ask_many(demands, (times, 1, 1, 250, 1))
        self._look(program)
        self.compare(f"all of {plan}", [0, times], [reply[0], *reply[5:6]])
        self.compare(f"last of {plan}", self._decide_each(program, times, reply[1])[:4], reply[:4])
        self._compare_all()

    def _asked(self) -> tuple[int, ...]:
        return self.random.choice((1, 4, 7, 16, 31)), *super()._asked()[1:]

    def _demands(self) -> dict[str, Demand]:
        count = self.random.choice((1, 1, 1, 2, 3))
        chosen = self.random.sample(_METERS, count)
        return {name: Demand.of(self.random.choice((1, 1, 2))) for name in chosen}

    def _room(self, program: Program, asked: tuple[int, ...], reply: Any) -> tuple[int, int]:
        """What the script found, if as many decisions agree; and how long nothing ends."""
        most, least, share, _, lasts_least_ms = asked
        now = reply[1]
        lasts_ms = self._lasts_ms(program, asked, now)
        if "asked" in json.loads(program.extra_terms or "{}"):
            lasts_ms = min(lasts_ms, self._changes_ms() - now)
        if lasts_ms < lasts_least_ms:
            return 0, lasts_ms
        found = reply[5] if reply[0] == 0 else 0
        tried = min([most, *self._rooms_of_rates(self._fields(ONE), program, share, now)])
        while tried > max(found, least - 1):
            self.compare("not more are allowed", False, self._fits(program, 1 + (tried - 1) * share))
            self.seen["short"] += 1
            tried //= 2
        if tried >= least:
            self.compare("so many are tried", tried, found)
            self.compare("the last is allowed", True, self._fits(program, 1 + (found - 1) * share))
        return found, lasts_ms

    def _fits(self, program: Program, times: int) -> bool:
        """Whether so many requests of one are allowed, one after the other, within the budget."""
        counters = self._keys(ONE).counters
        before = self.wire(pack("DUMP", counters))
        lives_ms = self.wire(pack("PEXPIRETIME", counters))
        request = self._packed(self._view(ONE), program, "d") + pack_each([self.wall])
        replies = self.wire(*[request] * times, pack("PING"))[:-1]
        is_within = all(reply[0] == 0 for reply in replies) and not self._is_overspent(program)
        self.wire(pack("DEL", counters))
        if before is not None:
            self.wire(pack("RESTORE", counters, max(0, lives_ms), before, "ABSTTL"))
        return is_within

    def _is_overspent(self, program: Program) -> bool:
        """Whether what is spent and what is held come to more than the budget."""
        if all(measure.kind != SPENT for measure in program.measures):
            return False
        asked = self._compile(self._view(ONE), {"words": Demand(needed=10**9, taken=0)})
        reply = self.send(self._packed(self._view(ONE), asked, "c"))
        nth = next(nth for nth, measure in enumerate(asked.measures) if measure.kind == SPENT)
        free, held, _ = reply[3 + 3 * nth : 6 + 3 * nth]
        return bool(held > free)

    def _changes_ms(self) -> int:
        balance = self.wire(pack("HGET", self._keys(ONE).grants, "balance"))
        return NEVER_MS if balance is None else int(balance.split(b" ")[1])

    def _compare_all(self) -> None:
        super()._compare_all()
        for key in ("grants", "ledger"):
            keys = [getattr(self._keys(name), key) for name in (ONE, MANY)]
            one, many = (fields_of(self.wire(pack("HGETALL", of))) for of in keys)
            self.compare(key, one | {"balance": b""}, many | {"balance": b""})

    def _both(self, script: str, words: Sequence[str | int]) -> None:
        keys = [self._keys(name) for name in (ONE, MANY)]
        replies = [self.run(script, (of.grants, of.ledger), *words) for of in keys]
        self.compare(f"{script} {words}", *replies)
