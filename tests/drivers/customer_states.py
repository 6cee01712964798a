"""The stored state of a customer: read, changed as an earlier release would have, and its costs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meterkit.customers.states import States
from meterkit.customers.usage import overage_charge
from meterkit.decisions.customer_overrides import with_overrides

if TYPE_CHECKING:
    from meterkit import MeterKit
    from meterkit.decisions.customer_state import CustomerState


async def state_of(kit: MeterKit, customer: str = "acme") -> CustomerState:
    """The state that the store has of a customer."""
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
