"""Verify the hash chains of the audit log: of each customer the first fault. Memory stays bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import select

from meterkit.insights.audit.database import TABLE
from meterkit.insights.audit.hash_chain import (
    check_chain,
    customers_after,
    customers_without_head,
    read_head,
)
from meterkit.redis.daemon_thread import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from sqlalchemy import Connection

    from meterkit.insights.audit.database import Database
    from meterkit.insights.audit.entries import RecordedRoot
    from meterkit.insights.audit.hash_chain import Problem


class InvoiceRoots(Protocol):
    """Reads roots from the metadata of invoices."""

    async def of(self, customer: str) -> Sequence[RecordedRoot]:
        """Roots of one customer's invoices."""
        ...

    def linked(self) -> AsyncIterator[str]:
        """The customers that may have invoices."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainVerdict:
    """Result of the check of one customer's chain.

    Attributes:
        rows: how many rows of the chain are right, from its beginning.
        unchained: how many rows had no place when the chain began.
        roots: how many roots of invoices were compared.
        place: of the first bad row; 0: of none.
        problem: its fault, see :class:`meterkit.insights.audit.hash_chain.ChainFault`; None: no bad row.
        words: the same for people; empty: nothing.
    """

    customer: str
    rows: int
    unchained: int
    roots: int
    place: int
    problem: Problem | None
    words: str

    @property
    def is_right(self) -> bool:
        """Whether the chain is unbroken."""
        return self.problem is None


async def verify(
    database: Database, customer: str | None = None, roots: InvoiceRoots | None = None
) -> AsyncGenerator[ChainVerdict]:
    """Check the chain of one customer, or those of all, in the order of the database.

    With roots, behind these also those customers whose invoices have a root while the database has nothing.

    Args:
        database: of the audit log.
        customer: whose; None: of all.
        roots: of invoices, to compare; None: none are compared.

    Raises:
        StripeError, StoreError: by ``roots``.
        MeterkitError: the database does not answer.
    """
    if customer is not None:
        yield await _verify_one(database, customer, roots)
        return
    after = ""
    while page := await in_thread(_list_customers, database, after):
        for name in page:
            yield await _verify_one(database, name, roots)
        after = page[-1]
    for name in await in_thread(_list_without_head, database):
        yield await _verify_one(database, name, roots)
    if roots is not None:
        async for name in roots.linked():
            if await in_thread(_is_unknown, database, name):
                one = await _verify_one(database, name, roots)
                if one.roots:
                    yield one


async def _verify_one(database: Database, customer: str, roots: InvoiceRoots | None) -> ChainVerdict:
    compared: Sequence[RecordedRoot] = () if roots is None else await roots.of(customer)
    return await in_thread(_check_customer, database, customer, compared)


def _check_customer(database: Database, customer: str, roots: Sequence[RecordedRoot]) -> ChainVerdict:
    with database.begun() as connection:
        head = read_head(connection, TABLE, customer)
        rows, unchained, fault = check_chain(connection, TABLE, customer, roots)
        own = (
            roots
            if fault is None
            else [one for one in roots if not _is_of_another(connection, customer, one)]
        )
        if len(own) < len(roots):
            rows, unchained, fault = check_chain(connection, TABLE, customer, own)
    return ChainVerdict(
        customer=customer,
        rows=rows,
        unchained=unchained if head is None else head.unchained,
        roots=len(roots),
        place=0 if fault is None else fault.place,
        problem=None if fault is None else fault.problem,
        words="" if fault is None else fault.words,
    )


def _is_of_another(connection: Connection, customer: str, root: RecordedRoot) -> bool:
    """Whether the right beginning of another customer's chain ends in a root, as after a change of the id."""
    rows = TABLE.c
    asked = select(rows.customer).where(
        rows.hash == root.hash, rows.place == root.place, rows.customer != customer
    )
    names = [str(name) for (name,) in connection.execute(asked)]
    return any(check_chain(connection, TABLE, name)[0] >= root.place for name in names)


def _list_customers(database: Database, after: str) -> list[str]:
    with database.begun() as connection:
        return customers_after(connection, TABLE, after)


def _list_without_head(database: Database) -> list[str]:
    with database.begun() as connection:
        return customers_without_head(connection, TABLE)


def _is_unknown(database: Database, customer: str) -> bool:
    """Whether there is neither a head nor a row of a customer."""
    with database.begun() as connection:
        rows = select(TABLE.c.event).where(TABLE.c.customer == customer).limit(1)
        return read_head(connection, TABLE, customer) is None and connection.execute(rows).first() is None


def chains_begun_before(database: Database, before_ms: Mapping[str, int]) -> list[str]:
    """The customers, of some, whose chain has a row from before an instant.

    Raises:
        MeterkitError: the database does not answer.
    """
    first = select(TABLE.c.customer, TABLE.c.recorded_at_ms).where(
        TABLE.c.place == 1, TABLE.c.customer.in_(before_ms)
    )
    rows: Sequence[Any] = database.read(first) if before_ms else ()
    return sorted(str(customer) for customer, at_ms in rows if at_ms < before_ms[customer])
