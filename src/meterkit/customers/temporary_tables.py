"""A temporary database of SQLite sorts what may not fit into memory."""

from __future__ import annotations

from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from meterkit.errors import MeterkitError
from meterkit.redis.daemon_thread import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

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
