"""Tells whether the machine was quiet, by readings of the bare app before and after each part of a run.

A reading has the microseconds of a request of the bare app, by core. A part counts if no reading of it is
more than 15 % above the lowest of its core in the whole run; one that does not is measured again.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Reading = dict[str, float]
MOST_PERCENT = 15
ADVICE = "Stop everything else on this machine and run `make bench` again."


@dataclass(slots=True, kw_only=True)
class Gauge:
    """Repeats parts that were disturbed, and keeps the readings of all."""

    read: Callable[[], Reading]
    tries: int = 5
    pause_s: float = 20
    readings: dict[str, list[Reading]] = field(default_factory=dict)
    took_s: dict[str, float] = field(default_factory=dict)

    def measure_part(
        self, part: str, measure: Callable[[], T], own: Callable[[T], Reading] | None = None
    ) -> T:
        """Measure one part, again while it is disturbed; ``own`` reads the bare app off the part itself."""
        begun = time.monotonic()
        print(part, file=sys.stderr, flush=True)
        for tries_left in reversed(range(self.tries)):
            before, found, after = self.read(), measure(), self.read()
            self.readings[part] = [before, after, own(found) if own else {}]
            percent = judge_readings(self.readings)["percent"][part]
            if percent <= MOST_PERCENT:
                break
            print(f"  disturbed by {percent:.0f} %; {tries_left} tries left", file=sys.stderr, flush=True)
            if tries_left:
                time.sleep(self.pause_s)
        else:
            self.tries = 1  # The run cannot be published, so no further part is repeated.
        self.took_s[part] = time.monotonic() - begun
        return found


def judge_readings(readings: dict[str, list[Reading]]) -> dict:
    """The lowest reading of each core, by how many percent each part was above it, and the verdict."""
    pairs = [pair for of in readings.values() for reading in of for pair in reading.items()]
    lowest = {core: min(us for other, us in pairs if other == core) for core in dict(pairs)}
    percent = {
        part: max((100 * (us / lowest[core] - 1) for one in of for core, us in one.items()), default=0.0)
        for part, of in readings.items()
    }
    is_quiet = bool(lowest) and all(each <= MOST_PERCENT for each in percent.values())
    return {"lowest_us": lowest, "percent": percent, "is_quiet": is_quiet}


def format_verdict(result: dict) -> str:
    """One line for a page and a terminal."""
    quiet = result["quiet"]
    worst = max(quiet["percent"], key=quiet["percent"].get, default="")
    lowest = min(quiet["lowest_us"].values(), default=0.0)
    word = "undisturbed" if quiet["is_quiet"] else "DISTURBED"
    above = quiet["percent"].get(worst, 0.0)
    return f"{word}: the bare app was at most {above:.0f} % above its lowest, {lowest:.1f} us (in: {worst})"


def list_refusals(result: dict) -> list[str]:
    """The reasons why a run must not be published; none if it may be."""
    quiet = result["quiet"]
    found = [
        f"disturbed: {part}: the bare app was {percent:.0f} % above its lowest, not {MOST_PERCENT} % at most"
        for part, percent in quiet["percent"].items()
        if percent > MOST_PERCENT
    ]
    if not quiet["lowest_us"]:
        found.append("disturbed or not: no reading of the bare app")
    found += [f"incomplete: {name}: {why}" for name, why in result["skipped"].items()]
    return [*found, ADVICE] if found else []
