"""The scripts of delivery and administration, on real servers and within the process, against the model."""

# Internals: the script models, which are the specification.

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from store.delivery_checks import load_texts
from store.delivery_driver import Delivery
from store.overtaking import Overtaking
from store.recalling import Recalling
from store.refusing import Refusing
from store.restoring import Repricing, Restoring
from store.script_driver import life
from store.script_mutants import in_depth
from store.script_wires import fake_wire, server_wire
from store.stranding import Stranding

if TYPE_CHECKING:
    from servers.stores import Server

# Each answer that the scripts have; `fence` and `usage` answer with numbers.
ANSWERS = {
    *("seal 0", "seal 2", "seal 3", "move 0", "move 2", "amend 0", "amend 1", "lease 0", "lease 1"),
    *(
        "claim 0",
        "claim 1",
        "forget 0",
        "forget 1",
        "forget 2",
        "forget 3",
        "seal 4",
        "recall 0",
        "change_state 0",
        "change_state 1",
        "change_state 2",
        "taken back at Stripe",
        "refuse 0",
        "refuse 1",
        "refuse 2",
        "restore 0",
        "restore 1",
        "restore 2",
        "restore 3",
        "restore 4",
        "recall 1",
        "count 9",
        "fence -1",
        "fence 9",
        "usage 9",
    ),
}


@pytest.mark.dear("a life long enough for every answer")
@pytest.mark.parametrize("seed", range(101, 101 + in_depth(1, 9)))
def test_the_scripts_of_delivery_do_what_the_model_does(valkey: Server, seed: int) -> None:
    with server_wire(valkey) as wire:
        delivery = Delivery(wire, load_texts(), life(seed))
        for _ in range(in_depth(600, 1500)):
            delivery.step()
    # A driver that never gets a script to say something has not tested it.
    assert ANSWERS <= {answer for answer, times in delivery.seen.items() if times}


def test_redis_delivers_as_the_model_does(redis_server: Server) -> None:
    with server_wire(redis_server) as wire:
        # This one tells lives by a clock that goes on while a script runs.
        delivery = Delivery(wire, load_texts(), life(111), slack_ms=1000)
        for _ in range(in_depth(300, 1500)):
            delivery.step()


def test_the_store_within_the_process_delivers_as_the_model_does() -> None:
    # So does this one.
    delivery = Delivery(fake_wire(), load_texts("fake"), life(112), slack_ms=1000)
    for _ in range(in_depth(100, 3000)):
        delivery.step()


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        (
            Stranding,
            {
                "strand 0",
                "late",
                "late and billed",
                "late and by item",
                "a correction undone",
                "strand 8",
                "strand 9",
            },
        ),
        (
            Overtaking,
            {"seal 0", "settle_item 0", "settle_item 1", "withdraw 0", "withdraw 1", "withdraw 2", "late"},
        ),
        (Recalling, {"recall 0", "recall 1"}),
        (Refusing, {"refuse 0", "refuse 1", "refuse 2", "refuse 3"}),
        (
            Restoring,
            {
                "restore 0",
                "restore 1",
                "restore 9",
                "units given back",
                "credits given back",
                "units left to credit notes",
            },
        ),
        (Repricing, {"restore 0", "restore 1", "taken back at Stripe under two events"}),
    ],
)
def test_so_they_do_in_lives_of_their_own(valkey: Server, kind: type[Delivery], answers: set[str]) -> None:
    with server_wire(valkey) as wire:
        delivery = kind(wire, load_texts(), life(9))
        for _ in range(in_depth(200, 3000)):
            delivery.step()
    assert answers <= set(+delivery.seen)
