"""The journal of deliveries, in SQLite and PostgreSQL."""
# Internals: the journal's table, whose rows no page shows.

from __future__ import annotations

from asyncio import to_thread
from typing import Final

import pytest

from drivers.audit_database import Row
from meterkit.insights.audit.calls import AuditDatabase
from meterkit.insights.audit.database import Database
from meterkit.outbox.journal import JournalRow

pytestmark = pytest.mark.anyio

ROW: Final = JournalRow(
    identifier="intent-1",
    customer="acme",
    event_name="api_requests",
    stripe_customer="cus_acme",
    minute_s=1_939_000_020,
    value=10**15 - 1,
    delivered_at_ms=1_939_000_030_000,
)


async def test_a_row_is_kept_once_and_found_by_its_key(audit_url: str) -> None:
    journal = AuditDatabase(audit_url)
    assert await journal.begun_ms() is None
    back = ROW._replace(identifier="intent-2", value=-5, delivered_at_ms=ROW.delivered_at_ms + 1)
    await journal.write([ROW])
    await journal.write([back, ROW._replace(value=1)])
    assert await journal.read("acme", "api_requests", ROW.delivered_at_ms) == [ROW, back]
    assert await journal.read("acme", "api_requests", back.delivered_at_ms) == [back]
    assert await journal.read("acme", "ai_tokens", 0) == []
    assert await journal.begun_ms() == ROW.delivered_at_ms


async def test_rows_from_before_a_customer_was_deleted_are_not_its_own(audit_url: str) -> None:
    journal, database = AuditDatabase(audit_url), Database(audit_url)
    await journal.write([ROW])
    deleted = Row("0/1", "", "deleted", "acme", None, ROW.delivered_at_ms + 1)
    await to_thread(database.insert, [deleted])
    assert await journal.read("acme", "api_requests", 0) == []
