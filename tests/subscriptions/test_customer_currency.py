"""The currency of a customer: Stripe's, else the one asked for, else the first; another one is refused."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.delivery import kit_for
from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from meterkit import CurrencyError, MeterkitError
from meterkit.catalog import loads
from meterkit.starlette import billing_routes
from subscriptions.looks import linked_of

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("currencies")
PRICES: Final = {"usd": 2900, "eur": 2700, "jpy": 4000}
URLS: Final[dict[str, Any]] = {
    "success_url": "https://app.example/paid",
    "cancel_url": "https://app.example/plans",
}


@asynccontextmanager
async def selling(store_url: str, plans: str = PLANS) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as opened:
        await opened.kit.stripe.sync()
        yield opened


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with selling(store_url) as opened:
        yield opened


async def pays(at: Shop, customer: str = "acme", currency: str | None = None) -> str:
    """Subscribe and pay; the id of the subscription."""
    made = await at.kit.subscriptions.create(customer, "pro", currency=currency)
    assert made.client_secret is not None
    at.emulator.confirm_payment(made.client_secret)
    await at.kit.subscriptions.sync(customer)
    return made.subscription.id


async def billed_in(at: Shop, customer: str, currency: str) -> None:
    """Give a Stripe customer a currency, as an earlier invoice or balance does, and link it."""
    linked = at.emulator.add_customer(f"cus_{customer}")
    at.emulator.add_payment_method(linked, "pm_card_visa")
    path = f"/v1/customers/{linked}/balance_transactions"
    await at.stripe_change(path, amount="-1", currency=currency)
    await at.kit.customers.link(customer, linked)


async def refused(at: Shop, currency: str | None, *, billed: str, requested: str) -> None:
    """Neither way to subscribe takes the currency, and the error names both."""
    for ask in (
        at.kit.subscriptions.create("acme", "pro", currency=currency),
        at.kit.subscriptions.checkout("acme", "pro", currency=currency, **URLS),
    ):
        with pytest.raises(CurrencyError, match=billed.upper()) as caught:
            await ask
        assert requested.upper() in str(caught.value)
        assert (caught.value.currency, caught.value.requested) == (billed, requested)


async def shown(at: Shop, customer: str = "acme") -> str:
    return (await at.kit.usage(customer))["currency"]


async def test_the_one_asked_for_counts_and_else_the_first(at: Shop) -> None:
    for customer, asked, symbol in (("a", None, "$"), ("b", "eur", "€"), ("c", "JPY", "¥")):
        currency = (asked or "usd").lower()
        found = await pays(at, customer, asked)
        assert (await at.stripe_subscription(found))["currency"] == currency
        assert (await shown(at, customer), (await at.kit.customers.get(customer)).currency) == (
            currency,
            currency,
        )
        (invoice,) = await at.kit.subscriptions.invoices(customer)
        assert (invoice.currency, invoice.total_cents) == (currency, PRICES[currency])
        preview = await at.kit.subscriptions.preview(customer, plan="max")
        assert preview.proration.currency == currency
        assert f" {symbol}" in preview.proration.description
    for wrong in ("gbp", "", 7):
        given: Any = wrong
        for ask in (
            at.kit.subscriptions.create("d", "pro", currency=given),
            at.kit.subscriptions.checkout("d", "pro", currency=given, **URLS),
        ):
            with pytest.raises(MeterkitError, match=r"currency: found .*; allowed are usd, eur, jpy"):
                await ask


async def test_another_one_is_refused_while_it_runs_and_after_its_end(at: Shop) -> None:
    found = await pays(at, currency="eur")
    await refused(at, "usd", billed="eur", requested="usd")
    at.clock.set(HALF)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    assert (await at.stripe_subscription(found))["status"] == "canceled"
    await refused(at, "jpy", billed="eur", requested="jpy")
    assert await shown(at) == "eur"
    # Without a word it is the customer's.
    assert (await at.stripe_subscription(await pays(at)))["currency"] == "eur"


async def test_who_gets_a_new_stripe_customer_may_choose_again(at: Shop) -> None:
    await pays(at, currency="eur")
    await at.stripe_delete(f"/v1/customers/{await linked_of(at)}")
    await at.kit.subscriptions.sync("acme")
    assert await shown(at) == "eur"
    assert (await at.stripe_subscription(await pays(at, currency="jpy")))["currency"] == "jpy"


async def test_a_sign_up_that_ended_unpaid_fixes_nothing(at: Shop) -> None:
    await at.kit.subscriptions.create("acme", "pro", currency="eur")
    await refused(at, "usd", billed="eur", requested="usd")
    await at.kit.subscriptions.cancel("acme")
    await at.kit.subscriptions.sync("acme")
    assert await shown(at) == "usd"
    assert (await at.stripe_subscription(await pays(at, currency="usd")))["currency"] == "usd"


async def test_no_currency_outlives_its_link(at: Shop) -> None:
    await billed_in(at, "acme", "eur")
    await at.kit.customers.unlink("acme")
    assert await shown(at) == "usd"


async def test_that_of_a_linked_stripe_customer_decides(at: Shop) -> None:
    await billed_in(at, "acme", "eur")
    assert await shown(at) == "eur"
    await refused(at, "usd", billed="eur", requested="usd")
    assert (await at.stripe_subscription(await pays(at)))["currency"] == "eur"


async def test_one_that_the_plans_file_lacks_is_answered_in_words(
    at: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await billed_in(at, "acme", "gbp")
    assert await shown(at) == "gbp"
    assert "customer 'acme' is billed in GBP at Stripe, which the plans file lacks" in caplog.text
    await refused(at, None, billed="gbp", requested="usd")
    with pytest.raises(CurrencyError, match=r"the plans file has USD, EUR, JPY.*add gbp to its `currency`"):
        await at.kit.subscriptions.create("acme", "pro", currency="eur")


async def test_a_page_sells_in_the_currency_that_was_asked_for(at: Shop) -> None:
    page = await at.kit.subscriptions.checkout("acme", "pro", currency="eur", **URLS)
    assert page == await at.kit.subscriptions.checkout("acme", "pro", currency="eur", **URLS)
    assert page != await at.kit.subscriptions.checkout("acme", "pro", currency="jpy", **URLS)
    page = await at.kit.subscriptions.checkout("acme", "pro", currency="eur", **URLS)
    at.emulator.complete_checkout(page.id)
    found = await at.kit.subscriptions.sync("acme")
    assert found is not None
    assert ((await at.stripe_subscription(found.id))["currency"], await shown(at)) == ("eur", "eur")
    with pytest.raises(MeterkitError, match="give currency= instead"):
        await at.kit.subscriptions.checkout("b", "pro", options={"currency": "eur"}, **URLS)


async def test_both_posts_take_it_and_name_both_if_it_is_fixed(at: Shop) -> None:
    routes = billing_routes(at.kit, customer=lambda _: "acme", origins=["https://app.example"])
    transport = httpx.ASGITransport(app=Starlette(routes=[Mount("/billing", routes=routes)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://app/billing") as client:
        wrong = await client.post("/subscription", json={"plan": "pro", "currency": "gbp"})
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "currency")
        made = await client.post("/subscription", json={"plan": "pro", "currency": "eur"})
        at.emulator.confirm_payment(made.json()["client_secret"])
        await at.kit.subscriptions.sync("acme")
        assert (await client.get("/usage")).json()["currency"] == "eur"
        for path, more in (("/subscription", {}), ("/checkout", URLS)):
            told = (await client.post(path, json={"plan": "pro", "currency": "usd", **more})).json()
            assert (told["status"], told["type"]) == (409, "urn:meterkit:problem:currency-fixed")
            assert (told["currency"], told["requested_currency"]) == ("eur", "usd")
            assert "billed in EUR, and USD was requested" in told["detail"]


async def test_an_import_takes_over_the_currency_of_each_customer(at: Shop) -> None:
    (price,) = [
        one["id"] for one in await at.stripe_list("/v1/prices") if one["lookup_key"] == "meterkit:pro:base"
    ]
    for customer, currency in (("a", "eur"), ("b", "jpy"), ("c", "usd")):
        linked = at.emulator.add_customer(f"cus_{customer}")
        at.emulator.add_payment_method(linked, "pm_card_visa")
        await at.stripe_change(f"/v1/customers/{linked}", **{"metadata[meterkit_customer]": customer})
        if customer == "c":
            path = f"/v1/customers/{linked}/balance_transactions"
            await at.stripe_change(path, amount="-1", currency="eur")
            continue
        items: Any = [{"price": price}]
        await at.post("/v1/subscriptions", {"customer": linked, "items": items, "currency": currency})
    await at.kit.subscriptions.import_from_stripe()
    assert [await shown(at, customer) for customer in "abc"] == ["eur", "jpy", "eur"]


async def test_top_ups_stay_in_dollars(at: Shop) -> None:
    await pays(at, currency="eur")
    linked = await linked_of(at)
    at.emulator.add_payment_method(linked, "pm_card_visa")
    bought = await at.kit.credits.buy("acme", 1000)
    assert bought.status == "paid"
    found = {one.id: one for one in await at.kit.subscriptions.invoices("acme")}
    assert (found[bought.invoice or ""].currency, found[bought.invoice or ""].total_cents) == ("usd", 1000)
    assert ((await at.kit.usage("acme"))["balance_micros"]["usd"], await shown(at)) == (10_000_000, "eur")


async def test_a_top_up_before_a_subscription_fixes_nothing(at: Shop) -> None:
    linked = at.emulator.add_customer("cus_acme")
    at.emulator.add_payment_method(linked, "pm_card_visa")
    await at.kit.customers.link("acme", linked)
    assert (await at.kit.credits.buy("acme", 1000)).status == "paid"
    await at.kit.subscriptions.sync("acme")
    assert (await at.stripe_subscription(await pays(at, currency="eur")))["currency"] == "eur"
    await refused(at, "usd", billed="eur", requested="usd")


async def test_a_top_up_alone_ends_no_spend_limit(store_url: str) -> None:
    """An import, and a sync once no top-ups were sold, took its dollars for the customer's currency."""
    in_euros = PLANS.replace("[usd, eur, jpy]", "[eur, usd, jpy]")
    async with selling(store_url, in_euros) as at:
        linked = at.emulator.add_customer("cus_acme")
        at.emulator.add_payment_method(linked, "pm_card_visa")
        await at.stripe_change(f"/v1/customers/{linked}", **{"metadata[meterkit_customer]": "acme"})
        await at.kit.subscriptions.import_from_stripe()
        await at.kit.customers.spend_limit("acme", 300)
        assert (await at.kit.credits.buy("acme", 1000)).status == "paid"
        await at.kit.subscriptions.import_from_stripe()
        unsold = loads(re.sub(r", top_up: {.*}}", "}", in_euros))
        async with kit_for(store_url, at.url, clock=at.clock, catalog=unsold) as later:
            await later.subscriptions.sync("acme")
            found = await later.customers.get("acme")
        assert (await shown(at), found.overrides) == ("eur", {"spend": {"period": 300}})


