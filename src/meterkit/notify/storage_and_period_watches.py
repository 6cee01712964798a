"""Watches: one process at a time checks for full storage and for ended periods.

No script has a branch for them: a level passes its limit by uploads, by another plan or at the end of an
override, and a period ends without any request.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.catalog.overage_prices import is_row
from meterkit.customers.billed_usage import sum_overage
from meterkit.customers.sorted_customers import SortedCustomers, customers_with_counts
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import CustomerState, effective_plan, entitlements_of
from meterkit.decisions.gauges import GaugeLimit, StoredLevel
from meterkit.decisions.keys import HEAD_FIELD, HOOKS_SHARD
from meterkit.decisions.packed import CounterHead
from meterkit.decisions.periods import HOUR_MS, to_ms
from meterkit.decisions.plan_shares import effective_terms
from meterkit.outbox.intents import count_members
from meterkit.store.concurrent_calls import run_together
from meterkit.store.customer_notices import publish_notice
from meterkit.store.gauge_levels import change_level
from meterkit.store.task_lease import TaskLease
from meterkit.store.unreadable_data import UNREADABLE, read_each, skip_unreadable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store

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


def digest_of(*parts: str | int) -> str:
    """Derive the id of an event from its cause."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).hexdigest()


def currency_attribute(catalog: Catalog, usage: CustomerUsage) -> Mapping[str, str]:
    """The attribute ``currency`` of an event; left out where the plans file has only one."""
    return {"currency": usage["currency"]} if len(catalog.currencies) > 1 else {}


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
_LEVELS_AT_ONCE: Final = 500
_RESTATE_EVERY_MS: Final = 24 * HOUR_MS
_CALLS_AT_ONCE: Final = 8


