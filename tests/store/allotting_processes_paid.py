"""The same processes, whose customer has prepaid something or may spend so much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import ClassVar, Final

from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import credit_hold_field, meter_field
from meterkit.decisions.limit_policies import CEILING
from meterkit.decisions.packed import MeterCounts
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.decisions.stored_grants import StoredGrant
from meterkit.redis.connection import pack
from meterkit.store.views import PreparedDecision
from store.allotting_processes import Process, Processes
from store.script_model import NEVER_MS
from store.script_wires import Wire
from store.script_world import fields_of

PAID: Final = loads("""
schema: 1
currency: usd
default_plan: prepaid
allotment: 250ms
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  words: {unit: word, stripe: {event_name: words}}
  images: {unit: image, stripe: {event_name: images}}
prices:
  images: {default: 1, models: {opus: 2}}
credits:
  ai: {costs: {requests: 1, words: 1 per 4, images: prices.images}}
routes:
  - {match: "GET /words", consume: {requests: 1, words: 3}}
  - {match: "GET /images", consume: {images: 1}}
  - {match: "*", consume: {requests: 1}}
plans:
  prepaid:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 900/second, included: 600, overage: deny}
      words: {included: 300, overage: deny}
      images: {included: 0, overage: deny}
  bounded:
    price: {amount_cents: 0, interval: month}
    budget: {amount_cents: 3000}
    meters:
      requests:
        {rate: 900/second, concurrency: 400, included: 600, overage: {bill: {per: 1, amount_cents: 1}}}
      words: {included: 300, overage: {bill: {per: 1, amount_cents: 2}}}
      images: {included: 0, overage: {bill: {per: 1, amount_cents: 3, cap: 500}}}
""")
_INCLUDED: Final = {"requests": 600, "words": 300, "images": 0}
_COSTS: Final = {"requests": 10**6, "words": 10**6 // 4, "images": 2 * 10**6}
_PRICES: Final = {"requests": 10_000, "words": 20_000, "images": 30_000}
_BUDGET: Final = 3000 * 10_000


class PaidProcesses(Processes):
    """Some processes, one customer with credits or a budget, one store, and time."""

    catalog = PAID
    says: ClassVar = Processes.says - {"full c"}

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.plan = random.choice(("prepaid", "bounded"))
        self.put(CustomerState(plan=self.plan, granted=True))
        self.amend(self.processes[0])

    def amend(self, process: Process) -> None:
        """Give units, or a credit; none of it expires."""
        del process
        if self.plan == "prepaid":
            grants = (("c:ai", 700 * 10**6), ("m:words", 200), ("m:requests", 100))
            grant_id, keys = f"g{next(self.numbers)}", (self.own.grants, self.own.ledger)
            words = (grant_id, 256, 100, 0, NEVER_MS, *self.random.choice(grants), self.wall)
            assert self.run("add_grant", keys, *words)[0] == 0

    def tick(self, process: Process) -> None:
        """Time passes, but holds do not vanish before their requests have ended."""
        slot = max(self.seen, self.wall) // HOLD_SLOT_MS
        if any(at < slot for _, at in self._holds):
            self.drain()
        super().tick(process)

    def check(self) -> None:
        """The store holds what is served, and all that it holds is covered, or within the budget."""
        super().check()
        stored, now = self.stored(), max(self.seen, self.wall)
        counts = {name: MeterCounts.read(stored.get(meter_field(name))) for name in _INCLUDED}
        every = [request for process in self.processes for request in process.serving]
        serving = [request for request in every if request.slot >= now // HOLD_SLOT_MS - 1]
        for name, kept in counts.items():
            served = sum(request.decided.held.get(name, 0) for request in serving)
            assert kept.held_at(now) >= served, f"{kept} held of {name}, {served} served"
        priced = 0
        for decided in (request.decided for request in serving):
            priced += sum(cost * decided.held[name] for name, cost in decided.program.costs.items())
        cost_held = MeterCounts.read(stored.get(credit_hold_field("images"))).held_at(now)
        assert cost_held >= priced, f"{cost_held} micro-credits held, {priced} served"
        left, beyond = self._left(), dict[str, int]()
        for name, kept in counts.items():
            own = max(0, _INCLUDED[name] - kept.included) + left.get(f"m:{name}", 0)
            beyond[name] = max(0, kept.held_at(now) - own)
        if self.plan == "prepaid":
            claimed = sum(_COSTS[name] * units for name, units in beyond.items())
            assert claimed <= left.get("c:ai", 0), f"{claimed} micro-credits claimed of {left}"
        else:
            spent = MeterCounts.read(stored.get(meter_field("spend"))).recorded
            owed = sum(_PRICES[name] * units for name, units in beyond.items())
            assert spent + owed <= _BUDGET, f"{spent} micro-units spent, {owed} owed"

    def room(self, stored: Mapping[str, bytes], now: int) -> dict[tuple[str, str], int]:
        """Only of requests in flight: grants, credits and budgets pay for more than a ceiling."""
        return {of: left for of, left in super().room(stored, now).items() if of[0] == "n"}

    def left_of(self, unit: PreparedDecision, nth: int, now: int) -> int | None:
        """None for a ceiling, too: grants and credits stand behind it."""
        return None if unit.program.measures[nth - 1].kind == CEILING else super().left_of(unit, nth, now)

    def _left(self) -> Counter[str]:
        """What grants have left, by their target."""
        found = Counter[str]()
        for name, text in fields_of(self.wire(pack("HGETALL", self.own.grants))).items():
            if name.startswith("a "):
                grant = StoredGrant.parse(name, text.decode())
                found[grant.target] += grant.left
        return found
