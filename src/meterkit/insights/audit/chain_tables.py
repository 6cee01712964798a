"""Tables of the hash chain: append rows under a lock, read and check them page by page; calls block."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, Table, Text, func, select, text, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from meterkit.insights.audit.chain_check import ChainCheck, ChainHead, RecordedRoot, chain_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from meterkit.insights.audit.chain_check import ChainFault
    from meterkit.insights.audit.entries import AuditRow

_PAGE: Final = 2_000
_KEYS_AT_ONCE: Final = 400
_HEADS: Final = "meterkit_audit_heads"


def heads_table(table: Table) -> Table:
    """The table of the heads, beside that of the rows: one of each customer."""
    return Table(
        _HEADS,
        table.metadata,
        Column("customer", Text, primary_key=True),
        Column("place", BigInteger, nullable=False),
        Column("hash", Text, nullable=False),
        Column("unchained", BigInteger, nullable=False),
    )


def append_rows(connection: Connection, table: Table, rows: Sequence[AuditRow]) -> Sequence[AuditRow]:
    """Insert rows that are not there yet, each at the end of its customer's chain; the inserted ones.

    The lock orders processes. If another program inserts one of the rows meanwhile, the database reports
    a violated key: try the transaction again.

    Args:
        connection: in a transaction of its own, with nothing read yet.
        table: of the rows.
        rows: in the order in which they are chained.
    """
    _lock_heads(connection)
    known = _find_known_keys(connection, table, rows)
    new: dict[tuple[str, str], AuditRow] = {}
    for row in rows:
        if (row.event, row.meter) not in known:
            new.setdefault((row.event, row.meter), row)
    inserted = [*new.values()]
    if not inserted:
        return ()
    heads = _read_heads(connection, table, {row.customer for row in inserted})
    records, after = chain_rows(inserted, heads)
    connection.execute(table.insert(), records)
    _write_heads(connection, table, after)
    return inserted


def _lock_heads(connection: Connection) -> None:
    """Wait until no other process appends."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(text(f"LOCK TABLE {_HEADS} IN EXCLUSIVE MODE"))


def _find_known_keys(connection: Connection, table: Table, rows: Sequence[AuditRow]) -> set[tuple[str, str]]:
    keys, found = [(row.event, row.meter) for row in rows], set[tuple[str, str]]()
    for first in range(0, len(keys), _KEYS_AT_ONCE):
        of = tuple_(table.c.event, table.c.meter).in_(keys[first : first + _KEYS_AT_ONCE])
        asked: Any = connection.execute(select(*of.left).where(of)).all()
        found |= {(str(event), str(meter)) for event, meter in asked}
    return found


def _read_heads(connection: Connection, table: Table, customers: Iterable[str]) -> dict[str, ChainHead]:
    """The heads of customers; a customer without one gets a chain that begins behind its present rows."""
    heads, found, names = table.metadata.tables[_HEADS], dict[str, ChainHead](), sorted(customers)
    for first in range(0, len(names), _KEYS_AT_ONCE):
        page = names[first : first + _KEYS_AT_ONCE]
        asked = select(heads.c.customer, heads.c.place, heads.c.hash, heads.c.unchained)
        for name, *head in connection.execute(asked.where(heads.c.customer.in_(page))):
            found[name] = ChainHead(*head)
        lacking = [name for name in page if name not in found]
        counted = (
            select(table.c.customer, func.count())
            .where(table.c.customer.in_(lacking), table.c.place.is_(None))
            .group_by(table.c.customer)
        )
        rows: Any = connection.execute(counted).all() if lacking else ()
        unchained: dict[str, int] = dict(rows)
        found |= {name: ChainHead.empty(name, unchained.get(name, 0)) for name in lacking}
    return found


def _write_heads(connection: Connection, table: Table, heads: Mapping[str, ChainHead]) -> None:
    made: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = made(table.metadata.tables[_HEADS])
    statement = statement.on_conflict_do_update(
        index_elements=["customer"],
        set_={"place": statement.excluded.place, "hash": statement.excluded.hash},
    )
    connection.execute(statement, [{"customer": name, **head._asdict()} for name, head in heads.items()])


def read_head(connection: Connection, table: Table, customer: str) -> ChainHead | None:
    """The head of a customer's chain; None: there is none."""
    heads = table.metadata.tables[_HEADS].c
    asked = select(heads.place, heads.hash, heads.unchained).where(heads.customer == customer)
    found = connection.execute(asked).first()
    return None if found is None else ChainHead(*found)


def check_chain(
    connection: Connection, table: Table, customer: str, roots: Iterable[RecordedRoot] = ()
) -> tuple[int, int, ChainFault | None]:
    """Check a chain: the rows that are right, the rows without a place, and the first fault.

    Rows that are appended meanwhile are not looked at.
    """
    head, by_place = read_head(connection, table, customer), defaultdict[int, list[RecordedRoot]](list)
    for root in roots:
        by_place[root.place].append(root)
    check = ChainCheck(customer, head, by_place)
    rows, after = table.c, 0
    last = connection.execute(select(func.max(rows.place)).where(rows.customer == customer)).scalar() or 0
    if head is not None and read_head(connection, table, customer) != head:
        last = head.place  # Another process appends: look at what was there at first.
    while check.fault is None:
        rows_asked = select(table).where(rows.customer == customer, rows.place > after, rows.place <= last)
        page = connection.execute(rows_asked.order_by(rows.place, rows.event).limit(_PAGE)).mappings().all()
        check.walk([dict(row) for row in page])
        if len(page) < _PAGE:
            break
        after = page[-1]["place"]
    asked = select(func.count()).select_from(table)
    asked = asked.where(rows.customer == customer, rows.place.is_(None))
    outside: int = connection.execute(asked).scalar() or 0
    return check.place, outside, check.finish(outside)


def customers_after(connection: Connection, table: Table, after: str) -> list[str]:
    """The next customers with a chain behind one, in the order of the database."""
    heads = table.metadata.tables[_HEADS].c
    asked = select(heads.customer).where(heads.customer > after).order_by(heads.customer).limit(_PAGE)
    return [name for (name,) in connection.execute(asked)]


def customers_without_head(connection: Connection, table: Table) -> list[str]:
    """The customers with rows and without a head: their rows are from before the chain, or it was deleted."""
    heads, rows = table.metadata.tables[_HEADS].c, table.c
    is_headed = select(heads.customer).where(heads.customer == rows.customer).exists()
    return [name for (name,) in connection.execute(select(rows.customer).where(~is_headed).distinct())]
