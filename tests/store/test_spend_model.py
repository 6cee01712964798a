"""The scripts under budgets, on a real server and on the one within the process, against a model."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

import pytest

from meterkit.redis.connection import pack
from store.script_counts import MOST
from store.script_driver import life
from store.script_mutants import in_depth, source
from store.script_spend import PaidRowsSpendWorld, PaidSpendWorld, RowsSpendWorld, SpendWorld
from store.script_wires import fake_wire, load_texts, server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.stores import Server
    from store.script_wires import Wire

SEEN: Final = frozenset({"c 0", "c 1", "d 0", "d 1", "s 0", "s 5", "notice", "spend", "over the cap"})
KINDS: Final = (SpendWorld, PaidSpendWorld, RowsSpendWorld, PaidRowsSpendWorld)


def test_prices_of_large_quantities_are_exact(valkey: Server) -> None:
    chance = Random(5)  # noqa: S311 - repeatable
    with server_wire(valkey) as wire:
        for _ in range(2000):
            per = 10 ** chance.randrange(8) * chance.randrange(1, 10)
            micros = chance.randrange(1, MOST // per) if chance.random() < 0.5 else chance.randrange(1, 10**5)
            units = chance.randrange(min(10**15, MOST * per // micros))
            body = f"local MOST = {MOST}\n{source('include/price_of.lua')}"
            asked = f"return string.format('%.0f', price_of({units}, {micros}, {per}))"
            assert int(wire(pack("EVAL", body + asked, 0))) == -(-units * micros // per), (units, micros, per)


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
