"""Tables of the last overview snapshot of all customers, beside the audit log; calls block."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import BigInteger, Column, Index, MetaData, Table, Text, and_, delete, insert, or_, select

from meterkit.insights.overview.rows import DELIVERY, NEAR_PER_MILLE, CustomerRow, UsageRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement

    from meterkit.insights.audit.database import Database
    from meterkit.insights.overview.rows import OverviewFigures

_LAST: Final = "last"
_NUMBERS: Final = frozenset({"used", "ceiling", "per_mille", "unlinked", "refused_until_ms"})
_ORDERS: Final = {"near": "per_mille", "refused": "refused_until_ms"}
"""Lists that are ordered by a number, the highest first; all others by id."""
_METADATA: Final = MetaData()
_CUSTOMERS: Final = Table(
    "meterkit_overview_customers",
    _METADATA,
    Column("made_at_ms", BigInteger, primary_key=True),
    *(
        Column(
            name,
            BigInteger if name in _NUMBERS else Text,
            primary_key=name == "customer",
            nullable=False,
        )
        for name in CustomerRow._fields
    ),
    *(
        Index(f"meterkit_overview_{name}", "made_at_ms", name, "customer")
        for name in ("plan", "status", "access", "per_mille", "unlinked", "refused_until_ms")
    ),
)
"""A row for each customer and snapshot; those of earlier snapshots are removed after the next one."""
_USAGE: Final = Table(
    "meterkit_overview_usage",
    _METADATA,
    Column("made_at_ms", BigInteger, primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("customer", Text, primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in DELIVERY),
)
"""A row for each snapshot, customer and meter with units for Stripe."""
_SNAPSHOTS: Final = Table(
    "meterkit_overview",
    _METADATA,
    Column("name", Text, primary_key=True),
    Column("made_at_ms", BigInteger, nullable=False),
    Column("figures", Text, nullable=False),
)
"""One row: which snapshot is the last, and its figures as JSON."""


class OverviewSnapshot(NamedTuple):
    """The last snapshot.

    Attributes:
        at_ms: when it was begun; names it.
        figures: over all customers.
    """

    at_ms: int
    figures: OverviewFigures


class OverviewTables:
    """Each method raises :class:`~meterkit.errors.MeterkitError` where the database fails.

    A snapshot is written page by page under its own instant, and read once it is whole: neither readers nor
    the audit log wait for one long transaction.

    Args:
        database: of the audit log.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def last(self) -> OverviewSnapshot | None:
        """The last snapshot; None: there is none."""
        asked = select(_SNAPSHOTS.c.made_at_ms, _SNAPSHOTS.c.figures).where(_SNAPSHOTS.c.name == _LAST)
        with self._database.begun(_SNAPSHOTS) as connection:
            found = connection.execute(asked).one_or_none()
        return None if found is None else OverviewSnapshot(int(found[0]), json.loads(found[1]))

    def write(self, at_ms: int, customers: Sequence[CustomerRow], usage: Sequence[UsageRow]) -> None:
        """Write a page of a snapshot that is being made."""
        with self._database.begun(_SNAPSHOTS) as connection:
            for table, rows in ((_CUSTOMERS, customers), (_USAGE, usage)):
                if rows:
                    connection.execute(
                        insert(table), [{"made_at_ms": at_ms, **row._asdict()} for row in rows]
                    )

    def finish(self, at_ms: int, figures: OverviewFigures) -> None:
        """Make a whole snapshot the last one, and remove all others, those that were broken off included."""
        kept = {"name": _LAST, "made_at_ms": at_ms, "figures": json.dumps(figures)}
        with self._database.begun(_SNAPSHOTS) as connection:
            connection.execute(delete(_SNAPSHOTS))
            connection.execute(insert(_SNAPSHOTS), [kept])
            for table in (_CUSTOMERS, _USAGE):
                connection.execute(delete(table).where(table.c.made_at_ms != at_ms))

    def usage(self, at_ms: int, meter: str, state: str, *, after: str, most: int) -> list[UsageRow]:
        """Units of a meter by delivery state, a page of customers by id.

        Args:
            at_ms: of the snapshot.
            meter: its name.
            state: only customers with units in this state; one of :data:`DELIVERY`.
            after: the last customer of the page before; empty: the first page.
            most: at most so many.
        """
        table = _USAGE.c
        asked = select(*(table[name] for name in UsageRow._fields)).where(
            table.made_at_ms == at_ms, table.meter == meter, table[state] != 0, table.customer > after
        )
        rows = self._database.read(asked.order_by(table.customer).limit(most), _SNAPSHOTS)
        return [UsageRow(customer, name, *map(int, units)) for customer, name, *units in rows]

    def customers(
        self, at_ms: int, name: str, value: str, *, after: Sequence[str], most: int
    ) -> list[CustomerRow]:
        """Customers of a snapshot, page by page: in the order of :data:`_ORDERS`, or by id.

        Args:
            at_ms: of the snapshot.
            name: of the list: ``all``, ``refused``, ``near``, ``past_due``, ``unlinked``; of one ``plan``,
                ``status`` or ``access``.
            value: the plan, status or access to list; of those refused the present (ms); else empty.
            after: the place of the last row of the page before; empty: the first page.
            most: at most so many.
        """
        table = _CUSTOMERS.c
        asked = select(*(table[field] for field in CustomerRow._fields)).where(
            table.made_at_ms == at_ms, *_filter_clauses(name, value)
        )
        if name in _ORDERS:
            number = table[_ORDERS[name]]
            if after:
                last, customer = int(after[0]), after[1]
                asked = asked.where(or_(number < last, and_(number == last, table.customer > customer)))
            asked = asked.order_by(number.desc(), table.customer)
        else:
            if after:
                asked = asked.where(table.customer > after[-1])
            asked = asked.order_by(table.customer)
        rows = self._database.read(asked.limit(most), _SNAPSHOTS)
        return [CustomerRow(*row[:6], *map(int, row[6:])) for row in rows]


def _filter_clauses(name: str, value: str) -> Sequence[ColumnElement[bool]]:
    table = _CUSTOMERS.c
    if name == "refused":
        return [table.refused_until_ms > int(value)]
    if name == "near":
        return [table.per_mille >= NEAR_PER_MILLE]
    if name == "unlinked":
        return [table.unlinked > 0]
    if name == "past_due":
        return [table.status == "past_due"]
    if name in {"plan", "status", "access"}:
        return [table[name] == value]
    return []
