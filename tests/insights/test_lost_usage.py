"""Counters are compared with both kinds of databases of the audit log."""
# Internals: the comparison that health runs, as of an instant; a drainer.

from __future__ import annotations

from datetime import timedelta

import pytest

from drivers.audited_kit import audited, lose_all
from meterkit.insights.audit.lost_usage import CounterComparison, LostUsage, compare_counters

pytestmark = pytest.mark.anyio


async def test_f318_each_database_is_compared(store_url: str, audit_url: str) -> None:
    async with audited(store_url, audit_url) as at:
        store, database = at.kit.store, at.drainer.database
        for customer in ("acme", "zeta"):
            await at.kit.record(customer, "rows", 5)
        await at.kit.customers.delete("zeta")
        at.desk.clock.advance(timedelta(seconds=1))
        await at.kit.record("zeta", "rows", 2)
        assert await at.drainer.drain() == 0
        until_ms = store.now_ms()
        assert await compare_counters(store, database, until_ms) == CounterComparison(2, 0, False, [])
        await lose_all(at)
        found = await compare_counters(store, database, until_ms)
    # Usage before the deletion is not lost.
    assert sorted(found.lost) == [LostUsage("acme", "rows", 5), LostUsage("zeta", "rows", 2)]
