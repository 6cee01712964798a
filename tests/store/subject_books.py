"""An independent reference for subjects: a customer, its users and its teams, in exact integers.

It keeps every counted unit with its instant, and every hold with its slot, and adds them up anew each time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor
from typing import Final

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
SLOT_MS: Final = 300_000


@dataclass
class Hold:
    """What is set aside of an owner: units of words, and micro-units."""

    slot: int
    words: int
    micros: int


@dataclass(frozen=True)
class Limits:
    """What an owner may: words a period; calls by each of three algorithms; micro-units per span.

    Spans are in milliseconds; 0: the period.
    """

    words: int | None
    sliding: tuple[int, int] | None = None
    fixed: tuple[int, int] | None = None
    bucket: tuple[int, int, int] | None = None
    budget: tuple[int, int] | None = None


@dataclass
class Owner:
    """A customer, or one of its subjects."""

    limits: Limits
    period: int = 0
    words: int = 0
    micros: int = 0
    rest: Fraction = Fraction(0)
    calls: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    spent: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    holds: list[Hold] = field(default_factory=list[Hold])
    level: Fraction = Fraction(0)
    leaked_ms: int = 0

    def at(self, now: int, period: int) -> None:
        """Bring it to an instant: another period begins with nothing used."""
        if period != self.period:
            self.period, self.words, self.micros = period, 0, 0
        self.holds = [hold for hold in self.holds if hold.slot >= now // SLOT_MS - 1]
        if self.limits.bucket is not None:
            limit, window, _ = self.limits.bucket
            self.level = max(Fraction(0), self.level - Fraction((now - self.leaked_ms) * limit, window))
            self.leaked_ms = now

    def _counted(self, window: int, slot: int) -> int:
        return sum(units for at, units in self.calls if at // window == slot)

    def refusals(self, now: int, calls: int, words: int, micros: int) -> list[str]:
        """The names of the limits that refuse a demand."""
        found: list[str] = []
        limits = self.limits
        if limits.sliding is not None and calls:
            most, window = limits.sliding
            slot, rest = now // window, window - now % window
            used = self._counted(window, slot) + ceil(
                Fraction(self._counted(window, slot - 1) * rest, window)
            )
            found += ["sliding"] if used + calls > most else []
        if limits.fixed is not None and calls:
            most, window = limits.fixed
            found += ["fixed"] if self._counted(window, now // window) + calls > most else []
        if limits.bucket is not None and calls:
            found += ["bucket"] if ceil(self.level) + calls > limits.bucket[2] else []
        if limits.words is not None and words:
            held = sum(hold.words for hold in self.holds)
            found += ["words"] if words > max(0, limits.words - self.words) - held else []
        if limits.budget is not None and words and micros:
            most, span = limits.budget
            spent = self.micros if not span else sum(m for at, m in self.spent if at // span == now // span)
            held = sum(hold.micros for hold in self.holds)
            found += ["budget"] if micros > most - spent - held else []
        return found

    def admit(self, now: int, calls: int, hold: Hold | None) -> None:
        """Count calls and hold what may be used."""
        if calls:
            self.calls.append((now, calls))
            self.level += calls
        if hold is not None:
            self.holds.append(hold)

    def record(self, now: int, words: int, price: Fraction) -> None:
        """Count words and their price; a part of a micro-unit is left for later."""
        self.words += words
        if self.limits.budget is not None:
            total = self.rest + words * price
            self.rest = total - floor(total)
            self.micros += floor(total)
            self.spent.append((now, floor(total)))
