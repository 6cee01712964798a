"""Pages in Chromium: themes, 360 px, keyboard, no script, axe-core; with no customer, one, and 100,000."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

import httpx
import pytest
from playwright.async_api import Browser, Page
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.audit_database import AuditRow, drain_all, insert_rows, to_ms
from drivers.audited_kit import sqlite_in
from drivers.browser import check, chromium, faultless, found, needs_chromium, new_context
from drivers.llm_apps import listening
from drivers.operator_pages import flat, make_snapshot, selling, write_snapshot
from drivers.plans import plans_text
from drivers.redrives import kill_message, redrives
from drivers.sampled import whole
from drivers.shop import START
from drivers.usage_figures import JSON, Tables, numbers_of, serving_acme
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.pages import operator_pages
from meterkit.testing import Clock

pytestmark = [pytest.mark.anyio, needs_chromium, pytest.mark.dear("a browser")]

PLANS: Final = plans_text("in_browser")
DAYS: Final = 20
OPEN_ALL: Final = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
FOLD: Final = """[...document.querySelectorAll(".top .big, #forecast")].slice(0, 3).map(
  (part) => part.getBoundingClientRect().bottom <= 740)"""
SCREENS: Final[tuple[tuple[Literal["light", "dark"], int], ...]] = (
    ("light", 1280),
    ("dark", 360),
    ("light", 360),
    ("dark", 1280),
)
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
        async with serving_acme(kit) as address:
            yield address


def write_others(url: str, number: int) -> None:
    """Write usage of other customers to the audit log, without asking the store for each."""
    start_ms = to_ms(START)
    for first in range(0, number, ROWS_AT_ONCE):
        numbers = range(first, min(first + ROWS_AT_ONCE, number))
        rows = [
            AuditRow(f"other-{n}", "tokens", "recorded", f"c{n}", start_ms, start_ms + n, 1_000)
            for n in numbers
        ]
        insert_rows(url, rows)


async def look(
    browser: Browser, url: str, charts: int, *screens: tuple[Literal["light", "dark"], int]
) -> None:
    """See that the page has no fault, draws its charts, and shows every number of its JSON.

    Cost, forecast and the first meter are seen without scrolling.
    """
    async with httpx.AsyncClient(trust_env=False) as client:
        figures = (await client.get(url, headers=JSON)).json()
    for theme, width in screens:
        async with faultless(browser, url, theme, width, within=url) as page:
            assert await found(page, "document.querySelectorAll('.chart canvas').length") == charts
            assert await page.get_by_text("The line in the chart").locator("visible=true").count() == charts
            assert Tables(await page.content()).numbers == numbers_of(figures)
            assert await found(page, FOLD) == [True] * 3
            await found(page, OPEN_ALL)


async def use_the_keyboard(browser: Browser, url: str) -> None:
    """Tab through the page: the skip link, then each part, which Enter opens; a period back and forth."""
    async with faultless(browser, url, "light", 360, within=url) as page:
        await page.keyboard.press("Tab")
        assert await found(page, "document.activeElement.className") == "skip"
        await page.keyboard.press("Enter")
        parts = await found(page, "document.querySelectorAll('summary').length")
        reached: list[str] = []
        for _ in range(parts):
            await page.keyboard.press("Tab")
            assert await found(page, "document.activeElement.tagName") == "SUMMARY"
            await page.keyboard.press("Enter")
            if await found(page, "document.activeElement.parentNode.querySelector('.scroll') !== null"):
                await page.keyboard.press("Tab")
                reached.append(await found(page, "document.activeElement.getAttribute('aria-labelledby')"))
        assert reached == ["day-1", "day-2", "meters-title", "other-plans", "rates", "grants"]
        for link in ("Previous period", "Current period"):
            await page.reload()
            await tab_to(page, link)
            async with page.expect_navigation():
                await page.keyboard.press("Enter")
        assert await page.locator("#rate-list").count() == 1


async def do_without_script(browser: Browser, url: str) -> None:
    """The tables have the figures, and no chart takes space or is spoken of."""
    context = await new_context(browser, java_script_enabled=False)
    page = await context.new_page()
    await page.goto(url)
    assert await page.locator(".days tbody tr").count() == 2 * (DAYS + 1)
    assert await page.locator(".chart[hidden]").count() == 2
    assert await page.get_by_text("The line in the chart").locator("visible=true").count() == 0
    await context.close()


async def see_whole_rows(browser: Browser, url: str) -> None:
    """On a narrow screen no number is hidden at the side, and assistive technology still meets a table."""
    context = await new_context(browser, viewport={"width": 360, "height": 800})
    page = await context.new_page()
    await page.goto(url)
    await found(page, OPEN_ALL)
    tables = "[...document.querySelectorAll('.scroll')]"
    assert await found(page, f"{tables}.filter((of) => of.scrollWidth > of.clientWidth).length") == 0
    row = page.locator("#meters[role=table]").get_by_role("row", name="Requests")
    assert await row.get_by_role("cell").all_inner_texts() == ["request", "4", "10", "31", "0"]
    await context.close()


MONEY: Final = plans_text("in_browser_money")

LEVELS: Final = """[...document.querySelectorAll("progress + p .level")].map((of) => [of.textContent,
  getComputedStyle(of).color === getComputedStyle(of.closest("p").previousElementSibling).accentColor])"""


@pytest.mark.whole
async def test_budgets_and_top_ups_in_chromium(store_url: str) -> None:
    async with MeterKit(loads(MONEY), redis_url=store_url, clock=Clock(START)) as kit, chromium() as browser:
        await kit.customers.spend_limit("acme", 2_000, per="day")
        await kit.customers.spend_limit("acme", 0, per="hour")
        await kit.grants.add("acme", {"usd": 12}, grant_id="paid")
        await kit.record("acme", "images", 30, subjects={"user": "ana", "team": "red"})
        async with serving_acme(kit) as url:
            for theme, width in SCREENS:
                async with faultless(browser, url, theme, width, within=url) as shown:
                    filled = "[...document.querySelectorAll('progress')].map((bar) => bar.position)"
                    assert await found(shown, filled) == [600 / 5_000, 600 / 2_000, 1]
                    # F-233: in words, and near a limit in the colour of the bar.
                    words = [["12 % used", False], ["30 % used", False], ["100 %: used up", True]]
                    assert await found(shown, LEVELS) == words
                    assert await found(shown, FOLD) == [True] * 3
                    told = shown.get_by_role("progressbar", name="$6.00 of $20.00")
                    assert await told.count() == 1
                    link = shown.get_by_role("link", name="Top up the balance")
                    assert await link.get_attribute("href") == "https://app.example/top-up"


@pytest.mark.parametrize("customers", [1, *(whole(number) for number in (0, 100_000))])
async def test_the_usage_page_in_chromium(store_url: str, tmp_path: Path, customers: int) -> None:
    async with address(store_url, tmp_path, customers) as url, chromium() as browser:
        if customers == 0:
            await look(browser, url, 0, ("dark", 1280))
        elif customers == 1:
            await look(browser, url, 2, ("light", 1280), ("dark", 360))
            await see_whole_rows(browser, url)
            await use_the_keyboard(browser, url)
            await do_without_script(browser, url)
        else:
            await look(browser, url, 2, ("light", 360))


NUMBERS: Final = """Object.fromEntries([...document.querySelectorAll("[data-figure]")].map(
  (cell) => [cell.dataset.figure, cell.querySelector("data")?.value ?? null]))"""
LINKS: Final = """[...document.querySelectorAll("[data-figure]:has(a)")].map((cell) =>
  [cell.dataset.figure, cell.querySelector("a").getAttribute("href"), cell.querySelector("data").value])"""
FOCUS: Final = (
    """((at) => [at.getAttribute("aria-label") ?? "", at.id, at.textContent])(document.activeElement)"""
)
ATTENTION: Final = """["#attention", ".items > li > p + p"].map(
  (part) => document.querySelector(part).getBoundingClientRect().bottom <= 800)"""
ROWS: Final = "document.querySelectorAll('#rows tbody tr').length"
ROWS_A_PAGE: Final = 100
WIDTH: Final = 360


@asynccontextmanager
async def served(store_url: str, directory: Path, customers: int) -> AsyncGenerator[tuple[MeterKit, str]]:
    """The pages of an operator over a snapshot of so many customers; their address."""
    async with selling(store_url, directory) as kit:
        await write_snapshot(kit, sqlite_in(directory), customers)
        app = Starlette(routes=[Mount("/operator", app=operator_pages(kit, allowed=lambda _: "ada"))])
        async with listening(app) as port:
            yield kit, f"http://127.0.0.1:{port}/operator/"


async def look_at_figures(browser: Browser, url: str, *screens: tuple[Literal["light", "dark"], int]) -> None:
    """Every number that the page shows is the one of its JSON, on each screen."""
    async with httpx.AsyncClient(trust_env=False) as client:
        figures = flat((await client.get(url, headers=JSON)).json())
    for theme, width in screens:
        async with faultless(browser, url, theme, width, within=url) as page:
            shown = await found(page, NUMBERS)
            numbers = {name: None if value is None else float(value) for name, value in shown.items()}
            assert numbers == figures
            if width > WIDTH:
                assert await found(page, ATTENTION) == [True] * 2


async def click_through(browser: Browser, url: str) -> None:
    """Each figure opens a list: of so many rows, where it counts them. Each kind of list has no fault."""
    async with faultless(browser, url, "light", WIDTH, within=url) as page:
        links = await found(page, LINKS)
        seen = set[str]()
        for name, href, value in links:
            kind = f"growth {href.partition('?')[0]}" if name.startswith("growth") else href
            if kind in seen:
                continue
            seen.add(kind)
            await page.goto(f"{url}{href}")
            rows = await found(page, ROWS)
            if name.startswith(("growth", "delivered", "plans_")):
                assert rows > 0, name
            elif not name.startswith("revenue"):
                assert rows == min(int(value), ROWS_A_PAGE), name
            if rows == 1:  # A hundred rows are checked once: they take axe-core a while.
                await check(page, WIDTH)
        assert len(seen) > 10


async def turn_pages(browser: Browser, url: str) -> None:
    """A list of more than a hundred rows goes on on the next page."""
    async with faultless(browser, f"{url}all", "dark", 360, within=url) as page:
        first = await page.locator("#rows tbody th").first.inner_text()
        await page.get_by_role("link", name="Next page").click()
        assert await page.locator("#rows tbody th").first.inner_text() > first
        await page.get_by_role("link", name="First page").click()
        assert await page.locator("#rows tbody th").first.inner_text() == first


async def tab_to(page: Page, name: str) -> None:
    for _ in range(30):
        await page.keyboard.press("Tab")
        if name in await found(page, FOCUS):
            return
    pytest.fail(f"no Tab leads to {name}")


async def redrive_by_keyboard(browser: Browser, url: str) -> None:
    """From the overview to a dead message, which is redriven with a reason; no mouse."""
    async with faultless(browser, url, "light", 1280, within=url) as page:
        await page.keyboard.press("Tab")
        assert await found(page, "document.activeElement.className") == "skip"
        await tab_to(page, "Messages to customers")
        await page.keyboard.press("Enter")
        await tab_to(page, "Dead messages: 1, open the list")
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
        await tab_to(page, "Select msg_1")
        await page.keyboard.press("Space")
        await tab_to(page, "reason")
        await page.keyboard.type("the receiver is back")
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
        assert await page.locator("h1").inner_text() == "Redriven: 1"


@pytest.mark.parametrize("customers", [1, *(whole(number) for number in (0, 101, 100_000))])
async def test_the_operator_pages_in_chromium(store_url: str, tmp_path: Path, customers: int) -> None:
    async with served(store_url, tmp_path, customers) as (_, url), chromium() as browser:
        await look_at_figures(browser, url, ("light", 1280), ("dark", 360))
        if customers == 1:
            await look_at_figures(browser, url, ("light", 360), ("dark", 1280))
        await click_through(browser, url)
        if customers > ROWS_A_PAGE:
            await turn_pages(browser, url)


@pytest.mark.whole
async def test_a_long_id_pushes_no_column_off_the_screen(store_url: str, tmp_path: Path) -> None:
    async with served(store_url, tmp_path, 1) as (kit, url), chromium() as browser:
        await kit.record("x" * 256, "requests", 12)
        await make_snapshot(kit)
        for path in ("all", "near"):
            async with faultless(browser, f"{url}{path}", "light", 1280, within=url) as page:
                table = "document.querySelector('.scroll:has(> #rows)')"
                assert await found(page, f"{table}.scrollWidth - {table}.clientWidth") == 0


@pytest.mark.whole
async def test_a_dead_message_is_redriven_without_a_mouse(store_url: str, tmp_path: Path) -> None:
    async with served(store_url, tmp_path, 1) as (kit, url), chromium() as browser:
        await kill_message(kit, "msg_1", "c000000")
        await kit.customers.set_plan("c000000", "pro")
        await redrive_by_keyboard(browser, url)
        (entry,) = await redrives(kit, "c000000")
        assert entry.after == "redriven: the receiver is back"
