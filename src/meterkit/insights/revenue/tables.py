"""The tables of revenue beside the audit log: who paid on which day, and what that came to. Calls block."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, delete, func, insert, select, tuple_

from meterkit.insights.revenue.figures import Day, Paying, Used, days_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from meterkit.insights.audit.database import Database

_FIGURES: Final = tuple(field.name for field in fields(Day))
_NO_CURRENCY: Final = ""
_AT_ONCE: Final = 400  # SQLite took 999 parameters until 3.32.

_METADATA: Final = MetaData()


def _table(name: str, *, keys: Sequence[str], texts: Sequence[str] = (), numbers: Sequence[str]) -> Table:
    """A table whose rows have all their values; ``keys`` are texts that name a row."""
    columns = [Column(key, Text, primary_key=True) for key in keys]
    columns += [Column(text, Text, nullable=False) for text in texts]
    return Table(name, _METADATA, *columns, *(Column(of, BigInteger, nullable=False) for of in numbers))


PAYING: Final = _table(
    "meterkit_revenue", keys=("day", "customer"), texts=("plan", "currency"), numbers=("mrr",)
)
"""A row for each customer and day on which the customer brought something."""

DAYS: Final = _table("meterkit_revenue_days", keys=("day", "currency"), numbers=_FIGURES)
"""A row for each day and currency, and one without a currency for each day, which says that it was made."""

USED: Final = _table(
    "meterkit_revenue_usage", keys=("day", "customer"), texts=("currency",), numbers=("amount",)
)
"""A row for each customer and day on which a period ended whose usage costs something."""

_SPEND: Final = _table("meterkit_spend", keys=("day",), numbers=("cents",))
"""Spend of a day to win customers, in the currency of the plans file."""


class RevenueTables:
    """Snapshots by day. Each method raises :class:`~meterkit.errors.MeterkitError` where the database fails.

    Args:
        database: of the audit log.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, day: date, paying: Sequence[Paying], used: Sequence[Used]) -> None:
        """Keep who brought something at the end of a day, in place of what was kept of it, and its figures.

        Movements are computed against the day before, if it is kept.
        """
        with self._database.begun(PAYING) as connection:
            before = _paying_on(connection, day - timedelta(days=1))
            figures = days_of(before, paying, _former(connection, day, before, paying))
            for table in (PAYING, USED, DAYS):
                connection.execute(delete(table).where(table.c.day == _key(day)))
            for table, rows in ((PAYING, paying), (USED, used)):
                if rows:
                    connection.execute(insert(table), [{"day": _key(day), **one._asdict()} for one in rows])
            made = {_NO_CURRENCY: Day(), **figures}
            connection.execute(
                insert(DAYS),
                [{"day": _key(day), "currency": currency, **asdict(of)} for currency, of in made.items()],
            )

    def paying(self, day: date) -> list[Paying]:
        """Who brought something at the end of a day, by name."""
        with self._database.begun(PAYING) as connection:
            return _paying_on(connection, day)

    def used(self, day: date) -> list[Used]:
        """What the usage of periods that ended on a day costs, by customer."""
        table = USED.c
        asked = select(table.customer, table.currency, table.amount).where(table.day == _key(day))
        rows = self._database.read(asked.order_by(table.customer), PAYING)
        return [Used(customer, currency, int(amount)) for customer, currency, amount in rows]

    def usage(self, first: date, last: date) -> dict[str, int]:
        """What the usage of periods that ended from the first day to the last costs, by currency."""
        table = USED.c
        asked = select(table.currency, func.sum(table.amount)).where(
            table.day.between(_key(first), _key(last))
        )
        rows = self._database.read(asked.group_by(table.currency), PAYING)
        return {currency: int(amount) for currency, amount in rows}

    def look(self) -> bool:
        """Whether any snapshot was made; nothing is made for it."""
        return self._database.look(DAYS)

    def by_plan(self, day: date) -> dict[tuple[str, str], int]:
        """What all customers of a plan brought on a day (micro-cents), by plan and currency."""
        table = PAYING.c
        asked = select(table.plan, table.currency, func.sum(table.mrr)).where(table.day == _key(day))
        rows = self._database.read(asked.group_by(table.plan, table.currency), PAYING)
        return {(plan, currency): int(amount) for plan, currency, amount in rows}

    def days(self, first: date, last: date) -> dict[date, Mapping[str, Day]]:
        """The days that were made, from the first to the last, and what each came to by currency."""
        found: dict[date, dict[str, Day]] = {}
        asked = select(DAYS).where(DAYS.c.day.between(_key(first), _key(last)))
        rows = self._database.read(asked.order_by(DAYS.c.day, DAYS.c.currency), PAYING)
        for day, currency, *figures in rows:
            of = found.setdefault(date.fromisoformat(day), {})
            if currency != _NO_CURRENCY:
                of[currency] = Day(**dict(zip(_FIGURES, map(int, figures), strict=True)))
        return dict(found)

    def last(self, until: date) -> date | None:
        """The last day until then that was made; None: there is none."""
        asked = select(DAYS.c.day).where(DAYS.c.day <= _key(until)).order_by(DAYS.c.day.desc()).limit(1)
        with self._database.begun(PAYING) as connection:
            found: str | None = connection.execute(asked).scalar()
            return None if found is None else date.fromisoformat(found)

    def missing(self, last: date) -> list[date]:
        """The days until then that were not made, since the first that was; just the last one if none was."""
        days = DAYS.c.day
        asked = select(days).where(days <= _key(last)).distinct().order_by(days)
        with self._database.begun(PAYING) as connection:
            made = [date.fromisoformat(day) for day in connection.execute(asked).scalars()]
        first = made[0] if made else last
        span = (first + timedelta(days=nth) for nth in range((last - first).days + 1))
        return sorted(set(span) - set(made))

    def spend(self, day: date, cents: int) -> None:
        """Keep what was spent on a day, in place of what was kept of it."""
        with self._database.begun(PAYING) as connection:
            connection.execute(delete(_SPEND).where(_SPEND.c.day == _key(day)))
            connection.execute(insert(_SPEND), [{"day": _key(day), "cents": cents}])

    def spent(self, first: date, last: date) -> int:
        """The spend from the first day to the last (cents)."""
        asked = select(func.sum(_SPEND.c.cents)).where(_SPEND.c.day.between(_key(first), _key(last)))
        with self._database.begun(PAYING) as connection:
            return int(connection.execute(asked).scalar() or 0)


def _key(day: date) -> str:
    return day.isoformat()


def _paying_on(connection: Connection, day: date) -> list[Paying]:
    table = PAYING.c
    asked = select(table.customer, table.plan, table.currency, table.mrr).where(table.day == _key(day))
    rows: Any = connection.execute(asked.order_by(table.customer)).all()
    return [Paying(customer, plan, currency, int(mrr)) for customer, plan, currency, mrr in rows]


def _former(
    connection: Connection, day: date, before: Sequence[Paying], after: Sequence[Paying]
) -> set[tuple[str, str]]:
    """Of those who bring something and did not the day before: who did so on any day before."""
    known = {(one.customer, one.currency) for one in before}
    asked = [who for one in after if (who := (one.customer, one.currency)) not in known]
    table, found = PAYING.c, set[tuple[str, str]]()
    for first in range(0, len(asked), _AT_ONCE):
        page = asked[first : first + _AT_ONCE]
        of = (
            select(table.customer, table.currency)
            .distinct()
            .where(table.day < _key(day), tuple_(table.customer, table.currency).in_(page))
        )
        found |= {(customer, currency) for customer, currency in connection.execute(of)}
    return found
