"""Cost and revenue of model calls, to the micro-unit: in the audit log, by model and unit, in metrics."""
# Internals: a drainer, and tallies that fail at a named step.

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from datetime import timedelta
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from genai_prices import Usage, calc_price

from drivers.audit_database import drain_all
from drivers.audited_kit import Audited, audited
from drivers.delivery import NOW
from drivers.plans import plans_text
from drivers.shop import sell_nothing, shop
from drivers.subscribed_customer import fetched, subscription
from meterkit import MeterkitError, metrics_app
from meterkit.catalog import loads
from meterkit.insights.audit.database import Database
from meterkit.metric_tallies import Tallies

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("ledger")


def answer(model: str, entered: int, left: int, cached: int = 0) -> dict[str, Any]:
    usage = {"prompt_tokens": entered, "completion_tokens": left, "total_tokens": entered + left}
    message = {"index": 0, "message": {"content": "Four."}, "finish_reason": "stop"}
    said = {"object": "chat.completion", "model": model, "choices": [message]}
    return said | {"usage": {**usage, "prompt_tokens_details": {"cached_tokens": cached}}}


@pytest.fixture
async def at(store_url: str, audit_url: str) -> AsyncGenerator[Audited]:
    async with audited(store_url, audit_url, catalog=loads(PLANS)) as opened:
        yield opened


async def test_each_row_has_cost_price_and_version(at: Audited) -> None:
    at.kit.store.tally()
    await at.kit.grants.add("ada", {"usd": 10}, grant_id="g")
    small = await at.kit.record_usage("ada", answer("small-1", 1000, 400))
    large = await at.kit.record_usage("ada", answer("large-1", 1000, 100, 600))
    rows = {(row["model"], row["meter"]): row for row in await at.rows()}
    found = await at.kit.usage("ada", by="model")
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
    prices = ("priced", "price_micros", "price_per")
    paid = {place: tuple(row[name] for name in prices) for place, row in rows.items() if row["price_micros"]}
    assert paid == {
        ("small-1", "output_tokens"): (300, 7_000_000, 1_000_000),
        ("large-1", "output_tokens"): (100, 7_000_000, 1_000_000),
        ("small-1", "usd_charged"): (507, 1, 1),
        ("large-1", "usd_charged"): (3744, 1, 1),
    }
    version = f"plans/{at.kit.catalog.content_hash},genai-prices/{metadata.version('genai-prices')}"
    assert {row["price_version"] for row in rows.values()} == {version}
    costs = {name: one["cost_micros"] for name, one in found["models"].items()}
    assert costs == {"small-1": 390, "large-1": 2880}
    margin = {"cost_micros": 240, "revenue_micros": 2100, "margin_micros": 1860}
    assert found["models"]["small-1"]["meters"]["output_tokens"] == {"recorded": 400, **margin}
    assert (found["cost_micros"], found["revenue_micros"]) == (3270, 507 + 3744 + 400 * 7)
    assert found["margin_micros"] == 507 + 3744 + 2800 - 3270
    assert at.kit.store.tally().llm == {
        ("small-1", "openai"): (Fraction(390), Fraction(507)),
        ("large-1", "openai"): (Fraction(2880), Fraction(3744)),
    }
    assert at.kit.store.tally().revenue == {
        ("small-1", "openai"): Fraction(507 + 300 * 7),
        ("large-1", "openai"): Fraction(3744 + 100 * 7),
    }
    transport = httpx.ASGITransport(app=metrics_app(at.kit))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        shown = (await client.get("/")).text
    assert 'meterkit_revenue_micros_total{model="small-1",provider="openai"} 2607.0\n' in shown


async def test_overage_of_a_trial_earns_nothing(store_url: str, audit_url: str) -> None:
    free = "plans:\n  free: {price: {amount_cents: 0, interval: month}}\n"
    plans = PLANS.replace("plan: pro", "plan: free").replace("plans:\n", free)
    given = "interval: month}\n    trial: {for: 14d, without_card: invoice}\n"
    catalog = loads(plans.replace("interval: month}\n", given))
    async with shop(store_url, catalog=catalog, selling=sell_nothing, audit_url=audit_url) as trial:
        await trial.kit.stripe.sync()
        await trial.subscribed(plan="pro")
        call = await trial.kit.record_usage("acme", answer("small-1", 1, 1_000_100))
        await trial.kit.correct("acme", {"output_tokens": 20}, reason="twice", correction_id="c")
        await drain_all(trial.kit, audit_url)
        found = await trial.kit.usage("acme", by="model")
        assert call is not None
        # The balance is charged in a trial, too.
        assert call.revenue_micros == found["revenue_micros"] == 780_078
        trial.go(timedelta(days=15))
        await trial.kit.subscriptions.sync("acme")
        await trial.kit.record("acme", "output_tokens", 1_000_100)
        await drain_all(trial.kit, audit_url)
        assert (await trial.kit.usage("acme"))["meters"]["output_tokens"]["overage_cents"] == 700
        assert (await trial.kit.usage("acme", by="model"))["revenue_micros"] == 7_000_000


