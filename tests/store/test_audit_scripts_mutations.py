"""Each line of the scripts of the audit log, made wrong on purpose: the model must notice.

A sample of the mutants, another one whenever a script changes; all of them, in some minutes, with
``METERKIT_ALL_MUTANTS=1``.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest

from meterkit.redis.connection import pack
from store.audit_driver import Rebuilding, load_texts
from store.audit_folding import Folding, folding_texts
from store.script_checks import MismatchError
from store.script_driver import life
from store.script_mutants import MORE_SWAPS, equivalents, mutants, sample_of
from store.script_wires import server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.stores import Server
    from store.script_mutants import Mutant
    from store.script_wires import Wire

FOLDING: Final = ("fold.lua", "unfold.lua")
FILES: Final = ("rebuild.lua", "include/forget_periods.lua", *FOLDING)
EQUIVALENT: Final = equivalents("audit_equivalents.txt")
STEPS: Final = 400
SAMPLE: Final = 60


def run(wire: Wire, file: str, mutant: Mutant | None = None) -> dict[str, int]:
    """Live some hundred steps; how often each command was called."""
    load = folding_texts if file in FOLDING else load_texts
    texts = load() if mutant is None else mutant.texts(load)
    driver = (Folding if file in FOLDING else Rebuilding)(wire, texts, life(1))
    wire(pack("CONFIG", "RESETSTAT"))
    for _ in range(STEPS):
        driver.step()
    stats = wire(pack("INFO", "commandstats")).decode()
    return {name: int(calls) for name, calls in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}


def is_caught(mutant: Mutant, wire: Wire, right: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether the model answers otherwise, or the scripts ask the store more often than they need to."""
    try:
        return run(wire, mutant.file, mutant) != right[mutant.file]
    except (MismatchError, TypeError, ValueError, KeyError):  # Also what cannot be read at all.
        return True
    finally:
        wire(pack("SCRIPT", "FLUSH"))
        wire(pack("FLUSHALL"))


@cache
def chosen() -> list[Mutant]:
    every = [mutant for mutant in mutants(FILES, MORE_SWAPS) if str(mutant) not in EQUIVALENT]
    return sample_of(every, SAMPLE)


@pytest.mark.timeout(3600)
def test_every_mutant_is_caught(valkey: Server) -> None:
    with server_wire(valkey) as wire:
        right = {file: run(wire, file) for file in FILES}
        survivors = [str(mutant) for mutant in chosen() if not is_caught(mutant, wire, right)]
    assert survivors == []


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    assert set(EQUIVALENT) <= {str(mutant) for mutant in mutants(FILES, MORE_SWAPS)}
    assert all(EQUIVALENT.values())
