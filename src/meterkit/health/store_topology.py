"""Checks of the store as one: shards, write latency, outages, sentinels and cluster slots."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Final

from redis.exceptions import NoPermissionError, ResponseError

from meterkit.decisions.keys import FORMAT
from meterkit.errors import StoreError
from meterkit.insights.health_report import Finding, join_names, one_finding
from meterkit.redis.discovery import ask_sentinel, find_slots, slot_of
from meterkit.store.daily_counts import DEGRADED_DAYS
from meterkit.store.excess_units import ExcessUnits, describe_units

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meterkit.assembly import Parts
    from meterkit.health.store_servers import CheckContext, CheckResult
    from meterkit.redis.admin import Admin


_TRIES: Final = 5
_RECENT_DAYS: Final = 2
_CURES: Final[Mapping[str, str]] = {
    "used memory": "raise maxmemory, or find what fills it",
    "MISCONF": "it cannot write its snapshot or append-only file: free disk space, and read its log",
    "read only": "name its master; sentinel:// and cluster addresses find it",
    "NOREPLICAS": "start its replicas: it accepts writes only with min-replicas-to-write of them",
}


async def check_shards(context: CheckContext) -> CheckResult:
    """Check the format and the number of shards that the store was made with."""
    keys = context.parts.store.keys
    kept: dict[bytes, bytes] = await context.admin.ask(context.client.hgetall(keys.meta))
    meta = {name.decode(): value.decode(errors="replace") for name, value in kept.items()}
    return meta.get("shards", "new"), find_shard_mismatch(meta, configured=keys.shards, key=keys.meta)


def find_shard_mismatch(meta: Mapping[str, str], *, configured: int, key: str) -> list[Finding]:
    """Report a store that another release or other settings made."""
    if not meta:
        return []  # Nothing has been written yet.
    try:
        written, found = int(meta["format"]), int(meta["shards"])
    except (KeyError, ValueError):
        return one_finding(
            check="shards",
            problem=f"the store has an entry at {key} that meterkit did not write: {dict(meta)}",
            cure="set METERKIT_KEY_PREFIX to a prefix that no other program uses",
        )
    if written != FORMAT:
        age = "a newer" if written > FORMAT else "an older"
        cure = "upgrade this process" if written > FORMAT else "deliver pending usage with that release first"
        return one_finding(
            check="shards",
            problem=f"{age} release wrote the store (format {written}, not {FORMAT})",
            cure=cure,
        )
    if found != configured:
        return one_finding(
            check="shards",
            problem=f"the store has {found} shards, METERKIT_SHARDS is {configured}: no process starts",
            cure=f"set METERKIT_SHARDS={found}",
        )
    return []


async def check_breaker(parts: Parts, admin: Admin) -> tuple[str, list[Finding]]:
    """Measure how soon the store accepts a write: the circuit breaker of each process goes by it.

    Raises:
        StoreError: the store does not answer.
    """
    key, took_s = parts.store.keys.meta, list[float]()
    is_new = await admin.ask(admin.client.hget(key, "format")) is None
    for _ in range(_TRIES):
        began = perf_counter()
        try:
            # Each connection of an app does the same; an existing value stays.
            probe = admin.client.ping() if is_new else admin.client.hsetnx(key, "format", FORMAT)
            await admin.ask(probe)
        except StoreError as error:
            if not isinstance(error.__cause__, ResponseError) or isinstance(
                error.__cause__, NoPermissionError
            ):
                raise
            return "open", [report_refused_writes(str(error))]
        took_s.append(perf_counter() - began)
    typical_s, timeout_s = median(took_s), parts.settings.store_timeout
    return f"answers within {typical_s * 1000:.1f} ms", find_slow_answers(typical_s, timeout_s)


def report_refused_writes(words: str) -> Finding:
    """Report a store that refuses writes; ``words`` is its reply."""
    cure = next((cure for word, cure in _CURES.items() if word in words), "read the server's log")
    return Finding(
        check="breaker",
        problem=f"{words}: it refuses writes, so each process decides without it (on_store_failure), and"
        " usage waits in spools",
        cure=cure,
    )


def find_slow_answers(typical_s: float, timeout_s: float) -> list[Finding]:
    """Report a store that takes more than half of the store timeout to answer."""
    if typical_s <= timeout_s / 2:
        return []
    return one_finding(
        check="breaker",
        problem=f"a reply takes {typical_s:.2g} s, and a request waits at most {timeout_s:g} s for it"
        " (METERKIT_STORE_TIMEOUT): some or all requests are decided without the store",
        cure="run the store in the same zone as the app, find slow commands (SLOWLOG GET), or raise"
        " METERKIT_STORE_TIMEOUT",
    )


async def _check_sentinels(parts: Parts) -> tuple[str, list[Finding]]:
    address, timeout_s, clock = parts.store.address, parts.settings.store_timeout, parts.store.clock
    masters_named: dict[str, str] = {}
    for place in address.places:
        try:
            masters_named[str(place)] = str(
                await ask_sentinel(place, address, timeout_s=timeout_s, clock=clock)
            )
        except StoreError as error:
            masters_named[str(place)] = f"no master: {error}"
    return ", ".join(sorted(set(masters_named.values()))), _find_disagreement(masters_named)


def _find_disagreement(masters_named: Mapping[str, str]) -> list[Finding]:
    """Report sentinels that name another master than most, by their addresses."""
    masters = list(masters_named.values())
    most = max(masters, key=masters.count)
    return [
        Finding(
            check="sentinels",
            problem=f"the sentinel at {place} names {master}"
            + ("" if master == most else f", most others name {most}"),
            cure="check that it runs and that it reaches the other sentinels",
        )
        for place, master in masters_named.items()
        if master != most or master.startswith("no master")
    ]


async def _check_slots(parts: Parts) -> tuple[str, list[Finding]]:
    keys, timeout_s = parts.store.keys, parts.settings.store_timeout
    slots = await find_slots(parts.store.address, (), timeout_s=timeout_s, clock=parts.store.clock)
    names = [keys.meta, keys.events, *(keys.shard(shard, "") for shard in range(keys.shards))]
    return f"{len(slots.places)} nodes", _find_uncovered_slots(
        [name for name in names if slots.of(slot_of(name)) is None]
    )


def _find_uncovered_slots(keys: Sequence[str]) -> list[Finding]:
    """Report keys whose slots no node of the cluster serves."""
    if not keys:
        return []
    return one_finding(
        check="slots",
        problem=f"no node serves the slots of {join_names(keys)}: commands for them are refused",
        cure="start the node that served them, or run redis-cli --cluster fix",
    )


async def check_degraded(parts: Parts) -> tuple[str, list[Finding]]:
    """Check whether units were admitted beyond limits while the store was down, today or yesterday (UTC).

    Raises:
        StoreError: the store does not answer.
    """
    excess, minutes = ExcessUnits(parts.store), await parts.store.degraded.read(DEGRADED_DAYS)
    units = describe_units(await excess.read(DEGRADED_DAYS)) or "none"
    counts = "1 minute" if len(minutes) == 1 else f"{len(minutes):,} minutes"
    text = f"{counts} without the store in {DEGRADED_DAYS} days; units admitted beyond limits: {units}"
    return text, report_excess_units(await excess.read(_RECENT_DAYS))


def report_excess_units(units: Mapping[str, int]) -> list[Finding]:
    """Report units beyond limits, by meter."""
    if not units:
        return []
    return one_finding(
        check="degraded",
        problem="units were admitted beyond limits while the store was down, counted today or yesterday"
        f" (UTC): {describe_units(units)}",
        cure="these units are recorded, and limits count them; the app's log says why the store was down. To"
        " admit none, set `on_store_failure: deny` on the routes that use these meters",
    )


TOPOLOGY_CHECKS: Final[
    Mapping[str, Mapping[str, Callable[[Parts], Awaitable[tuple[str, list[Finding]]]]]]
] = {
    "sentinel": {"sentinels": _check_sentinels},
    "cluster": {"slots": _check_slots},
}
"""Checks of one kind of store address."""
