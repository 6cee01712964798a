"""The audit log knows usage that misses its invoice: recorded once more in the period that bills it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.audit_database import to_ms
from drivers.audited_kit import audited, rebuild, sqlite_in
from drivers.subscribed_customer import END, fetched, subscription
from insights.test_audit_log import agrees

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_usage_that_misses_its_invoice_is_entered_once_more(any_store_url: str, tmp_path: Path) -> None:
    async with audited(any_store_url, sqlite_in(tmp_path)) as at:
        await at.desk.link("acme")
        await fetched(at.kit, subscription())
        await at.kit.record("acme", "tokens", 150)
        await at.kit.record("acme", "requests", 7)
        at.desk.clock.set(END + timedelta(hours=2))
        assert len((await at.desk.flush(everything=True)).late) == 2
        rows = {row["meter"]: row for row in await at.rows() if row["late"]}
        tokens, requests = rows["tokens"], rows["requests"]
        assert [tokens[name] for name in ("quantity", "overage", "reported", "late")] == [50] * 4
        assert [requests[name] for name in ("quantity", "overage", "reported", "late")] == [7] * 4
        assert (tokens["included"], tokens["granted"], tokens["credited"]) == (0, 0, 0)
        assert tokens["event"] != requests["event"]
        assert tokens["late_of_ms"] == to_ms(END - timedelta(days=30))
        assert tokens["period_start_ms"] == to_ms(END)
        assert tokens["occurred_at_ms"] is None
        await agrees(at, "acme")
        assert await rebuild(at) == []
