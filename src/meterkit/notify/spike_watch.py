"""The watch for spikes: one process looks every five minutes, and tells each spike once a day."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from meterkit.notify.spikes import DAYS, FLOOR, pace_of, spike_at
from meterkit.notify.watching import UNREADABLE, Lookout, digest_of, note_unreadable, tell_once
from meterkit.store.spikes_today import FoundSpike, SpikesToday

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.store.store import Store

__all__ = ["EVENT", "SpikeWatch", "UsageHistory"]

EVENT: Final = "usage.spike"

_DAY_MS: Final = 86_400_000


class UsageHistory(Protocol):
    """Usage by the hour."""

    async def active(self, since_ms: int, *, least: int) -> Sequence[tuple[str, str]]:
        """Customers and meters with at least so many units since an instant."""
        ...

    async def hours(self, customer: str, meter: str, since_ms: int) -> Mapping[int, int]:
        """Units by hour since 1970."""
        ...


class SpikeWatch:
    """Looks for spikes of all customers.

    Args:
        store: where events are kept.
        history: usage by the hour.
        is_wanted: whether a channel or a handler wants an event.
    """

    def __init__(self, store: Store, history: UsageHistory, is_wanted: Callable[[str], bool]) -> None:
        self._store = store
        self._history = history
        self._lookout = Lookout(store, EVENT, is_wanted)

    async def run(self) -> None:
        """Look every five minutes until cancelled.

        Raises:
            StoreError: the store does not answer.
            MeterkitError: the database of the audit log does not answer.
        """
        await self._lookout.run(self.look)

    async def look(self) -> None:
        """Look once; raises as :meth:`run` does."""
        now_ms = self._store.now_ms()
        midnight_ms = now_ms - now_ms % _DAY_MS
        for customer, meter in await self._history.active(midnight_ms, least=FLOOR):
            if meter in self._store.catalog.meters:
                event_id = digest_of(customer, meter, midnight_ms)
                make = partial(self._found, customer, meter, now_ms, event_id)
                try:
                    await tell_once(self._store, customer, EVENT, event_id, make)
                except UNREADABLE as error:
                    await note_unreadable(self._store, customer, EVENT, error)
                await self._lookout.lease.take()

    async def _found(self, customer: str, meter: str, now_ms: int, event_id: str) -> Mapping[str, Any] | None:
        since_ms = now_ms - now_ms % _DAY_MS - (DAYS + 1) * _DAY_MS
        hours = await self._history.hours(customer, meter, since_ms)
        spike = spike_at(hours, now_ms)
        if spike is None:
            return None
        pace = pace_of(spike, hours, now_ms)
        usage = await self._store.usage(customer)
        plan = self._store.catalog.plans.get(usage["plan"])
        overage = None if plan is None else plan.entitlements[meter].overage
        per, amount = (None, None) if overage is None else (overage.per, overage.amount_cents)

        noted = FoundSpike(customer, meter, now_ms, spike.span, spike.used, spike.usual)
        await SpikesToday(self._store).note(noted)

        def cents(units: int) -> int | None:
            return None if per is None or amount is None else units * amount // per

        units = {
            "used": spike.used,
            "usual": spike.usual,
            "four_weeks_at_this_pace": pace.ahead,
            "last_four_weeks": pace.behind,
        }
        return {
            "id": event_id,
            "at_ms": now_ms,
            "meter": meter,
            "span": spike.span,
            **units,
            **{f"{name}_cents": cents(quantity) for name, quantity in units.items()},
        }
