"""Usage meets a price that changes: each billed unit is charged at the price that was in force then."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Final
from zlib import crc32

import pytest

from books.price_oracle import Ledger
from drivers.sampled import whole
from drivers.world import Killed, World, run
from meterkit.catalog import loads
from meterkit.errors import StoreError, StripeUnavailableError, SubscriptionError

START: Final = datetime(2031, 6, 1, 0, 0, 30, tzinfo=UTC)
END: Final = datetime(2031, 7, 1, 0, 0, 30, tzinfo=UTC)
OLD: Final = "team"
# The metered price of the new plan, and the plan that has it.
NEW: Final = {"none": "plain", "same": "club", "other": "pro", "another meter's": "paged"}
HOWS: Final = ("now", "at period end", "portal", "dashboard", "immediate cancel")
# Each cell dies at so many steps; without METERKIT_LIVES at one, which each cell draws by its name.
KILLS: Final = 40 if os.environ.get("METERKIT_LIVES") else 0
STEPS_LEAST: Final = 80
# The process has a turn so many times more seldom: what a cell costs are its turns.
SELDOM: Final = 1 if KILLS else 3
RETRIES_MAX: Final = 10
USAGES: Final = ("delivered", "pending", "Stripe away", "killed")
PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  tokens: {unit: token, stripe: {event_name: ai_tokens}}
  pages:  {unit: page, stripe: {event_name: pdf_pages}}
routes: [{match: "*", exempt: true}]
billing: {usage: WAY, changes: {upgrade: UPGRADE}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {tokens: {included: 5, overage: deny}, pages: {included: 5, overage: deny}}
  team:
    rank: 1
    price: {amount_cents: 1500, interval: month, stripe_price: price_team}
    meters:
      tokens: {included: 10, overage: {bill: {per: 1, amount_cents: 5}}}
      pages:  {included: 5, overage: deny}
  plain:
    {extends: team, rank: 2, price: {amount_cents: 2000, stripe_price: price_plain},
     meters: {tokens: {included: 10, overage: deny}}}
  club: {extends: team, rank: 3, price: {amount_cents: 2100, stripe_price: price_club}}
  pro:
    {extends: team, rank: 4, price: {amount_cents: 2900, stripe_price: price_pro},
     meters: {tokens: {included: 10, overage: {bill: {per: 1, amount_cents: 3}}}}}
  paged:
    {extends: plain, rank: 5, price: {amount_cents: 2500, stripe_price: price_paged},
     meters: {pages: {included: 5, overage: {bill: {per: 1, amount_cents: 7}}}}}
"""


