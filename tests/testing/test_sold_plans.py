"""The emulator sells the plans and top-ups of a plans file, by the prices of ``meterkit stripe sync``."""

from __future__ import annotations

from typing import Final

import pytest

from drivers.emulated_account import account
from drivers.near_stripe import served
from drivers.top_ups import AUTO
from drivers.webhooks import hooked_kit
from meterkit.catalog import loads
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

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


async def test_top_ups_of_a_plans_file_are_sold(store_url: str) -> None:
    clock = Clock()
    emulator = StripeEmulator(clock=clock)
    emulator.add_plans(AUTO)
    before = len(emulator.webhook_events)
    async with served(emulator) as url, hooked_kit(store_url, url, clock, catalog=AUTO) as kit:
        found = await kit.stripe.sync()
        page = await kit.credits.buy("ada", 1000, success_url="https://a.test", cancel_url="https://a.test")
    sold = [(line.what, line.name, line.action, line.id, line.price) for line in found.lines]
    assert sold == [
        ("product", "Top-up", "is there", "prod_top_up_usd", ""),
        ("price", "usd, top-up", "is there", "price_top_up_usd_1000", "$10.00 once"),
        ("price", "usd, top-up", "is there", "price_top_up_usd_2000", "$20.00 once"),
    ]
    assert page.status == "open"
    emulator.add_plans(AUTO)
    made = [event.type for event in emulator.webhook_events[before:]]
    assert not {"price.created", "product.created"}.intersection(made), "what there is stays as it is"
