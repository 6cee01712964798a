"""What tests of subscriptions share: plans, a subscription, and a customer who has it in a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from drivers.plans import completed, plans_text
from meterkit import Deleted, MeterKit
from meterkit.catalog import loads
from meterkit.customers import deletion
from meterkit.customers.grants import move_grants
from meterkit.customers.states import CustomerStates, sweep_scheduled_transitions
from meterkit.decisions.customer_state import with_subscription
from meterkit.decisions.periods import Bounds, to_ms
from meterkit.decisions.subscription import SubscriptionState
from meterkit.store import customer_notices
from meterkit.testing import Clock

NOW: Final = datetime(2031, 6, 10, 12, 0, tzinfo=UTC)
END: Final = NOW + timedelta(days=20)
INSTANT: Final = timedelta(milliseconds=1)
_EDGES: Final = ("start_ms", "end_ms", "next_end_ms")
PLANS: Final = plans_text("subscribed_customer")


def kit_of(url: str, clock: Clock, plans: str = PLANS, **settings: Any) -> MeterKit:
    given: dict[str, Any] = {"flush": False, "shards": 4, "store_timeout": 60.0} | settings
    return MeterKit(loads(completed(plans)), redis_url=url, clock=clock, **given)


def subscription(**changed: Any) -> SubscriptionState:
    """A monthly one that began ten days ago, on ``pro``; instants may be given as such."""
    given: dict[str, Any] = {
        "id": "sub_1",
        "status": "active",
        "plan": "pro",
        "start_ms": END - timedelta(days=30),
        "end_ms": END,
        "anchor_ms": END - timedelta(days=30),
        "created_ms": END - timedelta(days=30),
        **changed,
    }
    for name, value in given.items():
        given[name] = to_ms(value) if isinstance(value, datetime) else value
    return SubscriptionState(**given)


async def fetched(
    kit: MeterKit, found: SubscriptionState | None, *, customer: str = "acme", cause: str = "evt_1"
) -> None:
    """Store a subscription as the one that was fetched from Stripe."""
    await CustomerStates(kit.store).change(
        customer, lambda state: with_subscription(state, found), cause=cause
    )


async def moved(kit: MeterKit, before: Sequence[datetime], after: Sequence[datetime]) -> None:
    """Move the grants of ``acme`` with a period: its start and end, and the end of the next one."""
    periods = (Bounds(**dict(zip(_EDGES, map(to_ms, edges), strict=True))) for edges in (before, after))
    await move_grants(kit.store, "acme", *periods)


async def sweep(kit: MeterKit) -> int:
    """Enter what the clock has changed of any customer; of how many."""
    return await sweep_scheduled_transitions(kit.store)


async def catch_up(kit: MeterKit, customer: str = "acme") -> None:
    """Enter what the clock or the plans file has changed of one customer."""
    await CustomerStates(kit.store).catch_up(customer)


async def erase(kit: MeterKit, customer: str) -> Deleted:
    """Delete a customer, whatever subscription it has; what there was."""
    return await deletion.delete_customer(kit.store, customer)


async def tell(kit: MeterKit, customer: str, event: str, data: dict[str, Any]) -> None:
    await customer_notices.publish_notice(kit.store, customer, event, data)


def recorder(kit: MeterKit, *events: str) -> list[Any]:
    """What handlers of some events are told from now on."""
    told: list[Any] = []
    register: Callable[[Any], Any] = told.append
    for event in events:
        kit.on(event)(register)
    return told
