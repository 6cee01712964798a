"""Operator pages: what needs attention with its cure, and tiles with lines of thirty days."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
from httpx import AsyncClient

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.operator_pages import JSON, figures_on, flat, make_snapshot, pages_of, selling
from drivers.redrives import kill_message, kill_webhook, put_off_message
from meterkit import Finding, Health, MeterKit
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

EXAMINE: Final = "meterkit.health.check_runner.examine"
DEAD: Final = Finding(
    check="dead", problem="5 of tokens in 1 intent, of acme: refused", cure="run `a command`"
)
LOST: Final = Finding(check="eviction", problem="keys are evicted", cure="set `noeviction`")


def words_in(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", "", html)).split())


def items_on(page: str) -> list[tuple[str, str, str]]:
    """Problem, cure and link of each item, in the order of the page."""
    items = re.findall(r"<li[^>]*>\s*<p>(.*?)</p>\s*<p>(.*?)</p>", page, re.DOTALL)
    links = [re.search(r' <a href="([^"]*)">Open the list</a>', cure) for _, cure in items]
    return [
        (words_in(problem), words_in(cure.partition(" <a ")[0]), "" if link is None else link[1])
        for (problem, cure), link in zip(items, links, strict=True)
    ]


def tiles_on(page: str) -> dict[str, tuple[str, str]]:
    """Value and note of each tile that has a line."""
    found = re.findall(
        r'<h3>(.*?)</h3>\s*<p class="big">(.*?)</p>\s*<svg.*?</svg>\s*<p class="small">(.*?)</p>',
        page,
        re.DOTALL,
    )
    return {words_in(title): (words_in(value), words_in(note)) for title, value, note in found}


async def test_what_needs_attention_has_its_cure_and_its_list(kit: MeterKit, client: AsyncClient) -> None:
    await kit.record("billed", "tokens", 5)
    await kit.customers.set_status("late", "past_due")
    await kill_message(kit, "msg_1", "late")
    await kill_webhook(kit, "cus_1")
    await make_snapshot(kit)
    page = (await client.get("/")).text
    found = {
        problem.partition(":")[2].strip()[:20]: (problem, cure, opens)
        for problem, cure, opens in items_on(page)
    }
    assert found["1 customer has usage"][2] == "unlinked"
    assert found["1 customer has usage"][1] == "Run meterkit customers link CUSTOMER STRIPE_CUSTOMER."
    assert found["1 sync with Stripe i"][2] == "webhooks"
    assert found["1 message is dead, m"][2] == "messages?of=dead"
    assert found["1 customer is past d"][2] == "past_due"
    assert "Urgent: 1 customer has usage" in found["1 customer has usage"][0]
    assert "To do: 1 message is dead" in found["1 message is dead, m"][0]
    levels = [problem.partition(":")[0] for problem, _, _ in items_on(page)]
    assert levels == sorted(levels, reverse=True)
    assert page.index('id="attention"') < page.index('id="trends"') < page.index('id="customers"')
    for _, _, opens in found.values():
        assert not opens or (await client.get(f"/{opens}")).text.count('<th scope="row">') == 1


async def test_figures_stand_in_for_checks_that_cannot_run(tmp_path: Path) -> None:
    async with selling("memory://", tmp_path) as kit, pages_of(kit) as client:
        page = (await client.get("/")).text
        assert ("Nothing needs attention" in page, items_on(page)) == (True, [])
        await kill_message(kit, "msg_1", "late")
        await put_off_message(kit, "msg_2", "late")
        page = (await client.get("/")).text
        assert figures_on(page)["messages:waiting"] == 1
        for state, name in (("dead", "msg_1"), ("waiting", "msg_2")):
            listed = (await client.get(f"/messages.json?of={state}")).json()
            assert [row["message"] for row in listed] == [name]
        assert "1 thing needs attention" in page
        ((problem, cure, opens),) = items_on(page)
    assert (problem, opens) == ("To do: 1 message to a customer is dead.", "messages?of=dead")
    assert cure.endswith("remove it, then redrive there or with meterkit notify redrive.")


async def test_checks_run_once_a_minute_and_not_for_json(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()

    async def examine(_: Any, *, scan_keys: bool) -> Health:
        asked.append(scan_keys)
        return Health(findings=[DEAD, LOST], looked_at={"undelivered": "1"})

    monkeypatch.setattr(EXAMINE, examine)
    clock = Clock()
    async with selling("memory://", None, clock=clock) as kit, pages_of(kit) as client:
        await client.get("/", headers=JSON)
        assert asked == []
        first, again = [(await client.get("/")).text for _ in range(2)]
        # No event is dead any more: the check was earlier than the figure.
        assert items_on(first) == items_on(again) == [("Urgent: Keys are evicted.", "Set noeviction.", "")]
        assert "<code>noeviction</code>" in first
        clock.advance(timedelta(seconds=61))
        await client.get("/")
    assert asked == [False, False]


async def test_findings_that_cost_usage_are_urgent(monkeypatch: pytest.MonkeyPatch) -> None:
    urgent = [
        *("server", "rights", "persistence", "durability", "eviction", "shards", "stripe", "pending"),
        *("intents", "items", "throughput", "spool"),
    ]
    others = ["clock", "scripts", "keys", "breaker", "links", "plans", "subscriptions", "audit"]
    reports = [Finding(check=check, problem=check, cure="a cure") for check in (*others, *urgent)]

    async def examine(_: Any, *, scan_keys: bool) -> Health:
        return Health(findings=reports, looked_at=dict.fromkeys(others, str(scan_keys)))

    monkeypatch.setattr(EXAMINE, examine)
    async with selling("memory://", None) as kit, pages_of(kit) as client:
        problems = [problem.lower() for problem, _, _ in items_on((await client.get("/")).text)]
    levels = {"urgent": urgent, "to do": others}
    assert problems == [f"{level}: {check}." for level, checks in levels.items() for check in checks]


async def test_slow_checks_do_not_keep_the_page_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def examine(_: Any, *, scan_keys: bool) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError(scan_keys)

    monkeypatch.setattr(EXAMINE, examine)
    monkeypatch.setattr("meterkit.pages.attention._TIMEOUT_S", 0.01)
    async with selling("memory://", None) as kit, pages_of(kit) as client:
        assert "The checks took longer than 3 seconds" in (await client.get("/")).text


async def test_tiles_have_lines_of_usage_and_deliveries(tmp_path: Path) -> None:
    clock = Clock()
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False)
    stripe.add_customer("cus_acme")
    url = sqlite_in(tmp_path)
    with stripe.running() as address:
        settings = {"stripe_api_key": "sk_test_1", "stripe_api_base": address}
        async with selling("memory://", tmp_path, clock=clock, **settings) as kit, pages_of(kit) as client:
            stripe.add_meters(kit.catalog)
            await kit.customers.link("acme", "cus_acme")
            days = list[str]()
            for units in (5, 7, 9):
                await kit.record("acme", "tokens", units)
                await kit.record("acme", "requests", 1)
                await kit.flush(everything=True)
                await drain_all(kit, url)
                await make_snapshot(kit)
                days.append(f"{clock.now():%Y-%m-%d}")
                clock.advance(timedelta(days=9))
            figures = (await client.get("/", headers=JSON)).json()
            page = (await client.get("/")).text
    assert figures["activity"] == {
        day: {"tokens": units, "requests": 1, "meter_events": 1}
        for day, units in zip(days, (5, 7, 9), strict=True)
    }
    assert figures_on(page) == {name: value for name, value in flat(figures).items() if value is not None}
    assert tiles_on(page) == {
        "Tokens used": ("21", "in thirty days, 0 yesterday"),
        "Requests used": ("3", "in thirty days, 0 yesterday"),
        "Meter events delivered": ("3", "in thirty days, 0 wait now"),
        "Without the store": ("0 minutes", "in thirty days, 0 today"),
    }


async def test_usage_that_is_logged_late_is_on_the_next_tiles(tmp_path: Path) -> None:
    clock, url = Clock(), sqlite_in(tmp_path)
    async with selling("memory://", tmp_path, clock=clock) as kit, pages_of(kit) as client:
        day = f"{clock.now():%Y-%m-%d}"
        await kit.record("acme", "tokens", 5)
        await drain_all(kit, url)
        await kit.record("acme", "tokens", 3)
        for _ in range(2):
            clock.advance(timedelta(days=1))
            await make_snapshot(kit)
            await drain_all(kit, url)
        figures = (await client.get("/", headers=JSON)).json()
    assert figures["activity"][day]["tokens"] == 8
