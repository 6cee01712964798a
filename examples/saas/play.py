"""Plays a customer's life against an emulated Stripe, months in seconds: python play.py [--keep]

Sign-up, checkout in euros, seats, an add-on, an upgrade, a payment that fails until the account is
locked, recovery, and the end. Stripe's webhooks are posted to the app, signed, each of them twice. With
--keep the account stays, and the app serves its pages until Ctrl-C.
"""

from __future__ import annotations

import asyncio
import logging
from argparse import ArgumentParser
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from app import ORIGIN, PLANS, create_app

from meterkit import MeterKit
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from fastapi import FastAPI

HOOK = f"{ORIGIN}/billing/webhooks/stripe"
SECRET = "whsec_example"  # noqa: S105 - the emulator's
OPERATOR_KEY = "operator"


class Play:
    """Acme, its customer's browser, and Stripe."""

    def __init__(
        self, kit: MeterKit, stripe: StripeEmulator, clock: Clock, browser: httpx.AsyncClient, app: FastAPI
    ) -> None:
        self.kit, self.stripe, self.clock, self.browser, self.app = kit, stripe, clock, browser, app
        self.key = ""

    async def ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        return await self.browser.request(method, path, json=body or None)

    async def questions(self, number: int) -> list[int]:
        return [
            (await self.ask("POST", "/questions", text="Will it rain?")).status_code for _ in range(number)
        ]

    async def pass_time(self, span: timedelta) -> None:
        """Have time pass at Stripe, and its events come, each twice."""
        self.clock.advance(span)
        self.stripe.advance()
        await self.webhooks()

    async def webhooks(self) -> None:
        deliveries = await self.stripe.deliver()
        await self.stripe.deliver(*(delivery.event for delivery in reversed(deliveries)))
        await self.kit.webhooks.work_off()

    async def subscription(self) -> dict[str, Any]:
        return dict((await self.ask("GET", "/billing/subscription")).json())

    def tell(self, what: str, **found: object) -> None:
        told = ", ".join(f"{name} {value}" for name, value in found.items())
        print(f"{self.clock.now():%Y-%m-%d}  {what:<44}{told}")


async def stay(play: Play) -> None:
    """Ask some questions each day, so that there is something to look at."""
    for day in range(10):
        await play.questions(3 + day * 5 % 7)
        await play.pass_time(timedelta(days=1))
    await play.kit.flush(everything=True)


async def act(play: Play) -> None:
    play.key = (await play.ask("POST", "/signup", name="acme")).json()["key"]
    play.browser.headers["authorization"] = f"Bearer {play.key}"
    play.tell("signed up, and asked four questions", answers=await play.questions(4))

    urls = {"success_url": f"{ORIGIN}/welcome", "cancel_url": f"{ORIGIN}/prices"}
    page = (await play.ask("POST", "/billing/checkout", plan="team", seats=3, currency="eur", **urls)).json()[
        "url"
    ]
    play.stripe.complete_checkout(page)
    await play.webhooks()
    found = await play.subscription()
    play.tell(
        "paid for Team at checkout", plan=found["plan"], seats=found["seats"], answers=await play.questions(2)
    )

    invited = [(await play.ask("POST", "/members", name=name)).status_code for name in ("ada", "bob", "eve")]
    play.tell("invited three", answers=invited)
    bought = (await play.ask("PUT", "/billing/subscription/seats", seats=4)).json()
    invited = [(await play.ask("POST", "/members", name="eve")).status_code]
    play.tell("bought a seat for eve", costs=bought["proration"]["net_cents"], answers=invited)

    await play.questions(5)
    await play.kit.flush(everything=True)  # What the kit does in the background where it runs for real.
    used = (await play.ask("GET", "/billing/usage")).json()["meters"]["questions"]
    play.tell("asked seven, five are included", overage=used["overage"], delivered=used["delivered"])

    bought = (await play.ask("PUT", "/billing/subscription/addons", more_questions=1)).json()
    included = (await play.ask("GET", "/billing/usage")).json()["meters"]["questions"]["included"]
    play.tell("bought 20 more questions", costs=bought["proration"]["net_cents"], included=included)

    await play.pass_time(timedelta(days=10))
    preview = (await play.ask("GET", "/billing/subscription/preview?plan=company")).json()["proration"]
    changed = (await play.ask("PUT", "/billing/subscription/plan", plan="company")).json()
    found = changed["subscription"]
    play.tell(
        "upgraded to Company", preview=preview["net_cents"], plan=found["plan"], ended=changed["ended_addons"]
    )

    owner = (await play.kit.customers.get("acme")).stripe_customer or ""
    play.stripe.fail_payments(owner)
    for days in (21, 3, 4, 8):
        await play.pass_time(timedelta(days=days, hours=2))
        found = await play.subscription()
        answers = [*await play.questions(1), (await play.ask("GET", "/reports")).status_code]
        play.tell("the card is declined", status=found["status"], access=found["access"], answers=answers)

    page = (await play.ask("POST", "/billing/portal", return_url=f"{ORIGIN}/account")).json()["url"]
    play.stripe.mend_payments(owner)
    play.stripe.use_portal(page, "mend_payment")
    play.stripe.use_portal(page, "pay")
    await play.webhooks()
    found = await play.subscription()
    answers = [*await play.questions(1), (await play.ask("GET", "/reports")).status_code]
    play.tell("paid with another card", status=found["status"], access=found["access"], answers=answers)


