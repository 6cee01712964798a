"""Tables of the audit log and of the journal of deliveries, in SQLite or PostgreSQL; calls block."""

from __future__ import annotations

import os
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.periods import DAY_MS, HOUR_MS
from meterkit.errors import MeterkitError, SettingsError
from meterkit.insights.audit.entries import CLASSES, NOTHING_UNSENT, AuditRow, UnsentUnits
from meterkit.insights.audit.rebuild_results import LoggedPrice
from meterkit.outbox.journal import JournalRow

try:
    from sqlalchemy import (
        JSON,
        BigInteger,
        Column,
        Index,
        MetaData,
        NullPool,
        Table,
        Text,
        cast,
        create_engine,
        delete,
        func,
        inspect,
        literal,
        select,
        text,
        true,
    )
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.exc import DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

    from meterkit.insights.audit.hash_chain import append_rows, heads_table, read_head
except ImportError as error:
    raise ImportError(
        "the audit log needs SQLAlchemy; install it with: pip install 'meterkit[audit]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, Engine, Executable, Insert


PeriodSums = dict[int, dict[str, dict[str, int]]]
"""By period (its first instant, ms) and meter, the units of each class."""

UnsentByMeter = dict[tuple[int, str], UnsentUnits]
"""By period (its first instant, ms) and meter."""

LoggedPrices = dict[str, list[LoggedPrice]]
"""By meter, the oldest price first."""

DaySums = dict[tuple[int, str], int]
"""By day (days since 1970, UTC) and meter, the units that were recorded."""

_TRIES: Final = 5
_AHEAD_MS: Final = 60_000
"""Usage is recorded at most so long before it happened, by the clocks of apps."""
_RECORDED_AGAIN: Final = f"%/{'_' * 32}%/%"
"""Event of late usage that a script has recorded again: its nonce is longer than the name of a producer."""
COUNTED: Final = ("recorded", "summed", "corrected")
_NULLABLE: Final = frozenset(
    {
        "period_start_ms",
        "occurred_at_ms",
        "late_of_ms",
        "model",
        "provider",
        "details",
        "priced",
        "price_micros",
        "price_per",
        "price_version",
        "cost_micros",
        "subjects",
        "event_id",
        "units",
    }
)
_TEXTS: Final = frozenset(
    {
        "event",
        "meter",
        "kind",
        "customer",
        "model",
        "provider",
        "details",
        "price_version",
        "subjects",
        "event_id",
        "units",
    }
)

TABLE: Final = Table(
    "meterkit_audit",
    MetaData(),
    *(
        Column(
            name,
            Text if name in _TEXTS else BigInteger,
            primary_key=name in {"event", "meter"},
            nullable=name in _NULLABLE,
        )
        for name in AuditRow._fields
    ),
    Column("place", BigInteger),
    Column("hash", Text),
    Index("meterkit_audit_of_period", "customer", "period_start_ms", "recorded_at_ms"),
    Index("meterkit_audit_recorded", "recorded_at_ms"),
    Index("meterkit_audit_chain", "customer", "place", unique=True),
)
"""One row per event and meter, chained by hash; see :class:`~meterkit.insights.audit.entries.AuditRow`."""

heads_table(TABLE)

DELIVERIES: Final = Table(
    "meterkit_deliveries",
    MetaData(),
    *(
        Column(
            name,
            BigInteger if name in {"minute_s", "value", "delivered_at_ms"} else Text,
            primary_key=name == "identifier",
            nullable=False,
        )
        for name in JournalRow._fields
    ),
    Index("meterkit_deliveries_of_customer", "customer", "delivered_at_ms"),
    Index("meterkit_deliveries_delivered", "delivered_at_ms"),
)
"""The journal of deliveries; see :class:`meterkit.outbox.journal.JournalRow`."""


class _ViolatedError(MeterkitError):
    """A row with this key is there already."""


class Database:
    """Database of the audit log. Missing tables are created.

    A connection is opened for each call and closed with it: nothing is shared by processes or threads.

    Args:
        url: by SQLAlchemy; its driver must not be an asynchronous one.

    Raises:
        SettingsError: the URL cannot be used, or its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            what = f"its driver is not installed ({error})" if isinstance(error, ImportError) else "no URL"
            if isinstance(error, NoSuchModuleError):
                what = f"SQLAlchemy has no driver {url.partition('://')[0]}"
            raise SettingsError(
                "audit_url", f"METERKIT_AUDIT_URL: a value that is not shown here cannot be used: {what}"
            ) from None
        # A password with an `@` ends there, and errors of the driver name its rest.
        parts = self._engine.url.host or "", self._engine.url.database or "", url.partition("?")[2]
        if parts[0] and any("@" in part for part in parts):
            raise SettingsError(
                "audit_url",
                "METERKIT_AUDIT_URL: a value that is not shown here cannot be used: it has several '@' (is"
                " the password percent-encoded?)",
            )
        if self._engine.dialect.is_async:
            raise SettingsError(
                "audit_url",
                f"METERKIT_AUDIT_URL: found the asynchronous driver {self._engine.driver}; allowed are those"
                " that block, such as postgresql+psycopg and sqlite",
            )
        self._made: set[str] = set()

    def insert(self, rows: Sequence[AuditRow]) -> Sequence[AuditRow]:
        """Append rows to the chains of their customers, all or none; those that are there stay as they are.

        Returns:
            The new ones.

        Raises:
            MeterkitError: the database does not take them.
        """
        for left in reversed(range(_TRIES if rows else 0)):
            try:
                with self.begun() as connection:
                    inserted = append_rows(connection, TABLE, rows)
            except _ViolatedError:
                if not left:
                    raise
            else:
                return inserted
        return ()

    def can_read(self, table: Table = TABLE) -> bool:
        """Check that a table exists and can be read; creates neither it nor SQLite's file.

        Raises:
            MeterkitError: the database does not answer, or the table cannot be read.
        """
        if self._is_missing_file():
            return False
        with self._redacted_errors(), self._engine.connect() as connection:
            is_there = inspect(connection).has_table(table.name)
            if is_there:
                connection.execute(select(literal(1)).select_from(table).limit(1)).all()
            return is_there

    def _is_missing_file(self) -> bool:
        """Check for a missing file in a writable folder: SQLite creates it at the first connection."""
        name = self._engine.url.database or ""
        if self._engine.dialect.name != "sqlite" or name.startswith("file:"):
            return False
        return not Path(name).exists() and os.access(Path(name).parent, os.W_OK)

    def root(self, customer: str) -> tuple[int, str] | None:
        """Length of a customer's chain and hash of its last row; None: no chain.

        Raises:
            MeterkitError: the database does not answer.
        """
        with self.begun() as connection:
            head = read_head(connection, TABLE, customer)
        return None if head is None else (head.place, head.hash)

    def customers(self) -> list[str]:
        """The customers with usage, sorted.

        Raises:
            MeterkitError: the database does not answer.
        """
        return sorted(str(name) for (name,) in self.read(select(TABLE.c.customer).distinct()))

    def sums(self, customer: str, since_ms: int) -> tuple[PeriodSums, Mapping[int, int]]:
        """Units of a customer since its last deletion, and the last recording time of each period (ms).

        ``since_ms``: of periods that began then or later.

        Raises:
            MeterkitError: the database does not answer.
        """
        table = TABLE.c
        own = table.customer == customer
        units = [func.coalesce(func.sum(table[name]), 0) for name in CLASSES]
        with self.begun() as connection:
            deleted_ms = _deleted_ms(connection, customer)
            asked = select(table.period_start_ms, table.meter, func.max(table.recorded_at_ms), *units).where(
                own,
                table.period_start_ms >= since_ms,
                table.kind.in_(COUNTED),
                table.recorded_at_ms > deleted_ms,
            )
            of = (table.period_start_ms, table.meter)
            found: Any = connection.execute(asked.group_by(*of).order_by(*of)).all()
        sums: PeriodSums = {}
        last_ms: dict[int, int] = {}
        for row in found:
            period_ms, meter, recorded_ms = row[:3]
            by_class = zip(CLASSES, map(int, row[3:]), strict=True)
            sums.setdefault(period_ms, {})[meter] = dict(by_class)
            last_ms[period_ms] = max(last_ms.get(period_ms, 0), recorded_ms)
        return sums, last_ms

    def unsent(self, customer: str, since_ms: int) -> UnsentByMeter:
        """Units of a customer, since its last deletion, that no meter event bills, as far as the log knows.

        ``since_ms``: as of :meth:`sums`.

        Raises:
            MeterkitError: the database does not answer.
        """
        table, found = TABLE.c, UnsentByMeter()
        again = (table.late_of_ms.is_not(None), table.event.like(_RECORDED_AGAIN))
        asked: Any = (
            ("late", table.late_of_ms, table.reported, again),
            ("dropped", table.period_start_ms, table.quantity, (table.kind == "dropped",)),
        )
        with self.begun() as connection:
            own = (
                table.customer == customer,
                table.period_start_ms >= since_ms,  # Late usage counts in a later period than its own.
                table.recorded_at_ms > _deleted_ms(connection, customer),
            )
            for name, period, units, which in asked:
                summed = select(period, table.meter, func.sum(units)).where(*own, *which)
                for period_ms, meter, total in connection.execute(summed.group_by(period, table.meter)):
                    known = found.get((period_ms, meter), NOTHING_UNSENT)
                    found[period_ms, meter] = known._replace(**{name: int(total)})
        return found

    def prices(self, customer: str, period_start_ms: int) -> LoggedPrices:
        """The units of a customer's period that cost something, by price, without rows before a deletion.

        Raises:
            MeterkitError: the database does not answer.
        """
        table = TABLE.c
        of = (table.meter, table.price_micros, table.price_per)
        since_ms, last_ms = func.min(table.recorded_at_ms), func.max(table.recorded_at_ms)
        asked = select(*of, func.sum(table.priced), since_ms, last_ms).where(
            *_of_period(customer, period_start_ms), table.price_micros > 0
        )
        found: LoggedPrices = {}
        for meter, micros, per, units, *span_ms in self.read(asked.group_by(*of).order_by(since_ms)):
            logged = LoggedPrice(Fraction(int(micros), int(per)), int(units or 0), *map(int, span_ms))
            found.setdefault(str(meter), []).append(logged)
        return found

    def days(self, customer: str, period_start_ms: int) -> DaySums:
        """The units of each day of a customer's period.

        A unit belongs to the day on which it happened. Rows from before a deletion do not count.

        Raises:
            MeterkitError: the database does not answer.
        """
        table = TABLE.c
        day = (func.coalesce(table.occurred_at_ms, table.recorded_at_ms) // DAY_MS).label("day")
        with self.begun() as connection:
            asked = select(day, table.meter, func.sum(table.quantity)).where(
                table.customer == customer,
                table.period_start_ms == period_start_ms,
                table.kind.in_(COUNTED),
                table.recorded_at_ms > _deleted_ms(connection, customer),
            )
            found: Any = connection.execute(asked.group_by(day, table.meter)).all()
        return {(int(at), str(meter)): int(units) for at, meter, units in found}

    def active(self, since_ms: int, least: int) -> Sequence[tuple[str, str]]:
        """Customers and meters with at least so many units since an instant.

        Raises:
            MeterkitError: the database does not answer.
        """
        table = TABLE.c
        # Grouped by columns, SQLite would walk over the whole table in the order of the index by customer.
        named = (table.customer + "", table.meter + "")
        asked = (
            select(*named)
            .where(table.recorded_at_ms >= since_ms, table.kind.in_(COUNTED))
            .group_by(*named)
            .having(func.sum(table.quantity) >= least)
        )
        return [(str(customer), str(meter)) for customer, meter in self.read(asked)]

    def hours(self, customer: str, meter: str, since_ms: int) -> Mapping[int, int]:
        """Units by hour since 1970, without rows before a deletion.

        Raises:
            MeterkitError: the database does not answer.
        """
        table = TABLE.c
        at_ms = func.coalesce(table.occurred_at_ms, table.recorded_at_ms)
        hour = (at_ms - at_ms % HOUR_MS).label("hour")
        asked = select(hour, func.sum(table.quantity)).where(
            table.customer == customer,
            table.meter == meter,
            table.kind.in_(COUNTED),
            table.recorded_at_ms >= since_ms - _AHEAD_MS,
            table.recorded_at_ms > last_deletion(customer),
            at_ms >= since_ms,
        )
        return {int(at) // HOUR_MS: int(units) for at, units in self.read(asked.group_by(hour))}

    def insert_deliveries(self, rows: Sequence[JournalRow]) -> None:
        """Insert rows of the journal, all or none; those that are there already stay as they are.

        Raises:
            MeterkitError: the database does not take them.
        """
        with self.begun(DELIVERIES) as connection:
            is_postgresql = self._engine.dialect.name == "postgresql"
            made: Any = (postgresql.insert if is_postgresql else sqlite.insert)(DELIVERIES)
            statement: Insert = made.on_conflict_do_nothing(index_elements=["identifier"])
            connection.execute(statement, [row._asdict() for row in rows])

    def deliveries(self, customer: str, event_name: str, since_ms: int) -> list[JournalRow]:
        """The journal's rows of a customer and event name that were accepted since then, the oldest first.

        Of a customer who was deleted: since that.

        Raises:
            MeterkitError: the database does not answer.
        """
        table = DELIVERIES.c
        with self.begun() as connection:
            since_ms = max(since_ms, _deleted_ms(connection, customer))
        asked = select(DELIVERIES).where(
            table.customer == customer, table.event_name == event_name, table.delivered_at_ms >= since_ms
        )
        found = self.read(asked.order_by(table.delivered_at_ms), DELIVERIES)
        try:
            return [JournalRow(*row[:4], *map(int, row[4:])) for row in found]
        except (ValueError, TypeError):
            raise MeterkitError(
                f"the journal of deliveries has a row of customer {customer!r} that cannot be read"
            ) from None

    def remove_deliveries(self, identifiers: Sequence[str]) -> None:
        """Remove rows of the journal.

        Raises:
            MeterkitError: the database does not answer.
        """
        with self.begun(DELIVERIES) as connection:
            connection.execute(delete(DELIVERIES).where(DELIVERIES.c.identifier.in_(identifiers)))

    def deliveries_begun_ms(self) -> int | None:
        """Time of the journal's first row (ms); None: the journal is empty.

        Raises:
            MeterkitError: the database does not answer.
        """
        found: int | None = self.read(select(func.min(DELIVERIES.c.delivered_at_ms)), DELIVERIES)[0][0]
        return found

    def read(self, asked: Executable, table: Table = TABLE) -> Sequence[Any]:
        """The rows that a statement asks for; a table that is not there is made, with those beside it.

        Raises:
            MeterkitError: the database does not answer.
        """
        with self.begun(table) as connection:
            found: Sequence[Any] = connection.execute(asked).all()
        return found

    @contextmanager
    def begun(self, table: Table = TABLE) -> Generator[Connection]:
        """A connection for one transaction; a table that is not there is made, with those beside it.

        Raises:
            MeterkitError: the database does not answer.
        """
        with self._redacted_errors():
            # A user who may not make the journal's table still writes the audit log.
            if table.name not in self._made:
                _create_tables(self._engine, table)
                self._made.add(table.name)
            with self._engine.begin() as connection:
                yield connection

    @contextmanager
    def _redacted_errors(self) -> Generator[None]:
        """Raise database errors as MeterkitError, without the password."""
        try:
            yield
        except SQLAlchemyError as error:
            # The driver's own words: SQLAlchemy's have the statement, and neither is to have the URL.
            words = " ".join(str(getattr(error, "orig", None) or type(error).__name__).split())
            password = self._engine.url.password
            if password:
                words = words.replace(str(password), "***")
            kind = _ViolatedError if isinstance(error, IntegrityError) else MeterkitError
            raise kind(f"the database of the audit log failed: {words:.300}") from None


def _create_tables(engine: Engine, table: Table) -> None:
    """Create a missing table, and those of its metadata. Several processes and threads may do so at once."""
    while missing := _missing_tables(engine, table):
        try:
            table.metadata.create_all(engine)
        except DBAPIError:
            if _missing_tables(engine, table) == missing:
                raise
        else:
            return


def _missing_tables(engine: Engine, table: Table) -> set[str]:
    found = inspect(engine)
    return {name for name in table.metadata.tables if not found.has_table(name)}


def last_deletion(customer: str) -> ColumnElement[int]:
    """SQL expression for the last deletion of a customer (ms), 0 if none; its row has no period."""
    table = TABLE.alias().c
    rows = (table.customer == customer, table.period_start_ms.is_(None), table.kind == "deleted")
    last = select(func.max(table.recorded_at_ms)).where(*rows).scalar_subquery()
    return func.coalesce(last, 0)


def _deleted_ms(connection: Connection, customer: str) -> int:
    return connection.execute(select(last_deletion(customer))).scalar() or 0


class ModelSum(NamedTuple):
    """Sums of rows of one model, meter and price.

    Attributes:
        model: empty: none is known.
        price_micros: of ``price_per`` units, in micro-units of the currency; 0: none is paid for by itself.
        recorded: units.
        priced: how many of them are paid for at this price.
        cost_micros: what providers charge, as far as it is known; None: no row has a cost.
    """

    model: str
    meter: str
    price_micros: int
    price_per: int
    recorded: int
    priced: int
    cost_micros: int | None


def model_sums(database: Database, customer: str, period_start_ms: int) -> list[ModelSum]:
    """Sums of a customer's period, by model and meter. Rows before a deletion do not count.

    Raises:
        MeterkitError: the database does not answer.
    """
    table = TABLE.c
    of = (
        *(func.coalesce(table.model, ""), table.meter),
        *(func.coalesce(table.price_micros, 0), func.coalesce(table.price_per, 1)),
    )
    sums = [func.sum(func.coalesce(one, 0)) for one in (table.quantity, table.priced)]
    asked = select(*of, *sums, func.sum(table.cost_micros)).where(*_of_period(customer, period_start_ms))
    # By place: PostgreSQL takes expressions with parameters for different ones.
    places = [text(f"{place}") for place in range(1, len(of) + 1)]
    found = database.read(asked.group_by(*places).order_by(*places))
    return [_model_sum(*row) for row in found]


def _model_sum(model: str, meter: str, *counts: object) -> ModelSum:
    price, per, recorded, priced, cost = (None if of is None else int(str(of)) for of in counts)
    return ModelSum(model, meter, price or 0, per or 1, recorded or 0, priced or 0, cost)


def unit_sums(database: Database, customer: str, period_start_ms: int) -> dict[str, dict[str, int]]:
    """Counters of a customer's calls in a period, by model and unit of the price table.

    Raises:
        MeterkitError: the database does not answer.
    """
    table, found = TABLE.c, dict[str, dict[str, int]]()
    with database.begun() as connection:
        is_postgresql = connection.dialect.name == "postgresql"
        of_row = (
            func.json_each_text(cast(table.units, JSON)) if is_postgresql else func.json_each(table.units)
        )
        units = of_row.table_valued("key", "value")
        count = cast(units.c.value, BigInteger)
        asked = (
            select(func.coalesce(table.model, ""), units.c.key, func.sum(count))
            .select_from(TABLE.join(units, true()))
            .where(*_of_period(customer, period_start_ms), count > 0)
            .group_by(text("1"), text("2"))
            .order_by(text("1"), text("2"))
        )
        for model, unit, total in connection.execute(asked):
            found.setdefault(model, {})[unit] = int(total)
    return found


def _of_period(customer: str, period_start_ms: int) -> tuple[ColumnElement[bool], ...]:
    table = TABLE.c
    return (
        table.customer == customer,
        table.period_start_ms == period_start_ms,
        table.kind.in_(COUNTED),
        table.recorded_at_ms > last_deletion(customer),
    )
