"""The usage page in Chromium: both themes, 360 px, keyboard only, without script, and what axe-core finds."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from auditing import sqlite_in
from browsing import chromium, faultless, found, needs_chromium
from llm_apps import listening
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import Drainer
from meterkit.pages import usage_page
from meterkit.testing import Clock
from shopping import START

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from playwright.async_api import Browser

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  requests: {unit: request}
  tokens:   {unit: token, stripe: {event_name: ai_tokens}}
  seats:    {unit: seat, kind: gauge}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      requests: {rate: 100/hour, included: 10, overage: deny}
      tokens:   {included: 100, overage: {bill: {per: 1000, amount_cents: 1200}}}
      seats:    {included: 3}
  max:
    extends: pro
    price: {amount_cents: 4900, interval: month}
"""
DAYS: Final = 20


@asynccontextmanager
async def address(store_url: str, directory: Path) -> AsyncGenerator[str]:
    """Where the page of a customer with twenty days of usage is served."""
    url, clock = sqlite_in(directory), Clock(START)
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=clock, audit_url=url) as kit:
        for day in range(DAYS):
            await kit.record("acme", "tokens", 50 + day * 37 % 90)
            clock.advance(timedelta(days=1))
        await kit.consume("acme", "requests", 4)
        await kit.grants.add("acme", {"requests": 25}, grant_id="gift")
        await Drainer(kit.store, Database(url), least_age_ms=0).drain()
        page = usage_page(kit, customer=lambda _: "acme", origins=["https://app.example"])
        async with listening(Starlette(routes=[Mount("/usage", app=page)])) as port:
            yield f"http://127.0.0.1:{port}/usage/"


async def look(browser: Browser, url: str, theme: Literal["light", "dark"], width: int) -> None:
    """See that the page has no fault, and draws its charts."""
    async with faultless(browser, url, theme, width, within=url) as page:
        assert await found(page, "document.querySelectorAll('.chart canvas').length") == 2


async def use_the_keyboard(browser: Browser, url: str) -> None:
    """Tab through the page: the skip link, then every table that scrolls."""
    page = await browser.new_page()
    await page.goto(url)
    await page.keyboard.press("Tab")
    assert await found(page, "document.activeElement.className") == "skip"
    await page.keyboard.press("Enter")
    tables = await found(page, "document.querySelectorAll('.scroll').length")
    reached: list[str] = []
    for _ in range(tables):
        await page.keyboard.press("Tab")
        reached.append(await found(page, "document.activeElement.getAttribute('aria-labelledby')"))
    assert reached == ["this-period", "other-plans", "day-1", "day-2", "rates", "grants"]
    await page.close()


async def do_without_script(browser: Browser, url: str) -> None:
    """The tables have the figures, and no chart takes space."""
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(url)
    assert await page.locator(".days tbody tr").count() == 2 * (DAYS + 1)
    assert await page.locator(".chart[hidden]").count() == 2
    await context.close()


@needs_chromium
async def test_the_usage_page_in_chromium(store_url: str, tmp_path: Path) -> None:
    async with address(store_url, tmp_path) as url, chromium() as browser:
        await look(browser, url, "light", 360)
        await look(browser, url, "light", 1024)
        await look(browser, url, "dark", 360)
        await look(browser, url, "dark", 1024)
        await use_the_keyboard(browser, url)
        await do_without_script(browser, url)
