"""Cards of the usage page: bars, levels and words of meters, the cost so far, and the next plan."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Final

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.plans import plans_text
from drivers.shop import START
from drivers.usage_figures import JSON, page_of
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("cards")


def cards_in(html: str) -> dict[str, str]:
    """The words of each card of a meter, in the order of the page, after the level of its bar."""
    found = re.findall(r'<article class="card ?(\w*)" data-card="(\w+)">(.*?)</article>', html, re.DOTALL)
    return {name: f"{level or '-'}: {words_in(inner)}" for level, name, inner in found}


def words_in(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split()).replace(" ,", ",").replace(" .", ".")


def card_of(html: str, title: str) -> str:
    """The words of the card that a heading names."""
    (found,) = re.findall(
        rf'<section class="card[^>]* aria-labelledby="{title}">(.*?)</section>', html, re.DOTALL
    )
    return words_in(found)


async def test_cards_say_what_is_left_and_those_at_a_limit_come_first(store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.record("acme", "calls", 79)
        await kit.record("acme", "words", 80)
        await kit.record("acme", "tokens", 1_500)
        await kit.record("acme", "images", 3)
        await kit.gauges.set("acme", "storage", 6_000_000)
        await kit.grants.add("acme", {"pages": 20}, grant_id="gift")
        await kit.grants.add("acme", {"coins": 40}, grant_id="bought")
        await kit.record("acme", "pages", 30)
        html = (await client.get("/")).text
    cards = cards_in(html)
    assert [*cards] == ["storage", "tokens", "words", "calls", "images", "pages", "notes", "films"]
    assert cards == {
        "tokens": "reached: Tokens 500 beyond included 1,500 of 1,000 150 %: used up, more is billed"
        " Beyond that: $0.20 per 100 tokens, $1.00 so far",
        "storage": "reached: Storage refused now 1 MB beyond included 6 MB of 5 MB 120 %: used up",
        "words": "near: Words 20 left 80 of 100 80 %: nearly used up",
        "calls": "enough: Calls 21 left 79 of 100 79 % used",
        "images": "-: Images 3 used All usage is billed. $0.04 per image, $0.12 so far",
        "pages": "enough: Pages 20 left 30 of 50 60 % used 20 of it from grants, 20 of it from credits",
        "notes": "-: Notes 0 used No limit.",
        "films": "-: Films 0 used Not included in the plan.",
    }
    assert card_of(html, "cost").startswith("Cost so far $30.12 Plan, per month $29.00")
    assert card_of(html, "balance") == "Balance 40 coins"


@pytest.mark.parametrize("plan", ["denying", "billing"])
async def test_what_credits_have_paid_for_stays_available(store_url: str, plan: str) -> None:
    """Once they were used up, usage that they had paid for was a share above 100 % of what is included."""
    billed = "stripe: {event_name: pages}" if plan == "billing" else ""
    plans = PLANS.replace("pages:   {unit: page}", f"pages:   {{unit: page, {billed}}}")
    if billed:
        price = "overage: {bill: {per: 1, amount_cents: 1}}"
        plans = plans.replace("{included: 10, overage: deny}", f"{{included: 10, {price}}}")
    async with MeterKit(loads(plans), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.grants.add("acme", {"coins": 41}, grant_id="bought")
        await kit.record("acme", "pages", 30)
        pages = cards_in((await client.get("/")).text)["pages"]
        ends = f"%: used up{', more is billed' if billed else ''} 20 of it from credits"
        pages_are = "Pages" if billed else "Pages refused now"
        assert pages.startswith(f"reached: {pages_are} 0 left 30 of 30 100 {ends}")
        await kit.record("acme", "pages", 3)
        pages = cards_in((await client.get("/")).text)["pages"]
        assert pages.startswith(f"reached: {pages_are} 3 beyond included 33 of 30 110 {ends}")


async def test_json_computes_no_cards(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["meterkit.pages.usage_page"], "meter_cards")
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        assert (await client.get("/", headers=JSON)).json()["plan_name"] == "pro"


async def test_a_grant_does_not_pay_for_earlier_overage(store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.record("acme", "tokens", 1_500)
        await kit.grants.add("acme", {"tokens": 1_000}, grant_id="gift")
        html = (await client.get("/")).text
    assert cards_in(html)["tokens"] == (
        "enough: Tokens 1,000 left 1,000 of 2,000 50 % used 1,000 of it from grants"
        " 500 more were used before this quantity was added: billed, $1.00."
        " Beyond that: $0.20 per 100 tokens"
    )


async def test_overage_of_a_free_plan_is_not_called_billed_on_another(store_url: str) -> None:
    catalog, clock = loads(plans_text("statement")), Clock(START)
    async with MeterKit(catalog, redis_url=store_url, clock=clock) as kit, page_of(kit) as client:
        await kit.record("acme", "words", 12)
        clock.advance(timedelta(seconds=1))
        await kit.customers.set_plan("acme", "pro")
        words = cards_in((await client.get("/")).text)["words"]
    assert "12 more were used before this quantity was added. Beyond that" in words


async def test_nothing_is_billed_that_credits_can_pay_for(store_url: str, tmp_path: Path) -> None:
    url, clock = sqlite_in(tmp_path), Clock(START)
    plans = PLANS.replace("costs: {pages: 2}", "costs: {pages: 2, tokens: 1 per 10}")
    async with (
        MeterKit(loads(plans), redis_url=store_url, clock=clock, audit_url=url) as kit,
        page_of(kit) as client,
    ):
        await kit.grants.add("acme", {"coins": 4_000}, grant_id="bought")
        for _ in range(2):
            await kit.record("acme", "tokens", 600)
            await kit.record("acme", "pages", 20)
            clock.advance(timedelta(days=1))
        await drain_all(kit, url)
        shown = (await client.get("/", headers=JSON)).json()
        html = (await client.get("/")).text
    usage, forecast = shown["usage"], shown["forecast"]
    assert (usage["balance"], usage["meters"]["tokens"]["overage"]) == ({"coins": 3_920}, 0)
    assert cards_in(html)["tokens"].startswith(
        "enough: Tokens 39,200 left 1,200 of 40,400 2 % used ▲ Forecast: 18,000 39,400 of it from credits"
    )
    assert forecast["meters"]["pages"][0] == 600  # All but ten are paid by credits, and are not refused.
    assert forecast["cost_cents"][0] == 2_900


async def test_a_mark_and_words_say_where_usage_is_heading(store_url: str, tmp_path: Path) -> None:
    url, clock = sqlite_in(tmp_path), Clock(START)
    async with (
        MeterKit(loads(PLANS), redis_url=store_url, clock=clock, audit_url=url) as kit,
        page_of(kit) as client,
    ):
        for _ in range(2):
            await kit.record("acme", "calls", 1)
            await kit.record("acme", "words", 10)
            await kit.record("acme", "tokens", 100)
            clock.advance(timedelta(days=1))
        await drain_all(kit, url)
        expected = (await client.get("/", headers=JSON)).json()["forecast"]["meters"]
        html = (await client.get("/")).text
    calls, tokens = expected["calls"][0], expected["tokens"][0]
    words = cards_in(html)
    assert words["calls"].endswith(f"Forecast: {calls}")
    assert f'<svg x="{calls}.0%" overflow="visible">' in html
    assert words["words"].endswith("Forecast: used up before the period ends")
    assert f"Forecast: {tokens:,}, more than is included Beyond that" in words["tokens"]
    assert html.count('<svg x="100.0%" overflow="visible">') == 2


async def test_a_forecast_counts_earlier_overage_only_once(store_url: str, tmp_path: Path) -> None:
    url, clock = sqlite_in(tmp_path), Clock(START)
    async with (
        MeterKit(loads(PLANS), redis_url=store_url, clock=clock, audit_url=url) as kit,
        page_of(kit) as client,
    ):
        await kit.record("acme", "tokens", 1_500)
        clock.advance(timedelta(days=1))
        await drain_all(kit, url)
        expected = (await client.get("/", headers=JSON)).json()["forecast"]["meters"]["tokens"][0]
        # The grant pays for all but 300 of the units to come, and 500 are billed already.
        await kit.grants.add("acme", {"tokens": expected - 1_200}, grant_id="gift")
        words = cards_in((await client.get("/")).text)["tokens"]
    assert f"Forecast: {expected:,} {expected - 1_200:,} of it from grants" in words


async def test_a_plan_of_the_same_rank_is_not_the_next_one(store_url: str) -> None:
    catalog = loads(PLANS.replace("plans:\n", "plans:\n  also: {extends: pro, name: Also}\n", 1))
    async with MeterKit(catalog, redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        assert "Next plan: Max, " in card_of((await client.get("/")).text, "plan")


async def test_the_plan_its_price_and_the_next_one(store_url: str) -> None:
    clock = Clock(START)
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=clock) as kit, page_of(kit) as client:
        await kit.record("acme", "calls", 7)
        html = (await client.get("/")).text
        assert card_of(html, "plan") == (
            "Plan pro $29.00 per month. A new period begins on 1 Jul 2031, in 30 days."
            " Next plan: Max, $600.00 per year. Your usage so far would cost $50.00 there,"
            " but exceeds its limits: Calls. Change plan"
        )
        assert '<a href="https://app.example/billing">Change plan</a>' in html
        await kit.customers.set_plan("acme", "max")
        clock.advance(timedelta(days=29))
        html = (await client.get("/")).text
        assert card_of(html, "plan") == (
            "Plan Max $600.00 per year. A new period begins on 1 Jul 2031, tomorrow. Change plan"
        )
        # A month's share of the yearly price.
        assert card_of(html, "cost").startswith("Cost so far $50.00 Plan, per year $600.00")
        before = (await client.get("/?period=2031-05-01")).text
        assert (cards_in(before), "Next plan" in before) == ({}, False)


async def test_half_a_cent_is_rounded_alike_in_each_place(store_url: str, tmp_path: Path) -> None:
    url, clock, plans = sqlite_in(tmp_path), Clock(START), PLANS.replace("60_000", "30_030")
    async with (
        MeterKit(loads(plans), redis_url=store_url, clock=clock, audit_url=url, flush=False) as kit,
        page_of(kit) as client,
    ):
        await kit.record("acme", "words", 1)
        await drain_all(kit, url)
        clock.advance(timedelta(days=2))
        # A month's share of the yearly price has half a cent.
        html = (await client.get("/")).text
        assert "Your usage so far would cost $25.03 there." in card_of(html, "plan")
        await kit.customers.set_plan("acme", "max")
        html = (await client.get("/")).text
        shown = "Cost so far $25.03 Forecast for the period: $25.03 ( $25.03 to $25.03 "
        assert card_of(html, "cost").startswith(shown)


async def test_a_card_goes_by_the_customers_override(store_url: str) -> None:
    """It said "more is billed" where requests are refused, and "used up" where more is billed."""
    plans = PLANS.replace("pages:   {unit: page}", "pages:   {unit: page, stripe: {event_name: pages}}")
    bill = {"bill": {"cap": 50}}
    async with MeterKit(loads(plans), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.customers.override("acme", {"tokens": {"overage": "deny"}, "pages": {"overage": bill}})
        await kit.record("acme", "tokens", 1_000)
        await kit.record("acme", "pages", 10)
        cards = cards_in((await client.get("/")).text)
    assert cards["tokens"] == "reached: Tokens refused now 0 left 1,000 of 1,000 100 %: used up"
    assert cards["pages"] == "reached: Pages 0 left 10 of 10 100 %: used up, more is billed"
