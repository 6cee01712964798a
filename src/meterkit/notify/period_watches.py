"""Watches: one process at a time checks for full storage and for ended periods.

No script has a branch for them: a level passes its limit by uploads, by another plan or at the end of an
override, and a period ends without any request.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.billed_usage import sum_overage
from meterkit.customers.sorted_customers import SortedCustomers, customers_with_counts
from meterkit.customers.states import CustomerStates
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
"""Errors of reading a stored value that is damaged or of another release."""
_EVERY_S: Final = 300.0
_LEASE_MS: Final = 600_000
_EVENT_TTL_MS: Final = 2 * 86_400_000
_NOTIFIED: Final = b"told "


class LeasedWatch:
    """Runs a check every five minutes in the one process that holds the lease, if its event is wanted.

    Args:
        store: has the lease.
        event: the event that the check finds.
        is_wanted: whether a channel or a handler wants the event.
    """

    def __init__(self, store: Store, event: str, is_wanted: Callable[[str], bool]) -> None:
        self._event = event
        self._is_wanted = is_wanted
        self.lease = TaskLease(store, store.keys.shard(HOOKS_SHARD, f"{event}:lease"), lasts_ms=_LEASE_MS)

    async def run(self, check: Callable[[], Awaitable[None]]) -> None:
        """Run the check until cancelled; raises what it raises.

        Raises:
            StoreError: the store does not answer.
        """
        while True:
            await self.run_once(check)
            await asyncio.sleep(_EVERY_S)

    async def run_once(self, check: Callable[[], Awaitable[None]]) -> None:
        """Check unless the event is unwanted or another process has the lease."""
        if self._is_wanted(self._event) and await self.lease.acquire():
            await check()


async def log_unreadable(store: Store, customer: str, event: str, error: Exception) -> None:
    """Log once that a customer is skipped: one damaged value must not stop the events of others."""
    (await store.admin()).warn_once(
        f"no {event} for customer {customer!r}: the stored data cannot be read: {error!r}"
    )


def digest_of(*parts: str | int) -> str:
    """Derive the id of an event from its cause."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).hexdigest()


async def notify_once(
    store: Store,
    customer: str,
    event: str,
    digest: str,
    make: Callable[[], Awaitable[Mapping[str, Any] | None]],
) -> None:
    """Add an event to the store, unless that was done in the last two days.

    Args:
        store: receives the event.
        customer: the customer's id.
        event: for example ``usage.spike``.
        digest: the idempotency key.
        make: returns the event's attributes; None: there is no event.

    Raises:
        StoreError: the store does not answer; handlers may or may not get the event.
    """
    key, admin, now_ms = store.keys.watched(customer, digest), await store.admin(), store.now_ms()
    stored: bytes = await admin.ask(admin.client.get(key)) or b""
    is_notified = stored.startswith(_NOTIFIED)
    if is_notified and now_ms - int(stored.removeprefix(_NOTIFIED)) > _EVENT_TTL_MS:
        stored, is_notified = b"", False
    if not stored:
        made = await make()
        if made is None:
            return
        stored = json.dumps(dict(made)).encode()
        # Stored before the event is added: a repeat after a kill is the same event.
        await admin.ask(admin.client.set(key, stored, px=_EVENT_TTL_MS))
    if not is_notified:
        await publish_notice(store, customer, event, json.loads(stored))
    await admin.ask(admin.client.set(key, b"%b%d" % (_NOTIFIED, now_ms), px=_EVENT_TTL_MS))


STORAGE_EVENT: Final = "storage.over"
_UNITS: Final = frozenset({"byte", "bytes"})
_STORAGE_AT_ONCE: Final = 500


