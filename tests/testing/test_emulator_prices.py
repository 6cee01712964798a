"""Products and prices of the emulated account, seen through the official SDK over HTTP."""

from __future__ import annotations

from typing import Any, Final

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import SECOND, refused
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio


async def test_products_live_and_die(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/api/products."""
    before, products = len(emulator.webhook_events), client.products
    made = await products.create(name="Team", id="prod_team", metadata={"plan": "team"}, unit_label="seat")
    assert (made.id, made.active, made.metadata["plan"]) == ("prod_team", True, "team")
    assert made.created == SECOND
    changed = await products.update("prod_team", active=False, name="Old", metadata="")
    assert (changed.active, changed.name, changed.metadata.to_dict()) == (False, "Old", {})
    assert (await products.retrieve("prod_team")).unit_label == "seat"
    error = await refused(products.create(name="Team", id="prod_team"), "Product already exists")
    assert error.code == "resource_already_exists"
    error = await refused(products.retrieve("prod_none"), "No such product: 'prod_none'")
    assert error.http_status == 404
    events = [event.type for event in emulator.webhook_events[before:]]
    assert events == ["product.created", "product.updated"]


async def test_a_product_may_come_with_its_price(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/api/products/create#create_product-default_price_data."""
    price = {"currency": "usd", "unit_amount": 2900, "recurring": {"interval": "month"}}
    made = await client.products.create(name="Pro", default_price_data=price, expand=["default_price"])
    assert (made.default_price.product, made.default_price.unit_amount) == (made.id, 2900)
    other = emulator.add_price(4900, product=made.id)
    assert (await client.products.update(made.id, default_price=other)).default_price == other
    unknown = client.products.update(made.id, default_price="price_x")
    assert (await refused(unknown, "No such price: 'price_x'")).http_status == 400


async def test_prices_are_listed_by_what_they_are() -> None:
    """https://docs.stripe.com/api/prices/list: `active`, `product`, `lookup_keys`, `type`, `recurring`."""
    emulator = StripeEmulator()
    meter = emulator.add_meter("tokens")
    pro = emulator.add_product("Pro")
    base = emulator.add_price(2900, product=pro, lookup_key="base")
    usage = emulator.add_price(12, product=pro, meter=meter)
    once = emulator.add_price(500, interval=None, currency="eur")
    old = emulator.add_price(1900, product=pro, active=False, interval="year")
    async with account(emulator) as client:

        async def ids(**wanted: Any) -> list[str]:
            return [price.id for price in (await client.prices.list(**wanted)).data]

        assert await ids() == [old, once, usage, base]
        assert await ids(active=True, product=pro) == [usage, base]
        assert await ids(lookup_keys=["base", "none"]) == [base]
        assert await ids(type="one_time") == await ids(currency="eur") == [once]
        assert await ids(recurring={"usage_type": "metered", "meter": meter}) == [usage]
        assert await ids(recurring={"interval": "year"}) == [old]
        listed = await client.prices.list(limit=1, expand=["data.product"])
        assert isinstance(listed.data[0].product, stripe.Product)


MONTHLY = {"interval": "month"}
METERED = {"interval": "month", "usage_type": "metered"}
FLAT = {"currency": "usd", "unit_amount": 1}
TIERED = {"currency": "usd", "billing_scheme": "tiered"}
VOLUME_OF = {**TIERED, "tiers_mode": "volume"}
COUNT = "recurring[interval_count]"
BY_TWO = {"divide_by": 2, "round": "up"}
TWO_TIERS = [{"up_to": 10, "unit_amount": 5}, {"up_to": "inf", "unit_amount": 4}]


@pytest.mark.parametrize(
    ("params", "message", "param"),
    [
        ({}, "Missing required param: currency", "currency"),
        ({"currency": "usd"}, "Prices require an `unit_amount` or `unit_amount_decimal`", None),
        ({"currency": "usd", "unit_amount": "ten"}, "Invalid integer: ten", "unit_amount"),
        ({**FLAT, "unit_amount_decimal": "1.5"}, "You may only specify one", "unit_amount"),
        ({"currency": "usd", "unit_amount_decimal": "0.0000000000001"}, "maximum 12", "unit_amount_decimal"),
        ({**FLAT, "recurring": {"interval": "hour"}}, "must be one of", "recurring[interval]"),
        ({**FLAT, "recurring": {**MONTHLY, "interval_count": 37}}, "three years", COUNT),
        ({**FLAT, "recurring": METERED}, "is required", "recurring[meter]"),
        ({**FLAT, "recurring": {**MONTHLY, "meter": "mtr_x"}}, "can only be set", "recurring[meter]"),
        ({**FLAT, "recurring": {**METERED, "meter": "mtr_x"}}, "No such meter", "recurring[meter]"),
        ({**FLAT, "custom_unit_amount": {"enabled": True}}, "not emulated", "custom_unit_amount"),
        ({**TIERED, "tiers": TWO_TIERS}, "Missing", "tiers_mode"),
        ({**VOLUME_OF, "tiers": TWO_TIERS[:1]}, "up_to=inf", "tiers"),
        ({**VOLUME_OF, "tiers": [TWO_TIERS[0], *TWO_TIERS]}, "ascending", "tiers"),
        ({**VOLUME_OF, "tiers": [{"up_to": "inf"}]}, "needs an", "tiers[0][unit_amount]"),
        ({**VOLUME_OF, "tiers": TWO_TIERS, "transform_quantity": BY_TWO}, "combined", "transform_quantity"),
        ({**FLAT, "expand": ["colour"]}, "cannot be expanded", "expand"),
        ({**FLAT, "expand": ["product.a.b.c.d"]}, "more than 4 levels", "expand"),
    ],
)  # fmt: skip
async def test_prices_need_what_they_need(client: Any, params: Any, message: str, param: str | None) -> None:
    """https://docs.stripe.com/api/prices/create; nothing is made of what is refused."""
    before = len((await client.products.list()).data)
    error = await refused(client.prices.create(**params, product_data={"name": "Pro"}), message)
    assert error.param == param
    if "expand" not in params:
        assert len((await client.products.list()).data) == before


def test_prices_and_products_of_a_tests_own() -> None:
    emulator = StripeEmulator()
    assert emulator.add_price(2900, price_id="price_pro") == "price_pro"
    with pytest.raises(ValueError, match="already a price price_pro"):
        emulator.add_price(3900, price_id="price_pro")
    assert emulator.add_product("Team", product_id="prod_team") == "prod_team"


CATALOG: Final = loads("""
schema: 1
currency: eur
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: api_requests}}
  tokens:   {unit: token, name: Tokens of text, stripe: {event_name: ai_tokens}}
  pages:    {unit: page, stripe: {event_name: pdf_pages}}
  rows:     {unit: row}
  seats:    {unit: seat, kind: gauge}
routes:
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {included: 10, overage: deny}
      tokens:   {included: 10, overage: deny}
      pages:    {included: 10, overage: deny}
  pro:
    name: Professional
    price: {amount_cents: 2900, interval: month, stripe_price: price_pro}
    seat_price: {amount_cents: 900, stripe_price: price_seat}
    meters:
      requests: {included: 10, overage: {bill: {per: 1, amount_cents: 1}}}
      tokens:   {included: 10, overage: {bill: {per: 1000, amount_cents: 12}}}
      pages:    {included: 10, overage: bill}
      rows:     {included: 10, overage: deny}
      seats:    {included: 3, overage: deny}
  plus:
    extends: pro
    rank: 5
  yearly:
    price: {amount_cents: 29000, interval: year, stripe_price: price_yearly}
    meters:
      requests: {included: 10, overage: deny}
      tokens:   {included: 10, overage: deny}
      pages:    {included: 10, overage: deny}
""")


async def test_what_a_plans_file_sells_is_sold() -> None:
    emulator = StripeEmulator()
    meter = emulator.add_meter("ai_tokens")
    emulator.add_plans(CATALOG)
    async with account(emulator) as client:
        products = {each.id: each.name for each in (await client.products.list()).data}
        assert products == {
            "prod_pro": "Professional",
            "prod_pro_seats": "Professional: seats",
            "prod_meter_requests": "Requests",
            "prod_meter_tokens": "Tokens of text",
            "prod_yearly": "yearly",
        }
        prices = {each.id: each for each in (await client.prices.list(limit=100)).data}
        assert {name: (each.product, str(each.unit_amount_decimal)) for name, each in prices.items()} == {
            "price_pro": ("prod_pro", "2900"),
            "price_seat": ("prod_pro_seats", "900"),
            "price_pro_requests": ("prod_meter_requests", "1"),
            "price_pro_tokens": ("prod_meter_tokens", "0.012"),
            "price_yearly": ("prod_yearly", "29000"),
        }, "a plan with an inherited price adds nothing"
        assert [each for each in prices.values() if each.transform_quantity is not None] == []
        tokens, yearly = prices["price_pro_tokens"], prices["price_yearly"]
        assert (tokens.recurring.meter, tokens.recurring.usage_type) == (meter, "metered")
        assert (yearly.recurring.interval, yearly.currency) == ("year", "eur")
        names = {each.event_name for each in (await client.billing.meters.list()).data}
        assert names == {"api_requests", "ai_tokens", "pdf_pages"}
    before = len(emulator.webhook_events)
    emulator.add_plans(CATALOG)
    assert len(emulator.webhook_events) == before, "what there is stays as it is"
