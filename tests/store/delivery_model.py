"""What the scripts of delivery and administration must come to: one shard, in plain dictionaries."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from meterkit.decisions.keys import meter_token
from store.script_counts import DAY_MS, MINUTE_MS, MOST
from store.script_model import NEVER_MS, Answer, Customer, Times, Totals, View, stand

METERS: Final = ("requests", "tokens", "pages", "rows")
TOKENS: Final = {meter_token(meter): meter for meter in METERS}
BY_ITEM: Final = 2
FROM_NOW_ON: Final = 2
VALUE_MAX: Final = 10**15 - 1
AHEAD_MS: Final = 3 * MINUTE_MS
SKEW_MS: Final = 2_000
KEPT_MS: Final = 35 * DAY_MS
DELIVERED_MS: Final = 36 * DAY_MS
TOTALS_MS: Final = 400 * DAY_MS
BATCHES_MS: Final = 8 * DAY_MS
WRITER_MS: Final = 8 * DAY_MS
NOTICES_MS: Final = 7 * DAY_MS
LETTERS: Final = {"queued": "q", "leased": "l", "parked": "k", "delivered": "d", "dead": "x"}
STEERED: Final = {**LETTERS, "dropped": "z"}
Former = Sequence[tuple[int, Mapping[str, str]]]
INCLUDED: Final = "included"
MeterTerms = tuple[str, str, str, str, str, int, int]


@dataclass(slots=True)
class Intent:
    """One delivery; ``minute`` is its timestamp (ms), ``first`` its first attempt (ms), 0 for none."""

    customer: str
    stripe: str
    period: int
    token: str
    event: str
    value: int
    minute: int
    at: int = 0
    state: str = "queued"
    first: int = 0
    attempts: int = 0
    key: str = ""
    why: str = ""
    refused: int = 0

    def stored(self) -> dict[str, str]:
        names = ["state", "customer", "stripe", "period", "event", "value", "first", "attempts", "key", "at"]
        names += ["why"] * bool(self.why) + ["refused"] * bool(self.refused)
        stored = {name: str(getattr(self, name)) for name in names}
        return {**stored, "v": "1", "meter": self.token, "time": str(self.minute // 1000)}

    def field(self, state: str) -> str:
        """Where it is counted: apart where it takes units back."""
        letter = "p" if state == "pending" else STEERED[state]
        return f"{self.period}|{self.token}{letter if self.value >= 0 else letter.upper()}"

    def short(self) -> list[str]:
        return [self.customer, self.stripe, self.event, str(self.minute // 1000), str(self.value)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What a seal is asked with: event names by meter token, minutes taken, lives of counters (ms).

    ``cut``: until when usage is held back that comes after, and the labels of the prices that end.
    """

    stripe: str
    taken: tuple[int, ...]
    events: Mapping[str, str]
    outlive_ms: int
    live_ms: int
    invoices: Billing | None = None
    cut: tuple[int, Mapping[str, str]] | None = None
    is_moved: bool = False

    def has_lines(self, period: int) -> bool:
        return self.invoices is not None and self.invoices.has_lines(period)

    def events_at(self, ends_ms: int) -> Mapping[str, str]:
        """The event names of a period that ended then: its invoice has the items of that time."""
        former = () if self.invoices is None else self.invoices.former
        names = next((names for until_ms, names in former if ends_ms <= until_ms), dict[str, str]())
        return {token: names.get(token, event) for token, event in self.events.items()}


class Move(NamedTuple):
    """What a move is asked with, but for the lease and the states it may come from."""

    identifier: str
    state: str
    delay_ms: int
    key: str
    why: str
    untried: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Steer:
    """What is asked of one intent: how it was read, what it is to be, and when it is compared."""

    identifier: str
    read: str
    new_identifier: str
    intent: Intent
    compare_ms: int | None
    entries: list[list[str]]
    dropped: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Amend:
    """What an amendment is asked with: what was read, what is to be stored, entered and told."""

    read: str
    rev: str
    data: str
    read_force: str
    force: str
    turn_ms: int
    entries: list[list[str]]
    notices: list[list[str]]
    ended_ms: int
    labels: Mapping[str, str]
    prices: Mapping[str, str]
    is_free: bool
    switches: Sequence[int]
    period: tuple[int, int]


class Refuse(NamedTuple):
    """What Stripe has refused later: how it is called, whose it is, and what is to become of it."""

    identifier: str
    new_identifier: str
    state: str
    why: str
    tokens: str
    customer: str


class Queued:
    """What a seal has made of usage of closed periods, but events.

    Attributes:
        lines: how many it has queued.
        late: the part of the reply on late usage.
        waits: until when usage waits.
        nameless: the part of the reply on usage without terms.
        left: usage that waits: fields with their units.
    """

    def __init__(self, late: list[list[bytes | int]] | None = None) -> None:
        self.lines, self.late = 0, late or []
        self.waits, self.nameless, self.left = list[int](), list[tuple[bytes, bytes]](), dict[str, int]()


