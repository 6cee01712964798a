"""The script that decides for many requests at once: it leaves behind what as many decisions leave."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Final

import pytest

from store.script_allotting import AllotWorld
from store.script_allotting_paid import PaidAllotWorld
from store.script_checks import MismatchError
from store.script_driver import life
from store.script_mutants import equivalents, in_depth, mutants, sample_of
from store.script_wires import fake_wire, load_texts, server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.stores import Server
    from store.script_mutants import Mutant
    from store.script_wires import Wire

WORLDS: Final = {
    "allot.lua": (AllotWorld, PaidAllotWorld),
    "include/room_for.lua": (AllotWorld,),
    "include/pack_more.lua": (AllotWorld, PaidAllotWorld),
    "include/weigh_many.lua": (PaidAllotWorld,),
    "include/held_besides.lua": (PaidAllotWorld,),
}
FILES: Final = tuple(WORLDS)
SAID: Final = {"allot 0", "allot one", "allot 1", "allot 2", "given back", "decide 0", "decide 1"}
EQUIVALENT: Final = equivalents("script_equivalents_allotting.txt")
STEPS: Final = 1000


def live(
    wire: Wire, texts: Mapping[str, str], seed: int, steps: int, of: type[AllotWorld] = AllotWorld
) -> AllotWorld:
    world = of(wire, texts, life(seed))
    for _ in range(steps):
        world.step()
    world.damage()
    return world


@pytest.mark.parametrize("seed", range(in_depth(2, 8)))
def test_i3_an_allotment_counts_what_as_many_decisions_count(valkey: Server, seed: int) -> None:
    with server_wire(valkey) as wire:
        world = live(wire, load_texts(), seed, in_depth(1500, 12_000))
    assert SAID <= set(world.seen)


@pytest.mark.parametrize("seed", range(in_depth(2, 8)))
def test_i3_an_allotment_of_grants_credits_and_budgets_holds_what_as_many_decisions_hold(
    valkey: Server, seed: int
) -> None:
    with server_wire(valkey) as wire:
        world = live(wire, load_texts(), seed, in_depth(1500, 12_000), PaidAllotWorld)
    assert {*SAID, "grant", "short"} <= set(world.seen)


def test_i3_an_allotment_counts_what_as_many_decisions_count_in_memory() -> None:
    world = live(fake_wire(), load_texts("fake"), 7, in_depth(200, 1000))
    assert "allot 0" in world.seen


@cache
def chosen() -> list[Mutant]:
    every = [mutant for mutant in mutants(FILES) if str(mutant) not in EQUIVALENT]
    return sample_of(every, 12)


@pytest.mark.timeout(3600)
def test_every_mutant_is_caught(valkey: Server) -> None:
    with server_wire(valkey) as wire:
        survivors = [str(mutant) for mutant in chosen() if not is_caught(mutant, wire)]
    assert "\n".join(survivors) == ""


def is_caught(mutant: Mutant, wire: Wire) -> bool:
    texts = mutant.texts(load_texts)
    for seed, world in product((0, 1, 2), WORLDS[mutant.file]):
        try:
            live(wire, texts, seed, STEPS, world)
        except (MismatchError, TypeError, ValueError, IndexError):  # Also what cannot be read at all.
            return True
    return False


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    assert set(EQUIVALENT) <= {str(mutant) for mutant in mutants(FILES)}
    assert all(EQUIVALENT.values())
