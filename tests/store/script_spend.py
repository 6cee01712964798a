"""A random life under budgets: the scripts, and a model of rational numbers that says what they answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from math import ceil, floor
from random import Random
from typing import Any, Final

from meterkit.catalog import Catalog, loads
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import meter_field, meter_token, rate_field
from meterkit.decisions.limit_policies import Demand
from meterkit.decisions.packed import MeterCounts, unpack_field
from meterkit.decisions.periods import HOUR_MS, bounds_at
from meterkit.decisions.refusal_reasons import refused_decision
from meterkit.decisions.spending import UNCAPPED
from meterkit.redis.connection import pack
from meterkit.store.prepared_decisions import prepare_asking
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities, UsedQuantities
from store.script_counts import DAY_MS, SLOT_MS, Slots
from store.script_wires import Wire
from store.script_world import OneCustomer

CENT: Final = 10**4
MICRO: Final = 10**6
_METERS: Final = """
schema: 1
currency: usd
default_plan: gift
meters:
  words:   {unit: word, stripe: {event_name: words}}
  images:  {unit: image, stripe: {event_name: images}}
  seconds: {unit: second, stripe: {event_name: seconds}}
  plain:   {unit: item}
"""
_PLAN: Final = """
plans:
  gift:
    price: {amount_cents: 0, interval: month}
    budget: {amount_cents: 100, warn_at: [50, 100]}
    meters:
      words:   {included: 20, overage: {bill: {per: 7, amount_cents: 3}}}
      images:  {included: 1, overage: {bill: {per: 3, amount_cents: 50}}}
      seconds: {included: 2, overage: {bill: {per: 1, amount_cents: 1, cap: 60}}}
      plain:   {included: 30}
"""
BARE: Final = loads(_METERS + _PLAN)
_PAID: Final = f"""{_METERS}
prices:
  images: {{default: 3, models: {{opus: 5, "*mini": 1 per 2}}}}
credits:
  ai:  {{costs: {{words: 1 per 4, images: prices.images}}}}
  usd: {{unit: money, costs: {{tokens: provider_prices}}}}
{_PLAN}
      usd_charged: {{included: 50_000}}
    grants:
      - {{credit: ai, quantity: 12, every: period}}
      - {{credit: usd, quantity: 1, every: period}}
      - {{meter: words, quantity: 9, every: period}}
"""
PAID: Final = loads(_PAID)
TABLES: Final = """
prices:
  words: {default: 0.00003, models: {"*mini": 0.00001, opus: 0.5}}
  shown: {default: 10, models: {opus: 60, "*mini": 3}}