class StorageWatch:
    """Finds customers who store more than their plan includes.

    Each shard lists the gauges above what is included. The scripts that change a level, a plan or an override
    keep the list. A new plans file may include less: then, and once a day, all levels are restated. The store
    has the plans file by which that was done, and when: no process does it again.

    Args:
        store: has the levels and receives the events.
        is_wanted: whether a channel or a handler wants an event.
    """

    def __init__(self, store: Store, is_wanted: Callable[[str], bool]) -> None:
        self._store = store
        self._watch = LeasedWatch(store, STORAGE_EVENT, is_wanted)
        self._key = store.keys.shard(HOOKS_SHARD, f"{STORAGE_EVENT}:restated")

    async def run(self) -> None:
        """Check every five minutes until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        await self._watch.run(self.check)

    async def check(self) -> None:
        """Check the gauges above what is included; once a day, restate all levels for the next check.

        Raises:
            StoreError: the store does not answer.
        """
        catalog, now_ms = self._store.catalog, self._store.now_ms()
        meters = catalog.meters.values()
        gauges = [meter.name for meter in meters if meter.kind == "gauge" and meter.unit in _UNITS]
        if not gauges:
            return
        await self._check_listed(gauges)
        restated: bytes = await self._store.ask("get", self._key) or b" 0"
        by_plans, _, at_ms = restated.decode().partition(" ")
        if by_plans != catalog.content_hash or now_ms >= int(at_ms) + _RESTATE_EVERY_MS:
            await self._restate_levels(catalog, gauges)
            await self._store.ask("set", self._key, f"{catalog.content_hash} {now_ms}", px=_RESTATE_EVERY_MS)

    async def _check_listed(self, gauges: Sequence[str]) -> None:
        keys, admin = self._store.keys, (await self._store.admin()).for_delivery()
        for shard, name in await count_members(self._store, admin, ("over",), limit="+inf"):
            # A gauge that leaves the list meanwhile hides another one until the next check.
            for first in count(0, _LEVELS_AT_ONCE):
                page = keys.shard(shard, name), first, first + _LEVELS_AT_ONCE - 1
                members: list[bytes] = await admin.ask(admin.client.zrange(*page))
                listed = [member.decode("utf-8", "surrogateescape").partition(":")[::2] for member in members]
                found = [(gauge, customer) for gauge, customer in listed if gauge in gauges]
                levels = await self._read_levels(found)
                await run_together(
                    [partial(self._check_level, *place, packed) for place, packed in levels],
                    at_once=_CALLS_AT_ONCE,
                )
                await self._watch.lease.acquire()
                if len(members) < _LEVELS_AT_ONCE:
                    break

    async def _restate_levels(self, catalog: Catalog, gauges: Sequence[str]) -> None:
        """Restate each level above what the smallest plan includes."""
        store, least = self._store, dict[str, int]()
        for gauge in gauges:
            given = [plan.entitlements[gauge].included for plan in catalog.plans.values()]
            least[gauge] = min((included for included in given if included is not None), default=QUANTITY_MAX)
        async with customers_with_counts(store, "v") as customers:
            async for names in customers.names(_LEVELS_AT_ONCE):
                places = [(gauge, customer) for customer in names for gauge in gauges]
                levels = await self._read_levels(places)
                await run_together(
                    [
                        partial(self._restate_level, *place, packed, least[place[0]])
                        for place, packed in levels
                    ],
                    at_once=_CALLS_AT_ONCE,
                )
                await self._watch.lease.acquire()

    async def _restate_level(self, gauge: str, customer: str, packed: Any, least: int) -> None:
        async with skip_unreadable(customer, partial(self._store.log_unreadable, STORAGE_EVENT)):
            if _read_level(packed).level > least:
                view = self._store.cache.get(customer)
                await change_level(self._store, view, gauge, 0, how="adjust", event_id=None)

    async def _read_levels(self, places: Sequence[tuple[str, str]]) -> list[tuple[tuple[str, str], Any]]:
        """Read the packed levels of gauges, each with its customer; of a damaged key an error."""
        admin = (await self._store.admin()).for_delivery()
        keys = self._store.keys
        replies = await admin.ask_each(
            ("hget", keys.customer(customer).levels, gauge) for gauge, customer in places
        )
        return list(zip(places, replies, strict=True))

    async def _check_level(self, gauge: str, customer: str, packed: Any) -> None:
        async with skip_unreadable(customer, partial(self._store.log_unreadable, STORAGE_EVENT)):
            level = _read_level(packed)
            if level.over_ms:
                make = partial(self._make_storage_event, customer, gauge, level)
                digest = digest_of(customer, STORAGE_EVENT, gauge)
                await notify_once(self._store, customer, STORAGE_EVENT, digest, make)

    async def _make_storage_event(
        self, customer: str, gauge: str, level: StoredLevel
    ) -> Mapping[str, Any] | None:
        usage, now_ms = await self._store.usage(customer), self._store.now_ms()
        found, limit = usage["meters"][gauge], await self._read_limit(customer, gauge, now_ms)
        included, used = found["included"], found["recorded"]
        if included == "unlimited" or limit is None or used <= included:
            return None  # The plan has changed.
        grace_end_ms = level.over_ms + limit.grace_ms
        remaining = max(0, limit.at(level, now_ms) - used)
        # A limit of before a change of plan has no end, and a level above the tolerance no grace.
        is_ending = remaining > 0 and limit.at(level, grace_end_ms) <= used
        types = sorted(found.get("types", {}).items(), key=lambda one: (-one[1], one[0]))
        return {
            # With the instant: a customer who exceeds the limit again later gets another event.
            "id": digest_of(customer, gauge, level.over_ms),
            "at_ms": now_ms,
            "meter": gauge,
            "used": used,
            "included": included,
            "since_ms": level.over_ms,
            "until_ms": grace_end_ms if is_ending else None,
            "types": {name: size for name, size in types if size},
            "remaining": remaining,
        }

    async def _read_limit(self, customer: str, gauge: str, now_ms: int) -> GaugeLimit | None:
        """Read the limit of a customer's gauge: by plan, override, add-ons and access."""
        catalog = self._store.catalog
        _, state = await CustomerStates(self._store).read(customer)
        effective = effective_terms(state, catalog, now_ms)
        return GaugeLimit.of(entitlements_of(effective, catalog)[gauge], keeps=effective.keeps_limits)


def _read_level(reply: bytes | Exception | None) -> StoredLevel:
    """Parse a level as it was read. Raises ValueError if it, or its key, is damaged."""
    if isinstance(reply, Exception):
        raise ValueError(str(reply)) from reply  # noqa: TRY004 - as for a damaged field
    return StoredLevel.read(reply)


