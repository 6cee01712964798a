"""Make tables, and add the columns and indexes that one of an earlier release lacks; calls block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.schema import CreateIndex

if TYPE_CHECKING:
    from sqlalchemy import Engine, Table


def make(engine: Engine, table: Table) -> None:
    """Make a table that is not there, and those beside it. Several processes and threads may do so at once.

    Raises:
        SQLAlchemyError: the user may not make tables, or the database does not answer.
    """
    while lacking := _lacking(engine, table):
        try:
            table.metadata.create_all(engine)
        except DBAPIError:
            if _lacking(engine, table) == lacking:
                raise
        else:
            return


def upgrade(engine: Engine, table: Table) -> None:
    """Add nullable columns, and then unique indexes, that a table lacks. Several processes may do so at once.

    Other indexes of old tables are left to the operator: making one may take long.

    Raises:
        SQLAlchemyError: the user may not change the table, or the database does not answer.
    """
    known = _columns_of(engine, table)
    lacking = [column for column in table.columns if column.name not in known]
    for column in lacking:
        kind = column.type.compile(engine.dialect)
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")
        except (OperationalError, ProgrammingError):
            if column.name not in _columns_of(engine, table):
                raise
    if lacking:
        with engine.begin() as connection:
            for index in table.indexes:
                if index.unique:
                    connection.execute(CreateIndex(index, if_not_exists=True))


def _lacking(engine: Engine, table: Table) -> set[str]:
    found = inspect(engine)
    return {name for name in table.metadata.tables if not found.has_table(name)}


def _columns_of(engine: Engine, table: Table) -> set[str]:
    return {column["name"] for column in inspect(engine).get_columns(table.name)}
