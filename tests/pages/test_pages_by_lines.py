"""Pages where invoice lines, not meter events, bill usage."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.delivery import deliver
from drivers.operator_pages import make_snapshot, pages_of
from drivers.plans import plans_text
from drivers.served_traffic import Call, simulated
from drivers.shop import START, sell_nothing, shop
from drivers.usage_figures import JSON, page_of
from drivers.usage_lines import CATALOG, end_period

pytestmark = pytest.mark.anyio

PLANS = plans_text("invoice_lines")


async def test_pages_speak_of_lines(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing, audit_url=url) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        at.clock.advance(timedelta(days=5))  # The tiles show thirty days.
        await at.kit.record("acme", "words", 126)
        await drain_all(at.kit, url)
        async with page_of(at.kit) as customer:
            figures = (await customer.get("/", headers=JSON)).json()
            page = (await customer.get("/")).text
        words = figures["usage"]["meters"]["words"]
        assert (words["pending"], words["delivered"], figures["cost"]["overage_cents"]) == (26, 0, 104)
        assert "estimated" not in words["price"]
        assert (figures["cost"]["plan_cents"], figures["cost"]["unpriced"]) == (2900, [])
        assert 'value="104"' in page

        await end_period(at)
        at.emulator.fail_next("error", status=403, path="*")
        await deliver(at.kit)
        await make_snapshot(at.kit)
        async with pages_of(at.kit) as operator:
            figures = (await operator.get("/", headers=JSON)).json()
            page = (await operator.get("/")).text
        assert figures["activity"] == {"2031-06-06": {"words": 126}}
        assert figures["outbox"]["invoice_items"] == 1
        tile = re.search(r'<h3>Invoice lines waiting</h3>\s*<p class="big"><a href="outbox">(\d+)</a>', page)
        assert tile is not None
        assert tile[1] == "1"
        assert "Meter events delivered" not in page


async def test_usage_at_an_overridden_price_is_forecast(store_url: str, tmp_path: Path) -> None:
    """The forecast and a simulation had the plan's price beside it: $0.04 a word for 0.03."""
    url, price = sqlite_in(tmp_path), {"words": {"overage": {"bill": {"per": 1, "amount_cents": 3}}}}
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing, audit_url=url) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.customers.override("acme", price)
        at.clock.advance(timedelta(minutes=1))
        await at.kit.record("acme", "words", 150)
        await drain_all(at.kit, url)
        at.clock.set(START + timedelta(days=10))
        async with page_of(at.kit) as customer:
            figures = (await customer.get("/", headers=JSON)).json()
        # Fifteen words a day for the other twenty days.
        assert (figures["cost"]["overage_cents"], figures["forecast"]["meters"]["words"][0]) == (150, 450)
        assert figures["forecast"]["cost_cents"][0] == 2900 + 350 * 3
        (found,) = (await simulated(at.kit, url, PLANS, [Call(START, "acme", "", (0, 0))])).customers
        assert (found.now_cents, found.then_cents) == (2900 + 150, 2900 + 150)


async def test_a_redriven_line_stands_in_the_ledger(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 126)
        await end_period(at)
        at.emulator.fail_next("error", status=403, path="*")
        await deliver(at.kit)
        (line,) = await at.kit.outbox.items.list()
        async with pages_of(at.kit) as operator:
            for state, listed in (("", [line.identifier]), ("queued", [line.identifier]), ("parked", [])):
                rows = (await operator.get(f"/outbox.json?of={state}")).json()
                assert [row["intent"] for row in rows] == listed
        form = {"queue": "outbox", "id": line.identifier, "reason": "Stripe is back"}
        async with pages_of(at.kit) as operator:
            headers = {**JSON, "sec-fetch-site": "same-origin"}
            answer = await operator.post("/redrive", data=form, headers=headers)
        assert answer.json() == {"redriven": [line.identifier], "refused": {}}
        (entry,) = [one for one in await at.kit.customers.history("acme") if one.kind == "redrive"]
        assert (entry.before, entry.after, entry.cause) == (
            f"queued: {line.identifier}",
            "redriven: Stripe is back",
            "operator ada",
        )
