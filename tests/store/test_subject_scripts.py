"""What the scripts count and hold of users and teams, against a model; each of their lines made wrong."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest

from meterkit.redis.connection import pack
from store.script_checks import MismatchError
from store.script_driver import life
from store.script_mutants import equivalents, in_depth, mutants, sample_of
from store.script_subjects import DayWorld, HourWorld, SubjectWorld
from store.script_wires import fake_wire, load_texts, server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.stores import Server
    from store.script_mutants import Mutant
    from store.script_wires import Wire

FILES: Final = tuple(
    f"include/{name}.lua" for name in ("take_subjects", "weigh_subjects", "settle_subjects", "keep_subject")
)
KINDS: Final = (HourWorld, SubjectWorld, DayWorld)
SAID: Final = {
    *(f"decide {code}" for code in (0, 1, 5, 6, 7, 8)),
    *("dead", "repeat", "renewed", "damaged", "no room", "expired"),
}
EQUIVALENT: Final = equivalents("script_equivalents_subjects.txt")
SHARES: Final = 2


def live(
    wire: Wire, texts: Mapping[str, str], seed: int, steps: int, kind: type[SubjectWorld]
) -> Counter[str]:
    world = kind(wire, texts, life(seed))
    for _ in range(steps):
        world.step()
    return +world.seen


def test_users_and_teams_are_counted_as_the_model_counts(valkey: Server) -> None:
    seen = Counter[str]()
    with server_wire(valkey) as wire:
        for seed in range(in_depth(1, 8)):
            for kind in KINDS:
                seen += live(wire, load_texts(), seed, in_depth(1200, 5000), kind)
    assert set(seen) >= SAID


def test_so_they_are_in_the_store_within_the_process() -> None:
    live(fake_wire(), load_texts("fake"), 7, in_depth(150, 1000), HourWorld)


@cache
def chosen() -> list[Mutant]:
    every = [mutant for mutant in mutants(FILES) if str(mutant) not in EQUIVALENT]
    return sample_of(every, 12)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("share", range(SHARES))
def test_every_mutant_is_caught(valkey: Server, share: int) -> None:
    with server_wire(valkey) as wire:
        survivors = [str(mutant) for mutant in chosen()[share::SHARES] if not is_caught(mutant, wire)]
    assert survivors == [], "\n".join(survivors)


def is_caught(mutant: Mutant, wire: Wire) -> bool:
    texts = mutant.texts(load_texts)
    for seed, kind in enumerate(KINDS):
        try:
            live(wire, texts, seed, 1500, kind)
        except (
            MismatchError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
        ):  # Also what cannot be read at all.
            return True
        finally:
            wire(pack("SCRIPT", "FLUSH"))
            wire(pack("FLUSHALL"))  # Keys that a mutant has left without a TTL.
    return False


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    assert set(EQUIVALENT) <= {str(mutant) for mutant in mutants(FILES)}
    assert all(EQUIVALENT.values())
