"""Lives in which usage is too late for its invoice: it is sealed, or intents of it are taken back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

from meterkit.decisions.keys import meter_token
from meterkit.redis.connection import pack
from store.delivery_checks import texts_of
from store.delivery_driver import EVENTS, Delivery
from store.delivery_late import Invoices
from store.delivery_model import METERS, Intent
from store.delivery_texts import item_text
from store.script_counts import DAY_MS, MINUTE_MS
from store.script_plans import START_MS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

LABELS: Final = ("1/5", "1/5", "1000/12", "-")
NAME: Final = "ada"
QUANTITIES: Final = (1, 7, 700, 5 * 10**15, 9 * 10**15)


def random_meter(random: Random) -> str:
    """The token of a meter."""
    return meter_token(random.choice(METERS))


class Overtaking(Delivery):
    """One customer, anew in each step, with usage of periods that are over."""

    def step(self) -> None:
        """Plant periods that are over; seal, or take an intent back."""
        self.empty()
        self.wall = START_MS + self.random.randrange(DAY_MS)
        customer = self.shard.customers[NAME]
        customer.rev, customer.data = "2:7", "{}"
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
            for meter in METERS:
                self._plant_prices(f"{begins}|{meter_token(meter)}")
        self.shard.ttls[f"t:{NAME}"] = DAY_MS
        self.shard.dirty.setdefault(NAME, self.wall)
        self.store(f"t:{NAME}", "dirty")

    def _plant_prices(self, name: str) -> None:
        """Prices that have ended in a period, and units of earlier invoice items."""
        random, closed = self.random, self.shard.customers[NAME].closed
        if random.random() < 0.4:
            closed[f"{START_MS}|{name[-4:]}y"] = cast("int", random.choice(LABELS))
        if random.random() < 0.4:
            closed[f"{name}y"] = cast("int", random.choice((*LABELS, "1/5*")))
        if random.random() < 0.4:
            ended = [f"{random.choice((*LABELS, '1/5*'))} 0 {overage};" for overage in (3, 700)]
            closed[f"{name}s"] = cast("int", "".join(ended[: random.choice((1, 2))]))
            if random.random() < 0.9:
                closed[f"{name}o"] = random.choice((0, 3, 700, 10**6, 2 * 10**15))
        if random.random() < 0.5:
            closed[f"{name}a"] = 5
            closed[f"{name}n"] = cast("int", random.choice(("1/5 5;", "1/7 5;", "1/7 4;1/5 1;")))

    def _settle_item(self) -> None:
        """An invoice item that Stripe has, or refuses; another process may have been faster."""
        random, customer, meter = self.random, self.shard.customers[NAME], random_meter(self.random)
        name = f"{START_MS - 62 * DAY_MS}|{meter}"
        item = {"customer": NAME, "period": name[:-5], "meter": meter, "label": "1/5", "value": "5"}
        customer.closed[f"{name}a"] = random.choice((5, 12))
        customer.closed[f"{name}n"] = cast("int", random.choice(("1/5 5;", "1/5 6;", "1/7 7;1/5 5;")))
        marks = ("", "1/7 0 9;", "1/5 3 9;", "1/5 0 2;1/7 0 9;1/5 1 12;", "1/7 0 2;1/5 0 4;1/5* 2 9;")
        customer.closed.pop(f"{name}s", None)
        if mark := random.choice(marks):
            customer.closed[f"{name}s"] = cast("int", mark)
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
        intent = Intent(
            *(NAME, f"cus_{NAME}", period, meter_token(meter), EVENTS[meter]),
            value=random.choice((1, 7, 700)),
            minute=period + random.randrange(9) * MINUTE_MS,
            at=self.wall,
            state=random.choice(("queued", "parked")),
            first=random.choice((0, self.wall)),
            key="intent-1",
        )
        field = intent.field(intent.state)
        customer.closed[field] = customer.closed.get(field, 0) + intent.value
        if random.random() < 0.5:
            customer.closed[f"{period}|e"] = period + 9 * DAY_MS
        self.shard.intents["intent-1"] = intent
        (self.shard.outbox if intent.state == "queued" else self.shard.parked)["intent-1"] = self.wall
        if intent.state == "parked":
            self.shard.compare["intent-1"] = self.wall
        self.store("intents", "outbox", "parked", "compare", f"t:{NAME}")
        read = self.wire(pack("HGET", self._key("intents"), "intent-1")).decode()
        read += " " * (random.random() < 0.2)
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
