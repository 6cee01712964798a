"""Functions of the scripts with small numbers, which meet each limit: compared with rules in plain Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import ceil
from random import Random
from typing import Any, ClassVar, Final

from meterkit.redis.connection import pack
from store.script_wires import Wire
from store.script_world import ScriptWorld

_REPORTS_FOR_SOURCE: Final = 2
_SCRIPTS: Final = {
    "report_units": "settle",
    "correct_rates": "settle",
    "cost_of_units cost_of_overage": "decide",
    "free_credit": "decide",
}
_CALLS: Final = {
    "report_units": "return {(report_units(unpack(given)))}",
    "correct_rates": """
      function correct_rate(_, _, _, _, _, quantity) return quantity, 0 end
      local quantities, spend_rate_count, spent = unpack(given)
      local terms, names, hset = '', {}, {}
      for nth, quantity in ipairs(quantities) do
        terms, names[nth] = terms .. struct.pack('<ddddd', 1, 1000, 0, quantity, 0), 'r' .. nth
      end
      spend_rate_count, spent = spend_rate_count >= 0 and spend_rate_count or nil, spent >= 0 and spent or nil
      correct_rates(terms, 1, #quantities, spend_rate_count, spent, {}, names, 0, 1, hset, 0, 0)
      return hset
    """,
    "cost_of_overage": "return {cost_of_overage(unpack(given))}",
    "free_credit": """
      local backed, place, with_own, left, claims = unpack(given)
      local function claim_of(meter) return unpack(claims[meter[2]]) end
      return {free_credit(backed, place, with_own, left, {}, claim_of)}
    """,
}


class FormulaWorld(ScriptWorld):
    """Each step asks one function about numbers of its own; nothing is stored."""

    names: ClassVar[tuple[str, ...]] = ("decide", "settle")

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.seen: set[str] = set()
        self._shas: dict[str, Any] = {}
        for functions, script in _SCRIPTS.items():
            names = functions.split()
            body = "\n".join(_function(texts[script], name) for name in names)
            asked = f"local correct_rate\n{body}\nlocal given = cjson.decode(ARGV[1])\n{_CALLS[names[-1]]}"
            self._shas[names[-1]] = wire(pack("SCRIPT", "LOAD", asked))

    def step(self) -> None:
        self.random.choice((self.report, self.count, self.cost, self.credit))()

    def ask(self, function: str, given: Sequence[Any], expected: Sequence[Any]) -> None:
        found = self.wire(pack("EVALSHA", self._shas[function], 0, json.dumps(given)))
        self.compare(f"{function} {given}", list(expected), found)

    def _few(self) -> int:
        return self.random.choice((0, 0, 1, 1, 2, 3, 7))

    def report(self) -> None:
        """Report units under the event of a derived meter: its last ones are over its cap."""
        within, beyond, over = (self._few() for _ in range(3))
        units = within + beyond + over
        over_cap = min(self._few(), units)
        classes = ["i"] * within + ["b"] * beyond + ["o"] * over
        counted = classes[: units - over_cap]
        expected = counted.count("i") + counted.count("b")
        given = [_REPORTS_FOR_SOURCE, 0, 0, over_cap, units, [within, beyond, over]]
        self.ask("report_units", given, [expected])

    def count(self) -> None:
        """Count into rates: the last of them count what is spent, where that is known."""
        quantities = [self._few() for _ in range(self.random.choice((1, 2, 3)))]
        spending, spent = self.random.randrange(-1, len(quantities) + 1), self._few() - 1
        counted = list(quantities)
        for nth in range(len(counted) - max(0, spending), len(counted)):
            counted[nth] = spent if spent >= 0 else counted[nth]
        named = [one for nth, quantity in enumerate(counted, 1) for one in (f"r{nth}".encode(), quantity)]
        self.ask("correct_rates", [quantities, spending, spent], named)

    def cost(self) -> None:
        """Units that are held at prices by model: of those that nothing covers the dearest count."""
        rows = sorted(
            (
                [
                    self._few(),
                    self._few(),
                    self.random.choice((0, 1, 1, 3, 50)),
                    self.random.choice((1, 2, 7)),
                ]
                for _ in range(self.random.choice((1, 2, 3)))
            ),
            key=lambda row: -row[2] / row[3],
        )
        held = sum(row[1] for row in rows) + self._few()
        units = min(held, self._few() + self._few())
        there = [row[1] for row in rows]
        unknown = held - sum(there)
        there[0] += unknown
        left, most, every = units, 0, 0
        for (counted, _, micros, per), own in zip(rows, there, strict=True):
            part = min(left, own)
            left -= part
            most += _price(part, micros, per)
            every += _price(counted + own, micros, per) - _price(counted, micros, per)
        parts = sum(map(bool, there))
        every += len(rows) if unknown else 0
        most += parts if parts > 1 and most else 0
        self.ask("cost_of_overage", [0, units, held, 0, 1, rows], [min(every, most)])

    def credit(self) -> None:
        """What a credit has for one of two meters, where the other's holds claim it, and its own may."""
        left, other, claimed, uncovered = self._few() - 1, self._few(), self._few(), self._few()
        highest, with_own, by_model = 1 + self._few(), self.random.random() < 0.7, self.random.random() < 0.8
        own = ["c:ai", 1, 0, "m:a", 3, 0, *([4, highest] if by_model else [])]
        backed = [own, ["c:ai", 2, 0, "m:b", 5, 0], ["c:ink", 3, 0, "m:c", 6, 0]]
        free = max(min(0, left), left - other)
        if not (with_own and by_model):
            expected = [free, 0]
        elif claimed > free:
            expected = [0, min(uncovered, free // highest)]
        else:
            expected = [free - claimed, uncovered]
        self.ask("free_credit", [backed, 1, with_own, left, [[claimed, uncovered], [other], [9]]], expected)


def _function(text: str, name: str) -> str:
    return text[text.index(f"local function {name}(") :].partition("\nend\n")[0] + "\nend"


def _price(units: int, micros: int, per: int) -> int:
    return ceil(units * micros / per)
