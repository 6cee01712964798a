"""What requests do in a random life: decide, hold, end, and be told that they know too little."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.asked import Demand
from meterkit.decisions.at_model import AtModel
from meterkit.decisions.binding import derived_from
from meterkit.decisions.event_marks import UNCOMPARED, EventMark, read_mark
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import bounds_at
from meterkit.decisions.program import compile_program
from meterkit.redis.connection import pack, pack_each
from meterkit.redis.settling import CONFLICT, PARTLY
from meterkit.store.hold import Correction, Held, Used
from meterkit.store.settlement import Settlement
from store.script_checks import Checks
from store.script_counts import DAY_MS, SLOT_MS
from store.script_model import Times, View
from store.script_plans import ANONYMOUS, HUGE, PLAIN, SEAL_DELAY_MS, SKEWS
from store.script_purse import may_have
from store.script_world import fields_of, load_script

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from meterkit.catalog import Entitlement
    from meterkit.decisions.program import Program
    from meterkit.store.views import CustomerView
    from store.script_plans import Sales
    from store.script_wires import Wire


@dataclass(frozen=True, slots=True)
class Open:
    """What was admitted and has not ended: when, and what was set aside until the true quantity is known."""

    known: CustomerView
    program: Program
    decided_ms: int
    slot: int
    reserved: Mapping[str, int] = field(default_factory=dict[str, int])


class Requests(Checks):
    """Two processes that know the customers, three writers, and a clock."""

    def __init__(
        self,
        wire: Wire,
        texts: Mapping[str, str],
        random: Random,
        *,
        anchors: bool = True,
        sales: Sales = PLAIN,
    ) -> None:
        super().__init__(wire, texts, random, sales)
        self.anchors, self.skews = anchors, False
        self._skewed = {
            (name, skew): load_script(wire, name, text).sha.encode()
            for name in ("decide", "settle")
            for skew in SKEWS
            if (text := texts[name].replace(_CLOCK, f"{_CLOCK} + {skew}"))
        }
        self.processes = [self.process(seal_delay_ms) for seal_delay_ms in (0, SEAL_DELAY_MS)]
        self.open: list[Open] = []
        self.numbers: Counter[str] = Counter()

    def decide(self, name: str) -> None:
        known = self._customer(name)
        meters = self.random.sample(self.sales.meters, self.random.choice((1, 1, 2, 3)))
        demands = {meter: self._demand(known, meter) for meter in meters}
        mode = self.random.choices("dcfs", (20, 3, 1, 2))[0]
        flags = {"billed_always": self.random.random() < 0.3, "rates_only": self.random.random() < 0.1}
        self.ask_for(known, demands, mode, flags)

    def reserve(self, name: str) -> None:
        """Set aside what will be known later, of the meters that are derived from it, too."""
        known = self._customer(name)
        reserved: dict[str, int] = {}
        dimensions = self.random.choice(_DIMENSIONS)
        costs = known.prepaid.held_costs(dimensions.get("model")) if known.prepaid is not None else None
        for meter in self.random.sample(self.sales.meters, self.random.choice((1, 1, 2))):
            reserved[meter] = max(1, self._quantity(known, meter))
            for derived in derived_from(self.catalog.meters, meter, dimensions):
                reserved[derived.name] = reserved[meter]
        demands = {meter: Demand.of(quantity) for meter, quantity in reserved.items()}
        flags = {"billed_always": False, "rates_only": self.random.random() < 0.05}
        self.ask_for(known, demands, "d", flags, reserved, costs)

    def ask_for(
        self,
        known: CustomerView,
        demands: Mapping[str, Demand],
        mode: str,
        flags: Mapping[str, bool],
        reserved: Mapping[str, int] = {},
        costs: Mapping[str, int] | None = None,
    ) -> None:
        if any(flags.values()) or costs:
            more: dict[str, Any] = {**flags, "prepaid": known.prepaid, "at": AtModel(costs)}
            program = compile_program(known.entitlements, self.catalog, demands, **more)
            packed = b"".join(known.pack_decide(program, mode))
        else:
            decision = known.prepare_asking(demands, mode, in_flight=True)
            program, packed = decision.program, b"".join(decision.packed)
            mode = mode if decision.refusal is None else "v"
        if costs is None and known.prepaid is not None:
            costs = known.prepaid.held_costs(None) if any(flags.values()) else known.prepaid.costs_of(None)
        reply = self._decide(known, packed, demands, mode, view_of(known), flags, costs or {})
        if reply[0] in {0, 5} and mode in "dfs" and program.settles:
            self.open.append(Open(known, program, reply[1], reply[1] // SLOT_MS, reserved))
        elif reply[0] == 1:
            self.refused(known, program, reply)

    def refused(self, known: CustomerView, program: Program, reply: list[int]) -> None:
        """For tests that look closer."""

    def renew(self, _: str) -> None:
        """Hold on to what is held."""
        if not self.open:
            return
        held = self.open.pop(self.random.randrange(len(self.open)))
        known, program = held.known, held.program
        decision = known.prepare_renewing(program.held, program.concurrency, program.costs)
        names = (*program.held, *program.concurrency)
        demands = {name: Demand(needed=0, taken=program.held.get(name, 0)) for name in names}
        kept: dict[str, Entitlement] = {}
        for name, given in known.entitlements.items():
            concurrency = given.concurrency if name in program.concurrency else None
            kept[name] = replace(given, rates=(), concurrency=concurrency)
        view, packed = replace(view_of(known), entitlements=kept), b"".join(decision.packed)
        reply = self._decide(known, packed, demands, "h", view, {}, program.costs)
        if reply[0] == 0:
            self.open.append(replace(held, program=decision.program, slot=reply[1] // SLOT_MS))
            self.end(held, recorded={}, seen=None)

    def settle(self, name: str) -> None:
        if not self.open:
            return self.record(name)
        opened = self.open.pop(self.random.randrange(len(self.open)))
        known, program = opened.known, opened.program
        other = {meter: self._quantity(known, meter) for meter in self.sales.meters}
        settled = {meter: taken for meter, taken in program.settled.items() if meter in other}
        choices = [{}, settled, settled, {meter: other[meter] for meter in settled}]
        recorded = self.random.choice([*choices, {}] if opened.reserved else choices)
        seen = recorded
        if opened.reserved and self.random.random() < 0.2:
            seen = {**settled, self.random.choice(self.sales.meters): 3}
        if self.random.random() < 0.05:
            opened = replace(opened, slot=opened.slot + self.random.randrange(-3, 4))
        self.end(opened, recorded=recorded, seen=seen)
        return None

    def end(self, opened: Open, *, recorded: Mapping[str, int], seen: Mapping[str, int] | None) -> None:
        """Give back what was held, record what is billed, and correct the rates by what was seen."""
        reserved: Mapping[str, int] = {} if seen is None else opened.reserved
        seen, program = seen or {}, opened.program
        held = Held(program.held, program.concurrency, opened.slot, program.costs)
        dimensions = self.random.choice(_DIMENSIONS)
        used = Used(recorded, seen if reserved else {}, dimensions, self._measured(seen or recorded))
        correction = Correction(reserved, program.rates, opened.decided_ms)
        self._settle(Settlement(opened.known, held=held, used=used, correction=correction))

    def record(self, name: str) -> None:
        known = self._customer(name)
        meters = self.random.sample(self.sales.meters, self.random.choice((1, 1, 2)))
        recorded = {meter: self._quantity(known, meter) for meter in meters}
        event = self._event(name, recorded) if self.random.random() < 0.15 else None
        recorded, rated = self.random.choice(((recorded, recorded), (recorded, {}), ({}, recorded)))
        dimensions = self.random.choice(_DIMENSIONS)
        used = Used(recorded, rated, dimensions, self._measured(recorded or rated))
        occurred_ms = self._occurred(name) if self.random.random() < 0.12 else None
        tells = self.random.random() < 0.12
        self._settle(Settlement(known, used=used, event=event, occurred_ms=occurred_ms, tells_revenue=tells))

    def _event(self, name: str, quantities: Mapping[str, int]) -> EventMark:
        """An event id; where it has counted these meters, mostly as before."""
        key = self.keys.event(0, name, str(self.random.randrange(60)))
        known = self.model.events.get(key, {})
        chance = self.random.random()
        if chance < 0.1:
            return EventMark(key)
        before = {meter: known[meter] for meter in quantities if meter in known and chance < 0.8}
        given = {**quantities, **before}
        return EventMark(key, "id", given | dict.fromkeys(given, UNCOMPARED) if chance > 0.95 else given)

    # What deeds are made of.

    def _decide(
        self,
        known: CustomerView,
        packed: bytes,
        demands: Mapping[str, Demand],
        mode: str,
        view: View,
        flags: Mapping[str, bool],
        costs: Mapping[str, int],
    ) -> Any:
        times, request = self._clocks("decide", packed)
        told: dict[str, Any] = {"mode": mode, "times": times, "costs": costs, **flags}
        expected = self.model.decide(known.customer, view, demands, **told)
        reply = self.wire(request)
        self.compare(f"decide {mode} {known.customer} {demands} {flags} {times}", expected, reply)
        self.seen[f"decide {mode} {expected[0]!r}"] += 1
        if expected[0] == 2:
            known.cache.learn(known, reply)
        return reply

    def _settle(self, settlement: Settlement) -> None:
        known = settlement.view.cache.newest(settlement.view)
        name, writer = known.customer, self.random.choice(self.writers)
        number = self.numbers[writer] + 1
        if self.random.random() < 0.08:
            number = max(1, number + self.random.choice((-2, -1, -1, 1, 2)))
        times, request = self._clocks("settle", self.packed(settlement, writer, number))
        view = view_of(known)
        if settlement.occurred_ms is not None:
            view = replace(view, own_start=self._own_start(known, settlement.occurred_ms))
        expected = self.model.settle(name, view, settlement, writer, number, times)
        self.seen["late"] += any(str(word).startswith("b'late") for word in expected)
        self.seen["paid"] += any(str(word).startswith("b'paid") for word in expected)
        self.numbers[writer] = self.model.writers[writer].last
        reply = self.wire(request)
        code = int(expected[0])
        kept = reply.pop() if code in {CONFLICT, PARTLY} else None
        if kept is not None:
            self._check_mark(settlement.event, kept)
        told = f"{settlement.held} {settlement.used} {settlement.correction} {settlement.event}"
        self.compare(f"settle {name} {told} {writer} {number} {times}", expected, reply)
        self._check_notices()
        self.seen[f"settle {code}"] += 1
        if code in {0, 6} and settlement.event is not None:
            self._check_mark(settlement.event, self.wire(pack("GET", settlement.event.key)))
        if code == 4:
            known.cache.learn(known, reply)
        if code == PARTLY:
            assert isinstance(kept, bytes)
            self._settle(settlement.uncounted(kept))
        if code == 3 and self.random.random() < 0.5:
            self.writers[self.writers.index(writer)] = f"w{self.random.randrange(10**9)}"
        if code in {2, 3, 4, 5} and self.random.random() < 0.8:
            self._settle(settlement)

    def _check_mark(self, event: EventMark | None, kept: bytes) -> None:
        """What an event id has counted; it is known for 35 days."""
        assert event is not None
        counted = {meter_token(meter): units for meter, units in self.model.events[event.key].items()}
        self.compare("what an event id has counted", counted, read_mark(kept))
        lives = self.wire(pack("PTTL", event.key))
        self.compare("life of an event id", True, 34 * DAY_MS < lives <= 35 * DAY_MS)

    def _check_notices(self) -> None:
        """What was told of since, and nothing else; then it is forgotten."""
        key = self.keys.notices(0)
        entries = self.ask("XRANGE", key, "-", "+")
        words = ("kind", "customer", "of", "numbers")
        found = [fields_of(fields) for _, fields in entries]
        told = [tuple(entry[word].decode() for word in words) for entry in found]
        self.compare("notices", sorted(self.model.notices), sorted(told))
        for kind, *_ in self.model.notices:
            self.seen[kind] += 1
        if told:
            self.compare("life of notices", [True], [0 < self.ask("PTTL", key) <= 7 * DAY_MS])
            self.ask("DEL", key)
        self.model.notices.clear()

    def _occurred(self, name: str) -> int:
        """Some instant: of now, of the period that is open, of one that is closed, or beside such an edge."""
        customer, edges = self.model.customers[name], [self.wall]
        edges += [customer.period[0]] * 2 if customer.period else []
        edges += [int(field.partition("|")[0]) for field in customer.closed]
        edges += [end for field, end in customer.closed.items() if field.endswith("|e")]
        edge = self.random.choice(edges) + self.random.choice((-1, 0, 0, 1))
        return self.random.choice((edge, edge, edge, self.wall - self.random.randrange(500 * DAY_MS)))

    def _own_start(self, known: CustomerView, at: int) -> int:
        plan = known.effective.plan
        interval = plan.price.interval if plan.price.included_per == "interval" else "month"
        return bounds_at(at, anchor_ms=known.state.anchor_ms, interval=interval).start_ms

    def _customer(self, name: str) -> CustomerView:
        return self.random.choice(self.processes).get(name, anonymous=name == ANONYMOUS)

    def _clocks(self, script: str, packed: bytes) -> tuple[Times, bytes]:
        skew = self.random.choice(SKEWS) if self.skews or self.random.random() < 0.04 else 0
        self.skews = False
        if skew:
            packed = packed.replace(self.scripts[script].sha.encode(), self._skewed[script, skew])
        claimed = self.wall - skew
        return Times(wall=self.wall, claimed=claimed), packed + pack_each([claimed])

    def _quantity(self, known: CustomerView, meter: str) -> int:
        usual = self.sales.quantities[meter]
        can_be_huge = meter != "usd_charged"  # A debt has no limit: some of these would pass 2^53.
        if can_be_huge and known.effective.plan.key in {"big", "vast"} and self.random.random() < 0.4:
            return self.random.choice(HUGE)
        return self.random.choice((*usual, self.random.choice(usual) * self.random.randrange(2)))

    def _measured(self, quantities: Mapping[str, int]) -> Mapping[str, int]:
        """The quantities whose dimensions are known: mostly all."""
        return quantities if self.random.random() < 0.9 else {}

    def _demand(self, known: CustomerView, meter: str) -> Demand:
        quantity = max(1, self._quantity(known, meter))
        given = self.random.random()
        if given < 0.8:
            return Demand(needed=quantity, taken=quantity)
        if given < 0.82:
            return Demand(needed=0, taken=0)
        return Demand(needed=1, taken=0) if given < 0.9 else Demand(needed=quantity, taken=quantity // 2)


def view_of(known: CustomerView) -> View:
    bounds = known.effective.bounds
    return View(
        rev=known.rev,
        valid_until_ms=known.effective.valid_until_ms,
        period=(bounds.start_ms, bounds.end_ms),
        next_end_ms=bounds.next_end_ms,
        entitlements=known.entitlements,
        linked=known.state.stripe_customer is not None,
        seal_delay_ms=known.cache.seal_delay_ms,
        billable=not known.anonymous,
        plan=known.effective.plan,
        allowance=known.effective.allowance,
        late_is_dead=known.cache.catalog.billing.late_usage == "dead_letter",
        has_purse=may_have(
            *(known.rev, known.state, known.effective.plan, known.cache.catalog), is_named=not known.anonymous
        ),
    )


_CLOCK: Final = "return tonumber(caller_ms)"
_DIMENSIONS: Final[tuple[Mapping[str, str], ...]] = (
    *({}, {}, {"size": "large"}, {"size": "small", "code": "yes"}, {"size": "l", "code": "yes"}),
    *({"model": "opus"}, {"model": "mini"}, {"size": "large", "model": "big-mini"}, {"model": "unheard"}),
)
