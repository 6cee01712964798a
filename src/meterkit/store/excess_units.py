"""Excess units: usage beyond limits that this process has admitted without the store, counted afterwards.

Each process knows only what the store's latest replies left. Together they may admit more. Once a process has
sent all its usage, it reads the usage of the customers that it served, and counts the units beyond their
limits: at most as many as it has admitted itself, so that the sum over processes may be too high.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

from meterkit.store.daily_counts import DailyCounts
from meterkit.store.unreadable_data import read_each

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerCache

_logger: Final = logging.getLogger("meterkit.store")
_AT_ONCE: Final = 100


class ExcessUnits(DailyCounts[str]):
    """Units that were admitted beyond limits while the store was down, by meter and day of their count."""

    _hash = "excess"
    _days_kept = 36

    def __init__(self, store: Store) -> None:
        super().__init__(store.keys, store.admin, store.now_ms)
        self._store = store

    async def collect(self) -> None:
        """Count the units beyond limits, unless an outage lasts or its usage waits to be sent.

        Usage of requests that are served meanwhile waits for a moment at any time on a busy process: the
        client that reads has the replies of what was sent before.

        Raises:
            StoreError: the store does not answer; what is not counted yet is counted later.
        """
        store = self._store
        if any(lane.has_unsent_outage or not lane.connected for lane in tuple(store.lanes.values())):
            return
        admitted = store.fallback.pop_unchecked()
        found: Counter[str] = Counter()

        async def skip(customer: str, error: Exception) -> None:
            del admitted[customer]
            _logger.warning("units of %r admitted without the store are not counted: %s", customer, error)

        try:
            while admitted:
                some = tuple(admitted)[:_AT_ONCE]
                for usage in await read_each(some, store.usage_of_many, skip):
                    found += _excess_of(usage, admitted.pop(usage["customer"]), store.cache)
        finally:
            store.fallback.restore_unchecked(admitted)
            self._counts += found
            if found and store.tallies is not None:
                store.tallies.excess.update(found)
        if found:
            units = describe_units(found)
            _logger.warning("units admitted beyond limits while the store was down: %s", units)

    async def read(self, days: int) -> Counter[str]:
        """Units of all processes by meter.

        Args:
            days: number of days, today included.

        Raises:
            StoreError: the store does not answer.
        """
        found: Counter[str] = Counter()
        for kept in await self._read_days(days):
            found.update({meter.decode(errors="replace"): int(units) for meter, units in kept.items()})
        return found

    def _day_of(self, name: str) -> int:  # noqa: ARG002 - counted on the day that it is sent
        return self._today()


def describe_units(units: Mapping[str, int]) -> str:
    """Units by meter, for people."""
    return ", ".join(f"{number:,} {meter}" for meter, number in sorted(units.items()))


def _excess_of(usage: CustomerUsage, admitted: Mapping[str, int], cache: CustomerCache) -> Counter[str]:
    """Units of a customer beyond its limits, by meter."""
    entitlements, found = cache.get(usage["customer"]).entitlements, Counter[str]()
    for meter, units in admitted.items():
        counted = usage["meters"].get(meter)
        if counted is not None and meter in entitlements:
            is_denied = entitlements[meter].overage.mode == "deny"
            found[meter] = min(units, counted["over_cap"] + (counted["overage"] if is_denied else 0))
    return +found
