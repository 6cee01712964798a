"""Overage by model: revenue, invoice and statement agree after corrections, and about late usage."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.audited_kit import sqlite_in
from drivers.delivery import said_late
from drivers.period_ends import HOUR, JULY, JUNE, MAY, MINUTE, Ending, paying
from drivers.plans import plans_text
from drivers.usage_figures import JSON, page_of
from meterkit import Statement

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("model_price_books")
PRICES: Final = ("price_pro", *(f"price_pro_output_tokens{of}" for of in ("", ":small-*", ":large-*")))
DAY: Final = timedelta(days=1)


@asynccontextmanager
async def books(store_url: str, tmp_path: Path, plans: str = PLANS) -> AsyncGenerator[Ending]:
    async with paying(store_url, plans, prices=PRICES, audit_url=sqlite_in(tmp_path)) as at:
        yield at


async def use(at: Ending, model: str, tokens: int) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    said: dict[str, Any] = {"object": "chat.completion", "model": model, "choices": [], "usage": usage}
    await at.kit.record_usage("acme", said)


async def agree(at: Ending, period: datetime, cents: dict[str, int], micros: int) -> None:
    """Lines cost so many cents, by the meter; unrounded they, revenue and spend are so many micros."""
    statement = await at.kit.statement("acme", period)
    assert statement.is_final
    assert [line.note for line in statement.lines if line.note] == []
    assert [line.id for line in statement.lines if line.invoice is None] == []
    usage_lines = [line for line in statement.lines if line.kind == "usage" and line.amount_cents]
    assert {str(line.meter): line.amount_cents for line in usage_lines} == cents
    for line in usage_lines:
        assert sum(event.billed for event in line.events) == line.quantity == line.counted
    renewal = next(one for one in at.invoices() if one["id"] == statement.invoices[-1].id)
    assert renewal["total"] == 1000 + sum(cents.values())
    assert statement.total_cents == sum(one.total_cents for one in statement.invoices)
    assert (await at.kit.usage("acme", period=period, by="model"))["revenue_micros"] == micros
    assert (await at.kit.usage("acme", period=period))["meters"]["spend"]["recorded"] == micros
    compared = await at.kit.reconcile("acme", at=period)
    assert [one.difference for one in compared if one.difference] == []


@pytest.fixture
async def at(store_url: str, tmp_path: Path) -> AsyncGenerator[Ending]:
    async with books(store_url, tmp_path) as opened:
        yield opened


async def test_what_is_corrected_is_on_no_invoice_and_in_no_revenue(at: Ending) -> None:
    at.go(MAY + DAY)
    await use(at, "small-1", 60_000)  # 10,000 are included, and 50,000 cost 10 micro-dollars.
    await use(at, "large-1", 20_000)  # At 40.
    await use(at, "other", 5_000)  # At 30.
    assert (await at.kit.usage("acme"))["meters"]["spend"]["recorded"] == 500_000 + 800_000 + 150_000
    # Nothing is delivered yet: the units that are pending are taken back, of the price used last first.
    await at.kit.correct("acme", {"output_tokens": 6_000}, reason="a loop", correction_id="c-1", by="ops")
    await at.flush()
    # Stripe has all: it is sent less than nothing, of the price used last.
    at.go(MAY + 2 * DAY)
    await use(at, "large-1", 1_000)
    await at.flush()
    at.clock.advance(HOUR)
    await at.kit.correct("acme", {"output_tokens": 8_000}, reason="twice", correction_id="c-2", by="ops")
    # Of the default 5,000 are gone, and of the large ones 1,000 and 8,000.
    meters = (await at.kit.usage("acme"))["meters"]
    left = {name: one["overage"] for name, one in meters.items() if name.startswith("output_tokens")}
    assert left == {
        "output_tokens": 62_000,
        "output_tokens:small-*": 50_000,
        "output_tokens:large-*": 12_000,
        "output_tokens:(default)": 0,
    }
    await at.reach(JUNE + 5 * MINUTE)
    await at.close()
    await at.drain()
    cents = {"output_tokens:small-*": 50, "output_tokens:large-*": 48}
    await agree(at, MAY + DAY, cents, micros=980_000)


@pytest.mark.parametrize("drains", [True, False])
async def test_an_open_period_costs_what_the_usage_page_shows(at: Ending, *, drains: bool) -> None:
    """With an invoice, usage at the default price was on the line of its meter, and its cost on none."""
    for model, tokens in (("small-1", 40_000), ("large-1", 20_000), ("other", 10_000)):
        await use(at, model, tokens)
    if drains:
        await at.drain()
    async with page_of(at.kit) as client:
        cost = (await client.get("/", headers=JSON)).json()["cost"]
    found = await at.kit.statement("acme")
    usage_lines = [line for line in found.lines if line.kind == "usage"]
    assert {line.meter: (line.quantity, line.amount_cents) for line in usage_lines} == {
        "output_tokens": (10_000, 30),
        "output_tokens:small-*": (30_000, 30),
        "output_tokens:large-*": (20_000, 80),
    }
    assert found.total_cents == cost["plan_cents"] + cost["overage_cents"] == 1_140
    assert drains == (not any(line.note for line in found.lines))


def said(found: Statement, *, events: bool = False) -> list[tuple[Any, ...]]:
    """The lines of usage that have any: meter, units, cents, note, and of events the model, billed, late."""
    return [
        (
            *(line.meter, line.quantity, line.amount_cents, line.note),
            *([(one.model, one.billed, one.late) for one in line.events] if events else ()),
        )
        for line in found.lines
        if line.kind == "usage" and (line.quantity or line.note)
    ]


LATE_BY: Final = "(20000 came too late)"


@pytest.mark.parametrize("late_usage", ["next_period", "dead_letter"])
async def test_late_usage_is_billed_next_or_not_at_all(
    store_url: str, tmp_path: Path, late_usage: str, caplog: pytest.LogCaptureFixture
) -> None:
    plans = f"{PLANS}billing: {{late_usage: {late_usage}}}\n"
    is_billed = late_usage == "next_period"
    async with books(store_url, tmp_path, plans) as at:
        at.go(MAY + DAY)
        await use(at, "small-1", 60_000)
        await at.flush()
        at.go(JUNE - HOUR)
        await use(at, "large-1", 20_000)
        # Nothing was delivered when the invoice became final.
        await at.reach(JUNE + 26 * HOUR)
        # The webhook of the final invoice has found that out and said it; the flush does not say it again.
        what = "the invoice of the open period bills it" if is_billed else "no invoice bills it"
        assert (await at.flush()).late == []
        assert said_late(caplog) == [f"20000 of output_tokens:large-*: {what}"]
        at.clock.advance(MINUTE)
        await use(at, "large-1", 15_000)
        await at.reach(JULY + 5 * MINUTE)
        await at.close()
        await at.drain()
        first, second = [await at.kit.statement("acme", when) for when in (MAY + DAY, JUNE + DAY)]
        late = f"the invoice has 0 units, and the events come to 20000 {LATE_BY}"
        assert said(first) == [
            ("output_tokens:small-*", 50_000, 50, ""),
            ("output_tokens:large-*", 0, 0, late),
        ]
        assert said(second, events=True) == [
            ("output_tokens:large-*", 25_000, 100, "", (None, 20_000, 20_000), ("large-1", 5_000, 0))
            if is_billed
            else ("output_tokens:large-*", 5_000, 20, "", ("large-1", 5_000, 0))
        ]
        assert [invoice["total"] for invoice in at.invoices()] == [1050, 1100 if is_billed else 1020]
        # Revenue belongs to the period in which it was recorded, once.
        revenue = [
            (await at.kit.usage("acme", period=when, by="model"))["revenue_micros"]
            for when in (MAY + DAY, JUNE + DAY)
        ]
        assert revenue == [1_300_000, 200_000]
        for when in (MAY + DAY, JUNE + DAY):
            assert all(one.agrees for one in await at.kit.reconcile("acme", at=when))


async def test_f_30d_models_amid_a_year_are_taken_back(store_url: str, tmp_path: Path) -> None:
    yearly = PLANS.replace("1000, interval: month", "1000, interval: year")
    async with books(store_url, tmp_path, yearly) as at:
        for model, tokens in (("large-1", 20_000), ("small-1", 60_000)):
            await use(at, model, tokens)
        await at.flush()
        await at.reach(JUNE + DAY)
        (found,) = await at.kit.correct(
            "acme", {"output_tokens": 25_000}, reason="a loop", correction_id="c-1"
        )
        assert (found.taken_back, found.sent_back) == (25_000, 25_000)
        await at.flush()
        at.clock.advance(HOUR)
        meters = (await at.kit.usage("acme", period=MAY + DAY))["meters"]
        left = {name: one["overage"] for name, one in meters.items() if name.startswith("output_tokens")}
        assert sum(left.values()) == 2 * left["output_tokens"] == 2 * 45_000
        compared = await at.kit.reconcile("acme", at=MAY + DAY)
        assert [(one.difference, one.advice) for one in compared if one.recorded] == 2 * [(0, "")]
