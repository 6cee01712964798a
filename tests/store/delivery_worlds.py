"""Lives of one customer, anew in each step.

Usage is too late for its invoice; intents are taken back; Stripe refuses later what it took; units are taken
back that grants and credits have paid for, or that had compensation; others change prices at Stripe.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from meterkit.decisions.keys import meter_token
from meterkit.decisions.packed import unpack_field
from meterkit.redis.connection import pack
from store.delivery_checks import own_keys, texts_of
from store.delivery_corrections import CLASSES, Billed, Prices
from store.delivery_driver import NAME, Anew, text_of
from store.delivery_model import (
    METERS,
    TOKENS,
    TOTALS_MS,
    VALUE_MAX,
    Billing,
    Former,
    Intent,
    Invoices,
    Refuse,
    Shard,
    item_text,
    mark_prices,
)
from store.script_counts import DAY_MS, MINUTE_MS, MOST
from store.script_model import NEVER_MS, Customer, Totals
from store.script_plans import START_MS

LABELS: Final = ("1/5", "1/5", "1000/12", "-")
QUANTITIES: Final = (1, 7, 700, 5 * 10**15, 9 * 10**15)


class Overtaking(Anew):
    """Usage is too late for its invoice: it is sealed, or intents of it are taken back."""

    def step(self) -> None:
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

    def invoices(self, now: int, ends: Sequence[int]) -> Billing | None:
        return self.late_invoices(now, ends)

    def late_invoices(self, now: int, ends: Sequence[int]) -> Invoices | None:
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
                *(random.choice(("overage", "overage", "included", "")), meter, " at $1.00"),
                *(random.choice(LABELS), meter_token(random.choice((meter, meter, meter, "rows")))),
                *(random.choice((1, 1, 0)), random.choice((0, 0, 1))),
            )
            for meter in METERS
            if random.random() < 0.8
        }
        before = random.choice((0, latest, begin + random.choice(beside)))
        since = random.choice((0, 0, 0, begin + random.choice(beside)))
        item = random.choice((None, {"stripe": "cus_ada", "subscription": "sub_1", "currency": "usd"}))
        ends_of = {"since": since, "before": before, "latest": latest, "hour": hour, "margin": margin}
        return Invoices(**ends_of, meters=meters, item=item, former=self._former((*ends, now)))

    def _former(self, ends: Sequence[int]) -> Former:
        """Names that events had until about where a period has ended: another's, or such as none has now."""
        random, names = self.random, ("old rows", "db rows", "tokens")
        until = sorted(random.choice(ends) + random.choice((-1, 0, 0, 1)) for _ in range(random.randrange(3)))
        return [(at, {token: random.choice(names) for token in random.sample([*TOKENS], 2)}) for at in until]

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
        expected = self.shard.settle_item(item, letter, entry)
        self.check(f"settle_item {letter}", [expected], [reply], found)

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
        read = self.parse_sealed("intent-1") + " " * (random.random() < 0.2)
        is_broken = random.random() < 0.2 and not read.endswith(" ")
        if is_broken:
            broken = intent.field(random.choice((intent.state, "pending")))
            self.wire(pack("HSET", self._key(f"t:{NAME}"), broken, "x"))
        entries = [["intent", "1", "a", "b", "c"]] * random.randrange(2)
        names = ("intents", "outbox", "parked", "compare", f"t:{NAME}", "dirty", f"h:{NAME}")
        reply, found = self.ask("withdraw_intent", names, "intent-1", read, json.dumps(entries), self.wall)
        if is_broken:
            self.store(f"t:{NAME}")
            found[f"t:{NAME}"] = texts_of(customer.closed)
            self.check("withdraw_intent broken", [2, self.wall], reply, found)
            return
        expected = self.shard.withdraw("intent-1", read, entries, self.wall)
        self.check("withdraw_intent", expected, reply, found)


