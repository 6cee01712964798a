"""Usage of one period of each customer, copied from the audit log into DuckDB; calls block."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, func, or_, select

from meterkit.catalog.models import SPEND
from meterkit.insights.audit.database import COUNTED, TABLE

try:
    import duckdb
except ImportError as error:
    raise ImportError(
        "trying prices needs DuckDB; install it with: pip install 'meterkit[simulate]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from fractions import Fraction
    from pathlib import Path

    from meterkit.catalog import Meter
    from meterkit.insights.audit.database import Database
    from meterkit.insights.simulation.plan_costs import TrialTerms

_LONGEST_MS: Final = 367 * 86_400_000
_AT_ONCE: Final = 10_000
_COLUMNS: Final = {
    "customer": "VARCHAR",
    "start": "BIGINT",
    "at_ms": "BIGINT",
    "event": "VARCHAR",
    "meter": "VARCHAR",
    "kind": "VARCHAR",
    "quantity": "BIGINT",
    "overage": "BIGINT",
    "prepaid": "BIGINT",
    "model": "VARCHAR",
    "provider": "VARCHAR",
    "subjects": "VARCHAR",
}


class LoggedEvent(NamedTuple):
    """One event of a customer: what was recorded of each meter at once, when (ms), and by which subjects."""

    at_ms: int
    quantities: Mapping[str, int]
    model: str | None
    provider: str | None
    subjects: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSums:
    """Sums of a customer's period.

    Attributes:
        start_ms: the period's first instant.
        units: meter to units.
        overage: meter to those that were overage.
        is_prepaid: whether grants or credits paid for some.
        is_summed: whether some events are known by their sum only, so that their order is not.
    """

    start_ms: int
    units: Mapping[str, int]
    overage: Mapping[str, int]
    is_prepaid: bool
    is_summed: bool


class UsageLog:
    """A copy of the rows that count.

    Args:
        directory: for the copy; an empty one, and its owner's to remove.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._connection: Any = duckdb.connect(str(directory / "usage.duckdb"))

    def close(self) -> None:
        """Close the copy."""
        self._connection.close()

    def copy(
        self,
        database: Database,
        at_ms: int,
        customer: str | None = None,
        *,
        spends: bool = False,
    ) -> int:
        """Copy, of each customer, the last period that began until an instant; how many rows that is.

        Args:
            database: the audit log's.
            at_ms: the instant.
            customer: the only one; None: all.
            spends: whether the plans file of the log counts what is spent, which is no usage.

        Raises:
            MeterkitError: the database does not answer.
        """
        file = self._write_csv("usage", _read_pages(database, at_ms, customer, (SPEND,) if spends else ()))
        self._read_csv(file, _COLUMNS).create("usage")
        file.unlink()
        return int(self._query("SELECT count(*) FROM usage")[0][0])

    def charged(self, meter: str) -> dict[str, int]:
        """Charges of each customer's calls to a balance in money, in its millionths."""
        rows = self._query(
            "SELECT customer, sum(quantity)::BIGINT FROM usage WHERE meter = $meter GROUP BY customer",
            meter=meter,
        )
        return dict(rows)

    def scale(self, meter: str, ratio: Fraction) -> None:
        """Multiply what each call was charged, rounded half up; what was recorded without a call stays."""
        self._query(
            "UPDATE usage SET quantity = ((2 * quantity::HUGEINT * $of + $by) // (2 * $by))::BIGINT"
            " WHERE meter = $meter AND coalesce(model, '') || coalesce(provider, '') <> ''",
            meter=meter,
            of=ratio.numerator,
            by=ratio.denominator,
        )

    def naming(self, kind: str) -> set[str]:
        """Customers of whose usage some names a subject of a kind."""
        rows = self._query(
            "SELECT DISTINCT customer FROM usage WHERE contains(subjects, $key)",
            # A quote in a name has a backslash before it, so only a key looks like this.
            key=f'"{kind}":',
        )
        return {customer for (customer,) in rows}

    def sums(self) -> dict[str, UsageSums]:
        """Sums of each customer, by name."""
        rows = self._query(
            "SELECT customer, meter, any_value(start), sum(quantity)::BIGINT, sum(overage)::BIGINT,"
            " sum(prepaid) > 0, bool_or(kind = 'summed')"
            " FROM usage GROUP BY customer, meter ORDER BY customer, meter"
        )
        found: dict[str, UsageSums] = {}
        for customer, of in groupby(rows, itemgetter(0)):
            _, meters, starts, units, overage, prepaid, summed = zip(*of, strict=True)
            found[customer] = UsageSums(
                start_ms=starts[0],
                units=dict(zip(meters, units, strict=True)),
                overage=dict(zip(meters, overage, strict=True)),
                is_prepaid=any(prepaid),
                is_summed=any(summed),
            )
        return found

    def try_terms(self, terms: Mapping[str, TrialTerms]) -> None:
        """Ask the next questions about these customers, each under its terms."""
        numbers: dict[TrialTerms, int] = {}
        owners = [(customer, numbers.setdefault(of, len(numbers))) for customer, of in terms.items()]
        self._set_view("owners", {"customer": "VARCHAR", "terms": "INTEGER"}, owners)
        ceilings = [
            (nth, meter, most, meter in of.consumed)
            for of, nth in numbers.items()
            for meter, most in of.ceilings.items()
        ]
        columns = {"terms": "INTEGER", "meter": "VARCHAR", "most": "BIGINT", "whole": "BOOLEAN"}
        self._set_view("ceilings", columns, ceilings)
        rates = [
            (
                nth,
                meter,
                rate.burst,
                rate.window_ms
                if rate.algorithm != "token-bucket"
                else -(-rate.burst * rate.window_ms // rate.limit),
            )
            for of, nth in numbers.items()
            for meter, all_of_it in of.rates.items()
            for rate in all_of_it
        ]
        columns = {"terms": "INTEGER", "meter": "VARCHAR", "most": "BIGINT", "span": "BIGINT"}
        self._set_view("rates", columns, rates)

    def beyond(self) -> dict[str, int]:
        """Customers who go beyond a ceiling, were nothing refused, and when each first does (ms).

        Until then nothing would have been refused: the sums until then are those of the log.
        """
        rows = self._query(
            "WITH far AS (SELECT customer, meter, any_value(most) AS most, any_value(whole) AS whole"
            " FROM usage JOIN owners USING (customer) JOIN ceilings USING (terms, meter)"
            " GROUP BY customer, meter HAVING sum(greatest(quantity, 0)) > any_value(most)),"
            " running AS (SELECT customer, at_ms, most, whole, quantity, sum(quantity) OVER"
            " (PARTITION BY customer, meter ORDER BY at_ms, length(event), event) AS till"
            " FROM usage JOIN far USING (customer, meter))"
            " SELECT customer, min(at_ms) FROM running"
            " WHERE quantity > 0 AND (CASE WHEN whole THEN till ELSE till - quantity + 1 END) > most"
            " GROUP BY customer ORDER BY customer"
        )
        return dict(rows)

    def faster(self) -> set[str]:
        """Customers who may have been faster than a rate: two neighbouring windows hold more than it."""
        found: set[str] = set()
        for (span,) in self._query("SELECT DISTINCT span FROM rates ORDER BY span"):
            rows = self._query(
                "WITH slots AS (SELECT customer, meter, at_ms // $span AS slot, sum(quantity) AS units"
                " FROM usage WHERE quantity > 0 GROUP BY ALL),"
                " pairs AS (SELECT customer, meter, units + CASE WHEN lag(slot) OVER w = slot - 1"
                " THEN lag(units) OVER w ELSE 0 END AS units FROM slots"
                " WINDOW w AS (PARTITION BY customer, meter ORDER BY slot))"
                " SELECT DISTINCT customer FROM pairs"
                " JOIN owners USING (customer) JOIN rates USING (terms, meter)"
                " WHERE span = $span AND units > most",
                span=span,
            )
            found.update(customer for (customer,) in rows)
        return found

    def events(
        self, customers: Sequence[str], meters: Mapping[str, Meter]
    ) -> Iterator[tuple[str, list[LoggedEvent]]]:
        """Events of some customers and meters, each customer's in their order.

        Meters that are derived from others are left out.
        """
        known = [(name,) for name, meter in meters.items() if meter.source is None]
        self._set_view("known", {"meter": "VARCHAR"}, known)
        self._set_view("asked", {"customer": "VARCHAR"}, [(customer,) for customer in customers])
        cursor: Any = self._connection.cursor().execute(
            "SELECT customer, at_ms, event, meter, quantity, model, provider, subjects FROM usage"
            " SEMI JOIN asked USING (customer)"
            " SEMI JOIN known USING (meter)"
            " ORDER BY customer, at_ms, length(event), event, meter"
        )
        for customer, rows in groupby(_iterate_rows(cursor), itemgetter(0)):
            yield customer, [_parse_event(list(of)) for _, of in groupby(rows, itemgetter(1, 2))]

    def _set_view(self, name: str, columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> None:
        """Replace the view that statements read under a name."""
        self._read_csv(self._write_csv(name, [rows]), columns).create_view(name, replace=True)

    def _write_csv(self, name: str, pages: Iterable[Iterable[Sequence[object]]]) -> Path:
        file = self._directory / f"{name}.csv"
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC)
            for page in pages:
                writer.writerows(page)
        return file

    def _read_csv(self, file: Path, columns: Mapping[str, str]) -> Any:
        # Names of customers may hold anything but control characters: nothing is guessed from the file.
        return self._connection.read_csv(
            str(file),
            columns=dict(columns),
            header=False,
            auto_detect=False,
            sep=",",
            quotechar='"',
            escapechar='"',
        )

    def _query(self, statement: str, **given: object) -> list[Any]:
        rows: list[Any] = self._connection.execute(statement, given or None).fetchall()
        return rows


def _read_pages(
    database: Database, at_ms: int, customer: str | None, without: Collection[str]
) -> Iterator[list[Any]]:
    table = TABLE.c
    own = [] if customer is None else [table.customer == customer]
    deleted = (
        select(table.customer, func.max(table.recorded_at_ms).label("at"))
        .where(table.kind == "deleted", *own)
        .group_by(table.customer)
        .subquery()
    )
    # A customer who was deleted may have periods again that began before the deletion.
    is_kept = or_(deleted.c.at.is_(None), table.recorded_at_ms > deleted.c.at)
    last = (
        select(table.customer, func.max(table.period_start_ms).label("start"))
        .outerjoin(deleted, table.customer == deleted.c.customer)
        .where(table.period_start_ms <= at_ms, table.period_start_ms > at_ms - _LONGEST_MS, is_kept, *own)
        .group_by(table.customer)
        .subquery()
    )
    columns = (
        *(table.customer, table.period_start_ms, table.recorded_at_ms, table.event, table.meter, table.kind),
        *(table.quantity, table.overage, table.granted + table.credited, table.model, table.provider),
        table.subjects,
    )
    asked = (
        select(*columns)
        .join(last, and_(table.customer == last.c.customer, table.period_start_ms == last.c.start))
        .outerjoin(deleted, table.customer == deleted.c.customer)
        .where(table.kind.in_(COUNTED), table.meter.not_in(without), is_kept)
    )
    with database.begun() as connection:
        found: Any = connection.execution_options(stream_results=True).execute(asked)
        while page := found.fetchmany(_AT_ONCE):
            yield page


def _iterate_rows(cursor: Any) -> Iterator[Any]:
    while page := cursor.fetchmany(_AT_ONCE):
        yield from page


def _parse_event(rows: Sequence[Any]) -> LoggedEvent:
    _, at_ms, _, _, _, model, provider, subjects = rows[0]
    named = tuple(json.loads(subjects).items()) if subjects else ()
    return LoggedEvent(at_ms, {row[3]: row[4] for row in rows}, model, provider, named)