class Billing(Protocol):
    """How a seal has usage of closed periods billed, but by events."""

    @property
    def former(self) -> Former:
        """Event names that have ended: until when, by token; oldest first."""
        ...

    def bill(self, shard: Shard, name: str, view: View, events: Mapping[str, str], now: int) -> Queued:
        """Bill what is pending of closed periods; what waits is taken out of the totals."""
        ...

    def has_lines(self, period: int) -> bool:
        """Whether invoice lines bill a period: then it has no events."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoices:
    """The invoices that a seal goes by (ms), and each meter by token.

    Of a meter: class, name, price in words, label of the price, token of the meter that has it, whether one
    price of a unit says what it costs, whether units that are included, and cost nothing, are sent, too.
    ``item``: what invoice items have in common.
    """

    since: int
    before: int
    latest: int
    hour: int
    margin: int
    meters: Mapping[str, MeterTerms]
    item: Mapping[str, str] | None
    former: Former

    def takes(self, closed: Totals, period: str, now: int) -> bool:
        """Whether the invoice of a closed period still takes usage of now."""
        begins, ends = int(period), closed[f"{period}|e"]
        if f"{period}|f" in closed:
            return False
        if not self.since <= begins < self.latest:
            return True
        made = self.latest if begins >= self.before else ends
        return now < max(made + self.hour, int(closed[f"{period}|h"])) - self.margin

    def bill(self, shard: Shard, name: str, view: View, events: Mapping[str, str], now: int) -> Queued:
        return Queued(late=overtake(shard, name, view, events, self, now))

    def has_lines(self, period: int) -> bool:
        del period
        return False


class Shard:
    """Customers, what is to be delivered, and who may; ``ttls`` are the lives given to keys, by key.

    ``fresh`` are the keys whose life was given by the last step.
    """

    def __init__(self) -> None:
        self.customers: defaultdict[str, Customer] = defaultdict(Customer)
        self.members, self.fresh, self.ttls = set[str](), set[str](), dict[str, int]()
        self.dirty, self.unlinked, self.turns = dict[str, int](), dict[str, int](), dict[str, int]()
        self.outbox, self.parked, self.dead = dict[str, int](), dict[str, int](), dict[str, int]()
        self.compare, self.items = dict[str, int](), dict[str, int]()
        self.intents, self.delivered = dict[str, Intent](), dict[str, list[str]]()
        self.batches, self.strings, self.forces = dict[str, str](), dict[str, str](), dict[str, str]()
        self.grants, self.ledgers = dict[str, dict[str, str]](), dict[str, dict[str, str]]()
        self.corrections: dict[str, set[str]] = {}
        self.histories: defaultdict[str, list[list[str]]] = defaultdict(list)
        self.notices, self.audit = list[list[str]](), list[dict[str, Any]]()

    def keep(self, key: str, ttl_ms: int) -> None:
        self.ttls[key] = ttl_ms
        self.fresh.add(key)

    def roll(self, name: str, view: View, now: int) -> None:
        """Bring a customer's counters to now; what that closes is kept."""
        closed = dict(self.customers[name].closed)
        self.customers[name].roll(now, view)
        if closed != self.customers[name].closed:
            self.keep(f"t:{name}", TOTALS_MS)

    # Delivery.

    def queue_item(self, item: Mapping[str, Any], now: int) -> None:
        """Queue an invoice item, and count its units by state and by price."""
        customer, name = self.customers[item["customer"]], f"{item['period']}|{item['meter']}"
        self.items[item_text({**item, "v": "1", "at": str(now)})] = now
        customer.closed[f"{name}{'q' if 'by_line' in item else 'a'}"] += int(item["value"])
        for label, units in parts_of_item(item):
            count_units(customer, f"{name}{'h' if 'by_line' in item else 'n'}", label, units)

    def settle_item(self, item: Mapping[str, Any], letter: str, entry: list[str]) -> int:
        """Take an invoice item out of the queue, if it is there."""
        if self.items.pop(item_text(item), None) is None:
            return 0
        customer, name = self.customers[item["customer"]], f"{item['period']}|{item['meter']}"
        units, is_line = int(item["value"]), "by_line" in item
        customer.closed[f"{name}{'q' if is_line else 'a'}"] -= units
        customer.closed[f"{name}{letter}"] += units
        for label, part in parts_of_item(item):
            if letter == "t":
                count_units(customer, f"{name}{'h' if is_line else 'n'}", label, -part)
                self._lower_mark(customer, name, label, part)
            elif is_line and letter == "f":
                count_units(customer, f"{name}n", label, part)
        self.histories[item["customer"]] += [entry] if entry else []
        self.keep(f"t:{item['customer']}", TOTALS_MS)
        return 1

    @staticmethod
    def _lower_mark(customer: Customer, name: str, label: str, units: int) -> None:
        """Take units off the ended segments of a price; each counts those before it, too."""
        less, before, lines = 0, 0, list[str]()
        for known, sealed, overage in lines_of(customer.closed, f"{name}s"):
            less += min(units - less, int(overage) - before) if known == label else 0
            before = int(overage)
            lines.append(f"{known} {sealed} {before - less};")
        if lines:
            customer.closed[f"{name}s"] = "".join(lines)

    def seal(self, name: str, view: View, asked: Seal, times: Times) -> tuple[list[Any], list[Intent]]:
        """The reply, and the intents made, which have no identifiers yet."""
        customer = self.customers[name]
        now, ending = stand(customer, view, times)
        if ending:
            return ending, []
        if not asked.stripe:
            self.dirty.pop(name, None)
            return [0, now, 0, 0, []], []
        closed = dict(customer.closed)
        by_lines = bool(getattr(asked.invoices, "by_lines", False))
        customer.roll(now, view, is_moved=asked.is_moved or by_lines)
        has_closed = closed != customer.closed
        queued = Queued()
        if asked.invoices is not None:
            queued = asked.invoices.bill(self, name, view, asked.events, now)
        made, waits, nameless = _seal_closed(name, customer, asked, now)
        customer.closed.update(queued.left)
        period = view.period_at(now)[0] if customer.period is None else customer.period[0]
        more, longer, others = _seal_open(name, customer, asked, now)
        made, waits, nameless = made + more, queued.waits + waits + longer, queued.nameless + nameless
        for intent in made:
            intent.at = now
            _count(customer, intent, intent.value)
        if asked.cut is not None:
            customer.closed[f"{period}|w"], labels = asked.cut
            mark_prices(customer, period, labels, by_lines=asked.has_lines(period))
            self.keep(f"t:{name}", TOTALS_MS)
        if made or queued.late or has_closed:
            self.keep(f"t:{name}", TOTALS_MS)
        if waits:
            self.dirty[name] = min(waits)
        else:
            self.dirty.pop(name, None)
            if customer.period is not None:
                customer.lives = max(customer.period[1] + asked.outlive_ms, now + asked.live_ms)
        counts = len(made) + queued.lines, len(waits)
        return [0, now, *counts, queued.late, *sorted(nameless + others)], made

    def move(
        self, token: str, states: Sequence[str], moves: Sequence[Move], batches: Mapping[str, str], now: int
    ) -> list[Any]:
        if self.strings.get("lease") != token:
            return [2]
        self.batches |= batches
        if batches:
            self.keep("batches:1", BATCHES_MS)
        return [0, now, *(self._move(states, move, now) for move in moves)]

    def _move(self, states: Sequence[str], asked: Move, now: int) -> list[int]:
        identifier, intent = asked.identifier, self.intents.get(asked.identifier)
        if intent is None or intent.state not in states:
            return [1]
        customer = self.customers[intent.customer]
        _count(customer, intent, -intent.value)
        for place in (self.parked, self.dead, self.compare):
            place.pop(identifier, None)
        intent.first = tried = 0 if asked.untried else intent.first
        intent.state = asked.state
        _count(customer, intent, intent.value)
        self.keep(f"t:{intent.customer}", TOTALS_MS)
        intent.why = asked.why
        if asked.state == "leased":
            intent.attempts += 1
            intent.first = intent.first or now
        elif asked.state == "queued":
            self.outbox[identifier] = now + asked.delay_ms
            intent.key = asked.key or intent.key
        else:
            self.outbox.pop(identifier, None)
        if asked.state in {"parked", "dead"}:
            (self.parked if asked.state == "parked" else self.dead)[identifier] = now
        if asked.state == "parked" and asked.delay_ms:
            self.compare[identifier] = now + asked.delay_ms
        if asked.state == "delivered":
            self.delivered[identifier] = intent.short()
            self.keep("delivered:1", DELIVERED_MS)
            del self.intents[identifier]
        return [0, tried, intent.attempts]

    def enter(self, kind: str, what: str | Mapping[str, Any], now: int) -> None:
        """Enter something into the audit log; a correction has its time in what is said."""
        entry: dict[str, Any] = {"k": kind, "d": what}
        self.audit.append(entry if kind == "corrected" else {**entry, "at": str(now)})

    def change_state(self, asked: Steer, now: int, *, is_audited: bool) -> list[int]:
        known, intent = self.intents.get(asked.identifier), asked.intent
        if known is None or asked.read.endswith(" "):  # It was put there by whoever reads it wrong.
            return [1, now]
        if known.state != intent.state:
            customer = self.customers[intent.customer]
            for state, way in ((known.state, -1), (intent.state, 1)):
                customer.closed[known.field(state)] += way * abs(known.value)
            self.keep(f"t:{intent.customer}", TOTALS_MS)
            places = {"queued": self.outbox, "parked": self.parked, "dead": self.dead}
            places[known.state].pop(asked.identifier)
            if intent.state in places:
                places[intent.state][asked.new_identifier] = now
        del self.intents[asked.identifier]
        self.compare.pop(asked.identifier, None)
        if intent.state in {"delivered", "dropped"}:
            dropped = "dropped|" if intent.state == "dropped" else ""
            self.delivered[dropped + asked.new_identifier] = intent.short()
            self.keep("delivered:1", DELIVERED_MS)
        else:
            self.intents[asked.new_identifier] = intent
        if asked.compare_ms is not None:
            self.compare[asked.new_identifier] = now + asked.compare_ms
        self.histories[intent.customer] += asked.entries
        if is_audited and intent.state == "dropped":
            self.enter("dropped", asked.dropped, now)
        return [0, now]

    def withdraw(self, identifier: str, read: str, entries: list[list[str]], now: int) -> list[int]:
        intent = self.intents.get(identifier)
        if intent is None or read.endswith(" "):
            return [1, now]
        customer = self.customers[intent.customer]
        for state, way in ((intent.state, -1), ("pending", 1)):
            customer.closed[intent.field(state)] += way * intent.value
        customer.closed.setdefault(f"{intent.period}|e", intent.minute + MINUTE_MS)
        self.keep(f"t:{intent.customer}", TOTALS_MS)
        for place in (self.intents, self.outbox, self.parked, self.compare):
            place.pop(identifier, None)
        self.dirty[intent.customer] = now
        self.histories[intent.customer] += entries
        return [0, now]

    def refuse(self, asked: Refuse, now: int) -> int:
        customer = self.customers[asked.customer]
        intent = self.intents.get(asked.identifier) or self.find_delivered(asked, now)
        if intent is None or intent.customer != asked.customer or intent.state in {"parked", "dead"}:
            return 0
        if intent.state == "leased":
            return 2
        counted = customer.closed.get(intent.field("delivered"))
        if intent.state == "delivered" and counted is not None and counted < abs(intent.value):
            return 3
        _count(customer, intent, -intent.value)
        intent.state = asked.state
        _count(customer, intent, intent.value)
        self.keep(f"t:{asked.customer}", TOTALS_MS)
        intent.key, intent.why, intent.attempts = asked.new_identifier, asked.why, 0
        intent.refused, intent.first = now, intent.first or now
        for place in (self.intents, self.outbox, self.delivered):
            place.pop(asked.identifier, None)
        self.intents[asked.new_identifier] = intent
        (self.parked if asked.state == "parked" else self.dead)[asked.new_identifier] = now
        return 1

    def find_delivered(self, asked: Refuse, now: int) -> Intent | None:
        """Find the delivery that is refused: of the last period before its minute that has deliveries.

        Of the names that a meter has had it is the one that delivered most in that period.
        """
        if asked.identifier not in self.delivered:
            return None
        closed = self.customers[asked.customer].closed
        owner, stripe, event, time, value = self.delivered[asked.identifier]
        minute = int(time) * 1000
        kind = "D" if value.startswith("-") else "d"
        known = [
            (int(field[:-6]), units, -place, token)
            for place, token in enumerate(asked.tokens.split())
            for field, units in closed.items()
            if field.endswith(f"|{token}{kind}") and int(field[:-6]) <= minute
        ]
        if not known:
            return None
        period, _, _, token = max(known)
        return Intent(owner, stripe, period, token, event, int(value), minute, now, "delivered")

    def recall(self, name: str, rev: str, identifiers: Sequence[str], now: int) -> Answer:
        customer = self.customers[name]
        if not customer.data or customer.rev != rev:
            return [1]
        taken = 0
        for identifier in identifiers:
            intent = self.intents.get(identifier)
            if intent is None or intent.state != "queued" or intent.first or intent.customer != name:
                continue
            if intent.value < 0:  # It goes to whom it takes something from.
                continue
            _count(customer, intent, -intent.value)
            if customer.period is not None and customer.period[0] == intent.period:
                customer.pending[TOKENS[intent.token]] += intent.value
            else:
                customer.closed[intent.field("pending")] += intent.value
                customer.closed.setdefault(f"{intent.period}|e", intent.minute + MINUTE_MS)
            del self.intents[identifier]
            self.outbox.pop(identifier, None)
            taken += 1
        if taken:
            ends = customer.period[1] if customer.period is not None else 0
            expires_ms = max(ends, now) + KEPT_MS
            self.wait_for_link(name, expires_ms, now)
            if customer.period is not None:
                customer.lives = expires_ms
        return [0, taken]

    def count(self, places: Sequence[Mapping[str, int]], most: float) -> list[int]:
        counts = (sum(score <= most for score in place.values()) for place in places)
        return [number for nth, members in enumerate(counts, 1) if members for number in (nth, members)]

    def lease(self, token: str, ttl_ms: int) -> int:
        if self.strings.get("lease", token) != token:
            return 0
        self.strings.pop("lease", None)
        if ttl_ms:
            self.strings["lease"] = token
            self.keep("lease", ttl_ms)
        return 1

    # Administration.

    def _seal_sooner(self, name: str, switches: Sequence[int], at_ms: int) -> None:
        if switches and name in self.dirty:
            self.dirty[name] = min(self.dirty[name], at_ms)

    def amend(self, name: str, asked: Amend, now: int, *, linked: int, seal_at_ms: int) -> Answer:
        customer, rev = self.customers[name], asked.rev
        if customer.rev != asked.read or self.forces.get(name, "") != asked.read_force:
            return [1, customer.rev.encode(), customer.data.encode()]
        period = None if customer.period is None else customer.period[0]
        labels = drop_followed_prices(customer, period, asked)
        if period is not None and period == asked.ended_ms and labels:
            begin_prices(customer, period, labels)
            self.keep(f"t:{name}", TOTALS_MS)
        is_of_it = period is not None and period < asked.ended_ms
        if period is not None and is_of_it and customer.closed.get(f"{period}|w", 0) <= now:
            labels = free_prices(customer, period, labels) if asked.is_free else labels
            mark_prices(customer, period, labels, by_lines=is_by_lines(asked.switches, period))
            if labels:
                self.keep(f"t:{name}", TOTALS_MS)
        customer.rev, customer.data, self.forces[name] = rev, asked.data, asked.force
        self.turns.pop(name, None)
        if asked.turn_ms:
            self.turns[name] = asked.turn_ms
        self.histories[name] += asked.entries
        self.notices += [[kind, name, data] for kind, data in asked.notices]
        if asked.notices:
            self.keep("notices", NOTICES_MS)
        self.members.add(name)
        if customer.period is not None:
            customer.cached = rev
        self._seal_sooner(name, asked.switches, seal_at_ms)
        expired = self._expire(name, now) if linked == FROM_NOW_ON else []
        is_waiting = linked > 0 and self.unlinked.pop(name, None) is not None
        if is_waiting or (linked == 2 and customer.closed):
            self.dirty[name] = seal_at_ms
            if customer.period is not None:
                customer.lives = NEVER_MS
        elif not linked and self.dirty.pop(name, None) is not None and customer.period is not None:
            customer.lives = max(customer.period[1], seal_at_ms) + KEPT_MS
            self.wait_for_link(name, customer.lives, now)
        if customer.period is not None:
            (begins, ends), (start, end), at = customer.period, asked.period, max(now, customer.seen)
            if at < ends and at < end and start - begins < 2 * MINUTE_MS:
                customer.period = begins, end
                if name in self.unlinked:
                    self.unlinked[name] = max(self.unlinked[name], end + KEPT_MS)
        return [0, *expired]

    def _expire(self, name: str, now: int) -> list[bytes]:
        """Make usage late that has waited for a link for more than 35 days after its period."""
        closed, expired = self.customers[name].closed, list[str]()
        for field in sorted(field for field, count in closed.items() if field[-1] == "p" and count):
            period, token = field[:-6], field[-5:-1]
            if f"{period}|e" in closed and closed[f"{period}|e"] + KEPT_MS <= now:
                units = closed.pop(field)
                closed[f"{period}|{token}t"] += units
                expired.append(f"{period} {units} of {TOKENS[token]}")
                after = "not billed: no link came within 35 days of its period"
                self.histories[name].append(["late", str(now), expired[-1], after, "clock"])
        return [text.encode() for text in expired]

    def wait_for_link(self, name: str, expires_ms: int, now: int) -> None:
        waiting = {known: until for known, until in self.unlinked.items() if until > now}
        self.unlinked = waiting | {name: max(waiting.get(name, 0), expires_ms)}

    def forget(self, name: str, read: str, now: int, *, is_audited: bool) -> list[Any]:
        customer = self.customers[name]
        if customer.rev != read:
            return [1]
        states = {field[-1] for field, count in customer.closed.items() if count}
        if name in self.dirty or states & set("qlQL"):
            return [2]
        if states & set("kxKX"):
            return [3]
        grants, ledger = self.grants.get(name, {}), self.ledgers.get(name, {})
        # Of the counters' fields it is only known whether there are any.
        counted = [int(bool(customer.fields())), int(bool(customer.data)), len(customer.closed)]
        counted += [len(grants), len(ledger), 1, 0, len(self.histories[name])]
        digests = sorted(digest.encode() for digest in self.corrections.get(name, ()))
        # Histories and corrections are erased last, by the caller.
        for kept in (self.customers, self.grants, self.ledgers, self.forces, self.turns):
            kept.pop(name, None)
        self.members.discard(name)
        self.unlinked.pop(name, None)
        if is_audited:
            for day, units in ((7, 3), (8, 5)):
                self.audit.append(
                    {"k": "summed", "d": f"{day}|abcd1|{name}", "q": f"{units}", "at": str(now)}
                )
            self.enter("deleted", name, now)
        return [0, *counted, digests]

    def claim(self, link: str, read: str, owner: str) -> int:
        if self.strings.get(link, "") != read:
            return 0
        self.strings.pop(link, None)
        if owner:
            self.strings[link] = owner
        return 1

    def fence(self, writer: str) -> int:
        last = int(self.strings.get(writer, "-1").removeprefix("c"))
        self.strings[writer] = f"c{last}"
        self.keep(writer, WRITER_MS)
        return last

    def expire(self, name: str) -> None:
        """The counters are gone; what was set up for the customer and what was closed is not."""
        gone = self.customers[name]
        self.customers[name] = Customer(rev=gone.rev, data=gone.data, closed=gone.closed)


