"""Usage by the hour, read off the audit log; each call has a thread of its own, as it may hang."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.redis.daemon_thread import in_thread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.insights.audit.database import Database

_HOUR_MS: Final = 3_600_000
_AHEAD_MS: Final = 60_000
"""Usage is recorded at most so long before it happened, by the clocks of apps."""
_COUNTED: Final = ("recorded", "summed", "corrected")


class HourlyUsage:
    """Each method raises :class:`~meterkit.errors.MeterkitError` where the database fails.

    Args:
        url: of the audit log's database.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    async def active(self, since_ms: int, *, least: int) -> Sequence[tuple[str, str]]:
        """Customers and meters with at least so many units since an instant."""
        return await in_thread(self._active, since_ms, least)

    async def hours(self, customer: str, meter: str, since_ms: int) -> Mapping[int, int]:
        """Units by hour since 1970."""
        return await in_thread(self._hours, customer, meter, since_ms)

    def _active(self, since_ms: int, least: int) -> Sequence[tuple[str, str]]:
        sqlalchemy, table = import_module("sqlalchemy"), self._table
        units: Any = sqlalchemy.func.sum(table.quantity)
        # Grouped by columns, SQLite would walk over the whole table in the order of the index by customer.
        named = (table.customer + "", table.meter + "")
        asked = (
            sqlalchemy.select(*named)
            .where(table.recorded_at_ms >= since_ms, table.kind.in_(_COUNTED))
            .group_by(*named)
            .having(units >= least)
        )
        with self._database.begun() as connection:
            found: Any = connection.execute(asked).all()
        return [(str(customer), str(meter)) for customer, meter in found]

    def _hours(self, customer: str, meter: str, since_ms: int) -> Mapping[int, int]:
        sqlalchemy, table = import_module("sqlalchemy"), self._table
        at_ms: Any = sqlalchemy.func.coalesce(table.occurred_at_ms, table.recorded_at_ms)
        hour: Any = (at_ms - at_ms % _HOUR_MS).label("hour")
        asked = (
            sqlalchemy.select(hour, sqlalchemy.func.sum(table.quantity))
            .where(
                table.customer == customer,
                table.meter == meter,
                table.kind.in_(_COUNTED),
                table.recorded_at_ms >= since_ms - _AHEAD_MS,
                at_ms >= since_ms,
            )
            .group_by(hour)
        )
        with self._database.begun() as connection:
            found: Any = connection.execute(asked).all()
        return {int(at) // _HOUR_MS: int(units) for at, units in found}

    @cached_property
    def _database(self) -> Database:
        # SQLAlchemy takes a while to import, and few want it.
        database: type[Database] = import_module("meterkit.insights.audit.database").Database
        return database(self._url)

    @property
    def _table(self) -> Any:
        return import_module("meterkit.insights.audit.database").TABLE.c
