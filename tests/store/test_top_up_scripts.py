"""The scripts of automatic top-ups and of refunds, against a model; each of their lines made wrong."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import pytest

from store.script_checks import MismatchError
from store.script_driver import life
from store.script_mutants import MORE_SWAPS, equivalents, in_depth, mutants, sample_of
from store.script_top_ups import TopUps, load_texts
from store.script_wires import fake_wire, server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.stores import Server
    from store.script_mutants import Mutant
    from store.script_wires import Wire

FILES: Final = ("reclaim.lua", "top_up.lua")
SAID: Final = {
    *("begin 0", "begin 1", "paid 0", "failed 0", "none 0", "bought 0", "on 0", "off 0"),
    *("reclaim none", "reclaim all", "reclaim more"),
}
EQUIVALENT: Final = equivalents("script_equivalents_top_ups.txt")


def live(wire: Wire, texts: Mapping[str, str], seed: int, steps: int) -> TopUps:
    world = TopUps(wire, texts, life(seed))
    for _ in range(steps):
        world.step()
    return world


@pytest.mark.parametrize("seed", range(in_depth(2, 8)))
def test_top_ups_and_refunds_are_counted_as_the_model_counts(valkey: Server, seed: int) -> None:
    with server_wire(valkey) as wire:
        world = live(wire, load_texts(), seed, in_depth(2000, 12_000))
    assert world.seen == SAID


def test_so_they_are_in_the_store_within_the_process() -> None:
    live(fake_wire(), load_texts("fake"), 7, in_depth(300, 2000))


@cache
def chosen() -> list[Mutant]:
    every = [mutant for mutant in mutants(FILES, MORE_SWAPS) if str(mutant) not in EQUIVALENT]
    return sample_of(every, 24)


@pytest.mark.timeout(3600)
def test_every_mutant_is_caught(valkey: Server) -> None:
    with server_wire(valkey) as wire:
        survivors = [str(mutant) for mutant in chosen() if not is_caught(mutant, wire)]
    assert "\n".join(survivors) == ""


def is_caught(mutant: Mutant, wire: Wire) -> bool:
    try:
        live(wire, mutant.texts(load_texts), 0, 3000)
    except (MismatchError, TypeError, ValueError):  # Also what cannot be read at all.
        return True
    return False


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    assert set(EQUIVALENT) <= {str(mutant) for mutant in mutants(FILES, MORE_SWAPS)}
    assert all(EQUIVALENT.values())
