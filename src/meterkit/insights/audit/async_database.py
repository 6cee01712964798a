"""Async access to the audit log's database for the journal of deliveries and hourly usage."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

from meterkit.errors import SettingsError
from meterkit.redis.daemon_thread import in_thread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.insights.audit.database import Database
    from meterkit.outbox.journal import JournalRow
    from meterkit.settings import Settings


def database_at(url: str) -> Database:
    """Open the database. SQLAlchemy takes a while to import, and few want it.

    Raises:
        SettingsError: the URL cannot be used.
        ImportError: SQLAlchemy is not installed.
    """
    database: type[Database] = import_module("meterkit.insights.audit.database").Database
    return database(url)


def open_database(settings: Settings, what: str) -> Database:
    """Open the database of the settings, beside whose audit log something is kept.

    Raises:
        SettingsError: they name none, or it cannot be used.
        ImportError: SQLAlchemy is not installed.
    """
    if settings.audit_url is None:
        raise SettingsError(
            "audit_url",
            f"audit_url: {what} read from the audit log; set METERKIT_AUDIT_URL to a database",
        )
    return database_at(settings.audit_url.get_secret_value())


def open_audit_database(settings: Settings) -> AuditDatabase | None:
    """The database that the settings name; None: there is none."""
    return None if settings.audit_url is None else AuditDatabase(settings.audit_url.get_secret_value())


class AuditDatabase:
    """Journal of deliveries and hourly usage. Each call has its own thread, as it may hang.

    Each method raises :class:`~meterkit.errors.MeterkitError` where the database fails or cannot be used.

    Args:
        url: of the audit log's database.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    async def write(self, rows: Sequence[JournalRow]) -> None:
        """Keep rows of the journal, all or none; a row that is there stays as it is."""
        await in_thread(lambda: self._database.insert_deliveries(rows))

    async def read(self, customer: str, event_name: str, since_ms: int) -> Sequence[JournalRow]:
        """The journal's rows of a customer and event name that were accepted since then."""
        return await in_thread(lambda: self._database.deliveries(customer, event_name, since_ms))

    async def begun_ms(self) -> int | None:
        """Time of the journal's first row (ms); None: the journal is empty."""

        def begun_ms() -> int | None:
            return self._database.deliveries_begun_ms()

        return await in_thread(begun_ms)

    async def remove(self, identifiers: Sequence[str]) -> None:
        """Remove from the journal what Stripe has refused after it accepted it."""
        await in_thread(lambda: self._database.remove_deliveries(identifiers))

    async def active(self, since_ms: int, *, least: int) -> Sequence[tuple[str, str]]:
        """Customers and meters with at least so many units since an instant."""
        return await in_thread(lambda: self._database.active(since_ms, least))

    async def hours(self, customer: str, meter: str, since_ms: int) -> Mapping[int, int]:
        """Units by hour since 1970."""
        return await in_thread(lambda: self._database.hours(customer, meter, since_ms))

    @cached_property
    def _database(self) -> Database:
        return database_at(self._url)
