"""Pages say first what refuses a customer now, and until when."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from drivers.app import hello
from drivers.audited_kit import sqlite_in
from drivers.operator_pages import make_snapshot, pages_of
from drivers.plans import completed
from drivers.shop import START
from drivers.usage_figures import JSON, page_of
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.testing import Clock
from pages.test_cards import cards_in, words_in

pytestmark = pytest.mark.anyio

NOW: Final = START + timedelta(hours=16, minutes=15)
BALANCE: Final = "credits: {usd: {unit: money, costs: {tokens: provider_prices}, top_up: {packs: [1000]}}}"
SOLD: Final = "overage: {bill: {per: 1, amount_cents: 4}}"
PLANS: Final = """
default_plan: pro
billing: {portal_url: "https://app.example/pay"}
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  seats: {unit: seat, kind: gauge}
routes:
  - {match: "POST /slow", rate: {limit: 1/day, algorithm: fixed-window}, consume: {requests: 1}}
  - {match: "*", consume: {requests: 1}}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      seats: {included: 1, overage: deny}
      requests: {GIVEN}
"""


@asynccontextmanager
async def page(given: str, url: str = "memory://", more: str = "") -> AsyncGenerator[tuple[MeterKit, Any]]:
    plans = PLANS.replace("{GIVEN}", given).replace("meters:\n", f"{more}\nmeters:\n", 1)
    opened = MeterKit(loads(completed(plans)), redis_url=url, clock=Clock(NOW), flush=False)
    async with opened as kit, page_of(kit) as client:
        await kit.gauges.set("acme", "seats", 1)  # Its seat has a user: that is no refusal.
        yield kit, client


async def notice_of(client: httpx.AsyncClient) -> str:
    """The words of the notice, which stands before all figures."""
    html = (await client.get("/")).text
    found = html.partition('<section class="notice" aria-labelledby="refused-now">')[2].partition(
        "</section>"
    )[0]
    assert html.find('id="refused-now"') < html.index('id="content"')
    assert "micro" not in html
    return words_in(found)


DAILY: Final = "rate: {limit: 100/day, algorithm: fixed-window}"
OF_DAY: Final = "120 of 100 per day are used. Accepted again in 7 h 45 min, 00:00 UTC."
USED_UP: Final = "What the plan gives in this billing period is used up."
OF_MONTH: Final = f"until 1 Jul, 00:00 UTC {USED_UP} Accepted again in 29 days, 1 Jul, 00:00 UTC."


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (f"{{{DAILY}, included: 100, {SOLD}}}", f"Requests are refused until 00:00 UTC {OF_DAY}"),
        (
            f"{{rate: {{limit: 100/5 hours, algorithm: fixed-window}}, included: 100, {SOLD}}}",
            f"Requests are refused until 21:00 UTC {OF_DAY}".replace("day", "5 hours")
            .replace("7 h", "4 h")
            .replace("00:00", "21:00"),
        ),
        (
            f"{{rate: {{limit: 100/minute, algorithm: fixed-window}}, included: 100, {SOLD}}}",
            f"Requests are refused until 16:16 UTC {OF_DAY}".replace("day", "minute")
            .replace("7 h 45 min", "60 s")
            .replace("00:00", "16:16"),
        ),
        ("{included: 100, overage: deny}", f"Requests are refused {OF_MONTH}"),
        (
            f"{{{DAILY}, included: 100, overage: deny}}",
            f"Requests are refused {OF_MONTH} Requests are refused until 00:00 UTC. {OF_DAY}",
        ),
        (f"{{rate: 1000/day, included: 100, {SOLD}}}", ""),
        (f"{{{DAILY}, included: 100, {SOLD}}}\nenforcement: shadow", ""),
    ],
)
async def test_f_330_what_refuses_comes_first_with_its_end(given: str, words: str) -> None:
    """F-330: refused for eight hours, a customer read "120 of 100, used up, more is billed"."""
    async with page(given) as (kit, client):
        await kit.record("acme", "requests", 120)
        assert await notice_of(client) == words
        figures = (await client.get("/", headers=JSON)).json()
        card = cards_in((await client.get("/")).text)["requests"]
        assert ("refused now" in card, "more is billed" in card) == (bool(words), not words)
        assert [one["meter"] for one in figures["refused_now"]] == ["requests"] * words.count("are refused")


async def test_f_330_a_routes_own_rate_is_named() -> None:
    async with page(f"{{included: 100, {SOLD}}}") as (kit, client):
        app = MeterMiddleware(hello, kit=kit, identify=identify.header("x-customer-id"))
        transport, who = httpx.ASGITransport(app), {"x-customer-id": "acme"}
        async with httpx.AsyncClient(transport=transport, base_url="http://app", headers=who) as asking:
            assert [(await asking.post("/slow")).status_code for _ in range(2)] == [200, 429]
        said = "Requests to POST /slow are refused until 00:00 UTC 1 of 1 per day are used."
        assert await notice_of(client) == f"{said} Accepted again in 7 h 45 min, 00:00 UTC."


async def test_f_330_a_spend_limit_refuses_until_it_starts_again() -> None:
    given = f"{{included: 0, {SOLD}}}\n    budget: {{amount_cents: 400, per: day}}"
    async with page(given) as (kit, client):
        await kit.record("acme", "requests", 120)
        said = "Requests are refused until 00:00 UTC The spend limit per day is reached."
        assert await notice_of(client) == f"{said} Accepted again in 7 h 45 min, 00:00 UTC."


async def test_f_330_an_empty_balance_is_named_with_its_cure() -> None:
    async with page(f"{{included: 100, {SOLD}}}", more=BALANCE) as (kit, client):
        assert await notice_of(client) == "Your balance is empty Top up to continue. Top up the balance"
        await kit.grants.add("acme", {"usd": 1}, grant_id="paid")
        assert await notice_of(client) == ""


async def test_f_330_operators_see_who_is_refused_and_until_when(tmp_path: Path, store_url: str) -> None:
    given = f"{{rate: {{limit: 100/day, algorithm: fixed-window}}, included: 100, {SOLD}}}"
    plans, clock = f"{BALANCE}\n{PLANS}".replace("{GIVEN}", given), Clock(NOW)
    catalog = loads(completed(plans))
    settings: Any = {"redis_url": store_url, "audit_url": sqlite_in(tmp_path), "flush": False}
    async with MeterKit(catalog, clock=clock, **settings) as kit, pages_of(kit) as client:
        for customer, used in (("ada", 120), ("bob", 99), ("kim", 100)):
            await kit.record(customer, "requests", used)
        await make_snapshot(kit)
        html = (await client.get("/")).text
        assert html.index('id="attention"') < html.index('id="refused-now"') < html.index('id="trends"')
        shown = words_in(html.partition('id="refused-now">')[2].partition("</section>")[0])
        for customer in ("ada", "kim"):
            assert f"{customer} by requests-1d, accepted again in 7 h 45 min, 00:00 UTC" in shown
        assert (await client.get("/", headers=JSON)).json()["customers"]["refused"] == 2
        rows = (await client.get("/refused", headers=JSON)).json()["rows"]
        assert [(row["customer"], row["refused"]) for row in rows] == [
            ("ada", "requests-1d"),
            ("kim", "requests-1d"),
        ]
        assert {row["refused_until"] for row in rows} == {"2031-06-02T00:00:00Z"}
        clock.advance(timedelta(hours=8))
        assert (await client.get("/refused", headers=JSON)).json()["rows"] == []
        assert "No limit refuses a customer." in (await client.get("/refused")).text