async def test_dollars_of_a_balance_are_no_revenue_in_yen(store_url: str, audit_url: str) -> None:
    plans = re.sub(r"amount_cents: (\d+)", r"amount_cents: {usd: \1, jpy: \1}", PLANS)
    catalog = loads(plans.replace("currency: usd", "currency: [usd, jpy]"))
    async with audited(store_url, audit_url, catalog=catalog) as at:
        for customer, currency, revenue in (("kim", "jpy", 300 * 700), ("ada", "usd", 300 * 7 + 507)):
            await fetched(at.kit, subscription(currency=currency), customer=customer)
            call = await at.kit.record_usage(customer, answer("small-1", 1000, 400))
            await at.rows()
            found = await at.kit.usage(customer, by="model")
            assert call is not None
            assert call.charged_micros == 507
            assert call.revenue_micros == found["revenue_micros"] == revenue
            assert found["margin_micros"] == (None if currency == "jpy" else revenue - 390)


async def test_an_unknown_cost_is_not_free(at: Audited) -> None:
    await at.kit.record_usage("ada", answer("small-1", 1000, 400))
    await at.kit.record_usage("ada", answer("zed-7b", 1000, 400))
    await at.rows()
    found = await at.kit.usage("ada", by="model")
    small, zed = found["models"]["small-1"], found["models"]["zed-7b"]
    assert (small["cost_micros"], small["margin_micros"]) == (390, 2100 + 507 - 390)
    for one in (zed, zed["meters"]["output_tokens"], found):
        assert (one["cost_micros"], one["margin_micros"]) == (None, None)
    assert found["revenue_micros"] == 2100 + 507 + 400 * 7


async def test_usage_of_a_source_that_is_not_billed_has_no_row(store_url: str, audit_url: str) -> None:
    catalog = loads(PLANS + "billing: {sources: [estimated]}\n")
    async with audited(store_url, audit_url, catalog=catalog) as at:
        await at.kit.record_usage("ada", answer("small-1", 1000, 400))
        assert {row["meter"]: row["quantity"] for row in await at.rows()} == {}


async def test_revenue_counts_a_repeated_row_once(at: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = Database.insert

    def lose_the_answer(database: Database, rows: Any) -> None:
        insert(database, rows)
        raise MeterkitError("the answer of the database is lost")

    at.kit.store.tally()
    await at.kit.record("ada", "output_tokens", 300)
    monkeypatch.setattr(Database, "insert", lose_the_answer)
    with pytest.raises(MeterkitError, match="is lost"):
        await at.drainer.drain()
    monkeypatch.undo()
    await at.kit.record("ada", "output_tokens", 10)
    await at.kit.correct("ada", {"output_tokens": 5}, reason="twice", correction_id="c")
    await at.rows()
    assert await at.drainer.drain() == 0
    assert at.kit.store.tally().revenue == {("none", "none"): Fraction(10 * 7)}


def test_names_of_models_do_not_grow_without_bound() -> None:
    tallies = Tallies()
    for nth in range(1000):
        tallies.count_call(f"{nth}" + "x" * 1000, None, cost=Fraction(1), charged=Fraction(0))
    assert (len(tallies.llm), tallies.llm["other", "other"]) == (101, (Fraction(900), Fraction(0)))
    assert max(len(model) for model, _ in tallies.llm) <= 100


UNIT_PLANS: Final = plans_text("units_shown")


CLAUDE: Final = "claude-sonnet-4-5-20250929"


SOUND: Final = "gpt-audio-2025-08-28"


def searching(nth: int) -> dict[str, Any]:
    """An answer of Anthropic: 3,600 tokens in, 3,000 of them written to a cache, 2,000 for an hour."""
    said = {"id": f"msg_{nth}", "type": "message", "role": "assistant", "model": CLAUDE}
    return said | {
        "content": [{"type": "text", "text": "Four."}],
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 100,
            "output_tokens": 50,
            "cache_creation_input_tokens": 3000,
            "cache_read_input_tokens": 500,
            "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000},
            "server_tool_use": {"web_search_requests": 3},
        },
    }


