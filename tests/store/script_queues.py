"""A queue of syncs or messages: the scripts that fill it and work it off, and a model of what it holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from meterkit.redis.connection import pack
from store.script_counts import DAY_MS, MINUTE_MS
from store.script_wires import Wire
from store.script_world import ScriptWorld, fields_of, weighed

KEYS: Final = ("entries", "due", "dead", "alarms")
CUSTOMERS: Final = ("cus_1", "cus_2", "cus_3")
WORKERS: Final = ("worker-a", "worker-b")
MEMBERS: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("n", "noted", "attempts", "since"), (int,)),
    **dict.fromkeys(("token", "cause", "why"), (str,)),
    "notes": (dict, list),
}
OUTCOMES: Final = ("done", "done", "later", "later", "dead", "kept")
MOST_NOTES: Final = 200
LEASE_MS: Final = MINUTE_MS
EVENT_MS: Final = 35 * DAY_MS
ALARMS_MS: Final = 400 * DAY_MS


@dataclass(slots=True)
class Entry:
    """A sync that waits for a Stripe customer.

    ``token`` is of the worker that has it, empty: none. ``damage``: the text that is stored
    instead, which cannot be read; ``replaces``: it replaces such a text, and no worker has leased it yet.
    """

    since: int
    notes: dict[str, str]
    hints: int = 0
    cause: str = ""
    attempts: int = 0
    token: str = ""
    why: str = ""
    at: int | None = None
    """When it was given up."""
    damage: str = ""
    replaces: bool = False

    def read(self, now: int) -> Entry:
        return Entry(now, {}, replaces=True) if self.damage else self

    def stored(self) -> dict[str, Any] | str:
        if self.damage:
            return self.damage
        names = ("since", "notes", "cause", "attempts", "token", "why")
        stored = {name: getattr(self, name) for name in names}
        given_up = {} if self.at is None else {"at": self.at}
        replaces = {"damaged": True} if self.replaces else {}
        return {**stored, "n": self.hints, "noted": len(self.notes), **given_up, **replaces}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """A hint to be queued: an event's id or none, a kind of alarm or none, a note's name and text or none."""

    customer: str
    cause: str
    event: str
    alarm: str
    note: str
    text: str
    delay_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of an entry, by a worker that knew of so many hints."""

    customer: str
    token: str
    what: str
    hints: int
    span_ms: int
    counts: bool
    why: str
    notes: Sequence[str]


@dataclass(slots=True)
class Queue:
    """Entries by Stripe customer, when each is due or its lease ends, and what is known of earlier hints."""

    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    due: dict[str, int] = field(default_factory=dict[str, int])
    dead: dict[str, Entry] = field(default_factory=dict[str, Entry])
    alarms: Counter[str] = field(default_factory=Counter[str])
    known: set[str] = field(default_factory=set[str])

    def hint(self, hint: Hint, now: int) -> int:
        """Queue a sync: an event counts once; all hints that wait of a customer are one entry."""
        if hint.event and f"event:{hint.event}" in self.known:
            return 0
        self.known |= {f"event:{hint.event}"} if hint.event else set()
        if hint.alarm:
            self.alarms[hint.alarm] += 1
        if not hint.customer:
            return 1
        entry = self.entries.get(hint.customer)
        if entry is None:
            given_up = self.dead.pop(hint.customer, Entry(now, {})).read(now)
            entry = Entry(now, given_up.notes, replaces=given_up.replaces)
        entry = self.entries[hint.customer] = entry.read(now)
        entry.hints, entry.cause = entry.hints + 1, hint.cause
        has_room = not hint.note or len(entry.notes) < MOST_NOTES
        if has_room and hint.note and f"note:{hint.note}" not in self.known:
            self.known.add(f"note:{hint.note}")
            entry.notes[hint.note] = hint.text
        if not entry.token and not entry.attempts:
            at_ms = now + hint.delay_ms
            self.due[hint.customer] = min(self.due.get(hint.customer, at_ms), at_ms)
        return 1 if has_room else 2

    def lease(self, token: str, most: int, customer: str, now: int) -> list[tuple[Any, ...]]:
        """Lease what is due, the longest due first, or one entry; a name alone: another worker has it."""
        found: list[tuple[Any, ...]] = []
        ready = sorted((at, name) for name, at in self.due.items() if at <= now)[:most]
        for name in [customer] if customer else [name for _, name in ready]:
            if name not in self.entries:
                self.due.pop(name, None)
                continue
            entry = self.entries[name].read(now)
            if entry.token and self.due[name] > now:
                found.append((name,))
                continue
            replaces, entry.replaces = entry.replaces, False
            entry.token, self.due[name] = token, now + LEASE_MS
            self.entries[name] = entry
            found.append((name, entry.stored(), int(replaces)))
        return found

    def finish(self, outcome: Outcome, now: int) -> int:
        """Record an outcome, unless another worker has the entry; later hints are due at once."""
        name, entry = outcome.customer, self.entries.get(outcome.customer)
        if entry is None or entry.damage or entry.token != outcome.token:
            return 0
        if outcome.what == "kept":
            self.due[name] = now + outcome.span_ms
            return 1
        for note in outcome.notes:
            entry.notes.pop(note, None)
        entry.token, entry.why = "", outcome.why
        if outcome.what == "later":
            entry.attempts += outcome.counts
            self.due[name] = now + outcome.span_ms
            return 1
        if entry.hints != outcome.hints:
            entry.attempts, self.due[name] = 0, now
            return int(outcome.what == "done")
        if outcome.what == "dead":
            entry.at, self.dead[name] = now, entry
        del self.entries[name], self.due[name]
        return 1


