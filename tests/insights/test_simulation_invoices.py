"""A simulation of a period gives the totals of its invoices."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.plans import plans_text
from drivers.served_traffic import drain, simulated_at
from drivers.webhooks import hooked
from meterkit.catalog import loads
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.webhooks import Hooked

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("simulation_invoices")
DEARER: Final = PLANS.replace("1000, interval", "1200, interval").replace(
    "per: 10, amount_cents: 3", "per: 2, amount_cents: 7"
)
PRICES: Final = ("price_pro", "price_pro_requests", "price_pro_tokens")
JANUARY: Final = datetime(2031, 1, 31, 12, tzinfo=UTC)
FEBRUARY: Final = datetime(2031, 2, 28, 12, tzinfo=UTC)
MARCH: Final = datetime(2031, 3, 31, 12, tzinfo=UTC)
DAY: Final = timedelta(days=1)


async def go(at: Hooked, to: datetime) -> None:
    at.clock.set(to)
    at.emulator.advance()
    await at.settle()


async def serve(at: Hooked) -> None:
    """Ada and Cyd have ``pro`` from 31 January, Ada with a seat more; Bob tries it from 1 March, for a week.

    Cyd's invoices are void from 2 February on.
    """
    for who in ("ada", "bob", "cyd"):
        at.customer(who)
    seats: list[Any] = [{"price": "price_seat", "quantity": 1}]
    await at.subscribe("ada", items=[*({"price": price} for price in PRICES), *seats])
    cyds = await at.subscribe("cyd", items=[{"price": price} for price in PRICES])
    await go(at, JANUARY + 2 * DAY)
    await at.client.v1.subscriptions.update_async(cyds, {"pause_collection": {"behavior": "void"}})
    await go(at, FEBRUARY + DAY)
    await at.subscribe("bob", items=[{"price": price} for price in PRICES], trial_period_days=7)
    await at.settle()
    for day in (1, 2, 29):  # The period of 31 days, counted from 31 January, ends on 31 March.
        await go(at, FEBRUARY + day * DAY)
        for who in ("ada", "bob")[: 2 if day < 29 else 1]:
            for _ in range(5):
                assert (await at.kit.consume(who, "requests")).allowed
            await at.kit.record(who, "tokens", 25)
    await at.kit.flush(everything=True, timeout_s=0)


async def renew(at: Hooked) -> dict[str, int]:
    """All renewals until April, by customer, in cents."""
    for to in (MARCH, MARCH + DAY):
        await go(at, to)
    invoices: Any = at.emulator
    found = [invoice.to_json() for invoice in invoices._account.invoices]
    cycles = [one for one in found if one["billing_reason"] == "subscription_cycle"]
    return {one["customer"]: one["total"] for one in cycles}


@pytest.mark.dear("a month at Stripe")
async def test_a_period_costs_what_its_invoice_says(store_url: str, tmp_path: Path) -> None:
    said, paid = dict[str, int](), dict[str, int]()
    for nth, plans in enumerate((PLANS, DEARER)):
        clock, catalog, url = Clock(JANUARY), loads(plans), f"sqlite:///{tmp_path}/audit{nth}.db"
        stripe = StripeEmulator(clock=clock, automatic_webhooks=False)
        stripe.add_plans(catalog)
        given: dict[str, Any] = {"audit_url": url, "key_prefix": f"shop{nth}"}
        async with hooked(store_url, clock=clock, emulator=stripe, catalog=catalog, **given) as at:
            await serve(at)
            await drain(at.kit, url)
            found = await simulated_at(at.kit, url, DEARER, FEBRUARY + 3 * DAY)
            ada, bob, cyd = found.customers
            assert [bob.now_cents, bob.then_cents, cyd.now_cents, cyd.then_cents] == [0] * 4
            paid = await renew(at)
            assert ada.now_cents == paid["cus_ada"]
            assert said.setdefault("then", ada.then_cents) == ada.then_cents
            again = await simulated_at(at.kit, url, DEARER, FEBRUARY + 3 * DAY)
            assert again.customers[:2] == [ada, bob]  # Bob's trial is over by now.
    assert said["then"] == paid["cus_ada"]
