"""The journal of deliveries in the database of the audit log."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from meterkit.redis.daemon_thread import in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.insights.audit.database import Database
    from meterkit.outbox.journal import JournalRow
    from meterkit.settings import Settings

T = TypeVar("T")


def journal_of(settings: Settings) -> DatabaseJournal | None:
    """The journal that the settings name; None: there is no audit database."""
    return None if settings.audit_url is None else DatabaseJournal(settings.audit_url.get_secret_value())


class DatabaseJournal:
    """A journal in a table beside the audit log. Each call has a thread of its own, as it may hang.

    Each method raises :class:`~meterkit.errors.MeterkitError` where the database fails or cannot be used.

    Args:
        url: of the audit log's database.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    async def write(self, rows: Sequence[JournalRow]) -> None:
        """Keep rows, all or none; a row that is there stays as it is."""
        await in_thread(lambda: self._database.insert_deliveries(rows))

    async def read(self, customer: str, event_name: str, since_ms: int) -> Sequence[JournalRow]:
        """The rows of a customer and event name that were accepted since then."""
        return await in_thread(lambda: self._database.deliveries(customer, event_name, since_ms))

    async def begun_ms(self) -> int | None:
        """When the first row of all was accepted; None: there is none."""

        def begun_ms() -> int | None:
            return self._database.deliveries_begun_ms()

        return await in_thread(begun_ms)

    async def remove(self, identifiers: Sequence[str]) -> None:
        """Remove what Stripe has refused after it accepted it."""
        await in_thread(lambda: self._database.remove_deliveries(identifiers))

    @cached_property
    def _database(self) -> Database:
        # SQLAlchemy takes a while to import, and few want it.
        database: type[Database] = import_module("meterkit.insights.audit.database").Database
        return database(self._url)
