"""Pages in Chromium: what axe-core, the page's own policy and its requests to other hosts say of them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.resources import files
from shutil import which
from typing import Any, Final, Literal

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

CHROMIUM: Final = os.environ.get("METERKIT_CHROMIUM") or which("chromium")
AXE: Final = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
VIOLATIONS: Final = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""
_PATIENCE_MS: Final = 300_000
"""Chromium has more threads than a busy machine has cores. By default Playwright waits thirty seconds."""
needs_chromium: Final = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium; .ci/chromium unpacks one"
)


async def new_context(browser: Browser, **options: Any) -> BrowserContext:
    context = await browser.new_context(**options)
    context.set_default_timeout(_PATIENCE_MS)
    return context


@asynccontextmanager
async def chromium() -> AsyncGenerator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=_PATIENCE_MS
        )
        try:
            yield browser
        finally:
            await browser.close()


async def found(page: Page, script: str) -> Any:
    """What a script of the test gives; the page's policy does not bind it."""
    result: Any = await page.evaluate(script)
    return result


@asynccontextmanager
async def faultless(
    browser: Browser, url: str, theme: Literal["light", "dark"], width: int, *, within: str
) -> AsyncGenerator[Page]:
    """A page, and those that the test goes on to: they log nothing, and ask no address but ``within``.

    The last one passes :func:`check`.
    """
    context = await new_context(browser, color_scheme=theme, viewport={"width": width, "height": 800})
    page = await context.new_page()
    await page.add_init_script(VIOLATIONS)
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(url)
    yield page
    await check(page, width)
    assert told == []
    assert asked
    assert [one for one in asked if not one.startswith(within)] == []
    await context.close()


async def check(page: Page, width: int) -> None:
    """See that the page that is open fits the screen, and breaks no rule."""
    assert await found(page, "document.documentElement.scrollWidth") <= width
    assert await found(page, "violations") == []
    rules = await found(
        page, f"(async () => {{{AXE}; return (await axe.run()).violations.map(v => v.id)}})()"
    )
    assert rules == []
