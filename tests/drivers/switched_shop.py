"""A shop whose plans differ in one price, and customers who switch between them in Stripe's portal."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from drivers.plans import plans_text
from drivers.shop import HALF
from meterkit.catalog import loads
from meterkit.testing.emulator.selling.amounts import Pricing, Tier

if TYPE_CHECKING:
    from drivers.shop import Shop

__all__ = ["CATALOG", "PLANS", "Pricing", "Tier", "begin", "switch"]

PLANS: Final = plans_text("switched_shop")
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
