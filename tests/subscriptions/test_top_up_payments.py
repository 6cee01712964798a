"""Payments of top-ups by webhooks: each waits alone, and is of the customer whom its invoice names."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from pkgutil import resolve_name
from typing import Any

import pytest

from drivers.billing_browser import browser
from drivers.top_ups import (
    BACK,
    DOLLAR,
    PLANS,
    balance,
    bought,
    entries,
    invoiced,
    opened,
    refund,
    with_card,
)
from drivers.webhooks import NOW, Hooked, hooked, shop
from meterkit import PaymentMethodMissingError, StoreError
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

CATALOG = loads(f"{PLANS}  pro: {{rank: 10, price: {{amount_cents: 2000, interval: month}}}}\n")


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Hooked]:
    async with hooked(store_url, catalog=CATALOG) as opened_shop:
        await opened(opened_shop)
        await with_card(opened_shop)
        yield opened_shop


async def page_of(at: Hooked, customer: str = "acme") -> str:
    """Open a page; the session."""
    await at.kit.credits.buy(customer, 1000, **BACK)
    return str((await at.client.v1.checkout.sessions.list_async()).data[0].id)


async def paid_page(at: Hooked, session: str) -> str:
    """The customer pays on a page; the invoice."""
    invoice = str(at.emulator.complete_checkout(session)["invoice"])
    await at.settle()
    return invoice


async def dead(at: Hooked) -> list[str]:
    return [one.stripe_customer for one in await at.kit.webhooks.dead()]


async def redriven(at: Hooked) -> list[str]:
    """Retry what is dead; what is dead then."""
    await at.kit.webhooks.redrive()
    await at.settle()
    return await dead(at)


async def credited(at: Hooked, invoice: str, cents: int, **shares: int) -> None:
    asked: Any = {"invoice": invoice, "amount": cents, **shares}
    await at.client.v1.credit_notes.create_async(asked)
    await at.settle()


async def test_a_top_up_of_another_customer_delays_nothing(at: Hooked) -> None:
    """Each request of the customer was refused, and a subscription to cancel went on charging."""
    session = await page_of(at)
    await at.kit.customers.unlink("acme")
    await at.kit.customers.link("eve", "cus_acme")
    made = await at.kit.subscriptions.create("eve", "pro")
    at.emulator.confirm_payment(str(made.client_secret))
    invoice = await paid_page(at, session)
    (given_up,) = await at.kit.webhooks.dead()
    assert given_up.stripe_customer == invoice
    assert "top-up of customer 'acme', and its Stripe customer cus_acme is linked to 'eve'" in given_up.why
    async with browser(at.kit, "eve") as client:
        canceled = await client.post("/subscription/cancel", json={"immediately": True})
    assert (canceled.status_code, canceled.json()["subscription"]["status"]) == (200, "canceled")
    await paid_page(at, await page_of(at, "eve"))
    # The cure that the reason names.
    await refund(at, invoice)
    await at.settle()
    assert (await dead(at), await balance(at), await balance(at, "eve")) == ([], 0, 10 * DOLLAR)


async def test_a_top_up_of_no_credit_delays_no_other(at: Hooked) -> None:
    told: list[Any] = []
    at.kit.on("payment.succeeded")(told.append)
    bad = await invoiced(at, "acme", "eur 1000")
    await at.client.v1.invoices.pay_async(bad)
    good = [await paid_page(at, await page_of(at)) for _ in range(4)]
    assert await balance(at) == 40 * DOLLAR
    for _ in range(12):
        at.clock.advance(timedelta(hours=1))
        await at.settle()
    assert await dead(at) == [bad]
    await at.kit.stop()
    await at.kit.start()
    assert sorted(event.invoice for event in told) == sorted(good)


@pytest.mark.parametrize("how", ["deleted at Stripe", "another customer's"])
async def test_a_refund_is_of_whom_the_invoice_names(at: Hooked, how: str) -> None:
    invoice = str((await bought(at)).invoice)
    await at.settle()
    if how == "deleted at Stripe":
        await at.client.v1.customers.delete_async("cus_acme")
        await at.settle()
        await bought(at, **BACK)
        assert (await at.kit.customers.get("acme")).stripe_customer != "cus_acme"
    else:
        await at.kit.customers.unlink("acme")
        await at.kit.customers.link("eve", "cus_acme")
    await refund(at, invoice, 400)
    await at.settle()
    assert (await balance(at), await dead(at)) == (6 * DOLLAR, [])
    await refund(at, invoice, 600)
    await at.settle()
    assert (await balance(at), await dead(at)) == (0, [])


async def test_a_page_paid_without_a_link_waits_for_one(at: Hooked) -> None:
    session = await page_of(at)
    await at.kit.customers.unlink("acme")
    invoice = await paid_page(at, session)
    assert await dead(at) == [invoice] == await redriven(at)
    await at.kit.customers.link("acme", "cus_acme")
    assert (await redriven(at), await balance(at)) == ([], 10 * DOLLAR)


async def test_the_invoice_can_be_given_to_another_customer(at: Hooked) -> None:
    """The third cure that the reason names; a refund is then of that customer."""
    session = await page_of(at)
    await at.kit.customers.unlink("acme")
    await at.kit.customers.link("eve", "cus_acme")
    invoice = await paid_page(at, session)
    assert await dead(at) == [invoice]
    await at.client.v1.invoices.update_async(invoice, {"metadata": {"meterkit_customer": "eve"}})
    assert (await redriven(at), await balance(at, "eve")) == ([], 10 * DOLLAR)
    await at.kit.customers.unlink("eve")
    await refund(at, invoice)
    await at.settle()
    assert (await balance(at, "eve"), await dead(at)) == (0, [])


async def test_a_top_up_paid_after_a_deletion_is_reported(at: Hooked) -> None:
    """Deletion closes what is open at Stripe; this purchase was on its way then."""
    before = str((await bought(at)).invoice)
    await at.settle()
    await at.kit.customers.delete("acme")
    invoice = await invoiced(at, "acme", "usd 1000")
    await at.client.v1.invoices.pay_async(invoice)
    await refund(at, before, 400)  # Of a grant that was erased with its customer: nothing to report.
    await at.settle()
    assert await dead(at) == [invoice]
    await at.kit.grants.add("acme", {"usd": 10}, grant_id=invoice)
    assert (await redriven(at), await entries(at)) == ([], [("grant", 10)])


async def test_a_refund_takes_its_share_of_a_restored_grant(at: Hooked) -> None:
    """The store was lost, and what was left of the grant is added again, as docs/audit.md says."""
    invoice = await invoiced(at, "acme", "usd 1000")
    await at.client.v1.invoices.pay_async(invoice)
    await at.kit.grants.add("acme", {"usd": 4}, grant_id=invoice)
    for cents, left in ((500, 2), (500, 0)):
        await refund(at, invoice, cents)
        await at.settle()
        assert (await balance(at), await dead(at)) == (left * DOLLAR, [])


@pytest.mark.parametrize(("credit", "dollars"), [(900, 1), (1000, 0)])
async def test_a_credit_before_the_payment_is_not_granted(at: Hooked, credit: int, dollars: int) -> None:
    at.emulator.fail_payments("cus_acme")
    invoice = str((await bought(at)).invoice)
    await credited(at, invoice, credit)
    if credit < 1000:
        at.emulator.mend_payments("cus_acme")
        at.emulator.confirm_payment(invoice)
    await at.settle()
    assert (await at.client.v1.invoices.retrieve_async(invoice)).status == "paid"
    assert await balance(at) == dollars * DOLLAR
    if credit < 1000:
        await refund(at, invoice, 100)
        await at.settle()
    assert (await balance(at), await dead(at)) == (0, [])


async def test_a_credit_after_the_payment_is_taken_back_once(at: Hooked) -> None:
    """A credit note that makes a refund is also a refund of the charge."""
    invoice = str((await bought(at)).invoice)
    await at.settle()
    for shares, left in (
        ({"credit_amount": 300}, 7),
        ({"credit_amount": 200, "refund_amount": 100}, 4),
        ({"out_of_band_amount": 100}, 3),
    ):
        await credited(at, invoice, sum(shares.values()), **shares)
        for event in at.emulator.webhook_events:
            await at.bring(event)
        await at.settle()
        assert (await balance(at), await dead(at)) == (left * DOLLAR, [])
    await refund(at, invoice, 300)
    await at.settle()
    assert await balance(at) == 0


async def test_a_bank_account_is_not_charged_for_a_top_up(at: Hooked) -> None:
    """Its payment takes days: the customer got a mail about a declined card, and automatic ones stopped."""
    at.emulator.add_payment_method("cus_acme", "pm_usBankAccount_success")
    made = await bought(at)
    assert (made.status, made.declined, await balance(at)) == ("paid", None, 10 * DOLLAR)
    bank, card = (await at.client.v1.customers.payment_methods.list_async("cus_acme")).data
    assert (bank.type, card.type) == ("us_bank_account", "card")
    await at.client.v1.payment_methods.detach_async(card.id)
    with pytest.raises(PaymentMethodMissingError, match="no saved card"):
        await bought(at)


async def test_a_default_source_is_charged_for_a_top_up(at: Hooked) -> None:
    """The card saved last was charged: accounts from before payment methods name their default elsewhere."""
    (card,) = (await at.client.v1.customers.payment_methods.list_async("cus_acme")).data
    at.emulator.add_payment_method("cus_acme", "pm_card_chargeDeclined")
    asked: Any = {"default_source": card.id, "invoice_settings": {"default_payment_method": ""}}
    await at.client.v1.customers.update_async("cus_acme", asked)
    made = await bought(at)
    assert (made.status, made.declined, await balance(at)) == ("paid", None, 10 * DOLLAR)


async def test_a_page_for_a_top_up_is_in_dollars(at: Hooked) -> None:
    """Where the price has other amounts, a customer in euros paid €9.20 and was granted $9.20."""
    found = await at.client.v1.prices.list_async({"lookup_keys": ["meterkit-top-up:usd:1000"]})
    asked: Any = {"currency_options": {"eur": {"unit_amount": 920}}}
    await at.client.v1.prices.update_async(found.data[0].id, asked)
    asked = {"amount": -1, "currency": "eur"}
    await at.client.v1.customers.balance_transactions.create_async("cus_acme", asked)
    invoice = await paid_page(at, await page_of(at))
    shown = await at.client.v1.invoices.retrieve_async(invoice)
    assert (shown.currency, shown.total, await balance(at)) == ("usd", 1000, 10 * DOLLAR)


async def test_options_of_subscriptions_are_none_of_top_ups(store_url: str) -> None:
    """Written flat, they were sent: Stripe refused each page, or sold the balance at a discount."""
    flat = '"subscription_data[description]": Pro, "discounts[0][coupon]": HALF, locale: de'
    async with hooked(store_url, catalog=loads(f"{PLANS}billing: {{checkout: {{{flat}}}}}\n")) as at:
        await opened(at)
        await with_card(at)
        await at.client.v1.coupons.create_async({"id": "HALF", "percent_off": 50, "duration": "once"})
        await paid_page(at, await page_of(at))
        assert await balance(at) == 10 * DOLLAR


async def test_nothing_else_of_the_customer_is_on_a_top_up(
    at: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://docs.stripe.com/api/invoices/create: without `discounts` an invoice has the customer's."""
    post, asked = resolve_name("meterkit.stripe.api:StripeApi.post"), list[Any]()

    async def noted(api: object, path: str, params: Any, **given: Any) -> dict[str, Any]:
        asked.append((path, params))
        found: dict[str, Any] = await post(api, path, params, **given)
        return found

    monkeypatch.setattr("meterkit.stripe.api.StripeApi.post", noted)
    assert (await bought(at)).status == "paid"
    (made,) = [params for path, params in asked if path == "/v1/invoices"]
    assert (made["discounts"], made["pending_invoice_items_behavior"]) == ("", "exclude")


