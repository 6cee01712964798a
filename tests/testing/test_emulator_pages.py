"""What a person does on the pages of checkout and portal, by a test's call and in a browser."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from drivers.emulated_account import account
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    import stripe

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SUCCESS = "https://app.example/done?session={CHECKOUT_SESSION_ID}"


def ready() -> tuple[StripeEmulator, Clock]:
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock)
    product = emulator.add_product("Pro <plan>", product_id="prod_pro")
    emulator.add_price(2_900, price_id="price_pro", product=product)
    emulator.add_price(900, price_id="price_seat", product=product)
    emulator.add_price(12, price_id="price_tokens", product=product, meter=emulator.add_meter("tokens"))
    return emulator, clock


async def offer(client: stripe.StripeClient, **others: Any) -> stripe.checkout.Session:
    params: Any = {
        "mode": "subscription",
        "line_items": [{"price": "price_pro", "quantity": 1}],
        "success_url": SUCCESS,
        **others,
    }
    return await client.v1.checkout.sessions.create_async(params)


def types(emulator: StripeEmulator) -> list[str]:
    return [event.type for event in emulator.webhook_events]


async def test_an_expired_session_cannot_be_paid() -> None:
    emulator, clock = ready()
    async with account(emulator) as client:
        session = await offer(client)
        clock.advance(timedelta(days=1))
        with pytest.raises(ValueError, match="is expired: only an open one"):
            emulator.complete_checkout(session.id)
        with pytest.raises(ValueError, match=r"No such checkout\.session: 'cs_none'"):
            emulator.complete_checkout("cs_none")
        other: Any = "perhaps"
        with pytest.raises(ValueError, match="payment is 'perhaps'; it must be one of succeeds, fails"):
            emulator.complete_checkout((await offer(client)).id, payment=other)


async def test_the_page_is_played_in_a_browser() -> None:
    emulator, _ = ready()
    async with account(emulator) as client, httpx.AsyncClient() as browser:
        session = await offer(
            client,
            line_items=[{"price": "price_pro", "quantity": 1}, {"price": "price_seat", "quantity": 3}],
            cancel_url="https://app.example/back?a=1&b=2",
        )
        assert session.url is not None
        shown = await browser.get(session.url)
        assert (shown.status_code, shown.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "Pro &lt;plan&gt;" in shown.text, "names are no markup"
        assert "56.00 USD" in shown.text
        assert 'href="https://app.example/back?a=1&amp;b=2"' in shown.text
        assert 'name="email"' in shown.text
        declined = await browser.post(session.url, data={"payment": "fails", "email": "ada@example.com"})
        assert (declined.status_code, "Your card was declined." in declined.text) == (200, True)
        paid = await browser.post(session.url, data={"payment": "succeeds", "email": "ada@example.com"})
        assert paid.status_code == 303
        assert paid.headers["location"] == f"https://app.example/done?session={session.id}"
        (customer,) = (await client.v1.customers.list_async({"email": "ada@example.com"})).data
        (made,) = (await client.v1.subscriptions.list_async({"customer": customer.id})).data
        assert made.status == "active"
        again = await browser.post(session.url, data={"payment": "succeeds"})
        assert (again.status_code, again.headers["location"]) == (303, paid.headers["location"])
        gone = await browser.get(session.url)
        assert (gone.status_code, "This page is complete." in gone.text) == (400, True)
        base = session.url.partition("/c/")[0]
        assert (await browser.get(f"{base}/c/pay/cs_none")).status_code == 400
        assert (await browser.get(f"{base}/p/session/bps_none")).status_code == 400
        assert len((await client.v1.subscriptions.list_async({"customer": customer.id})).data) == 1
    assert len(emulator.requests) == 4, "pages are no calls of the API"


async def test_the_page_says_why_a_customer_cannot_pay() -> None:
    emulator, _ = ready()
    emulator.add_customer("cus_1")
    emulator.fail_payments("cus_1")
    async with account(emulator) as client, httpx.AsyncClient() as browser:
        session = await offer(client, customer="cus_1")
        declined = await browser.post(str(session.url), data={"payment": "succeeds"})
        assert (declined.status_code, "Your card was declined" in declined.text) == (200, True)
        assert 'name="email"' not in declined.text


async def subscribed(emulator: StripeEmulator, client: stripe.StripeClient) -> tuple[str, str]:
    session = await offer(client)
    done: Any = emulator.complete_checkout(session.id)
    return done["customer"], done["subscription"]


async def test_the_portal_cancels_resumes_and_mends() -> None:
    """Flexible billing "uses `cancel_at` directly rather than `cancel_at_period_end`".

    https://docs.stripe.com/billing/subscriptions/billing-mode/compare#scheduled-subscription-cancellation
    """
    emulator, clock = ready()
    async with account(emulator) as client:
        customer, subscription = await subscribed(emulator, client)
        portal = await client.v1.billing_portal.sessions.create_async({"customer": customer})
        subscriptions = client.v1.subscriptions
        emulator.use_portal(portal.id, "cancel")
        ending = await subscriptions.retrieve_async(subscription)
        assert ending.cancel_at == ending["items"].data[0].current_period_end
        assert not ending.cancel_at_period_end
        emulator.use_portal(portal.id, "resume", subscription=subscription)
        assert (await subscriptions.retrieve_async(subscription)).cancel_at is None
        assert types(emulator)[-2:] == ["customer.subscription.updated"] * 2
        emulator.fail_payments(customer)
        clock.advance(timedelta(days=31))
        assert (await subscriptions.retrieve_async(subscription)).status == "past_due"
        emulator.use_portal(portal.id, "mend_payment")
        emulator.use_portal(portal.id, "pay")
        assert (await subscriptions.retrieve_async(subscription)).status == "active"
        flow: Any = {"type": "subscription_cancel", "subscription_cancel": {"subscription": subscription}}
        deep = await client.v1.billing_portal.sessions.create_async({"customer": customer, "flow_data": flow})
        emulator.use_portal(deep.id, "cancel")
        assert (await subscriptions.retrieve_async(subscription)).cancel_at is not None
        for wrong, options, message in (
            ("bps_none", {}, "there is no portal session bps_none"),
            (portal.id, {"subscription": "sub_other"}, "the subscription to change is 'sub_other'"),
        ):
            with pytest.raises(ValueError, match=message):
                emulator.use_portal(wrong, "cancel", **options)
        dance: Any = "dance"
        with pytest.raises(ValueError, match="action is 'dance'; it must be one of cancel, resume"):
            emulator.use_portal(portal.id, dance)


async def test_the_portal_is_played_in_a_browser() -> None:
    emulator, _ = ready()
    async with account(emulator) as client, httpx.AsyncClient() as browser:
        customer, subscription = await subscribed(emulator, client)
        portal = await client.v1.billing_portal.sessions.create_async(
            {"customer": customer, "return_url": "https://app.example/account"}
        )
        shown = await browser.get(portal.url)
        assert ("Pro &lt;plan&gt; (active)" in shown.text, "Cancel subscription" in shown.text) == (
            True,
            True,
        )
        assert 'href="https://app.example/account"' in shown.text
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


async def test_other_processes_pay_over_http() -> None:
    emulator, _ = ready()
    async with account(emulator) as client, httpx.AsyncClient() as browser:
        session = await offer(client)
        base = str(session.url).partition("/c/")[0]
        pay = f"{base}/_emulator/checkout/{session.id}"
        failed = await browser.post(pay, data={"payment": "fails"})
        assert failed.json()["status"] == "open"
        paid = (await browser.post(pay, data={"email": "ada@example.com"})).json()
        assert paid["status"] == "complete"
        again = await browser.post(pay)
        assert (again.status_code, "only an open one" in again.json()["error"]) == (400, True)
        assert (await browser.post(pay, data={"colour": "red"})).status_code == 400
        portal = await client.v1.billing_portal.sessions.create_async({"customer": paid["customer"]})
        use = f"{base}/_emulator/portal/{portal.id}"
        assert (await browser.post(use, data={"action": "cancel"})).json() == {}
        assert (await client.v1.subscriptions.retrieve_async(paid["subscription"])).cancel_at is not None
        assert (await browser.post(use, data={"action": "dance"})).status_code == 400
