"""What rebuilding counters must come to, said once more in Python, and a driver that compares the two."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from drivers.counters import pack_field
from meterkit.decisions.keys import FORMAT, meter_token
from meterkit.decisions.periods import bounds_at
from meterkit.insights.audit.entries import CLASSES, parse_rows
from meterkit.redis.connection import pack, pack_numbers
from store.delivery_checks import Checks, texts_of
from store.delivery_model import METERS, SKEW_MS, TOTALS_MS, VALUE_MAX, Intent, Shard
from store.script_counts import DAY_MS, MINUTE_MS, SLOT_MS
from store.script_model import NEVER_MS, Customer, Times, View, stand
from store.script_plans import START_MS
from store.script_wires import Wire
from store.script_world import ScriptWorld

NAME: Final = "ada"
RECORDED: Final = ("included", "granted", "credited", "overage", "over_cap")
RAISED: Final = (*RECORDED, "marked")
ALL: Final = "pqlkdxz"
BACK: Final = "QLKDXZ"
ANCHORS: Final = (None, START_MS - 20 * DAY_MS + 30_000)
EVENTS: Final = ("one", "two", "three")
BIG: Final = (1, 40, 700, VALUE_MAX, 2 * 10**15)
KEYS: Final = ("c:ada", "s:ada", "t:ada", "intents", "parked", "compare", "audit", "h:ada", "dirty")


@dataclass(slots=True)
class Parked(Intent):
    """An intent that stands for usage of many minutes."""

    since: int = 0
    till: int = 0
    base: int = 0
    together: int = 0
    more: Mapping[str, str] = field(default_factory=dict[str, str])

    def stored(self) -> dict[str, str]:
        names = ("since", "till", "base", "together")
        return {**Intent.stored(self), **self.more, **{name: str(getattr(self, name)) for name in names}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the log has: meter to units of each class, and those that go to Stripe.

    ``unsent``: meter to how many of these are recorded again, on invoice items, and dropped;
    ``prices``: meter to ended price segments; ``missed``: meter to units parked first, with more fields;
    ``events``: meter to event name, of all that are known; ``counted``: event name to what Stripe has of it.
    """

    dry: bool
    period: int
    stripe: str
    identifier: str
    minutes: list[int]
    units: Mapping[str, list[int]]
    unsent: Mapping[str, list[int]]
    prices: Mapping[str, str]
    missed: Mapping[str, list[tuple[int, Mapping[str, str]]]]
    events: Mapping[str, str]
    counted: Mapping[str, int]
    by_lines: bool

    def text(self) -> str:
        meters = {
            meter_token(meter): {
                "name": meter,
                "units": units,
                "unsent": self.unsent[meter],
                "prices": self.prices[meter],
                "missed": self.missed[meter],
            }
            for meter, units in self.units.items()
        }
        told = {"dry": int(self.dry), "period": self.period, "stripe": self.stripe, "by": "ada"}
        told |= {"events": {meter_token(meter): event for meter, event in self.events.items()}}
        told |= {"counted": dict(self.counted), "by_lines": self.by_lines}
        return json.dumps({**told, "id": self.identifier, "minutes": self.minutes, "meters": meters})


