"""A shop whose plans differ in one price, and customers who switch between them in Stripe's portal."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from drivers.shop import HALF
from meterkit.catalog import loads

if TYPE_CHECKING:
    from drivers.shop import Shop

__all__ = ["CATALOG", "PLANS", "begin", "switch"]

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  words: {unit: word, stripe: {event_name: translated_words}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {words: {included: 0, overage: deny}}
  four:
    rank: 1
    price: {amount_cents: 1000, interval: month, stripe_price: price_four}
    meters: {words: {included: 10, overage: {bill: {per: 1, amount_cents: 4}}}}
  seven:
    rank: 2
    price: {amount_cents: 2000, interval: month, stripe_price: price_seven}
    meters: {words: {included: 10, overage: {bill: {per: 1, amount_cents: 7}}}}
  two:
    rank: 3
    price: {amount_cents: 3000, interval: month, stripe_price: price_two}
    meters: {words: {included: 10, overage: {bill: {per: 1, amount_cents: 2}}}}
  third:
    rank: 4
    price: {amount_cents: 4000, interval: month, stripe_price: price_third}
    meters: {words: {included: 10, overage: {bill: {per: 1_000, amount_cents: 15}}}}
  none:
    rank: 5
    price: {amount_cents: 5000, interval: month, stripe_price: price_none}
    meters: {words: {included: unlimited}}
"""
CATALOG: Final = loads(PLANS)


async def begin(at: Shop, plan: str = "four") -> None:
    """Subscribe to a plan and use up its included words in mid-period."""
    await at.subscribed(plan=plan)
    at.clock.set(HALF + timedelta(seconds=20))
    await at.kit.record("acme", "words", 10)


async def switch(at: Shop, plan: str) -> None:
    """Change all prices of the subscription at Stripe, as a customer does in the portal."""
    (begun,) = await at.stripe_list("/v1/subscriptions")
    changed: dict[str, str] = {}
    for place, item in enumerate(begun["items"]["data"]):
        metered = item["price"]["id"].endswith("_words")
        changed[f"items[{place}][id]"] = item["id"]
        if metered and plan == "none":
            changed[f"items[{place}][deleted]"] = "true"
        else:
            changed[f"items[{place}][price]"] = f"price_{plan}{'_words' * metered}"
    await at.stripe_change(f"/v1/subscriptions/{begun['id']}", **changed, proration_behavior="always_invoice")
