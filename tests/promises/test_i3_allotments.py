"""I3 with allotments: the store counts at least what was admitted, whatever crashes between any two steps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from store.allotting_processes import Processes
from store.script_driver import life
from store.script_wires import load_texts, server_wire

if TYPE_CHECKING:
    from servers import Server

STEPS: Final = int(os.environ.get("METERKIT_ALLOTMENT_STEPS", "4000"))
"""In all; a million before a release."""
SEEDS: Final = 4


@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_i3_the_store_counts_at_least_what_allotments_admit(valkey: Server, seed: int) -> None:
    with server_wire(valkey) as wire:
        world = Processes(wire, load_texts(), life(seed))
        for _ in range(STEPS // SEEDS):
            world.step()
        world.settle_all()
        recorded = world.recorded
    assert {"unit", "decided", "refused", "killed", "stopped"} <= set(world.said)
    # What a killed process had not settled is lost, and no more.
    assert world.billed - world.lost <= recorded <= world.billed
