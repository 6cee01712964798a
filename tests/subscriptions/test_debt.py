"""Who owes pays first, and gets what the dunning policy gives: also while collection is paused."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.subscribed_customer import INSTANT
from drivers.webhooks import DAY, NOW, PLANS, hooked, shop
from meterkit.catalog import loads
from meterkit.errors import InvoiceOpenError
from meterkit.starlette import billing_routes
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.webhooks import Hooked

pytestmark = pytest.mark.anyio

PAGE = "https://app.example/"


@asynccontextmanager
async def debtor(store_url: str, dunning: str = "") -> AsyncGenerator[Hooked]:
    """A customer whose subscription Stripe has canceled after its last retry."""
    clock = Clock(NOW)
    catalog = loads(PLANS + dunning)
    emulator = shop(clock, after_retries="cancel")
    async with hooked(store_url, clock=clock, emulator=emulator, catalog=catalog) as at:
        at.customer()
        await at.subscribe()
        await at.settle()
        at.emulator.fail_payments("cus_acme")
        for _ in range(20):
            at.clock.advance(3 * DAY)
            at.emulator.advance()
            await at.settle()
        at.emulator.mend_payments("cus_acme")
        yield at


async def open_invoice(at: Hooked) -> tuple[str, str]:
    """The invoice that is owed: its id, and the page where it is paid."""
    found = await at.client.v1.invoices.list_async({"customer": "cus_acme", "status": "open"})
    (invoice,) = found.data
    assert invoice.id is not None
    assert invoice.hosted_invoice_url is not None
    return invoice.id, invoice.hosted_invoice_url


async def test_a_debtor_pays_first_and_may_subscribe_then(store_url: str) -> None:
    """F-115: after Stripe's `cancel` a debtor could subscribe again with the debt open."""
    async with debtor(store_url) as at:
        known = await at.kit.customers.get("acme")
        assert (known.status, known.access, known.plan) == ("canceled", "full", "free")
        invoice, url = await open_invoice(at)
        before = at.asked(method="POST"), at.asked("/v1/checkout/sessions", "POST")
        for _ in range(2):
            with pytest.raises(InvoiceOpenError, match=invoice) as caught:
                await at.kit.subscriptions.create("acme", "pro")
            assert (caught.value.invoice, caught.value.url) == (invoice, url)
            with pytest.raises(InvoiceOpenError):
                await at.kit.subscriptions.checkout("acme", "max", success_url=PAGE, cancel_url=PAGE)
        assert (at.asked(method="POST"), at.asked("/v1/checkout/sessions", "POST")) == before
        await at.client.v1.invoices.pay_async(invoice)
        assert (await at.kit.subscriptions.create("acme", "pro")).subscription.status == "incomplete"


async def test_a_browser_is_told_where_to_pay(store_url: str) -> None:
    async with debtor(store_url) as at:
        invoice, url = await open_invoice(at)
        routes = billing_routes(at.kit, customer=lambda _: "acme", origins=[PAGE.rstrip("/")])
        transport = httpx.ASGITransport(Starlette(routes=[Mount("/billing", routes=routes)]))
        async with httpx.AsyncClient(transport=transport, base_url="https://app.example/billing") as client:
            pages = {"success_url": PAGE, "cancel_url": PAGE}
            for path, more in (("/subscription", {}), ("/checkout", pages)):
                answer = await client.post(path, json={"plan": "pro", "seats": 1, **more})
                found = answer.json()
                assert (answer.status_code, found["type"]) == (402, "urn:meterkit:problem:invoice-open")
                assert found["url"] == url
            await at.client.v1.invoices.void_invoice_async(invoice)  # It is let go.
            answer = await client.post("/checkout", json={"plan": "pro", "seats": 1, **pages})
            assert answer.status_code == 200


async def test_the_plans_file_may_allow_debts(store_url: str) -> None:
    async with debtor(store_url, "dunning: {debt: allow}\n") as at:
        assert (await at.kit.subscriptions.create("acme", "pro")).subscription.status == "incomplete"


