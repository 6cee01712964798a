"""What requests do in a random life, and what is stored and shown, compared with the model."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import floor
from random import Random
from typing import Any, Final, cast

from drivers.counters import flat_of
from meterkit.catalog import Entitlement
from meterkit.decisions.compiled_decision import ModelPricing, Program, compile_program, derived_from
from meterkit.decisions.customer_state import CustomerState, entitlements_of
from meterkit.decisions.grants import Prepaid as PlanPurse
from meterkit.decisions.keys import CustomerKeys, meter_token
from meterkit.decisions.limit_policies import Demand
from meterkit.decisions.packed import UNCOMPARED, EventMark, read_mark
from meterkit.decisions.periods import bounds_at
from meterkit.decisions.plan_shares import effective_terms
from meterkit.decisions.stored_grants import read_funds
from meterkit.redis.connection import pack, pack_each
from meterkit.redis.settlement_queue import CONFLICT, PARTLY
from meterkit.store.customer_usage import UsageReply, funds_terms, read_usage_reply
from meterkit.store.prepared_decisions import prepare_asking
from meterkit.store.reservations import prepare_renewing
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities, RateCorrection, UsedQuantities
from meterkit.store.views import CustomerView
from store.script_counts import DAY_MS, MINUTE_MS, SLOT_MS
from store.script_model import NEVER_MS, Customer, Model, Times, View, ceiling_of, own_of
from store.script_plans import ANONYMOUS, HUGE, PLAIN, SEAL_DELAY_MS, SKEWS, Sales
from store.script_purse import MICRO, Claims, Means, Purse, ledger_sums, may_have, room
from store.script_wires import Wire
from store.script_world import MismatchError, ScriptWorld, fields_of, load_script


class Checks(ScriptWorld):
    """A store with the scripts in it, and the model of what it holds."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random, sales: Sales = PLAIN) -> None:
        super().__init__(wire, texts, random)
        self._known: dict[tuple[str | int | bytes, ...], Any] = {}
        self.sales, self.catalog, self.model = sales, sales.catalog, Model(sales.catalog)
        self.writers = ["w0", "w1", "w2"]
        self.log: deque[str] = deque(maxlen=12)
        self.seen: Counter[str] = Counter()

    def check(self, name: str) -> None:
        keys = self.keys.customer(name, anonymous=name == ANONYMOUS)
        customer = self.model.customers[name]
        self._look(name, keys)
        stored = flat_of(self.fields(keys.counters))
        expected = {field: str(value) for field, value in customer.fields().items()}
        self.compare(f"counters of {name}", expected, stored)
        expires = -2 if not expected else -1 if customer.lives == NEVER_MS else customer.lives
        self.compare(f"expiry of {name}", expires, self.ask("PEXPIRETIME", keys.counters))
        self._check_totals(customer, keys)
        self._check_purse(name, customer, keys)
        for key, members in ((keys.dirty, self.model.dirty), (keys.unlinked, self.model.unlinked)):
            score = self.ask("ZSCORE", key, name)
            self.compare(key, members.get(name), None if score is None else int(float(score)))
        for writer in self.writers:
            known = self.model.writers[writer]
            text = "c" * known.fenced + str(known.last)
            key = self.keys.producer(0, writer)
            found = self.ask("GET", key)
            expected_text = text if known.last or known.fenced else ""
            self.compare(f"writer {writer}", expected_text, (found or b"").decode())
            if found:  # Eight days by the server's own clock, less the minutes that a test may take.
                lives = 690_000_000 < self.ask("PTTL", key) <= 691_200_000
                self.compare(f"life of {writer}", True, lives)
        self._check_usage(name)
        self._known.clear()

    def _look(self, name: str, keys: CustomerKeys) -> None:
        """Ask in one round trip for all that :meth:`check` compares."""
        writers = [self.keys.producer(0, writer) for writer in self.writers]
        asked: list[tuple[str | int | bytes, ...]] = [
            *(("HGETALL", key) for key in (keys.counters, keys.totals, keys.grants, keys.ledger)),
            *(("PEXPIRETIME", key) for key in (keys.counters, keys.grants, keys.ledger)),
            *(("ZSCORE", key, name) for key in (keys.dirty, keys.unlinked)),
            *(("GET", key) for key in writers),
            *(("PTTL", key) for key in (keys.totals, *writers)),
            self._usage_of(keys),
        ]
        replies = self.wire(*(pack(*words) for words in asked))
        self._known = dict(zip(asked, replies, strict=True))

    def _usage_of(self, keys: CustomerKeys, *terms: str | int) -> tuple[str | int | bytes, ...]:
        names = (keys.counters, keys.state, keys.totals, keys.grants, keys.levels)
        return ("EVALSHA", self.scripts["read_usage"].sha, len(names), *names, *terms, self.wall)

    def _read_usage(self, keys: CustomerKeys) -> UsageReply:
        """All of a customer, with what its grants come to."""
        found = UsageReply(*self.ask(*self._usage_of(keys)))
        terms = funds_terms(self.catalog, found)
        if terms is None:
            return found
        return UsageReply(*self.wire(pack(*self._usage_of(keys, *terms))))

    def _check_totals(self, customer: Customer, keys: CustomerKeys) -> None:
        stored = self._texts(keys.totals)
        expected = {field: str(value) for field, value in customer.closed.items()}
        self.compare(keys.totals, expected, stored)
        days = self.ask("PTTL", keys.totals) / DAY_MS
        self.compare(f"life of {keys.totals}", bool(expected), 399 < days <= 400)

    def _read_written(self, name: str) -> None:
        """Since which period all that was due is written down: not with each settlement."""
        key = self.keys.customer(name, anonymous=name == ANONYMOUS).grants
        start, _, history = (self.ask("HGET", key, "written") or b"0").decode().partition(" ")
        purse = self.model.customers[name].purse
        purse.written, purse.history = int(start), history

    def _check_purse(self, name: str, customer: Customer, keys: CustomerKeys) -> None:
        self._read_written(name)
        purse = customer.purse
        for key, expected in ((keys.grants, purse.texts()), (keys.ledger, purse.ledger())):
            stored = self._texts(key)
            stored.pop("written", None)
            try:
                self._check_balance(name, stored.pop("balance", None))
            except ValueError as error:
                raise MismatchError(f"balance of {name}: {error}") from error
            self.compare(f"{key}", expected, stored)
            self.seen["owed"] += any(field.startswith("d ") for field in stored)
            self.seen["repaid"] += any(field.startswith("repay ") for field in stored)
            self.seen["rolled over"] += any(field.startswith("rollover ") for field in stored)
            self.seen["once"] += any(field.startswith("once ") for field in stored)
            expires = -2 if not stored else -1 if purse.lives == NEVER_MS else purse.lives
            self.compare(f"expiry of {key}", expires, self.ask("PEXPIRETIME", key))
            if key == keys.ledger:
                left = {grant.name: grant.left for grant in purse.grants.values() if grant.left}
                self.compare(f"what the ledger of {name} comes to", left, dict(ledger_sums(stored)))

    def _check_balance(self, name: str, text: str | None) -> None:
        """What is kept of what the grants come to, where it holds: for a plan, for a span of time."""
        if text is None:
            return
        customer = self.model.customers[name]
        head, *lines = text.splitlines()
        since, turns, start, mark, is_due, form = head.split(" ")
        self.compare(f"form of the balance of {name}", "2", form)
        now = customer.now(self.wall)
        state = CustomerState.parse(customer.data)
        standing = effective_terms(state, self.catalog, now)
        period = standing.bounds.start_ms, standing.bounds.end_ms
        of_plan = PlanPurse.of(standing.plan, self.catalog).with_allowance(standing.allowance).mark
        if (int(start), mark) != (period[0], of_plan) or not int(since) <= now < int(turns):
            return
        self.seen["balance"] += 1
        means = Means(customer.purse, standing.plan, period, now, allowance=standing.allowance)
        found = {target: told for target, *told in (line.split(" ", 4) for line in lines)}
        granted = {grant.target for grant in (*means.grants.values(), *means.ended)}
        expected: dict[str, list[str]] = {}
        for target in granted | {*means.left, *means.debts}:
            paying = [g for g in means.in_order if g.target == target and g.pays_at(now) and g.left]
            numbers = means.of(target), int(means.had((target,))), means.last(target) or 0
            expected[target] = [*map(str, numbers), paying[0].name if paying else ""]
        self.compare(f"balance that is kept of {name}", expected, found)
        is_written = (means.grants, means.once) == (customer.purse.grants, customer.purse.once)
        self.compare(f"what is due of {name}", not is_written, is_due == "1")
        instants = [at for g in means.grants.values() for at in (g.effective, g.expires, g.stays)]
        turning = min((at for at in instants if at > now), default=NEVER_MS)
        self.compare(f"when the balance of {name} turns", turning, int(turns))

    def _texts(self, key: str) -> dict[str, str]:
        return {field: value.decode() for field, value in self.fields(key).items()}

    def fields(self, key: str) -> dict[str, bytes]:
        return fields_of(self.ask("HGETALL", key))

    def _check_usage(self, name: str) -> None:
        customer, keys = self.model.customers[name], self.keys.customer(name, anonymous=name == ANONYMOUS)
        found = self._read_usage(keys)
        shown = read_usage_reply(name, self.catalog, found)
        state = CustomerState.parse(customer.data)
        standing = effective_terms(state, self.catalog, self.wall)
        entitlements = entitlements_of(standing, self.catalog)
        period, bounds, now = customer.period, standing.bounds, customer.now(self.wall)
        is_over = period is None or self.wall >= period[1]
        if period is not None and bounds.end_ms != period[1]:
            is_over |= bounds.start_ms >= period[0] + 2 * MINUTE_MS
        is_entitled = may_have(customer.rev, state, standing.plan, self.catalog)
        purse, span = customer.purse if is_entitled else Purse(), (bounds.start_ms, bounds.end_ms)
        means = Means(purse, standing.plan, span, self.wall, allowance=standing.allowance)
        lines = {f"repay {grant}": part for grant, part in means.repaid.items()}
        lines |= {f"expire {grant}": part for grant, part in means.cut.items()} | means.lived_on
        self.compare(f"lines of {name} to come", lines, dict(read_funds(found.funds).unwritten))
        balance = {credit: means.of(f"c:{credit}") // MICRO for credit in self.catalog.credits}
        self.compare(f"balance of {name}", balance, shown["balance"])
        lived = {credit: means.lived(f"c:{credit}") // MICRO for credit in self.catalog.credits}
        self.compare(f"what of it has lived on of {name}", lived, shown["rolled_over"])

        def counted(meter: str) -> int:
            return 0 if is_over else customer.included[meter]

        def held_of(meter: str) -> int:
            return sum(customer.holds[meter].live(now))

        def held_credit(meter: str) -> int:
            return sum(customer.credit_holds[meter].live(now))

        claims = Claims(counted, held_of, held_credit)
        kinds = ("included", "overage", "pending", "granted", "credited", "over_cap")
        for meter, given in entitlements.items():
            counts: list[Counter[str]] = [getattr(customer, kind) for kind in kinds]
            numbers = [0 if is_over else counter[meter] for counter in counts]
            covered, overage, pending, granted, _, over_cap = numbers
            held, left = claims.held(meter), cast("int | str", "unlimited")
            if ceiling_of(given) is not None:
                more = room(meter, means, self.catalog, entitlements, claims)
                left = max(0, own_of(given, covered, overage) + more - held)
            recorded = sum(numbers) - pending
            expected = {
                "used": recorded + held,
                "included": "unlimited" if given.included is None else given.included,
                "granted": granted + means.of(f"m:{meter}"),
                "held": held,
                "remaining": left,
                "overage": overage,
                "overage_cents": _cents(given, overage),
                "over_cap": over_cap,
                "recorded": recorded,
                "unlinked" if state.stripe_customer is None else "pending": pending,
            }
            row = dict(shown["meters"][meter])
            self.compare(f"usage of {name}, {meter}", expected, {what: row[what] for what in expected})

    def compare(self, what: str, expected: Any, found: Any) -> None:
        self.log.append(what)
        if expected != found:
            if type(expected) is type(found) is dict:
                expected, found = _differing(expected, found)
            before = "\n  ".join(self.log)
            raise MismatchError(f"after\n  {before}\nexpected {expected!r}\n   found {found!r}")

    def ask(self, *words: str | int | bytes) -> Any:
        """The reply to a command that cannot fail unless something is stored that should not be."""
        reply = self._known[words] if words in self._known else self.wire(pack(*words))
        if isinstance(reply, Exception):
            raise MismatchError(f"{words}: {reply}")
        return reply


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
        self.anchors = anchors
        self._skewed: dict[tuple[str, int], bytes] = {}
        for name, skew in ((name, skew) for name in ("decide", "settle") for skew in SKEWS):
            text = texts[name].replace(_CLOCK, f"{_CLOCK} + {skew}")
            self._skewed[name, skew] = load_script(wire, name, text).sha.encode()
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
        models = tuple(dimensions[name] for name in dimensions if name == "model")
        costs = known.prepaid.held_costs(models) if known.prepaid is not None else None
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
            more: dict[str, Any] = {**flags, "prepaid": known.prepaid, "at": ModelPricing(costs)}
            program = compile_program(known.entitlements, self.catalog, demands, **more)
            packed = b"".join(known.pack_decide(program, mode))
        else:
            decision = prepare_asking(known, demands, mode, in_flight=True)
            program, packed = decision.program, b"".join(decision.packed)
            mode = mode if decision.refusal is None else "v"
        if costs is None and known.prepaid is not None:
            costs = known.prepaid.held_costs() if any(flags.values()) else known.prepaid.costs_of(None)
        reply = self._decide(known, packed, demands, mode, view_of(known), flags, costs or {})
        if reply[0] in {0, 5} and mode in "dfs" and program.settles:
            self.open.append(Open(known, program, reply[1], reply[1] // SLOT_MS, reserved))
        elif reply[0] == 1:
            self.refused(known, program, reply)

    def refused(self, known: CustomerView, program: Program, reply: list[int]) -> None:
        """For tests that look closer."""

    def renew(self, _: str) -> None:
        if not self.open:
            return
        held = self.open.pop(self.random.randrange(len(self.open)))
        known, program = held.known, held.program
        decision = prepare_renewing(known, program.held, program.concurrency, program.costs)
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
        held = HeldQuantities(program.held, program.concurrency, opened.slot, program.costs)
        dimensions = self.random.choice(_DIMENSIONS)
        used = UsedQuantities(
            recorded, seen if reserved else {}, dimensions, self._measured(seen or recorded)
        )
        correction = RateCorrection(reserved, program.rates, opened.decided_ms)
        self._settle(Settlement(opened.known, held=held, used=used, correction=correction))

    def record(self, name: str) -> None:
        known = self._customer(name)
        meters = self.random.sample(self.sales.meters, self.random.choice((1, 1, 2)))
        recorded = {meter: self._quantity(known, meter) for meter in meters}
        event = self._event(name, recorded) if self.random.random() < 0.15 else None
        recorded, rated = self.random.choice(((recorded, recorded), (recorded, {}), ({}, recorded)))
        dimensions = self.random.choice(_DIMENSIONS)
        used = UsedQuantities(recorded, rated, dimensions, self._measured(recorded or rated))
        occurred_ms = self._occurred(name) if self.random.random() < 0.12 else None
        tells = self.random.random() < 0.12
        self._settle(Settlement(known, used=used, event=event, occurred_ms=occurred_ms, asks_revenue=tells))

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
        self._read_written(known.customer)
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
        if number == 1 and writer[-1] in "13579":
            number = -int(writer[-1])  # As where the store has lost what it knew of the writer.
        if self.random.random() < 0.08:
            step = self.random.choice((-2, -1, -1, 1, 2))
            number = max(1, number + step) * (-1 if step == -2 else 1)
        times, request = self._clocks("settle", self.packed(settlement, writer, number))
        view = view_of(known)
        if settlement.occurred_ms is not None:
            view = replace(view, own_start=self._own_start(known, settlement.occurred_ms))
        self._read_written(name)
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
        key, words = self.keys.notices(0), ("kind", "customer", "of", "numbers")
        if self.model.notices:
            self.compare("life of notices", [True], [0 < self.ask("PTTL", key) <= 7 * DAY_MS])
        told = [tuple(entry[word] for word in words) for entry in self.pop_notices(key)]
        self.compare("notices", sorted(self.model.notices), sorted(told))
        self.seen.update(kind for kind, *_ in self.model.notices)
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
        skew = self.random.choice(SKEWS) if self.random.random() < 0.04 else 0
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


_CLOCK: Final = "tonumber(caller_ms)"
_DIMENSIONS: Final[tuple[Mapping[str, str], ...]] = (
    *(
        {},
        {},
        {"provider": "large"},
        {"provider": "small", "model": "yes"},
        {"provider": "l", "model": "yes"},
    ),
    *({"model": "opus"}, {"model": "mini"}, {"provider": "large", "model": "big-mini"}, {"model": "unheard"}),
)


def _cents(given: Entitlement, overage: int) -> int | None:
    """What overage costs, half up."""
    per, cents = given.overage.per, given.overage.amount_cents
    return None if per is None or cents is None else floor(Fraction(overage * cents, per) + Fraction(1, 2))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Any, Any]:
    return (
        {key: value for key, value in one.items() if other.get(key) != value},
        {key: value for key, value in other.items() if one.get(key) != value},
    )