class Rebuilt:
    """One rebuild; ``lives``: how long counters live, behind their period, and at least (ms)."""

    def __init__(self, shard: Shard, view: View, wanted: Wanted, lives: tuple[int, int], now: int) -> None:
        self.shard, self.view, self.wanted, self.lives, self.now = shard, view, wanted, lives, now
        self.customer: Customer = shard.customers[NAME]
        self.done, self.made, self.entries = dict[str, str](), list[Parked](), list[list[str]]()
        self.start, self.finish = self.customer.period_at(view, now)
        self.begins = self.customer.period[0] if self.customer.period else self.start
        self.raised: dict[str, tuple[list[int], int]] = {}
        self.pending: dict[str, int] = {}
        self._settled: list[tuple[str, int]] = []
        self.has_forgotten = False
        known = {event: sum(map(self._sealed, self._sharing(event))) for event in wanted.events.values()}
        # By event name: what Stripe has that was not sealed by the books, and all else that it may have.
        self._there = {event: max(0, wanted.counted.get(event, 0) - units) for event, units in known.items()}
        self._base = {event: units + self._there[event] for event, units in known.items()}

    def total(self, meter: str, letters: str) -> int:
        return sum(self.customer.closed[f"{self.begins}|{meter_token(meter)}{letter}"] for letter in letters)

    def _sharing(self, event: str) -> list[str]:
        return [meter for meter, name in self.wanted.events.items() if name == event]

    def _sealed(self, meter: str) -> int:
        return self.total(meter, "qlkd") - self.total(meter, "QLKD")

    def reply(self) -> list[Any]:
        """The reply, but for its last where that is JSON; the model is changed as the store must be."""
        if abs(self.begins - self.wanted.period) >= 2 * MINUTE_MS:
            return [5, self.now, str(self.begins).encode()]
        for meter in sorted(self.wanted.units, key=meter_token):
            if not self._of(meter):
                return [6, self.now]
        if self.raised and not self.wanted.dry:
            self._write()
        return [0, self.now]

    def _of(self, meter: str) -> bool:
        """What is missing of a meter; whether what is to be parked has a minute."""
        customer, wanted = self.customer, self.wanted
        units = wanted.units[meter]
        recorded = [getattr(customer, kind)[meter] for kind in RAISED]
        lacks = [max(0, asked - known) for asked, known in zip(units, recorded, strict=False)]
        known = customer.pending[meter] + self.total(meter, ALL + "taf") - self.total(meter, BACK)
        sent, forgotten = self._forgotten(meter, max(0, units[6] - known))
        event = wanted.events.get(meter, "")
        is_left = sent > 0 and not (wanted.stripe and event)
        if not is_left:
            field, self.has_forgotten = f"{self.begins}|{meter_token(meter)}", bool(forgotten)
            self._settled += [(f"{field}{letter}", more) for letter, more in forgotten]
        if wanted.by_lines and sent and not is_left:
            return self._make_pending(meter, lacks, sent)
        delivered = 0 if is_left else min(sent, self._there.get(event, 0))
        self._there[event] = self._there.get(event, 0) - delivered
        parked = 0 if is_left else min(sent - delivered, VALUE_MAX)
        if sum(lacks) + sent + sum(more for _, more in forgotten) == 0:
            return True
        left = max(sum(lacks), sent) if is_left else 0
        self.done[meter_token(meter)] = " ".join(map(str, (*lacks, delivered, parked, left)))
        if is_left:
            return True
        self.raised[meter] = lacks, 0
        has_minutes = self._park_parts(meter, parked)
        words = f"{sum(lacks[: len(RECORDED)])} of {meter}: {delivered} delivered, {parked} parked"
        self.entries.append(["rebuilt", str(self.now), "", words, "ada"])
        if delivered:
            self._settled.append((f"{self.begins}|{meter_token(meter)}d", delivered))
        return has_minutes

    def _park_parts(self, meter: str, parked: int) -> bool:
        """Park units, those of ended prices first; whether all of them have a minute."""
        lacks, last, event = self.raised[meter][0], 0, self.wanted.events.get(meter, "")
        for most, more in (*self.wanted.missed[meter], (parked, dict[str, str]())):
            if value := min(parked, most):
                minute, last = self._minute(event)
                self.raised[meter] = lacks, minute
                self._park(meter, value, minute, more)
                parked -= value
        return self.raised[meter][1] <= last

    def _forgotten(self, meter: str, sent: int) -> tuple[int, list[tuple[str, int]]]:
        """Units that go to Stripe, and by letter those of them that no event bills and the store forgot."""
        found: list[tuple[str, int]] = []
        for asked, letter, kept, back in zip(
            self.wanted.unsent[meter], "tfz", ("t", "af", "z"), ("", "", "Z"), strict=True
        ):
            more = min(sent, max(0, asked - self.total(meter, kept) + self.total(meter, back)))
            found.append((letter, more))
            sent -= more
        return sent, [one for one in found if one[1]]

    def _make_pending(self, meter: str, lacks: list[int], sent: int) -> bool:
        self.done[meter_token(meter)] = " ".join(map(str, (*lacks, 0, 0, 0)))
        self.raised[meter], self.pending[meter] = (lacks, 0), sent
        words = f"{sum(lacks[: len(RECORDED)])} of {meter}: {sent} pending"
        self.entries.append(["rebuilt", str(self.now), "", words, "ada"])
        return True

    def _minute(self, event: str) -> tuple[int, int]:
        """The minute that what is parked next has, and the last one that the period has for it."""
        sharing = self._sharing(event)
        stamps = [self.customer.stamps[meter] for meter in sharing]
        stamps += [minute for meter, (_, minute) in self.raised.items() if meter in sharing]
        first = -(-self.begins // MINUTE_MS) * MINUTE_MS
        ahead = ((self.now - SKEW_MS) // MINUTE_MS + 4) * MINUTE_MS
        minute = max(first, ahead, max(stamps, default=0) + MINUTE_MS)
        while minute in self.wanted.minutes:
            minute += MINUTE_MS
        return minute, (self.finish // MINUTE_MS - 1 - len(sharing)) * MINUTE_MS

    def _park(self, meter: str, value: int, minute: int, more: Mapping[str, str]) -> None:
        event = self.wanted.events[meter]
        known = (NAME, self.wanted.stripe, self.begins, meter_token(meter), event, value, minute, self.now)
        parked = Parked(*known, state="parked", first=self.now - DAY_MS, attempts=1, base=self._base[event])
        parked.why = "rebuilt from the audit log: Stripe may have it"
        parked.since = -(-self.begins // MINUTE_MS) * 60
        parked.more = more
        parked.key = f"{self.wanted.identifier}-{len(self.made) + 1}"
        self.made.append(parked)
        together = [intent for intent in self.made if intent.event == event]
        for intent in together:
            intent.till = together[0].minute // 1000
            intent.together = sum(one.value for one in together)

    def _write(self) -> None:
        customer, shard, now = self.customer, self.shard, self.now
        for meter, (lacks, minute) in self.raised.items():
            for kind, more in zip(RAISED, lacks, strict=True):
                getattr(customer, kind)[meter] += more
            if minute:
                customer.stamps[meter] = minute
        for meter, more in self.pending.items():
            customer.pending[meter] += more
            shard.dirty[NAME] = now
        for meter in self.raised:
            if self.wanted.prices[meter]:
                customer.closed.setdefault(f"{self.begins}|{meter_token(meter)}s", self.wanted.prices[meter])
        for name, more in self._settled:
            customer.closed[name] += more
        for intent in self.made:
            customer.closed[intent.field("parked")] += intent.value
            shard.intents[intent.key], shard.parked[intent.key] = intent, now
            shard.compare[intent.key] = now + 120 * MINUTE_MS
        if customer.closed:
            shard.keep(f"t:{NAME}", TOTALS_MS)
        shard.histories[NAME] += self.entries
        before = customer.lives if customer.period else 0
        customer.lives = max(before, self.finish + self.lives[0], now + self.lives[1])
        customer.seen, customer.period, customer.cached = now, (self.begins, self.finish), self.view.rev


class Rebuilding(Checks):
    """A customer of whom the store has less than the log, anew in each step."""

    names = (*Checks.names, "rebuild_counters")

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random, *, slack_ms: int = 0) -> None:
        super().__init__(wire, texts, slack_ms=slack_ms)
        self.random = random

    def step(self) -> None:
        self.empty()
        random = self.random
        anchor = random.choice(ANCHORS)
        bounds = bounds_at(START_MS + random.randrange(40 * DAY_MS), anchor_ms=anchor)
        near_end = bounds.end_ms - random.randrange(9 * MINUTE_MS)
        now = random.choice((near_end, bounds.start_ms + random.randrange(DAY_MS), bounds.start_ms))
        customer = self._plant(bounds.start_ms, bounds.end_ms, now, anchor)
        now = max(now, customer.seen)
        rev = random.choice((*[customer.rev] * 19, f"{FORMAT}:other"))
        period = bounds.start_ms, bounds.end_ms
        view = View(rev=rev, valid_until_ms=NEVER_MS, period=period, next_end_ms=bounds.next_end_ms)
        wanted = self._wanted(customer, view, now)
        lives = random.choice((900_000, 40 * DAY_MS)), random.choice((900_000, 90 * DAY_MS))
        self._rebuild(view, wanted, lives, now)

    def _plant(self, start: int, end: int, now: int, anchor: int | None) -> Customer:
        random, customer = self.random, self.shard.customers[NAME]
        customer.rev, customer.data = f"{FORMAT}:7", "{}"
        before = bounds_at(start - 1, anchor_ms=anchor)
        periods = [(start, end)] * 5 + [(before.start_ms, before.end_ms)] * 3
        customer.period = random.choice((*periods, (start - 90_000, end), None))
        if customer.period is not None:
            customer.seen = now - random.choice((0, 1, SLOT_MS))
            customer.lives = random.choice((now + DAY_MS, now + 120 * DAY_MS, NEVER_MS))
            customer.cached = random.choice((customer.rev, None))
            for meter in random.sample(METERS, 2):
                for kind in (*RECORDED, "pending"):
                    getattr(customer, kind)[meter] = random.choice((0, 0, *BIG[:3]))
                customer.marked[meter] = random.choice((0, 0, 1))
                stamp = random.choice((0, now // MINUTE_MS + random.randrange(-2, 9)))
                customer.stamps[meter] = stamp * MINUTE_MS
                customer.holds[meter].take(customer.seen, random.choice((0, 3)))
        begins = start if customer.period is None else customer.period[0]
        for meter in METERS:
            if random.random() < 0.2:
                customer.closed[f"{begins}|{meter_token(meter)}s"] = "1/2 3 3;"
            for letter in random.sample(ALL + BACK + "rutaf", random.choice((0, 0, 2, 5))):
                period = random.choice((*[begins] * 5, begins - 31 * DAY_MS))
                customer.closed[f"{period}|{meter_token(meter)}{letter}"] = random.choice((0, 1, 7, 40))
        for ended_ms in random.sample(range(5), random.choice((0, 0, 1, 3))):
            self._plant_old(customer, now - 400 * DAY_MS + ended_ms - 3)
        if customer.closed:
            self.shard.ttls[f"t:{NAME}"] = DAY_MS
        self.store(*KEYS[:3])
        return customer

    def _plant_old(self, customer: Customer, ended_ms: int) -> None:
        """What is known of a period that ended about as long ago as periods are known."""
        random = self.random
        begun_ms = ended_ms - random.choice((0, 31 * DAY_MS))
        if begun_ms < ended_ms:
            customer.closed[f"{begun_ms}|e"] = ended_ms
        for letter in random.sample(ALL + BACK + "aiou", random.choice((1, 2, 4))):
            customer.closed[f"{begun_ms}|{meter_token('rows')}{letter}"] = random.choice((0, 0, 5))

    def _wanted(self, customer: Customer, view: View, now: int) -> Wanted:
        random = self.random
        meters = random.sample(METERS, random.choice((1, 1, 2, 3)))
        is_closed = customer.period is not None and customer.period[1] != customer.period_at(view, now)[1]
        begins = customer.period[0] if customer.period and not is_closed else view.period_at(now)[0]
        shift = random.choice((*[0] * 9, 119_999, -119_999, 120_000, -120_000))
        this = now // MINUTE_MS * MINUTE_MS
        units: dict[str, list[int]] = {}
        for meter in meters:
            counts = [0 if is_closed else getattr(customer, kind)[meter] for kind in RAISED]
            more = [max(0, count + random.choice((-1, 0, 0, *BIG[:3]))) for count in counts]
            asked = [*more, random.choice((0, 1, 1, 7, 40, 100, *BIG))]
            units[meter] = random.choice((asked, asked, asked, [0] * 7))  # Or the store has all of it.
        return Wanted(
            dry=random.random() < 0.2,
            period=begins + shift,
            stripe=random.choice(("", *["cus_1"] * 5)),
            identifier=f"{random.getrandbits(128):032x}",
            minutes=random.sample([this + nth * MINUTE_MS for nth in range(9)], random.choice((0, 2, 5))),
            units=units,
            unsent={meter: [random.choice((0, 0, 0, 0, 1, 7, 60)) for _ in range(3)] for meter in meters},
            prices={meter: random.choice(("", "1/4 26 26;")) for meter in meters},
            missed={
                meter: [(random.choice((1, 5)), {"missed": " at 2"})] * random.choice((0, 0, 1, 2))
                for meter in meters
            },
            events={meter: random.choice(EVENTS) for meter in METERS if random.random() < 0.9},
            counted={event: random.choice((0, 3, 41, 900, *BIG)) for event in random.sample(EVENTS, 2)},
            by_lines=random.random() < 0.2,
        )

    def _rebuild(self, view: View, wanted: Wanted, lives: tuple[int, int], now: int) -> None:
        shard, customer = self.shard, self.shard.customers[NAME]
        terms = [view.valid_until_ms, *view.period, view.next_end_ms, *lives]
        waits = self.random.random() < 0.05
        if waits:
            self.wire(pack("XADD", self._key("audit"), "*", "k", "x"))
        argv = (view.rev, pack_numbers(terms), NAME, wanted.text())
        reply, found = self.ask("rebuild_counters", KEYS, *argv, now)
        if waits:
            found.pop("audit")
            self.wire(pack("DEL", self._key("audit")))
        at, ending = stand(customer, view, Times(wall=now, claimed=now))
        if ending is not None:
            self.check("rebuild_counters not", ending, reply, found)
            return
        if waits:
            self.check("rebuild_counters waits", [1, at], reply, found)
            return
        closed = dict(customer.closed)
        shard.roll(NAME, view, at)
        work = Rebuilt(shard, view, wanted, lives, at)
        expected = work.reply()
        if expected[0] == 0:
            self._compare("what was missing", work.done, json.loads(reply.pop() or "{}") or {})
        self.check(f"rebuild_counters {wanted} {texts_of(closed)}", expected, reply, found)
        self.seen["parked"] += bool(work.made)
        self.seen["missed"] += any(intent.more for intent in work.made)
        self.seen["forgotten"] += work.has_forgotten
        self.seen["pending"] += bool(work.pending)
        self.seen["parked together"] += any(intent.till < intent.minute // 1000 for intent in work.made)
        self.seen["left"] += any(not text.endswith(" 0") for text in work.done.values())


FOLDED: Final = ("requests", "tokens", "emails")  # The last one's token has a hyphen.
CUSTOMERS: Final = ("ada", "x|y", "b" * 256)
AT_ONCE: Final = 128
NOW_MS: Final = 1_938_000_000_000

PRICES: Final = (
    f"plans/0,t/1 {meter_token('requests')}:7:o40/3 {meter_token('tokens')}::c1/1 {meter_token('emails')}:90:"
)
PRICED: Final = f"\nmodel\n\n{PRICES}\na line of a later release"

Sums = Counter[tuple[str, str, int | None, str]]


class Folding(ScriptWorld):
    """A stream of the audit log and the sums beside it, anew in each step."""

    names = ("fold_audit", "unfold_audit")

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.log, self.sums = self.keys.audit(0), self.keys.audit_sums(0)
        self.seen = Counter[str]()

    def step(self) -> None:
        self.wire(pack("FLUSHALL"))
        number = self.random.choice((0, 1, 4, 9, 140 if self.random.random() < 0.1 else 2))
        if self.random.random() < 0.3:
            self.wire(pack("HSET", self.sums, f"7|{meter_token('tokens')}5|ada", 5))
        for nth in range(number):
            self._enter(nth)
        before, names = self._sums(), self._names()
        most = self.random.choice((0, 1, 3, 10))
        readable = [name for name, is_read in names[::-1] if is_read]
        gone = self._ask("fold_audit", most)
        looked = min(max(0, number - most), AT_ONCE)
        expected = [name for name, is_read in names[::-1][:looked] if is_read]
        self.compare("how many are gone", len(expected), gone)
        left = {name for name, _ in names} - set(expected)
        self.compare("what is left", left, {name for name, _ in self._names()})
        self.compare("the sums", before, self._sums())
        self.seen["added up"] += bool(expected)
        self.seen["left"] += len(readable) > len(expected)
        kept = self._hash()
        self.compare("sums entered", len(kept), self._ask("unfold_audit"))
        self.compare("the hash", {}, self._hash())
        self.compare("the sums", before, self._sums())
        entered = [fields for name, fields in self._stream() if name not in left]
        at = {fields[b"at"] for fields in entered}
        self.compare("when", {b"%d" % NOW_MS} if kept else set[bytes](), at)
        self.compare("each kind", {b"summed"} if kept else set[bytes](), {one[b"k"] for one in entered})

    def _enter(self, nth: int) -> None:
        random = self.random
        if random.random() < 0.15:
            self.wire(pack("XADD", self.log, "*", "k", "deleted", "d", "ada", "at", 5))
            return
        noted: list[int | str] = []
        for meter in random.sample(FOLDED, random.choice((1, 1, 2, 3))):
            units = [random.choice((0, 0, 1, 40, 10**15 - 1)) for _ in range(5)]
            late_units = random.choice((0, 1, 30, sum(units))) if any(units) else 0
            noted += [f"{meter_token(meter)}m", *units, late_units]
        late = random.choice(("", "", "6"))
        period, told = random.choice((7, 1_935_000_000_000)), random.choice(("", "\nmodel\n", PRICED, PRICED))
        packed = pack_field("w:1", nth, random.choice(CUSTOMERS[:2]), NOW_MS, period, late, told, *noted)
        if random.random() < 0.1:
            packed = b"\xfc" + packed[1:]  # As another release may write it.
        self.wire(pack("XADD", self.log, "*", "e", packed))

    def _ask(self, name: str, *argv: int) -> Any:
        return self.run(name, (self.log, self.sums), *argv, NOW_MS)

    def _stream(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found: Any = self.wire(pack("XRANGE", self.log, "-", "+"))
        return [(name, dict(zip(fields[::2], fields[1::2], strict=True))) for name, fields in found]

    def _names(self) -> list[tuple[bytes, bool]]:
        """The entries of the stream, and whether each can be added up."""
        return [(name, fields.get(b"e", b"").startswith(b"\xfd")) for name, fields in self._stream()]

    def _hash(self) -> dict[bytes, bytes]:
        flat: Any = self.wire(pack("HGETALL", self.sums))
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def _sums(self) -> Sums:
        """The units of each class in stream and hash: by customer, meter and period."""
        found = Sums()
        entries = self._stream()
        for name, units in self._hash().items():
            entries.append((b"0-1", {b"k": b"summed", b"d": name, b"q": units, b"at": b"5"}))
        for name, fields in entries:
            if fields.get(b"e", b"\xfd").startswith(b"\xfd"):
                for row in parse_rows(0, name.decode(), fields, str):
                    for kind in CLASSES:
                        found[row.customer, row.meter, row.period_start_ms, kind] += getattr(row, kind)
                    place = row.customer, row.meter, row.period_start_ms
                    found[*place, "cost"] += row.cost_micros or 0
                    found[*place, f"at {row.price_micros}/{row.price_per}"] += row.priced or 0
        return +found
