"""Random lives of every world in which scripts are compared with a model, and mutants of the scripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Final, cast

from meterkit.redis.connection import pack
from meterkit.redis.scripts import Dialect
from store import delivery_checks
from store.script_allotting import AllotWorld
from store.script_driver import World, life
from store.script_gauges import GaugeWorld
from store.script_mutants import SWAPS, Mutant, Swaps, equivalents, is_sampled, mutants, sample_of
from store.script_objects import ObjectsWorld
from store.script_plans import CUSTOMERS
from store.script_wires import Wire, load_texts
from store.script_world import MismatchError

Kind = type[Any]
"""A class of worlds: a store with scripts in it, and the model of what it holds."""
Lives = tuple[tuple[Kind, int], ...]

_SHORT_STEPS: Final = 500
_SHORT_LIVES: Final = 3
# Everything that a world raises if a script's answer cannot be read at all.
_UNREADABLE: Final = (MismatchError, TypeError, ValueError, AttributeError, KeyError, IndexError)


def texts_of(kind: Kind, dialect: Dialect = "server") -> dict[str, str]:
    """The scripts that a world runs, under a clock that is set."""
    return load_texts(dialect, kind.names)


def live(
    kind: Kind,
    wire: Wire,
    seed: int,
    steps: int,
    *,
    texts: Mapping[str, str] | None = None,
    dialect: Dialect = "server",
    ends: bool = True,
    slack_ms: int = 0,
) -> set[str]:
    """Live so many steps, and damage what is stored if the world ends; return the answers that were seen.

    Give a slack to stores that tell lives by a clock that goes on while a script runs.
    """
    options = {"slack_ms": slack_ms} if issubclass(kind, delivery_checks.Checks) else {}
    make = cast("Callable[..., Any]", kind)
    world = make(wire, texts_of(kind, dialect) if texts is None else texts, life(seed), **options)
    for _ in range(steps):
        world.step()
    if ends:
        end(world)
    seen: dict[str, int] | set[str] = world.seen
    return set(seen) if isinstance(seen, set) else {what for what, times in seen.items() if times}


def end(world: Any) -> None:
    """Compare everything once more, and damage what is stored: each script says so and changes nothing."""
    if isinstance(world, World):
        for name in CUSTOMERS:
            world.check(name)
            world.damage(name)
    elif isinstance(world, GaugeWorld | AllotWorld | ObjectsWorld):
        world.damage()
    if isinstance(world, ObjectsWorld):
        world.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutated:
    """Files of scripts, the lives that meet what each says (the likeliest first), and their equivalents."""

    lives: Mapping[str, Lives]
    equivalents: str
    steps: int
    sample: int
    swaps: Swaps = SWAPS
    counts: bool = False
    """Whether commands are counted: a mutant may also ask the store more often than it needs to."""
    begin_anew: frozenset[Kind] = frozenset()
    """Worlds that begin anew in each step: a sixth of the steps is enough."""

    def every(self) -> list[Mutant]:
        return list(mutants(tuple(self.lives), self.swaps))

    def chosen(self) -> list[Mutant]:
        known = equivalents(self.equivalents)
        return sample_of([mutant for mutant in self.every() if str(mutant) not in known], self.sample)

    def survivors(self, wire: Wire, tried: Iterable[Mutant]) -> list[str]:
        """Mutants that no life notices; short lives if only a sample is tried."""
        rightly = _Rightly(wire)
        return [str(mutant) for mutant in tried if not self._is_caught(mutant, wire, rightly)]

    def _is_caught(self, mutant: Mutant, wire: Wire, rightly: _Rightly) -> bool:
        lives = self.lives[mutant.file]
        if is_sampled():
            lives = lives[:_SHORT_LIVES]
        try:
            # The beginnings of all lives first: a mutant that only one of them meets is mostly caught there.
            for part, (kind, seed) in product((1,) if is_sampled() else (10, 1), lives):
                steps = self.steps // (6 * part if kind in self.begin_anew else part)
                steps = min(steps, _SHORT_STEPS) if is_sampled() else steps
                texts = mutant.texts(partial(texts_of, kind))
                wire(pack("CONFIG", "RESETSTAT"))
                live(kind, wire, seed, steps, texts=texts)
                if self.counts and not is_sampled() and _calls(wire) != rightly.calls(kind, seed, steps):
                    return True
        except _UNREADABLE:
            return True
        finally:
            wire(pack("SCRIPT", "FLUSH"))
            wire(pack("FLUSHALL"))  # Keys that a mutant has left without a TTL.
        return False


class _Rightly:
    """How often the right scripts call each command in a life."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._known: dict[tuple[Kind, int, int], dict[str, int]] = {}

    def calls(self, kind: Kind, seed: int, steps: int) -> dict[str, int]:
        if (kind, seed, steps) not in self._known:
            self._wire(pack("CONFIG", "RESETSTAT"))
            live(kind, self._wire, seed, steps)
            self._known[kind, seed, steps] = _calls(self._wire)
        return self._known[kind, seed, steps]


def _calls(wire: Wire) -> dict[str, int]:
    stats = wire(pack("INFO", "commandstats")).decode()
    return {name: int(calls) for name, calls in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}
