"""Usage and deliveries of all customers by day, from the audit log and the journal; calls block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from meterkit.decisions.periods import DAY_MS
from meterkit.errors import MeterkitError
from meterkit.insights.audit.database import COUNTED, DELIVERIES, TABLE
from meterkit.insights.overview.rows import ACTIVITY_DAYS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.insights.audit.database import Database
    from meterkit.insights.overview.rows import DailyActivity

_AGAIN: Final = 3
"""Days before the previous snapshot that are read again: entries reach the audit log late."""


def read_daily_activity(
    database: Database, now_ms: int, known: DailyActivity | None = None, known_ms: int = 0
) -> DailyActivity:
    """Read the activity of the last thirty days; earlier days are taken from a previous snapshot.

    Args:
        database: of the audit log.
        now_ms: the time of the snapshot.
        known: activity in the previous snapshot, made at ``known_ms``; None: there is none.
        known_ms: the time of the previous snapshot.

    Raises:
        MeterkitError: the database does not answer.
    """
    last = now_ms // DAY_MS
    first = since = last - ACTIVITY_DAYS + 1
    kept: DailyActivity = {"usage": [], "deliveries": []}
    if known is not None:
        since = max(first, known_ms // DAY_MS - _AGAIN)
        kept["usage"] = [(day, meter, units) for day, meter, units in known["usage"] if first <= day < since]
        kept["deliveries"] = [(day, count) for day, count in known["deliveries"] if first <= day < since]
    usage = _read_usage(database, since * DAY_MS)
    return {
        "usage": [*kept["usage"], *((day, meter, units) for (day, meter), units in sorted(usage.items()))],
        "deliveries": [*kept["deliveries"], *_read_deliveries(database, since * DAY_MS)],
    }


def _read_usage(database: Database, since_ms: int) -> Mapping[tuple[int, str], int]:
    table = TABLE.c
    day = (table.recorded_at_ms // DAY_MS).label("day")
    asked = select(day, table.meter, func.sum(table.quantity)).where(
        table.recorded_at_ms >= since_ms, table.kind.in_(COUNTED)
    )
    found = database.read(asked.group_by(day, table.meter))
    return {(int(at), str(meter)): int(units) for at, meter, units in found}


def _read_deliveries(database: Database, since_ms: int) -> list[tuple[int, int]]:
    """Count meter events that Stripe accepted, by day; empty if the journal cannot be read."""
    table = DELIVERIES.c
    day = (table.delivered_at_ms // DAY_MS).label("day")
    asked = select(day, func.count()).where(table.delivered_at_ms >= since_ms).group_by(day)
    try:
        found = database.read(asked, DELIVERIES)
    except MeterkitError:
        return []  # A user of the database may lack rights to the journal.
    return sorted((int(at), int(count)) for at, count in found)
