"""Drives the real scripts and the model with the same random life of a few customers, and compares.

Requests are packed by the code that packs them in production; only the clock is set.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any, Final

from drivers.counters import flat_of, pack_field, packed_of
from meterkit.catalog import loads
from meterkit.decisions.compiled_decision import compile_program
from meterkit.decisions.customer_state import NO_STATE, CustomerState, bounds_of
from meterkit.decisions.keys import FORMAT, meter_token, rate_field
from meterkit.decisions.limit_policies import Demand
from meterkit.decisions.packed import unpack_field
from meterkit.decisions.subscription import Status, SubscriptionState
from meterkit.decisions.told_terms import with_terms
from meterkit.redis.connection import pack
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import RateCorrection, UsedQuantities
from meterkit.store.views import CustomerView
from store.script_counts import DAY_MS, MINUTE_MS, MOST, SLOT_MS
from store.script_model import NEVER_MS
from store.script_plans import ANONYMOUS, CUSTOMERS, PAID, PLAIN, PLANS, ROLLING, WINDOWS_MS
from store.script_purse import MICRO, Given, Purse
from store.script_requests import Requests, view_of
from store.script_wires import Wire
from store.script_world import amended, weighed


def _damaged(reply: Any) -> Any:
    """The word and the field of an error that says what is damaged; any other reply as it is."""
    found = re.search(r"DAMAGED.* field (\S+)", str(reply)) if isinstance(reply, Exception) else None
    return reply if found is None else ["DAMAGED", found[1]]


def _wrongs(packed: bytes) -> tuple[bytes, ...]:
    """What cannot be the field: texts, nothing, one number less or more, and one that is not whole."""
    first, *others = unpack_field(packed)
    assert isinstance(first, int)
    half = b"\xcb" + struct.pack(">d", 0.5)  # Beyond 2^52 `first + 0.5` is whole.
    return (
        *(b"1x", b"", b"7", pack_field(first), pack_field(first, *others, 0)),
        pack_field()[:1] + half + b"".join(pack_field(value)[1:] for value in others),
    )


def _beyond(packed: bytes) -> tuple[bytes, ...]:
    """The field with a number that is too low, or too high."""
    _, *others = unpack_field(packed)
    return pack_field(-1, *others), pack_field(MOST + 1, *others)


def life(seed: int) -> Random:
    """Chances that can be had again."""
    return Random(seed)  # noqa: S311 - a failure must be repeatable, nothing is secret


class World(Requests):
    # One step.

    def step(self) -> None:
        name = self.anybody()
        self.tick(name)
        self.one_of(self.deeds())(name)
        if self.random.random() < 0.12:
            self.check(name)
        for other in (*CUSTOMERS, ANONYMOUS):
            if 0 < self.model.customers[other].lives <= self.wall and self.random.random() < 0.3:
                self.expire(other)

    def deeds(self) -> Mapping[str, float]:
        """What may be done, by how often it is."""
        return _DEEDS

    def anybody(self) -> str:
        """A customer: mostly one of two, so that something comes together."""
        return self.random.choice((*CUSTOMERS, ANONYMOUS) if self.random.random() < 0.1 else CUSTOMERS[:2])

    def tick(self, name: str) -> None:
        chance = self.random.random()
        if chance < 0.45:
            return
        if chance < 0.60:
            self.wall += self.random.choice((1, 1, 2, 5, 40, 428, 429))
        elif chance < 0.72:
            self.wall += self.random.randrange(3000)
        elif chance < 0.945:
            self.wall = self.edge(name)
        elif chance < 0.985:
            # Clocks go back.
            self.wall -= self.random.choice(
                (1, 999, 1000, 1001, 60_000, 299_999, self.random.randrange(600_000))
            )
        else:
            self.wall += self.random.choice(
                (59_999, 60_000, 60_001, SLOT_MS * 2, 25 * 60 * MINUTE_MS, 7 * DAY_MS, 40 * DAY_MS)
            )

    def edge(self, name: str) -> int:
        """An instant at which something turns, or one beside it."""
        customer = self.model.customers[name]
        now, edges = customer.now(self.wall), [SLOT_MS] * 3
        edges += WINDOWS_MS[:5] * 3
        edges += WINDOWS_MS[5:]
        window = self.random.choice(edges)
        at = now - now % window + window
        ends = customer.period[1] if customer.period else 0
        if now <= ends < now + SLOT_MS and self.random.random() < 0.4:
            return ends
        if self.random.random() < 0.1 and ends:
            at = ends - self.random.choice((0, 1, 1000, SLOT_MS - 1))
        elif self.random.random() < 0.05:
            at = self._customer(name).effective.valid_until_ms
            at = now if at >= NEVER_MS else at
        elif window > 2 * DAY_MS and self.random.random() < 0.85:
            at = now
        beside = (-1, 0, 1) if window < DAY_MS else (-1, 0, 1, 999, 1001, self.random.randrange(5000))
        return max(now, at + self.random.choice(beside))

    # Deeds.

    def flood(self, name: str) -> None:
        """So much that the total, or a rate's count, would pass what is counted exactly."""
        known, meter = self._customer(name), self.random.choice(self.sales.meters)
        quantities = {meter: 10**15 - 1}
        rated = self.random.choice((quantities, {}))
        for _ in range(10):
            self._settle(Settlement(known, used=UsedQuantities(quantities, rated)))
        # Exactly what is counted, then one more.
        left = MOST - self.model.customers[name].total(meter)
        for quantity in (left, 1):
            if quantity < 10**15:
                self._settle(Settlement(known, used=UsedQuantities({meter: quantity})))
        for _ in range(10):
            demands = {meter: Demand(needed=1, taken=3)}
            self.ask_for(known, demands, "d", {"billed_always": True, "rates_only": False})

    def correct(self, name: str) -> None:
        """Say of some window that it counted too much or too little, by more than it can be."""
        known = self._customer(name)
        rated = [(meter, rate) for meter, given in known.entitlements.items() for rate in given.rates]
        if not rated:
            return
        meter, rate = self.random.choice(rated)
        quantity = self.random.choice((-(10**6), -3, -1, 5))
        back_ms = self.random.choice((0, 1, 1, 2)) * rate.window_ms
        if rate.algorithm == "token-bucket":  # What it owes it owes for some milliseconds.
            quantity = self.random.choice((-(10**6), -40, -12, -7, -3, -1, 5))
            back_ms = self.random.randrange(1, 3 * rate.window_ms * 20 // rate.limit + 2)
        times = 1
        if self.random.random() < 0.1:
            quantity, times = 10**15 - 1, 10
        rates = frozenset({rate_field(meter, rate.window_ms, rate.algorithm)})
        for _ in range(times):
            correction = RateCorrection({meter: max(-quantity, 0)}, rates, self.wall - back_ms)
            used = UsedQuantities(rated={meter: max(quantity, 0)})
            self._settle(Settlement(known, used=used, correction=correction))

    def stranger(self, _: str) -> None:
        """Somebody never seen before comes once."""
        name = f"s{self.random.randrange(10**9)}"
        self.random.choice((self.decide, self.record))(name)
        self.check(name)

    def amend(self, name: str) -> None:
        if name == ANONYMOUS:
            return
        state = CustomerState.parse(self.model.customers[name].data)
        status = self.random.choice(_STATUSES)
        linked = state.stripe_customer or self.random.choice((None, None, f"cus_{name}"))
        changed = CustomerState(
            plan=self.random.choice(self.sales.plans),
            status=status,
            status_since_ms=self.wall if status == "past_due" else 0,
            stripe_customer=linked,
            anchor_ms=self._anchor(name) if self.anchors else None,
            granted=state.granted,
        )
        self.put(name, changed, gone=linked is None and not state.granted and self.random.random() < 0.2)

    def _anchor(self, name: str) -> int | None:
        """None, now, or so shortly after the period began that it may still be the same."""
        period = self.model.customers[name].period
        if period is not None and self.random.random() < 0.15:
            return period[0] + 2 * MINUTE_MS + self.random.choice((-1, 0))
        return self.random.choice((None, self.wall))

    def put(self, name: str, state: CustomerState, *, gone: bool = False) -> None:
        customer, amend = self.model.customers[name], self.scripts["amend_state"]
        rev, data = f"{FORMAT}:{self.random.randrange(10**12):012x}", state.dump()
        if gone:
            rev, data = NO_STATE, ""
        is_linked, revs = state.stripe_customer is not None, (customer.rev, rev)
        request = amended(self.keys, amend, name, revs, data, self.wall, linked=int(is_linked))
        self.compare(f"amend {name} {state}", [0], self.wire(request))
        self.model.amend(name, rev, data, linked=is_linked, seal_at_ms=self.wall)
        self.wall = max(self.wall, customer.seen) + 1

    def age(self, name: str) -> None:
        """Use something when a closed period has been over for 400 days, or just before or after."""
        customer = self.model.customers[name]
        starts = self.aging(customer.closed)
        ends = [customer.closed.get(f"{start}|e", int(start)) for start in sorted(starts)]
        now, at = customer.now(self.wall), self.random.choice(ends) if ends else 0
        if at + 400 * DAY_MS > now:
            self.wall = at + 400 * DAY_MS + self.random.choice((-1, 0, 0, 1))
            self.record(name)
            self.check(name)

    def aging(self, closed: Mapping[str, int]) -> set[str]:
        """The closed periods that may be over for 400 days next, by how their fields begin."""
        return {field.partition("|")[0] for field in closed}

    def fence(self, _: str) -> None:
        nth = self.random.randrange(3)
        writer = self.writers[nth]
        reply = self.run("fence_producer", (self.keys.producer(0, writer),))
        self.compare(f"fence {writer}", self.model.fence(writer), reply)
        if self.random.random() < 0.7:
            self.writers[nth] = f"w{self.random.randrange(10**9)}"

    def damage(self, name: str) -> None:
        """Have a period end that cannot be closed: nothing is done, and the field to blame is named."""
        customer, keys = self.model.customers[name], self.keys.customer(name)
        if customer.period is None:
            return
        self.wall = max(self.wall, customer.seen, customer.period[1])
        stored = self.fields(keys.counters)
        for field, packed in stored.items():
            if field[-1] in "hm":
                beyond = _beyond(packed) if field[-1] == "m" else ()
                for wrong in (*_wrongs(packed), *beyond):
                    self._damage(name, keys.counters, field, wrong)
        begun = customer.period[0]
        counted = [field for field in flat_of(stored) if len(field) == 5 and field[-1] in "igcojpm"]
        for field in (f"{begun}|e", *(f"{begun}|{field}" for field in counted)):
            self._damage(name, keys.totals, field, b"1x")

    def _damage(self, name: str, key: str, field: str, wrong: bytes) -> None:
        keys = self.keys.customer(name)
        whole = self.wire(pack("HGET", key, field))
        self.wire(pack("HSET", key, field, wrong))
        kept = [self.wire(pack("HGETALL", hash_)) for hash_ in (keys.counters, keys.totals)]
        known = self.processes[0].get(name)
        reply: Any = [2]
        while reply[0] == 2:  # Stale.
            if len(reply) > 1:
                known = known.cache.learn(known, reply)
            program = compile_program(known.entitlements, self.catalog, {}, prepaid=known.prepaid)
            reply = _damaged(self.send(b"".join(known.pack_decide(program, "d"))))
        self.compare(f"decide {name} by {key} {field} {wrong!r}", ["DAMAGED", field], reply)
        writer = self.keys.producer(0, "damaged")
        reply = self.send(self.packed(Settlement(known), "damaged", 1))
        # What every settlement reads is not read any further; what only the end of a period reads is told.
        expected = [7, field.encode()] if _damaged(reply) is reply else ["DAMAGED", field]
        self.compare(f"settle {name} by {key} {field} {wrong!r}", expected, _damaged(reply))
        self.wire(pack("DEL", writer))
        found = [self.wire(pack("HGETALL", hash_)) for hash_ in (keys.counters, keys.totals)]
        self.compare(f"kept of {name} by {key} {field}", kept, found)
        self.wire(pack("HDEL", key, field) if whole is None else pack("HSET", key, field, whole))

    def expire(self, name: str) -> None:
        self.wire(pack("DEL", self.keys.customer(name, anonymous=name == ANONYMOUS).counters))
        self.model.expire(name)

    def seal(self, name: str) -> None:
        """What a seal leaves behind: nothing pending of a meter."""
        if name not in self.model.dirty or not any(self.model.customers[name].pending.values()):
            return
        pending = self.model.customers[name].pending
        meter = self.random.choice([meter for meter, count in pending.items() if count])
        counters = self.keys.customer(name).counters
        minute = self.wall - self.wall % MINUTE_MS + self.random.randrange(4) * MINUTE_MS
        self.model.sealed(name, meter, minute)
        lives = self.model.customers[name].lives
        token = meter_token(meter)
        flat = flat_of(self.fields(counters)) | {f"{token}p": "0", f"{token}z": str(minute), "x": str(lives)}
        packed = packed_of(flat)
        for field in ("h", f"{token}m"):
            self.wire(pack("HSET", counters, field, packed[field]))
        if lives < NEVER_MS:
            self.wire(pack("PEXPIREAT", counters, lives))
            self.wire(pack("ZREM", self.keys.customer(name).dirty, name))


class AgingWorld(World):
    """A world in which mostly periods of which nothing is to be delivered are over for 400 days."""

    def aging(self, closed: Mapping[str, int]) -> set[str]:
        to_deliver = {name.partition("|")[0] for name, kept in closed.items() if name[-1] in "pqlkx" and kept}
        return super().aging(closed) - to_deliver


class MonthWorld(World):
    """A world of buckets that leak a few units in a month: their products pass 2^53 if not kept small."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random, sales=_SLOW)


class TurnWorld(World):
    """A world in which clocks differ at the very end of a period."""

    def deeds(self) -> Mapping[str, float]:
        return {**super().deeds(), "turn": 10}

    def turn(self, name: str) -> None:
        """Ask shortly before the period ends, and several times at its end."""
        customer = self.model.customers[name]
        if customer.period is None or max(self.wall, customer.seen) > customer.period[1] - 30_000:
            return
        demands, flags = {"jobs": Demand.of(1)}, {"billed_always": False, "rates_only": False}
        for mode, before_ms, times in (("d", 30_000, 2), ("c", 0, 5)):
            self.wall = customer.period[1] - before_ms
            for _ in range(times):
                self.ask_for(self._customer(name), demands, mode, flags)


_LEAKS: Final = "{limit: 7/30 days, algorithm: token-bucket, burst: 30}"
_SLOW: Final = replace(PLAIN, catalog=loads(PLANS.replace("rate: 30/5 minutes", f"rate: {_LEAKS}")))
_DEEDS: Final = weighed(
    "decide 51, reserve 4, renew 1, settle 28, record 10, amend 2.5, fence 1, seal 1.5, flood 0.25, correct 1"
    ", stranger 4, age 0.15"
)
_STATUSES: Final[tuple[Status | None, ...]] = (
    *(None, None, "active", "past_due", "past_due", "unpaid", "canceled", "paused"),
)


class PaidWorld(World):
    """Customers who have something besides what their plan includes."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random, sales=PAID)

    def deeds(self) -> Mapping[str, float]:
        return _PAID_DEEDS

    def tick(self, name: str) -> None:
        """Move the clock, but not back into an earlier period: its stored grants are not modelled."""
        super().tick(name)
        periods = (customer.period for customer in self.model.customers.values())
        self.wall = max(self.wall, *(period[0] for period in periods if period is not None), 0)

    def step(self) -> None:
        super().step()
        for name in (*CUSTOMERS, ANONYMOUS):
            if 0 < self.model.customers[name].purse.lives <= self.wall and self.random.random() < 0.3:
                keys = self.keys.customer(name, anonymous=name == ANONYMOUS)
                self.wire(pack("DEL", keys.grants, keys.ledger))
                self.model.customers[name].purse = Purse()

    def edge(self, name: str) -> int:
        customer = self.model.customers[name]
        now = customer.now(self.wall)
        given = customer.purse.grants.values()
        turns = sorted(at for grant in given for at in (grant.effective, grant.expires) if at > now)
        if turns and turns[0] < now + 40 * DAY_MS and self.random.random() < 0.15:
            return turns[0] + self.random.choice((-1, 0, 1))
        return super().edge(name)

    # Deeds.

    def grant(self, name: str) -> None:
        terms = self._terms()
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            terms = terms if self.random.random() < 0.6 else self._terms()
            known = self.model.customers[name].purse.ids
            if known and self.random.random() < 0.25:
                grant_id = self.random.choice(list(known))
                targets = [target for target, _ in known[grant_id]]
                if self.random.random() < 0.1:
                    targets = self.random.sample(_TARGETS, 2)
            else:
                grant_id = f"g{self.random.randrange(10**6)}"
                targets = self.random.sample(_TARGETS, self.random.choice((1, 1, 2, 3)))
            granted = {target: self._granted(name, target, grant_id) for target in targets}
            self.add(name, grant_id, granted, terms)

    def add(
        self, name: str, grant_id: str, quantities: Mapping[str, int], terms: tuple[int, int, int]
    ) -> None:
        if name == ANONYMOUS:
            return
        customer, keys = self.model.customers[name], self.keys.customer(name)
        state = CustomerState.parse(customer.data)
        if not state.granted:
            self.put(name, replace(state, granted=True))
        priority, effective, expires = terms
        asked = sorted(quantities.items())
        more = (priority, effective or self.wall, expires, self.wall, expires)
        new = [Given(f"a {target} {grant_id}", target, quantity, *more) for target, quantity in asked]
        most = self.random.choice((256, 256, 8, len(customer.purse.grants) + 1))
        words = (grant_id, most, *terms, *(word for one in asked for word in one), self.wall)
        reply = self.run("add_grant", (keys.grants, keys.ledger), *words)
        expected = customer.purse.add(grant_id, new, self.wall, most=most)
        self.compare(f"grant {name} {words}", expected, reply)
        self.seen[f"grant {expected[0]!r}"] += 1

    def void(self, name: str) -> None:
        if name == ANONYMOUS:
            return
        purse, keys = self.model.customers[name].purse, self.keys.customer(name)
        live = sorted(grant for grant in purse.grants if grant.startswith("a "))
        ended = [line.removeprefix("grant ") for line in purse.lines if line.startswith("grant a ")]
        ended = sorted({*ended, "a m:calls none"} - purse.grants.keys())
        names = self.random.sample(live, min(len(live), self.random.choice((1, 1, 2))))
        names += [ended[self.wall % len(ended)]]
        names = names[: self.random.choice((1, 2, 3))]
        reply = self.run("void_grants", (keys.grants, keys.ledger), *names, self.wall)
        expected = purse.void(names, self.wall)
        self.compare(f"void {name} {names}", expected, reply)
        self.seen[f"void {expected > 0}"] += 1
        self.seen["void used up"] += any(purse.lines.get(f"void {one}") == (0, self.wall) for one in names)

    def hoard(self, name: str) -> None:
        """More is paid by a grant than can be counted."""
        if name == ANONYMOUS:
            return
        most = 10**15 - 1
        terms = (0, 0, self.wall + MINUTE_MS)
        for nth in range(9):
            self.add(name, f"h{self.wall} {nth}".replace(" ", "-"), {"m:calls": most}, terms)
        # One more than there may be, where there is none and where there is something.
        self.add(name, f"h{self.wall}", {"m:notes": MOST + 1}, terms)
        granted = self.model.customers[name].purse.grants.values()
        left = sum(grant.left for grant in granted if grant.target == "m:calls")
        for more in ({}, {"c:ai": MICRO}):
            self.add(name, f"h{self.wall}", {**more, "m:calls": MOST + 1 - left}, terms)
        known = self._customer(name)
        for quantity in (*[most] * 9, 10, 9, 8, 1, 1, 1):
            self._settle(Settlement(known, used=UsedQuantities({"calls": quantity})))

    def dwindle(self, name: str) -> None:
        """Use so much that exactly the share is left below which a balance is low; then one unit more."""
        known, customer = self._customer(name), self.model.customers[name]
        means = customer.means(customer.now(self.wall), view_of(known))
        last = means.last("c:ai") if means else None
        included = known.entitlements["words"].included
        if means is None or last is None or included is None:
            return
        credit = self.catalog.credits["ai"]
        spare = means.of("c:ai") - last * (credit.low_balance_percent or 0) // 100
        own = max(0, included - customer.included["words"]) + means.of("m:words")
        for quantity in (own + spare // credit.costs["words"], 1):
            if 0 < quantity < 10**15 and spare >= 0:
                self._settle(Settlement(known, used=UsedQuantities({"words": quantity})))

    def outgrow(self, name: str) -> None:
        """Change the plan, and use something, when what a plan gave expires, or just before or after."""
        customer = self.model.customers[name]
        now = customer.now(self.wall)
        ending = [g.expires for g in customer.purse.grants.values() if now < g.expires < g.stays]
        if name == ANONYMOUS or not ending:
            return
        self.wall = min(ending) + self.random.choice((-2, -1, -1, 0))
        for _ in range(2):
            state = CustomerState.parse(customer.data)
            self.put(name, replace(state, plan=self.random.choice(self.sales.plans)))  # A moment later.
            recorded = {"words": self.random.choice((1, 30, 70)), "calls": self.random.choice((0, 7))}
            known = self._customer(name)
            self._settle(Settlement(known, used=UsedQuantities(recorded)))
            self.check(name)

    # What deeds are made of.

    def _terms(self) -> tuple[int, int, int]:
        """Priority, when it becomes effective, when it expires."""
        later = self.wall + 1, self.wall + self.random.randrange(3 * DAY_MS)
        effective = self.random.choice((0, 0, 0, 0, self.wall - DAY_MS, *later))
        lives = self.random.choice((1, 1000, MINUTE_MS, DAY_MS, 9 * DAY_MS, 40 * DAY_MS))
        expires = max(self.wall, effective) + lives
        priority = self.random.choice((0, 5, 20, 20, 50, 50, 1000))
        return priority, effective, expires if self.random.random() < 0.6 else NEVER_MS

    def _granted(self, name: str, target: str, grant_id: str) -> int:
        purse = self.model.customers[name].purse
        known = purse.lines.get(f"grant a {target} {grant_id}")
        if known is not None and self.random.random() < 0.6:
            return known[0]
        if target == "c:ai" and self.random.random() < 0.04:
            left = MOST - sum(grant.left for grant in purse.grants.values() if grant.target == target)
            fits = max(MICRO, left // MICRO * MICRO)
            return self.random.choice((fits, min(fits + MICRO, MOST), MOST))
        return self.random.choice(_GRANTED[target])


class FullWorld(PaidWorld):
    """A world in which somebody is granted exactly as much as can be counted."""

    def deeds(self) -> Mapping[str, float]:
        return {**super().deeds(), "fill": 5}

    def fill(self, name: str) -> None:
        """Grant all that can be of a meter of which no other grant gives anything, for a moment."""
        self.add(name, f"f{self.wall}", {_APART: MOST}, (0, 0, self.wall + 1))

    def _granted(self, name: str, target: str, grant_id: str) -> int:
        return 1 if target == _APART else super()._granted(name, target, grant_id)


class SharesWorld(PaidWorld):
    """A world of subscribers whose plans change amid a period, and who have units that money pays for."""

    def deeds(self) -> Mapping[str, float]:
        return {**super().deeds(), "amend": 12, "outgrow": 0, "vouch": 5}

    def amend(self, name: str) -> None:
        if name == ANONYMOUS:
            return
        state = CustomerState.parse(self.model.customers[name].data)
        begins = self.wall - DAY_MS if state.subscription is None else state.subscription.start_ms
        subscription = SubscriptionState(
            id="sub_1",
            status="active",
            plan=self.random.choice(("gift", "more", "more", "bare", "vast")),
            start_ms=begins,
            end_ms=begins + 31 * DAY_MS,
            anchor_ms=begins,
            created_ms=begins,
        )
        linked = f"cus_{name}"
        changed = replace(state, plan=None, status=None, subscription=subscription, stripe_customer=linked)
        self.put(
            name, with_terms(state, changed, self.catalog, self.wall, told_ms=self.wall, source="stripe")
        )

    def vouch(self, name: str) -> None:
        """Grant some of what a balance in money pays for."""
        units = self.random.choice((1, 400_000, 3_000_000))
        self.add(name, f"v{self.wall}", {_CHARGED: units}, (50, 0, NEVER_MS))

    def _granted(self, name: str, target: str, grant_id: str) -> int:
        return 1 if target == _CHARGED else super()._granted(name, target, grant_id)

    def _own_start(self, known: CustomerView, at: int) -> int:
        return bounds_of(known.state, known.effective.counting, at).start_ms


class RollingWorld(SharesWorld):
    """A world in which what is left of some grants lives on, and some are given once."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super(PaidWorld, self).__init__(wire, texts, random, sales=ROLLING)

    def deeds(self) -> Mapping[str, float]:
        return {**super().deeds(), "amend": 4, "pass_months": 12, "dwindle": 3, "lose": 6}

    def amend(self, name: str) -> None:
        """Change the plan within a subscription, or without one; that is remembered."""
        if name == ANONYMOUS or self.random.random() < 0.5:
            super().amend(name)
            return
        state = CustomerState.parse(self.model.customers[name].data)
        anchor = self._anchor(name) if self.anchors else state.anchor_ms
        changed = replace(
            state,
            plan=self.random.choice(self.sales.plans),
            anchor_ms=anchor,
            subscription=None,
            status=self.random.choice(_PAYING),
            status_since_ms=self.wall,
        )
        self.put(
            name, with_terms(state, changed, self.catalog, self.wall, told_ms=self.wall, source="stripe")
        )

    def lose(self, name: str) -> None:
        """Lose a used-up grant of an earlier period, as under a plans file by which nothing lived on."""
        grants = self.model.customers[name].purse.grants
        old = [
            grant.name
            for grant in grants.values()
            if grant.name.startswith("p ") and not grant.left
            if any(one.kind == grant.kind and one.effective > grant.effective for one in grants.values())
        ]
        key = self.keys.customer(name, anonymous=name == ANONYMOUS).grants
        for lost in sorted(old):
            del grants[lost]
            self.wire(pack("HDEL", key, lost, "balance"))

    def pass_months(self, name: str) -> None:
        """Let the period end, or several; then use something, or only ask."""
        for _ in range(self.random.choice((1, 1, 2, 3))):
            ends = self._customer(name).effective.bounds.end_ms
            self.wall = max(self.wall, ends) + self.random.choice((-1, 0, 0, 1, MINUTE_MS, DAY_MS))
            for _ in range(self.random.choice((0, 0, 1, 2))):
                self.random.choice((self.decide, self.record))(name)
        self.check(name)


_PAYING: Final[tuple[Status, ...]] = ("active", "active", "past_due")
_APART: Final = "m:notes"
_CHARGED: Final = "m:usd_charged"
_GRANTED: Final = {
    "c:ai": (MICRO, MICRO, 2 * MICRO, 3 * MICRO, 20 * MICRO),
    "c:ink": (MICRO, 2 * MICRO, 9 * MICRO),
    "c:usd": (MICRO, 2 * MICRO, 5 * MICRO),
    "m:calls": (1, 2, 5, 20),
    "m:words": (7, 64, 300),
    "m:images": (1, 3),
    "m:pages": (1, 2, 9),
}
_TARGETS: Final = tuple(_GRANTED)
_PAID_DEEDS: Final = weighed(
    "decide 40, reserve 6, renew 2, settle 26, record 14, amend 3, fence 0.7, seal 0.5, stranger 1, flood 0.1"
    ", correct 0.3, grant 6, void 1.5, hoard 0.15, dwindle 1, outgrow 0.7, age 0.15"
)