def _count(customer: Customer, intent: Intent, quantity: int) -> None:
    customer.closed[intent.field(intent.state)] += quantity if intent.value >= 0 else -quantity


def _sharing(events: Mapping[str, str], token: str) -> list[str]:
    """The meters of an event name, which share its minutes."""
    return [other for other, event in events.items() if event == events.get(token)]


def _stamped(customer: Customer, events: Mapping[str, str], token: str) -> int:
    """The last minute that a meter of an event name was stamped with."""
    sharing = _sharing(events, token)
    return max(customer.stamps[other] for other in METERS if meter_token(other) in sharing)


def free_minute(
    customer: Customer,
    events: Mapping[str, str],
    taken: Sequence[int],
    token: str,
    now: int,
    from_ms: int = 0,
) -> tuple[int, int]:
    """The first minute that an intent of this period may have, and the last that one can."""
    begins, ends = customer.begun
    stamped = _stamped(customer, events, token)
    first = -(-max(begins, from_ms) // MINUTE_MS) * MINUTE_MS
    minute = max(first, (now - SKEW_MS) // MINUTE_MS * MINUTE_MS, stamped + MINUTE_MS)
    while minute in taken:
        minute += MINUTE_MS
    return minute, (ends // MINUTE_MS - 1 - len(_sharing(events, token))) * MINUTE_MS


def free_prices(customer: Customer, period: int, labels: Mapping[str, str]) -> dict[str, str]:
    """Forget the prices of some meters, of a period that costs nothing; return the one that they have now."""
    begin_prices(customer, period, labels)
    for token in labels:
        customer.closed.pop(f"{period}|{token}s", None)
    return dict.fromkeys(labels, "1/0")


def mark_prices(
    customer: Customer,
    period: int,
    labels: Mapping[str, str],
    overages: Mapping[str, int] | None = None,
    since: Mapping[str, int] | None = None,
    *,
    by_lines: bool = False,
) -> None:
    """End a price segment of each of these meters, which had recorded ``overages`` by then (default: all).

    ``labels`` are of the prices that end, by token; ``since`` has by meter what was sealed after that. What
    waits for lines counts as sealed.
    """
    begin_prices(customer, period, labels)
    for meter in METERS:
        token = meter_token(meter)
        if token not in labels:
            continue
        field = f"{period}|{token}"
        sealed = sum(customer.closed[f"{field}{state}"] for state in "qlkdx")
        sealed = max(0, sealed + by_lines * customer.pending[meter] - (since or {}).get(meter, 0))
        overage = (customer.overage if overages is None else overages)[meter]
        lines = lines_of(customer.closed, f"{field}s")
        if not sealed + overage and not lines:
            continue
        if lines and lines[-1][0] == labels[token]:
            del lines[-1]
        lines.append([labels[token], str(sealed), str(overage)])
        customer.closed[f"{field}s"] = "".join(f"{' '.join(line)};" for line in lines)


def is_by_lines(switches: Sequence[int], period: int) -> bool:
    """Whether lines bill a period, which they and metered prices do in turn from some instants on."""
    return sum(at_ms <= period for at_ms in switches) % 2 == 1


def drop_followed_prices(customer: Customer, period: int | None, asked: Amend) -> dict[str, str]:
    """The prices that end: of the latest units where these are known, otherwise as it is asked."""
    labels = dict(asked.labels)
    is_of_it = period is not None and period <= asked.ended_ms
    for token, label in asked.prices.items() if is_of_it else ():
        counted = customer.closed.get(f"{period}|{token}Y")
        if counted:
            labels.pop(token, None)
        if counted and counted != label:
            del customer.closed[f"{period}|{token}Y"]
            labels |= {token: str(counted)} if label else {}
    return labels


def begin_prices(customer: Customer, period: int, labels: Mapping[str, str]) -> None:
    """Keep the prices that a period began with, where they end."""
    for token, label in labels.items():
        customer.closed.setdefault(f"{period}|{token}y", label)


def lines_of(closed: Mapping[str, Any], field: str) -> list[list[str]]:
    """The words of each line of a field that has lines."""
    return [line.split() for line in closed.get(field, "").split(";")[:-1]]


def _seal_closed(
    name: str, customer: Customer, asked: Seal, now: int
) -> tuple[list[Intent], list[int], list[tuple[bytes, bytes]]]:
    """Of each meter and period that is over all that is pending; where not yet, until when that waits."""
    made, waits, nameless = list[Intent](), list[int](), list[tuple[bytes, bytes]]()
    for field, pending in list(customer.closed.items()):
        period, token, kind = field.partition("|")[0], field[-5:-1], field[-1]
        if kind != "p" or not pending:
            continue
        ends_ms = customer.closed[f"{period}|e"]
        events = asked.events_at(ends_ms)
        before = sum(other < token for other in _sharing(events, token))
        minute = (ends_ms // MINUTE_MS - 1 - before) * MINUTE_MS
        while minute in asked.taken:
            minute -= MINUTE_MS
        if token not in events:
            waits.append(now + MINUTE_MS)
            nameless.append((token.encode(), b"%d" % pending))
        elif minute > now + AHEAD_MS:
            waits.append(minute - AHEAD_MS)
        else:
            for done in range(0, pending, VALUE_MAX):
                event, value = events[token], min(pending - done, VALUE_MAX)
                made.append(Intent(name, asked.stripe, int(period), token, event, value, minute))
            del customer.closed[field]
    return made, waits, nameless


def _before(customer: Customer, asked: Seal, token: str, minute: int, from_ms: int) -> int | None:
    """The minute before one, where an intent may have it, too."""
    before, stamped = minute - MINUTE_MS, _stamped(customer, asked.events, token)
    is_free = before >= max(customer.begun[0], from_ms) and before > stamped and before not in asked.taken
    return before if is_free else None


def _seal_open(
    name: str, customer: Customer, asked: Seal, now: int
) -> tuple[list[Intent], list[int], list[tuple[bytes, bytes]]]:
    """Of each meter one intent of this period, where a minute is free; until when what is left waits."""
    made, waits, nameless = list[Intent](), list[int](), list[tuple[bytes, bytes]]()
    if customer.period is None:  # Nothing is kept of an open one.
        return made, waits, nameless
    begins, ends = customer.period
    has_lines = asked.has_lines(begins)
    for meter in sorted(customer.pending, key=meter_token):
        token, pending = meter_token(meter), customer.pending[meter]
        if pending and has_lines:
            waits.append(ends)
        elif pending and token not in asked.events:
            waits.append(now + MINUTE_MS)
            nameless.append((token.encode(), b"%d" % pending))
        elif pending:
            held, changed = (customer.closed[f"{begins}|{kind}"] for kind in "wy")
            if held > now and asked.cut is None:
                waits.append(held)
                continue
            from_ms = max(held, changed)
            minute, last = free_minute(customer, asked.events, asked.taken, token, now, from_ms)
            vacant, field = _before(customer, asked, token, minute, from_ms), f"{begins}|{token}v"
            if asked.cut is not None and minute > now - SKEW_MS:
                if vacant is not None:
                    minute, vacant = vacant, None
                elif customer.closed[field] >= max(begins, from_ms):
                    minute = customer.closed.pop(field)
            is_full = minute > last
            if not is_full and minute <= now + AHEAD_MS:
                event, value = asked.events[token], min(pending, VALUE_MAX)
                made.append(Intent(name, asked.stripe, begins, token, event, value, minute))
                customer.pending[meter] = pending - value
                customer.stamps[meter] = max(customer.stamps[meter], minute)
                if vacant is not None:
                    customer.closed[field] = vacant
            if customer.pending[meter]:
                waits.append(ends if is_full else max(now + 1000, minute - AHEAD_MS))
    return made, waits, nameless


def overtake(
    shard: Shard, name: str, view: View, events: Mapping[str, str], asked: Invoices, now: int
) -> list[list[bytes | int]]:
    """Count what is late, in the order of the fields; the part of the reply that tells of it."""
    customer, told_of = shard.customers[name], list[list[bytes | int]]()
    for field in sorted(customer.closed):
        period, token = field.partition("|")[0], field[-5:-1]
        quantity = customer.closed[field] if field[-1] == "p" else 0
        if not quantity or token not in events or asked.takes(customer.closed, period, now):
            continue
        told = asked.meters.get(token, ("", events[token], "", "-", token, 0, 0))
        parts = parts_of(
            customer.closed, period, token, quantity, told[3], told[4], has_included=told[6] == 1
        )
        for part in parts:
            told_of.append(_bill(shard, name, view, asked, (period, token, told), part, events, now))
        del customer.closed[field]
    return told_of


def _bill(
    shard: Shard,
    name: str,
    view: View,
    asked: Invoices,
    of: tuple[str, str, MeterTerms],
    part: tuple[str, int],
    events: Mapping[str, str],
    now: int,
) -> list[bytes | int]:
    """Count what is late at one price; the part of the reply that tells of it."""
    customer, (period, token, told), (label, quantity) = shard.customers[name], of, part
    counts = {"included": customer.included, "overage": customer.overage}
    kind, known, price, open_label, _, is_flat, _ = told
    meter, outcome = TOKENS[token], 0
    most = max(customer.marked[meter], customer.pending[meter], counts[kind][meter] if kind else 0)
    if label == open_label and kind and most + quantity <= MOST:
        outcome = 1
        if customer.period is None:
            customer.begin(now, view)
            customer.seen, customer.lives, customer.cached = now, NEVER_MS, view.rev
        for count in (counts[kind], customer.marked, customer.pending):
            count[meter] += quantity
    elif is_flat and asked.item is not None and label[0].isdigit():
        outcome, price = 2, ""
        own = {"customer": name, "period": period, "meter": token, "name": known, "event": events[token]}
        own |= {"label": label, "value": str(quantity), "till": str(customer.closed[f"{period}|e"])}
        shard.queue_item({**own, **asked.item}, now)
    if outcome != BY_ITEM:
        customer.closed[f"{period}|{token}t"] += quantity
    price = " included" if label == INCLUDED else price
    after = ("not billed", "billed in the period that is open", "billed by an invoice item")[outcome]
    shard.histories[name].append(["late", str(now), f"{period} {quantity} of {known}{price}", after, "clock"])
    return [period.encode(), token.encode(), b"%d" % quantity, outcome]


def parts_of(
    closed: Totals,
    period: str,
    token: str,
    quantity: int,
    label: str,
    priced: str,
    *,
    by_lines: bool = False,
    has_included: bool = False,
) -> list[tuple[str, int]]:
    """The prices of pending units of a closed period, the youngest units first.

    With lines the units are those that go to Stripe, not overage: a meter's parts have events of their own.
    """
    begun = {
        int(name[:-6]): text
        for of in (token, priced)
        for name, text in closed.items()
        if name.endswith(f"|{of}y")
    }
    later = [begins for begins in begun if begins > int(period)]
    label = begun[min(later)] if later else label
    label = str(closed.get(f"{period}|{priced}Y", label))
    marks = lines_of(closed, f"{period}|{priced}s")
    if priced != token and (marks or f"{period}|{token}s" in closed):
        return [("?", quantity)]
    parts, recorded = list[tuple[str, int]](), closed[f"{period}|{token}o"]
    if by_lines:
        recorded = quantity + sum(closed[f"{period}|{token}{letter}"] for letter in "qlkdxft")
    within = max(0, quantity - recorded) if has_included else 0
    quantity -= within
    for ended, sealed, overage in reversed(marks):
        before = int(sealed if by_lines else overage)
        units = min(quantity, max(0, recorded - before))
        parts += [(label.removesuffix("*"), units)] * bool(units)
        quantity, recorded, label = quantity - units, min(recorded, before), ended
    parts += [(label.removesuffix("*"), quantity)] * bool(quantity)
    return parts + [(INCLUDED, within)] * bool(within)


def item_text(item: Mapping[str, str]) -> str:
    """An invoice item as the model has it, without the name that the script gives it."""
    return json.dumps({name: text for name, text in item.items() if name != "id"}, sort_keys=True)


def parts_of_item(item: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The prices that an invoice item sums, each with its units."""
    parts = item.get("parts", [[item["label"], item["value"]]])
    return [(label, int(units)) for label, units in parts]


def count_units(customer: Customer, field: str, label: str, units: int) -> None:
    """Count units at a price; a price that has none is not kept."""
    known = {other: int(counted) for other, counted in lines_of(customer.closed, field)}
    total = known.pop(label, 0) + units
    known |= {label: total} if total > 0 else {}
    customer.closed[field] = "".join(f"{other} {counted};" for other, counted in known.items())
