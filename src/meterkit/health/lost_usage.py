"""Check for usage that a restart or failover of the store has lost, by the audit log."""

from __future__ import annotations

import asyncio
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.periods import DAY_MS, from_ms
from meterkit.errors import MeterkitError, StoreError
from meterkit.health.audit_log import PATIENCE_S
from meterkit.health.store_servers import INFO_REFUSED
from meterkit.insights.audit.draining import open_drainer
from meterkit.insights.health_report import CheckSkippedError, Finding, join_names, one_finding
from meterkit.insights.store_readings import ask_server
from meterkit.redis.store_clock import CLOCK_APART_S
from meterkit.store.server_restarts import ServerLives

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.assembly import Parts
    from meterkit.insights.audit.lost_usage import CounterComparison, LostUsage

_RECENT_MS: Final = 35 * DAY_MS  # Longer than a month: most open periods began within it.
_CLOCK_APART_MS: Final = int(CLOCK_APART_S * 1000)  # Up to this, a process goes by its host's clock.


async def check_lost_usage(parts: Parts) -> tuple[str, list[Finding]]:
    """Compare counters with the audit log if a server of the store was restarted or promoted.

    Raises:
        CheckSkippedError: the server's user may not ask for INFO, or the database does not answer.
        StoreError: the store does not answer.
    """
    store, admin = parts.store, await parts.store.admin()
    servers = [await ask_server(one, one.client.info("everything")) for one in await admin.servers()]
    if None in servers:
        raise CheckSkippedError(INFO_REFUSED)
    infos, now_ms = [info for info in servers if info is not None], store.now_ms()
    noticed_ms = await _read_noticed_ms(parts) if any(map(is_promoted, infos)) else None
    until_ms = find_interruption_ms(infos, noticed_ms, now_ms)
    if until_ms is None:
        return f"no server was restarted or promoted within {_RECENT_MS // DAY_MS} days", []
    database = open_drainer(store, parts.settings).database
    compare: Any = import_module("meterkit.insights.audit.lost_usage").compare_counters
    try:
        async with asyncio.timeout(PATIENCE_S):
            found: CounterComparison = await compare(store, database, until_ms)
    except StoreError:
        raise
    except (MeterkitError, TimeoutError):
        # The check of the database reports one that is down.
        raise CheckSkippedError(
            f"the database does not answer within {PATIENCE_S:g} s: run `meterkit audit rebuild --dry-run`"
        ) from None
    return describe_comparison(found, until_ms), find_lost_usage(found.lost)


def is_promoted(info: Mapping[str, Any]) -> bool:
    """Whether a server was a replica before, by ``INFO replication``."""
    return int(info.get("second_repl_offset", -1)) >= 0


def find_interruption_ms(
    servers: Sequence[Mapping[str, Any]], noticed_ms: int | None, now_ms: int
) -> int | None:
    """Find the instant until which usage may be lost; None: no server was restarted or promoted lately. Pure.

    Args:
        servers: ``INFO`` of each.
        noticed_ms: when a flusher last noticed another server; None: none has. A server does not tell when it
            was promoted.
        now_ms: the time.
    """
    found = [now_ms - int(info["uptime_in_seconds"]) * 1000 for info in servers]
    if any(map(is_promoted, servers)):
        found.append(now_ms if noticed_ms is None else noticed_ms)
    last_ms = max(found)
    return min(last_ms + _CLOCK_APART_MS, now_ms) if last_ms > now_ms - _RECENT_MS else None


async def _read_noticed_ms(parts: Parts) -> int | None:
    """Read when a flusher last noticed another server; None: no flusher has.

    Raises:
        StoreError: the store does not answer.
    """
    lives, found = ServerLives(parts.store), 0
    for shard in range(parts.store.keys.shards):
        life = await lives.read_life(shard)
        compared = life.forgot.partition("-")[2]
        found = max(found, int(compared) if compared and not life.noticed else life.noticed_ms)
    return found or None


def describe_comparison(found: CounterComparison, until_ms: int) -> str:
    """Describe how many customers were compared, and which."""
    which = f" with the latest usage before {from_ms(until_ms):%Y-%m-%dT%H:%MZ}" if found.is_sample else ""
    customers = "1 customer" if found.compared == 1 else f"{found.compared:,} customers"
    text = f"{customers}{which} compared with the audit log"
    if found.unsettled:
        text += f"; {found.unsettled:,} not, as a correction or deletion is on its way into the database"
    return text


def find_lost_usage(lost: Sequence[LostUsage]) -> list[Finding]:
    """Report usage that the audit log has and the store lacks."""
    if not lost:
        return []
    units = Counter[str]()
    for one in lost:
        units[one.meter] += one.units
    by_meter = ", ".join(f"{count:,} {meter}" for meter, count in sorted(units.items()))
    names = sorted({one.customer for one in lost})
    return one_finding(
        check="lost",
        problem=f"a restart or failover of the store has lost usage that the audit log has: {by_meter}, of"
        f" {join_names(names)}; limits admit it again, and it is not billed",
        cure="run `meterkit audit rebuild --dry-run` with the Stripe key, then `meterkit audit rebuild`: it"
        " brings these units back and bills nothing twice. See what the store persists (`persistence`,"
        " `replication`)",
    )
