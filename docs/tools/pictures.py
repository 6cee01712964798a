"""Pictures of the pages that meterkit serves, taken with Chromium: python docs/tools/pictures.py DIRECTORY [--anew | --only PAGE]."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, async_playwright
from starlette.applications import Starlette
from starlette.routing import Mount

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.insights.audit.draining import open_drainer
from meterkit.insights.overview.overview import CustomerOverview
from meterkit.insights.revenue.revenue import Revenue
from meterkit.pages import operator_pages, usage_page
from meterkit.testing import Clock, StripeEmulator
from stripe_emulator.server import running

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".cache" / "pictures"
CHROMIUM = os.environ.get("METERKIT_CHROMIUM") or shutil.which("chromium")
THEMES = ("light", "dark")
PAGES = ("usage", "usage-summary", "operator")
NAMES = tuple(f"{page}-{theme}" for page in PAGES for theme in THEMES)
WIDTH, HEIGHTS = 880, {"usage": 1320, "usage-summary": 985, "operator": 1900}
START = datetime(2031, 5, 1, tzinfo=UTC)
DAYS = 81
PLANS = """\
schema: 1
currency: usd
default_plan: free
billing: {portal_url: "https://app.example/billing"}
meters:
  requests: {unit: request}
  tokens:   {unit: token, name: Tokens, stripe: {event_name: ai_tokens}}
  seats:    {unit: seat, kind: gauge}
plans:
  free:
    name: Free
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {included: 100, overage: deny}
      tokens:   {included: 10_000, overage: deny}
      seats:    {included: 1, overage: deny}
  team:
    name: Team
    rank: 10
    price: {amount_cents: 2900, interval: month, stripe_price: price_team}
    budget: {amount_cents: 5000}
    subjects:
      user: {tokens: {included: 120_000}}
    meters:
      requests: {rate: 100/minute, included: 5_000, overage: deny}
      tokens:   {included: 100_000, overage: {bill: {per: 1000, amount_cents: 20}}}
      seats:    {included: 5, overage: deny}
  company:
    extends: team
    name: Company
    rank: 20
    price: {amount_cents: 9900, interval: month, stripe_price: price_company}
    meters:
      tokens:   {included: 1_000_000}
      seats:    {included: 20}
