"""Shops whose plans differ in prices, which rose or are switched, and what invoices charge."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from drivers.delivery import deliver, kit_for
from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from meterkit import Proration
from meterkit.catalog import Catalog, loads
from meterkit.stripe.request import Parameter
from meterkit.testing import StripeEmulator
from stripe_emulator.prices import PriceScheme, PricingTier

# What is not its own.
__all__ = [
    "PriceScheme",
    "PricingTier",
    "usage_lines",
]

PLANS: Final = plans_text("priced_shop")
CATALOG: Final = loads(PLANS)


def sell(emulator: StripeEmulator, catalog: Catalog) -> None:
    """Sell the plans with a metered price of each meter that the file bills, on the product of the plan."""
    meters = {
        meter.name: emulator.add_meter(meter.stripe.event_name)
        for meter in catalog.meters.values()
        if meter.stripe is not None
    }
    for plan in catalog.plans.values():
        if plan.price.stripe_price is None:
            continue
        product = emulator.add_product(plan.name, product_id=f"prod_{plan.key}")
        emulator.add_price(plan.price.amount_cents, price_id=plan.price.stripe_price, product=product)
        for name, meter in meters.items():
            cents = plan.entitlements[name].overage.amount_cents
            if cents is not None:
                emulator.add_price(cents, price_id=f"price_{plan.key}_{name}", product=product, meter=meter)


async def item_lines(at: Shop) -> list[tuple[str, int, int]]:
    """All invoice items for late usage that invoices have: description, units, amount in cents."""
    return [
        (line["description"], int(line["quantity_decimal"]), line["amount"])
        for invoice in await at.invoices()
        for line in invoice["lines"]["data"]
        if "meterkit_late_item" in line["metadata"]
    ]


async def metered_lines(at: Shop) -> list[tuple[str, int, int]]:
    """All lines of usage on all invoices: event, units, cents a unit; those of no unit left out."""
    found: list[tuple[str, int, int]] = []
    for invoice in await at.invoices():
        for line in invoice["lines"]["data"]:
            price = line["pricing"]["price_details"]["price"]
            units = int(line["quantity_decimal"])
            if price.count("_") > 1 and units and "meterkit_late_item" not in line["metadata"]:
                found.append((price, units, line["amount"] // units))
    return found


async def usage_lines(at: Shop, stripe_customer: str | None = None) -> list[tuple[dict[str, Any], int, int]]:
    """The lines of usage on all invoices, or on those of a customer: price, units, cents; none of no unit."""
    listed = await at.stripe_list("/v1/prices")
    metered = {price["id"]: price for price in listed if price["recurring"].get("meter")}
    found: list[tuple[dict[str, Any], int, int]] = []
    for invoice in await at.invoices():
        for line in await at.stripe_list(f"/v1/invoices/{invoice['id']}/lines"):
            price = metered.get(line["pricing"]["price_details"]["price"])
            units = int(line["quantity_decimal"])
            if price and units and stripe_customer in {None, invoice["customer"]}:
                found.append((price, units, line["amount"]))
    return found


async def renewed(at: Shop) -> None:
    """All usage is delivered, the period is over, and the invoice of it final."""
    await deliver(at.kit, everything=True)
    at.go(END)
    at.go(END + timedelta(hours=2))


NEW_PRICES: Final = (
    ("1003", "1511"),
    ("703", "809"),
    ("2903", "3307"),
    ("907", "1009"),
    ("29_003", "31_013"),
)


@dataclass(frozen=True, kw_only=True)
class Buyer:
    """A shop with a customer on a plan with seats, half of whose period is left."""

    shop: Shop
    subscription: str

    async def preview(self, **change: Any) -> Proration:
        return (await self.shop.kit.subscriptions.preview("acme", **change)).proration

    async def change(self, *, plan: str | None = None, seats: int | None = None) -> Proration:
        made = self.shop.kit.subscriptions
        if plan is not None:
            return (await made.change_plan("acme", plan)).proration
        assert seats is not None
        return (await made.set_seats("acme", seats)).proration

    async def invoiced(self, start: datetime) -> int:
        """What invoices charge for time from an instant on, discounts and taxes included, without usage."""
        prices = await self.shop.stripe_list("/v1/prices")
        metered = {price["id"] for price in prices if price["recurring"].get("meter")}
        return sum(
            line["amount"]
            - sum(off["amount"] for off in line["discount_amounts"])
            + sum(tax["amount"] for tax in line["taxes"] if tax["tax_behavior"] == "exclusive")
            for invoice in await self.shop.invoices()
            for line in invoice["lines"]["data"]
            if line["period"]["start"] == int(start.timestamp())
            and line["pricing"]["price_details"]["price"] not in metered
        )


@asynccontextmanager
async def buyer(
    store_url: str,
    *,
    plan: str,
    interval: str = "month",
    tax: str = "no tax",
    item: bool = False,
    coupon: Mapping[str, Parameter] | None = None,
    keeps: bool = True,
    more: Sequence[tuple[str, str]] = (),
    scheduled: str = "",
    **settings: Any,
) -> AsyncGenerator[Buyer]:
    """A customer on ``plan`` with five seats, amid its period.

    ``tax`` is ``no tax``, ``tax on top`` or ``tax within``; ``item``: tax and coupon are of the first item,
    rather than of the subscription; ``keeps``: the plans file has other prices by now, and what ``more``
    replaces; ``scheduled`` is a plan that a change is scheduled to before that.
    """
    before = plans_text("price_shop").replace("INTERVAL", interval)
    after = before
    for old, new in NEW_PRICES if keeps else ():
        after = re.sub(rf"\b{old}\b", new, after)
    for old, new in more:
        after = after.replace(old, new)
    async with shop(store_url, catalog=loads(before), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        begun = await at.subscribed(plan=plan, seats=5)
        if scheduled:
            await at.kit.subscriptions.change_plan("acme", scheduled)
        terms: dict[str, Parameter] = {}
        target = f"/v1/subscriptions/{begun.id}"
        if item:
            found = (await at.stripe_subscription(begun.id))["items"]["data"]
            target = f"/v1/subscription_items/{found[0]['id']}"
        if tax != "no tax":
            rate: dict[str, Parameter] = {"display_name": "VAT", "inclusive": tax == "tax within"}
            rate["percentage"] = "19.5"
            made = await at.post("/v1/tax_rates", rate)
            terms["tax_rates" if item else "default_tax_rates"] = [made["id"]]
        if coupon:
            terms["discounts"] = [{"coupon": (await at.post("/v1/coupons", coupon))["id"]}]
        if terms:
            await at.post(target, terms)
        at.clock.set(HALF)
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(after), **settings) as kit:
            await kit.stripe.sync()
            yield Buyer(shop=replace(at, kit=kit), subscription=begun.id)


SWITCHED_PLANS: Final = plans_text("switched_shop")
SWITCHED: Final = loads(SWITCHED_PLANS)
SWITCHED_DEAD_LETTER: Final = loads(SWITCHED_PLANS + "billing: {late_usage: dead_letter}\n")


async def begin(at: Shop, plan: str = "four") -> None:
    """Subscribe to a plan and use up its included words in mid-period."""
    await at.subscribed(plan=plan)
    at.clock.set(HALF + timedelta(seconds=20))
    await at.kit.record("acme", "words", 10)


async def switch(at: Shop, plan: str) -> None:
    """Change all prices of the subscription at Stripe, as a customer does in the portal."""
    (begun,) = await at.stripe_list("/v1/subscriptions")
    await at.switch(begun, plan, "_words")
