"""Top-ups that are repeated, or go on later: what Stripe shows by then decides."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drivers.top_ups import (
    AUTO,
    BACK,
    DOLLAR,
    PLANS,
    balance,
    bought,
    cut_off,
    dying,
    night,
    opened,
    sold,
    with_card,
)
from drivers.webhooks import Hooked, hooked, hooked_kit
from meterkit import CustomerError, MeterkitError, PaymentMethodMissingError, StripeError
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)
CHEAPER = loads(
    PLANS.replace(
        "packs: [1000, 5000]", "packs: [1000], auto: {below: 500, amount: 1000, at_most: 2 per month}"
    )
)


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Hooked]:
    """The packs are at Stripe, and the customer has a saved card."""
    async with sold(store_url) as opened_shop:
        await opened(opened_shop)
        await with_card(opened_shop)
        yield opened_shop


@asynccontextmanager
async def low(store_url: str) -> AsyncGenerator[Hooked]:
    """Four dollars are left of ten, and top-ups are automatic."""
    async with hooked(store_url, catalog=AUTO) as shop:
        await opened(shop)
        await with_card(shop)
        await bought(shop)
        await shop.kit.record("acme", "usd_charged", 6 * DOLLAR)
        yield shop


async def credit_at_stripe(at: Hooked, *cents: int) -> int:
    """Set what Stripe owes the customer, which it takes for the next invoices; or read it."""
    for each in cents:
        await at.client.v1.customers.update_async("cus_acme", {"balance": -each})
    return -((await at.client.v1.customers.retrieve_async("cus_acme")).balance or 0)


async def invoices(at: Hooked) -> list[tuple[str | None, int]]:
    """Status and cents of each, newest first."""
    found = await at.client.v1.invoices.list_async({"customer": "cus_acme"})
    return [(one.status, one.total) for one in found.data]


async def test_i4_what_credit_at_stripe_pays_is_granted_once(at: Hooked) -> None:
    """I4: such an invoice is paid when it is finalized, without a charge; it granted nothing."""
    assert await credit_at_stripe(at, 2500) == 2500
    first = await bought(at, idempotency_key="order 1")
    assert (first.status, first.url, await balance(at)) == ("paid", None, 10 * DOLLAR)
    api, sells, _ = dying(at)
    with cut_off(api, after=3):
        await sells.buy("acme", 1000, idempotency_key="order 2")
    await api.close()
    assert await balance(at) == 10 * DOLLAR
    for _ in range(2):
        await at.settle()  # The webhook alone grants it.
        assert await bought(at, idempotency_key="order 1") == first
    assert (await balance(at), await credit_at_stripe(at)) == (20 * DOLLAR, 500)
    await bought(at)  # Five dollars from each.
    await at.settle()
    assert (await balance(at), await credit_at_stripe(at)) == (30 * DOLLAR, 0)
    assert await invoices(at) == [("paid", 1000)] * 3
    assert await at.kit.webhooks.dead() == []


async def test_i4_credit_at_stripe_pays_one_automatic_top_up(store_url: str) -> None:
    """I4: it took another one each night."""
    async with low(store_url) as at:
        await credit_at_stripe(at, 10_000)
        for _ in range(2):
            await night(at)
            await at.live(25 * HOUR)
        assert (await balance(at), await credit_at_stripe(at)) == (24 * DOLLAR, 8000)


@pytest.mark.parametrize("step", range(1, 5))
async def test_i4_one_that_began_last_month_is_charged_once(store_url: str, step: int) -> None:
    """I4: Stripe has forgotten its idempotency keys, the card is another, and the file has another amount."""
    async with low(store_url) as at:
        api, _, tops_up = dying(at)
        with cut_off(api, after=step):
            await tops_up.on_low("acme", "usd", "1")
        await api.close()
        at.clock.advance(timedelta(days=25))
        at.emulator.advance()
        at.emulator.add_payment_method("cus_acme", "pm_card_mastercard")
        async with hooked_kit(store_url, at.url, at.clock, catalog=CHEAPER) as kit:
            api, _, tops_up = dying(replace(at, kit=kit))
            for event in ("2", "1"):
                await tops_up.on_low("acme", "usd", event)
            await api.close()
        await at.settle()
        assert await invoices(at) == [("paid", 2000), ("paid", 1000)]
        assert await balance(at) == 24 * DOLLAR


@pytest.mark.parametrize("ahead", [timedelta(seconds=-40), timedelta(days=200)])
async def test_a_hosts_clock_begins_no_month_again(store_url: str, ahead: timedelta) -> None:
    async with low(store_url) as at, hooked_kit(store_url, at.url, at.clock, catalog=AUTO) as kit:
        at.clock.set(datetime(2031, 12, 1, 0, 0, 20, tzinfo=UTC))
        kit.store.clock = Clock(at.clock.now() + ahead)
        first, second = dying(at), dying(replace(at, kit=kit))
        for nth in range(3):
            for api, _, tops_up in (first, second):
                await tops_up.on_low("acme", "usd", f"{nth} of {id(api)}")
        for api, *_ in (first, second):
            await api.close()
        assert await invoices(at) == [("paid", 2000), ("paid", 2000), ("paid", 1000)]


@pytest.mark.parametrize("hours", [2, 25])
async def test_a_voided_automatic_top_up_is_made_anew(store_url: str, hours: int) -> None:
    """Each nightly sync failed, and told an operator to buy it with another key."""
    async with low(store_url) as at:
        api, _, tops_up = dying(at)
        with cut_off(api, after=3):
            await tops_up.on_low("acme", "usd", "1")
        await api.close()
        (begun, _) = (await at.client.v1.invoices.list_async({"customer": "cus_acme"})).data
        await at.client.v1.invoices.void_invoice_async(str(begun.id))
        at.clock.advance(hours * HOUR)
        await night(at)
        backlog = await at.kit.webhooks.backlog()
        assert (backlog.entries, backlog.dead) == (0, 0)
        assert await invoices(at) == [("void", 2000), ("paid", 1000)]
        at.clock.advance(24 * HOUR)
        await night(at)
        assert await invoices(at) == [("paid", 2000), ("void", 2000), ("paid", 1000)]
        assert await balance(at) == 24 * DOLLAR


@pytest.mark.parametrize("step", range(1, 6))
async def test_no_deleted_customer_is_topped_up(at: Hooked, step: int, monkeypatch: Any) -> None:
    """Its card was charged, and the grant brought it back under no link."""
    api, sells, _ = dying(at)
    post, posts = api.post, 0

    async def post_beside_deletion(*asked: Any, **how: Any) -> Any:
        """The customer is deleted before one of four requests, or after the payment."""
        nonlocal posts
        posts += 1
        if posts == step:
            await at.kit.customers.delete("acme")
        found = await post(*asked, **how)
        if posts == 4 and step == 5:
            await at.kit.customers.delete("acme")
        return found

    monkeypatch.setattr(api, "post", post_beside_deletion)
    with pytest.raises((CustomerError, StripeError)):
        await sells.buy("acme", 1000)
    await api.close()
    await at.settle()
    assert not await at.kit.customers.known("acme")
    reported = [one.stripe_customer[:3] for one in await at.kit.webhooks.dead()]
    paid = [status for status, _ in await invoices(at)].count("paid")
    assert (reported, paid) == (["in_"], 1) if step == 5 else ([], 0)


@pytest.mark.parametrize("step", range(1, 5))
async def test_i4_a_new_card_goes_on_with_the_purchase(at: Hooked, step: int) -> None:
    """I4: the card was among the parameters of the key: it was refused, although the first may be paid."""
    api, sells, _ = dying(at)
    with cut_off(api, after=step):
        await sells.buy("acme", 1000, idempotency_key="order 1")
    await api.close()
    at.emulator.add_payment_method("cus_acme", "pm_card_mastercard")
    first = await bought(at, idempotency_key="order 1")
    assert (first.status, await invoices(at)) == ("paid", [("paid", 1000)])
    for each in (await at.client.v1.customers.payment_methods.list_async("cus_acme")).data:
        await at.client.v1.payment_methods.detach_async(each.id)
    gone: Any = {"invoice_settings": {"default_payment_method": ""}}
    await at.client.v1.customers.update_async("cus_acme", gone)
    assert await bought(at, idempotency_key="order 1") == first
    with pytest.raises(PaymentMethodMissingError, match="no saved card"):
        await bought(at, idempotency_key="order 2")


async def test_a_declined_purchase_is_paid_with_the_next_card(at: Hooked) -> None:
    at.emulator.add_payment_method("cus_acme", "pm_card_chargeCustomerFail")
    declined = await bought(at, idempotency_key="order 1")
    assert (declined.status, declined.declined) == ("open", "card_declined")
    at.emulator.add_payment_method("cus_acme", "pm_card_mastercard")
    at.emulator.fail_next("error", status=400, path=f"/v1/invoices/{declined.invoice}/pay")
    with pytest.raises(StripeError, match="HTTP 400"):
        await bought(at, idempotency_key="order 1")
    paid = await bought(at, idempotency_key="order 1")
    assert (paid.status, paid.declined, paid.invoice) == ("paid", None, declined.invoice)
    assert (await balance(at), await invoices(at)) == (10 * DOLLAR, [("paid", 1000)])


async def test_the_key_of_a_voided_purchase_names_no_other(at: Hooked) -> None:
    at.emulator.add_payment_method("cus_acme", "pm_card_chargeCustomerFail")
    at.emulator.fail_next("error", status=400, path="/v1/invoices")
    with pytest.raises(StripeError, match="HTTP 400"):
        await bought(at, idempotency_key="order 1")
    declined = await bought(at, idempotency_key="order 1")
    await at.client.v1.invoices.void_invoice_async(str(declined.invoice))
    with pytest.raises(MeterkitError, match="was voided; buy it with another key"):
        await bought(at, idempotency_key="order 1")
    with pytest.raises(MeterkitError, match="it names a purchase of 1000 cents with the saved card"):
        await bought(at, 5000, idempotency_key="order 1")
    assert await invoices(at) == [("void", 1000)]


async def test_a_page_asked_for_again_is_shown_as_it_is(at: Hooked) -> None:
    """It was called open after its payment, with the URL of a page that was gone."""
    page = await bought(at, idempotency_key="order 1", **BACK)
    elsewhere = "https://app.example/elsewhere"
    assert await bought(at, idempotency_key="order 1", success_url=elsewhere) == page
    (session,) = (await at.client.v1.checkout.sessions.list_async()).data
    invoice = at.emulator.complete_checkout(session.id)["invoice"]
    for _ in range(2):
        paid = await bought(at, idempotency_key="order 1", **BACK)
        assert (paid.status, paid.url, paid.invoice) == ("paid", None, invoice)
        await at.settle()
        assert await balance(at) == 10 * DOLLAR
    await bought(at, idempotency_key="order 2", **BACK)
    await at.client.v1.checkout.sessions.expire_async(
        (await at.client.v1.checkout.sessions.list_async()).data[0].id
    )
    with pytest.raises(MeterkitError, match="an expired page; use another key"):
        await bought(at, idempotency_key="order 2", **BACK)
