"""The script of stored objects, on real servers and on the one within the process, against a model.

Each of its lines is made wrong on purpose, too: the model must notice. A sample of them; all with
``METERKIT_ALL_MUTANTS=1``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from store.script_checks import MismatchError
from store.script_driver import life
from store.script_mutants import equivalents, in_depth, mutants, sample_of
from store.script_objects import ObjectsWorld
from store.script_wires import fake_wire, load_texts, server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.stores import Server
    from store.script_wires import Wire

FILES: Final = (
    *("shelve.lua", "presign.lua"),
    *(
        f"include/{name}.lua"
        for name in ("object_of", "supersedes", "listed_over", "settle_presigned", "hold_presigned")
    ),
)
SEEDS: Final = 3
STEPS: Final = 2000
SAMPLE: Final = 20
SEEN: Final = {"stale", "too much", "listing", "meanwhile", "listed before", "unclear", "clear"} | {
    "presigned",
    "settled",
    "too many",
}
EQUIVALENT: Final = equivalents("script_equivalents_objects.txt")


def live(wire: Wire, texts: Mapping[str, str], seed: int, steps: int = STEPS) -> set[str]:
    world = ObjectsWorld(wire, texts, life(seed))
    for _ in range(steps):
        world.step()
    world.damage()
    world.end()
    return world.seen


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_script_does_what_the_model_says(valkey: Server, seed: int) -> None:
    with server_wire(valkey) as wire:
        assert live(wire, load_texts(), seed) == SEEN


def test_redis_does_what_the_model_does(redis_server: Server) -> None:
    with server_wire(redis_server) as wire:
        live(wire, load_texts(), 7)


def test_the_store_within_the_process_does_what_the_model_does() -> None:
    live(fake_wire(), load_texts("fake"), 8, in_depth(300, 2000))


def test_every_mutant_is_caught(valkey: Server) -> None:
    survivors: list[str] = []
    with server_wire(valkey) as wire:
        every = [mutant for mutant in mutants(FILES) if str(mutant) not in EQUIVALENT]
        for mutant in sample_of(every, SAMPLE):
            texts = mutant.texts(load_texts)
            try:
                for seed in range(SEEDS):
                    live(wire, texts, seed)
            except (MismatchError, TypeError, ValueError):  # Also what cannot be read at all.
                continue
            finally:
                ObjectsWorld(wire, texts, life(0)).end()
            survivors.append(str(mutant))
    assert survivors == [], "\n".join(survivors)


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    assert set(EQUIVALENT) <= {str(mutant) for mutant in mutants(FILES)}
    assert all(EQUIVALENT.values())
