"""The stored state of a customer: read, changed as an earlier release would have, and its costs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

from meterkit import MeterKit
from meterkit.customers.billed_usage import sum_overage
from meterkit.customers.drift_records import Drift, DriftRecords
from meterkit.customers.late_usage_on_price_change import release_usage
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_overrides import with_overrides
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.periods import to_ms
from meterkit.notify.spikes import CustomerSpike, SpikesToday
from meterkit.stripe.api import StripeApi
from meterkit.stripe.request import Parameter
from meterkit.subscriptions.subscription_updates import LiveSubscription
from meterkit.terms.rows import PRICES, rename


async def state_of(kit: MeterKit, customer: str = "acme") -> CustomerState:
    return (await CustomerStates(kit.store).find(customer)).state


async def closed_period_cents(kit: MeterKit, usage: Any, customer: str = "acme") -> int:
    """The overage of a period that is over, as its invoice rounds it."""
    return await sum_overage(kit.store, usage, await state_of(kit, customer))


async def store_overrides(
    kit: MeterKit, overrides: Any, customer: str = "acme", *, until: datetime | None = None
) -> None:
    """Store overrides without the checks of today, as an earlier release did."""
    until_ms = None if until is None else to_ms(until)
    kept = with_overrides({}, overrides, {}, until_ms=until_ms, now_ms=0)
    await CustomerStates(kit.store).change(customer, lambda state: replace(state, overrides=kept))


async def forget_prices(kit: MeterKit, customer: str) -> None:
    """Store a state as a release wrote it that did not read the prices of subscription items."""
    found = await CustomerStates(kit.store).find(customer)
    known = found.state.subscription
    assert known is not None
    terms = rename(found.state.terms, (PRICES, known.prices), (PRICES, ()))
    older = replace(found.state, subscription=replace(known, prices=()), terms=terms)
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


async def strand_usage(kit: MeterKit, customer: str = "acme") -> None:
    """Let go of pending usage, as a change of plan does before its process has stored the new plan."""
    await release_usage(kit.store, customer, changed_ms=kit.store.now_ms())


async def note_findings(kit: MeterKit, customer: str, meter: str) -> None:
    """Store what a night may find of a customer: a difference of its subscription, and a spike."""
    drift = Drift(subscription="sub_1", kind="other_price", message="another price")
    await DriftRecords(kit.store).put(customer, [drift])
    await SpikesToday(kit.store).add(CustomerSpike(customer, meter, kit.store.now_ms(), "day", 900, 9))
