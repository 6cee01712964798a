"""The scripts of gauges and of repeats, on real servers and on the one within the process, against a model.

Each of their lines is made wrong on purpose, too: the model must notice. A sample of them; all with
``METERKIT_ALL_MUTANTS=1``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from store.script_checks import MismatchError
from store.script_driver import life
from store.script_gauges import GaugeWorld, KeepingWorld
from store.script_mutants import equivalents, in_depth, mutants, sample_of
from store.script_repeats import RepeatWorld
from store.script_wires import fake_wire, load_texts, server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from servers.stores import Server
    from store.script_wires import Wire

FILES: Final = (
    "level.lua",
    *(
        f"include/{name}.lua"
        for name in (
            "weigh_gauges",
            "presigned_of",
            "level_of",
            "standing_of",
            "regauge",
            "first_of",
            "remember",
            "end_flight",
        )
    ),
)
SEEDS: Final = 3
STEPS: Final = 2500
SAMPLE: Final = 20
SHARES: Final = 2  # Tests, so that several processes may share them.
SEEN: Final = frozenset(
    {
        *("d 0", "d 1", "c 0", "c 1", "s 0", "s 5", "f 0", "f 1"),
        *("level 0", "level 1", "level 4", "level 5", "notice", "amend", "presign"),
    }
)
KINDS: Final[Mapping[type[GaugeWorld], AbstractSet[str]]] = {
    GaugeWorld: SEEN,
    KeepingWorld: SEEN | {"kept", "kept unlimited"},
    RepeatWorld: {
        *("d 0", "d 1", "d 6", "d 8", "f 0", "f 1", "f 6", "in flight", "s 0", "s 5", "s 6", "s 7"),
        *("settled False", "settled True"),
    },
}
EQUIVALENT: Final = equivalents("script_equivalents_gauges.txt")


def live(
    wire: Wire, texts: Mapping[str, str], seed: int, steps: int = STEPS, kind: type[GaugeWorld] = GaugeWorld
) -> GaugeWorld:
    world = kind(wire, texts, life(seed))
    for _ in range(steps):
        world.step()
    world.damage()
    return world


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("kind", KINDS)
def test_the_scripts_do_what_the_model_says(valkey: Server, seed: int, kind: type[GaugeWorld]) -> None:
    with server_wire(valkey) as wire:
        assert live(wire, load_texts(), seed, kind=kind).seen >= KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_redis_does_what_the_model_does(redis_server: Server, kind: type[GaugeWorld]) -> None:
    with server_wire(redis_server) as wire:
        live(wire, load_texts(), 7, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_within_the_process_does_what_the_model_does(kind: type[GaugeWorld]) -> None:
    live(fake_wire(), load_texts("fake"), 8, in_depth(400, 2000), kind)


@pytest.mark.parametrize("share", range(SHARES))
def test_every_mutant_is_caught(valkey: Server, share: int) -> None:
    survivors: list[str] = []
    with server_wire(valkey) as wire:
        every = [mutant for mutant in mutants(FILES) if str(mutant) not in EQUIVALENT]
        for mutant in sample_of(every, SAMPLE)[share::SHARES]:
            texts = mutant.texts(load_texts)
            try:
                for seed in range(SEEDS):
                    for kind in KINDS:
                        live(wire, texts, seed, kind=kind)
            except (MismatchError, TypeError, ValueError):  # Also what cannot be read at all.
                continue
            survivors.append(str(mutant))
    assert survivors == [], "\n".join(survivors)


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    assert set(EQUIVALENT) <= {str(mutant) for mutant in mutants(FILES)}
    assert all(EQUIVALENT.values())
