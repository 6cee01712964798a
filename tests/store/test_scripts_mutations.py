"""Each line of the scripts' arithmetic, made wrong on purpose: the model must notice.

A sample of the mutants, another one each day; all of them, in some minutes, with ``METERKIT_ALL_MUTANTS=1``.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest

from meterkit.store.resp import pack
from store.script_checks import MismatchError
from store.script_driver import World, life
from store.script_mutants import equivalents, mutants, source, wrongs
from store.script_plans import CUSTOMERS
from store.script_wires import CLOCK, clock_answers, load_texts, server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers import Server
    from store.script_mutants import Mutant
    from store.script_wires import Wire

FILES: Final = (
    *("decide.lua", "settle.lua"),
    *("include/rates.lua", "include/period.lua", "include/roll.lua", "include/standing.lua"),
)
SEEDS: Final = (0, 1, 2)
STEPS: Final = 5000
SAMPLE: Final = 120
ALL: Final = os.environ.get("METERKIT_ALL_MUTANTS") == "1"
EQUIVALENT: Final = equivalents("script_equivalents.txt")


def live(wire: Wire, scripts: Mapping[str, str], seed: int) -> dict[str, int]:
    """Live some thousand steps; how often each command was called."""
    world = World(wire, scripts, life(seed))
    wire(pack("CONFIG", "RESETSTAT"))
    for _ in range(STEPS):
        world.step()
    for name in CUSTOMERS:
        world.check(name)
    stats = wire(pack("INFO", "commandstats")).decode()
    return {name: int(calls) for name, calls in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}


def is_caught(mutant: Mutant, wire: Wire, right: Mapping[int, Mapping[str, int]]) -> bool:
    """Whether the model answers otherwise, or the scripts ask the store more often than they need to."""
    scripts = mutant.texts(load_texts)
    try:
        return any(live(wire, scripts, seed) != right[seed] for seed in SEEDS)
    except MismatchError:
        return True
    finally:
        wire(pack("SCRIPT", "FLUSH"))


@cache
def chosen() -> list[Mutant]:
    every = [mutant for mutant in mutants(FILES) if str(mutant) not in EQUIVALENT]
    # A new sample each day, the same all day long.
    return every if ALL else life(datetime.now(UTC).toordinal()).sample(every, SAMPLE)


@pytest.mark.timeout(3600)
def test_every_mutant_is_caught(valkey: Server) -> None:
    with server_wire(valkey) as wire:
        right = {seed: live(wire, load_texts(), seed) for seed in SEEDS}
        survivors = [str(mutant) for mutant in chosen() if not is_caught(mutant, wire, right)]
    assert survivors == []


def test_every_mutant_of_the_clock_is_caught(valkey: Server) -> None:
    right = source("include/wall.lua")
    with server_wire(valkey) as wire:
        answers = {
            wrong: clock_answers(wire, right.replace(line, wrong))
            for line in right.split("\n")
            if not line.startswith("--")
            for wrong in wrongs(line)
        }
    assert len(answers) > 10
    assert [wrong for wrong, answer in answers.items() if answer == CLOCK] == []


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    possible = {str(mutant) for mutant in mutants(FILES)}
    assert set(EQUIVALENT) <= possible
    assert all(EQUIVALENT.values())