async def days(at: Hooked, count: int) -> list[str]:
    """The access of each day from now on, with all webhooks worked off."""
    found: list[str] = []
    for _ in range(count):
        at.emulator.advance()
        await at.settle()
        found.append((await at.kit.customers.get("acme")).access)
        at.clock.advance(DAY)
    return found


async def test_the_invoice_of_another_period_begins_no_grace_anew(store_url: str) -> None:
    """Stripe can be set to leave a subscription past due, and then invoices it month after month."""
    clock = Clock(NOW)
    async with hooked(store_url, clock=clock, emulator=shop(clock, after_retries="past_due")) as at:
        at.customer()
        await at.subscribe()
        await at.settle()
        at.emulator.fail_payments("cus_acme")
        at.clock.advance(30 * DAY)  # 10 June to 10 July.
        found = await days(at, 100)
        first = found.index("grace")
        assert found[first:] == ["grace"] * 7 + ["restricted"] * 7 + ["suspended"] * (100 - first - 14)
        at.emulator.mend_payments("cus_acme")
        assert (await days(at, 40))[-1] == "full"
        # Once it was paid for a while, the next failure is the first again.
        at.emulator.fail_payments("cus_acme")
        found = await days(at, 40)
        first = found.index("grace")
        assert found[first : first + 8] == ["grace"] * 7 + ["restricted"]


async def paused(at: Hooked, behavior: str, **more: Any) -> str:
    """A customer who pays for a month from 10 June, and whose collection is paused ten days later."""
    at.customer()
    subscription = await at.subscribe()
    await at.settle()
    at.clock.advance(10 * DAY)
    params: Any = {"pause_collection": {"behavior": behavior, **more}}
    await at.client.v1.subscriptions.update_async(subscription, params)
    await at.settle()
    return subscription


async def access(at: Hooked) -> tuple[str | None, str, str]:
    found = await at.kit.customers.get("acme")
    return found.status, found.access, found.plan


async def renewed_daily(at: Hooked, days: int = 32) -> None:
    """Let days pass, with all that Stripe does and tells in them."""
    for _ in range(days):
        at.clock.advance(DAY)
        at.emulator.advance()
        await at.settle()


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Hooked]:
    async with hooked(store_url) as opened:
        yield opened


async def test_voided_invoices_give_what_is_paid_and_no_more(at: Hooked) -> None:
    """F-115: `pause_collection: void` was free for ever."""
    subscription = await paused(at, "void")
    assert await access(at) == ("active", "full", "pro")
    state = (await at.state()).subscription
    assert state is not None
    ends = state.end_ms / 1000
    at.clock.set(at.clock.now().fromtimestamp(ends, at.clock.now().tzinfo) - INSTANT)
    assert await access(at) == ("active", "full", "pro")
    at.clock.advance(INSTANT)
    assert await access(at) == ("active", "restricted", "free")  # By the clock, before Stripe tells.
    await renewed_daily(at, 70)
    assert await access(at) == ("active", "restricted", "free")
    # Resumed, it is as its status says; and the next invoice is collected.
    nothing: Any = {"pause_collection": ""}
    await at.client.v1.subscriptions.update_async(subscription, nothing)
    await at.settle()
    assert await access(at) == ("active", "full", "pro")


async def test_a_pause_that_ends_by_itself_ends_at_its_second(at: Hooked) -> None:
    resumes = at.clock.now() + 50 * DAY
    await paused(at, "void", resumes_at=int(resumes.timestamp()))
    await renewed_daily(at, 35)
    assert await access(at) == ("active", "restricted", "free")
    at.clock.set(resumes - INSTANT)
    assert await access(at) == ("active", "restricted", "free")
    at.clock.set(resumes)
    assert await access(at) == ("active", "full", "pro")
    at.emulator.advance()
    await at.settle()
    assert await access(at) == ("active", "full", "pro")


@pytest.mark.parametrize("behavior", ["keep_as_draft", "mark_uncollectible"])
async def test_what_is_collected_later_or_given_away_is_served(at: Hooked, behavior: str) -> None:
    await paused(at, behavior)
    await renewed_daily(at, 70)
    assert await access(at) == ("active", "full", "pro")
