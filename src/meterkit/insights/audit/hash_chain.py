"""Hash chain of a customer's audit rows, and its tables: each hash covers its row and the one before.

The format is on the page ``docs/audit.md``, so that others can compute the hashes, too.

One chain for all customers could not be checked without the usage of all others. Columns that are null are
left out, so that a later release can add columns.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from sqlalchemy import BigInteger, Column, Table, Text, func, select, text, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from meterkit.insights.audit.entries import RecordedRoot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from meterkit.insights.audit.entries import AuditRow

FORMAT: Final = "1"
"""The version of the serialisation; each hash begins with it."""

Problem = Literal["changed", "missing", "inserted", "head", "root", "unchained"]
_PAGE: Final = 2_000
_KEYS_AT_ONCE: Final = 400
_HEADS: Final = "meterkit_audit_heads"


class ChainHead(NamedTuple):
    """The end of a customer's chain.

    Attributes:
        place: of the last row; 0: there is none.
        hash: of the last row.
        unchained: how many rows of the customer had no place when the chain began.
    """

    place: int
    hash: str
    unchained: int = 0

    @classmethod
    def empty(cls, customer: str, unchained: int) -> ChainHead:
        """The head of a chain without rows."""
        return cls(0, _hash_text(json.dumps(["meterkit audit chain", customer, unchained])), unchained)


def link_hash(before: str, facts: Mapping[str, object]) -> str:
    """The hash of a row: SHA-256 over the hash before, a line feed, and the row as canonical JSON.

    Columns without a value are left out, so that a column that is added later changes no hash.

    Args:
        before: the hash of the row before.
        facts: the columns of the row by name; ``hash`` is left out.
    """
    told = {name: value for name, value in facts.items() if value is not None and name != "hash"}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return _hash_text(f"{before}\n{text}")


def _hash_text(text: str) -> str:
    return f"{FORMAT}:{sha256(text.encode()).hexdigest()}"


def chain_rows(
    rows: Iterable[AuditRow], heads: Mapping[str, ChainHead]
) -> tuple[list[dict[str, Any]], dict[str, ChainHead]]:
    """Rows with their places and hashes, and the heads behind them.

    Args:
        rows: new ones, in order.
        heads: of all their customers.
    """
    found: list[dict[str, Any]] = []
    after: dict[str, ChainHead] = {}
    for row in rows:
        head = after.get(row.customer) or heads[row.customer]
        record: dict[str, Any] = {**row._asdict(), "place": head.place + 1}
        record["hash"] = link_hash(head.hash, record)
        after[row.customer] = head._replace(place=record["place"], hash=record["hash"])
        found.append(record)
    return found, after


class ChainFault(NamedTuple):
    """The first place at which a chain is broken.

    Attributes:
        place: of the row; 0: of none.
        problem: ``changed`` row; ``missing`` or ``inserted`` rows; ``head``: the head is that of another
            chain; ``root``: an invoice has another root; ``unchained``: rows outside the chain.
        words: what was found, for people.
    """

    place: int
    problem: Problem
    words: str


@dataclass(slots=True)
class ChainCheck:
    """Walks along one customer's chain and keeps the first fault.

    Attributes:
        customer: whose chain.
        head: as it is stored; None: there is none.
        roots: of invoices, by place.
        fault: the first one; None: there is none yet.
        place, hash: of the last row that is right.
    """

    customer: str
    head: ChainHead | None
    roots: Mapping[int, Iterable[RecordedRoot]]
    fault: ChainFault | None = None
    place: int = 0
    hash: str = ""

    def __post_init__(self) -> None:
        self.hash = ChainHead.empty(self.customer, 0 if self.head is None else self.head.unchained).hash

    def walk(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Check the next rows, in the order of their places; nothing is checked behind a fault."""
        for row in rows:
            if self.fault is None:
                self._check_row(row)

    def _check_row(self, row: Mapping[str, Any]) -> None:
        wanted, place = self.place + 1, row["place"]
        if place > wanted:
            self.fault = ChainFault(wanted, "missing", _describe_missing(wanted, place - 1))
            return
        if place < wanted:
            self.fault = ChainFault(place, "inserted", f"a second row has place {place}")
            return
        expected = link_hash(self.hash, row)
        if expected != row["hash"]:
            words = f"row {place} (event {row['event']}, meter {row['meter']}) was changed, moved or inserted"
            self.fault = ChainFault(place, "changed", f"{words}: its hash is not that of its content")
            return
        self.place, self.hash = place, expected
        self._compare_roots(place)

    def _compare_roots(self, place: int) -> None:
        for root in self.roots.get(place, ()):
            if root.hash != self.hash:
                words = f"invoice {root.invoice} has root {root.hash}, and row {place} has {self.hash}"
                self.fault = ChainFault(place, "root", f"{words}: the rows up to here were written anew")
                return

    def finish(self, unchained: int) -> ChainFault | None:
        """Compare what is behind the last row; the first fault.

        Args:
            unchained: how many rows of the customer have no place.
        """
        self.fault = self.fault or self._check_end(unchained)
        return self.fault

    def _check_end(self, unchained: int) -> ChainFault | None:
        head, last = self.head, self.place
        beyond = max((place for place in self.roots if place > last), default=0)
        ends = max(beyond, 0 if head is None else head.place)
        if ends > last:
            by = f"invoice {next(iter(self.roots[beyond])).invoice}" if ends == beyond else "the head"
            return ChainFault(last + 1, "missing", f"{_describe_missing(last + 1, ends)}, by {by}")
        if head is None:
            words = f"the chain has {last} rows and no head in meterkit_audit_heads"
            return ChainFault(last, "head", words) if last else None
        if last > head.place:
            return ChainFault(
                head.place + 1, "inserted", f"the head is at row {head.place}, and there are {last}"
            )
        if head.hash != self.hash:
            return ChainFault(last, "head", f"the head has hash {head.hash}, and row {last} has {self.hash}")
        return _check_rows_outside(unchained - head.unchained)


def _describe_missing(first: int, last: int) -> str:
    return f"row {first} is missing" if first == last else f"rows {first} to {last} are missing"


def _check_rows_outside(more: int) -> ChainFault | None:
    """Compare the rows outside the chain with their number at its beginning."""
    if more > 0:
        return ChainFault(0, "unchained", f"{more} rows are outside the chain: meterkit did not insert them")
    words = f"{-more} rows from before the chain began are missing"
    return ChainFault(0, "missing", words) if more else None


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
