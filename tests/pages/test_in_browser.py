"""The usage page in Chromium: both themes, 360 px, keyboard only, without script, and what axe-core finds.

Of a customer who has used nothing, of the only one, and of one among a hundred thousand.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.audit_database import Row, drain_all, insert_rows, to_ms
from drivers.audited_kit import sqlite_in
from drivers.browser import chromium, faultless, found, needs_chromium, new_context
from drivers.llm_apps import listening
from drivers.plans import plans_text
from drivers.sampled import whole
from drivers.shop import START
from drivers.usage_figures import Tables, numbers_of
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.pages import usage_page
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("in_browser")
DAYS: Final = 20
SCREENS: Final[tuple[tuple[Literal["light", "dark"], int], ...]] = (("light", 1024), ("dark", 360))
JSON: Final = {"accept": "application/json"}
ROWS_AT_ONCE: Final = 10_000


@asynccontextmanager
async def address(store_url: str, directory: Path, customers: int) -> AsyncGenerator[str]:
    """Where the page of a customer is served: one of so many, with twenty days of usage; 0: with none."""
    url, clock = sqlite_in(directory), Clock(START)
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=clock, audit_url=url) as kit:
        await drain_all(kit, url)
        write_others(url, customers - 1)
        for day in range(DAYS):
            if customers:
                await kit.record("acme", "tokens", 50 + day * 37 % 90)
            clock.advance(timedelta(days=1))
        if customers:
            await kit.consume("acme", "requests", 4)
            await kit.grants.add("acme", {"requests": 25}, grant_id="gift")
        await drain_all(kit, url)
        page = usage_page(kit, customer=lambda _: "acme", origins=["https://app.example"])
        async with listening(Starlette(routes=[Mount("/usage", app=page)])) as port:
            yield f"http://127.0.0.1:{port}/usage/"


def write_others(url: str, number: int) -> None:
    """Write usage of other customers to the audit log, without asking the store for each."""
    start_ms = to_ms(START)
    for first in range(0, number, ROWS_AT_ONCE):
        insert_rows(
            url,
            [
                Row(
                    event=f"other-{nth}",
                    meter="tokens",
                    kind="recorded",
                    customer=f"c{nth}",
                    period_start_ms=start_ms,
                    recorded_at_ms=start_ms + nth,
                    quantity=1_000,
                    occurred_at_ms=None,
                )
                for nth in range(first, min(first + ROWS_AT_ONCE, number))
            ],
        )


async def look(
    browser: Browser, url: str, charts: int, *screens: tuple[Literal["light", "dark"], int]
) -> None:
    """See that the page has no fault, draws its charts, and shows every number of its JSON."""
    async with httpx.AsyncClient(trust_env=False) as client:
        figures = (await client.get(url, headers=JSON)).json()
    for theme, width in screens:
        async with faultless(browser, url, theme, width, within=url) as page:
            assert await found(page, "document.querySelectorAll('.chart canvas').length") == charts
            assert Tables(await page.content()).numbers == numbers_of(figures)


async def use_the_keyboard(browser: Browser, url: str) -> None:
    """Tab through the page: the skip link, then every table that scrolls; to the period before, and back."""
    async with faultless(browser, url, "light", 360, within=url) as page:
        await page.keyboard.press("Tab")
        assert await found(page, "document.activeElement.className") == "skip"
        await page.keyboard.press("Enter")
        tables = await found(page, "document.querySelectorAll('.scroll').length")
        reached: list[str] = []
        for _ in range(tables):
            await page.keyboard.press("Tab")
            reached.append(await found(page, "document.activeElement.getAttribute('aria-labelledby')"))
        assert reached == ["meters-title", "other-plans", "day-1", "day-2", "rates", "grants"]
        for link in ("Previous period", "Current period"):
            await page.reload()
            await tab_to(page, link)
            async with page.expect_navigation():
                await page.keyboard.press("Enter")
        assert await page.locator("#rate-list").count() == 1


async def tab_to(page: Page, link: str) -> None:
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await found(page, "document.activeElement.textContent") == link:
            return
    pytest.fail(f"no Tab leads to {link}")


async def do_without_script(browser: Browser, url: str) -> None:
    """The tables have the figures, and no chart takes space."""
    context = await new_context(browser, java_script_enabled=False)
    page = await context.new_page()
    await page.goto(url)
    assert await page.locator(".days tbody tr").count() == 2 * (DAYS + 1)
    assert await page.locator(".chart[hidden]").count() == 2
    await context.close()


async def see_whole_rows(browser: Browser, url: str) -> None:
    """On a narrow screen no number is hidden at the side, and assistive technology still meets a table."""
    context = await new_context(browser, viewport={"width": 360, "height": 800})
    page = await context.new_page()
    await page.goto(url)
    hidden = (
        "[...document.querySelectorAll('.scroll')].filter((of) => of.scrollWidth > of.clientWidth).length"
    )
    assert await found(page, hidden) == 0
    row = page.get_by_role("table").first.get_by_role("row", name="Requests")
    assert await row.get_by_role("cell").all_inner_texts() == ["request", "4", "10", "31", "0"]
    await context.close()


MONEY: Final = plans_text("in_browser_money")


@needs_chromium
@pytest.mark.dear("a browser")
async def test_budgets_and_top_ups_in_chromium(store_url: str) -> None:
    async with MeterKit(loads(MONEY), redis_url=store_url, clock=Clock(START)) as kit, chromium() as browser:
        await kit.customers.spend_limit("acme", 2_000, per="day")
        await kit.customers.spend_limit("acme", 0, per="hour")
        await kit.grants.add("acme", {"usd": 12}, grant_id="paid")
        await kit.record("acme", "images", 30)
        page = usage_page(kit, customer=lambda _: "acme", origins=["https://app.example"])
        async with listening(Starlette(routes=[Mount("/usage", app=page)])) as port:
            url = f"http://127.0.0.1:{port}/usage/"
            for theme, width in SCREENS:
                async with faultless(browser, url, theme, width, within=url) as shown:
                    filled = "[...document.querySelectorAll('progress')].map((bar) => bar.position)"
                    assert await found(shown, filled) == [600 / 5_000, 600 / 2_000, 1]
                    told = shown.get_by_role("progressbar", name="USD 6.00 of USD 20.00")
                    assert await told.count() == 1
                    link = shown.get_by_role("link", name="Add to the balance usd")
                    assert await link.get_attribute("href") == "https://app.example/top-up"


@needs_chromium
@pytest.mark.parametrize("customers", [1, *(whole(number) for number in (0, 100_000))])
@pytest.mark.dear("a browser")
async def test_the_usage_page_in_chromium(store_url: str, tmp_path: Path, customers: int) -> None:
    async with address(store_url, tmp_path, customers) as url, chromium() as browser:
        if customers == 0:
            await look(browser, url, 0, ("dark", 1024))
        elif customers == 1:
            await look(browser, url, 2, ("light", 1024), ("dark", 360))
            await see_whole_rows(browser, url)
            await use_the_keyboard(browser, url)
            await do_without_script(browser, url)
        else:
            await look(browser, url, 2, ("light", 360))
