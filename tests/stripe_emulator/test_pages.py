"""What a person does on the pages of checkout and portal, by a test's call and in a browser."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest

from drivers.emulated_shop import offer, told
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


async def open_page(client: Any, **others: Any) -> Any:
    return await client.checkout.sessions.create(**offer(**others))


async def test_only_pages_that_exist_are_paid(client: Any, emulator: StripeEmulator) -> None:
    with pytest.raises(ValueError, match=r"No such checkout\.session: 'cs_none'"):
        emulator.complete_checkout("cs_none")
    perhaps: Any = "perhaps"
    with pytest.raises(ValueError, match="payment is 'perhaps'; it must be one of succeeds, fails"):
        emulator.complete_checkout((await open_page(client)).id, payment=perhaps)


async def test_the_page_is_played_in_a_browser(client: Any, emulator: StripeEmulator) -> None:
    product = emulator.add_product("Pro <plan>")
    items = [{"price": emulator.add_price(2_900, product=product), "quantity": 1}]
    items.append({"price": "price_seat", "quantity": 3})
    async with httpx.AsyncClient() as browser:
        session = await open_page(client, line_items=items, cancel_url="https://app.example/back?a=1&b=2")
        shown = await browser.get(session.url)
        assert (shown.status_code, shown.headers["content-type"]) == (200, "text/html; charset=utf-8")
        back = 'href="https://app.example/back?a=1&amp;b=2"'
        for text in ("Pro &lt;plan&gt;", "56.00 USD", back, 'name="email"'):
            assert text in shown.text
        ada = {"email": "ada@example.com"}
        declined = await browser.post(session.url, data={"payment": "fails", **ada})
        assert (declined.status_code, "Your card was declined." in declined.text) == (200, True)
        paid = await browser.post(session.url, data={"payment": "succeeds", **ada})
        assert paid.status_code == 303
        assert paid.headers["location"] == f"https://app.example/done?session={session.id}"
        (customer,) = (await client.customers.list(email="ada@example.com")).data
        (made,) = (await client.subscriptions.list(customer=customer.id)).data
        assert made.status == "active"
        again = await browser.post(session.url, data={"payment": "succeeds"})
        assert (again.status_code, again.headers["location"]) == (303, paid.headers["location"])
        gone = await browser.get(session.url)
        assert (gone.status_code, "This page is complete." in gone.text) == (400, True)
        base = session.url.partition("/c/")[0]
        assert (await browser.get(f"{base}/c/pay/cs_none")).status_code == 400
        assert (await browser.get(f"{base}/p/session/bps_none")).status_code == 400
        assert len((await client.subscriptions.list(customer=customer.id)).data) == 1
    assert len(emulator.requests) == 4, "pages are no calls of the API"


async def test_the_page_says_why_a_customer_cannot_pay(client: Any, emulator: StripeEmulator) -> None:
    emulator.fail_payments("cus_1")
    async with httpx.AsyncClient() as browser:
        session = await open_page(client, customer="cus_1")
        declined = await browser.post(session.url, data={"payment": "succeeds"})
        assert (declined.status_code, "Your card was declined" in declined.text) == (200, True)
        assert 'name="email"' not in declined.text


async def subscribed(emulator: StripeEmulator, client: Any) -> tuple[str, str]:
    session = await open_page(client)
    done: Any = emulator.complete_checkout(session.id)
    return done["customer"], done["subscription"]


async def test_portal_cancels_resumes_and_mends(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """Flexible billing "uses `cancel_at` directly rather than `cancel_at_period_end`".

    https://docs.stripe.com/billing/subscriptions/billing-mode/compare#scheduled-subscription-cancellation
    """
    customer, subscription = await subscribed(emulator, client)
    portal = await client.billing_portal.sessions.create(customer=customer)
    subscriptions = client.subscriptions
    emulator.use_portal(portal.url, "cancel")
    ending = await subscriptions.retrieve(subscription)
    assert ending.cancel_at == ending["items"].data[0].current_period_end
    assert not ending.cancel_at_period_end
    emulator.use_portal(portal.id, "resume", subscription=subscription)
    assert (await subscriptions.retrieve(subscription)).cancel_at is None
    assert told(emulator)[-2:] == ["customer.subscription.updated"] * 2
    emulator.fail_payments(customer)
    clock.advance(timedelta(days=31))
    assert (await subscriptions.retrieve(subscription)).status == "past_due"
    emulator.use_portal(portal.id, "mend_payment")
    emulator.use_portal(portal.id, "pay")
    assert (await subscriptions.retrieve(subscription)).status == "active"
    flow: Any = {"type": "subscription_cancel", "subscription_cancel": {"subscription": subscription}}
    deep = await client.billing_portal.sessions.create(customer=customer, flow_data=flow)
    emulator.use_portal(deep.id, "cancel")
    assert (await subscriptions.retrieve(subscription)).cancel_at is not None
    for wrong, options, message in (
        ("bps_none", {}, "there is no portal session bps_none"),
        (portal.id, {"subscription": "sub_other"}, "the subscription to change is 'sub_other'"),
    ):
        with pytest.raises(ValueError, match=message):
            emulator.use_portal(wrong, "cancel", **options)
    dance: Any = "dance"
    with pytest.raises(ValueError, match="action is 'dance'; it must be one of cancel, resume"):
        emulator.use_portal(portal.id, dance)


async def test_the_portal_is_played_in_a_browser(client: Any, emulator: StripeEmulator) -> None:
    async with httpx.AsyncClient() as browser:
        customer, subscription = await subscribed(emulator, client)
        portal = await client.billing_portal.sessions.create(
            customer=customer, return_url="https://app.example/account"
        )
        shown = await browser.get(portal.url)
        for text in ("Pro (active)", "Cancel subscription", 'href="https://app.example/account"'):
            assert text in shown.text
        press = {"action": "cancel", "subscription": subscription}
        ended = await browser.post(portal.url, data=press)
        assert "Your subscription ends with its period." in ended.text
        assert "Don&#x27;t cancel" in ended.text
        resumed = await browser.post(portal.url, data=press | {"action": "resume"})
        assert "Your subscription goes on." in resumed.text
        mended = await browser.post(portal.url, data={"action": "mend_payment"})
        assert "Your payment method has been replaced." in mended.text
        assert (await browser.post(portal.url, data={"action": "dance"})).status_code == 400
        assert (await browser.post(portal.url)).status_code == 400


async def test_other_processes_pay_over_http(client: Any) -> None:
    async with httpx.AsyncClient() as browser:
        session = await open_page(client)
        base = session.url.partition("/c/")[0]
        pay = f"{base}/_emulator/checkout/{session.id}"
        assert (await browser.post(pay, data={"payment": "fails"})).json()["status"] == "open"
        paid = (await browser.post(pay, data={"email": "ada@example.com"})).json()
        assert paid["status"] == "complete"
        again = await browser.post(pay)
        assert (again.status_code, "only an open one" in again.json()["error"]) == (400, True)
        assert (await browser.post(pay, data={"colour": "red"})).status_code == 400
        portal = await client.billing_portal.sessions.create(customer=paid["customer"])
        use = f"{base}/_emulator/portal/{portal.id}"
        assert (await browser.post(use, data={"action": "cancel"})).json() == {}
        assert (await client.subscriptions.retrieve(paid["subscription"])).cancel_at is not None
        assert (await browser.post(use, data={"action": "dance"})).status_code == 400
