"""Prices in several currencies, and the currency of customers, seen through the official SDK over HTTP."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import httpx
import pytest

from drivers.emulated_account import account, tls
from drivers.emulated_shop import (
    amounts,
    invoice_of,
    item_of,
    newest_invoice,
    offer,
    refused,
    shop,
    subscribe,
)
from stripe_emulator import StripeEmulator

pytestmark = pytest.mark.anyio

EUR: Any = {"eur": {"unit_amount": 1800}}


def sold(emulator: StripeEmulator) -> StripeEmulator:
    """Sell a price of 20 USD or 18 EUR, and one of 10 USD only (:func:`shop`)."""
    emulator.add_price(2000, price_id="price_both", product="prod_pro", currency_options=EUR)
    return emulator


async def test_other_amounts_are_shown_on_demand_and_added_later() -> None:
    """https://docs.stripe.com/api/prices/object#price_object-currency_options."""
    emulator, _ = shop()
    async with account(sold(emulator)) as client:
        shown = (await client.prices.retrieve("price_both")).to_dict()
        assert (shown["currency"], shown["unit_amount"]) == ("usd", 2000)
        assert "currency_options" not in shown
        await client.prices.update("price_both", currency_options={"gbp": {"unit_amount_decimal": "1500.5"}})
        full = (await client.prices.retrieve("price_both", expand=["currency_options"])).to_dict()
        of = {code: option["unit_amount_decimal"] for code, option in full["currency_options"].items()}
        assert of == {"usd": "2000", "eur": "1800", "gbp": "1500.5"}
        assert full["currency_options"]["gbp"]["unit_amount"] is None
        listed = await client.prices.list(expand=["data.currency_options"], limit=1)
        assert set(listed.data[0].to_dict()["currency_options"]) == {"usd", "eur", "gbp"}


async def test_tiers_of_other_currencies_are_expanded_by_themselves() -> None:
    tiers: Any = [{"up_to": 10, "unit_amount": 0}, {"up_to": "inf", "unit_amount": 3}]
    other: Any = {"eur": {"tiers": [{"up_to": 10, "unit_amount": 0}, {"up_to": "inf", "unit_amount": 2}]}}
    emulator = StripeEmulator()
    price = emulator.add_price(
        price_id="price_tiers",
        meter=emulator.add_meter("words"),
        billing_scheme="tiered",
        tiers_mode="graduated",
        tiers=tiers,
        currency_options=other,
    )
    async with account(emulator) as client:
        expand = ["currency_options", "currency_options.eur.tiers"]
        found = (await client.prices.retrieve(price, expand=expand)).to_dict()["currency_options"]
        assert [tier["unit_amount"] for tier in found["eur"]["tiers"]] == [0, 2]
        assert "tiers" not in found["usd"]
        for odd in ("currency_options.gbp", "currency_options.eur.amount"):
            await refused(client.prices.retrieve(price, expand=[odd]), "cannot be expanded")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"usd": {"unit_amount": 1}}, "matches the top-level currency for this price"),
        ({"euro": {"unit_amount": 1}}, "Invalid currency: euro"),
        ({"eur": {"tax_behavior": "inclusive"}}, "require an `unit_amount`"),
        ({"eur": {"unit_amount": 1, "amount": 1}}, "amount"),
    ],
)
async def test_odd_options_are_refused(options: Any, message: str) -> None:
    """https://github.com/stripe/stripe-node/issues/1559 has Stripe's words for the default currency."""
    emulator, _ = shop()
    async with account(sold(emulator)) as client:
        await refused(client.prices.update("price_both", currency_options=options), message)


async def test_a_subscription_is_charged_in_the_currency_asked_for() -> None:
    emulator, _ = shop()
    async with account(sold(emulator)) as client:
        made = await subscribe(client, "price_both", currency="eur")
        assert (made.currency, invoice_of(made).currency, amounts(invoice_of(made))) == ("eur", "eur", [1800])
        # The item shows the price in its default currency.
        assert (item_of(made).price.currency, item_of(made).price.unit_amount) == ("usd", 2000)
        assert (await client.customers.retrieve("cus_1")).currency == "eur"
        more = await client.subscriptions.update(made.id, items=[{"id": item_of(made).id, "quantity": 3}])
        assert item_of(more).quantity == 3
        await client.subscriptions.update(made.id, proration_behavior="always_invoice")
        assert (await newest_invoice(client)).currency == "eur"
        await refused(
            client.subscriptions.update(made.id, items=[{"price": "price_10"}]), "only supports `usd`"
        )


