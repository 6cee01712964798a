"""A kit, an emulated Stripe that sells its plans, and one clock for both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any, Final

import httpx

from drivers.delivery import STRIPE_KEY, api_of, kit_for
from drivers.emulated_account import tls
from drivers.near_stripe import served
from drivers.plans import plans_text
from meterkit import MeterKit, Subscription
from meterkit.catalog import Catalog, loads
from meterkit.testing import Clock, StripeEmulator
from stripe_emulator import Exchange

START: Final = datetime(2031, 6, 1, tzinfo=UTC)
HALF: Final = datetime(2031, 6, 16, tzinfo=UTC)
END: Final = datetime(2031, 7, 1, tzinfo=UTC)
PLANS: Final = plans_text("shop")
CATALOG: Final = loads(PLANS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    kit: MeterKit
    emulator: StripeEmulator
    clock: Clock
    url: str

    async def subscribed(self, customer: str = "acme", plan: str = "team", seats: int = 1) -> Subscription:
        made = await self.kit.subscriptions.create(customer, plan, seats)
        if made.client_secret is not None and made.subscription.status == "incomplete":
            self.emulator.confirm_payment(made.client_secret)
        found = await self.kit.subscriptions.sync(customer)
        assert found is not None
        return found

    async def begun(self, plan: str) -> Subscription:
        """Make the prices at Stripe, subscribe, and go to mid-period."""
        await self.kit.stripe.sync()
        found = await self.subscribed(plan=plan)
        self.clock.set(HALF)
        return found

    def go(self, to: datetime | timedelta) -> None:
        """Go to an instant, or on by a while, and have Stripe do what is due by then."""
        if isinstance(to, timedelta):
            self.clock.advance(to)
        else:
            self.clock.set(to)
        self.emulator.advance()

    async def fail_payments(self, customer: str = "acme") -> str:
        """Have each payment of a customer be declined; the Stripe customer."""
        linked = (await self.kit.customers.get(customer)).stripe_customer
        assert linked is not None
        self.emulator.fail_payments(linked)
        return linked

    def changes(self) -> list[Exchange]:
        """What has changed anything at Stripe: requests that took effect for the first time."""
        return [
            exchange
            for exchange in self.emulator.requests
            if exchange.method != "GET"
            and exchange.status in {0, 200}
            and not exchange.replayed
            and not exchange.path.endswith("/create_preview")
        ]

    async def stripe_subscription(self, subscription: str) -> dict[str, Any]:
        return await self._ask("GET", f"/v1/subscriptions/{subscription}")

    async def stripe_list(self, path: str, **query: str) -> list[dict[str, Any]]:
        """What Stripe lists, the youngest first."""
        answer = await self._ask("GET", path, params={"limit": "100", **query})
        found: list[dict[str, Any]] = answer["data"]
        return found

    async def items(self, subscription: str) -> dict[str, int | None]:
        found = (await self.stripe_subscription(subscription))["items"]["data"]
        return {item["price"]["id"]: item.get("quantity") for item in found}

    async def invoices(self) -> list[dict[str, Any]]:
        return (await self.stripe_list("/v1/invoices"))[::-1]

    async def stripe_change(self, path: str, **params: str) -> None:
        """Change something at Stripe past the kit, as a person does in its Dashboard."""
        await self._ask("POST", path, data=params)

    async def switch(self, subscription: Mapping[str, Any], plan: str, metered: str) -> None:
        """Change all prices at Stripe to those of a plan, or without its metered one to those of ``none``."""
        changed: dict[str, str] = {"proration_behavior": "always_invoice"}
        for place, item in enumerate(subscription["items"]["data"]):
            suffix = metered * item["price"]["id"].endswith(metered)
            changed[f"items[{place}][id]"] = item["id"]
            if suffix and plan == "none":
                changed[f"items[{place}][deleted]"] = "true"
            else:
                changed[f"items[{place}][price]"] = f"price_{plan}{suffix}"
        await self.stripe_change(f"/v1/subscriptions/{subscription['id']}", **changed)

    async def stripe_delete(self, path: str) -> None:
        await self._ask("DELETE", path)

    async def post(self, path: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Post something to Stripe past the kit, with nested parameters; its answer."""
        async with api_of(self.kit) as api:
            return await api.post(path, params)

    async def _ask(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {STRIPE_KEY}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, verify=tls()) as client:
            found: dict[str, Any] = (await client.request(method, path, **how)).raise_for_status().json()
            return found


@asynccontextmanager
async def shop(
    store_url: str,
    *,
    start: datetime = START,
    catalog: Catalog = CATALOG,
    selling: Callable[[StripeEmulator, Catalog], None] | None = None,
    is_real_time: bool = False,
    **settings: Any,
) -> AsyncGenerator[Shop]:
    """A kit on ``store_url`` whose Stripe is an emulator that sells the plans, reached over HTTP.

    ``selling`` makes the prices there; default: :func:`sell`. In real time the store goes by its server's
    clock, and the kit by ``kit.store.clock``.
    """
    clock = Clock(start)
    now = time if is_real_time else clock
    emulator = StripeEmulator(clock=now)
    (selling or sell)(emulator, catalog)
    async with (
        served(emulator) as url,
        kit_for(store_url, url, clock=now, catalog=catalog, **settings) as kit,
    ):
        yield Shop(kit=kit, emulator=emulator, clock=clock, url=url)


def sell_nothing(_emulator: StripeEmulator, _catalog: Catalog) -> None:
    """Make no prices: ``stripe sync`` does."""


def sell(emulator: StripeEmulator, catalog: Catalog) -> None:
    """Have the emulated account sell the plans of a plans file: base prices, seats, and all its meters."""
    meters = {
        meter.stripe.event_name: emulator.add_meter(meter.stripe.event_name)
        for meter in catalog.meters.values()
        if meter.stripe is not None
    }
    seats: set[str] = set()
    for plan in catalog.plans.values():
        if plan.price.stripe_price is None:
            continue
        product = emulator.add_product(plan.name, product_id=f"prod_{plan.key}")
        interval = plan.price.interval
        emulator.add_price(
            plan.price.amount_cents, price_id=plan.price.stripe_price, product=product, interval=interval
        )
        for event, meter in meters.items():
            emulator.add_price(2, price_id=f"price_{plan.key}_{event}", product=product, meter=meter)
        seat = plan.seat_price
        if seat is not None and seat.stripe_price is not None and seat.stripe_price not in seats:
            seats.add(seat.stripe_price)
            emulator.add_price(seat.amount_cents, price_id=seat.stripe_price, interval=interval)