class Recalling(Anew):
    """Sealed usage is taken back: of closed periods, of gone counters, of values below 0."""

    def step(self) -> None:
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

    def step(self) -> None:
        customer = self.begin_anew()
        periods = [START_MS - nth * 31 * DAY_MS for nth in range(self.random.choice((1, 2, 3)))]
        for nth in range(self.random.randrange(1, 4)):
            self._plant(customer, f"i-{nth}", self.random.choice(periods))
        for period in periods:
            if self.random.random() < 0.3:
                customer.closed[f"{period}|{meter_token(self.random.choice(METERS))}d"] = 0
        self.shard.ttls[f"t:{NAME}"] = self.shard.ttls["delivered:1"] = DAY_MS
        self.store("intents", "outbox", "parked", "dead", "delivered:1", *own_keys(NAME, "st"))
        if self.random.random() < 0.2:
            self._refuse_damaged(customer)
        else:
            self.refuse(NAME)

    def _plant(self, customer: Customer, identifier: str, period: int) -> None:
        random, meter = self.random, self.random.choice(METERS)
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
        asked = Refuse(identifier, "r", "dead", "refused", self.tokens_of(short[2]), NAME)
        intent = self.shard.find_delivered(asked, self.wall)
        if intent is None or self.random.random() < 0.3:
            self.wire(pack("SET", self._key(f"t:{NAME}"), "text"))
        else:
            # One that cannot be read, of any name of the meter, may be the one that has the units.
            named = [f"{intent.period}|{token}d" for token in asked.tokens.split()]
            named = [field for field in named if field in customer.closed]
            if customer.closed[intent.field("delivered")] >= intent.value:
                named.append(intent.field("dead"))
            field, wrong = self.random.choice(named), self.random.choice(("x", "1.5", ""))
            self.wire(pack("HSET", self._key(f"t:{NAME}"), field, wrong))
        reply, found = self.ask_refuse(asked)
        self.store(f"t:{NAME}")
        found.pop(f"t:{NAME}", None)
        customer.closed = Totals()
        self.check(f"refuse_intent damaged {asked}", 3, reply, found)


PAID: Final = (0, 1, 2, 700)
ASKED: Final = "tokens"
ROWS: Final = ("pages", "rows")
SPEND: Final = "requests"
ENDED: Final = ("1/5 9 3;", "1/7 0 5;", "1/5 0 690;")
LONG_MS: Final = 31 * DAY_MS
PAST: Final = (START_MS - 3 * LONG_MS, START_MS - 2 * LONG_MS)
SPENT: Final = (0, 5, 900, 10**6)


