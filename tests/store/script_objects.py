"""A customer's stored objects: the script ``shelve`` against a model that keeps them in dictionaries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from drivers.counters import pack_field
from meterkit.decisions.customer_state import NO_STATE
from meterkit.decisions.gauges import StoredLevel
from meterkit.decisions.packed import unpack_field
from meterkit.redis.connection import pack
from store.script_counts import MINUTE_MS, SLOT_MS
from store.script_wires import Wire
from store.script_world import MismatchError, ScriptWorld, fields_of

NOW: Final = 1_900_000_000_000
MOST: Final = 10**15 - 1
INCLUDED: Final = 50
REMOVED, STORED, LISTED = 0, 1, 2
HOUR_MS: Final = 12 * SLOT_MS
DAY_MS: Final = 24 * HOUR_MS
SEVEN_DAYS_H: Final = 7 * 24

Change = tuple[str, int, int, int, str, str, int, str]
Known = tuple[int, int, int, str, str]
Upload = tuple[int, int, int, bytes]
MOST_UPLOADS: Final = 100


def newer(known: Known, event: Known, *, single: bool) -> tuple[bool, bool]:
    """Whether an event replaces what is known, and whether only a listing can tell."""
    kind, size, at_ms, number, _ = event
    known_kind, known_size, known_ms, known_number, _ = known
    if single:
        return (kind, known_kind == REMOVED) == (REMOVED, False), False
    if known_kind == LISTED:
        return True, False
    same = (kind, size) == (known_kind, known_size)
    if number and number == known_number:
        if kind == known_kind:
            return not same and at_ms > known_ms, not same
        return kind == REMOVED, False
    if number and len(number) == len(known_number):
        return number > known_number, False
    if at_ms != known_ms:
        return at_ms > known_ms, True
    width = max(len(number), len(known_number))
    left, right = number.ljust(width, "0"), known_number.ljust(width, "0")
    wins = left > right if left != right else kind == REMOVED and not same
    return wins, left != right or not same


class ObjectsWorld(ScriptWorld):
    """One customer, whose gauge the app may set beside: what happens, and a look at all of it."""

    names = ("record_objects", "hold_upload")
    own = ("levels", "state", "notices", "objects", "relist", "history", "older", "newer", "over")

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.seen, self.wall = set[str](), NOW
        self.objects: dict[str, Known] = {}
        self.window = (0, 0)
        self.level = StoredLevel()
        self.relisted: int | None = None
        self.over_ms = 0
        self.ledger: list[tuple[str, int, str, str]] = []
        self.hours_left = SEVEN_DAYS_H
        self.uploads: dict[str, dict[str, list[Upload]]] = {"older": {}, "newer": {}}
        self.presigned = Counter[int]()

    @property
    def _sums(self) -> Counter[str]:
        found = Counter[str]()
        for kind, size, _, _, of_type in self.objects.values():
            found[of_type] += size if kind != REMOVED else 0
        return +found

    def step(self) -> None:
        self.wall += self.random.choice((0, 1, 2, 0, 1, 2, 0, 1, 2, self._edge()))
        what = self.random.randrange(20)
        if what == 0:
            self._set_by_hand()
            if self.random.random() < 0.5:
                self._change_plan()
        elif what == 1:
            self._stale()
        elif what <= 5:
            self._presigned()
        elif what == 6 and self.random.random() < 0.02:
            self._turn_hour()
        else:
            listing = self.random.random() < 0.3
            changes = [self._change() for _ in range(self.random.randrange(4))]
            if listing:  # Which has each version once.
                changes = list({one[0]: one for one in changes}.values())
            self._shelve(changes, listing=listing)
        self._look()

    def _change(self) -> Change:
        random = self.random
        field, kind = random.choice(("one", "two", "v1", "v2")), random.choice((REMOVED, STORED))
        size = 0 if kind == REMOVED else random.choice((0, 1, 2, 10, 40))
        if kind == STORED and random.random() < 0.02:
            size = random.choice((MOST, MOST - 1))
        at_ms = self.wall - 1000 + random.randrange(4)
        number = random.choice(("", "1", "2", "10", "12", "20", "0a"))
        upload = random.choice(("", "", "x", "y")) if kind == STORED else ""
        if upload and random.random() < 0.3:
            made = [one[1] for uploads in self.uploads.values() for one in uploads.get(upload, ())]
            at_ms = random.choice(made or [self.wall]) - MINUTE_MS + random.randrange(-1, 2)
        return field, kind, size, at_ms, number, random.choice("ab"), int(field.startswith("v")), upload

    def _ask(
        self, changes: Sequence[Change], window: tuple[Any, Any], relist: str, rev: str = NO_STATE
    ) -> Any:
        view = (rev, self.wall + 10, self.wall - 5000, self.wall + 10, self.wall + 20)
        own = ("storage", INCLUDED, "acme", "40 80 50 100", "buck", *window, relist)
        flat = [value for change in changes for value in change]
        return self.run("record_objects", self.own, *view, *own, *flat, self.wall)

    def _edge(self) -> int:
        """Milliseconds until the slot ends, or one more or less."""
        return max(0, SLOT_MS - self.wall % SLOT_MS + self.random.randrange(-1, 2))

    def _turn_hour(self) -> None:
        """The uploads of this hour become those of the last one."""
        self.wire(pack("DEL", "older"), pack("RENAME", "newer", "older"))
        self.uploads = {"older": self.uploads["newer"], "newer": {}}

    def _presigned(self) -> None:
        upload, size = self.random.choice(("x", "x", "x", "y")), self.random.choice((1, 2, 10, 40, 10**9))
        reply = self.run("hold_upload", ("levels", "newer"), "storage", upload, size, self.wall)
        found = self.uploads["newer"].setdefault(upload, [])
        if len(found) == MOST_UPLOADS:
            self.compare("too many", [1, self.wall], reply)
            self.seen.add("too many")
            return
        ends = (self.wall + HOUR_MS) // SLOT_MS
        self.compare("presigned", [0, self.wall, ends * SLOT_MS], reply)
        lives = self.wire(pack("PTTL", "newer"))
        self.compare("life of uploads", True, 2 * HOUR_MS - 60_000 < lives <= 2 * HOUR_MS)
        found.append((size, self.wall, ends, b""))
        self._hold(ends, size)
        self.seen.add("presigned")

    def _hold(self, ends: int, by: int) -> None:
        self.presigned[ends] += by
        for slot in [slot for slot in self.presigned if slot <= self.wall // SLOT_MS]:
            del self.presigned[slot]
        self.presigned = +self.presigned

    def _settle(self, upload: str, size: int, at_ms: int, cause: str) -> None:
        """Give back the first upload that is held still with this size, or the first, once a cause."""
        both, now = [uploads.get(upload, []) for uploads in self.uploads.values()], self.wall // SLOT_MS
        every = [(found, one) for found in both for one in found]
        if cause.encode() in {by for _, (*_, by) in every}:
            return
        live = [place for place in every if not place[1][3] and place[1][2] > now]
        live = [place for place in live if place[1][1] <= at_ms + MINUTE_MS]
        if live:
            found, one = min(live, key=lambda place: place[1][0] != size)
            found[found.index(one)] = (*one[:3], cause.encode())
            self._hold(one[2], -one[0])
            self.seen.add("settled")

    def _stale(self) -> None:
        reply = self._ask([], ("", ""), "", rev="2:9")
        self.compare("stale", [2, self.wall, NO_STATE.encode(), b""], reply)
        self.seen.add("stale")

    def _set_by_hand(self) -> None:
        quantity = self.random.choice((1, 40, 70))
        self.level = self._standing(quantity)
        self.wire(pack("HSET", "levels", "storage", pack_field(*self.level)))

    def _standing(self, quantity: int) -> StoredLevel:
        over, fitted = self.level.over_ms, self.level.fitted
        if self.level.level <= INCLUDED:
            over, fitted = 0, INCLUDED
        elif not over:
            over = self.wall
        if quantity <= INCLUDED:
            return StoredLevel(quantity, 0, INCLUDED)
        return StoredLevel(quantity, over or self.wall, fitted)

    def _shelve(self, changes: Sequence[Change], *, listing: bool) -> None:
        relist = self.random.random() < 0.05
        since = self.wall - 1000 + self.random.randrange(4)
        window = (since, since + self.random.randrange(3)) if listing else ("", "")
        objects, unclear, dropped = dict(self.objects), relist, set[str]()
        kept = self.window
        if listing:
            kept = (max(kept[0], int(window[0])), max(kept[1], int(window[1])))
        for field, kind, size, at_ms, number, of_type, single, _ in changes:
            event: Known = (kind, size, at_ms, number, of_type)
            known = objects.get(field)
            if listing:
                applies, doubts = self._listed(known, event, kept[0])
                event = (LISTED if kind else REMOVED, *event[1:])
            elif at_ms < kept[0]:
                applies, doubts = False, False
                self.seen.add("listed before")
            else:
                applies, doubts = (True, False) if known is None else newer(known, event, single=bool(single))
            if applies:
                was = known[1] if known is not None and known[0] != REMOVED else 0
                doubts = doubts or (not listing and at_ms < kept[1] and was != size)
                objects[field] = event
                dropped |= {field} if listing and kind == REMOVED else set()
            unclear = unclear or doubts
        before, total_before = self.objects, sum(self._sums.values())
        self.objects = objects
        total = sum(self._sums.values())
        reply = self._ask(changes, window, "relist" if relist else "")
        if total > MOST:
            self.objects = before
            self.seen.add("too much")
            self.compare("too much", [4, self.wall, self.level.level], reply)
            return
        for field, _, size, at_ms, number, _, _, upload in changes:
            self._settle(upload, size, at_ms, field + (number or str(at_ms)))
        self.window = kept
        crossed = self._crossed(total)
        before_level = self.level.level
        self.level = self._standing(total)
        self.over_ms = self.level.over_ms
        moved = total - total_before
        if listing:  # What it has not is not kept.
            self.objects = {name: one for name, one in objects.items() if name not in dropped}
            self._note(before_level, total)
            self.seen.add("listing")
        if unclear:
            self.relisted = self.wall
        expected = [0, self.wall, total, moved, int(unclear), *([b"notice"] if crossed else [])]
        self.seen |= {"unclear"} if unclear else {"clear"}
        self.compare(f"shelve {changes} {window}", expected, reply)
        found = [fields for _, fields in self.wire(pack("XRANGE", "notices", "-", "+"))]
        self.compare("notices", crossed, found)
        self.wire(pack("DEL", "notices"))

    def _note(self, before: int, after: int) -> None:
        """A correction in the ledger: one line a day, unless it has another change since."""
        if before == after:
            return
        at_ms, total = self.wall, after - before
        if self.ledger and self.ledger[-1][0] == "storage" and self.ledger[-1][1] > self.wall - DAY_MS:
            _, at_ms, *levels = self.ledger.pop()
            first, last = (int(text.removesuffix(" bytes")) for text in levels)
            total += last - first
            self.seen |= {"one line", "less than 0"} if total > after else {"one line"}
        before = max(0, after - total)
        self.ledger.append(("storage", at_ms, f"{before} bytes", f"{before + total} bytes"))

    def _change_plan(self) -> None:
        """Another line of the ledger; or the last one is of a day ago, or a millisecond later."""
        line, at_ms = ("plan", self.wall, "", "pro"), self.wall - DAY_MS + self.random.randrange(2)
        if self.ledger and self.ledger[-1][0] == "storage" and self.random.random() < 0.7:
            self.wire(pack("RPOP", "history"))
            line = (self.ledger.pop()[0], at_ms, "0 bytes", "7 bytes")
        self.ledger.append(line)
        kind, at_ms, before, after = line
        self.wire(pack("RPUSH", "history", json.dumps((kind, str(at_ms), before, after, "operator"))))

    def _crossed(self, total: int) -> list[list[bytes]]:
        """The notices of a level that becomes ``total``."""
        period = f"{self.wall} {self.wall - 5000} {self.wall + 10} {total}"
        head = [b"kind", b"usage.threshold", b"customer", b"acme", b"of", b"storage", b"numbers"]
        return [
            [*head, f"{period} {percent} {INCLUDED}".encode()]
            for at, percent in ((40, 80), (50, 100))
            if self.level.level < at <= total
        ]

    def _listed(self, known: Known | None, listed: Known, since: int) -> tuple[bool, bool]:
        there = listed[0] != REMOVED
        was = known is not None and known[0] != REMOVED
        same = there == was and (not there or (known is not None and known[1::3] == listed[1::3]))
        if known is not None and known[0] != LISTED and known[2] >= since:
            self.seen.add("meanwhile")
            return False, not same
        return not (same and there), False

    def _look(self) -> None:
        total = self._sums.total()
        expected: dict[str, tuple[int, ...]] = {
            f"storage:{name}": (size, 0, 0) for name, size in self._sums.items()
        }
        expected |= {"storage:": (total, 0, 0)} if total else {}
        if self.presigned:
            expected["storage+"] = tuple(number for held in self.presigned.items() for number in held)
        if self.level.level:
            expected["storage"] = tuple(self.level)
        self.compare("levels", expected, self._stored("levels"))
        objects = self._stored("objects")
        self.compare("window", self.window, objects.pop("buck", (0, 0)))
        known = {name: (*one[:3], *map(str.encode, one[3:])) for name, one in self.objects.items()}
        self.compare("objects", known, objects)
        for key, uploads in self.uploads.items():
            flat = {name: tuple(value for one in found for value in one) for name, found in uploads.items()}
            self.compare(key, flat, self._stored(key))
        over = self.wire(pack("ZSCORE", "over", "storage:acme"))
        self.compare("over", self.over_ms, 0 if over is None else int(over))
        relist = self.wire(pack("ZSCORE", "relist", "acme"))
        self.compare("relist", self.relisted, None if relist is None else int(relist))
        self.compare("life of objects", True, self._lives(total))
        lines = [json.loads(line) for line in self.wire(pack("LRANGE", "history", -3, -1))]
        self.ledger = self.ledger[-1000:]
        self.compare(
            "ledger",
            [[kind, str(at), *rest] for kind, at, *rest in self.ledger[-3:]],
            [line[:4] for line in lines],
        )
        self.compare("lines", len(self.ledger), self.wire(pack("LLEN", "history")))

    def _lives(self, total: int) -> bool:
        """Whether objects expire only where nothing is stored; some time passes then at once."""
        lives: int = self.wire(pack("PTTL", "objects"))
        if not self.objects and self.window == (0, 0):
            return lives == -2
        if total:
            self.hours_left = SEVEN_DAYS_H
            return lives == -1
        most = self.hours_left * HOUR_MS
        if self.hours_left > 1 and self.random.random() < 0.5:
            self.hours_left -= 1
            self.wire(pack("PEXPIRE", "objects", self.hours_left * HOUR_MS))
        return most - MINUTE_MS < lives <= most

    def _stored(self, key: str) -> dict[str, tuple[Any, ...]]:
        fields = fields_of(self.wire(pack("HGETALL", key)))
        return {name: tuple(unpack_field(value)) for name, value in fields.items()}

    def end(self) -> None:
        self.wire(pack("DEL", *self.own))

    def damage(self) -> None:
        """What is no longer what it must be is an error, and nothing is done."""
        damaged = (
            *(b"\xfd\x00", b"\x02\x00\x00", b"\x02\x00\x00\x00", b"text", b"\xfd" + b"\x00" * 9),
            *(b"\x02\x00\x00\x00\xa15\xa1a", b"\xfd\x00\x00\x00\xa15", b"\xfd\x00\x00\x00\xa15\xa1a\x00"),
        )
        of_levels = [("levels", field) for field in ("storage", "storage:", "storage+")]
        for key, field in (*of_levels, ("objects", "one"), ("objects", "buck")):
            for value in (b"\xfd\x00", b"\x02", b"\x02\x00\x00") if field[-1] == "+" else damaged:
                self.wire(pack("DEL", "levels", "objects"))
                self.wire(pack("HSET", key, field, value))
                reply = self._ask([("one", STORED, 1, self.wall, "5", "a", 0, "")], ("", ""), "")
                if not isinstance(reply, Exception) or self.wire(pack("HLEN", key)) != 1:
                    raise MismatchError(f"damaged {key} {field}: {reply!r}")
