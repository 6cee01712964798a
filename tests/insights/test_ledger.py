"""What calls of models cost and earn: in the audit log, by model, in metrics; to the micro-unit."""
# Internals: a drainer, and tallies that fail at a named step.

from __future__ import annotations

import asyncio
from fractions import Fraction
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from sqlalchemy import create_engine, inspect, text

from drivers.audit_database import Row
from drivers.audited_kit import audited
from drivers.plans import plans_text
from meterkit import MeterkitError, metrics_app
from meterkit.catalog import loads
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import Drainer
from meterkit.redis.tallies import Tallies

if TYPE_CHECKING:
    from collections.abc import Sequence


pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("ledger")


def answer(model: str, entered: int, left: int, cached: int = 0) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": {"content": "Four."}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": entered,
            "completion_tokens": left,
            "total_tokens": entered + left,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def key(row: dict[str, Any]) -> tuple[str, str]:
    return row["model"], row["meter"]


async def test_each_row_has_cost_price_and_version(store_url: str, audit_url: str) -> None:
    async with audited(store_url, audit_url, catalog=loads(PLANS)) as at:
        at.kit.store.tally()
        await at.kit.grants.add("ada", {"usd": 10}, grant_id="g")
        small = await at.kit.record_usage("ada", answer("small-1", 1000, 400))
        large = await at.kit.record_usage("ada", answer("large-1", 1000, 100, 600))
        rows = {key(row): row for row in await at.rows()}
        found = await at.kit.usage("ada", by="model")
        llm, revenue = at.kit.store.tally().llm, dict(at.kit.store.tally().revenue)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=metrics_app(at.kit)), base_url="http://app"
        ) as client:
            shown = (await client.get("/")).text
        version = at.kit.catalog.content_hash
    # small: 1,000 * 0.15 + 400 * 0.60 = 390; large: 400 * 3 + 600 * 0.30 + 100 * 15 = 2,880
    assert small is not None
    assert large is not None
    assert (small.cost_micros, small.charged_micros) == (Fraction(390), Fraction(507))
    assert (large.cost_micros, large.charged_micros) == (Fraction(2880), Fraction(3744))
    # 100 output tokens are included; each of the other 300 and 100 costs 7.
    assert small.revenue_micros == 300 * 7 + 507
    assert large.revenue_micros == 100 * 7 + 3744
    assert {place: row["cost_micros"] for place, row in rows.items()} == {
        ("small-1", "input_tokens"): 150,
        ("small-1", "output_tokens"): 240,
        ("small-1", "usd_charged"): None,
        ("large-1", "input_tokens"): 1200,
        ("large-1", "cached_input_tokens"): 180,
        ("large-1", "output_tokens"): 1500,
        ("large-1", "usd_charged"): None,
    }
    paid = {
        place: (row["priced"], row["price_micros"], row["price_per"])
        for place, row in rows.items()
        if row["price_micros"] is not None
    }
    assert paid == {
        ("small-1", "output_tokens"): (300, 7_000_000, 1_000_000),
        ("large-1", "output_tokens"): (100, 7_000_000, 1_000_000),
        ("small-1", "usd_charged"): (507, 1, 1),
        ("large-1", "usd_charged"): (3744, 1, 1),
    }
    table = metadata.version("genai-prices")
    for row in rows.values():
        assert row["price_version"] == f"plans/{version},genai-prices/{table}"
    assert {name: one["cost_micros"] for name, one in found["models"].items()} == {
        "small-1": 390,
        "large-1": 2880,
    }
    assert found["models"]["small-1"]["meters"]["output_tokens"] == {
        "recorded": 400,
        "cost_micros": 240,
        "revenue_micros": 2100,
        "margin_micros": 1860,
    }
    assert (found["cost_micros"], found["revenue_micros"]) == (3270, 507 + 3744 + 400 * 7)
    assert found["margin_micros"] == 507 + 3744 + 2800 - 3270
    assert llm == {
        ("small-1", "openai"): (Fraction(390), Fraction(507)),
        ("large-1", "openai"): (Fraction(2880), Fraction(3744)),
    }
    assert 'meterkit_revenue_micros_total{model="small-1",provider="openai"} 2607.0\n' in shown
    assert revenue == {
        ("small-1", "openai"): Fraction(507 + 300 * 7),
        ("large-1", "openai"): Fraction(3744 + 100 * 7),
    }


class Losing(Database):
    """Inserts, and its answer is lost."""

    def insert(self, rows: Sequence[Row]) -> Sequence[Row]:
        super().insert(rows)
        raise MeterkitError("the answer of the database is lost")


async def test_revenue_in_metrics_counts_a_repeated_row_once(store_url: str, audit_url: str) -> None:
    async with audited(store_url, audit_url, catalog=loads(PLANS)) as at:
        at.kit.store.tally()
        await at.kit.record("ada", "output_tokens", 300)
        with pytest.raises(MeterkitError, match="is lost"):
            await Drainer(at.kit.store, Losing(audit_url), least_age_ms=0).drain()
        await at.kit.record("ada", "output_tokens", 10)
        await at.kit.correct("ada", {"output_tokens": 5}, reason="twice", correction_id="c")
        await at.rows()
        assert await at.drainer.drain() == 0
        assert at.kit.store.tally().revenue == {("none", "none"): Fraction(10 * 7)}


async def test_a_table_of_an_earlier_release_gains_the_columns(store_url: str, audit_url: str) -> None:
    await asyncio.to_thread(_make_old_table, audit_url)
    old = Row("1/p/1", "requests", "recorded", "ada", 5, 6, 1, 1)
    async with audited(store_url, audit_url, catalog=loads(PLANS)) as at:
        assert at.drainer.database.look()
        await at.kit.record("ada", "requests", 4)
        rows = await at.rows()
        await asyncio.to_thread(Database(audit_url).insert, [])  # Nothing is added twice.
    assert [(row["customer"], row["quantity"], row["priced"]) for row in rows] == [
        ("ada", old.quantity, None),
        ("ada", 4, 3),
    ]


def _make_old_table(url: str) -> None:
    engine = create_engine(url)
    names = Row._fields[: Row._fields.index("priced")]
    texts = {"event", "meter", "kind", "customer", "model", "provider", "details"}
    columns = ", ".join(f"{name} {'TEXT' if name in texts else 'BIGINT'}" for name in names)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE meterkit_audit ({columns}, PRIMARY KEY (event, meter))"))
        connection.execute(
            text(
                "INSERT INTO meterkit_audit (event, meter, kind, customer, period_start_ms, recorded_at_ms,"
                " quantity, included, granted, credited, overage, reported, late)"
                " VALUES ('1/p/1', 'requests', 'recorded', 'ada', 5, 6, 1, 1, 0, 0, 0, 0, 0)"
            )
        )
    assert [column["name"] for column in inspect(engine).get_columns("meterkit_audit")] == [*names]
    engine.dispose()


def test_names_of_models_do_not_grow_without_bound() -> None:
    tallies = Tallies()
    for nth in range(1000):
        tallies.called(f"{nth}" + "x" * 1000, None, cost=Fraction(1), charged=Fraction(0))
    assert len(tallies.llm) == 101
    assert tallies.llm["other", "other"] == (Fraction(900), Fraction(0))
    assert max(len(model) for model, _ in tallies.llm) <= 100