def priced(model: str, **units: int) -> int:
    """What the price table says that units cost, in micro-dollars."""
    found = calc_price(Usage(**units), model, genai_request_timestamp=NOW)
    return int(Fraction(found.total_price) * 10**6)


def _written(tokens: int, time_to_live: str) -> dict[str, int]:
    """Tokens that were written to a cache, as the price table asks for them: all, and of this kind."""
    return {"cache_write_tokens": tokens, f"cache_write_{time_to_live}_tokens": tokens}


async def _use(at: Audited, customer: str) -> int:
    """Two calls with searches and one with sound, by figures that the app gives; what was charged."""
    await at.kit.grants.add(customer, {"usd": 10}, grant_id="g")
    for nth in range(2):
        await at.kit.record_usage(customer, searching(nth))
    async with at.kit.reserve(customer, {"output_tokens": 500}) as held:
        figures = {"input_tokens": 1000, "input_audio_tokens": 400, "output_tokens": 200}
        await held.capture(figures, model=SOUND)
    return (await at.kit.usage(customer))["meters"]["usd_charged"]["recorded"]


async def test_each_unit_is_costed_on_one_meter(store_url: str, audit_url: str) -> None:
    async with audited(store_url, audit_url, catalog=loads(UNIT_PLANS)) as at:
        await _use(at, "eve")
        charged = await _use(at, "ada")
        rows = await at.rows()
        found = await at.kit.usage("ada", by="model")
    meters = {
        model: {
            name: (one["recorded"], one["cost_micros"])
            for name, one in of_model["meters"].items()
            if name != "usd_charged"
        }
        for model, of_model in found["models"].items()
    }
    # Of 3,600 tokens in, 500 were read from the cache and 2,000 written for an hour.
    claude = {
        "input_tokens": (7200, 2 * priced(CLAUDE, input_tokens=1100, **_written(1000, "5m"))),
        "cached_input_tokens": (1000, 2 * priced(CLAUDE, input_tokens=500, cache_read_tokens=500)),
        "cache_write_1h_tokens": (4000, 2 * priced(CLAUDE, input_tokens=2000, **_written(2000, "1h"))),
        "output_tokens": (100, 2 * priced(CLAUDE, output_tokens=50)),
        "web_searches": (6, 2 * priced(CLAUDE, web_searches=3)),
    }
    sound = {
        "input_tokens": (1000, priced(SOUND, input_tokens=600)),
        "input_audio_tokens": (400, priced(SOUND, input_tokens=400, input_audio_tokens=400)),
        "output_tokens": (200, priced(SOUND, output_tokens=200)),
    }
    assert meters == {CLAUDE: claude, SOUND: sound}
    assert found["cost_micros"] == sum(row["cost_micros"] or 0 for row in rows if row["customer"] == "ada")
    assert charged == (found["cost_micros"] or 0) * 13 // 10
    paid = [one["meters"]["usd_charged"]["recorded"] for one in found["models"].values()]
    assert paid == [sum(cost for _, cost in costs.values()) * 13 // 10 for costs in (claude, sound)]
    # 300 of the sound are billed at 70 micro-dollars each.
    assert found["revenue_micros"] == charged + 300 * 70
    assert {model: one["units"] for model, one in found["models"].items()} == {
        CLAUDE: {
            "input_tokens": 7200,
            "cache_read_tokens": 1000,
            "cache_write_tokens": 6000,
            "cache_write_5m_tokens": 2000,
            "cache_write_1h_tokens": 4000,
            "output_tokens": 100,
            "web_searches": 6,
        },
        SOUND: {"input_tokens": 1000, "input_audio_tokens": 400, "output_tokens": 200},
    }
    logged = [json.loads(row["units"]) for row in rows if row["units"] and row["customer"] == "ada"]
    assert len(logged) == 3


async def test_the_page_of_money_shows_usage_by_model_as_it_is(store_url: str, audit_url: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "money.md").read_text("utf-8")
    plans, shown = (page.split(f"```{language}\n")[1].split("```")[0] for language in ("yaml", "json"))
    used: dict[str, Any] = {"object": "chat.completion", "model": "our-llama-70b", "choices": []}
    figures = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}
    nothing = {"prompt_tokens_details": {"cached_tokens": 0}}
    async with audited(store_url, audit_url, catalog=loads(plans)) as at:
        await at.kit.grants.add("bo", {"usd": 10}, grant_id="in_43")
        await at.kit.record_usage("bo", used | {"usage": figures | nothing})
        await at.rows()
        found = await at.kit.usage("bo", by="model")
    assert found["models"] == json.loads(shown)
