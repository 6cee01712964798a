"""Sums of the audit log by model, meter and price; each call blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import JSON, BigInteger, cast, func, select, text, true

from meterkit.insights.audit.database import COUNTED, TABLE, last_deletion

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from meterkit.insights.audit.database import Database


class ModelSum(NamedTuple):
    """Sums of rows of one model, meter and price.

    Attributes:
        model: empty: none is known.
        price_micros: of ``price_per`` units, in micro-units of the currency; 0: none is paid for by itself.
        recorded: units.
        priced: how many of them are paid for at this price.
        cost_micros: what providers charge, as far as it is known.
    """

    model: str
    meter: str
    price_micros: int
    price_per: int
    recorded: int
    priced: int
    cost_micros: int


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
    sums = [func.sum(func.coalesce(one, 0)) for one in (table.quantity, table.priced, table.cost_micros)]
    asked = select(*of, *sums).where(*_of_period(customer, period_start_ms))
    # By place: PostgreSQL takes expressions with parameters for different ones.
    places = [text(f"{place}") for place in range(1, len(of) + 1)]
    found = database.read(asked.group_by(*places).order_by(*places))
    return [ModelSum(str(row[0]), str(row[1]), *map(int, row[2:])) for row in found]


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
