"""What calls of models cost and earn: in the audit log, by model, in metrics; to the micro-unit."""
# Internals: a drainer, and tallies that fail at a named step.

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from fractions import Fraction
from importlib import metadata
from random import Random
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from sqlalchemy import create_engine, inspect, text

from drivers.audit_database import Row
from drivers.audited_kit import audited
from drivers.counters import pack_field
from drivers.plans import plans_text
from faults.proxy import TcpProxy
from faults.refusals import kit_at, settled
from meterkit import MeterKit, MeterkitError, SettingsError, metrics_app
from meterkit.catalog import loads
from meterkit.decisions.keys import meter_token
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import Drainer
from meterkit.insights.audit.entries import rows_of
from meterkit.redis.tallies import Tallies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servers.stores import Server

pytestmark = pytest.mark.anyio

AT: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)
PLANS: Final = plans_text("ledger")


PRICES: Final = {
    "small-1": (Fraction(15, 100), Fraction(60, 100)),
    "small-2": (Fraction(15, 100), Fraction(60, 100)),
    "large-1": (Fraction(3), Fraction(15)),
}


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


async def test_each_row_has_cost_price_and_version(any_store_url: str, audit_url: str) -> None:
    async with audited(any_store_url, audit_url, catalog=loads(PLANS)) as at:
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


@pytest.mark.parametrize(
    ("store_url", "audit_url"),
    [("valkey", "postgresql"), pytest.param("memory", "sqlite", marks=pytest.mark.whole)],
    indirect=["store_url", "audit_url"],
)
async def test_sums_of_a_month_are_those_of_the_exact_fractions(store_url: str, audit_url: str) -> None:
    chance = Random(11)  # noqa: S311 - a failure must be repeatable, nothing is secret
    cost = dict.fromkeys(PRICES, Fraction(0))
    left = requests = 0
    async with audited(store_url, audit_url, catalog=loads(PLANS)) as at:
        await at.kit.grants.add("ada", {"usd": 10_000}, grant_id="g")
        for _ in range(150):
            model, entered, out = chance.choice([*cost]), chance.randint(0, 50), chance.randint(0, 50)
            prices = (Fraction(15, 100), Fraction(60, 100)) if model < "s" else (Fraction(3), Fraction(15))
            prices = (
                (Fraction(3), Fraction(15)) if model == "large-1" else (Fraction(15, 100), Fraction(3, 5))
            )
            cost[model] += entered * prices[0] + out * prices[1]
            left += out
            requests += 1
            await at.kit.record_usage("ada", answer(model, entered, out))
            await at.kit.record("ada", "requests", 1)
            if chance.random() < 0.1:
                await at.drainer.fold([*(await _waiting(at))], 3)
        await at.rows()
        usage = await at.kit.usage("ada")
        found = await at.kit.usage("ada", by="model")
    assert usage["meters"]["output_tokens"]["overage"] == left - 100
    charged = usage["meters"]["usd_charged"]["recorded"]
    assert charged == sum(cost.values()) * Fraction(13, 10) // 1
    exact = Fraction(charged) + (left - 100) * 7 + Fraction((requests - 1) * 10_000, 3)
    assert found["revenue_micros"] == round(exact)
    meters = len(cost) * 2
    assert 0 <= sum(cost.values()) - found["cost_micros"] < meters


async def test_folded_rows_keep_revenue_and_lose_the_model(any_store_url: str, audit_url: str) -> None:
    async with audited(any_store_url, audit_url, catalog=loads(PLANS)) as at:
        at.kit.store.tally()
        await at.kit.grants.add("ada", {"usd": 10}, grant_id="g")
        for model in ("small-1", "large-1"):
            await at.kit.record_usage("ada", answer(model, 1000, 400))
        await at.drainer.fold([*(await _waiting(at))], 0)
        rows = await at.rows()
        found = await at.kit.usage("ada", by="model")
        revenue = dict(at.kit.store.tally().revenue)
    assert {row["kind"] for row in rows} == {"summed"}
    # small: 390, large: 1,000 * 3 + 400 * 15 = 9,000; charged 30 % more; 700 of overage at 7.
    assert list(found["models"]) == [""]
    assert found["models"][""]["units"] == {}
    assert (found["cost_micros"], found["revenue_micros"]) == (9_390, 12_207 + 700 * 7)
    assert revenue == {("none", "none"): Fraction(12_207 + 700 * 7)}


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


async def _waiting(at: Any) -> Any:
    from meterkit.insights.audit.draining import waiting_shards

    return await waiting_shards(at.kit.store)


