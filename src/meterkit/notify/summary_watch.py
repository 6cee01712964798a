"""The watch for periods that are over: one process sums each customer's usage up, and tells it once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.periods import HOUR_MS, to_ms
from meterkit.notify.watching import UNREADABLE, Lookout, digest_of, note_unreadable
from meterkit.store.all_usage import customers_with_counts
from meterkit.store.notices import tell
from meterkit.store.priced_usage import overage_charge
from meterkit.store.state_changes import States

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.store.store import Store

__all__ = ["EVENT", "SummaryWatch"]

EVENT: Final = "period.summary"

_AT_ONCE: Final = 100
_KEPT_MS: Final = 7 * 86_400_000
_PAUSE_S: Final = 0.1
"""Between two customers: a shard keeps a thousand events, and is read every half a minute."""


class SummaryWatch:
    """Sums up the periods that ended an hour ago or earlier, in the order of their ends.

    The store keeps the end and the customer of the last one. If a process is killed before it has kept
    them, the event of this customer is repeated, with the same id.

    Args:
        store: where usage and events are kept.
        is_wanted: whether a channel or a handler wants an event.
        pause_s: how long to wait between two customers.
    """

    def __init__(self, store: Store, is_wanted: Callable[[str], bool], *, pause_s: float = _PAUSE_S) -> None:
        self._store = store
        self._lookout = Lookout(store, EVENT, is_wanted)
        self._key = store.keys.shard(HOOKS_SHARD, f"{EVENT}:last")
        self._pause_s = pause_s
        self._again_ms = 0

    async def run(self) -> None:
        """Look every hour until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        await self._lookout.run(self._look_hourly)

    async def _look_hourly(self) -> None:
        if self._store.now_ms() >= self._again_ms:
            await self.look()
            self._again_ms = self._store.now_ms() + HOUR_MS

    async def look(self) -> None:
        """Look once.

        Raises:
            StoreError: the store does not answer.
        """
        until_ms, last = self._store.now_ms() - HOUR_MS, await self._last()
        if last is None:  # No process has looked for a week: begin with periods that end from now on.
            await self._keep(until_ms, "")
            return
        for end_ms, customer in await self._due(last, until_ms):
            try:
                summary = await self._summary(customer, end_ms)
            except UNREADABLE as error:
                await note_unreadable(self._store, customer, EVENT, error)
                summary = None
            if summary is not None:
                await tell(self._store, customer, EVENT, summary)
                await asyncio.sleep(self._pause_s)
            await self._keep(end_ms, customer)
            if not await self._lookout.lease.take():
                return
        await self._keep(until_ms, "")

    async def _due(self, last: tuple[int, str], until_ms: int) -> list[tuple[int, str]]:
        """The ends of the periods before those of now, and whose; the first to end first."""
        customers = await customers_with_counts(self._store)
        found: list[tuple[int, str]] = []
        for first in range(0, len(customers), _AT_ONCE):
            ends = await self._ends(customers[first : first + _AT_ONCE])
            found += [end for end in ends if last < end and end[0] < until_ms]
        return sorted(found)

    async def _ends(self, customers: Sequence[str]) -> list[tuple[int, str]]:
        try:
            usages = await self._store.usage_of_many(customers)
        except UNREADABLE as error:
            if len(customers) > 1:
                return [end for customer in customers for end in await self._ends([customer])]
            await note_unreadable(self._store, customers[0], EVENT, error)
            return []
        return [(to_ms(usage["period"]["start"]), usage["customer"]) for usage in usages]

    async def _summary(self, customer: str, ended_ms: int) -> Mapping[str, Any] | None:
        # The ledger says which plan was in force: what the clock has changed must be in it.
        await States(self._store).catch_up(customer)
        usage = await self._store.usage(customer, at_ms=ended_ms - 1)
        if not any(counts["recorded"] for counts in usage["meters"].values()):
            return None
        start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
        before = await self._store.usage(customer, at_ms=start_ms - 1)
        admin = await self._store.admin()
        data: bytes | None = await admin.ask(
            admin.client.hget(self._store.keys.customer(customer).state, "data")
        )
        charge = await overage_charge(self._store, usage, CustomerState.parse(data or b""))
        meters: dict[str, Mapping[str, int]] = {}
        for name, counts in usage["meters"].items():
            used, overage = counts["recorded"], counts["overage"]
            used_before = before["meters"][name]["recorded"] if name in before["meters"] else 0
            if used or used_before:
                meters[name] = {"used": used, "overage": overage, "before": used_before}
        return {
            "id": digest_of(customer, EVENT, start_ms),
            "at_ms": self._store.now_ms(),
            "period_start_ms": start_ms,
            "period_end_ms": end_ms,
            "overage_cents": round(charge),
            "meters": meters,
        }

    async def _last(self) -> tuple[int, str] | None:
        admin = await self._store.admin()
        kept: bytes | None = await admin.ask(admin.client.get(self._key))
        if kept is None:
            return None
        end, _, customer = kept.decode("utf-8", "surrogateescape").partition(":")
        return int(end), customer

    async def _keep(self, end_ms: int, customer: str) -> None:
        admin = await self._store.admin()
        await admin.ask(admin.client.set(self._key, f"{end_ms}:{customer}", px=_KEPT_MS))