class Restoring(Anew):
    """Some of a customer's usage is taken back."""

    def step(self) -> None:
        self.steps += 1
        customer = self.begin_anew()
        self.plant_usage(NAME)
        for meter in METERS:
            self._plant_meter(customer, meter)
        self._plant_lines(customer)
        if self.random.random() < 0.3:
            customer.closed[f"{customer.begun[0]}|w"] = self.wall + self.random.choice((-1, 0, 1))
        if self.random.random() < 0.5:
            customer.closed[f"{customer.begun[0]}|y"] = self.wall
        self.shard.ttls[f"t:{NAME}"] = DAY_MS
        self.store(*own_keys(NAME, "cstgj"))
        self.restore(NAME)
        self.shard.fresh.clear()
        self.restore(NAME)  # What had compensation is as good as taken back.

    def billed(self, tokens: Mapping[str, Sequence[str]]) -> Billed | None:
        """Invoices of some of the meters, of this period and of earlier ones."""
        random, every = self.random, list(dict.fromkeys(token for own in tokens.values() for token in own))
        customer = self.shard.customers[NAME]
        start = customer.begun[0]
        read = str(customer.closed.get(f"{start}|y", ""))
        changed = random.choice((None, None, "", str(self.wall), read, read, read))
        if changed is None:
            return None
        ends = PAST[1] + LONG_MS
        instants = (start, start, start + 1, start - 1, *PAST, PAST[0] - 1, ends, ends - 1)
        items = {token: random.choice((0, 0, 3, 700)) for token in every}
        units = {
            token: [(random.choice(instants), random.choice(PAID)) for _ in range(random.choice((1, 2)))]
            for token in every
            if random.random() < 0.5
        }
        lines: dict[str, list[tuple[str, str, int, int, str]]] = {}
        for meter, own in tokens.items():
            lines[meter] = []
            for nth in random.sample(range(6), random.choice((0, 1, 3, 5))):
                on_line = random.choice(own), f"line@{nth}", random.choice(instants)
                lines[meter].append((*on_line, random.choice((1, 6, 700)), f"kept {nth}"))
        return Billed(changed, items, units, lines)

    def _plant_lines(self, customer: Customer) -> None:
        """Earlier periods, and units that corrections have left to credit notes."""
        random = self.random
        for period in PAST:
            customer.closed[f"{period}|e"] = period + LONG_MS
        for period in (*PAST, customer.begun[0]):
            for token in TOKENS:
                if period in PAST and random.random() < 0.7:
                    customer.closed[f"{period}|{token}o"] = random.choice((5, 600, 700))
                if random.random() < 0.3:
                    customer.closed[f"{period}|{token}r"] = random.choice((1, 3, 500))
                if random.random() < 0.3:
                    units = random.choice(("line@0 5;", "line@1 2;line@0 699;", "line@5 1;line@2 700;"))
                    customer.closed[f"{period}|{token}H"] = units

    def _plant_meter(self, customer: Customer, meter: str) -> None:
        random, period = self.random, customer.begun[0]
        for counts in (customer.granted, customer.credited, customer.over_cap):
            counts[meter] = random.choice(PAID)
        customer.overage[meter] = random.choice((0, 7, 700))
        if random.random() < 0.5:
            customer.included[meter] = random.choice(PAID)
        for letter in random.sample("qldxraf", random.choice((0, 2, 4))):
            customer.closed[f"{period}|{meter_token(meter)}{letter}"] = random.choice((1, 5, 700))
        for kind in "mc":
            for nth in range(random.choice((0, 1, 3))):
                self._plant_grant(f"{random.choice('ap')} {kind}:{meter} {nth}", meter, period)
        if random.random() < 0.4:
            self._plant_debt(f"c:{meter}", meter, period)

    def _plant_debt(self, target: str, meter: str, period: int) -> None:
        """Use beyond a balance: it is owed, or a part of it; grants have repaid some of a debt."""
        random = self.random
        grants, ledger = self.shard.grants.setdefault(NAME, {}), self.shard.ledgers.setdefault(NAME, {})
        at = random.choice((period, period, period, period - DAY_MS))
        ledger[f"beyond {meter} {at} {target}"] = str(random.choice((1, 4, 2000)))
        if random.random() < 0.6:
            # No grant repays what arose then.
            grants[f"d {target}"] = f"{random.choice((1, 3, 2000))} {NEVER_MS}"
        for name in [name for name in grants if f" {target} " in name and random.random() < 0.6]:
            ledger[f"repay {name}"] = str(random.choice((1, 3, 2000)))

    def _plant_grant(self, name: str, meter: str, period: int) -> None:
        """A grant that paid for a meter: in the list, or it has left that, all of it used, or was voided."""
        random = self.random
        grants, ledger = self.shard.grants.setdefault(NAME, {}), self.shard.ledgers.setdefault(NAME, {})
        used, expires = random.choice((1, 4, 2000)), self.wall + random.choice((0, 1, DAY_MS))
        expires = random.choice((expires, NEVER_MS))
        terms = f"{random.choice((1, 2))} 0 {expires} {random.choice((1, 2))}"
        quantity = used if random.random() < 0.3 else used + 5
        if random.random() < 0.8:
            ledger[f"grant {name}"] = f"{quantity} {terms}"
        if random.random() < 0.7:
            grants[name] = f"{name.split()[1]} {quantity} {used} {terms} {expires}"
        if random.random() < 0.2:
            ledger[f"void {name}"] = "1"
        elif name.startswith("a ") and random.random() < 0.4:
            refunded = random.choice((1, used, quantity, quantity))
            taken = random.choice((0, 0, 1, refunded))
            owed = (refunded - taken) * (self.wall % 3 == 0)  # Of a disputed payment.
            ledger[f"refund {name}"] = f"{refunded} {taken} {self.wall - 1} {owed}"
        if random.random() < 0.5:
            grants["balance"] = "as it was"
        by = random.choice((meter, meter, meter, "others"))
        at = random.choice((period, period, period, period - DAY_MS))
        ledger[f"burn {by} {at} {name}"] = str(random.choice((used, used, 1)))


