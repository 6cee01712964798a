"""The queue of customers to be read from Stripe, what is stored of a customer, and what differs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from meterkit.customers.drifts import Drifts
from meterkit.customers.states import States
from meterkit.customers.usage import overage_charge
from meterkit.decisions.customer_overrides import with_overrides
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.due_customers import due_prices
from meterkit.subscriptions.live_subscription import LiveSubscription
from meterkit.subscriptions.webhooks.customer_sync import NIGHTLY
from meterkit.subscriptions.webhooks.hint_scripts import LEASE_MS
from meterkit.subscriptions.webhooks.queue import HookQueue
from meterkit.testing.emulator.webhooks.deliveries import FORGERIES, sign

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meterkit import Drift, MeterKit
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.stripe.request import Parameter

__all__ = ["FORGERIES", "LEASE_MS", "NIGHTLY", "drifts_of", "forget_due_price", "queue_sync", "sign"]


async def queue_sync(kit: MeterKit, customer: str = "acme", *, cause: str = NIGHTLY) -> None:
    """Have a customer read from Stripe and compared, as the night or an event does."""
    linked = (await kit.customers.get(customer)).stripe_customer
    assert linked is not None
    await HookQueue(kit.store).look(linked, cause)
    await kit.webhooks.work_off()


async def drifts_of(kit: MeterKit) -> dict[str, tuple[Drift, ...]]:
    return dict(await Drifts(kit.store).all())


async def forget_due_price(kit: MeterKit, customer: str = "acme") -> None:
    await due_prices(kit.store).remove(customer)


async def state_of(kit: MeterKit, customer: str = "acme") -> CustomerState:
    return (await States(kit.store).find(customer)).state


async def closed_period_cents(kit: MeterKit, usage: Any, customer: str = "acme") -> int:
    """The overage of a period that is over, as its invoice rounds it."""
    return await overage_charge(kit.store, usage, await state_of(kit, customer))


async def store_overrides(kit: MeterKit, overrides: Any, customer: str = "acme") -> None:
    """Store overrides without the checks of today, as an earlier release did."""
    kept = with_overrides({}, overrides, {}, until_ms=None, now_ms=0)
    await States(kit.store).change(customer, lambda state: replace(state, overrides=kept))


async def forget_prices(kit: MeterKit, customer: str) -> None:
    """Store a state as a release wrote it that did not read the prices of subscription items."""
    found = await States(kit.store).find(customer)
    assert found.state.subscription is not None
    older = replace(found.state, subscription=replace(found.state.subscription, prices=()))
    admin, key = await kit.store.admin(), kit.store.keys.customer(customer).state
    await admin.client.hset(key, "data", older.dump())
    await admin.client.hset(key, "rev", f"{found.rev}-")


async def prepare_change(
    kit: MeterKit, subscription: str, price: str, what: Literal["items", "schedule"]
) -> Callable[[], Awaitable[object]]:
    """Read a subscription now; what is returned sends a change of its item or its schedule."""
    api = StripeApi(kit.settings)
    live = await LiveSubscription.fetch(api, subscription)
    assert live is not None
    item = next(item.id for item in live.items if item.price == price)

    async def send() -> None:
        try:
            if what == "items":
                await live.update({"items": [{"id": item, "quantity": 1}]})
            else:
                items: list[dict[str, Parameter]] = [{"price": "price_team", "quantity": 1}]
                await live.send_phases(live.schedule or {}, [{"items": items}])
        finally:
            await api.close()

    return send