@pytest.mark.parametrize(
    ("how", "left"), [({"amount": 400}, 6), ({"amount": 400, "status": "won"}, 10), ({}, 0)]
)
async def test_a_dispute_takes_the_part_that_is_disputed(at: Hooked, how: dict[str, Any], left: int) -> None:
    at.emulator.dispute_payment(str((await bought(at)).invoice), **how)
    await at.settle()
    assert (await balance(at), await dead(at)) == (left * DOLLAR, [])


async def test_f_30c_what_was_used_of_a_disputed_top_up_is_owed(at: Hooked) -> None:
    """Eight of ten dollars were used, and the bank took back ten: eight were nobody's."""
    invoice = str((await bought(at)).invoice)
    await at.kit.record("acme", "usd_charged", 8 * DOLLAR)
    at.emulator.dispute_payment(invoice)
    await at.settle()
    assert await balance(at) == -8 * DOLLAR
    await bought(at)
    assert await balance(at) == 2 * DOLLAR


async def test_a_key_that_reads_no_disputes_takes_all_back(at: Hooked) -> None:
    at.emulator.dispute_payment(str((await bought(at)).invoice), amount=400)
    at.emulator.fail_next("error", status=403, path="/v1/disputes")
    await at.settle()
    assert (await balance(at), await dead(at)) == (0, [])


