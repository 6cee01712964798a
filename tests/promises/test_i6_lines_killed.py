"""I6, I13: a process is killed between any two steps of writing lines; each unit is on exactly one."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from drivers.plans import plans_text
from drivers.usage_lines import add_pending
from drivers.world import Killed, World, run
from meterkit.catalog import loads

START: Final = datetime(2031, 6, 1, tzinfo=UTC)
END: Final = datetime(2031, 7, 1, tzinfo=UTC)
CATALOG: Final = loads(plans_text("invoice_lines"))
# The process dies at so many of its steps.
DEATHS: Final = 500 if os.environ.get("METERKIT_LIVES") else 12
TURNS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Billed:
    """The bill at the end of a story.

    Attributes:
        steps: number of steps in which the process might have died.
        lines: units and cents of each line that meterkit has written.
        delivered, late: units, by the kit.
        advice: of ``reconcile``.
    """

    steps: int
    lines: list[tuple[int, int]]
    delivered: int
    late: int
    advice: list[str]


async def live(world: World, *, is_subscribed: bool, dies_at: int) -> Billed:
    """Use words until the period is over; have the process die as it writes their line, or adds to it."""
    await _sign_up(world, is_subscribed=is_subscribed)
    await world.do(world.kit.record("acme", "words", 126))
    await world.until(END + timedelta(minutes=4))
    first = world.process
    before, first.dies_at = first.steps, first.steps + dies_at if dies_at else 0
    await _turn(world, TURNS)
    await _arrive_late(world, 5)
    await _turn(world, TURNS)
    steps, first.dies_at = first.steps - before, 0
    await world.sleep(hours=2)
    await _turn(world, TURNS)
    await world.until(END + timedelta(days=31, minutes=4))
    await _turn(world, TURNS)
    books = await world.do(world.kit.reconcile("acme", at=END - timedelta(days=1)))
    counts = (await world.do(world.kit.usage("acme", period=END - timedelta(days=1))))["meters"]["words"]
    return Billed(
        steps=steps,
        lines=await _lines(world),
        delivered=counts["delivered"],
        late=counts["late"],
        advice=[one.advice for one in books],
    )


async def _sign_up(world: World, *, is_subscribed: bool) -> None:
    world.emulator.add_plans(CATALOG)
    world.emulator.add_customer("cus_acme")
    world.emulator.add_payment_method("cus_acme")
    await world.do(world.kit.customers.link("acme", "cus_acme"))
    if is_subscribed:
        await world.do(world.kit.stripe.sync())
        made = await world.do(world.kit.subscriptions.create("acme", "pro"))
        if made.client_secret is not None and made.subscription.status == "incomplete":
            world.emulator.confirm_payment(made.client_secret)
        await world.do(world.kit.subscriptions.sync("acme"))
    else:
        await world.do(world.kit.customers.set_plan("acme", "pro"))
    await world.turn()


async def _turn(world: World, times: int) -> None:
    for _ in range(times):
        await world.sleep(minutes=2)
        with suppress(Killed):
            await world.turn()
        if not world.process.is_alive:
            await world.begin()


async def _arrive_late(world: World, units: int) -> None:
    """Have units of the closed period become pending when its line is written."""
    dies_at, world.process.dies_at = world.process.dies_at, 0
    await world.do(add_pending(world.kit, units))
    world.process.dies_at = dies_at


async def _lines(world: World) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for invoice in await world.list("/v1/invoices"):
        lines = await world.list(f"/v1/invoices/{invoice['id']}/lines")
        ours: list[dict[str, Any]] = [line for line in lines if "meterkit_line" in line["metadata"]]
        found += [(int(line["quantity"]), line["amount"]) for line in ours]
    return found


@pytest.mark.dear("each death is a story of its own")
@pytest.mark.parametrize("is_subscribed", [True, False])
def test_i6_a_process_dies_as_it_writes_lines(monkeypatch: pytest.MonkeyPatch, is_subscribed: bool) -> None:
    def lived(dies_at: int) -> Billed:
        async def story(world: World) -> Billed:
            return await live(world, is_subscribed=is_subscribed, dies_at=dies_at)

        return run(monkeypatch, story, catalog=CATALOG, start=START)

    alive = lived(0)
    assert (alive.lines, alive.delivered, alive.late, alive.advice) == ([(31, 124)], 31, 0, [""])
    for dies_at in range(1, alive.steps + 1, max(1, alive.steps // DEATHS)):
        dead = lived(dies_at)
        assert (dies_at, dead.lines, dead.delivered, dead.late, dead.advice) == (
            dies_at,
            alive.lines,
            alive.delivered,
            alive.late,
            alive.advice,
        )
