"""Units that take back others which Stripe has: counted apart from those, and by their states."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store

__all__ = ["TakenBack", "taken_back"]

# What totals are named by; see count_of.lua.
_STATES = "DQLK"


class TakenBack(NamedTuple):
    """Units of a meter that take back others, by state.

    In usage each is subtracted from those of the same state: what adds up to nothing there is on its way.
    """

    delivered: int
    queued: int
    leased: int
    parked: int

    @property
    def left(self) -> int:
        """Those that Stripe has not, as far as we know."""
        return self.queued + self.leased + self.parked


async def taken_back(store: Store, usage: CustomerUsage) -> Mapping[str, TakenBack]:
    """Such units of each meter of a customer's usage, in its period.

    Raises:
        StoreError: the store does not answer.
    """
    meters, start_ms = list(usage["meters"]), to_ms(usage["period"]["start"])
    if not meters:
        return {}
    fields = [f"{start_ms}|{meter_token(name)}{state}" for name in meters for state in _STATES]
    admin = await store.admin()
    found = await admin.ask(admin.client.hmget(store.keys.customer(usage["customer"]).totals, fields))
    units = iter([int(value or 0) for value in found])
    return {name: TakenBack(*(next(units) for _ in _STATES)) for name in meters}
