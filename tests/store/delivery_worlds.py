"""Lives of one customer, anew in each step.

Usage is too late for its invoice; intents are taken back; Stripe refuses later what it took.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from meterkit.decisions.keys import meter_token
from meterkit.redis.connection import pack
from store.delivery_checks import own_keys, texts_of
from store.delivery_driver import NAME, Anew
from store.delivery_model import METERS, TOKENS, Invoices, Refuse, item_text
from store.script_counts import DAY_MS, MINUTE_MS
from store.script_model import Totals
from store.script_plans import START_MS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from store.script_model import Customer

LABELS: Final = ("1/5", "1/5", "1000/12", "-")
QUANTITIES: Final = (1, 7, 700, 5 * 10**15, 9 * 10**15)


class Overtaking(Anew):
    """Usage is too late for its invoice: it is sealed, or intents of it are taken back."""

    def step(self) -> None:
        """Plant periods that are over; seal, or take an intent back."""
        customer = self.begin_anew()
        self.store(f"s:{NAME}")
        if self.random.random() < 0.8:
            self.plant_usage(NAME)
            customer.marked[self.random.choice(METERS)] += self.random.choice((0, 0, 5, 5 * 10**15))
            if self.random.random() < 0.3:  # Until about now what is pending waits for a change of prices.
                customer.closed[f"{customer.begun[0]}|w"] = self.wall + self.random.choice((-1, 0, 1))
            self.store(f"c:{NAME}")
        self._plant_periods()
        chance = self.random.random()
        if chance < 0.3:
            self._withdraw()
        elif chance < 0.5:
            self._settle_item()
        else:
            self.seal(NAME)

    def invoices(self, now: int, ends: Sequence[int]) -> Invoices | None:
        """Invoices that were made about where a period has ended."""
        if self.random.random() < 0.1:
            return None
        random, beside = self.random, (-1, 0, 1)
        hour, margin = random.choice((0, 5, 60)) * MINUTE_MS, random.choice((0, 1, 5)) * MINUTE_MS
        begins = [int(name[:-2]) for name in self.shard.customers[NAME].closed if name.endswith("|e")]
        begin, end = random.choice((*begins, now)), random.choice((*ends, now))
        latest = random.choice((end, begin, end + 9 * DAY_MS, now - hour + margin)) + random.choice(beside)
        meters = {
            meter_token(meter): (
                *(random.choice(("overage", "overage", "included", "")), meter, " at USD 1.00"),
                *(random.choice(LABELS), meter_token(random.choice((meter, meter, meter, "rows")))),
                random.choice((1, 1, 0)),
            )
            for meter in METERS
            if random.random() < 0.8
        }
        before = random.choice((0, latest, begin + random.choice(beside)))
        since = random.choice((0, 0, 0, begin + random.choice(beside)))
        item = random.choice((None, {"stripe": "cus_ada", "subscription": "sub_1", "currency": "usd"}))
        ends_of = {"since": since, "before": before, "latest": latest, "hour": hour, "margin": margin}
        return Invoices(**ends_of, meters=meters, item=item)

    def _plant_periods(self) -> None:
        random, customer = self.random, self.shard.customers[NAME]
        for nth in range(1, random.choice((2, 3))):
            begins = START_MS - nth * 62 * DAY_MS
            end = self.wall - random.choice((-2, 0, 1, 5, 55, 56, 60, 61, 1440)) * MINUTE_MS
            customer.closed[f"{begins}|e"] = end + random.choice((-1, 0, 0, 1))
            if random.random() < 0.2:
                customer.closed[f"{begins}|f"] = self.wall - random.randrange(9)
            if random.random() < 0.3:
                customer.closed[f"{begins}|h"] = self.wall + random.choice((-1, 0, 1, 5)) * MINUTE_MS
            for meter in random.sample(METERS, random.choice((1, 1, 2))):
                customer.closed[f"{begins}|{meter_token(meter)}p"] = random.choice(QUANTITIES)
                if random.random() < 0.3:
                    customer.closed[f"{begins}|{meter_token(meter)}t"] = 5
            for token in TOKENS:
                self._plant_prices(f"{begins}|{token}")
        self.shard.ttls[f"t:{NAME}"] = DAY_MS
        self.shard.dirty.setdefault(NAME, self.wall)
        self.store(f"t:{NAME}", "dirty")

    def _plant_prices(self, name: str) -> None:
        """Prices that have ended in a period, and units of earlier invoice items."""
        random, closed = self.random, self.shard.customers[NAME].closed
        if random.random() < 0.4:
            closed[f"{START_MS}|{name[-4:]}y"] = random.choice(LABELS)
        if random.random() < 0.4:
            closed[f"{name}y"] = random.choice((*LABELS, "1/5*"))
        if random.random() < 0.4:
            ended = [f"{random.choice((*LABELS, '1/5*'))} 0 {overage};" for overage in (3, 700)]
            closed[f"{name}s"] = "".join(ended[: random.choice((1, 2))])
            if random.random() < 0.9:
                closed[f"{name}o"] = random.choice((0, 3, 700, 10**6, 2 * 10**15))
        if random.random() < 0.5:
            closed[f"{name}a"] = 5
            closed[f"{name}n"] = random.choice(("1/5 5;", "1/7 5;", "1/7 4;1/5 1;"))

    def _settle_item(self) -> None:
        """An invoice item that Stripe has, or refuses; another process may have been faster."""
        random, closed = self.random, self.shard.customers[NAME].closed
        token = meter_token(random.choice(METERS))
        name = f"{START_MS - 62 * DAY_MS}|{token}"
        item = {"customer": NAME, "period": name[:-5], "meter": token, "label": "1/5", "value": "5"}
        closed[f"{name}a"] = random.choice((5, 12))
        closed[f"{name}n"] = random.choice(("1/5 5;", "1/5 6;", "1/7 7;1/5 5;"))
        marks = ("", "1/7 0 9;", "1/5 3 9;", "1/5 0 2;1/7 0 9;1/5 1 12;", "1/7 0 2;1/5 0 4;1/5* 2 9;")
        closed.pop(f"{name}s", None)
        if mark := random.choice(marks):
            closed[f"{name}s"] = mark
        is_there, letter = random.random() < 0.8, random.choice("ft")
        self.shard.items = {item_text(item): self.wall} if is_there else {}
        self.store(f"t:{NAME}", "items")
        entry, keys = ["late", "1", "a", "b", "clock"], ("items", f"t:{NAME}", f"h:{NAME}")
        reply, found = self.ask("settle_item", keys, item_text(item), letter, json.dumps(entry), self.wall)
        if is_there:
            self.shard.settle_item(item, letter, entry)
        self.check(f"settle_item {letter}", [int(is_there)], [reply], found)

    def _withdraw(self) -> None:
        random, customer = self.random, self.shard.customers[NAME]
        meter, period = random.choice(METERS), START_MS - 31 * DAY_MS
        value, minute = random.choice((1, 7, 700)), period + random.randrange(9) * MINUTE_MS
        intent = self.new_intent(meter, period, value, minute)
        intent.state, intent.first = random.choice(("queued", "parked")), random.choice((0, self.wall))
        self.plant_intent("intent-1", intent)
        if random.random() < 0.5:
            customer.closed[f"{period}|e"] = period + 9 * DAY_MS
        if intent.state == "parked":
            self.shard.compare["intent-1"] = self.wall
        self.store("intents", "outbox", "parked", "compare", f"t:{NAME}")
        read = self.read_intent("intent-1") + " " * (random.random() < 0.2)
        is_broken = random.random() < 0.2 and not read.endswith(" ")
        if is_broken:
            broken = intent.field(random.choice((intent.state, "pending")))
            self.wire(pack("HSET", self._key(f"t:{NAME}"), broken, "x"))
        entries = [["intent", "1", "a", "b", "c"]] * random.randrange(2)
        names = ("intents", "outbox", "parked", "compare", f"t:{NAME}", "dirty", f"h:{NAME}")
        reply, found = self.ask("withdraw", names, "intent-1", read, json.dumps(entries), self.wall)
        if is_broken:
            self.store(f"t:{NAME}")
            found[f"t:{NAME}"] = texts_of(customer.closed)
            self.check("withdraw broken", [2, self.wall], reply, found)
            return
        expected = self.shard.withdraw("intent-1", read, entries, self.wall)
        self.check("withdraw", expected, reply, found)


class Recalling(Anew):
    """Sealed usage is taken back: of closed periods, of gone counters, of values below 0."""

    def step(self) -> None:
        """Plant intents of two customers, and take back those of one."""
        self.begin_anew()
        for name in (NAME, "bob"):
            customer = self.shard.customers[name]
            customer.rev, customer.data = "2:7", "{}"
            self.plant_usage(name)
            self._plant_intents(name, customer)
            if self.random.random() < 0.3:
                self.plant_gone(name)
            self.store(*own_keys(name, "st"))
        self.store("intents", "outbox", "parked", "dirty", "unlinked")
        self.recall(NAME)

    def _plant_intents(self, name: str, customer: Customer) -> None:
        random, open_ms = self.random, customer.begun[0]
        closed_ms = open_ms - 31 * DAY_MS
        if random.random() < 0.5:
            customer.closed[f"{closed_ms}|e"] = random.choice((open_ms, open_ms - 9 * DAY_MS))
        for nth in range(random.randrange(1, 5)):
            period, meter = random.choice((open_ms, closed_ms)), random.choice(METERS)
            value, minute = random.choice((1, 7, 700, -5, -700)), period + random.randrange(9) * MINUTE_MS
            intent = self.new_intent(meter, period, value, minute, name)
            intent.state = random.choice(("queued", "queued", "queued", "leased", "parked"))
            intent.first = random.choice((0, 0, 0, self.wall))
            self.plant_intent(f"{name}-{nth}", intent)
        self.shard.ttls[f"t:{name}"] = DAY_MS


class Refusing(Anew):
    """Stripe refuses later what it took: of any minute, and where totals are damaged."""

    meters: Final = METERS[:2]

    def step(self) -> None:
        """Plant, have one refused, and compare all that is stored."""
        customer = self.begin_anew()
        periods = [START_MS - nth * 31 * DAY_MS for nth in range(self.random.choice((1, 2, 3)))]
        for nth in range(self.random.randrange(1, 4)):
            self._plant(customer, f"i-{nth}", self.random.choice(periods))
        for period in periods:
            if self.random.random() < 0.3:
                customer.closed[f"{period}|{meter_token(self.random.choice(self.meters))}d"] = 0
        self.shard.ttls[f"t:{NAME}"] = self.shard.ttls["delivered:1"] = DAY_MS
        self.store("intents", "outbox", "parked", "dead", "delivered:1", *own_keys(NAME, "st"))
        if self.random.random() < 0.2:
            self._refuse_damaged(customer)
        else:
            self.refuse(NAME)

    def _plant(self, customer: Customer, identifier: str, period: int) -> None:
        random, meter = self.random, self.random.choice(self.meters)
        value, near = random.choice((1, 7, 700, -5)), (-MINUTE_MS, -1000, 0, 0, 1000, MINUTE_MS, DAY_MS)
        intent = self.new_intent(meter, period, value, period + random.choice(near))
        intent.state = random.choice(("queued", "leased", "parked", "dead"))
        intent.first = random.choice((0, self.wall - 5000))
        closed = Totals(customer.closed)
        if random.random() < 0.6:
            intent.state, intent.minute = "delivered", intent.minute // 1000 * 1000
            self.shard.delivered[identifier] = intent.short()
            customer.closed[intent.field("delivered")] += abs(value)
        else:
            self.plant_intent(identifier, intent)
        if random.random() >= 0.9:
            customer.closed = closed

    def _refuse_damaged(self, customer: Customer) -> None:
        """Where the totals cannot be counted in, nothing changes."""
        delivered = {known: short for known, short in self.shard.delivered.items() if int(short[4]) > 0}
        if not delivered:
            return
        identifier, short = self.random.choice(list(delivered.items()))
        token = meter_token(self.meters[short[2] == "tokens"])
        asked = Refuse(identifier, "r", "dead", "refused", token, NAME)
        begun = [int(name[:-6]) for name in customer.closed if name.endswith(f"|{token}d")]
        period = max((one for one in begun if one <= int(short[3]) * 1000), default=None)
        if period is None or self.random.random() < 0.3:
            self.wire(pack("SET", self._key(f"t:{NAME}"), "text"))
        else:
            field = f"{period}|{token}{self.random.choice('dx')}"
            if field.endswith("d") or customer.closed[f"{period}|{token}d"] >= int(short[4]):
                self.wire(pack("HSET", self._key(f"t:{NAME}"), field, self.random.choice(("x", "1.5", ""))))
        reply, found = self.ask_refuse(asked)
        self.store(f"t:{NAME}")
        found.pop(f"t:{NAME}", None)
        customer.closed = Totals()
        self.check(f"refuse damaged {asked}", 3, reply, found)
