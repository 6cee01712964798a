"""A shop whose prices rose after a customer had subscribed: the customer keeps the old ones."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from drivers.delivery import kit_for
from drivers.plans import plans_text
from drivers.shop import HALF, sell_nothing, shop
from meterkit.catalog import loads
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from datetime import datetime

    from drivers.shop import Shop
    from meterkit import Proration
    from meterkit.stripe.request import Parameter

PLANS: Final = plans_text("price_shop")
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
    api: StripeApi
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

    Args:
        store_url: of the store.
        plan: the key of the plan.
        interval: of the plans ``team`` and ``pro``.
        tax: ``no tax``, ``tax on top`` or ``tax within``.
        item: whether tax and coupon are of the first item, rather than of the subscription.
        coupon: parameters of a coupon.
        keeps: whether the plans file has other prices by now.
        scheduled: the key of a plan that a change is scheduled to, before the prices change.
        more: further changes of the plans file, each a text and what replaces it.
        settings: of the kit with the changed plans file.
    """
    before = PLANS.replace("INTERVAL", interval)
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
        api = StripeApi(at.kit.settings)
        terms: dict[str, Parameter] = {}
        target = f"/v1/subscriptions/{begun.id}"
        if item:
            found = (await at.stripe_subscription(begun.id))["items"]["data"]
            target = f"/v1/subscription_items/{found[0]['id']}"
        if tax != "no tax":
            rate: dict[str, Parameter] = {"display_name": "VAT", "inclusive": tax == "tax within"}
            rate["percentage"] = "19.5"
            made = await api.post("/v1/tax_rates", rate)
            terms["tax_rates" if item else "default_tax_rates"] = [made["id"]]
        if coupon:
            terms["discounts"] = [{"coupon": (await api.post("/v1/coupons", coupon))["id"]}]
        if terms:
            await api.post(target, terms)
        at.clock.set(HALF)
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(after), **settings) as kit:
            await kit.stripe.sync()
            yield Buyer(shop=replace(at, kit=kit), api=api, subscription=begun.id)
        await api.close()
