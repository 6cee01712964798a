"""Delivered usage against invoices, spikes and degraded minutes on the operator pages."""
# Internals: spikes, closes and degraded minutes without the days that make them.

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.audited_kit import sqlite_in
from drivers.delivery import desk
from drivers.operator_pages import JSON, figures_on, make_snapshot, pages_of, selling
from drivers.shop import START
from meterkit.store.degraded_minutes import DegradedMinutes
from meterkit.testing import Clock

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

pytestmark = pytest.mark.anyio


async def rows_of(client: httpx.AsyncClient, path: str, of: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get(f"/{path}.json", params={"of": of})).json()
    return found


async def test_usage_by_state_is_the_sum_over_its_customers(store_url: str, tmp_path: Path) -> None:
    async with desk(store_url, audit_url=sqlite_in(tmp_path)) as at, pages_of(at.kit) as client:
        await at.link("acme", "zeta")
        for customer, units in (("acme", 6), ("zeta", 7), ("alone", 8)):
            await at.kit.record(customer, "requests", units)
        await at.kit.record("zeta", "rows", 9)
        await at.flush(everything=True)
        await at.kit.record("acme", "requests", 1)
        await make_snapshot(at.kit)

        figures = (await client.get("/", headers=JSON)).json()["delivered"]
        # What stays with us, as rows do, is no usage on its way to Stripe.
        assert set(figures) == {"requests"}
        assert {name: n for name, n in figures["requests"].items() if n} == {
            "recorded": 22,
            "pending": 1,
            "unlinked": 8,
            "delivered": 13,
        }
        for state, units in figures["requests"].items():
            rows = await rows_of(client, "delivered", f"{state} requests")
            assert sum(row[state] for row in rows) == units
            assert all(row[state] for row in rows)
        shown = figures_on((await client.get("/")).text)
        assert shown["delivered:requests:delivered"] == 13
        assert await rows_of(client, "delivered", "none requests") == []

        books = await rows_of(client, "books", "acme")
        (now,) = [row for row in books if row["meter"] == "requests"]
        assert (now["recorded"], now["waiting"], now["delivered"], now["confirmed"]) == (7, 1, 6, 6)
        assert (await client.get("/books?of=a%00")).status_code == 404


async def test_degraded_minutes_are_sent_once_the_store_is_back(store_url: str) -> None:
    async with selling(store_url, None) as kit, pages_of(kit) as client:
        store, clock = kit.store, Clock(START)
        noted = DegradedMinutes(store.keys, store.admin, lambda: int(clock() * 1000))
        for before in (timedelta(0), timedelta(seconds=30), timedelta(hours=23), timedelta(hours=25)):
            clock.set(START - before)
            noted.note()
        await noted.send()
        await noted.send()
        store.degraded.note()
        await store.degraded.send()
        assert list((await store.degraded.read(30)).values()) == [2, 1, 1, 1]
        figures = (await client.get("/", headers=JSON)).json()["degraded"]
        assert figures == {"day": 3, "month": 4}
        assert len(await rows_of(client, "degraded", "day")) == 3
        rows = await rows_of(client, "degraded")
        assert rows[0] == {"minute": "2031-06-01T00:00:00Z", "requests": 2}
        assert len(rows) == 4
