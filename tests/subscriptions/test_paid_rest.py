"""F-30n: the lines of its plan decide whether the rest of a period that was cut short is paid."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from drivers.plans import plans_text
from drivers.world import World, run
from meterkit.catalog import loads

PLANS: Final = plans_text("paid_rest")
START: Final = datetime(2031, 6, 1, tzinfo=UTC)
MODES: Final = {
    "meters": PLANS,
    "lines": PLANS + "billing: {usage: lines, changes: {downgrade: now}}\n",
}


class Customer:
    """Customer ``acme`` with a saved card, through the kit and at Stripe."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def create(self, plan: str, seats: int = 1, **addons: int) -> None:
        world = self.world
        made = await world.do(world.kit.subscriptions.create("acme", plan, seats, addons=addons))
        if made.client_secret is not None and made.subscription.status == "incomplete":
            world.emulator.confirm_payment(made.client_secret)
        await self.heard()

    async def heard(self) -> None:
        """Have the kit learn what Stripe has; a day passes."""
        await self.world.turn()
        await self.world.do(self.world.kit.subscriptions.sync("acme"))
        await self.world.sleep(days=1)

    async def change(self, plan: str) -> None:
        await self.world.do(self.world.kit.subscriptions.change_plan("acme", plan))
        await self.heard()

    async def seats(self, seats: int) -> None:
        await self.world.do(self.world.kit.subscriptions.set_seats("acme", seats))
        await self.heard()

    async def cancel(self, *, give_back: bool = False) -> None:
        cancel = self.world.kit.subscriptions.cancel
        await self.world.do(cancel("acme", immediately=True, give_back=give_back))
        await self.heard()

    async def at_stripe(self, **params: str) -> None:
        """Change the live subscription in the Dashboard."""
        await self.world.ask("POST", f"/v1/subscriptions/{await self.live()}", **params)
        await self.heard()

    async def end_at_stripe(self, **params: str) -> None:
        await self.world.ask("DELETE", f"/v1/subscriptions/{await self.live()}", **params)
        await self.heard()

    async def live(self) -> str:
        (found,) = [one for one in await self.world.list("/v1/subscriptions") if one["status"] == "active"]
        return str(found["id"])

    async def record(self, calls: int) -> None:
        await self.world.do(self.world.kit.record("acme", "calls", calls))

    async def included(self) -> int:
        usage = await self.world.do(self.world.kit.usage("acme"))
        return int(usage["meters"]["calls"]["included"] or 0)


Story = Callable[[Customer], Awaitable[Any]]


def live(patched: pytest.MonkeyPatch, plans: str, story: Story) -> Any:
    async def lived(world: World) -> Any:
        world.emulator.add_plans(world.kit.catalog)
        world.emulator.add_customer("cus_acme")
        world.emulator.add_payment_method("cus_acme")
        await world.do(world.kit.customers.link("acme", "cus_acme"))
        await world.do(world.kit.stripe.sync())
        return await story(Customer(world))

    return run(patched, lived, catalog=loads(plans), start=START)


async def upgraded_twice(acme: Customer) -> int:
    await acme.create("basic")
    await acme.change("team")
    await acme.change("pro")
    await acme.record(500)
    await acme.cancel()
    await acme.create("basic")
    return await acme.included()


async def seats_returned(acme: Customer) -> int:
    await acme.create("basic")
    await acme.seats(20)
    await acme.record(100)
    await acme.seats(2)
    await acme.cancel()
    await acme.create("basic")
    return await acme.included()


async def seats_and_addon_dropped(acme: Customer) -> int:
    await acme.create("basic", 10, pack=3)
    await acme.change("pro")
    await acme.record(600)
    await acme.cancel()
    await acme.create("pro")
    return await acme.included()


async def begun_anew(acme: Customer) -> int:
    await acme.create("team")
    await acme.heard()
    await acme.at_stripe(billing_cycle_anchor="now", proration_behavior="create_prorations")
    await acme.heard()
    await acme.record(270)
    await acme.cancel()
    await acme.create("team")
    return await acme.included()


PAID: Final[dict[str, tuple[Story, int]]] = {
    "two upgrades": (upgraded_twice, 100),
    "seats given back": (seats_returned, 100),
    "seats and an add-on dropped": (seats_and_addon_dropped, 1_000),
    "cycle begun anew": (begun_anew, 300),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", PAID)
def test_f_30n_a_paid_period_is_included_again(monkeypatch: pytest.MonkeyPatch, what: str, mode: str) -> None:
    story, included = PAID[what]
    assert live(monkeypatch, MODES[mode], story) == included
