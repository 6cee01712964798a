"""Products and prices of the emulated account, seen through the official SDK over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import refused
from drivers.emulated_times import SECOND
from stripe_emulator import StripeEmulator

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
