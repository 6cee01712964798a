"""A listing of a bucket in a temporary SQLite database, for a sorted merge with what the store keeps."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

from meterkit.errors import MeterkitError
from meterkit.redis.daemon_thread import in_thread
from meterkit.storage.shelf import Known

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Difference", "Listed", "Listing", "differences"]

T = TypeVar("T")

_CUSTOMERS_AT_ONCE: Final = 1_000
_TABLES: Final = """
PRAGMA journal_mode = OFF;
PRAGMA temp_store = FILE;
CREATE TABLE listed (customer TEXT, field TEXT, size INTEGER, type TEXT);
CREATE TABLE known
  (field TEXT PRIMARY KEY, is_there INTEGER, size INTEGER, at_ms INTEGER, type TEXT) WITHOUT ROWID;
CREATE TABLE customers (customer TEXT PRIMARY KEY) WITHOUT ROWID;
BEGIN;
"""
_SORTED: Final = """
CREATE INDEX sorted ON listed (customer, field, size, type);
INSERT OR IGNORE INTO customers SELECT DISTINCT customer FROM listed;
BEGIN;
"""


class Listed(NamedTuple):
    """A version of an object in a bucket; ``field`` is its digest."""

    customer: str
    field: str
    size: int
    type: str


class Difference(NamedTuple):
    """A version for which a listing and the store differ; each is None where it is not there."""

    field: str
    listed: tuple[int, str] | None
    known: Known | None


def differences(
    listed: Iterable[tuple[str, int, str]], known: Iterable[tuple[str, Known]]
) -> Iterator[Difference]:
    """Merge a listing with what the store keeps, both sorted by field: where they differ. Pure.

    What the store keeps of a removed version differs from a listing without it: it is not needed any more.
    """
    ours, theirs = iter(known), iter(listed)
    has, lists = next(ours, None), next(theirs, None)
    while True:
        if has is None or (lists is not None and lists[0] < has[0]):
            if lists is None:
                return
            yield Difference(lists[0], lists[1:], None)
            lists = next(theirs, None)
        elif lists is None or has[0] < lists[0]:
            yield Difference(has[0], None, has[1])
            has = next(ours, None)
        else:
            if (True, *lists[1:]) != (has[1].is_there, has[1].size, has[1].type):
                yield Difference(lists[0], lists[1:], has[1])
            has, lists = next(ours, None), next(theirs, None)


class Listing:
    """A temporary table of one listing, sorted by customer and field; memory holds a few MB of it.

    SQLite deletes the file of a database without a name when it opens it, and writes to it what does not fit
    into its cache. Every call runs in a thread.

    Raises:
        MeterkitError: from each method, the temporary folder has no room.
    """

    def __init__(self) -> None:
        self._sqlite: Any = import_module("sqlite3")  # Only a recalculation needs it.
        # Threads take turns: each call holds the lock.
        self._database: Any = self._sqlite.connect("", check_same_thread=False, isolation_level=None)
        self._lock = Lock()

    async def __aenter__(self) -> Self:
        """Create the tables."""
        await self._script(_TABLES)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop what runs, and free the disk."""
        self._database.interrupt()
        await self._call(self._database.close)

    async def add(self, page: Sequence[Listed]) -> None:
        """Add a page of the listing."""
        await self._insert("INSERT INTO listed VALUES (?, ?, ?, ?)", page)

    async def add_customers(self, names: Iterable[str]) -> None:
        """Add customers that may have no object in the listing."""
        await self._insert("INSERT OR IGNORE INTO customers VALUES (?)", [(name,) for name in names])

    async def sort(self) -> None:
        """Sort the listing; add no page after that."""
        await self._script(_SORTED)

    async def customers(self) -> AsyncGenerator[str]:
        """All customers, sorted."""
        query = "SELECT customer FROM customers WHERE customer > ? ORDER BY customer LIMIT ?"
        last = ""
        while page := await self._call(partial(self._all, query, last, _CUSTOMERS_AT_ONCE)):
            for (last,) in page:
                yield last

    async def compare(
        self, customer: str, known: AsyncGenerator[Mapping[str, Known]], *, at_once: int
    ) -> AsyncGenerator[list[Difference]]:
        """Where the listing differs from what the store keeps of a customer's objects.

        Args:
            customer: whose objects.
            known: pages of what the store keeps, by field.
            at_once: how many differences a batch has at most.
        """
        await self._call(lambda: self._database.execute("DELETE FROM known").close())
        async for page in known:
            rows = [(field, *one) for field, one in page.items()]
            await self._insert("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)", rows)
        found = differences(self._listed_of(customer), self._known())
        while batch := await self._call(lambda: list(islice(found, at_once))):
            yield batch

    def _listed_of(self, customer: str) -> Iterator[tuple[str, int, str]]:
        query = "SELECT field, size, type FROM listed WHERE customer = ? ORDER BY field"
        yield from self._database.execute(query, (customer,))

    def _known(self) -> Iterator[tuple[str, Known]]:
        rows: Any = self._database.execute("SELECT * FROM known ORDER BY field")
        yield from ((field, Known(bool(is_there), *rest)) for field, is_there, *rest in rows)

    def _all(self, query: str, *values: object) -> list[Any]:
        found: list[Any] = self._database.execute(query, values).fetchall()
        return found

    async def _script(self, text: str) -> None:
        await self._call(lambda: self._database.executescript(text).close())

    async def _insert(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        if rows:
            await self._call(lambda: self._database.executemany(query, rows).close())

    async def _call(self, call: Callable[[], T]) -> T:
        """Call in a thread; a cursor must not leave it, because a later call uses the same statement."""

        def locked() -> T:
            with self._lock:
                return call()

        try:
            return await in_thread(locked)
        except self._sqlite.Error as error:
            raise MeterkitError(
                f"the temporary folder does not take the listing of a bucket: {error}; name another folder in"
                " SQLITE_TMPDIR"
            ) from error