class StorageWatch:
    """Finds customers who store more than their plan includes.

    Args:
        store: has the levels and receives the events.
        is_wanted: whether a channel or a handler wants an event.
    """

    def __init__(self, store: Store, is_wanted: Callable[[str], bool]) -> None:
        self._store = store
        self._watch = LeasedWatch(store, STORAGE_EVENT, is_wanted)

    async def run(self) -> None:
        """Check every five minutes until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        await self._watch.run(self.check)

    async def check(self) -> None:
        """Check all customers once.

        Raises:
            StoreError: the store does not answer.
        """
        meters = self._store.catalog.meters.values()
        gauges = [meter.name for meter in meters if meter.kind == "gauge" and meter.unit in _UNITS]
        if not gauges:
            return
        async with customers_with_counts(self._store, "v") as customers:
            async for names in customers.names(_STORAGE_AT_ONCE):
                for customer, levels in await self._read_levels(names, gauges):
                    try:
                        await self._check_customer(customer, dict(zip(gauges, levels, strict=True)))
                    except UNREADABLE as error:
                        await log_unreadable(self._store, customer, STORAGE_EVENT, error)
                await self._watch.lease.acquire()

    async def _read_levels(
        self, customers: Sequence[str], gauges: Sequence[str]
    ) -> list[tuple[str, Sequence[bytes | None]]]:
        """Read the packed levels of customers."""
        admin = (await self._store.admin()).for_delivery()
        pipe = admin.client.pipeline(transaction=False)
        for customer in customers:
            pipe.hmget(self._store.keys.customer(customer).levels, list(gauges))
        return list(zip(customers, await admin.ask(pipe.execute()), strict=True))

    async def _check_customer(self, customer: str, levels: Mapping[str, bytes | None]) -> None:
        for gauge, packed in levels.items():
            since_ms = StoredLevel.read(packed).over_ms  # Set by a script.
            if since_ms:
                make = partial(self._make_storage_event, customer, gauge, since_ms)
                await notify_once(
                    self._store, customer, STORAGE_EVENT, digest_of(customer, STORAGE_EVENT, gauge), make
                )

    async def _make_storage_event(self, customer: str, gauge: str, since_ms: int) -> Mapping[str, Any] | None:
        usage = await self._store.usage(customer)
        found, plan = usage["meters"][gauge], self._store.catalog.plans.get(usage["plan"])
        included, used = found["included"], found["recorded"]
        if included == "unlimited" or used <= included:
            return None  # The plan has changed.
        grace_ms = None if plan is None else plan.entitlements[gauge].overage.grace_ms
        types = sorted(found.get("types", {}).items(), key=lambda one: (-one[1], one[0]))
        return {
            # With the instant: a customer who exceeds the limit again later gets another event.
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
_POSITION_TTL_MS: Final = 7 * 86_400_000
_PAUSE_S: Final = 0.1
"""Between two customers: a shard holds a thousand events, and is read every half a minute."""


class SummaryWatch:
    """Summarizes the periods that ended an hour ago or earlier, in the order of their ends.

    The store has the end and the customer of the last one, as position. If a process is killed before it
    saves the position, the event of this customer is repeated with the same id.

    Args:
        store: has the usage and receives the events.
        is_wanted: whether a channel or a handler wants an event.
        pause_s: the pause between two customers.
    """

    def __init__(self, store: Store, is_wanted: Callable[[str], bool], *, pause_s: float = _PAUSE_S) -> None:
        self._store = store
        self._watch = LeasedWatch(store, SUMMARY_EVENT, is_wanted)
        self._key = store.keys.shard(HOOKS_SHARD, f"{SUMMARY_EVENT}:last")
        self._pause_s = pause_s
        self._next_check_ms = 0

    async def run(self) -> None:
        """Check every hour until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        await self._watch.run(self._check_hourly)

    async def _check_hourly(self) -> None:
        if self._store.now_ms() >= self._next_check_ms:
            await self.check()
            self._next_check_ms = self._store.now_ms() + HOUR_MS

    async def check(self) -> None:
        """Check all customers once.

        Raises:
            StoreError: the store does not answer.
        """
        until_ms, last = self._store.now_ms() - HOUR_MS, await self._read_position()
        if last is None:  # No check for a week: begin with periods that end from now on.
            await self._save_position(until_ms, "")
            return
        async with SortedCustomers() as due:
            await self._find_due(due, last, until_ms)
            async for page in due.pages(_SUMMARIES_AT_ONCE):
                for end_ms, customer in page:
                    await self._notify_summary(customer, end_ms)
                    await self._save_position(end_ms, customer)
                    if not await self._watch.lease.acquire():
                        return
        await self._save_position(until_ms, "")

    async def _find_due(self, due: SortedCustomers, last: tuple[int, str], until_ms: int) -> None:
        """Add customers with the end of their previous period."""
        async with customers_with_counts(self._store) as customers:
            async for names in customers.names(_SUMMARIES_AT_ONCE):
                ends = await self._read_period_ends(names)
                await due.add(end for end in ends if last < end and end[0] < until_ms)

    async def _notify_summary(self, customer: str, end_ms: int) -> None:
        try:
            summary = await self._make_summary(customer, end_ms)
        except UNREADABLE as error:
            await log_unreadable(self._store, customer, SUMMARY_EVENT, error)
            return
        if summary is not None:
            await publish_notice(self._store, customer, SUMMARY_EVENT, summary)
            await asyncio.sleep(self._pause_s)

    async def _read_period_ends(self, customers: Sequence[str]) -> list[tuple[int, str]]:
        try:
            usages = await self._store.usage_of_many(customers)
        except UNREADABLE as error:
            if len(customers) > 1:
                return [end for customer in customers for end in await self._read_period_ends([customer])]
            await log_unreadable(self._store, customers[0], SUMMARY_EVENT, error)
            return []
        return [(to_ms(usage["period"]["start"]), usage["customer"]) for usage in usages]

    async def _make_summary(self, customer: str, ended_ms: int) -> Mapping[str, Any] | None:
        # The ledger must have the changes of the clock: it says which plan was active.
        await CustomerStates(self._store).catch_up(customer)
        usage = await self._store.usage(customer, at_ms=ended_ms - 1)
        if not any(counts["recorded"] for counts in usage["meters"].values()):
            return None
        start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
        before = await self._store.usage(customer, at_ms=start_ms - 1)
        admin = await self._store.admin()
        data: bytes | None = await admin.ask(
            admin.client.hget(self._store.keys.customer(customer).state, "data")
        )
        charge = await sum_overage(self._store, usage, CustomerState.parse(data or b""))
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

    async def _read_position(self) -> tuple[int, str] | None:
        admin = await self._store.admin()
        kept: bytes | None = await admin.ask(admin.client.get(self._key))
        if kept is None:
            return None
        end, _, customer = kept.decode("utf-8", "surrogateescape").partition(":")
        return int(end), customer

    async def _save_position(self, end_ms: int, customer: str) -> None:
        admin = await self._store.admin()
        await admin.ask(admin.client.set(self._key, f"{end_ms}:{customer}", px=_POSITION_TTL_MS))
