"""The same two customers where grants, credits and a budget stand behind their plans.

As many decisions, one after the other, show for how many requests there is room; then the store is put back.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog import loads
from meterkit.decisions.asked import Demand
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.in_process import advance
from meterkit.decisions.keys import FORMAT
from meterkit.decisions.policies import SPENT
from meterkit.redis.connection import pack, pack_each
from meterkit.store.hold import Held, Used
from store.script_allotting import MANY, ONE, AllotWorld
from store.script_counts import DAY_MS
from store.script_world import amended

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

    from meterkit.decisions.program import Program
    from store.script_wires import Wire

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
_EDGES: Final = (
    ("spare", ("words",), 40),  # A grant.
    ("bounded", ("words",), 140),  # A budget.
    ("bounded", ("pages", "requests"), 57),  # What the last one takes of the credit counts.
)
_NEVER_MS: Final = 9 * 10**15


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
        elif chance < 0.06:
            self.void()
        super().step()

    def grant(self) -> None:
        """Give both the same, for a while."""
        target = self.random.choice(("c:ai", "c:ai", "m:requests", "m:words", "m:images"))
        quantity = self.random.choice((20, 60, 200)) * (10**6 if target == "c:ai" else 1)
        expires_ms = self.random.choice((_NEVER_MS, self.wall + 400, self.wall + 9000, self.wall + DAY_MS))
        begins_ms = self.random.choice((0, 0, self.wall + 100))
        grant_id = f"g{self.random.randrange(10**9)}"
        words = (grant_id, 256, 100, begins_ms, expires_ms, target, quantity, self.wall)
        self._both("grant", words)
        self.granted.append(f"a {target} {grant_id}")
        self.seen["grant"] += 1

    def void(self) -> None:
        """Take back what one grant has left."""
        if self.granted:
            self._both("void", (self.random.choice(self.granted), self.wall))

    def amend(self) -> None:
        self._put(self.random.choice(("spare", "bounded")))

    def _put(self, plan: str) -> None:
        state, rev = CustomerState(plan=plan, granted=True), f"{FORMAT}:{self.random.randrange(10**12):012x}"
        for name in (ONE, MANY):
            revs = self.rev, rev
            request = amended(self.keys, self.scripts["amend"], name, revs, state.dump(), self.wall)
            self.compare("amended", [0], self.wire(request))
        self.rev = rev

    def record(self) -> None:
        recorded = {self.random.choice(_METERS): self.random.choice((1, 5, 30))}
        self._settle_both(Held(), Used(recorded, recorded))

    def damage(self) -> None:
        """Damage each field that the script reads: it allots nothing."""
        for plan, demands, times in _EDGES:
            self.edge(plan, {name: Demand.of(1) for name in demands}, times)
        while "h" not in self._fields(MANY):
            self.ask()
        program = self._compile(self._view(MANY), {"requests": Demand.of(1)})
        counters = self._keys(MANY).counters
        for field in program.fields:
            whole = self.wire(pack("HGET", counters, field))
            self.wire(pack("HSET", counters, field, b"1x"))
            self.compare(f"damaged {field}", True, "DAMAGED field" in str(self._insist(program)))
            self.wire(
                pack("HDEL", counters, field) if whole is None else pack("HSET", counters, field, whole)
            )

    def edge(self, plan: str, demands: dict[str, Demand], times: int) -> None:
        """Allot to new customers all that there is, to the last unit."""
        for name in (ONE, MANY):
            keys = self._keys(name)
            self.wire(pack("DEL", keys.counters, keys.totals, keys.grants, keys.ledger))
        self._put(plan)
        self._both("grant", ("edge", 256, 100, 0, _NEVER_MS, "c:ai", 50 * 10**6, self.wall))
        self._settle_both(Held(), Used({"requests": 200}))
        program, reply = self._ask_many(demands, (times, 1, 1, 250, 1))
        while reply[0] == 2:
            self._learn(reply)
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
        most, least, share, lasts_ms, lasts_least_ms = asked
        now = reply[1]
        bounds = self._view(ONE).effective.bounds
        end_ms = bounds.end_ms if now < bounds.end_ms else bounds.next_end_ms
        lasts_ms = min(lasts_ms, end_ms - now, self._view(ONE).effective.valid_until_ms - now)
        lasts_ms = min(
            lasts_ms, *(window - now % window for _, _, window, *_ in program.rate_terms), lasts_ms
        )
        if "asked" in json.loads(program.further or "{}"):
            lasts_ms = min(lasts_ms, self._changes_ms() - now)
        if lasts_ms < lasts_least_ms:
            return 0, lasts_ms
        found = reply[5] if reply[0] == 0 else 0
        tried = self._room_of_rates(program, most, share, now)
        while tried > max(found, least - 1):
            self.compare("not more are allowed", False, self._fits(program, 1 + (tried - 1) * share))
            self.seen["short"] += 1
            tried //= 2
        if tried >= least:
            self.compare("so many are tried", tried, found)
            self.compare("the last is allowed", True, self._fits(program, 1 + (found - 1) * share))
        return found, lasts_ms

    def _room_of_rates(self, program: Program, most: int, share: int, now: int) -> int:
        stored = self._fields(ONE)
        for field, kind, window, limit, refill, needed, _ in program.rate_terms:
            _, used = advance(kind, window, refill, self._window(stored, field), now)
            most = min(most, (limit - used - needed) // (share * needed) + 1 if used + needed <= limit else 0)
        return most

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
        return _NEVER_MS if balance is None else int(balance.split(b" ")[1])

    def _compare_all(self) -> None:
        super()._compare_all()
        for key in ("grants", "ledger"):
            one, many = (self._purse(getattr(self._keys(name), key)) for name in (ONE, MANY))
            self.compare(key, one, many)

    def _purse(self, key: str) -> dict[bytes, bytes]:
        flat = self.wire(pack("HGETALL", key))
        found = dict(zip(flat[::2], flat[1::2], strict=True))
        found.pop(b"balance", None)
        return found

    def _both(self, script: str, words: Sequence[str | int]) -> None:
        keys = [self._keys(name) for name in (ONE, MANY)]
        sha = self.scripts[script].sha
        replies = self.wire(*(pack("EVALSHA", sha, 2, of.grants, of.ledger, *words) for of in keys))
        self.compare(f"{script} {words}", *replies)