@dataclass(kw_only=True)
class Cell:
    """One cell of the matrix, lived from the sign-up to the invoice of the period after the change."""

    world: World
    ledger: Ledger
    target: str
    how: str
    usage: str
    dies_at: int = 0

    async def live(self) -> int:
        """Live it. How many steps the process has made in which it might have died."""
        world = self.world
        await self._sign_up()
        await world.sleep(days=9)
        await world.turn()
        switches_at = world.now + timedelta(hours=1)
        if self.how == "at period end":
            await self._do(world.kit.subscriptions.change_plan("acme", self.target))
            switches_at = END
        await world.until(switches_at - timedelta(minutes=4))
        await self._use(tokens=40, pages=9)
        if self.usage == "delivered":
            await world.do(world.kit.flush(everything=True))
        steps = await self._switch_at(switches_at)
        await self._turns(15, 60)
        await self._use(tokens=20, pages=8)
        await self._bill()
        return steps

    async def _sign_up(self) -> None:
        world = self.world
        world.emulator.add_plans(self.ledger.catalog)
        world.emulator.add_customer("cus_acme")
        world.emulator.add_payment_method("cus_acme")
        await world.do(world.kit.customers.link("acme", "cus_acme"))
        await self._subscribe(OLD)
        await world.turn()

    async def _subscribe(self, plan: str) -> None:
        world = self.world
        made = await world.do(world.kit.subscriptions.create("acme", plan))
        if made.client_secret is not None and made.subscription.status == "incomplete":
            world.emulator.confirm_payment(made.client_secret)
        await world.do(world.kit.subscriptions.sync("acme"))

    async def _use(self, **quantities: int) -> None:
        for meter, quantity in quantities.items():
            await self.ledger.record("acme", meter, quantity)

    async def _switch_at(self, instant: datetime) -> int:
        world = self.world
        first = world.process
        if self.usage == "Stripe away":
            world.stripe_is_away = world.hooks_are_away = True
        if self.usage == "killed":
            first.dies_at = first.steps + self.dies_at
        before = first.steps
        await world.until(instant)
        is_done = await self._switch()
        if self.usage == "Stripe away":
            await self._turns(10, 120)
            world.stripe_is_away = world.hooks_are_away = False
        for _ in range(RETRIES_MAX):
            if is_done:
                break
            if not (is_done := await self._switch()):
                await self._turns(5, 5)
        assert is_done
        await self._turns(2, 12)
        steps = first.steps - before
        first.dies_at = 0
        return steps

    async def _switch(self) -> bool:
        """Have the subscription change; whether that is done."""
        subscriptions = self.world.kit.subscriptions
        if self.how == "now":
            return await self._do(subscriptions.change_plan("acme", self.target))
        if self.how == "immediate cancel":
            return await self._do(self._begin_anew())
        if self.how in {"portal", "dashboard"}:
            await self._change_at_stripe()
        return True

    async def _begin_anew(self) -> None:
        found = await self.world.kit.subscriptions.sync("acme")
        if found is not None and found.plan == OLD and found.status != "canceled":
            await self.world.kit.subscriptions.cancel("acme", immediately=True)
        elif found is not None and found.plan == self.target and found.status == "active":
            return
        made = await self.world.kit.subscriptions.create("acme", self.target)
        if made.client_secret is not None and made.subscription.status == "incomplete":
            self.world.emulator.confirm_payment(made.client_secret)
        await self.world.kit.subscriptions.sync("acme")

    async def _change_at_stripe(self) -> None:
        """Have a person change all items of the subscription, in the portal or in the Dashboard."""
        (found,) = await self.world.list("/v1/subscriptions", customer="cus_acme")
        behavior = "always_invoice" if self.how == "portal" else "create_prorations"
        await self.ledger.change_at_stripe(found, self.target, proration_behavior=behavior)

    async def _turns(self, every: int, minutes: int) -> None:
        """Let minutes pass, in which Stripe and the process do what they do by themselves."""
        every *= SELDOM
        for _ in range(0, minutes, every):
            await self.world.sleep(minutes=every)
            with suppress(Killed):
                await self.world.turn()
            await self._revive()

    async def _do(self, work: Coroutine[Any, Any, object]) -> bool:
        """Have the process do something; whether it could."""
        try:
            await self.world.do(work)
        except Killed:
            await self._revive()
        except (StoreError, StripeUnavailableError, SubscriptionError):
            # Until Stripe is back, and what a dead process has left is free and has been sent.
            assert self.usage in {"Stripe away", "killed"}
        else:
            return True
        return False

    async def _revive(self) -> None:
        if not self.world.process.is_alive:
            await self.world.begin()

    async def _bill(self) -> None:
        """Go on beyond the end of the period that begins next, with usage just before it."""
        world = self.world
        (found,) = await world.list("/v1/subscriptions", customer="cus_acme")
        end = datetime.fromtimestamp(found["items"]["data"][0]["current_period_end"], UTC)
        await world.until(end - timedelta(minutes=9))
        await self._use(tokens=4, pages=3)
        await self._turns(5, 90)
        await world.sleep(days=1)
        await world.turn()
        await world.sleep(days=2)
        await world.turn()


def lived(
    patched: pytest.MonkeyPatch, new: str, how: str, usage: str, *, dies_at: int = 0, way: str = "meters"
) -> tuple[int, list[str]]:
    """Live a cell; how many steps there were to die at, and what is wrong."""
    upgrade = "period_end" if how == "at period end" else "now"
    catalog = loads(PLANS.replace("UPGRADE", upgrade).replace("WAY", way))

    async def story(world: World) -> tuple[int, list[str]]:
        ledger = Ledger(world=world, catalog=catalog)
        cell = Cell(world=world, ledger=ledger, target=NEW[new], how=how, usage=usage, dies_at=dies_at)
        return await cell.live(), await ledger.audit()

    return run(patched, story, catalog=catalog, start=START)


def _cells() -> Iterator[object]:
    """All cells; without ``--whole`` ten of them, in which each value comes at least twice."""
    for (first, new), (second, how), (third, usage) in product(
        enumerate(NEW), enumerate(HOWS), enumerate(USAGES)
    ):
        is_chosen = (first + second + third) % len(USAGES) == 0 and first // 2 == second % 2
        yield (new, how, usage) if is_chosen else whole(new, how, usage)


@pytest.mark.parametrize(("new", "how", "usage"), [*_cells()])
def test_i13_usage_and_a_price_that_changes(
    monkeypatch: pytest.MonkeyPatch, new: str, how: str, usage: str
) -> None:
    if usage == "killed" and not KILLS:
        dies_at = 1 + crc32(f"{new}-{how}".encode()) % STEPS_LEAST
        # The process has made as many steps as it had.
        assert lived(monkeypatch, new, how, usage, dies_at=dies_at) == (dies_at, [])
        return
    steps, wrong = lived(monkeypatch, new, how, usage)
    assert wrong == []
    if usage == "killed":
        for dies_at in range(1, steps + 1, max(1, steps // KILLS)):
            assert (dies_at, lived(monkeypatch, new, how, usage, dies_at=dies_at)[1]) == (dies_at, [])


@pytest.mark.parametrize(("new", "how", "usage"), [*_cells()])
def test_i13_lines_and_a_price_that_changes(
    monkeypatch: pytest.MonkeyPatch, new: str, how: str, usage: str
) -> None:
    dies_at = 1 + crc32(f"{how}-{new}".encode()) % STEPS_LEAST if usage == "killed" else 0
    _, wrong = lived(monkeypatch, new, how, usage, dies_at=dies_at, way="lines")
    assert wrong == []
