"""Checkout, the portal and seats where invoice lines bill usage: no subscription has a metered price."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Final

import pytest

from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_lines import flushed, usage_lines
from meterkit.catalog import loads
from meterkit.errors import InvoiceOpenError, NoSubscriptionError

pytestmark = pytest.mark.anyio

ONE_LINE: Final = [("Words", "26", "4", 104)]
OF_PRO: Final = "{included: 100, overage: {bill: {per: 1, amount_cents: 4}}}"
PLANS: Final = (
    plans_text("invoice_lines")
    .replace("meters:\n  words:", "meters:\n  seats: {unit: seat, kind: gauge}\n  words:", 1)
    .replace("  pro:\n", "  pro:\n    seat_price: {amount_cents: 700}\n")
    .replace(OF_PRO, f"{OF_PRO}\n      seats: {{included: 2, overage: deny}}")
)


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=loads(PLANS), selling=sell_nothing) as opened:
        await opened.kit.stripe.sync()
        yield opened


async def pass_end(at: Shop) -> None:
    """Let the period end, and deliver its usage until an invoice has it."""
    at.go(END + timedelta(minutes=3))
    await at.kit.subscriptions.sync("acme")
    await flushed(at)
    at.go(timedelta(minutes=15))
    await flushed(at)
    at.go(timedelta(hours=2))


async def test_a_checkout_and_the_portal_leave_usage_to_lines(at: Shop) -> None:
    page = await at.kit.subscriptions.checkout(
        "acme", "pro", seats=2, success_url="https://app.example", cancel_url="https://app.example"
    )
    at.emulator.complete_checkout(page.id)
    found = await at.kit.subscriptions.sync("acme")
    assert found is not None
    assert None not in (await at.items(found.id)).values()  # Metered items have no quantity.
    await at.kit.record("acme", "words", 126)
    portal = await at.kit.subscriptions.portal("acme", return_url="https://app.example")
    at.emulator.use_portal(portal.id, "cancel")
    await pass_end(at)
    assert await usage_lines(at) == ONE_LINE
    assert sum(one["amount_paid"] for one in await at.invoices()) == 2900 + 104


async def test_seats_and_lines_are_on_one_invoice(at: Shop) -> None:
    await at.subscribed(plan="pro", seats=3)
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.set_seats("acme", 5)
    await pass_end(at)
    assert await usage_lines(at) == ONE_LINE
    for_half = 2 * 700 // 2
    assert (await at.invoices())[-1]["total"] == 2900 + 3 * 700 + for_half + 104
    assert [one.advice for one in await at.kit.reconcile("acme", at=HALF)] == [""]


async def test_usage_left_unpaid_after_an_end_is_a_debt(at: Shop) -> None:
    await at.subscribed(plan="pro")
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    linked = await at.fail_payments()
    at.go(timedelta(minutes=15))
    await flushed(at)
    at.go(timedelta(hours=2))
    last = (await at.invoices())[-1]
    assert (last["status"], last["amount_remaining"]) == ("open", 104)
    with pytest.raises(InvoiceOpenError, match=last["id"]):
        await at.kit.subscriptions.create("acme", "pro")
    at.emulator.mend_payments(linked)
    await at.post(f"/v1/invoices/{last['id']}/pay", {})
    assert (await at.kit.subscriptions.create("acme", "pro")).subscription.plan == "pro"


async def test_an_override_of_a_price_needs_a_subscription(at: Shop) -> None:
    """Not that no invoice would bill it: lines have one of their own."""
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    price = {"words": {"overage": {"bill": {"per": 1, "amount_cents": 2}}}}
    with pytest.raises(NoSubscriptionError, match="has no active subscription, and a price of its own needs"):
        await at.kit.customers.override("bob", price)
