"""I6, I13: a process is killed between any two steps of writing lines; each unit is on exactly one."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import pytest

from drivers.line_stories import END, Billed, bill_of, die_everywhere, sign_up, turn
from drivers.plans import plans_text
from drivers.usage_lines import add_pending
from drivers.world import World
from meterkit.catalog import loads

CATALOG: Final = loads(plans_text("invoice_lines"))


async def write_lines(world: World, dies_at: int, *, is_subscribed: bool) -> Billed:
    """Use words until the period is over; have the process die as it writes their line, or adds to it."""
    await sign_up(world, is_subscribed=is_subscribed)
    await world.do(world.kit.record("acme", "words", 126))
    await world.until(END + timedelta(minutes=4))
    first = world.process
    before, first.dies_at = first.steps, first.steps + dies_at if dies_at else 0
    await turn(world)
    await _arrive_late(world, 5)
    await turn(world)
    steps, first.dies_at = first.steps - before, 0
    await world.sleep(hours=2)
    await turn(world)
    await world.until(END + timedelta(days=31, minutes=4))
    await turn(world)
    return await bill_of(world, [END], steps=steps)


async def _arrive_late(world: World, units: int) -> None:
    """Have units of the closed period become pending when its line is written."""
    dies_at, world.process.dies_at = world.process.dies_at, 0
    await world.do(add_pending(world.kit, units))
    world.process.dies_at = dies_at


async def move_pending_line(world: World, dies_at: int) -> Billed:
    """Have a line wait for a renewal that never comes; the process dies as it gives it another invoice."""
    await sign_up(world)
    await world.do(world.kit.record("acme", "words", 126))
    await world.until(END + timedelta(hours=3))
    await turn(world)
    (subscription,) = await world.list("/v1/subscriptions")
    await world.ask("DELETE", f"/v1/subscriptions/{subscription['id']}")
    first = world.process
    before, first.dies_at = first.steps, first.steps + dies_at if dies_at else 0
    await turn(world, 12)
    steps, first.dies_at = first.steps - before, 0
    await world.sleep(hours=2)
    await turn(world)
    assert await world.list("/v1/invoiceitems", pending="true") == []
    return await bill_of(world, [END], steps=steps)


@pytest.mark.dear("each death is a story of its own")
@pytest.mark.parametrize("is_subscribed", [True, False])
@pytest.mark.whole
def test_i6_a_process_dies_as_it_writes_lines(monkeypatch: pytest.MonkeyPatch, is_subscribed: bool) -> None:
    async def story(world: World, dies_at: int) -> Billed:
        return await write_lines(world, dies_at, is_subscribed=is_subscribed)

    alive = die_everywhere(monkeypatch, story, CATALOG)
    assert (alive.lines, alive.counts, alive.advice) == ([(True, 31, 124)], [(31, 0)], [""])


@pytest.mark.dear("each death is a story of its own")
def test_i6_a_process_dies_as_it_moves_a_pending_line(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = die_everywhere(monkeypatch, move_pending_line, CATALOG)
    assert (alive.lines, alive.counts, alive.advice) == ([(True, 26, 104)], [(0, 26)], [""])
