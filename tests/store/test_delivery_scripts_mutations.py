"""Each line of the scripts of delivery and administration, made wrong on purpose: the model must notice.

A sample of the mutants in short lives, another one whenever a script changes: half of it must be noticed.
With ``METERKIT_ALL_MUTANTS=1`` each mutant lives as long as it takes, and each must be noticed.
"""

# Internals: the script models, which are the specification.

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest

from meterkit.redis.connection import pack
from store.delivery_checks import NAMES, load_texts
from store.delivery_driver import Delivery
from store.overtaking import Overtaking
from store.recalling import Recalling
from store.refusing import Refusing
from store.restoring import Repricing, Restoring
from store.script_driver import life
from store.script_mutants import MORE_SWAPS, equivalents, is_sampled, mutants, sample_of
from store.script_wires import server_wire
from store.script_world import MismatchError
from store.stranding import Stranding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.stores import Server
    from store.script_mutants import Mutant
    from store.script_wires import Wire

CORRECTED: Final = ("include/lower_rows.lua", "include/lower_spend.lua", "include/enter_correction.lua")
SEALED: Final = tuple(
    f"include/{name}.lua"
    for name in ("sealed_units", "take_class", "take_back", "leave_by_hand", "assign_lines")
)
LATE: Final = tuple(
    f"include/{name}.lua" for name in ("overtake", "late_parts", "queue_item", "count_item", "lower_mark")
)
PRICES: Final = (
    "include/mark_prices.lua",
    "include/begin_prices.lua",
    "include/free_minute.lua",
    "include/over_minute.lua",
)
FILES: Final = (
    *(f"{name}.lua" for name in NAMES),
    "include/give_units_back.lua",
    "include/payer_of.lua",
    "include/close_past.lua",
    *LATE,
    *PRICES,
    *CORRECTED,
    *SEALED,
)
EQUIVALENT: Final = equivalents("delivery_equivalents.txt")
COMMON: Final[Mapping[int, type[Delivery]]] = {0: Delivery, 1: Delivery}
# What some say is sure to be met in lives of their own.
LIVES: Final[Mapping[str, Mapping[int, type[Delivery]]]] = {
    "recall.lua": {2: Recalling},
    "refuse.lua": {3: Refusing},
    "seal.lua": {**COMMON, 5: Overtaking},
    **{file: {5: Overtaking} for file in LATE},
    "withdraw.lua": {5: Overtaking},
    "settle_item.lua": {5: Overtaking},
    "restore.lua": {**COMMON, 4: Restoring, 7: Repricing},
    **{file: {7: Repricing, 4: Restoring, 8: Repricing} for file in CORRECTED},
    **{file: {4: Restoring, 7: Repricing, **COMMON} for file in SEALED},
    "include/give_units_back.lua": {4: Restoring},
    "include/payer_of.lua": {4: Restoring},
    "strand.lua": {6: Stranding},
    "include/mark_prices.lua": {**COMMON, 6: Stranding},
    "include/begin_prices.lua": {**COMMON, 6: Stranding},
}
STEPS: Final = 2400
SAMPLE: Final = 10


def run(wire: Wire, texts: Mapping[str, str], seed: int, kind: type[Delivery] = Delivery) -> dict[str, int]:
    """Live some thousand steps; how often each command was called."""
    delivery = kind(wire, texts, life(seed))
    wire(pack("CONFIG", "RESETSTAT"))
    for _ in range(STEPS // (4 if is_sampled() else 1) if kind is Delivery else STEPS // 6):
        delivery.step()
    stats = wire(pack("INFO", "commandstats")).decode()
    return {name: int(calls) for name, calls in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}


def is_caught(mutant: Mutant, wire: Wire, right: Mapping[int, Mapping[str, int]]) -> bool:
    """Whether the model answers otherwise, or the scripts ask the store more often than they need to."""
    texts = mutant.texts(load_texts)
    try:
        return any(
            run(wire, texts, seed, kind) != right.get(seed) and not is_sampled()
            for seed, kind in LIVES.get(mutant.file, COMMON).items()
        )
    except (
        MismatchError,
        TypeError,
        ValueError,
        AttributeError,
        KeyError,
    ):  # Also what cannot be read at all.
        return True
    finally:
        wire(pack("SCRIPT", "FLUSH"))
        wire(pack("FLUSHALL"))


@cache
def chosen() -> list[Mutant]:
    every = [mutant for mutant in mutants(FILES, MORE_SWAPS) if str(mutant) not in EQUIVALENT]
    return sample_of(every, SAMPLE)


@pytest.mark.dear("each mutant has lives of its own")
@pytest.mark.timeout(3600)
def test_every_mutant_is_caught(valkey: Server) -> None:
    with server_wire(valkey) as wire:
        lives = {seed: kind for of in (COMMON, *LIVES.values()) for seed, kind in of.items()}
        right = {
            seed: {} if is_sampled() else run(wire, load_texts(), seed, kind) for seed, kind in lives.items()
        }
        survivors = [str(mutant) for mutant in chosen() if not is_caught(mutant, wire, right)]
    assert len(survivors) <= (SAMPLE // 2 if is_sampled() else 0), "\n".join(survivors)


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    assert set(EQUIVALENT) <= {str(mutant) for mutant in mutants(FILES, MORE_SWAPS)}
    assert all(EQUIVALENT.values())
