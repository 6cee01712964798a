"""Random lives in which it is usual what the others hardly meet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.catalog import loads
from meterkit.decisions.asked import Demand
from store.script_counts import MOST
from store.script_driver import World
from store.script_paid import PaidWorld
from store.script_plans import PLAIN, PLANS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

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


_APART: Final = "m:notes"
_SLOW: Final = replace(
    PLAIN,
    catalog=loads(
        PLANS.replace("rate: 30/5 minutes", "rate: {limit: 7/30 days, algorithm: token-bucket, burst: 30}")
    ),
)
