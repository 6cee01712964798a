"""The operator pages in Chromium with no customer, one, and a hundred thousand."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.audited_kit import sqlite_in
from drivers.browser import check, chromium, faultless, found, needs_chromium
from drivers.llm_apps import listening
from drivers.operator_pages import JSON, flat, selling, write_snapshot
from drivers.redrives import kill_message, redrives
from drivers.sampled import whole
from meterkit.pages import operator_pages

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from playwright.async_api import Browser, Page

    from meterkit import MeterKit

pytestmark = [pytest.mark.anyio, needs_chromium, pytest.mark.dear("a browser")]

NUMBERS: Final = """Object.fromEntries([...document.querySelectorAll("[data-figure]")].map(
  (cell) => [cell.dataset.figure, cell.querySelector("data")?.value ?? null]))"""
LINKS: Final = """[...document.querySelectorAll("[data-figure]:has(a)")].map((cell) =>
  [cell.dataset.figure, cell.querySelector("a").getAttribute("href"), cell.querySelector("data").value])"""
FOCUS: Final = (
    """((at) => [at.getAttribute("aria-label") ?? "", at.id, at.textContent])(document.activeElement)"""
)
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


async def look(browser: Browser, url: str, *screens: tuple[Literal["light", "dark"], int]) -> None:
    """Every number that the page shows is the one of its JSON, on each screen."""
    async with httpx.AsyncClient(trust_env=False) as client:
        figures = flat((await client.get(url, headers=JSON)).json())
    for theme, width in screens:
        async with faultless(browser, url, theme, width, within=url) as page:
            shown = await found(page, NUMBERS)
            numbers = {name: None if value is None else float(value) for name, value in shown.items()}
            assert numbers == figures


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
    """Press Tab until the focus is on what is called so."""
    for _ in range(30):
        await page.keyboard.press("Tab")
        if name in await found(page, FOCUS):
            return
    pytest.fail(f"no Tab leads to {name}")


async def redrive_by_keyboard(browser: Browser, url: str) -> None:
    """From the overview to a dead message, which is redriven with a reason; no mouse."""
    async with faultless(browser, url, "light", 1024, within=url) as page:
        await page.keyboard.press("Tab")
        assert await found(page, "document.activeElement.className") == "skip"
        await tab_to(page, "Messages to customers")
        await page.keyboard.press("Enter")
        await tab_to(page, "Dead messages: open the list")
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
        await look(browser, url, ("light", 1024), ("dark", 360))
        if customers == 1:
            await look(browser, url, ("light", 360), ("dark", 1024))
        await click_through(browser, url)
        if customers > ROWS_A_PAGE:
            await turn_pages(browser, url)


async def test_a_dead_message_is_redriven_without_a_mouse(store_url: str, tmp_path: Path) -> None:
    async with served(store_url, tmp_path, 1) as (kit, url), chromium() as browser:
        await kill_message(kit, "msg_1", "c000000")
        await kit.customers.set_plan("c000000", "pro")
        await redrive_by_keyboard(browser, url)
        (entry,) = await redrives(kit, "c000000")
        assert entry.after == "redriven: the receiver is back"
