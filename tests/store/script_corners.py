"""Random lives in which it is usual what the others hardly meet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.catalog import loads
from meterkit.decisions.asked import Demand
from meterkit.decisions.customer_state import CustomerState, bounds_of
from meterkit.decisions.plan_history import with_plan_changes
from meterkit.decisions.subscription import SubscriptionState
from store.script_counts import DAY_MS, MOST
from store.script_driver import World
from store.script_model import NEVER_MS
from store.script_paid import PaidWorld
from store.script_plans import ANONYMOUS, PLAIN, PLANS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from meterkit.store.views import CustomerView
    from store.script_wires import Wire


class MonthWorld(World):
    """A world of buckets that leak a few units in a month: their products pass 2^53 if not kept small."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random, sales=_SLOW)


class TurnWorld(World):
    """A world in which clocks differ at the very end of a period."""

    def deeds(self) -> Mapping[str, float]:
        return {**super().deeds(), "turn": 10}

    def turn(self, name: str) -> None:
        """Ask shortly before the period ends, and several times at its end."""
        customer = self.model.customers[name]
        if customer.period is None or max(self.wall, customer.seen) > customer.period[1] - 30_000:
            return
        demands, flags = {"jobs": Demand(needed=1, taken=1)}, {"billed_always": False, "rates_only": False}
        for mode, before_ms, times in (("d", 30_000, 2), ("c", 0, 5)):
            self.wall = customer.period[1] - before_ms
            for _ in range(times):
                self.skews = before_ms == 0
                self.ask_for(self._customer(name), demands, mode, flags)


class FullWorld(PaidWorld):
    """A world in which somebody is granted exactly as much as can be counted."""

    def deeds(self) -> Mapping[str, float]:
        return {**super().deeds(), "fill": 5}

    def fill(self, name: str) -> None:
        """Grant all that can be of a meter of which no other grant gives anything, for a moment."""
        self.add(name, f"f{self.wall}", {_APART: MOST}, (0, 0, self.wall + 1))

    def _granted(self, name: str, target: str, grant_id: str) -> int:
        return 1 if target == _APART else super()._granted(name, target, grant_id)


class SharesWorld(PaidWorld):
    """A world of subscribers whose plans change amid a period, and who have units that money pays for."""

    def deeds(self) -> Mapping[str, float]:
        return {**super().deeds(), "amend": 12, "outgrow": 0, "vouch": 5}

    def amend(self, name: str) -> None:
        """Change the plan of a subscription, or begin one."""
        if name == ANONYMOUS:
            return
        state = CustomerState.parse(self.model.customers[name].data)
        begins = self.wall - DAY_MS if state.subscription is None else state.subscription.start_ms
        subscription = SubscriptionState(
            id="sub_1",
            status="active",
            plan=self.random.choice(("gift", "more", "more", "bare", "vast")),
            start_ms=begins,
            end_ms=begins + 31 * DAY_MS,
            anchor_ms=begins,
            created_ms=begins,
        )
        changed = replace(state, subscription=subscription, stripe_customer=f"cus_{name}")
        self.put(name, with_plan_changes(state, changed, self.catalog, self.wall))

    def vouch(self, name: str) -> None:
        """Grant some of what a balance in money pays for."""
        units = self.random.choice((1, 400_000, 3_000_000))
        self.add(name, f"v{self.wall}", {_CHARGED: units}, (50, 0, NEVER_MS))

    def _granted(self, name: str, target: str, grant_id: str) -> int:
        return 1 if target == _CHARGED else super()._granted(name, target, grant_id)

    def _own_start(self, known: CustomerView, at: int) -> int:
        return bounds_of(known.state, known.effective.counting, at).start_ms


_APART: Final = "m:notes"
_CHARGED: Final = "m:usd_charged"
_SLOW: Final = replace(
    PLAIN,
    catalog=loads(
        PLANS.replace("rate: 30/5 minutes", "rate: {limit: 7/30 days, algorithm: token-bucket, burst: 30}")
    ),
)
