"""The life of a customer whose usage invoice lines bill: each unit is on one line, or counts as never billed.

Beside the model of what is stored there is a list of recorded units with their prices, oldest first. It knows
nothing of marks of ended prices.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import bounds_at
from meterkit.redis.connection import pack
from store.delivery_driver import NAME
from store.delivery_model import (
    METERS,
    TOKENS,
    TOTALS_MS,
    Billing,
    Former,
    Invoices,
    Queued,
    Shard,
    is_by_lines,
    lines_of,
    mark_prices,
    overtake,
    parts_of,
    parts_of_item,
)
from store.delivery_worlds import Overtaking
from store.script_counts import DAY_MS, MINUTE_MS, MOST
from store.script_model import NEVER_MS, Totals, View
from store.script_world import weighed

PRICES: Final = ("1/5", "1/7", "1000/12", "1/9*", "-")
QUANTITIES: Final = (1, 1, 2, 3, 7, 700, 10**15)
LIFE: Final = 60
WITHOUT_PRICE: Final = 4


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of a period; of each meter its name, and the label of its last price."""

    subscription: str
    free: bool
    meters: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The lines that a seal queues.

    Attributes:
        switches: instants from which lines, and then metered prices again, bill usage.
        periods: those that may be billed now, each by its first instant.
        item: what lines have in common.
        most: how many lines are not summed.
        late: for periods that metered prices bill.
    """

    by_lines: int
    switches: Sequence[int]
    periods: Mapping[str, Terms]
    item: Mapping[str, str]
    most: int
    late: Invoices | None

    @property
    def former(self) -> Former:
        return () if self.late is None else self.late.former

    def has_lines(self, period: int) -> bool:
        return is_by_lines(self.switches, period)

    def bill(self, shard: Shard, name: str, view: View, events: Mapping[str, str], now: int) -> Queued:
        queued = self._queue(shard, name, now)
        if self.late is not None:
            queued.late += overtake(shard, name, view, events, self.late, now)
        if queued.late:
            shard.keep(f"t:{name}", TOTALS_MS)
        return queued

    def _queue(self, shard: Shard, name: str, now: int) -> Queued:
        """Queue a line for each period, meter and price, or where there are too many, for each meter."""
        customer, queued = shard.customers[name], Queued()
        found: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for field in sorted(customer.closed):
            period, token, units = field.partition("|")[0], field[-5:-1], customer.closed[field]
            if field[-1] != "p" or not units or not self.has_lines(int(period)):
                continue
            del customer.closed[field]
            terms = self.periods.get(period)
            prices = self._price(customer.closed, (period, token, units), terms)
            if terms is None or prices is None:
                queued.left[field] = units
                queued.waits.append(now + MINUTE_MS)
                queued.nameless += [] if terms is None else [(token.encode(), b"%d" % units)]
                continue
            shard.keep(f"t:{name}", TOTALS_MS)
            found |= self._bill(shard, name, (period, token), prices, queued, now)
        is_summed = sum(map(len, found.values())) > self.most
        for of, listed in found.items():
            for parts in [listed] if is_summed else [[one] for one in listed]:
                self._queue_line(shard, name, of, parts, now)
                queued.lines += 1
        return queued

    @staticmethod
    def _price(closed: Totals, of: tuple[str, str, int], terms: Terms | None) -> Counter[str] | None:
        """The units of a meter by price; None: it has no terms, or the price of some is not known."""
        period, token, quantity = of
        if terms is None or token not in terms.meters:
            return None
        units_at, label = Counter[str](), terms.meters[token][1]
        for price, units in parts_of(closed, period, token, quantity, label, token, by_lines=True):
            units_at[price] += units
        return None if "" in units_at and not terms.free else units_at

    def _bill(
        self, shard: Shard, name: str, of: tuple[str, str], prices: Counter[str], queued: Queued, now: int
    ) -> dict[tuple[str, str], list[tuple[str, int]]]:
        """The prices of usage that is on lines; what costs nothing, or has no price, is counted."""
        (period, token), closed = of, shard.customers[name].closed
        terms = self.periods[period]
        meter = terms.meters[token][0]
        found = list[tuple[str, int]]()
        for price, units in sorted(prices.items()):
            if terms.free:
                closed[f"{period}|{token}d"] += units
                closed[f"{period}|{token}w"] += units
            elif price[0].isdigit():
                found.append((price, units))
            else:
                closed[f"{period}|{token}t"] += units
                told = [f"{period} {units} of {meter}", "not billed: it has no price", "clock"]
                shard.histories[name].append(["late", str(now), *told])
                queued.late.append([period.encode(), token.encode(), b"%d" % units, WITHOUT_PRICE])
        return {(period, token): found} if found else {}

    def _queue_line(
        self, shard: Shard, name: str, of: tuple[str, str], parts: Sequence[tuple[str, int]], now: int
    ) -> None:
        (period, token), terms = of, self.periods[of[0]]
        meter, till = terms.meters[token][0], str(shard.customers[name].closed[f"{period}|e"])
        item: dict[str, Any] = {"by_line": "1", "customer": name, "period": period, "meter": token}
        item |= {"name": meter, "event": meter, "till": till, "label": parts[0][0], **self.item}
        item["subscription"] = terms.subscription
        item["value"] = str(sum(units for _, units in parts))
        if len(parts) > 1:
            item["parts"] = [[label, str(units)] for label, units in parts]
        shard.queue_item(item, now)


class Lining(Overtaking):
    """Usage is recorded, priced, closed, queued and settled in turn; some is taken back."""

    cuts: ClassVar[tuple[str, ...]] = ("", "", "", "moved")
    taken_back: ClassVar[tuple[int, ...]] = (0, 1, 3, 7, 700, 10**15)
    by_lines: ClassVar[bool] = True
    last = 0
    asked: Lines | None = None

    def step(self) -> None:
        if self.steps % LIFE == 0:
            self._begin()
        self.steps += 1
        self.shard.fresh.clear()
        self._tick(NAME)
        # No two lines may be alike: the time tells them apart.
        self.last = self.wall = max(self.wall, self.last, self.shard.customers[NAME].seen) + 1
        self._do_one_of(_DEEDS, NAME)
        self._check_units()

    def _begin(self) -> None:
        self.begin_anew()
        random = self.random
        self.last, self.asked = 0, None
        self.price = {token: random.choice(PRICES) for token in TOKENS}
        # By period and token the units that are on no line yet, with their prices, oldest first.
        self.waiting: dict[tuple[int, str], list[tuple[str, int]]] = {}
        # By period and token (and price) those that are on lines, or cost nothing, or are never billed.
        self.on_lines = Counter[tuple[int, str, str]]()
        self.free, self.unpriced = Counter[tuple[int, str]](), Counter[tuple[int, str]]()
        # Prices that have ended, and when.
        self.ended = list[tuple[int, dict[str, str]]]()
        # Periods and tokens that are billed otherwise.
        self.elsewhere = set[tuple[int, str]]()
        bounds = bounds_at(self.wall, anchor_ms=None)
        start, end = bounds.start_ms, bounds.end_ms
        switches = ((start,), (start + 1,), (0, end), (0, end + 1), (0, start, end))
        self.switches = random.choice((*[(0,)] * 6, *switches))
        self.store(f"s:{NAME}")

    def choose_cut(self, name: str) -> str:
        """End no period before a price that has ended in it: later usage had another one than its end."""
        cutting, period = super().choose_cut(name), self.shard.customers[name].period
        has_ended = period is not None and any(at_ms > period[0] for at_ms, _ in self.ended)
        return "" if has_ended else cutting

    # Recording.

    def record(self, name: str) -> None:
        customer, meter = self.shard.customers[name], self.random.choice(METERS)
        quantity, token = self.random.choice(QUANTITIES), meter_token(meter)
        if customer.period is None or self.wall >= customer.period[1]:
            view = self._view(name, self.wall)
            if customer.period is not None and customer.period[1] != customer.period_at(view, self.wall)[1]:
                self.shard.roll(name, view, self.wall)
            customer.begin(self.wall, view)
        customer.seen, customer.lives, customer.cached = self.wall, NEVER_MS, customer.rev
        if customer.overage[meter] + quantity <= MOST:
            customer.overage[meter] += quantity
            customer.pending[meter] += quantity
            self._add(customer.begun[0], token, quantity)
        if self.random.random() < 0.2:
            customer.included[meter] += 5
        self.shard.dirty.setdefault(name, customer.begun[1])
        self.store(f"c:{name}", f"t:{name}", "dirty")

    def record_backdated(self, name: str) -> None:
        """Usage of a closed period: it has the last price of that."""
        closed = self.shard.customers[name].closed
        ended = [(int(field[:-2]), end) for field, end in closed.items() if field.endswith("|e")]
        if ended:
            (period, end), token = self.random.choice(ended), self.random.choice(list(TOKENS))
            for letter in "op":
                closed[f"{period}|{token}{letter}"] += 3
            self.waiting.setdefault((period, token), []).append((self._price_at(token, end - 1), 3))
            self.shard.dirty.setdefault(name, self.wall)
            self.store(f"t:{name}", "dirty")

    def _price_at(self, token: str, instant: int) -> str:
        """The price of a meter at an instant: the first that ended later, or that of now."""
        ended = [
            label
            for at_ms, ends in self.ended
            if at_ms > instant
            for of, label in ends.items()
            if of == token
        ]
        return (ended or [self.price[token]])[0].removesuffix("*")

    def _add(self, period: int, token: str, quantity: int) -> None:
        self.waiting.setdefault((period, token), []).append((self.price[token].removesuffix("*"), quantity))

    # Prices.

    def change_prices(self, name: str) -> None:
        customer, before = self.shard.customers[name], self.price.copy()
        rev, period = customer.rev, customer.period
        self.ending = dict[str, str]()
        self.amend(name)
        if customer.rev == rev:
            self.price = before
            return
        self.ended.append((self.ended_ms, self.ending))
        if period is not None and self.ended_ms == period[0]:
            # Then what was recorded since the period began has the new prices.
            for token in self.ending:
                if found := self.waiting.get((period[0], token)):
                    label = self.price[token].removesuffix("*")
                    self.waiting[period[0], token] = [(label, units) for _, units in found]

    def _labels(self) -> dict[str, str]:
        """The prices of some meters, which end."""
        for token in TOKENS:
            if self.random.random() < 0.5:
                self.ending[token] = self.price[token]
                self.price[token] = self.random.choice((*PRICES, *PRICES[:2] * 3))
        return self.ending

    def _follow_prices(self, name: str, begins: int) -> dict[str, str]:  # noqa: ARG002 - as its base
        """No settlement has stored any."""
        return {}

    def _ended_ms(self, begins: int) -> int:
        closed = self.shard.customers[NAME].closed
        has_ended = any(f"{begins}|{token}y" in closed for token in TOKENS)
        self.ended_ms = self.wall if has_ended else self.random.choice((begins, begins + 1, self.wall))
        return self.ended_ms

    def change_often(self, name: str) -> None:
        """More prices of a period than an invoice has lines."""
        customer = self.shard.customers[name]
        if customer.period is None or self.wall >= customer.period[1]:
            return
        begins = customer.period[0]
        if not is_by_lines(self.switches, begins):
            return
        for nth in range(70):
            for token, meter in TOKENS.items():
                if customer.overage[meter] < MOST // 2:
                    customer.overage[meter] += 2
                    customer.pending[meter] += 2
                    self._add(begins, token, 2)
            mark_prices(customer, begins, self.price, by_lines=True)
            self.ended.append((self.wall, self.price))
            self.price = dict.fromkeys(TOKENS, f"1/{20 + nth}")
        self.shard.ttls.setdefault(f"t:{name}", DAY_MS)
        customer.lives = NEVER_MS
        self.shard.dirty.setdefault(name, customer.begun[1])
        self.store(f"c:{name}", f"t:{name}", "dirty")

    # Corrections.

    def to_restore(self) -> dict[str, list[str]]:
        meters = self.random.sample(METERS, self.random.choice((1, 2)))
        return {meter: [meter_token(meter)] for meter in meters}

    def take_back(self, name: str) -> None:
        """The youngest units go first."""
        customer = self.shard.customers[name]
        self.restore(name)
        for token, meter in TOKENS.items():
            if customer.period is None or (customer.period[0], token) not in self.waiting:
                continue
            found = self.waiting[customer.period[0], token]
            less = sum(units for _, units in found) - customer.pending[meter]
            while less > 0:
                label, units = found.pop()
                found += [(label, units - less)] * (units > less)
                less -= units

    # Lines.

    def invoices(self, now: int, ends: Sequence[int]) -> Billing:
        random = self.random
        ended = [
            (int(name[:-2]), end)
            for name, end in self.shard.customers[NAME].closed.items()
            if name.endswith("|e")
        ]
        periods: dict[str, Terms] = {}
        for begins, end in ended:
            if random.random() < 0.9:
                meters = {token: (meter, self._price_at(token, end - 1)) for token, meter in TOKENS.items()}
                if random.random() < 0.2:
                    del meters[random.choice(list(meters))]
                if random.random() < 0.2:  # What its usage cost at the end is not known.
                    token = random.choice(list(meters))
                    meters[token] = meters[token][0], ""
                subscription, is_free = random.choice(("sub_1", "sub_1", "")), random.random() < 0.2
                periods[str(begins)] = Terms(subscription, is_free, meters)
        self.asked = Lines(
            by_lines=1,
            switches=self.switches,
            periods=periods,
            item={"stripe": "cus_ada", "currency": "usd", "metered": ""},
            most=random.choice((1, 2, 3, 4, 5, 6, 200)),
            late=self.late_invoices(now, ends) if random.random() < 0.3 else None,
        )
        return self.asked

    def queue(self, name: str) -> None:
        if self.seal(name):
            self._count_queued()
        texts = self.wire(pack("ZRANGE", self._key("items"), 0, -1))
        names = [json.loads(text)["id"] for text in texts]
        self._compare("names of invoice items", len(names), len(set(names)))

    def settle(self, name: str) -> None:
        """Stripe has an item, or refuses it; another process may have been faster."""
        texts = self.wire(pack("ZRANGE", self._key("items"), 0, -1))
        if not texts:
            return
        text = self.random.choice(texts).decode()
        item, letter = json.loads(text), self.random.choice("ddft")
        letter = "f" if letter == "d" and "by_line" not in item else letter
        entry = ["late", "1", "a", "b", "clock"] if letter == "t" else []
        is_there = self.random.random() < 0.9
        text = text if is_there else text + " "
        keys = ("items", f"t:{name}", f"h:{name}")
        reply, found = self.ask(
            "settle_item", keys, text, letter, json.dumps(entry) if entry else "", self.wall
        )
        expected = self.shard.settle_item(item, letter, entry) if is_there else 0
        self.check(f"settle_item {letter}", [expected], [reply], found)
        self.seen[f"settled {letter}"] += expected
        if expected and letter == "t" and "by_line" in item:
            for label, units in parts_of_item(item):
                of = int(item["period"]), item["meter"]
                self.on_lines[*of, label] -= units
                self.unpriced[of] += units

    # Invariants.

    def _count_queued(self) -> None:
        """What a seal must have made of units that waited."""
        asked, customer = self.asked, self.shard.customers[NAME]
        assert asked is not None
        for (period, token), found in self.waiting.items():
            of, is_open = (period, token), customer.period is not None and customer.period[0] == period
            if not asked.has_lines(period):
                if found and customer.pending[TOKENS[token]] * is_open < sum(units for _, units in found):
                    # Events or late items bill it; or it is recorded again in the open period.
                    self.elsewhere |= {of} if customer.period is None else {of, (customer.period[0], token)}
                continue
            terms = asked.periods.get(str(period))
            if is_open or terms is None or token not in terms.meters:
                continue
            if customer.closed[f"{period}|{token}p"]:  # It waits: a price is not known.
                continue
            for label, units in found:
                if terms.free:
                    self.free[of] += units
                elif not label[0].isdigit():
                    self.unpriced[of] += units
                else:
                    self.on_lines[*of, label] += units
            found.clear()

    def _check_units(self) -> None:
        """Each unit is where it must be, at its price, and nowhere else."""
        customer = self.shard.customers[NAME]
        closed, queued = customer.closed, Counter[tuple[int, str]]()
        for text in self.shard.items:
            item = json.loads(text)
            queued[int(item["period"]), item["meter"]] += int(item["value"]) * ("by_line" in item)
        for (period, token), found in self.waiting.items():
            if (period, token) in self.elsewhere:
                continue
            field, meter = f"{period}|{token}", TOKENS[token]
            is_open = customer.period is not None and customer.period[0] == period
            waits, recorded = (
                (customer.pending[meter], customer.overage[meter])
                if is_open
                else (closed[f"{field}p"], closed[f"{field}o"])
            )
            of = period, token
            on_lines = {
                label: units for (*known, label), units in self.on_lines.items() if (*known,) == of and units
            }
            by_price = {label: int(units) for label, units in lines_of(closed, f"{field}h")}
            letters = {letter: closed[f"{field}{letter}"] for letter in "qdfwt"}
            what = f"units of {meter} in {period}"
            self._compare(f"{what} that wait", sum(units for _, units in found), waits)
            self._compare(f"{what} on lines", on_lines, by_price)
            self._compare(f"{what} that cost nothing", self.free[of], letters["w"])
            self._compare(f"{what} on no line", self.unpriced[of], letters["t"])
            self._compare(f"{what} in the queue", queued[of], letters["q"])
            there = letters["q"] + letters["d"] + letters["f"] - letters["w"]
            self._compare(f"{what} by state", sum(on_lines.values()), there)
            self._compare(f"{what} at all", waits + there + letters["w"] + letters["t"], recorded)


_DEEDS: Final = weighed(
    "record 40, record_backdated 4, change_prices 10, change_often 1, take_back 8, queue 30, settle 20"
)