"""
CHANGED, GRANTED, LEFT = 40, 62, 65  # days on which a customer changes the plan, gets a grant, or leaves
USERS = {"ana": 5, "ben": 3, "cleo": 2}  # how many tenths each user of acme has of its tokens
CUSTOMERS = ("acme", "birch", "cedar", "delta", "ember", "fjord", "grove", "hazel", "inlet", "jetty")


async def lived(kit: MeterKit, clock: Clock, stripe: StripeEmulator) -> None:
    """Customers subscribe, use something, change their plans and leave."""
    chance = random.Random(7)  # noqa: S311 - the same pictures each time
    for day in range(DAYS):
        if day % 7 == 0 and (nth := day // 7) < len(CUSTOMERS):
            await subscribe(kit, stripe, CUSTOMERS[nth], ("team", "team", "company")[nth % 3])
        if day == CHANGED:
            await kit.subscriptions.change_plan("birch", "company")
        if day == GRANTED:
            await kit.grants.add("acme", {"tokens": 100_000}, grant_id="welcome")
        if day == LEFT:
            await kit.subscriptions.cancel("delta", immediately=True)
        weekend = clock.now().weekday() in {5, 6}
        for nth, name in enumerate(CUSTOMERS[: day // 7 + 1]):
            most = (6_000 if weekend else 14_000) // (nth + 1)
            tokens = chance.randrange(most // 2, most)
            for user, tenths in (USERS if name == "acme" else {"": 10}).items():
                subjects = {"user": user} if user else None
                await kit.record(name, "tokens", tokens * tenths // 10, subjects=subjects)
            await kit.record(name, "requests", chance.randrange(20, 120))
        await kit.flush(everything=True)
        await open_drainer(kit.store, kit.settings).drain()
        clock.advance(timedelta(days=1))
        stripe.advance()
        for name in CUSTOMERS[: day // 7 + 1]:
            found = await kit.subscriptions.get(name)
            if found is not None and found.current_period_end <= clock.now():
                await kit.subscriptions.sync(name)
        await Revenue(kit.store, kit.settings).snapshot()
    await kit.gauges.set("acme", "seats", 4)
    await kit.customers.set_plan("kiosk", "team")
    await kit.record("kiosk", "tokens", 130_000)
    await kit.customers.set_status("late", "past_due")
    for _ in range(38):
        await kit.consume("acme", "requests")
    await kit.flush(everything=True)
    await open_drainer(kit.store, kit.settings).drain()
    await CustomerOverview(kit.store, kit.settings).snapshot()


async def subscribe(kit: MeterKit, stripe: StripeEmulator, customer: str, plan: str) -> None:
    """A new customer pays on the checkout page."""
    urls = {"success_url": "https://app.example/", "cancel_url": "https://app.example/"}
    page = await kit.subscriptions.checkout(customer, plan, **urls)
    stripe.complete_checkout(page.id)
    await kit.subscriptions.sync(customer)


async def taken() -> dict[str, bytes]:
    """All pictures by name."""
    clock = Clock(START)
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False)
    catalog = loads(PLANS)
    stripe.add_plans(catalog)
    with tempfile.TemporaryDirectory(prefix="mk") as directory, stripe.running() as url:
        kit = MeterKit(
            catalog,
            redis_url="memory://",
            clock=clock,
            stripe_api_key="sk_test_pictures",
            stripe_api_base=url,
            flush=False,
            audit_url=f"sqlite:///{directory}/audit.db",
        )
        async with kit:
            await lived(kit, clock, stripe)
            app = Starlette(
                routes=[
                    Mount("/usage", app=usage_page(kit, customer=lambda _: "acme", origins=["http://app"])),
                    Mount("/operator", app=operator_pages(kit, allowed=lambda _: "ada@app.example")),
                ]
            )
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                with running(app, host="127.0.0.1", port=0) as address:
                    return {name: await photograph(browser, address, name) for name in NAMES}


async def photograph(browser: Browser, address: str, name: str) -> bytes:
    """The upper part of a page as PNG."""
    page_name, _, theme = name.rpartition("-")
    scheme: Any = theme
    viewport: Any = {"width": WIDTH, "height": HEIGHTS[page_name]}
    context = await browser.new_context(color_scheme=scheme, viewport=viewport, reduced_motion="reduce")
    page = await context.new_page()
    await page.goto(f"{address}/{page_name.partition('-')[0]}/", wait_until="networkidle")
    return await page.screenshot()


@cache
def made() -> dict[str, bytes]:
    """All pictures by name, taken again only where the code has changed; none where there is no Chromium."""
    if CHROMIUM is None:
        logging.getLogger("mkdocs").info("there is no Chromium: the pages are built without pictures")
        return {}
    found = sha256()
    for path in (Path(__file__), *sorted((ROOT / "src").rglob("*"))):
        if path.suffix in {".py", ".lua", ".html", ".css", ".js"}:
            found.update(path.read_bytes())
    kept = KEPT / found.hexdigest()
    if not kept.is_dir():
        KEPT.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=KEPT.parent))
        for name, picture in asyncio.run(taken()).items():
            (unfinished / f"{name}.png").write_bytes(picture)
        earlier = [path for path in KEPT.iterdir() if path != kept]
        try:
            unfinished.rename(kept)
        except OSError:  # Another build was quicker.
            shutil.rmtree(unfinished)
        for path in earlier:
            shutil.rmtree(path, ignore_errors=True)
    return {name: (kept / f"{name}.png").read_bytes() for name in NAMES}


if __name__ == "__main__":
    only = sys.argv[-1] if "--only" in sys.argv else ""
    for name, picture in (asyncio.run(taken()) if "--anew" in sys.argv else made()).items():
        if not only or name in {f"{only}-{theme}" for theme in THEMES}:
            Path(sys.argv[1], f"{name}.png").write_bytes(picture)
