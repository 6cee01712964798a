"""From the page on which a customer pays to the plan that binds, whatever becomes of the webhooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from drivers.webhooks import hooked

if TYPE_CHECKING:
    from drivers.webhooks import Hooked

pytestmark = pytest.mark.anyio

PAGES: Any = {"success_url": "https://app.example/done", "cancel_url": "https://app.example/plans"}


async def plan(desk: Hooked) -> str | None:
    return (await desk.kit.consume("acme", "requests")).plan


async def test_a_button_on_the_page_puts_the_customer_on_the_plan(store_url: str) -> None:
    async with hooked(store_url) as desk, httpx.AsyncClient() as browser:
        page = await desk.kit.subscriptions.checkout("acme", "pro", **PAGES)
        declined = await browser.post(page.url, data={"payment": "fails"})
        assert declined.status_code == 200
        await desk.settle()
        assert await plan(desk) == "free"
        paid = await browser.post(page.url, data={"payment": "succeeds"})
        assert (paid.status_code, paid.headers["location"]) == (303, "https://app.example/done")
        await desk.settle()
        assert await plan(desk) == "pro"
    assert {delivery.status for delivery in desk.emulator.deliveries} == {200}


@pytest.mark.parametrize("lost", [True, False])
async def test_a_page_of_the_apps_own_links_whom_it_names(store_url: str, lost: bool) -> None:
    """``client_reference_id`` says whose it is, though the Stripe customer is made on the page.

    Of the events one may be all that arrives, or all may come backwards and twice.
    """
    async with hooked(store_url) as desk:
        offered: Any = {
            "mode": "subscription",
            "line_items": [{"price": "price_pro", "quantity": 1}],
            "client_reference_id": "acme",
            "customer_email": "acme@example.com",
            "success_url": PAGES["success_url"],
        }
        session = await desk.client.v1.checkout.sessions.create_async(offered)
        done = desk.emulator.complete_checkout(session.id)
        events = desk.emulator.webhook_events
        if lost:
            arriving = [event for event in events if event.type == "checkout.session.completed"]
        else:
            arriving = [event for event in reversed(events) for _ in range(2)]
        assert set(await desk.bring(*arriving)) == {200}
        await desk.kit.webhooks.work_off()
        assert await plan(desk) == "pro"
        assert (await desk.kit.customers.get("acme")).stripe_customer == done["customer"]


async def test_the_portal_ends_a_subscription_at_its_second(store_url: str) -> None:
    async with hooked(store_url) as desk:
        page = await desk.kit.subscriptions.checkout("acme", "pro", **PAGES)
        desk.emulator.complete_checkout(page.id)
        await desk.settle()
        portal = await desk.kit.subscriptions.portal("acme", return_url="https://app.example/account")
        desk.emulator.use_portal(portal.id, "cancel")
        await desk.settle()
        subscription = await desk.kit.subscriptions.get("acme")
        assert subscription is not None
        assert subscription.cancel_at == subscription.current_period_end
        assert await plan(desk) == "pro"
        desk.clock.set(subscription.current_period_end)
        assert await plan(desk) == "free", "before any webhook tells of it"
        await desk.settle()
        assert await plan(desk) == "free"
