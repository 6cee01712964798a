"""Top-ups and refunds of a customer: the scripts that keep count of them, and a model of what they keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from meterkit.decisions.keys import Keys
from meterkit.redis.connection import pack
from store.script_wires import Wire
from store.script_world import ScriptWorld, fields_of

TARGETS: Final = ("c:usd", "c:ai")
INVOICES: Final = ("in_1", "in_2", "in 3")
EVENTS: Final = ("e1", "e1+2", "e1+3", "e2")
MONTHS: Final = ("2040-01",) * 9 + ("2040-02",)
KEYS: Final = Keys("mk", 1).customer("ada")
MOST: Final = 2
PATIENCE_MS: Final = 1000


@dataclass(slots=True)
class Auto:
    state: str
    month: str = "-"
    count: int = 0
    began_ms: int = 0
    event: str = "-"

    def __str__(self) -> str:
        return f"{self.state} {self.month} {self.count} {self.began_ms} {self.event}"


@dataclass(slots=True)
class Grant:
    target: str
    quantity: int
    used: int = 0

    def __str__(self) -> str:
        return f"{self.target} {self.quantity} {self.used} 1 0 9 7 9"


@dataclass(slots=True)
class Refund:
    """A payment: how much of it was refunded and taken back, and when the last part was."""

    refunded: int
    taken: int
    at_ms: int
    owed: int = 0

    def __str__(self) -> str:
        return f"{self.refunded} {self.taken} {self.at_ms} {self.owed}"


@dataclass(slots=True)
class Books:
    autos: dict[str, Auto] = field(default_factory=dict[str, Auto])
    grants: dict[str, Grant] = field(default_factory=dict[str, Grant])
    refunds: dict[str, Refund] = field(default_factory=dict[str, Refund])
    unreported: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    debts: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    has_balance: bool = False

    def top_up(self, target: str, what: str, event: str, month: str, now: int) -> list[Any]:
        auto = self.autos.get(target)
        if what in {"on", "off", "bought"}:
            restarts = (
                auto is None or auto.state == "failed" or (auto.state == "stopped" and auto.event != event)
            )
            if what != "bought" or restarts:
                auto = self.autos.setdefault(target, Auto(""))
                auto.state = "off" if what == "off" else "paid"
            return [0]
        if auto is None:
            return [0]
        if what == "begin":
            return self._begin(auto, event, month, now)
        if auto.state == "pending" and auto.event == event:
            auto.state = "failed" if what == "failed" else "paid"
            auto.count -= what == "none"
        return [0]

    @staticmethod
    def _begin(auto: Auto, event: str, month: str, now: int) -> list[Any]:
        if auto.state == "pending":
            is_its_turn = auto.event == event or now - auto.began_ms >= PATIENCE_MS
            return [1, auto.month.encode(), auto.event.encode()] if is_its_turn else [0]
        count = auto.count + 1 if auto.month == month else 1
        was_asked = event in {auto.event, auto.event.rpartition("+")[0]}
        if auto.state != "paid" or was_asked or count > MOST:
            return [0]
        auto.state, auto.month, auto.count, auto.began_ms, auto.event = "pending", month, count, now, event
        return [1, month.encode(), event.encode()]

    def reclaim(
        self, target: str, invoice: str, refunded: int, now: int, *, is_all: bool, owes: bool
    ) -> list[int]:
        name = f"a {target} {invoice}"
        known, grant, auto = self.refunds.get(name), self.grants.get(name), self.autos.get(target)
        more = refunded - (known.refunded if known else 0)
        before = self.unreported.get(name, (0, 0))
        if more <= 0:
            return [*before]
        part = 0
        if grant is not None:
            part = min(more, grant.quantity - grant.used)
            grant.quantity -= part
            if grant.quantity == grant.used:
                del self.grants[name]
        taken, owed = part + (known.taken if known else 0), known.owed if known else 0
        if owes and part < more:
            self.debts[target] = self.debts.get(target, (0, 0))[0] + more - part, now
            owed, part = owed + more - part, more
        self.refunds[name] = Refund(refunded, taken, now, owed)
        self.has_balance = False
        if is_all and auto is not None and auto.state in {"paid", "pending"}:
            auto.state = "stopped"
        self.unreported[name] = (before[0] + more, before[1] + part)
        return [*self.unreported[name]]


class TopUps(ScriptWorld):
    """One customer's top-ups, refunds, and a clock."""

    names = ("move_auto_top_up", "reclaim_grant")

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.seen: set[str] = set()
        self._begin()

    def step(self) -> None:
        if self.random.random() < 0.02:
            self._begin()
        self.wall += self.random.choice((0, 0, 1))
        pending = [auto.began_ms for auto in self.books.autos.values() if auto.state == "pending"]
        if pending and self.random.random() < 0.3:
            self.wall = max(self.wall, self.random.choice(pending) + PATIENCE_MS - self.random.choice((0, 1)))
        self.random.choice((self._buy, self._use, self._top_up, self._top_up, self._reclaim))()
        self._check()

    def _begin(self) -> None:
        self.books = Books()
        self.wire(pack("DEL", KEYS.grants, KEYS.ledger))

    def _buy(self) -> None:
        target, invoice = self.random.choice(TARGETS), self.random.choice(INVOICES)
        self.books.grants[f"a {target} {invoice}"] = Grant(target, self.random.choice((1, 5, 700)))
        self.books.has_balance = True
        self._store()

    def _use(self) -> None:
        for grant in self.books.grants.values():
            grant.used = self.random.randrange(grant.used, grant.quantity)
        self._store()

    def _store(self) -> None:
        fields = {name: str(grant) for name, grant in self.books.grants.items()}
        if self.books.has_balance:
            fields["balance"] = "as it was"
        if fields:
            self.wire(pack("HSET", KEYS.grants, *(part for pair in fields.items() for part in pair)))

    def _top_up(self) -> None:
        kinds = (*["begin"] * 7, *["paid"] * 3, *["failed"] * 2, "none", *["bought"] * 2, "on", "off")
        what, target, event = (self.random.choice(every) for every in (kinds, TARGETS, EVENTS))
        asked = target, what, event, self.random.choice(MONTHS)
        reply = self.run("move_auto_top_up", (KEYS.ledger,), *asked, MOST, PATIENCE_MS, self.wall)
        expected = self.books.top_up(*asked, self.wall)
        self.compare(f"top_up {asked}", expected, reply)
        self.seen.add(f"{what} {expected[0]}")

    def _reclaim(self) -> None:
        target, invoice = self.random.choice(TARGETS), self.random.choice(INVOICES)
        refunded, is_all = self.random.choice((0, 1, 2, 5, 700)), self.random.random() < 0.5
        owes = self.random.random() < 0.3
        name = f"a {target} {invoice}"
        reply = self.run(
            "reclaim_grant", (KEYS.grants, KEYS.ledger), name, refunded, int(is_all), int(owes), self.wall
        )
        expected = self.books.reclaim(target, invoice, refunded, self.wall, is_all=is_all, owes=owes)
        self.compare(f"reclaim {name} {refunded}", expected, reply)
        if self.random.random() < 0.5:
            self.wire(pack("HDEL", KEYS.ledger, f"unreported {name}"))
            self.books.unreported.pop(name, None)
        self.seen.add(f"reclaim {'more' if expected[0] > expected[1] else 'all' if expected[1] else 'none'}")

    def _check(self) -> None:
        grants = {name: str(grant) for name, grant in self.books.grants.items()}
        grants |= {f"d {target}": f"{owed} {since}" for target, (owed, since) in self.books.debts.items()}
        ledger = {f"refund {name}": str(refund) for name, refund in self.books.refunds.items()}
        ledger |= {
            f"unreported {name}": f"{more} {part}" for name, (more, part) in self.books.unreported.items()
        }
        ledger |= {f"auto {target}": str(auto) for target, auto in self.books.autos.items()}
        balance = {"balance": "as it was"} if self.books.has_balance else {}
        for key, expected in ((KEYS.grants, grants | balance), (KEYS.ledger, ledger)):
            found = fields_of(self.wire(pack("HGETALL", key)))
            self.compare(key, expected, {name: text.decode() for name, text in found.items()})
