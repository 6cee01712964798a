"""All customers with usage or a record, sorted by id in a temporary SQLite database."""

from __future__ import annotations

import re
from contextlib import aclosing, asynccontextmanager
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meterkit.customers.customers import read_customers
from meterkit.customers.states import list_customer_pages
from meterkit.errors import MeterkitError
from meterkit.redis.daemon_thread import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
    from typing import Self

    from meterkit.customers.customers import Customer
    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store


T = TypeVar("T")


class TemporaryTables:
    """Tables that exist until they are closed. Every call runs in a thread.

    SQLite deletes the file of a database without a name when it opens it, and writes to it what does not fit
    into its cache of some megabytes.

    Args:
        script: creates the tables.
        content: what they hold, for an error.

    Raises:
        MeterkitError: from each method, the temporary folder has no room.
    """

    def __init__(self, script: str, content: str) -> None:
        self._created = script
        self._content = content
        self._sqlite: Any = import_module("sqlite3")  # Few programs need it.
        # Threads take turns: each call holds the lock.
        self._database: Any = self._sqlite.connect("", check_same_thread=False, isolation_level=None)
        self._lock = Lock()

    async def __aenter__(self) -> Self:
        """Create the tables."""
        await self.script(self._created)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop what runs, and free the disk."""
        self._database.interrupt()
        await self.call(self._database.close)

    async def script(self, text: str) -> None:
        """Run several statements."""
        await self.call(lambda: self._database.executescript(text).close())

    async def insert(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Run a statement for each row."""
        if rows:
            await self.call(lambda: self._database.executemany(query, rows).close())

    async def all(self, query: str, *values: object) -> list[Any]:
        """All rows that a query finds."""
        return await self.call(lambda: self._database.execute(query, values).fetchall())

    async def call(self, call: Callable[[], T]) -> T:
        """Call in a thread; a cursor must not leave it, because a later call uses the same statement."""

        def locked() -> T:
            with self._lock:
                return call()

        try:
            return await in_thread(locked)
        except self._sqlite.Error as error:
            raise MeterkitError(
                f"the temporary folder does not take {self._content}: {error}; name another folder in"
                " SQLITE_TMPDIR"
            ) from error


_KEYS_AT_ONCE: Final = 1_000
_TABLE: Final = """
PRAGMA journal_mode = OFF;
PRAGMA cache_size = -8192;
CREATE TABLE customers (at_ms INTEGER, name BLOB, PRIMARY KEY (at_ms, name)) WITHOUT ROWID;
BEGIN;
"""
# SQLite sorts bytes. With surrogates passed, UTF-8 sorts as Python sorts strings.
_AS_BYTES: Final = ("utf-8", "surrogatepass")


class SortedCustomers(TemporaryTables):
    """Distinct pairs of an instant and a customer's id, sorted; on disk from about 200,000 on."""

    def __init__(self) -> None:
        super().__init__(_TABLE, "the ids of all customers")

    def __len__(self) -> int:
        """Number of pairs."""
        return int(self._database.total_changes)

    async def add(self, found: Iterable[tuple[int, str]]) -> None:
        """Add pairs; those that are there already change nothing."""
        rows = [(at_ms, name.encode(*_AS_BYTES)) for at_ms, name in found]
        await self.insert("INSERT OR IGNORE INTO customers VALUES (?, ?)", rows)

    async def add_set_up(self, admin: Admin, keys: Keys) -> None:
        """Add all customers that have a record, at the instant 0.

        Raises:
            StoreError: the store does not answer.
        """
        async with aclosing(list_customer_pages(admin, keys, _KEYS_AT_ONCE)) as pages:
            async for names in pages:
                await self.add((0, name) for name in names)

    async def pages(self, most: int) -> AsyncGenerator[list[tuple[int, str]]]:
        """Pages of at most so many pairs."""
        query = "SELECT * FROM customers WHERE (at_ms, name) > (?, ?) ORDER BY at_ms, name LIMIT ?"
        last: tuple[object, object] = (-1, b"")
        while rows := await self.all(query, *last, most):
            last = rows[-1]
            yield [(at_ms, name.decode(*_AS_BYTES)) for at_ms, name in rows]

    async def names(self, most: int) -> AsyncGenerator[list[str]]:
        """Pages of at most so many ids."""
        async for page in self.pages(most):
            yield [name for _, name in page]


@asynccontextmanager
async def customers_with_counts(store: Store, kinds: str = "ctv") -> AsyncGenerator[SortedCustomers]:
    """All customers that anything was counted of, or with levels of gauges, at the instant 0.

    Nothing lists them: each server walks over all its keys, a thousand at once, while others are served.

    Args:
        store: where they are.
        kinds: of keys that count: ``c`` and ``t`` counters and totals, ``v`` levels of gauges.

    Raises:
        StoreError: the store does not answer, or its user may not run SCAN.
        MeterkitError: the temporary folder has no room.
    """
    prefix = store.keys.prefix
    named = re.compile(rf"{re.escape(prefix)}:\{{\d+\}}:[{kinds}]:(.*)", re.DOTALL)
    admin = await store.admin()
    async with SortedCustomers() as found:
        async with aclosing(admin.scan(f"{prefix}:{{*}}:[{kinds}]:*", _KEYS_AT_ONCE)) as pages:
            async for keys in pages:
                names = (named.fullmatch(key.decode("utf-8", "surrogateescape")) for key in keys)
                await found.add((0, name[1]) for name in names if name is not None)
        yield found


async def customers_by_id(store: Store, most: int) -> AsyncGenerator[Sequence[Customer]]:
    """All customers that have a record, sorted by id, in pages of at most so many.

    Raises:
        StoreError: the store does not answer.
        MeterkitError: the temporary folder has no room.
    """
    async with SortedCustomers() as every:
        await every.add_set_up(await store.admin(), store.keys)
        async with aclosing(every.names(most)) as pages:
            async for names in pages:
                yield await read_customers(store, names)