async def leave(play: Play) -> None:
    ended = (await play.ask("POST", "/billing/subscription/cancel", immediately=False)).json()["subscription"]
    play.tell("canceled with the period", ends=ended["current_period_end"][:10])
    await play.pass_time(timedelta(days=32))
    found = await play.subscription()
    answers = [*await play.questions(4), (await play.ask("GET", "/reports")).status_code]
    play.tell("the period is over", status=found["status"], answers=answers)
    for invoice in reversed((await play.ask("GET", "/billing/invoices")).json()):
        total = Decimal(invoice["total_cents"]).scaleb(-2)
        print(
            f"{invoice['created_at'][:10]}  invoice of {total:>7} {invoice['currency']}, {invoice['status']}"
        )


async def serve_pages(play: Play, background: MeterKit, port: int) -> None:
    """Serve the app until Ctrl-C; in the background everything runs that runs beside a real app."""
    address = f"http://127.0.0.1:{port}"
    server = uvicorn.Server(uvicorn.Config(play.app, port=port, log_level="warning", lifespan="off"))
    async with background:
        print(f"\nThe clock stands at {play.clock.now():%Y-%m-%d}. To sign in: {address}/signin")
        print(f"as acme, with the key {play.key}; then see {address}/usage/")
        print(f"as an operator, with the key {OPERATOR_KEY}; then see {address}/operator/", flush=True)
        await server.serve()


async def main(parts: AsyncExitStack, *, keep: bool, port: int) -> None:
    logging.disable()  # What is declined on purpose need not be warned of.
    clock = Clock(datetime(2030, 1, 10, 12, tzinfo=UTC))
    # As set up in the Dashboard: what is not paid stays past due.
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False, after_retries="past_due")
    folder = parts.enter_context(TemporaryDirectory())
    settings: dict[str, Any] = {
        "clock": clock,
        "redis_url": "memory://",
        "stripe_api_key": "sk_test_example",
        "stripe_api_base": parts.enter_context(stripe.running()),
        "stripe_webhook_secret": SECRET,
        "audit_url": f"sqlite:///{folder}/audit.db" if keep else None,
    }
    kit = MeterKit(PLANS, flush=False, **settings)
    stripe.add_plans(kit.catalog)
    app = create_app(kit, OPERATOR_KEY)
    stripe.add_endpoint(HOOK, secret=SECRET, app=app)
    browser = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ORIGIN)
    await parts.enter_async_context(kit)
    play = Play(kit, stripe, clock, await parts.enter_async_context(browser), app)
    if keep:
        await kit.revenue.snapshot()  # From the first day with a snapshot on, each day gets one.
    await act(play)
    if not keep:
        await leave(play)
    else:
        await stay(play)
        await serve_pages(play, MeterKit(PLANS, **settings), port)


async def run(*, keep: bool, port: int) -> None:
    async with AsyncExitStack() as parts:
        await main(parts, keep=keep, port=port)


if __name__ == "__main__":
    options = ArgumentParser(description=__doc__)
    options.add_argument(
        "--keep", action="store_true", help="the account stays; then serve the pages until Ctrl-C"
    )
    options.add_argument("--port", type=int, default=8000, help="where --keep serves them")
    with suppress(KeyboardInterrupt):
        asyncio.run(run(**vars(options.parse_args())))
