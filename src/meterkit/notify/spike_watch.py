"""The watch for spikes: one process looks every five minutes, and tells each spike once a day."""

from __future__ import annotations

import asyncio
import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Protocol

from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.notify.spikes import DAYS, FLOOR, spike_at
from meterkit.store.notices import tell
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.notify.spikes import Spike
    from meterkit.store.store import Store

__all__ = ["EVENT", "SpikeWatch", "UsageHistory"]

EVENT: Final = "usage.spike"

_EVERY_S: Final = 300.0
_LEASE_MS: Final = 600_000
_DAY_MS: Final = 86_400_000
_TOLD: Final = b"told"


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
    """

    def __init__(self, store: Store, history: UsageHistory) -> None:
        self._store = store
        self._history = history
        self._lease = TaskLease(store, store.keys.shard(HOOKS_SHARD, "spikes:lease"), lasts_ms=_LEASE_MS)

    async def run(self) -> None:
        """Look every five minutes until cancelled, where a channel of the plans file has ``usage.spike``.

        Raises:
            StoreError: the store does not answer.
            MeterkitError: the database of the audit log does not answer.
        """
        while True:
            notify = self._store.catalog.notify
            channels = (notify.webhook, notify.email)
            if any(channel and EVENT in channel.events for channel in channels) and await self._lease.take():
                await self.look()
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Look once; raises as :meth:`run` does."""
        now_ms = self._store.now_ms()
        midnight_ms = now_ms - now_ms % _DAY_MS
        since_ms = midnight_ms - (DAYS + 1) * _DAY_MS
        for customer, meter in await self._history.active(midnight_ms, least=FLOOR):
            if meter not in self._store.catalog.meters:
                continue
            key = self._key(customer, meter, midnight_ms)
            admin = await self._store.admin()
            known: bytes | None = await admin.ask(admin.client.get(key))
            if known == _TOLD:
                continue
            if known is None:
                hours = await self._history.hours(customer, meter, since_ms)
                spike = spike_at(hours, now_ms)
                if spike is None:
                    continue
                known = json.dumps(await self._data(customer, meter, spike, now_ms)).encode()
                # What is told is kept first: told again after a kill, it is the same event.
                await admin.ask(admin.client.set(key, known, px=2 * _DAY_MS))
            await tell(self._store, customer, EVENT, json.loads(known))
            await admin.ask(admin.client.set(key, _TOLD, px=2 * _DAY_MS))
            await self._lease.take()

    def _key(self, customer: str, meter: str, midnight_ms: int) -> str:
        text = f"{customer}\0{meter}\0{midnight_ms}".encode("utf-8", "surrogatepass")
        return self._store.keys.spike(customer, blake2b(text, digest_size=16).hexdigest())

    async def _data(self, customer: str, meter: str, spike: Spike, now_ms: int) -> Mapping[str, Any]:
        usage = await self._store.usage(customer)
        plan = self._store.catalog.plans.get(usage["plan"])
        overage = None if plan is None else plan.entitlements[meter].overage
        per, amount = (None, None) if overage is None else (overage.per, overage.amount_cents)

        def cents(units: int) -> int | None:
            return None if per is None or amount is None else units * amount // per

        return {
            "id": self._key(customer, meter, now_ms - now_ms % _DAY_MS).rpartition(":")[2],
            "at_ms": now_ms,
            "meter": meter,
            "span": spike.span,
            "used": spike.used,
            "usual": spike.usual,
            "used_cents": cents(spike.used),
            "usual_cents": cents(spike.usual),
        }
