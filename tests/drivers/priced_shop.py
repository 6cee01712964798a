"""A shop whose plans differ in the price of their usage alone, and what its invoices charge for that."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from drivers.plans import plans_text
from drivers.shop import END
from meterkit.catalog import loads

if TYPE_CHECKING:
    from drivers.shop import Shop
    from meterkit.catalog import Catalog
    from meterkit.testing import StripeEmulator

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


async def renewed(at: Shop) -> None:
    """The period is over, and the invoice of it final."""
    at.clock.set(END)
    at.emulator.advance()
    at.clock.set(END + timedelta(hours=2))
    at.emulator.advance()
