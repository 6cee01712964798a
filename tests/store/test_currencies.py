"""Decisions in a customer's own currency: budgets, prices of overage, limits of subjects and one's own."""

from __future__ import annotations

from typing import Any, Final

import pytest

from drivers.subscribed_customer import fetched, subscription
from faults.refusals import Client, metered, settled
from meterkit import MeterKit

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: [usd, eur, jpy]
default_plan: pro
meters: {words: {unit: word, stripe: {event_name: words}}}
routes: [{match: "*", consume: {words: 1}}]
plans:
  pro:
    price: {amount_cents: {usd: 2000, eur: 1800, jpy: 3000}, interval: month}
    budget: {amount_cents: {usd: 100, eur: 90, jpy: 110}}
    meters:
      words: {included: 1, overage: {bill: {per: 1, amount_cents: {usd: 10, eur: 10, jpy: 10}}}}
    subjects:
      user: {budget: {amount_cents: {usd: 30, eur: 20, jpy: 40}, per: day}}
"""
MICROS: Final = {"usd": 10_000, "eur": 10_000, "jpy": 1_000_000}
ADMITTED: Final = {"usd": 11, "eur": 10, "jpy": 12}


async def buys(kit: MeterKit, currency: str, customer: str = "") -> str:
    """A customer who pays in a currency."""
    customer = customer or currency
    await fetched(kit, subscription(currency=currency), customer=customer)
    return customer


@pytest.mark.parametrize("order", [("usd", "eur", "jpy"), ("jpy", "eur", "usd")])
async def test_a_budget_is_in_the_customers_currency(kit: MeterKit, order: tuple[str, ...]) -> None:
    for currency in order:
        customer, most = await buys(kit, currency), ADMITTED[currency]
        assert not (await kit.check(customer, "words", most + 1)).allowed
        assert (await kit.consume(customer, "words", most)).allowed
        assert (await kit.consume(customer, "words")).reason == "spend"
        await kit.record(customer, "words", 1)
        usage = await kit.usage(customer)
        words = usage["meters"]["words"]
        assert (usage["currency"], words["overage_cents"]) == (currency, 10 * most)
        price: Any = words.get("price")
        assert price is not None
        assert (price["amount_cents"], price["currency"]) == (10, currency)
        assert usage["meters"]["spend"]["recorded"] == 10 * most * MICROS[currency]


async def test_a_refused_request_names_the_customers_currency(kit: MeterKit) -> None:
    client = Client(metered(kit))
    for currency in ("jpy", "usd", "eur"):
        customer = await buys(kit, currency)
        await kit.record(customer, "words", ADMITTED[currency])
        assert await client.get(customer) == 402
        body = client.messages[1]["body"].decode()
        assert f'"currency":"{currency}"' in body.replace(" ", "")
        limit = {"usd": 100, "eur": 90, "jpy": 110}[currency]
        assert f'"limit_cents":{limit}' in body.replace(" ", "")
        await settled(kit)


async def test_own_limits_are_in_the_customers_currency(kit: MeterKit) -> None:
    for currency, most in (("eur", 5), ("jpy", 5), ("usd", 5)):
        customer = await buys(kit, currency)
        await kit.customers.spend_limit(customer, 40)
        assert (await kit.consume(customer, "words", most)).allowed
        assert (await kit.consume(customer, "words")).reason == "spend"


async def test_an_overridden_price_is_in_the_customers_currency(kit: MeterKit) -> None:
    customer = await buys(kit, "jpy")
    await kit.customers.override(customer, {"words": {"included": 2}})
    assert (await kit.consume(customer, "words", 13)).allowed
    assert not (await kit.consume(customer, "words")).allowed
    assert (await kit.usage(customer))["meters"]["words"]["overage_cents"] == 110


async def test_a_currency_stays_after_the_subscription(kit: MeterKit) -> None:
    assert (await kit.usage("eur"))["currency"] == "usd"
    customer = await buys(kit, "eur")
    await fetched(kit, subscription(currency="eur", status="canceled", ended_at_ms=0), customer=customer)
    assert (await kit.usage(customer))["currency"] == "eur"
    await fetched(kit, None, customer=customer)
    assert (await kit.usage(customer))["currency"] == "eur"
    assert (await kit.customers.get(customer)).currency == "eur"
    # So does one that the plans file lacks.
    assert (await kit.usage(await buys(kit, "gbp")))["currency"] == "gbp"


async def test_an_own_budget_of_a_user_ends_with_its_currency(kit: MeterKit) -> None:
    subject = kit.customers.subject(await buys(kit, "usd", "acme"), user="u")
    await subject.override({"budget": {"amount_cents": 10, "per": "day"}, "words": {"included": 5}})
    await buys(kit, "eur", "acme")
    assert (await kit.customers.get("acme")).subject_overrides == {"user:u": {"words": {"included": 5}}}


async def test_budgets_of_users_are_in_the_customers_currency(kit: MeterKit) -> None:
    for currency, limit in (("usd", 30), ("eur", 20), ("jpy", 40)):
        customer = await buys(kit, currency)
        assert (await kit.consume(customer, "words", limit // 10, subjects={"user": "u"})).allowed
        assert not (await kit.consume(customer, "words", subjects={"user": "u"})).allowed
        (one,) = await kit.usage(customer, by="user")
        assert (one.limit_cents, one.spent_micros) == (limit, limit * MICROS[currency])
