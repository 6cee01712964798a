"""I6, I13: a process is killed between any two steps of a move between metered prices and invoice lines."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Final

import pytest

from drivers.line_stories import END, Billed, bill_of, die_everywhere, sign_up, turn
from drivers.plans import plans_text
from drivers.world import Killed, World
from meterkit import SubscriptionBusyError
from meterkit.catalog import Catalog, loads

LINES: Final = loads(plans_text("invoice_lines"))
METERS: Final = loads(plans_text("invoice_lines").replace("{usage: lines}", "{usage: meters}"))
NEXT_END: Final = END + timedelta(days=31)


async def move(world: World, to: Catalog, dies_at: int) -> Billed:
    """Move usage amid a period, and bill two periods; the process dies in the move, or as it takes effect."""
    await sign_up(world)
    await world.do(world.kit.record("acme", "words", 126))
    await turn(world)
    await world.deploy(to)
    await world.do(world.kit.stripe.sync())
    first = world.process
    before, first.dies_at = first.steps, first.steps + dies_at if dies_at else 0
    await _move_usage(world)
    await turn(world)
    await _record(world, 10)
    await turn(world)
    await world.until(END + timedelta(minutes=4))
    await turn(world)
    steps, first.dies_at = first.steps - before, 0
    await _record(world, 120)
    await world.sleep(hours=2)
    await turn(world)
    await world.until(NEXT_END + timedelta(minutes=4))
    await turn(world)
    await world.sleep(hours=2)
    await turn(world)
    return await bill_of(world, [END, NEXT_END], steps=steps)


async def _move_usage(world: World) -> None:
    """Move until it is done, as an operator repeats a command that was interrupted."""
    while True:
        with suppress(Killed, SubscriptionBusyError):
            await world.do(world.kit.subscriptions.move_usage("acme"))
            return
        await world.sleep(minutes=1)
        if not world.process.is_alive:
            await world.begin()


async def _record(world: World, units: int) -> None:
    """Use words, which is no step of a move."""
    dies_at, world.process.dies_at = world.process.dies_at, 0
    await world.do(world.kit.record("acme", "words", units))
    world.process.dies_at = dies_at


@pytest.mark.dear("each death is a story of its own")
@pytest.mark.parametrize("to", ["lines", "meters"])
@pytest.mark.whole
def test_i6_a_process_dies_as_usage_moves(monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    by_lines = to == "lines"
    former, target = (METERS, LINES) if by_lines else (LINES, METERS)

    async def story(world: World, dies_at: int) -> Billed:
        return await move(world, target, dies_at)

    alive = die_everywhere(monkeypatch, story, former)
    assert alive.lines == sorted([(not by_lines, 36, 144), (by_lines, 20, 80)])
    assert (alive.counts, set(alive.advice)) == ([(36, 0), (20, 0)], {""})