"""


def with_rows(text: str) -> str:
    """The same plans file with prices by model of words and images."""
    text = text.replace("bill: {per: 7, amount_cents: 3}", "bill: {price: prices.words}")
    text = text.replace("bill: {per: 3, amount_cents: 50}", "bill: {price: prices.shown}")
    return text.replace("\nprices:\n", TABLES) if "\nprices:\n" in text else text + TABLES


ROWS: Final = loads(with_rows(_METERS + _PLAN))
PAID_ROWS: Final = loads(with_rows(_PAID))
ROW_PRICES: Final = {
    "words": {"(default)": Fraction(3, 10), "*mini": Fraction(1, 10), "opus": Fraction(5000)},
    "images": {"(default)": Fraction(10 * CENT), "opus": Fraction(60 * CENT), "*mini": Fraction(3 * CENT)},
}


def row_of(model: str | None) -> str:
    return {None: "(default)", "other": "(default)", "opus": "opus", "a-mini": "*mini"}[model]


PRICES: Final = {"words": Fraction(3 * CENT, 7), "images": Fraction(50 * CENT, 3), "seconds": Fraction(CENT)}
INCLUDED: Final = {"words": 20, "images": 1, "seconds": 2, "plain": 30, "usd_charged": 50_000}
FEWER_WORDS: Final = 5
CAP: Final = 60
QUANTITIES: Final = {
    "words": (1, 1, 3, 7, 20, 50, 200),
    "images": (1, 1, 2, 5),
    "seconds": (1, 2, 10, 59),
    "plain": (1, 5),
    "usd_charged": (1, 9_999, 120_000, 700_000),
}
CREDIT: Final = {"words": "ai", "images": "ai", "usd_charged": "usd"}
COSTS: Final = {None: 3 * MICRO, "opus": 5 * MICRO, "a-mini": MICRO // 2, "other": 3 * MICRO}
MOST: Final = 5 * MICRO
SPANS: Final = {"day": DAY_MS, "hour": HOUR_MS}


class SpendWorld(OneCustomer):
    catalog: Catalog = BARE
    models: tuple[str | None, ...] = (None, "opus", "a-mini")

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.limits: dict[str, int] = {}
        self.given = dict(INCLUDED)
        self.period: tuple[int, int] | None = None
        self.holds = {name: Slots() for name in QUANTITIES}
        self.credit_holds = Slots()
        self.windows: dict[str, Counter[int]] = {span: Counter() for span in SPANS}
        self.owed = 0
        self._begin()

    @property
    def is_paid(self) -> bool:
        return bool(self.catalog.credits)

    def _begin(self) -> None:
        self.included, self.overage, self.over_cap = Counter[str](), Counter[str](), Counter[str]()
        self.left: dict[str, int] = {}
        if self.is_paid:
            self.left = {"c:ai": 12 * MICRO, "c:usd": MICRO - self.owed, "m:words": 9}

    def step(self) -> None:
        if self.random.random() < 0.5:
            left = [SLOT_MS - self.wall % SLOT_MS, HOUR_MS - self.wall % HOUR_MS, DAY_MS - self.wall % DAY_MS]
            month = bounds_at(self.wall).end_ms - self.wall
            spans = (1, 1000, *left, SLOT_MS, *([month - 1, month] if self.random.random() < 0.1 else ()))
            self.wall += max(0, self.random.choice(spans) + self.random.choice((-1, 0, 0, 0, 1)))
        self.random.choice((self.decide, self.decide, self.decide, self.settle, self.settle, self.limit))()

    def limit(self) -> None:
        """Set the customer's own limits, or take them back; and how many words are included."""
        spans = {"period": (0, 40, 100, 250), "day": (0, 30, 80), "hour": (1, 20, 60)}
        self.limits = {
            span: self.random.choice(cents) for span, cents in spans.items() if self.random.random() < 0.4
        }
        self.next_rev()
        self.given["words"] = self.random.choice((INCLUDED["words"], FEWER_WORDS))
        overrides: dict[str, Any] = {"words": {"included": self.given["words"]}}
        overrides |= {"spend": self.limits} if self.limits else {}
        self.put_state(CustomerState(overrides=overrides).dump())

    def decide(self) -> None:
        meters = [name for name in QUANTITIES if name in self.catalog.meters]
        asked = self.random.sample(meters, self.random.choice((1, 1, 1, 2, 3)))
        demands: dict[str, Demand] = {}
        for name in asked:
            is_open = self.random.random() < 0.15
            quantity = 0 if is_open else self.random.choice((0, *QUANTITIES[name]))
            demands[name] = Demand(needed=1, taken=0) if is_open else Demand.of(quantity)
        mode, model = self.random.choice("dddcs"), self.random.choice(self.models)
        decision, reply = self.decided(
            self.view, lambda view: prepare_asking(view, demands, mode, model=model)
        )
        self._roll()
        self._keep_debt()
        ends = self.period[1] if self.period else 0
        refuses, told, shares = self._weigh(demands, mode, model)
        code = (5 if mode == "s" else 1) if refuses else 0
        what = f"{mode} {demands} {model} {self.limits}"
        self.compare(what, code, reply[0])
        self.seen.add(f"{mode} {code}")
        if refuses:
            self.compare(f"ends {what}", ends, reply[2])
            for nth, numbers in told.items():
                self.compare(f"told {nth} {what}", numbers, tuple(reply[3 * nth + 3 : 3 * nth + 6]))
            verdict = refused_decision(decision.exact(), reply, bounds_at(self.wall).end_ms)
            if verdict.reason == "spend":
                self.seen.add("spend")
                assert verdict.spend is not None
                self.compare("level", True, 0 <= verdict.spend.spent_cents)
        elif shares:
            nearest = min(shares, key=lambda nth: (shares[nth][0], nth))
            rests = [shares[nth][1] for nth in sorted(shares)]
            expected = [nearest + 1, shares[nearest][1], told[nearest][1], *rests]
            limits = (measure.limit for measure in decision.program.measures)
            found = [rest for rest, limit in zip(reply[5:], limits, strict=True) if limit != UNCAPPED]
            self.compare(f"nearest {what}", expected, [*reply[2:5], *found])
        if mode != "c" and reply[0] != 1:
            self.period = self.period or self._bounds()
            for name, demand in demands.items():
                self._hold(name, demand.taken, model)
            self.open.append((decision, self.wall // SLOT_MS))

    def _hold(self, name: str, quantity: int, model: str | None) -> None:
        self.holds[name].take(self.wall, quantity)
        if name == "images" and self.is_paid:
            self.credit_holds.take(self.wall, quantity * COSTS[model])

    def _give_back(self, held: HeldQuantities, slot: int) -> None:
        for name, quantity in held.quantities.items():
            if name in self.holds:
                self.holds[name].give_back(self.wall, slot, quantity)
            if name in held.costs:
                self.credit_holds.give_back(self.wall, slot, quantity * held.costs[name])

    def _rows_asked(self, demands: Mapping[str, Demand], model: str | None) -> int:  # noqa: ARG002 - no rows
        return 0

    def _weigh(
        self, demands: Mapping[str, Demand], mode: str, model: str | None
    ) -> tuple[bool, dict[int, tuple[int, int, int]], dict[int, tuple[float, int]]]:
        """Whether it is refused; by the policies' places what is told, and which share is left, and how much.

        Of what has no cap nothing is compared.
        """
        refuses = False
        told, shares = dict[int, tuple[int, int, int]](), dict[int, tuple[float, int]]()
        takes = {name: 0 if mode == "c" else demand.taken for name, demand in demands.items()}
        for nth, (name, demand) in enumerate(demands.items()):
            live = self.holds[name].live(self.wall)
            available, whole = max(0, self.given[name] - self.included[name]), self.given[name]
            if name in {"words", "images"}:
                continue
            if name == "seconds":
                available, whole = available + max(0, CAP - self.overage[name]), whole + CAP
            if name == "usd_charged":
                available += self.left["c:usd"]
            left = available - sum(live)
            refuses |= demand.needed > left
            told[nth] = available, *live
            left -= takes[name]
            shares[nth] = left / max(1, whole), left
        before = {name: self._owed(name, takes, model, 0) for name in self._priced}
        priced, needs, takes_more = before.keys() & demands.keys(), 0, 0
        for name in priced:
            needs += self._owed(name, takes, model, demands[name].needed) - before[name]
            takes_more += self._owed(name, takes, model, takes[name]) - before[name]
        if not priced:
            return refuses, told, shares
        start = len(demands) + self._rows_asked(demands, model)
        for nth, (most, spent) in enumerate(self._budgets(), start):
            left = most - spent - sum(before.values())
            refuses |= 0 < needs > left
            told[nth] = most - spent, sum(before.values()), needs
            # Told before anything is taken; the share is of what is left then.
            cents = floor(Fraction(left - (0 if mode == "c" else takes_more), CENT))
            shares[nth] = cents / max(1, most // CENT), cents
        return refuses, told, shares

    @property
    def _priced(self) -> list[str]:
        return [name for name in (*PRICES, "usd_charged") if name in self.catalog.meters]

    def _budgets(self) -> list[tuple[int, int]]:
        """How much, and how much of it is spent: of the period, and of other spans."""
        found = [(min(100, self.limits.get("period", 100)) * CENT, self._spent_in_period)]
        for span, ms in SPANS.items():
            if span in self.limits:
                found.append((self.limits[span] * CENT, self.windows[span][self.wall // ms]))
        return found

    @property
    def _spent_in_period(self) -> int:
        return self.included["spend"] + self.overage["spend"]

    def _owed(self, name: str, takes: Mapping[str, int], model: str | None, more: int) -> int:
        """What is held of a meter and more of it may come to cost."""
        units = max(0, sum(self.holds[name].live(self.wall)) + more - self._free(name, takes, model))
        if name == "usd_charged":
            return units
        return _cost(name, self.overage[name] + units) - _cost(name, self.overage[name])

    def _free(self, name: str, takes: Mapping[str, int], model: str | None) -> int:
        free = max(0, self.given[name] - self.included[name])
        if name == "usd_charged" or not self.is_paid:
            return free
        free += self.left.get(f"m:{name}", 0)
        if name in CREDIT:
            other = "images" if name == "words" else "words"
            claimed = self._claimed(other, takes.get(other, 0), model)
            cost = MOST if name == "images" else MICRO // 4
            free += max(0, self.left["c:ai"] - claimed) // cost
        return free

    def _claimed(self, name: str, more: int, model: str | None) -> int:
        """What holds of a meter, and more of it, may take from the credit."""
        own = max(0, self.given[name] - self.included[name]) + self.left.get(f"m:{name}", 0)
        beyond = max(0, sum(self.holds[name].live(self.wall)) + more - own)
        if name == "words":
            return beyond * MICRO // 4
        return min(beyond * MOST, sum(self.credit_holds.live(self.wall)) + more * COSTS[model])

    def settle(self) -> None:
        recorded: dict[str, int] = {}
        held, slot = HeldQuantities(), self.wall // SLOT_MS
        if self.open and self.random.random() < 0.8:
            decision, slot = self.open.pop(self.random.randrange(len(self.open)))
            held = HeldQuantities.of(decision, slot)
            for name, quantity in held.quantities.items():
                if name in self.holds:
                    recorded[name] = self.random.choice((quantity, quantity, quantity // 2, quantity + 1, 0))
        elif self.random.random() < 0.5:
            name = self.random.choice([name for name in QUANTITIES if name in self.catalog.meters])
            recorded = {name: self.random.choice(QUANTITIES[name])}
        model = self.random.choice(self.models)
        dimensions = {} if model is None else {"model": model}
        self.settled(Settlement(self.view, held=held, used=UsedQuantities(recorded, {}, dimensions)))
        self._roll()
        self._give_back(held, slot)
        self.period = self.period or self._bounds()
        names = (name for name in (*held.quantities, *recorded) if name in self.holds)
        self._record({name: recorded.get(name, 0) for name in names}, model)
        self._check()

    def _record(self, quantities: Mapping[str, int], model: str | None) -> None:
        spent = 0
        for name, quantity in quantities.items():
            within = min(quantity, max(0, self.given[name] - self.included[name]))
            rest = quantity - within
            if self.is_paid:
                rest -= self._pay(f"m:{name}", rest, 1)
                cost = {"words": MICRO // 4, "images": COSTS[model], "usd_charged": 1}.get(name)
                rest -= self._pay(f"c:{CREDIT[name]}", rest, cost) if cost else 0
            if self.is_paid and name == "usd_charged":
                self.left["c:usd"] -= rest
                self.seen |= {"owed"} if rest else set()
                rest = 0
            over_cap = max(0, rest - max(0, CAP - self.overage[name])) if name == "seconds" else 0
            rest -= over_cap
            if name == "usd_charged":
                spent += quantity - within
            elif name in PRICES:
                spent += self._cost_of(name, rest, model)
            self.included[name] += within
            self.overage[name] += rest
            self.over_cap[name] += over_cap
            self.seen |= {"over the cap"} if over_cap else set()
        if any(quantities.values()):
            self._keep_debt()
        if not any(quantities.values()) or not any(name in self._priced for name in quantities):
            return
        before, most = self._spent_in_period, min(100, self.limits.get("period", 100)) * CENT
        within = min(spent, max(0, most - self.included["spend"]))
        self.included["spend"] += within
        self.overage["spend"] += spent - within
        for span, ms in SPANS.items():
            if span in self.limits:
                self.windows[span][self.wall // ms] += spent
        after = before + spent
        crossed = [percent for percent in (50, 100) if 100 * before < percent * most <= 100 * after]
        self._check_notices([f"{after} {percent} {most}" for percent in crossed])

    def _cost_of(self, name: str, rest: int, model: str | None) -> int:  # noqa: ARG002 - one price for all
        return _cost(name, self.overage[name] + rest) - _cost(name, self.overage[name])

    def _pay(self, target: str, units: int, cost: int) -> int:
        paid = min(units, max(0, self.left.get(target, 0)) // cost)
        if paid:
            self.left[target] -= paid * cost
        return paid

    def _keep_debt(self) -> None:
        """Write down the debt that this period's grant leaves."""
        self.owed = max(0, -self.left.get("c:usd", 0))

    def _check_notices(self, expected: list[str]) -> None:
        found = [one for one in self.pop_notices(self.own.notices) if one["of"] == meter_token("spend")]
        self.compare("notices", expected, [" ".join(one["numbers"].split()[3:]) for one in found])
        self.seen |= {"notice"} if expected else set()

    def _check(self) -> None:
        for name in (*self._priced, "plain", "spend"):
            counts = MeterCounts.read(self.wire(pack("HGET", self.own.counters, meter_field(name))))
            expected = self.included[name], self.overage[name], self.over_cap[name]
            self.compare(f"stored {name}", expected, (counts.included, counts.overage, counts.over_cap))
        for span, ms in SPANS.items():
            if span in self.limits:
                field = rate_field("spend", ms, "fixed-window")
                packed = self.wire(pack("HGET", self.own.counters, field))
                slot, counted, _ = (0, 0, 0) if packed is None else unpack_field(packed)
                now = self.wall // ms
                self.compare(f"stored {span}", self.windows[span][now], counted if slot == now else 0)

    def _roll(self) -> None:
        if self.period != self._bounds():
            self._begin()
            self.period = self.period and self._bounds()

    def _bounds(self) -> tuple[int, int]:
        bounds = bounds_at(self.wall)
        return bounds.start_ms, bounds.end_ms


class RowsSpendWorld(SpendWorld):
    """The same with prices by model: of words, which cost so little that rounding shows, and of images."""

    catalog = ROWS
    models = (None, "opus", "a-mini", "other")

    def _begin(self) -> None:
        super()._begin()
        self.at_rows: dict[str, Counter[str]] = {name: Counter() for name in ROW_PRICES}
        if not hasattr(self, "row_holds"):
            self.row_holds = {name: {row: Slots() for row in rows} for name, rows in ROW_PRICES.items()}

    def _cost_of(self, name: str, rest: int, model: str | None) -> int:
        if name not in ROW_PRICES:
            return super()._cost_of(name, rest, model)
        row = row_of(model)
        before = self.at_rows[name][row]
        self.at_rows[name][row] += rest
        price = ROW_PRICES[name][row]
        return ceil((before + rest) * price) - ceil(before * price)

    def _rows_asked(self, demands: Mapping[str, Demand], model: str | None) -> int:
        return len(ROW_PRICES.keys() & demands.keys()) if model else 0

    def _hold(self, name: str, quantity: int, model: str | None) -> None:
        super()._hold(name, quantity, model)
        if name in ROW_PRICES and model:
            self.row_holds[name][row_of(model)].take(self.wall, quantity)

    def _give_back(self, held: HeldQuantities, slot: int) -> None:
        super()._give_back(held, slot)
        for name, rows in self.row_holds.items():
            for row, holds in rows.items():
                holds.give_back(self.wall, slot, held.quantities.get(f"{name}:{row}", 0))

    def _owed(self, name: str, takes: Mapping[str, int], model: str | None, more: int) -> int:
        if name not in ROW_PRICES:
            return super()._owed(name, takes, model, more)
        prices, counted = ROW_PRICES[name], self.at_rows[name]
        dearest = sorted(prices, key=prices.__getitem__, reverse=True)
        there = {row: sum(self.row_holds[name][row].live(self.wall)) for row in dearest}
        there[row_of(model) if model else dearest[0]] += more
        held = sum(self.holds[name].live(self.wall)) + more
        unknown = max(0, held - sum(there.values()))
        there[dearest[0]] += unknown
        left, most = max(0, held - self._free(name, takes, model)), 0
        for row in dearest:
            part = min(left, there[row])
            most, left = most + ceil(part * prices[row]), left - part
        after = {row: ceil((counted[row] + there[row]) * prices[row]) for row in dearest}
        every = sum(after[row] - ceil(counted[row] * prices[row]) for row in dearest)
        parts = sum(map(bool, there.values()))
        return min(every + len(prices) * bool(unknown), most + parts * bool(parts > 1 and most))


class PaidRowsSpendWorld(RowsSpendWorld):
    catalog = PAID_ROWS


class PaidSpendWorld(SpendWorld):
    """The same, with grants, a credit whose cost depends on the model, and a balance in money."""

    catalog = PAID


def _cost(name: str, units: int) -> int:
    return ceil(units * PRICES[name])