async def test_a_correction_lowers_revenue_at_the_price(any_store_url: str, audit_url: str) -> None:
    async with audited(any_store_url, audit_url, catalog=loads(PLANS)) as at:
        await at.kit.record("ada", "output_tokens", 300)
        await at.kit.correct("ada", {"output_tokens": 150}, reason="twice", correction_id="c")
        await at.rows()
        found = await at.kit.usage("ada", by="model")
    assert found["revenue_micros"] == 50 * 7
    assert found["models"][""]["meters"]["output_tokens"]["recorded"] == 150


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


async def test_without_an_audit_log_usage_by_model_says_what_to_set(any_store_url: str) -> None:
    kit = MeterKit(loads(PLANS), redis_url=any_store_url, flush=False)
    with pytest.raises(SettingsError, match="set METERKIT_AUDIT_URL to a database"):
        await kit.usage("ada", by="model")
    anything: Any = "colour"
    with pytest.raises(MeterkitError, match="subject: found the kind 'colour'; no plan declares any"):
        await kit.usage("ada", by=anything)


def test_names_of_models_do_not_grow_without_bound() -> None:
    tallies = Tallies()
    for nth in range(1000):
        tallies.called(f"{nth}" + "x" * 1000, None, cost=Fraction(1), charged=Fraction(0))
    assert len(tallies.llm) == 101
    assert tallies.llm["other", "other"] == (Fraction(900), Fraction(0))
    assert max(len(model) for model, _ in tallies.llm) <= 100


def test_unknown_ledger_lines_are_ignored() -> None:
    prices = f"plans/1,t/2 {meter_token('requests')}:7:o40/3"
    later = f'5\nm\np\n{prices}\nuser=u_7\n"job-7"\nx'
    found = [_read(told) for told in ("", "5\nm\np", f"5\nm\np\n{prices}", later)]
    assert [(row.model, row.cost_micros, row.priced, row.price_version) for row in found] == [
        (None, None, None, None),
        ("m", None, None, None),
        ("m", 7, 4, "plans/1,t/2"),
        ("m", 7, 4, "plans/1,t/2"),
    ]
    assert [row.event_id for row in found] == [None, None, None, "job-7"]
    assert [row.revenue for row in found] == [0, 0, Fraction(160, 3), Fraction(160, 3)]


def _read(told: str) -> Row:
    units = (1, 0, 0, 4, 0, 0)
    packed = pack_field("w:1", 1, "ada", 9, 7, "", told, f"{meter_token('requests')}m", *units)
    (row,) = rows_of(0, "1-1", {b"e": packed}, str)
    return row


BY_MODEL: Final = plans_text("ledger_by_model")


async def test_overage_priced_by_model_is_revenue_of_its_model(store_url: str, audit_url: str) -> None:
    async with audited(store_url, audit_url, catalog=loads(BY_MODEL)) as at:
        told = [
            await at.kit.record_usage("acme", answer(model, 7, tokens))
            for model, tokens in (("small-1", 300), ("large-1", 50), ("other", 10))
        ]
        await at.kit.record("acme", "output_tokens", 1)
        await at.drainer.drain()
        found = await at.kit.usage("acme", by="model")
    # Of the small model 200 are beyond what is included, at 10 micro-dollars; then 50 at 200, 10 and 1 at 40.
    revenue = {"small-1": 2_000, "large-1": 10_000, "other": 400, "": 40}
    assert {model: one["revenue_micros"] for model, one in found["models"].items()} == revenue
    assert [one and one.revenue_micros for one in told] == [2_000, 10_000, 400]


async def test_the_answer_of_record_usage_knows_the_revenue(any_store_url: str) -> None:
    async with kit_at(any_store_url, plans=loads(BY_MODEL)) as kit:
        # 100 are included, 50 are granted, 30 are overage.
        await kit.grants.add("acme", {"output_tokens": 50}, grant_id="g")
        first = await kit.record_usage("acme", answer("large-1", 7, 180), event_id="e")
        again = await kit.record_usage("acme", answer("large-1", 7, 180), event_id="e")
    assert first is not None
    assert again is not None
    assert first.revenue_micros == 30 * 200
    assert again.revenue_micros is None


async def test_revenue_is_not_known_while_the_store_is_away(valkey: Server) -> None:
    async with (
        TcpProxy(valkey.port) as proxy,
        kit_at(proxy.url, plans=loads(BY_MODEL), store_timeout=0.1) as kit,
    ):
        known = await kit.record_usage("acme", answer("small-1", 7, 300))
        await proxy.set("refuse")
        away = await kit.record_usage("acme", answer("small-1", 7, 300))
        await proxy.set("pass")
        await settled(kit)
        usage = await kit.usage("acme")
    assert known is not None
    assert away is not None
    assert known.revenue_micros == 2_000
    assert away.revenue_micros is None
    assert usage["meters"]["output_tokens"]["recorded"] == 600
