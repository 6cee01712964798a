"""Watches: one process at a time looks for full storage and for periods that are over."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.sorting import SortedCustomers, customers_with_counts
from meterkit.customers.states import States
from meterkit.customers.usage import overage_charge
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.gauges import StoredLevel
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.periods import HOUR_MS, to_ms
from meterkit.store.message_queue import publish_notice
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meterkit.store.store import Store

UNREADABLE: Final = (ValueError, TypeError, AttributeError, LookupError)
"""What reading a damaged value raises, or one of another release."""
_EVERY_S: Final = 300.0
_LEASE_MS: Final = 600_000
_EVENTS_KEPT_MS: Final = 2 * 86_400_000
_TOLD: Final = b"told "


class Lookout:
    """One process looks every five minutes, where its event is wanted.

    Args:
        store: where the lease is.
        event: what is looked for.
        is_wanted: whether a channel or a handler wants the event.
    """

    def __init__(self, store: Store, event: str, is_wanted: Callable[[str], bool]) -> None:
        self._event = event
        self._is_wanted = is_wanted
        self.lease = TaskLease(store, store.keys.shard(HOOKS_SHARD, f"{event}:lease"), lasts_ms=_LEASE_MS)

    async def run(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look until cancelled; raises what looking does.

        Raises:
            StoreError: the store does not answer.
        """
        while True:
            await self.turn(look)
            await asyncio.sleep(_EVERY_S)

    async def turn(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look unless the event is unwanted or another process looks; raises as :meth:`run` does."""
        if self._is_wanted(self._event) and await self.lease.take():
            await look()


async def note_unreadable(store: Store, customer: str, event: str, error: Exception) -> None:
    """Log once that a customer is passed over: one damaged value must not keep events from all others."""
    (await store.admin()).warn_once(
        f"no {event} for customer {customer!r}: what is kept cannot be read: {error!r}"
    )


def digest_of(*parts: str | int) -> str:
    """The id of an event that is made of its cause."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).hexdigest()


async def tell_once(
    store: Store,
    customer: str,
    event: str,
    digest: str,
    make: Callable[[], Awaitable[Mapping[str, Any] | None]],
) -> None:
    """Tell of an event, unless this was called for it in the last two days.

    Args:
        store: where events are kept.
        customer: the customer's id.
        event: for example ``usage.spike``.
        digest: the idempotency key.
        make: the event's attributes; None: there is nothing to tell.

    Raises:
        StoreError: the store does not answer; handlers may or may not get the event.
    """
    key, admin, now_ms = store.keys.watched(customer, digest), await store.admin(), store.now_ms()
    known: bytes = await admin.ask(admin.client.get(key)) or b""
    is_told = known.startswith(_TOLD)
    if is_told and now_ms - int(known.removeprefix(_TOLD)) > _EVENTS_KEPT_MS:
        known, is_told = b"", False
    if not known:
        made = await make()
        if made is None:
            return
        known = json.dumps(dict(made)).encode()
        # Kept before the event is entered: a repeat after a kill is the same event.
        await admin.ask(admin.client.set(key, known, px=_EVENTS_KEPT_MS))
    if not is_told:
        await publish_notice(store, customer, event, json.loads(known))
    await admin.ask(admin.client.set(key, b"%b%d" % (_TOLD, now_ms), px=_EVENTS_KEPT_MS))


STORAGE_EVENT: Final = "storage.over"
_UNITS: Final = frozenset({"byte", "bytes"})
_STORAGE_AT_ONCE: Final = 500


class StorageWatch:
    """Looks for customers who store more than their plan includes.

    Args:
        store: where levels and events are kept.
        is_wanted: whether a channel or a handler wants an event.
    """

    def __init__(self, store: Store, is_wanted: Callable[[str], bool]) -> None:
        self._store = store
        self._lookout = Lookout(store, STORAGE_EVENT, is_wanted)

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
        if not gauges:
            return
        async with customers_with_counts(self._store, "v") as customers:
            async for names in customers.names(_STORAGE_AT_ONCE):
                for customer, levels in await self._levels(names, gauges):
                    try:
                        await self._tell(customer, dict(zip(gauges, levels, strict=True)))
                    except UNREADABLE as error:
                        await note_unreadable(self._store, customer, STORAGE_EVENT, error)
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
            since_ms = StoredLevel.read(packed).over_ms  # As a script found it.
            if since_ms:
                make = partial(self._found, customer, gauge, since_ms)
                await tell_once(
                    self._store, customer, STORAGE_EVENT, digest_of(customer, STORAGE_EVENT, gauge), make
                )

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


SUMMARY_EVENT: Final = "period.summary"
_SUMMARIES_AT_ONCE: Final = 100
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
        self._lookout = Lookout(store, SUMMARY_EVENT, is_wanted)
        self._key = store.keys.shard(HOOKS_SHARD, f"{SUMMARY_EVENT}:last")
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
        async with SortedCustomers() as due:
            await self._find_due(due, last, until_ms)
            async for page in due.pages(_SUMMARIES_AT_ONCE):
                for end_ms, customer in page:
                    await self._sum_up(customer, end_ms)
                    await self._keep(end_ms, customer)
                    if not await self._lookout.lease.take():
                        return
        await self._keep(until_ms, "")

    async def _find_due(self, due: SortedCustomers, last: tuple[int, str], until_ms: int) -> None:
        """Add the ends of the periods before those of now, and whose."""
        async with customers_with_counts(self._store) as customers:
            async for names in customers.names(_SUMMARIES_AT_ONCE):
                ends = await self._ends(names)
                await due.add(end for end in ends if last < end and end[0] < until_ms)

    async def _sum_up(self, customer: str, end_ms: int) -> None:
        try:
            summary = await self._summary(customer, end_ms)
        except UNREADABLE as error:
            await note_unreadable(self._store, customer, SUMMARY_EVENT, error)
            return
        if summary is not None:
            await publish_notice(self._store, customer, SUMMARY_EVENT, summary)
            await asyncio.sleep(self._pause_s)

    async def _ends(self, customers: Sequence[str]) -> list[tuple[int, str]]:
        try:
            usages = await self._store.usage_of_many(customers)
        except UNREADABLE as error:
            if len(customers) > 1:
                return [end for customer in customers for end in await self._ends([customer])]
            await note_unreadable(self._store, customers[0], SUMMARY_EVENT, error)
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
            "id": digest_of(customer, SUMMARY_EVENT, start_ms),
            "at_ms": self._store.now_ms(),
            "period_start_ms": start_ms,
            "period_end_ms": end_ms,
            "overage_cents": charge,
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