@pytest.mark.parametrize(
    ("currency", "amount", "price", "page", "refund"),
    [
        ("eur", 290_050, "2900.5 EUR", "2,900.50 EUR", "2,900.51 EUR"),
        ("jpy", 4_000, "4000 JPY", "4,000 JPY", "4,001 JPY"),
        ("kwd", 9_500, "9.5 KWD", "9.500 KWD", "9.501 KWD"),
    ],
)
async def test_words_have_the_decimals_of_a_currency(
    currency: str, amount: int, price: str, page: str, refund: str
) -> None:
    """https://docs.stripe.com/currencies#zero-decimal."""
    emulator, _ = shop()
    emulator.add_price(amount, price_id="price_own", product="prod_pro", currency=currency)
    async with account(emulator) as client:
        items: Any = [{"price": "price_own", "quantity": 1}]
        session = await client.checkout.sessions.create(**offer(line_items=items))
        async with httpx.AsyncClient(verify=tls()) as browser:
            assert f">{page}<" in (await browser.get(session.url)).text
        made = await subscribe(client, "price_own")
        (line,) = (await newest_invoice(client)).lines.data
        assert (line.description, line.amount) == (f"1 × Pro (at {price} / month)", amount)  # noqa: RUF001
        (payment,) = (await client.invoice_payments.list(invoice=invoice_of(made).id)).data
        asked = client.refunds.create(payment_intent=payment.payment.payment_intent, amount=amount + 1)
        await refused(asked, re.escape(f"({refund}) is greater than"))


async def test_a_live_customer_keeps_its_currency_and_others_do_not() -> None:
    """https://support.stripe.com/questions/customer-default-currency."""
    emulator, _ = shop()
    async with account(sold(emulator)) as client:
        made = await subscribe(client, "price_both", currency="eur")
        await refused(subscribe(client, "price_10"), "You cannot combine currencies on a single customer")
        # Without a word, it is the customer's.
        again = await subscribe(client, "price_both")
        assert again.currency == "eur"
        for each in (made, again):
            await client.subscriptions.cancel(each.id)
        assert (await client.customers.retrieve("cus_1")).currency == "eur"
        assert (await subscribe(client, "price_10")).currency == "usd"
        assert (await client.customers.retrieve("cus_1")).currency == "usd"


async def test_what_a_customer_gets_first_decides_its_currency() -> None:
    emulator = StripeEmulator()
    emulator.add_customer("cus_eur", currency="eur")
    for name in ("cus_item", "cus_invoice", "cus_balance"):
        emulator.add_customer(name)
    async with account(emulator) as client:
        item: Any = {"currency": "eur", "unit_amount_decimal": "5"}
        await client.invoice_items.create(customer="cus_item", **item)
        await client.invoices.create(customer="cus_invoice", currency="gbp")
        await client.customers.balance_transactions.create("cus_balance", amount=-5, currency="jpy")
        found = {one.id: one.currency for one in (await client.customers.list()).data}
        assert found == {"cus_eur": "eur", "cus_item": "eur", "cus_invoice": "gbp", "cus_balance": "jpy"}
        assert (await client.invoices.create(customer="cus_eur")).currency == "eur"


async def test_checkout_has_the_currency_asked_for_or_the_customers() -> None:
    emulator, _ = shop()
    sold(emulator)
    emulator.add_customer("cus_eur", currency="eur")
    item: Any = [{"price": "price_both", "quantity": 2}]
    async with account(emulator) as client:
        sessions = client.checkout.sessions
        asked = await sessions.create(**offer(line_items=item, currency="eur", customer="cus_1"))
        own = await sessions.create(**offer(line_items=item, customer="cus_eur"))
        plain = await sessions.create(**offer(line_items=item))
        assert [(one.currency, one.amount_total) for one in (asked, own, plain)] == [
            ("eur", 3600),
            ("eur", 3600),
            ("usd", 4000),
        ]
        await refused(sessions.create(**offer(currency="eur")), "only supports `usd`")
        emulator.complete_checkout(asked.id)
        (made,) = (await client.subscriptions.list(customer="cus_1")).data
        assert (made.currency, (await newest_invoice(client)).total) == ("eur", 3600)


async def test_phases_and_previews_have_the_currency_of_the_rest() -> None:
    emulator, clock = shop()
    async with account(sold(emulator)) as client:
        made = await subscribe(client, "price_both", currency="eur")
        schedule = await client.subscription_schedules.create(from_subscription=made.id)
        now, items = schedule.phases[0], [{"price": "price_both", "quantity": 1}]
        later: Any = {"items": [{"price": "price_both", "quantity": 2}], "currency": "eur"}
        first: Any = {"items": items, "start_date": now.start_date, "end_date": now.end_date}
        changed = await client.subscription_schedules.update(schedule.id, phases=[first, later])
        assert [phase.currency for phase in changed.phases] == ["eur", "eur"]
        for odd in ({**later, "currency": "usd"}, {"items": [{"price": "price_10"}]}):
            update = client.subscription_schedules.update(schedule.id, phases=[first, odd])
            await refused(update, "currency")
        preview = await client.invoices.create_preview(subscription=made.id)
        assert (preview.currency, preview.total) == ("eur", 1800)
        clock.advance(timedelta(seconds=now.end_date - now.start_date))
        emulator.advance()
        assert (await newest_invoice(client)).total == 3600
        new: Any = {"items": [{"price": "price_both"}]}
        emulator.add_customer("cus_2")
        first = await client.invoices.create_preview(
            customer="cus_2", currency="eur", subscription_details=new
        )
        assert (first.currency, first.total) == ("eur", 1800)