SUMMARY_EVENT: Final = "period.summary"
_SUMMARIES_AT_ONCE: Final = 100
_USAGES_AT_ONCE: Final = 25
_POSITION_TTL_MS: Final = 7 * 86_400_000
_PAUSE_S: Final = 0.1
"""Between two events of a shard: it holds a thousand, and is read every half a minute."""


class SummaryWatch:
    """Summarizes the periods that ended an hour ago or earlier, in the order of their ends.

    The store has the end and the customer of the last one, as position. If a process is killed before it
    saves the position, the events of a page are repeated with the same ids.

    Args:
        store: has the usage and receives the events.
        is_wanted: whether a channel or a handler wants an event.
        pause_s: the pause between two events of a shard.
    """

    def __init__(self, store: Store, is_wanted: Callable[[str], bool], *, pause_s: float = _PAUSE_S) -> None:
        self._store = store
        self._watch = LeasedWatch(store, SUMMARY_EVENT, is_wanted)
        self._key = store.keys.shard(HOOKS_SHARD, f"{SUMMARY_EVENT}:last")
        self._pause_s = pause_s

    async def run(self) -> None:
        """Check every hour until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        await self._watch.run(self._check_hourly)

    async def _check_hourly(self) -> None:
        last = await self._read_position()
        if last is None or self._store.now_ms() - HOUR_MS >= last[0] + HOUR_MS:
            await self.check()

    async def check(self) -> None:
        """Check all customers once.

        Raises:
            StoreError: the store does not answer.
        """
        now_ms = await self._store.clock_ms(HOOKS_SHARD)
        until_ms = now_ms - HOUR_MS
        last = await self._read_position()
        if last is None:  # No check for a week: begin with periods that end from now on.
            await self._save_position(until_ms, "")
            return
        async with SortedCustomers() as due:
            if not await self._find_due(due, last, now_ms):
                return
            async for page in due.pages(_SUMMARIES_AT_ONCE):
                ends: dict[str, list[int]] = {}
                for end_ms, customer in page:
                    ends.setdefault(customer, []).append(end_ms)
                counts = await run_together(
                    [partial(self._notify_summaries, *one) for one in ends.items()], at_once=_CALLS_AT_ONCE
                )
                await self._save_position(*page[-1])
                if not await self._watch.lease.acquire():
                    return
                published = sum(counts, Counter[int]())
                await asyncio.sleep(self._pause_s * max(published.values(), default=0))
        await self._save_position(until_ms, "")

    async def _find_due(self, due: SortedCustomers, last: tuple[int, str], now_ms: int) -> bool:
        """Add customers with the ends of their periods since the last check.

        Returns whether this process still has the lease.
        """
        until_ms = now_ms - HOUR_MS
        async with self._list_customers(last[0], now_ms) as customers:
            async for names in customers.names(_SUMMARIES_AT_ONCE):
                ends = await self._read_period_ends(await self._select_ended(names, last[0], now_ms))
                # A period may both begin and end between two checks: look at those before it, too.
                while ends := [end for end in ends if last < end]:
                    await due.add(end for end in ends if end[0] < until_ms)
                    ends = await self._read_former_ends(ends)
                if not await self._watch.lease.acquire():
                    return False
        return True

    @asynccontextmanager
    async def _list_customers(self, since_ms: int, now_ms: int) -> AsyncGenerator[SortedCustomers]:
        """All customers with usage; without a record only if a period of the default plan ended since."""
        store = self._store
        if effective_plan(CustomerState(), store.catalog, now_ms).bounds.start_ms >= since_ms:
            async with customers_with_counts(store) as found:
                yield found
        else:
            async with SortedCustomers() as found:
                await found.add_set_up((await store.admin()).for_delivery(), store.keys)
                yield found

    async def _select_ended(self, customers: Sequence[str], since_ms: int, now_ms: int) -> list[str]:
        """Select customers whose usage may show a period that ended since an instant, or be damaged."""
        admin, catalog = (await self._store.admin()).for_delivery(), self._store.catalog
        replies = await admin.ask_each(
            ("hget", key, field)
            for of in map(self._store.keys.customer, customers)
            for key, field in ((of.state, "data"), (of.counters, HEAD_FIELD))
        )
        found: list[str] = []
        for customer, data, packed in zip(customers, replies[::2], replies[1::2], strict=True):
            try:
                bounds = effective_plan(CustomerState.parse(data or b""), catalog, now_ms).bounds
                head = CounterHead.read(packed)
            except UNREADABLE:
                found.append(customer)
            else:
                # A change of the subscription may have moved the end; no script has closed that period yet.
                is_moved = bounds.start_ms < head.ends_ms != bounds.end_ms
                if is_moved or max(bounds.start_ms, head.begins_ms) >= since_ms:
                    found.append(customer)
        return found

    async def _read_former_ends(self, ends: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
        """Read when the periods before some ended; periods of calendar months end together."""
        by_end: dict[int, list[str]] = {}
        for at_ms, customer in ends:
            by_end.setdefault(at_ms, []).append(customer)
        former = [await self._read_period_ends(names, at_ms=at_ms - 1) for at_ms, names in by_end.items()]
        return [end for found in former for end in found]

    async def _notify_summaries(self, customer: str, ends: Iterable[int]) -> Counter[int]:
        """Publish a customer's summaries; their number by shard."""
        published = Counter[int]()
        for end_ms in ends:
            summary = None
            async with skip_unreadable(customer, partial(self._store.log_unreadable, SUMMARY_EVENT)):
                summary = await self._make_summary(customer, end_ms)
            if summary is not None:
                await publish_notice(self._store, customer, SUMMARY_EVENT, summary)
                published[self._store.keys.customer(customer).shard] += 1
        return published

    async def _read_period_ends(
        self, customers: Sequence[str], *, at_ms: int | None = None
    ) -> list[tuple[int, str]]:
        """Read when the period before the present one, or before that of another instant, ended."""
        read = partial(self._store.usage_of_many, at_ms=at_ms)
        found: list[tuple[int, str]] = []
        for first in range(0, len(customers), _USAGES_AT_ONCE):
            page = customers[first : first + _USAGES_AT_ONCE]
            usages = await read_each(page, read, partial(self._store.log_unreadable, SUMMARY_EVENT))
            found += [(to_ms(usage["period"]["start"]), usage["customer"]) for usage in usages]
        return found

    async def _make_summary(self, customer: str, ended_ms: int) -> Mapping[str, Any] | None:
        # The ledger must have the changes of the clock: it says which plan was active.
        await CustomerStates(self._store).catch_up(customer)
        usage = await self._store.usage(customer, at_ms=ended_ms - 1)
        if not any(counts["recorded"] for counts in usage["meters"].values()):
            return None
        start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
        before = await self._store.usage(customer, at_ms=start_ms - 1)
        data: bytes | None = await self._store.ask("hget", self._store.keys.customer(customer).state, "data")
        charge = await sum_overage(self._store, usage, CustomerState.parse(data or b""))
        meters: dict[str, Mapping[str, int]] = {}
        for name, counts in usage["meters"].items():
            used, overage = counts["recorded"], counts["overage"]
            used_before = before["meters"][name]["recorded"] if name in before["meters"] else 0
            # Units at a price by model are units of their meter.
            if (used or used_before) and not is_row(name):
                meters[name] = {"used": used, "overage": overage, "before": used_before}
        return {
            "id": digest_of(customer, SUMMARY_EVENT, start_ms),
            "at_ms": self._store.now_ms(),
            "period_start_ms": start_ms,
            "period_end_ms": end_ms,
            "overage_cents": charge,
            **currency_attribute(self._store.catalog, usage),
            "meters": meters,
        }

    async def _read_position(self) -> tuple[int, str] | None:
        kept: bytes | None = await self._store.ask("get", self._key)
        if kept is None:
            return None
        end, _, customer = kept.decode("utf-8", "surrogateescape").partition(":")
        return int(end), customer

    async def _save_position(self, end_ms: int, customer: str) -> None:
        await self._store.ask("set", self._key, f"{end_ms}:{customer}", px=_POSITION_TTL_MS)