async def test_a_refund_is_reported_though_a_process_dies_before(
    at: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    at.kit.on("top_up.refunded")(told.append)
    invoice = str((await bought(at)).invoice)
    with monkeypatch.context() as dying:
        dying.setattr("meterkit.subscriptions.top_up_payments.publish_notice", unstored)
        await refund(at, invoice, 300)
        await at.settle()
    assert await balance(at) == 7 * DOLLAR
    at.clock.advance(timedelta(minutes=5))
    await at.settle()
    await refund(at, invoice, 200)
    await at.settle()
    await at.kit.stop()
    await at.kit.start()
    assert [(one.refunded_cents, one.taken_back_cents) for one in told] == [(300, 300), (200, 200)]
    assert (await balance(at), await dead(at)) == (5 * DOLLAR, [])


async def unstored(*_: object) -> None:
    raise StoreError("the store does not answer")


TAXED = loads(f'{PLANS}billing: {{checkout: {{"automatic_tax[enabled]": true}}}}\n')


async def test_taxes_are_no_part_of_a_balance(store_url: str) -> None:
    """A credit of half an invoice left $6.00, and the refund of $12.00 was reported as $10.00."""
    clock = Clock(NOW)
    stripe = shop(clock, tax_percent=20)
    async with hooked(store_url, catalog=TAXED, clock=clock, emulator=stripe) as at:
        told: list[Any] = []
        at.kit.on("top_up.refunded")(told.append)
        await opened(at)
        await with_card(at)
        await at.client.v1.customers.update_async("cus_acme", {"address": {"country": "DE"}})
        await bought(at)
        stripe.fail_payments("cus_acme")
        half = str((await bought(at)).invoice)
        await credited(at, half, 600)
        stripe.mend_payments("cus_acme")
        stripe.confirm_payment(half)
        await at.settle()
        assert await balance(at) == 15 * DOLLAR
        for cents, left in ((401, 11_658_334), (799, 5_000_000)):
            await refund(at, cents=cents)
            await at.settle()
            assert await balance(at) == left
        await at.kit.stop()
        await at.kit.start()
        assert [(one.refunded_cents, one.taken_back_cents) for one in told] == [(401, 334), (799, 665)]