class Repricing(Restoring):
    """The same where a model of a meter has a price of its own, and where a budget counts what is spent.

    The default row's units go to Stripe under the meter's event, those of the other row under its own.
    """

    def _plant_meter(self, customer: Customer, meter: str) -> None:
        super()._plant_meter(customer, meter)
        random = self.random
        customer.pending[meter] = random.choice((0, 3, 7, 700))
        customer.stamps[meter] = (self.wall // MINUTE_MS - random.randrange(9)) * MINUTE_MS
        if meter == SPEND:
            customer.included[meter], customer.overage[meter] = random.choice(SPENT), random.choice(SPENT)
        elif meter in ROWS:
            for counts in (customer.included, customer.granted, customer.credited, customer.over_cap):
                counts[meter] = 0
            if random.random() < 0.2:  # A row that nothing was counted at.
                for counts in (customer.overage, customer.pending, customer.stamps):
                    counts[meter] = 0
        if meter in ROWS and random.random() < 0.5:
            ended = "".join(random.sample(ENDED, random.choice((1, 2))))
            customer.closed[f"{customer.begun[0]}|{meter_token(meter)}s"] = ended
        recorded = min(VALUE_MAX, sum(getattr(customer, kind)[meter] for kind in CLASSES))
        customer.marked[meter] = random.choice((0, recorded // 2, recorded))

    def to_restore(self) -> dict[str, list[str]]:
        return {ASKED: [meter_token(ASKED), meter_token(ROWS[1])]}

    def prices(self) -> Prices:
        random, tokens = self.random, [meter_token(meter) for meter in (ASKED, *ROWS)]
        labels = [random.choice(("1/5", "1/7", "1/9", None)) for _ in ROWS]
        rows = list(zip(tokens[1:], (tokens[0], tokens[2]), labels, strict=True))
        priced = random.sample(tokens, random.choice((0, 1, 2, 3)))
        asked = random.choice((rows, rows, rows[:1], ()))
        of = dict[str, tuple[int, int, int]]()
        for token in priced:
            of[token] = random.randrange(1, 20), random.randrange(1, 9), int(random.random() < 0.3)
        spend, paid = random.choice((SPEND, SPEND, SPEND, "")), random.sample(tokens, random.choice((0, 1)))
        return Prices(asked, of, spend, {token: [7, 3] for token in paid})


NONCE: Final = "0123456789abcdef" * 2
LETTERS_OF_METERS: Final = "iogcjpmzhH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strand:
    """What is asked, as the script reads it; meters: class, name and price by token."""

    meters: Mapping[str, tuple[str, str, str]]
    items: Mapping[str, Mapping[str, str]]
    pending: Sequence[str]
    intents: Sequence[tuple[str, str]]
    back: Sequence[tuple[str, str]] | None
    since: Mapping[str, int]
    labels: Mapping[str, str]
    rev: str
    changed: str
    cause: str


def strand(shard: Shard, asked: Strand, now: int) -> list[int | bytes]:
    """What the reply must be; the model holds afterwards what the store must."""
    customer = shard.customers[NAME]
    begins = None if customer.period is None else customer.period[0]
    is_once = begins is not None and bool(asked.rev)
    if is_once and customer.closed.get(f"{begins}|n") == cast("int", asked.rev):
        return [0, now]
    known = {field[:-1] for field in customer.fields() if field[-1] in LETTERS_OF_METERS}
    late = Counter[str]()
    for token in asked.pending:
        late[f"{begins}|{token}"] += customer.pending[TOKENS[token]]
        customer.pending[TOKENS[token]] = 0
        for period in _at_one_price(customer, begins, token) if token in asked.items else ():
            late[f"{period}|{token}"] += customer.closed.pop(f"{period}|{token}p")
    for intent in _taken(shard, asked.intents):
        late[f"{intent.period}|{intent.token}"] += intent.value
    reply: list[int | bytes] = [0, now]
    for intent in _taken(shard, asked.back or (), period=begins):
        name, meter = f"{begins}|{intent.token}", TOKENS[intent.token]
        less = min(-intent.value, late[name])
        late[name] -= less
        left = -intent.value - less
        if left and intent.token in known:
            customer.overage[meter] += left
            after = "recorded again: Stripe did not have it when the price changed"
            what = f"{left} of {asked.meters[intent.token][1]} taken back"
            shard.histories[NAME].append(["correction", str(now), what, after, asked.cause])
            reply += [name.encode(), b"%d" % left, 3]
    if begins is not None:
        since = {TOKENS[token]: count for token, count in asked.since.items() if token in known}
        overages = dict[str, int]()
        for token, meter in TOKENS.items():
            again = 0 if token in asked.items else late[f"{begins}|{token}"]
            overages[meter] = max(0, customer.overage[meter] - since.get(meter, 0) - again)
        mark_prices(customer, begins, asked.labels, overages, since)
    for name, quantity in sorted((+late).items()):
        reply += [name.encode(), b"%d" % quantity, _again(shard, asked, name, quantity, now)]
    if 1 in reply[4::3]:
        customer.lives, shard.dirty[NAME] = NEVER_MS, now
    if is_once:
        customer.closed[f"{begins}|n"] = asked.rev
        customer.closed[f"{begins}|y"] = int(asked.changed)
    shard.keep(f"t:{NAME}", TOTALS_MS)
    return reply


def _at_one_price(customer: Customer, begins: int | None, token: str) -> list[str]:
    """The closed periods with pending units of a meter that have had one price of it."""
    closed = customer.closed
    if f"{begins}|{token}y" in closed:
        return []
    periods = [field.partition("|")[0] for field in closed if field.endswith(f"|{token}p")]
    return [period for period in periods if f"{period}|{token}s" not in closed]


def _taken(shard: Shard, wanted: Sequence[tuple[str, str]], period: int | None = 0) -> Iterator[Intent]:
    """Take intents away that are as they were read, be they of a period or of any (0)."""
    for identifier, read in wanted:
        intent = shard.intents.get(identifier)
        if intent is not None and not read.endswith(" ") and period in {0, intent.period}:
            shard.customers[NAME].closed[intent.field(intent.state)] -= abs(intent.value)
            for place in (shard.intents, shard.outbox, shard.parked, shard.compare):
                place.pop(identifier, None)
            yield intent


def _again(shard: Shard, asked: Strand, name: str, quantity: int, now: int) -> int:
    """Count what is late of a period and meter; 1: recorded once more, 2: billed by an item, 0: neither."""
    customer, token = shard.customers[NAME], name[-4:]
    meter = TOKENS[token]
    kind, told, price = asked.meters[token]
    item = asked.items.get(token)
    if item is None:
        customer.closed[f"{name}t"] += quantity
    else:
        own = {"customer": NAME, "period": name[:-5], "meter": token, "name": told, "value": str(quantity)}
        is_open = customer.period is not None and name[:-5] == str(customer.period[0])
        till = item["till"] if is_open else str(customer.closed.get(f"{name[:-5]}|e", item["till"]))
        shard.queue_item({**item, **own, "till": till}, now)
    counts = {"included": customer.included, "overage": customer.overage}.get(kind)
    most = max(0 if counts is None else counts[meter], customer.marked[meter], customer.pending[meter])
    is_billed = customer.period is not None and counts is not None and most + quantity <= MOST
    if is_billed and counts is not None and item is None:
        for count in (counts, customer.marked, customer.pending):
            count[meter] += quantity
    after = "billed at the price of now" if is_billed else "not billed"
    after = after if item is None else "billed by an invoice item"
    what = f"{name[:-5]} {quantity} of {told}{price}"
    shard.histories[NAME].append(["late", str(now), what, after, asked.cause])
    return int(is_billed) if item is None else 2


class Stranding(Anew):
    """Prices are changed at Stripe by others."""

    def step(self) -> None:
        customer = self.begin_anew()
        if self.random.random() < 0.85:
            for _ in range(self.random.randrange(1, 4)):
                self.plant_usage(NAME)
            customer.marked[self.random.choice(METERS)] += self.random.choice((0, 0, 5, 5 * 10**15))
            self.store(f"c:{NAME}")
        self._plant_sealed()
        if self.random.random() < 0.1:
            self._strand_broken()
            return
        asked, now = self._asked(), self.wall
        if self.random.random() < 0.15 and customer.period is not None:
            begins = customer.period[0]
            customer.closed[f"{begins}|n"] = self.random.choice(("2:8", "2:9", asked.rev or "2:8"))
            self.store(f"t:{NAME}")
        if self.random.random() < 0.2:
            self._strand_audited(asked)
            return
        reply, found = self.ask("mark_late_usage", self._names(), NAME, NONCE, text_of(asked), now)
        expected = strand(self.shard, asked, now)
        self.check(f"mark_late_usage {asked}", expected, reply, found)
        self.seen["late"] += len(reply) > 2
        self.seen["late and billed"] += 1 in reply[4::3]
        self.seen["late and by item"] += 2 in reply[4::3]
        self.seen["a correction undone"] += 3 in reply[4::3]

    def _strand_audited(self, asked: Strand) -> None:
        """With an audit log, which has an entry of each meter that is recorded once more."""
        names = [self._key(name) for name in (*self._names(), "audit")]
        argv = (NAME, NONCE, text_of(asked), self.wall)
        reply, rows = self.wire(pack("EVALSHA", self.shas["mark_late_usage", 0], len(names), *names, *argv))
        expected = strand(self.shard, asked, self.wall)
        self._compare("the reply", expected, reply)
        entries: list[list[int | bytes]] = []
        for nth, told in zip(range(2, len(expected), 3), self.shard.histories[NAME], strict=True):
            name, quantity, is_billed = expected[nth : nth + 3]
            if is_billed in {1, 3}:
                meter, units = cast("bytes", name)[-4:].decode(), int(quantity)
                within = units if is_billed == 1 and asked.meters[meter][0] == "included" else 0
                begins, _ = self.shard.customers[NAME].begun
                noted = (f"{meter}m".encode(), within, 0, 0, units - within, 0, units)
                head = (NONCE.encode(), nth, NAME.encode(), self.wall, begins)
                late = told[2].split()[0].encode() if is_billed == 1 else b""
                entries.append([*head, late, b"", *noted])
        streams: list[list[Any]] = [row[4] for row in rows if row[0].decode() == names[-1]]
        stream = streams[0] if streams else []
        self._compare("the audit log", entries, [list(unpack_field(fields[1])) for _, fields in stream])
        self.wire(pack("DEL", names[-1]))
        self.shard.fresh.clear()
        _, found = self.ask("read_usage", own_keys(NAME, "cstgv"), self.wall)
        self.check(f"mark_late_usage audited {asked}", [8], [8], found)

    def _names(self) -> tuple[str, ...]:
        return (*own_keys(NAME, "cth"), "dirty", "intents", "outbox", "parked", "compare", "items")

    def _plant_sealed(self) -> None:
        random, customer = self.random, self.shard.customers[NAME]
        open_ms = START_MS if customer.period is None else customer.period[0]
        periods = (open_ms, open_ms, open_ms - 31 * DAY_MS)
        for nth in range(random.randrange(5)):
            meter = random.choice(METERS)
            period, value = random.choice(periods), random.choice((1, 7, 700)) * random.choice((1, 1, 1, -1))
            intent = self.new_intent(meter, period, value, open_ms + nth * MINUTE_MS)
            intent.state = random.choice(("queued", "queued", "parked"))
            self.plant_intent(f"intent-{nth}", intent)
            if intent.state == "parked":
                self.shard.compare[intent.key] = self.wall
        for meter in METERS:
            if random.random() < 0.3:
                field = f"{open_ms}|{meter_token(meter)}"
                customer.closed[f"{field}s"] = random.choice(("1/5 0 0;", "1/5 1 1;1/7 9 9;"))
                customer.closed[f"{field}{random.choice('qlkdxt')}"] = random.choice((0, 3, 800))
            self._plant_closed(meter_token(meter), open_ms)
        for intent in self.shard.intents.values():
            field = intent.field(intent.state)
            customer.closed[field] = max(customer.closed[field], 2_200)
        self.shard.ttls[f"t:{NAME}"] = DAY_MS
        self.shard.dirty.pop(NAME, None)
        self.store("intents", "outbox", "parked", "compare", f"s:{NAME}", f"t:{NAME}", "dirty", "unlinked")

    def _plant_closed(self, token: str, open_ms: int) -> None:
        """Closed periods that have units waiting, at one price or at several."""
        random, closed = self.random, self.shard.customers[NAME].closed
        for period in (open_ms - 31 * DAY_MS, open_ms - 62 * DAY_MS):
            if random.random() < 0.3:
                closed[f"{period}|{token}p"] = random.choice((1, 7, 700))
            if random.random() < 0.1:
                closed[f"{period}|{token}s"] = "1/5 0 3;"
            if random.random() < 0.3:
                closed[f"{period}|e"] = period + 31 * DAY_MS
        if random.random() < 0.2:
            closed[f"{open_ms}|{token}y"] = "1/5"

    def _asked(self) -> Strand:
        random = self.random
        known = {identifier: self.parse_sealed(identifier) for identifier in self.shard.intents}
        intents: list[tuple[str, str]] = []
        for identifier, read in {**known, "nobody": "{}"}.items():
            if random.random() < 0.8:
                intents.append((identifier, read + " " * (random.random() < 0.15)))
        back = [one for one in intents if one[0] in known and self.shard.intents[one[0]].value < 0]
        kinds = ("overage", "overage", "included", "")
        meters = {token: (random.choice(kinds), meter, " at $0.05") for token, meter in TOKENS.items()}
        tokens = list(meters)
        item = {"label": "1/5", "stripe": "cus_ada", "subscription": "sub_1", "till": "9"}
        return Strand(
            meters=meters,
            items={token: item for token in tokens if random.random() < 0.3},
            pending=[token for token in tokens if random.random() < 0.6],
            intents=[one for one in intents if one not in back],
            back=back or None,
            since={token: random.choice((1, 5, 800)) for token in tokens if random.random() < 0.4},
            labels=self._labels(),
            rev=random.choice(("", "2:8", "2:8")),
            changed=str(self.wall + MINUTE_MS),
            cause="portal",
        )

    def _strand_broken(self) -> None:
        """A count that is no number: nothing is done."""
        customer, field = self.shard.customers[NAME], f"{START_MS}|{meter_token('rows')}"
        field += self.random.choice("qlkdxtpaQLK")
        self.wire(pack("HSET", self._key(f"t:{NAME}"), field, self.random.choice(("x", "1.5", ""))))
        words = f"DAMAGED a customer cannot be read: no whole numbers in field {field}"
        asked = text_of(self._asked())
        reply, found = self.ask("mark_late_usage", self._names(), NAME, NONCE, asked, self.wall)
        self._compare("the refusal", words, str(reply))
        self.store(f"t:{NAME}")
        del found[f"t:{NAME}"]
        found |= {f"t:{NAME}": texts_of(customer.closed)} if customer.closed else {}
        self.check("mark_late_usage damaged", [9], [9], found)
