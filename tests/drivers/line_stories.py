"""Stories in a world of its own (``drivers.world``) in which a process dies as it bills usage by lines."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from drivers.world import Killed, World, run
from meterkit.catalog import Catalog

START: Final = datetime(2031, 6, 1, tzinfo=UTC)
END: Final = datetime(2031, 7, 1, tzinfo=UTC)
# The process dies at so many of its steps.
_DEATHS: Final = 500 if os.environ.get("METERKIT_LIVES") else 12
_TURNS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Billed:
    """The bill at the end of a story.

    Attributes:
        steps: number of steps in which the process might have died.
        lines: of usage: whether meterkit wrote it, units and cents; those of no cents left out.
        counts: of each period: delivered and late units, by the kit.
        advice: of ``reconcile``.
    """

    steps: int
    lines: list[tuple[bool, int, int]]
    counts: list[tuple[int, int]]
    advice: list[str]


def die_everywhere(
    patched: pytest.MonkeyPatch, story: Callable[[World, int], Awaitable[Billed]], catalog: Catalog
) -> Billed:
    """Live a story without a death; it comes to the same if the process dies at any step.

    Args:
        patched: of the test.
        story: given the step at which the process dies; 0: it does not.
        catalog: its plans file at the beginning.
    """

    def lived(dies_at: int) -> Billed:
        return run(patched, lambda world: story(world, dies_at), catalog=catalog, start=START)

    alive = lived(0)
    for dies_at in range(1, alive.steps + 1, max(1, alive.steps // _DEATHS)):
        assert (dies_at, replace(lived(dies_at), steps=alive.steps)) == (dies_at, alive)
    return alive


async def sign_up(world: World, *, is_subscribed: bool = True) -> None:
    """Have customer acme on plan pro."""
    world.emulator.add_plans(world.kit.catalog)
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


async def turn(world: World, times: int = _TURNS) -> None:
    """Do what a process does in six minutes; another one begins where it dies."""
    for _ in range(times):
        await world.sleep(minutes=2)
        with suppress(Killed):
            await world.turn()
        if not world.process.is_alive:
            await world.begin()


async def bill_of(world: World, ends: Sequence[datetime], *, steps: int) -> Billed:
    """The bill of the periods that have ended at these instants."""
    counts: list[tuple[int, int]] = []
    advice: list[str] = []
    for end in ends:
        within = end - timedelta(days=1)
        words = (await world.do(world.kit.usage("acme", period=within)))["meters"]["words"]
        counts.append((words["delivered"], words["late"]))
        advice += [one.advice for one in await world.do(world.kit.reconcile("acme", at=within))]
    lines: list[tuple[bool, int, int]] = []
    for invoice in await world.list("/v1/invoices"):
        shown = await world.list(f"/v1/invoices/{invoice['id']}/lines")
        lines += [
            ("meterkit_line" in line["metadata"], int(line["quantity"]), line["amount"])
            for line in shown
            if 0 < line["amount"] < 2900
        ]
    return Billed(steps=steps, lines=sorted(lines), counts=counts, advice=advice)
