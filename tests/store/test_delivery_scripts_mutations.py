"""Each line of the scripts of delivery and administration, made wrong on purpose: the model must notice.

A sample of the mutants, another one whenever a script changes; all of them, in some minutes, with
``METERKIT_ALL_MUTANTS=1``.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest

from meterkit.redis.resp import pack
from store.delivery_checks import NAMES, load_texts
from store.delivery_driver import Delivery
from store.recalling import Recalling
from store.script_checks import MismatchError
from store.script_driver import life
from store.script_mutants import SWAPS, equivalents, mutants, sample_of
from store.script_wires import server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers import Server
    from store.script_mutants import Mutant
    from store.script_wires import Wire

FILES: Final = tuple(f"{name}.lua" for name in NAMES)
MORE_SWAPS: Final = (
    *SWAPS,
    (r"(?<![\w.])floor(?=\()", ("math.ceil",)),
    # Every text: names of fields, states and commands, patterns, numbers that are compared as texts.
    (r"'[^']*'", ("'~'",)),
    # Every command that is called for what it does.
    (r"(?<=^)\s*(?:redis\.)?call\(.*\)$", ("",)),
)
EQUIVALENT: Final = equivalents("delivery_equivalents.txt")
# Its lives have no grants, with which tests/store/test_corrections.py shows restore, and no audit log. Of
# what is refused they have no damaged totals, and nothing in a period's first minute: test_refused.py does.
UNMET: Final = re.compile(
    r"restore\.lua: .*(give_units|micro|units,|granted|cost|correction\.|to_compensate\(sealed)"
    r"|\w+\.lua: .*(audit|untouched)|refuse\.lua: (return 3|if begin |local begins_ms)"
)
SEEDS: Final = (0, 1)
RECALLED: Final = 2
STEPS: Final = 2400
SAMPLE: Final = 24
ALL: Final = os.environ.get("METERKIT_ALL_MUTANTS") == "1"


def run(wire: Wire, texts: Mapping[str, str], seed: int, kind: type[Delivery] = Delivery) -> dict[str, int]:
    """Live some thousand steps; how often each command was called."""
    delivery = kind(wire, texts, life(seed))
    wire(pack("CONFIG", "RESETSTAT"))
    for _ in range(STEPS if kind is Delivery else STEPS // 6):
        delivery.step()
    stats = wire(pack("INFO", "commandstats")).decode()
    return {name: int(calls) for name, calls in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}


def is_caught(mutant: Mutant, wire: Wire, right: Mapping[int, Mapping[str, int]]) -> bool:
    """Whether the model answers otherwise, or the scripts ask the store more often than they need to."""
    texts = mutant.texts(load_texts)
    try:
        if mutant.file == "recall.lua":  # Of all that it says only this kind of life is sure to meet.
            return run(wire, texts, RECALLED, Recalling) != right[RECALLED]
        return any(run(wire, texts, seed) != right[seed] for seed in SEEDS)
    except (MismatchError, TypeError, ValueError):  # Also what cannot be read at all.
        return True
    finally:
        wire(pack("SCRIPT", "FLUSH"))
        wire(pack("FLUSHALL"))


@cache
def chosen() -> list[Mutant]:
    every = [
        mutant
        for mutant in mutants(FILES, MORE_SWAPS)
        if str(mutant) not in EQUIVALENT and not UNMET.match(str(mutant))
    ]
    return every if ALL else sample_of(every, SAMPLE)


@pytest.mark.timeout(3600)
def test_every_mutant_is_caught(valkey: Server) -> None:
    with server_wire(valkey) as wire:
        right = {seed: run(wire, load_texts(), seed) for seed in SEEDS}
        right[RECALLED] = run(wire, load_texts(), RECALLED, Recalling)
        survivors = [str(mutant) for mutant in chosen() if not is_caught(mutant, wire, right)]
    assert survivors == []


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    assert set(EQUIVALENT) <= {str(mutant) for mutant in mutants(FILES, MORE_SWAPS)}
    assert all(EQUIVALENT.values())
