"""A customer who uses all that is given after each act, and what the money at Stripe pays for."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from math import ceil
from typing import Any, Final

from drivers.plans import plans_text
from drivers.shop import Shop
from meterkit.catalog import loads
from meterkit.errors import MeterkitError

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
PLANS: Final = plans_text("gains")
CATALOG: Final = loads(PLANS)
WHOLE: Final = loads(PLANS + "billing: {changes: {allowance: whole}}\n")
GIVES: Final = {"price_team": (1500, 120), "price_pro": (2900, 1_210)}
"""Of each price: its amount, and the requests of its plan in a month, those of its credits included."""
FREE, PAYG = 10, 50
_STEPS: Final = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(kw_only=True)
class Gainer:
    """A customer ``acme`` who uses every request that it can get.

    It got ``taken`` requests in all; ``changes`` counts acts that may round up.
    """

    at: Shop
    taken: int = 0
    changes: int = 0
    acts: list[str] = field(default_factory=list[str])

    async def do(self, act: str) -> None:
        """Act, and use all that is given then; an act that is refused changes nothing."""
        name, _, word = act.partition(" ")
        try:
            await getattr(self, name)(*word.split())
            self.acts.append(act)
        except MeterkitError as error:
            self.acts.append(f"{act}: {type(error).__name__}")
        self.changes += 1
        self.at.emulator.advance()
        await self.at.kit.subscriptions.sync("acme")
        await self.take()

    async def take(self) -> int:
        """Use every request that is given now; how many."""
        taken = 0
        for step in _STEPS:
            while (await self.at.kit.consume("acme", "requests", step)).allowed:
                taken += step
        self.taken += taken
        return taken

    async def create(self, plan: str) -> None:
        await self.at.subscribed(plan=plan)

    async def change(self, plan: str) -> None:
        await self.at.kit.subscriptions.change_plan("acme", plan)

    async def cancel(self, how: str) -> None:
        await self.at.kit.subscriptions.cancel("acme", immediately=how != "later", give_back=how == "back")

    async def resume(self) -> None:
        await self.at.kit.subscriptions.resume("acme")

    async def wait(self, hours: str) -> None:
        for _ in range(-(-int(hours) // 24)):
            self.at.clock.advance(min(int(hours), 24) * HOUR)
            self.at.emulator.advance()

    async def portal(self, how: str) -> None:
        """End the subscription, switch its plan or begin its cycle anew at Stripe."""
        live = [one for one in await self.at.stripe_list("/v1/subscriptions") if one["status"] == "active"]
        if not live:
            return
        path = f"/v1/subscriptions/{live[0]['id']}"
        if how == "cancel":
            await self.at.stripe_delete(f"{path}?prorate=true&invoice_now=false")
        elif how == "invoice":
            await self.at.stripe_delete(f"{path}?prorate=true&invoice_now=true")
        elif how == "keep":
            await self.at.stripe_delete(path)
        elif how == "anew":
            await self.at.stripe_change(
                path, billing_cycle_anchor="now", proration_behavior="create_prorations"
            )
        else:
            await self.at.switch(live[0], how, "_ai_tokens")

    async def late(self, how: str) -> None:
        """The same, and the webhook comes six hours later."""
        await self.portal(how)
        await self.take()
        self.at.clock.advance(6 * HOUR)

    async def paid_for(self) -> int:
        """Requests that the money at Stripe, and time without a price, pay for; rounded up for each act."""
        lines: list[dict[str, Any]] = []
        for invoice in await self.at.invoices():
            if invoice["status"] in {"paid", "open"} or (invoice["status"] == "draft"):
                lines += invoice["lines"]["data"]
        lines += await self.at.stripe_list("/v1/invoiceitems", pending="true")
        total = Fraction(0)
        for line in lines:
            price = line["pricing"]["price_details"]["price"]
            if price in GIVES:
                cents, requests = GIVES[price]
                total += Fraction(line["amount"] * requests, cents)
        for one in await self.at.stripe_list("/v1/subscriptions", status="all"):
            item = one["items"]["data"][0]
            ended = one["ended_at"] or item["current_period_end"]
            if any(shown["price"]["id"] == "price_payg" for shown in one["items"]["data"]):
                total += Fraction((ended - one["created"]) * PAYG, 30 * 86_400)
        return ceil(total) + 4 * self.changes


def shown(gainer: Gainer) -> str:
    return f"{gainer.acts}: took {gainer.taken}"
