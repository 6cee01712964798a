"""The spikes that were found on a day: a hash for each day, for 2 days."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.keys import HOOKS_SHARD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.store.store import Store

__all__ = ["FoundSpike", "SpikesToday"]

_DAY_MS: Final = 86_400_000


class FoundSpike(NamedTuple):
    """Usage of a customer's meter far above what is usual.

    Attributes:
        at_ms: when it was found.
        span: ``hour`` or ``day``.
        used, usual: in that span, in the meter's unit.
    """

    customer: str
    meter: str
    at_ms: int
    span: str
    used: int
    usual: int


class SpikesToday:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def note(self, spike: FoundSpike) -> None:
        """Keep a spike; one of the same customer, meter and day takes its place."""
        key = self._key(spike.at_ms)
        admin = await self._store.admin()
        pipe = admin.client.pipeline(transaction=False)
        pipe.hset(key, f"{spike.meter} {spike.customer}", json.dumps(spike[2:]))
        pipe.pexpire(key, 2 * _DAY_MS)
        await admin.ask(pipe.execute())

    async def count(self) -> int:
        """How many spikes were found today (UTC)."""
        admin = await self._store.admin()
        return int(await admin.ask(admin.client.hlen(self._key(self._store.now_ms()))))

    async def all(self) -> Sequence[FoundSpike]:
        """The spikes of today (UTC), the latest first."""
        admin = await self._store.admin()
        kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(self._key(self._store.now_ms())))
        found: list[FoundSpike] = []
        for name, data in kept.items():
            meter, _, customer = name.decode().partition(" ")
            values: Any = json.loads(data)
            found.append(FoundSpike(customer, meter, *values))
        return sorted(found, key=lambda spike: (-spike.at_ms, spike.customer, spike.meter))

    def _key(self, at_ms: int) -> str:
        return self._store.keys.shard(HOOKS_SHARD, f"spikes:{at_ms // _DAY_MS}")
