"""The scripts under budgets, on a real server and on the one within the process, against a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from store.script_driver import life
from store.script_mutants import in_depth
from store.script_spend import PaidSpendWorld, SpendWorld
from store.script_wires import fake_wire, load_texts, server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers import Server
    from store.script_wires import Wire

SEEN: Final = frozenset({"c 0", "c 1", "d 0", "d 1", "s 0", "s 5", "notice", "spend"})
KINDS: Final = (SpendWorld, PaidSpendWorld)


def live(
    wire: Wire, texts: Mapping[str, str], seed: int, kind: type[SpendWorld], *, steps: int
) -> SpendWorld:
    world = kind(wire, texts, life(seed))
    for _ in range(steps):
        world.step()
    return world


@pytest.mark.parametrize("seed", range(in_depth(2, 20)))
@pytest.mark.parametrize("kind", KINDS)
def test_the_scripts_do_what_the_model_says(valkey: Server, seed: int, kind: type[SpendWorld]) -> None:
    with server_wire(valkey) as wire:
        assert live(wire, load_texts(), seed, kind, steps=in_depth(2500, 5000)).seen >= SEEN


@pytest.mark.parametrize("kind", KINDS)
def test_redis_does_what_the_model_does(redis_server: Server, kind: type[SpendWorld]) -> None:
    with server_wire(redis_server) as wire:
        live(wire, load_texts(), 7, kind, steps=2500)


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_within_the_process_does_what_the_model_does(kind: type[SpendWorld]) -> None:
    live(fake_wire(), load_texts("fake"), 8, kind, steps=in_depth(400, 2000))
