"""Findings about the draining of the audit log: entries that no process drains into its database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from meterkit.catalog.amount_texts import span
from meterkit.errors import MeterkitError
from meterkit.health.findings import Finding, single
from meterkit.insights.audit.draining import MOST, backlog_of, drainer_of, waiting_shards
from meterkit.redis.daemon_thread import in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from meterkit.assembly import Parts
    from meterkit.insights.audit.draining import Backlog, Waiting

OVERDUE_MS: Final = 15 * 60_000
"""How long an entry may wait: a drainer takes it within seconds."""

PATIENCE_S: Final = 10.0
"""How long the database may take: a driver may wait for minutes, or for ever."""


async def look_at_audit_log(parts: Parts) -> tuple[str, list[Finding]]:
    """How many entries wait, and what is wrong with that.

    Raises:
        StoreError: the store does not answer.
    """
    waiting = await waiting_shards(parts.store)
    backlog = await backlog_of(parts.store, waiting)
    age_ms = int(backlog.age_s(parts.store.now_ms()) * 1000)
    found = undrained(backlog.entries, age_ms, is_kept=parts.store.is_audited)
    return f"{backlog.entries:,} entries wait", [*found, *added_up(backlog), *_no_streams(waiting)]


async def look_at_audit_database(parts: Parts) -> tuple[str, list[Finding]]:
    """Whether the database of the audit log can be connected to, and its table be read."""
    look = drainer_of(parts.store, parts.settings).database.look
    try:
        async with asyncio.timeout(PATIENCE_S):
            is_made = await in_thread(look)
    except (MeterkitError, TimeoutError) as error:
        problem = str(error) or f"the database of the audit log does not answer within {PATIENCE_S:g} s"
        cure = (
            "see that the database runs, and that METERKIT_AUDIT_URL has its address, its name and a user who"
            " may read, write and make the table meterkit_audit; what is recorded waits in the store"
        )
        return "", [Finding(check="database", problem=problem, cure=cure)]
    return "its table is read" if is_made else "its table is made when first needed", []


async def look_at_revenue(parts: Parts) -> tuple[str, list[Finding]]:
    """Whether there is a snapshot of each day that is over."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            last, missing = await parts.revenue.look()
    except (MeterkitError, TimeoutError):
        return "the database does not answer", []  # Said of the database itself.
    if last is None:
        return "no snapshot yet: each day that is over gets one", []
    return f"the last snapshot is of {last}", without_snapshot(missing)


def without_snapshot(missing: Sequence[date]) -> list[Finding]:
    """Days that are over and have no snapshot of revenue."""
    if not missing:
        return []
    days = f"{missing[0]}" if len(missing) == 1 else f"{len(missing):,} days, the first {missing[0]}"
    return single(
        check="revenue",
        problem=f"revenue has no snapshot of {days}: `meterkit revenue` lacks what changed then",
        cure="see that an app that delivers or `meterkit worker` runs with METERKIT_AUDIT_URL: it makes"
        " them by itself, from what the store has; its log says why it does not (meterkit.background)",
    )


def _no_streams(waiting: Sequence[Waiting]) -> list[Finding]:
    """Shards without a stream to drain."""
    return [
        Finding(
            check="audit",
            problem=f"the audit log of shard {one.shard} cannot be read: {one.trouble}",
            cure="something else writes under meterkit's prefix: see what the key is (TYPE), and rename it",
        )
        for one in waiting
        if one.trouble
    ]


def undrained(entries: int, oldest_ms: int, *, is_kept: bool) -> list[Finding]:
    """Entries that wait too long; ``is_kept``: whether the settings here name the database."""
    if oldest_ms <= OVERDUE_MS:
        return []
    what = "1 entry of the audit log has" if entries == 1 else f"{entries:,} entries of the audit log have"
    cure = (
        "see that an app that delivers or `meterkit worker` runs with METERKIT_AUDIT_URL; the log of one that"
        " does has the database's own words (meterkit.audit)"
    )
    return single(
        check="audit",
        problem=f"{what} waited for up to {span(oldest_ms)} for the database: events are not in it, and"
        f" beyond {MOST:,} in a shard they are added up",
        cure=cure if is_kept else f"METERKIT_AUDIT_URL is not set here; {cure}",
    )


def added_up(backlog: Backlog) -> list[Finding]:
    """Shards with more waiting entries than are listed."""
    if not backlog.full_shards:
        return []
    where = "1 shard has" if backlog.full_shards == 1 else f"{backlog.full_shards:,} shards have"
    return single(
        check="audit",
        problem=f"{where} so many entries of the audit log waiting that the youngest are added up: no"
        " unit is lost, and single events are not told apart",
        cure="bring the database of METERKIT_AUDIT_URL back; what waits is drained within minutes",
    )
