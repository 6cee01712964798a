"""What the model counts with: windows, buckets and slots of holds."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import ceil, floor, gcd
from typing import Final

from meterkit.catalog import Rate

MINUTE_MS: Final = 60_000
SLOT_MS: Final = 5 * MINUTE_MS
QUARTER_HOUR_MS: Final = 15 * MINUTE_MS
DAY_MS: Final = 1440 * MINUTE_MS
MOST: Final = 9 * 10**15
REPEAT, IN_FLIGHT = 6, 7


class Windows:
    """Sliding and fixed windows: a count for each, by its number since the epoch."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.last = 0

    def numbers(self, rate: Rate, now: int) -> tuple[int, int]:
        n = now // rate.window_ms
        return (0, 0) if n < self.last else (self.counts[n], self.counts[n - 1])

    def used(self, rate: Rate, now: int) -> int:
        counted, previous = self.numbers(rate, now)
        if rate.algorithm == "fixed-window":
            return counted
        left = rate.window_ms - now % rate.window_ms
        if rate.window_ms > 25 * 60 * MINUTE_MS:
            left = ceil(Fraction(left, 1000)) * 1000
        return counted + ceil(Fraction(previous * left, rate.window_ms))

    def add(self, rate: Rate, now: int, quantity: int) -> None:
        self._move(rate, now)
        self.counts[self.last] = min(self.counts[self.last] + quantity, MOST)

    def correct(self, rate: Rate, now: int, quantity: int, at: int) -> None:
        """Add what was seen too little (below 0: too much) to its window, if that still counts."""
        self._move(rate, now)
        window = at // rate.window_ms
        if window in {self.last, self.last - 1}:
            self.counts[window] = max(0, min(self.counts[window] + quantity, MOST))

    def _move(self, rate: Rate, now: int) -> None:
        n = now // rate.window_ms
        if n < self.last:  # The clock went back: what was counted later is forgotten.
            self.counts.clear()
        self.last = n

    def keeps_ms(self, rate: Rate) -> int:
        return 2 * rate.window_ms

    def fields(self) -> tuple[int, int, int]:
        return self.last, self.counts[self.last], self.counts[self.last - 1]


class Bucket:
    """A token bucket: whole units owed, and the rest of one in steps of the refill, as of an instant."""

    def __init__(self) -> None:
        self.at = self.whole = self.rest = 0

    def owed(self, rate: Rate, now: int) -> Fraction:
        steps = _steps(rate)
        if now < self.at:  # The clock went back.
            return Fraction(0)
        # What was a rest at another refill is still less than a unit.
        owed = self.whole + Fraction(min(self.rest, steps - 1), steps)
        return max(Fraction(0), owed - Fraction(rate.limit, rate.window_ms) * (now - self.at))

    def numbers(self, rate: Rate, now: int) -> tuple[int, int]:
        owed = self.owed(rate, now)
        return floor(owed), int((owed - floor(owed)) * _steps(rate))

    def used(self, rate: Rate, now: int) -> int:
        return ceil(self.owed(rate, now))

    def add(self, rate: Rate, now: int, quantity: int) -> None:
        whole, self.rest = self.numbers(rate, now)
        self.at, self.whole = now, min(whole + quantity, MOST)

    def correct(self, rate: Rate, now: int, quantity: int, at: int) -> None:
        """Owe more from now on, or less: no more less than has not leaked since it was counted."""
        whole, self.rest = self.numbers(rate, now)
        if quantity < 0:
            leaked = Fraction(rate.limit, rate.window_ms) * (now - at)
            quantity = 0 if at > now else min(0, quantity + ceil(leaked))
        self.at, self.whole = now, max(0, min(whole + quantity, MOST))

    def keeps_ms(self, rate: Rate) -> int:
        return min(ceil(Fraction((self.whole + 1) * rate.window_ms, rate.limit)), 400 * DAY_MS)

    def fields(self) -> tuple[int, int, int]:
        return self.at, self.whole, self.rest


def _steps(rate: Rate) -> int:
    return rate.window_ms // gcd(rate.limit, rate.window_ms)


class Marks:
    """Until when requests with idempotency keys are known: billed, or in flight; no more than so many."""

    def __init__(self, most: int = 10**9) -> None:
        self.until: dict[str, int] = {}
        self.most = most

    def twin(self, digest: str, now: int) -> int:
        """0: none; else the code of another request with the key, that was billed or is in flight."""
        if digest and self.until.get(digest, 0) > now:
            return REPEAT
        return IN_FLIGHT if digest and self.until.get(f"f{digest}", 0) > now else 0

    def begin(self, digest: str, now: int) -> None:
        self._remember(f"f{digest}", (now // SLOT_MS + 2) * SLOT_MS, now)

    def end(self, digest: str, slot: int, now: int, *, billed: bool) -> bool:
        """Whether another request was billed before."""
        is_repeat = self.until.get(digest, 0) > now
        if self.until.get(f"f{digest}") == (slot + 2) * SLOT_MS:
            del self.until[f"f{digest}"]
        if billed and not is_repeat:
            self._remember(digest, now + DAY_MS, now)
        return is_repeat

    def _remember(self, member: str, until: int, now: int) -> None:
        self.until = {name: ends for name, ends in self.until.items() if ends > now}
        if len(self.until) < self.most:
            self.until[member] = until


class Slots:
    """Holds by the slot in which they were taken; those of this slot and the last one live."""

    def __init__(self) -> None:
        self.taken: Counter[int] = Counter()
        self.last = 0

    def live(self, now: int) -> tuple[int, int]:
        slot, last = now // SLOT_MS, self.last
        if last > slot:  # The clock went back.
            return self.taken[last] + self.taken[last - 1], 0
        return self.taken[slot], self.taken[slot - 1]

    def touch(self, now: int) -> None:
        """Write what is held: holds of later slots are in the current one from now on."""
        slot = now // SLOT_MS
        if self.last > slot:
            self.taken = Counter({slot: sum(self.live(now))})
        self.last = slot

    def take(self, now: int, quantity: int) -> None:
        if not quantity:
            return
        self.touch(now)
        slot = now // SLOT_MS
        self.taken[slot] = min(self.taken[slot] + quantity, MOST)

    def give_back(self, now: int, slot: int, quantity: int) -> None:
        current = now // SLOT_MS
        self.touch(now)
        if slot in {current, current - 1}:
            self.taken[slot] = max(0, self.taken[slot] - quantity)
        elif slot > current:
            rest = max(0, quantity - self.taken[current])
            self.taken[current] = max(0, self.taken[current] - quantity)
            self.taken[current - 1] = max(0, self.taken[current - 1] - rest)
