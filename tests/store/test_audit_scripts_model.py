"""The script that rebuilds counters does what the model of it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from store.audit_driver import Rebuilding, load_texts
from store.audit_folding import Folding, folding_texts
from store.script_driver import life
from store.script_wires import fake_wire, server_wire

if TYPE_CHECKING:
    from servers.stores import Server


@pytest.mark.parametrize("seed", [1, 2])
def test_counters_are_rebuilt_as_by_the_model(valkey: Server, seed: int) -> None:
    with server_wire(valkey) as wire:
        driver = Rebuilding(wire, load_texts(), life(seed))
        for _ in range(700):
            driver.step()
    codes = {f"rebuild {code}" for code in (0, 1, 2, 5, 6)}
    assert codes | {"parked", "parked together", "left"} <= set(+driver.seen)


def test_the_store_within_the_process_rebuilds_as_the_model_does() -> None:
    driver = Rebuilding(fake_wire(), load_texts("fake"), life(3), slack_ms=1000)
    for _ in range(200):
        driver.step()


def test_what_is_added_up_and_entered_again_keeps_each_unit(valkey: Server) -> None:
    with server_wire(valkey) as wire:
        driver = Folding(wire, folding_texts(), life(4))
        for _ in range(400):
            driver.step()
    assert {"added up", "left"} <= set(+driver.seen)
