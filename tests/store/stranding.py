"""Lives in which others change prices at Stripe while usage is pending or sealed: that becomes late."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.decisions.keys import meter_token
from meterkit.decisions.packed import unpack_field
from meterkit.redis.connection import pack
from store.delivery_checks import own_keys, texts_of
from store.delivery_driver import NAME, Anew, text_of
from store.delivery_model import METERS, TOKENS, TOTALS_MS, mark_prices
from store.script_counts import DAY_MS, MINUTE_MS, MOST
from store.script_model import NEVER_MS
from store.script_plans import START_MS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from store.delivery_model import Intent, Shard
    from store.script_model import Customer

NONCE: Final = "0123456789abcdef" * 2
QUANTITIES: Final = (1, 7, 700, 4 * 10**15)
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
        """Plant usage that is pending and intents of it, then have prices end."""
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
        reply, found = self.ask("strand", self._names(), NAME, NONCE, text_of(asked), now)
        expected = strand(self.shard, asked, now)
        self.check(f"strand {asked}", expected, reply, found)
        self.seen["late"] += len(reply) > 2
        self.seen["late and billed"] += 1 in reply[4::3]
        self.seen["late and by item"] += 2 in reply[4::3]
        self.seen["a correction undone"] += 3 in reply[4::3]

    def _strand_audited(self, asked: Strand) -> None:
        """With an audit log, which has an entry of each meter that is recorded once more."""
        names = [self._key(name) for name in (*self._names(), "audit")]
        argv = (NAME, NONCE, text_of(asked), self.wall)
        reply, rows = self.wire(pack("EVALSHA", self.shas["strand", 0], len(names), *names, *argv))
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
        _, found = self.ask("usage", own_keys(NAME, "cstgv"), self.wall)
        self.check(f"strand audited {asked}", [8], [8], found)

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
        known = {identifier: self.read_intent(identifier) for identifier in self.shard.intents}
        intents = [
            (identifier, read + " " * (random.random() < 0.15))
            for identifier, read in {**known, "nobody": "{}"}.items()
            if random.random() < 0.8
        ]
        back = [one for one in intents if one[0] in known and self.shard.intents[one[0]].value < 0]
        kinds = ("overage", "overage", "included", "")
        meters = {token: (random.choice(kinds), meter, " at USD 0.05") for token, meter in TOKENS.items()}
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
        reply, found = self.ask("strand", self._names(), NAME, NONCE, asked, self.wall)
        self._compare("the refusal", words, str(reply))
        self.store(f"t:{NAME}")
        del found[f"t:{NAME}"]
        found |= {f"t:{NAME}": texts_of(customer.closed)} if customer.closed else {}
        self.check("strand damaged", [9], [9], found)
