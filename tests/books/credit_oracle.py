"""The oracle of credits: use is deducted once, what rolls over stays within its limit, all lines add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from books.price_oracle import Ledger
from meterkit import CustomerUsage
from meterkit.customers.grant_ledger import LedgerEntry

WORK: Final = "work"
"""A meter that credits pay for."""
CREDIT: Final = "ai"
_MICRO: Final = 1_000_000
# Credits of a period by plan, and of each boost; what each comes to at most with what rolls over into it.
_MONTHLY: Final = {"basic": 30, "pro": 40, "tried": 30}
_MONTHLY_MOST: Final = 45
_BOOST, _BOOST_MOST = 20, 30
_WELCOME: Final = 10


@dataclass(kw_only=True)
class Purse:
    """Credits of one customer; ``used``: how many its work has used."""

    ledger: Ledger
    customer: str
    used: int = 0

    async def use(self, quantity: int) -> None:
        """Record work, which uses up credits, then is overage."""
        world = self.ledger.world
        before = await world.do(world.kit.usage(self.customer))
        await self._check_rolled_over(before)
        await self.ledger.record(self.customer, WORK, quantity)
        after = await world.do(world.kit.usage(self.customer))
        held, left = before["balance"].get(CREDIT, 0), after["balance"].get(CREDIT, 0)
        paid = min(held, quantity)
        self.used += paid
        if left != held - paid:
            self.ledger.complain(f"{quantity} work of {held} credits leave {left}")
        beyond = after["meters"][WORK]["overage"] - before["meters"][WORK]["overage"]
        if beyond != quantity - paid:
            self.ledger.complain(f"{quantity} work of {held} credits are {beyond} beyond")
        lines = await world.do(world.kit.grants.ledger(self.customer))
        if sum(line.quantity for line in lines) // _MICRO != left:
            self.ledger.complain(f"{left} credits are left, not what the ledger comes to: {lines}")
        if after["access"] in {"full", "grace"}:  # Else a period gives what the plan of `restrict_to` does.
            await self._check_given(lines, after["period"]["start"])

    async def _check_rolled_over(self, usage: CustomerUsage) -> None:
        """Compare what rolled over with the most that may, by what was sold when the period began."""
        (sold, *_) = [*await self._sold(usage["period"]["start"]), None]
        if sold is None:
            return
        _, (plan, addons) = sold
        most = dict(addons).get("boost", 0) * (_BOOST_MOST - _BOOST)
        most += _MONTHLY_MOST - _MONTHLY[plan] if plan in _MONTHLY else 0
        if usage["rolled_over"][CREDIT] > most:
            self.ledger.complain(f"{usage['rolled_over']} have rolled over, and {most} may")

    async def _check_given(self, lines: Sequence[LedgerEntry], start: datetime) -> None:
        """Compare what a period has given with its plan and boosts, where these did not change in it."""
        sold = await self._sold(start)
        if len(sold) != 1 or self.ledger.plan_times.was_cut:
            return
        ((_, (plan, addons)),) = sold
        wanted = {"monthly": _MONTHLY.get(plan, 0), "boost": _BOOST * dict(addons).get("boost", 0)}
        given = Counter[str]()
        for line in lines:
            _, _, name = line.grant_id.partition(f"plan/{start:%Y-%m-%d}/")
            if line.entry in {"grant", "adjustment"} and name:
                given[name] += line.quantity
        if given != +Counter({name: n * _MICRO for name, n in wanted.items()}):
            self.ledger.complain(f"the period of {start:%m-%d} gave {dict(given)}, not {wanted}")

    async def _sold(self, start: datetime) -> list[tuple[int, tuple[str, tuple[tuple[str, int], ...]]]]:
        """The plans and add-ons of the period that began then; empty: the kit and Stripe may differ."""
        ledger = self.ledger
        found = await ledger.subscription(self.customer)
        if found is None or found["items"]["data"][0]["current_period_start"] != start.timestamp():
            return []
        await ledger.plan_times.learn(ledger.catalog)
        return [*ledger.plan_times.sold(found, ledger.catalog, heard_of=ledger.heard_of)]

    async def audit(self) -> None:
        """Compare the ledger's lines with each other, and with what was used."""
        world = self.ledger.world
        lines = await world.do(world.kit.grants.ledger(self.customer))
        total, of_grant = Counter[str](), Counter[str]()
        for line in lines:
            total[line.entry] += line.quantity
            of_grant[line.grant_id] += line.quantity
        if total["burn"] != -self.used * _MICRO:
            self.ledger.complain(f"{self.used} credits were used, the ledger has {total['burn']}")
        if total["rollover"]:
            self.ledger.complain(f"what rolls over comes to {total['rollover']}")
        if any(quantity < 0 for quantity in of_grant.values()):
            self.ledger.complain(f"a grant gave more than it had: {of_grant}")
        once = sum(line.quantity for line in lines if "welcome" in line.grant_id and line.entry == "grant")
        if once not in {0, _WELCOME * _MICRO}:
            self.ledger.complain(f"what is given once gave {once}")
