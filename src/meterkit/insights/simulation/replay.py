"""Usage under the scripts themselves: events served again by a store of their own."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from datetime import timedelta
from time import time
from typing import TYPE_CHECKING, Final

from meterkit.catalog.models import enforced
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.program import Demand
from meterkit.decisions.subscription import SubscriptionState
from meterkit.insights.simulation.ceilings import Tried
from meterkit.redis.url import Address
from meterkit.store.state_changes import States
from meterkit.store.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from pathlib import Path

    from meterkit.catalog import Catalog
    from meterkit.insights.simulation.log import Event
    from meterkit.insights.simulation.people import Tenure
    from meterkit.insights.simulation.terms import Terms

__all__ = ["Replay"]

_AHEAD_MS: Final = timedelta(days=10_080) // timedelta(milliseconds=1)
"""A server keeps nothing that ended in the past, so the past is served 27 years on. Windows of one to ten
days, of twelve, fourteen and thirty begin at the same instants there."""

_TIMEOUT_S: Final = 60.0


class _Clock:
    """Tells the time of the event that is served."""

    def __init__(self) -> None:
        self.now_ms = int(time() * 1000) + _AHEAD_MS

    def __call__(self) -> float:
        return self.now_ms / 1000


class Replay:
    """A store in which the events of one customer after another are served.

    Args:
        store: started, and for nothing else.
        clock: the store's.
    """

    def __init__(self, store: Store, clock: _Clock) -> None:
        self._store = store
        self._clock = clock

    @classmethod
    @asynccontextmanager
    async def under(cls, catalog: Catalog, directory: Path) -> AsyncGenerator[Replay]:
        """A replay under a plans file, by a server of its own whose data are in a directory.

        Raises:
            SettingsError: there is no server to run.
            StoreError: it does not start.
        """
        clock = _Clock()
        address = Address(kind="embedded", path=str(directory))
        store = Store(
            address,
            enforced(catalog, "on"),
            shards=1,
            timeout_s=_TIMEOUT_S,
            start_timeout_s=_TIMEOUT_S,
            clock=clock,
        )
        await store.start()
        try:
            yield cls(store, clock)
        finally:
            await store.stop()

    async def serve(self, customer: str, terms: Terms, tenure: Tenure, events: Iterable[Event]) -> Tried:
        """Serve the events of a customer who is not known yet, from the beginning of a period.

        Args:
            customer: the id.
            terms: of the plan.
            tenure: the period, and the overrides that lie over the plan.
            events: in their order.

        Raises:
            StoreError: the store does not answer.
        """
        begins_ms, ends_ms = tenure.start_ms + _AHEAD_MS, tenure.end_ms + _AHEAD_MS
        self._clock.now_ms = begins_ms
        subscription = SubscriptionState(
            id="sub_0",
            status="active",
            plan=terms.plan,
            start_ms=begins_ms,
            end_ms=ends_ms,
            anchor_ms=begins_ms,
        )
        overrides = {meter: dict(given) for meter, given in tenure.overrides.items()}
        state = CustomerState(subscription=subscription, overrides=overrides)
        await States(self._store).change(customer, lambda _: state)
        refused, first_ms = Counter[str](), None
        for event in events:
            self._clock.now_ms = min(max(begins_ms, event.at_ms + _AHEAD_MS), ends_ms - 1)
            asked = {
                meter: Demand(needed=terms.needed(meter, units), taken=units)
                for meter, units in event.quantities.items()
                if units > 0
            }
            decision = await self._store.consume(self._store.cache.get(customer), asked)
            if not decision.allowed:
                refused.update(event.quantities)
                first_ms = event.at_ms if first_ms is None else first_ms
        usage = await self._store.usage(customer)
        overage = {meter: counts["overage"] for meter, counts in usage["meters"].items() if counts["overage"]}
        return Tried(overage, dict(refused), first_ms)
