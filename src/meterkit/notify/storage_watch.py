"""The watch for full storage: one process looks every five minutes, and tells each customer once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.gauges import Level
from meterkit.notify.watching import UNREADABLE, Lookout, digest_of, note_unreadable, tell_once
from meterkit.store.all_usage import customers_with_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.store.store import Store

__all__ = ["EVENT", "StorageWatch"]

EVENT: Final = "storage.over"

_UNITS: Final = frozenset({"byte", "bytes"})
_AT_ONCE: Final = 500


class StorageWatch:
    """Looks for customers who store more than their plan includes.

    Args:
        store: where levels and events are kept.
        is_wanted: whether a channel or a handler wants an event.
    """

    def __init__(self, store: Store, is_wanted: Callable[[str], bool]) -> None:
        self._store = store
        self._lookout = Lookout(store, EVENT, is_wanted)

    async def run(self) -> None:
        """Look every five minutes until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        await self._lookout.run(self.look)

    async def look(self) -> None:
        """Look once.

        Raises:
            StoreError: the store does not answer.
        """
        meters = self._store.catalog.meters.values()
        gauges = [meter.name for meter in meters if meter.kind == "gauge" and meter.unit in _UNITS]
        customers = await customers_with_counts(self._store, "v") if gauges else ()
        for first in range(0, len(customers), _AT_ONCE):
            for customer, levels in await self._levels(customers[first : first + _AT_ONCE], gauges):
                try:
                    await self._tell(customer, dict(zip(gauges, levels, strict=True)))
                except UNREADABLE as error:
                    await note_unreadable(self._store, customer, EVENT, error)
            await self._lookout.lease.take()

    async def _levels(
        self, customers: Sequence[str], gauges: Sequence[str]
    ) -> list[tuple[str, Sequence[bytes | None]]]:
        """The levels of customers, as they are kept."""
        admin = (await self._store.admin()).for_delivery()
        pipe = admin.client.pipeline(transaction=False)
        for customer in customers:
            pipe.hmget(self._store.keys.customer(customer).levels, list(gauges))
        return list(zip(customers, await admin.ask(pipe.execute()), strict=True))

    async def _tell(self, customer: str, levels: Mapping[str, bytes | None]) -> None:
        for gauge, packed in levels.items():
            since_ms = Level.read(packed).over_ms  # As a script found it.
            if since_ms:
                make = partial(self._found, customer, gauge, since_ms)
                await tell_once(self._store, customer, EVENT, digest_of(customer, EVENT, gauge), make)

    async def _found(self, customer: str, gauge: str, since_ms: int) -> Mapping[str, Any] | None:
        usage = await self._store.usage(customer)
        found, plan = usage["meters"][gauge], self._store.catalog.plans.get(usage["plan"])
        included, used = found["included"], found["recorded"]
        if included == "unlimited" or used <= included:
            return None  # The plan has changed since.
        grace_ms = None if plan is None else plan.entitlements[gauge].overage.grace_ms
        types = sorted(found.get("types", {}).items(), key=lambda one: (-one[1], one[0]))
        return {
            # Of the instant: a customer who is above it again after some days gets another event.
            "id": digest_of(customer, gauge, since_ms),
            "at_ms": self._store.now_ms(),
            "meter": gauge,
            "used": used,
            "included": included,
            "since_ms": since_ms,
            "until_ms": since_ms + grace_ms if grace_ms else None,
            "types": {name: size for name, size in types if size},
        }
