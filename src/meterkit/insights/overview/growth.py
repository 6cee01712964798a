"""Revenue for the overview: the figures of the last day, MRR by plan, and thirty days of movements."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.insights.revenue.revenue import Revenue
from meterkit.redis.daemon_thread import in_thread

if TYPE_CHECKING:
    from datetime import date

    from meterkit.insights.audit.database import Database
    from meterkit.insights.overview.rows import RevenueFigures
    from meterkit.insights.revenue.tables import RevenueTables
    from meterkit.settings import Settings
    from meterkit.store.store import Store

__all__ = ["revenue_figures"]

_DAYS: Final = 30
_NOT_BY_CURRENCY: Final = frozenset({"day", "cac"})


async def revenue_figures(store: Store, settings: Settings, database: Database) -> RevenueFigures | None:
    """Revenue of the last day with a snapshot of it; None: there is none.

    Raises:
        MeterkitError: the database fails.
    """
    revenue = Revenue(store, settings)
    last, _ = await revenue.look()
    if last is None:
        return None
    found = await revenue.at(last)
    tables: Any = import_module("meterkit.insights.revenue.tables")
    plans, growth = await in_thread(_read, tables.RevenueTables(database), last)
    return {
        "day": last.isoformat(),
        "figures": {name: dict(of) for name, of in asdict(found).items() if name not in _NOT_BY_CURRENCY},
        "cac": found.cac,
        "plans": plans,
        "growth": growth,
    }


def _read(
    tables: RevenueTables, last: date
) -> tuple[list[tuple[str, str, int]], list[tuple[str, str, dict[str, int]]]]:
    plans = [(plan, currency, mrr) for (plan, currency), mrr in sorted(tables.by_plan(last).items())]
    days = tables.days(last - timedelta(days=_DAYS - 1), last)
    growth = [
        (day.isoformat(), currency, asdict(of)) for day, all_ in days.items() for currency, of in all_.items()
    ]
    return plans, growth