async def test_a_plans_file_of_one_currency_leaves_it_to_stripe(store_url: str) -> None:
    async with shop(store_url) as at:
        await billed_in(at, "acme", "eur")
        with pytest.raises(CurrencyError, match=r"EUR.*USD was requested"):
            await at.kit.subscriptions.create("acme", "team", currency="usd")
        assert (await at.subscribed()).plan == "team"


async def test_amounts_of_overrides_end_with_their_currency(
    at: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await pays(at)
    own = {"included": 7, "overage": {"bill": {"per": 1, "amount_cents": 9, "cap": 50}}}
    await at.kit.customers.override("acme", {"words": own})
    await at.kit.customers.spend_limit("acme", 300)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.stripe_delete(f"/v1/customers/{await linked_of(at)}")
    await pays(at, currency="eur")
    found = await at.kit.customers.get("acme")
    assert found.overrides == {"words": {"included": 7, "overage": {"bill": {"cap": 50}}}}
    words = (await at.kit.usage("acme"))["meters"]["words"]
    price = words.get("price")
    assert price is not None
    assert (words["included"], price["amount_cents"], price["currency"]) == (7, 11, "eur")
    assert "in EUR now; its overrides had amounts in USD" in caplog.text
    assert await at.kit.subscriptions.check() == {}
    # Those that are given in it stay.
    await at.kit.customers.spend_limit("acme", 200)
    await at.kit.subscriptions.sync("acme")
    again = await at.kit.customers.get("acme")
    assert again.overrides["spend"] == {"period": 200}


async def test_prices_of_a_plan_by_hand_are_those_of_its_currency(store_url: str) -> None:
    async with selling(store_url, f"{PLANS}billing: {{usage: lines}}\n") as at:
        await at.kit.customers.set_plan("acme", "pro")
        await at.kit.record("acme", "words", 126)
        assert (await at.kit.usage("acme"))["meters"]["words"]["overage_cents"] == 26 * 12
        await billed_in(at, "acme", "eur")
        await at.kit.subscriptions.sync("acme")
        words = (await at.kit.usage("acme"))["meters"]["words"]
        price = words.get("price")
        assert price is not None
        assert (price["amount_cents"], price["currency"]) == (11, "eur")
        assert words["overage_cents"] == 26 * 11


DOLLARS: Final = re.sub(r"\{usd: (\w+), eur: \w+, jpy: \w+\}", r"\1", PLANS.replace("[usd, eur, jpy]", "usd"))


@pytest.mark.parametrize("usage", ["lines", "meters"])
async def test_f_305_a_currency_that_leaves_the_file_goes_on_billing(store_url: str, usage: str) -> None:
    """By lines, no invoice had the usage, and its price was shown as €0.11's number in dollars."""
    billing = f"billing: {{usage: {usage}}}\n"
    async with selling(store_url, PLANS + billing) as at:
        await pays(at, currency="eur")
        await at.kit.record("acme", "words", 126)
        at.kit.store.use(loads(DOLLARS + billing))
        await at.kit.record("acme", "words", 10)
        found = await at.kit.usage("acme")
        words: Any = found["meters"]["words"]
        assert (found["currency"], words["price"]["currency"]) == ("eur", "eur")
        assert (words["price"]["amount_cents"], words["overage_cents"]) == (11, 36 * 11)
        await at.kit.subscriptions.sync("acme")
        assert (await at.kit.usage("acme"))["meters"]["words"]["overage_cents"] == 36 * 11
        await at.kit.flush(everything=True)
        at.go(END + timedelta(minutes=3))
        await at.kit.subscriptions.sync("acme")
        await at.kit.flush(everything=True, timeout_s=0)
        at.go(timedelta(hours=3))
        lines = [(line["amount"], line["currency"]) for line in (await at.invoices())[-1]["lines"]["data"]]
        assert sorted(lines) == [(36 * 11, "eur"), (2700, "eur")]
        assert all(one.agrees for one in await at.kit.reconcile("acme", at=HALF))


async def test_f_305_without_a_price_in_its_currency_none_is_billed(store_url: str) -> None:
    billing = "billing: {usage: lines}\n"
    billed = "{included: 10, overage: {bill: {per: 1, amount_cents: 5}}}"
    async with selling(store_url, PLANS + billing) as at:
        await billed_in(at, "acme", "eur")
        await at.kit.subscriptions.sync("acme")
        at.kit.store.use(loads(DOLLARS.replace("{included: 10, overage: deny}", billed) + billing))
        await at.kit.record("acme", "words", 30)
        words = (await at.kit.usage("acme"))["meters"]["words"]
        assert ("price" in words, words["overage_cents"]) == (False, None)
        at.go(END + timedelta(minutes=3))
        (late,) = (await at.kit.flush(everything=True, timeout_s=0)).late
        assert (late.quantity, late.is_billed) == (20, False)
        assert "has no price" in " ".join(one.after or "" for one in await at.kit.customers.history("acme"))