class Queueing(ScriptWorld):
    """The queue of one shard, and a clock."""

    names = ("queue_sync", "lease_entries", "finish_entry")

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.seen: set[str] = set()
        self._begin()

    def step(self) -> None:
        if self.random.random() < 0.02:
            self._begin()
        self.wall += self.random.choice((0, 0, 1, 1000))
        if self.queue.due and self.random.random() < 0.4:
            self.wall = max(self.wall, self.random.choice([*self.queue.due.values()]))
            self.wall += self.random.choice((-1, 0, 1))
        self.one_of(_DEEDS)()
        self._check()

    def _begin(self) -> None:
        self.queue = Queue()
        self.wire(pack("FLUSHALL"))

    # Entries from outside.

    def plant_notes(self) -> None:
        """As many notes of a customer as there is room for, or one less."""
        whole = [(name, entry) for name, entry in self.queue.entries.items() if not entry.damage]
        if whole:
            name, entry = self.random.choice(whole)
            count = MOST_NOTES - self.random.choice((0, 1))
            entry.notes = {f"n{nth}": "text" for nth in range(count)}
            self.wire(pack("HSET", self._key("entries"), name, json.dumps(entry.stored())))

    def plant_damage(self) -> None:
        """An entry that is no JSON, no object, or has a member of another kind."""
        place, entries = self.random.choice((("entries", self.queue.entries), ("dead", self.queue.dead)))
        if entries:
            name, entry = self.random.choice([*entries.items()])
            stored = Entry(1, {}).stored()
            assert isinstance(stored, dict)
            wrong = {**stored, self.random.choice([*MEMBERS]): self.random.choice((True, None))}
            entry.damage = self.random.choice(("{", "7", json.dumps(wrong), json.dumps(wrong)))
            self.wire(pack("HSET", self._key(place), name, entry.damage))

    def plant_left(self) -> None:
        """A customer that is due and has no entry."""
        name = self.random.choice(CUSTOMERS)
        if name not in self.queue.entries:
            self.queue.due[name] = self.wall + self.random.choice((0, 1))
            self.wire(pack("ZADD", self._key("due"), self.queue.due[name], name))

    # Deeds.

    def hint(self) -> None:
        choice = self.random.choice
        event = choice(("", f"evt_{self.random.randrange(40)}"))
        hint = Hint(
            customer=choice((*CUSTOMERS * 3, "")),
            cause=event or choice(("link", "check")),
            event=event,
            alarm=choice(("", "", "disputes", "refunds")),
            note=choice(("", "down", f"note {self.random.randrange(9)}", f"{self.random.getrandbits(32)}")),
            text=choice(("a", "b")),
            delay_ms=choice((0, 1, 5000)),
        )
        keys = (*KEYS, f"event:{hint.event}", f"note:{hint.note}")
        argv = (hint.customer, hint.cause, int(bool(hint.event)), hint.alarm, hint.note, hint.text)
        reply = self._run("queue_sync", keys, *argv, hint.delay_ms)
        expected = self.queue.hint(hint, self.wall)
        self.compare(f"{hint}", expected, reply)
        self.seen.add(f"hint {expected}")

    def lease(self) -> None:
        token, most = self.random.choice(WORKERS), self.random.choice((1, 2, 9))
        customer = self.random.choice(("", "", *CUSTOMERS))
        reply = self._run("lease_entries", KEYS[:2], token, LEASE_MS, most, customer)
        found = [(name.decode(), *map(_parse, entry[:1]), *entry[1:]) for name, *entry in reply]
        leased = self.queue.lease(token, most, customer, self.wall)
        self.compare(f"lease {token} {most} {customer}", leased, found)
        self.seen |= {("leased", "replaced")[one[2]] if one[1:] else "another's" for one in leased}

    def finish(self) -> None:
        choice = self.random.choice
        leased = {name: entry for name, entry in self.queue.entries.items() if entry.token}
        name = choice((*[*leased] * 9, *CUSTOMERS))
        entry = self.queue.entries.get(name, Entry(0, {}))
        outcome = Outcome(
            customer=name,
            token=choice((*[entry.token or WORKERS[0]] * 9, *WORKERS)),
            what=choice(OUTCOMES),
            hints=entry.hints - choice((0, 0, 1)),
            span_ms=choice((0, 1, 5000)),
            counts=choice((False, True)),
            why=choice(("", "down")),
            notes=[note for note in (*list(entry.notes)[:3], "no such note") if choice((True, False))],
        )
        argv = (name, outcome.token, outcome.what, outcome.hints, outcome.span_ms, int(outcome.counts))
        reply = self._run("finish_entry", KEYS[:3], *argv, outcome.why, *outcome.notes)
        expected = self.queue.finish(outcome, self.wall)
        self.compare(f"{outcome}", expected, reply)
        self.seen.add(f"{outcome.what} {expected}")

    # The store.

    def _run(self, script: str, names: Sequence[str], *argv: str | int) -> Any:
        return self.run(script, [self._key(name) for name in names], *argv, self.wall)

    def _key(self, name: str) -> str:
        return self.keys.hints(0, name)

    def _check(self) -> None:
        queue = self.queue
        for name, entries in (("entries", queue.entries), ("dead", queue.dead)):
            found = fields_of(self.wire(pack("HGETALL", self._key(name))))
            stored = {customer: entry.stored() for customer, entry in entries.items()}
            self.compare(name, stored, {customer: _parse(text) for customer, text in found.items()})
        due = fields_of(self.wire(pack("ZRANGE", self._key("due"), 0, -1, "WITHSCORES")))
        self.compare("due", queue.due, {name: int(float(at)) for name, at in due.items()})
        alarms = fields_of(self.wire(pack("HGETALL", self._key("alarms"))))
        self.compare("alarms", queue.alarms, {kind: int(count) for kind, count in alarms.items()})
        lives = dict.fromkeys(queue.known, EVENT_MS) | ({"alarms": ALARMS_MS} if queue.alarms else {})
        prefix, kept = self._key(""), {self._key(name) for name in KEYS[:3]}
        keys = {key.decode() for key in self.wire(pack("KEYS", "*"))} - kept
        self.compare("keys", {prefix + name for name in lives}, keys)
        for name, lives_ms in lives.items():
            left_ms = self.wire(pack("PTTL", self._key(name)))
            if not lives_ms - DAY_MS < left_ms <= lives_ms:
                self.compare(f"life of {name}", lives_ms, left_ms)


def _parse(text: str | bytes) -> dict[str, Any] | str:
    """An entry; without notes the store within the process has a list of none. The text of a damaged one."""
    try:
        entry = json.loads(text)
        if all(isinstance(entry[name], kind) and entry[name] is not True for name, kind in MEMBERS.items()):
            return {**entry, "notes": entry["notes"] or {}}
    except (ValueError, TypeError, LookupError):
        pass
    return text if isinstance(text, str) else text.decode()


_DEEDS: Final = weighed("hint 40, lease 30, finish 30, plant_notes 2, plant_left 2, plant_damage 3")
