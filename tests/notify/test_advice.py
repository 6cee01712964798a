"""What e-mails and the usage page advise a customer who may do less than before."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import pytest

from drivers.messages import NOW, Mailbox, contact, kit_of, pass_over, storage_watch
from drivers.usage_figures import page_of
from drivers.webhooks import DAY, Hooked, hooked
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

PORTAL: Final = "https://app.example/billing"
PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters: {tokens: {unit: token}, storage: {unit: byte, kind: gauge}}
billing: {portal_url: "https://app.example/billing"}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
    models: {"*": {output_tokens: 1 per 1_000_000}}
    low_balance: 50%
notify:
  email: {events: [access.changed, credits.low, storage.over], from: billing@example.com}
plans:
  free:
    name: Free
    price: {amount_cents: 0, interval: month}
    meters: {storage: {included: 1_000, overage: {percent: 10, grace: 7d}}}
  pro: {rank: 10, price: {amount_cents: 1000, interval: month, stripe_price: price_pro}}
"""


@asynccontextmanager
async def subscribed(box: Mailbox, *, card: str | None, **params: Any) -> AsyncGenerator[Hooked]:
    given: dict[str, Any] = {"catalog": loads(PLANS), "smtp_url": box.url, "contact": contact}
    async with hooked("memory://", clock=Clock(NOW), **given) as at:
        at.customer(card=card)
        await at.subscribe(**params)
        await at.settle()
        yield at


def written(box: Mailbox) -> list[str]:
    """The sentences of all e-mails so far, without their greeting."""
    parts = [mail.get_body(("plain",)) for mail in box.mails]
    return [" ".join(part.get_content().split()).partition(", ")[2] for part in parts if part is not None]


@pytest.mark.parametrize("pause", ["trial", "collection"])
async def test_who_is_paused_is_told_of_no_unpaid_invoice(box: Mailbox, pause: str) -> None:
    end: Any = {"trial_settings": {"end_behavior": {"missing_payment_method": "pause"}}}
    trial: dict[str, Any] = {"trial_period_days": 3, **end} if pause == "trial" else {}
    async with subscribed(box, card=None if trial else "pm_card_visa", **trial) as at:
        if not trial:
            (found,) = (await at.client.v1.subscriptions.list_async()).data
            void: Any = {"pause_collection": {"behavior": "void"}}
            await at.client.v1.subscriptions.update_async(found.id, void)
        await at.live(4 * DAY if trial else 31 * DAY)
        await pass_over(at.kit, "email")
        assert (await at.kit.usage("acme"))["access"] == "restricted"
        because = "our access is restricted, because your subscription is paused."
        assert written(box) == [f"y{because} The billing page: {PORTAL}"]
        async with page_of(at.kit) as client:
            assert f"Y{because.replace('your', 'the')} <a" in (await client.get("/")).text


async def test_who_lost_a_plan_is_told_what_is_full(box: Mailbox) -> None:
    async with subscribed(box, card="pm_card_visa") as at:
        at.emulator.fail_payments("cus_acme")
        for days in (31, *[2] * 9):
            await at.live(days * DAY)
            await pass_over(at.kit, "email")
        assert (await at.kit.usage("acme"))["status"] == "canceled"
    assert "you have full access again, on the plan Free." in written(box)


async def test_a_balance_in_money_is_mailed_as_money(box: Mailbox) -> None:
    plans = PLANS.replace("{", "{{").replace("}", "}}")
    async with kit_of("memory://", Clock(NOW), plans=plans, smtp_url=box.url) as kit:
        await kit.grants.add("acme", {"usd": 10}, grant_id="gift")
        await kit.record("acme", "usd_charged", 5_040_000)
        assert (await kit.usage("acme"))["balance_micros"] == {"usd": 4_960_000}
        await pass_over(kit, "email")
    (mail,) = box.mails
    assert (mail["Subject"], written(box)) == ("$4.96 left", ["you have $4.96 left."])


async def test_storage_above_its_tolerance_is_full_now(box: Mailbox) -> None:
    clock, plans = Clock(NOW), PLANS.replace("{", "{{").replace("}", "}}")
    async with kit_of("memory://", clock, plans=plans, smtp_url=box.url) as kit:
        watch = storage_watch(kit)
        for level in (1_050, 2_000):
            await kit.gauges.set("acme", "storage", level)
            assert (await kit.check("acme", "storage", 1)).allowed is (level == 1_050)
            await watch.check()
            await pass_over(kit, "email")
            await kit.gauges.set("acme", "storage", 0)
            clock.advance(timedelta(days=3))
            await watch.check()
    within, above = written(box)
    assert within.endswith("From 17 Jun 2031 on you cannot add files.")
    assert above.endswith("You cannot add files until you delete some.")
