"""A kit, an emulated account that sells its plans, and webhooks between them: what tests of these hold."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import stripe

from drivers.delivery import STRIPE_KEY, kit_for
from drivers.emulated_account import reached
from drivers.near_stripe import served
from drivers.plans import plans_text
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import CustomerState
from meterkit.starlette import stripe_webhook
from meterkit.testing import Clock, StripeEmulator
from stripe_emulator.webhook_deliveries import Delivery

# Later than the tests run: the server expires keys by its own clock, whatever clock the scripts go by.
NOW: Final = datetime(2031, 6, 10, 12, tzinfo=UTC)
SECRET: Final = "whsec_test_4eC39HqLyjWDarjtT1zdp7dc"
HOOK: Final = "http://app/webhooks/stripe"
DAY: Final = timedelta(days=1)
PLANS: Final = plans_text("webhooks")
CATALOG: Final = loads(PLANS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooked:
    kit: MeterKit
    emulator: StripeEmulator
    clock: Clock
    client: stripe.StripeClient
    url: str

    def customer(self, customer: str = "acme", *, card: str | None = "pm_card_visa") -> str:
        """A Stripe customer ``cus_…`` with a card."""
        linked = self.emulator.add_customer(f"cus_{customer}")
        if card is not None:
            self.emulator.add_payment_method(linked, card)
        return linked

    async def subscribe(self, customer: str = "acme", price: str = "price_pro", **params: Any) -> str:
        """A subscription that names its customer, at Stripe; the id."""
        given: Any = {
            "customer": f"cus_{customer}",
            "items": [{"price": price}],
            "metadata": {"meterkit_customer": customer},
            **params,
        }
        return (await self.client.v1.subscriptions.create_async(given)).id

    async def bring(self, *events: Any, **how: Any) -> list[int]:
        """Have Stripe deliver what is due, or these events; the statuses of the answers."""
        found: tuple[Delivery, ...] = await self.emulator.deliver(*events, **how)
        return [delivery.status for delivery in found]

    async def live(self, on: timedelta) -> None:
        """Let a while pass, and have Stripe do and deliver what is due by then, and work it off."""
        self.clock.advance(on)
        self.emulator.advance()
        await self.settle()

    async def settle(self) -> None:
        """Have Stripe deliver what is due, and work it off."""
        await self.bring()
        await self.kit.webhooks.work_off()

    async def state(self, customer: str = "acme") -> CustomerState:
        return (await CustomerStates(self.kit.store).read(customer))[1]

    def asked(self, path: str = "/v1/subscriptions", method: str = "GET") -> int:
        return sum(asked.path == path and asked.method == method for asked in self.emulator.requests)


def shop(clock: Clock, **options: Any) -> StripeEmulator:
    emulator = StripeEmulator(clock=clock, automatic_webhooks=False, **options)
    product = emulator.add_product("Pro", product_id="prod_pro")
    for price, cents in (("price_pro", 1000), ("price_max", 2000), ("price_seat", 900), ("price_other", 500)):
        emulator.add_price(cents, price_id=price, product=product)
    return emulator


def hooked_kit(store_url: str, stripe_url: str, clock: Clock, **settings: Any) -> MeterKit:
    """A kit whose Stripe is an emulator; what works off webhooks runs when it is told to."""
    given: dict[str, Any] = {"catalog": CATALOG, "stripe_webhook_secret": SECRET} | settings
    return kit_for(store_url, stripe_url, clock=clock, **given)


@asynccontextmanager
async def hooked(
    store_url: str, *, clock: Clock | None = None, emulator: StripeEmulator | None = None, **settings: Any
) -> AsyncGenerator[Hooked]:
    """A kit that takes the webhooks of an emulated account, both by one clock."""
    clock = clock or Clock(NOW)
    emulator = emulator or shop(clock)
    async with served(emulator) as url, hooked_kit(store_url, url, clock, **settings) as kit:
        emulator.add_endpoint(HOOK, secret=SECRET, app=stripe_webhook(kit))
        async with reached(url, key=STRIPE_KEY, timeout_s=300.0) as client:
            yield Hooked(kit=kit, emulator=emulator, clock=clock, client=client, url=url)
