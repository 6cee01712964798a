"""A kit for which Stripe is away, a subscription of its month, and intents as if they had been sealed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from drivers.delivery import NOW, kit_for
from meterkit.decisions.keys import meter_token
from meterkit.decisions.subscription import SubscriptionState
from meterkit.outbox.batches import intents_in
from meterkit.outbox.intents import Kept
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit import MeterKit

__all__ = ["HERE_S", "NOW_MS", "PERIOD_MS", "STAMP_S", "intents_in", "keep", "kit_alone", "subscription"]

NOW_MS: Final = int(NOW.timestamp()) * 1000
PERIOD_MS: Final = int(NOW.replace(day=1, hour=0, minute=0, second=0).timestamp()) * 1000
HERE_S: Final = NOW_MS // 60_000 * 60
"""The minute of now."""
STAMP_S: Final = HERE_S - 3 * 3_600
"""The minute of an intent."""


def kit_alone(
    store_url: str = "memory://", *, clock: Callable[[], float] | None = None, **settings: Any
) -> MeterKit:
    """A kit of one shard that has an address for Stripe, at which nothing answers."""
    return kit_for(store_url, "http://127.0.0.1:9", clock=clock or Clock(NOW), shards=1, **settings)


def subscription(**fields: Any) -> SubscriptionState:
    """An active subscription whose period began with June."""
    june: dict[str, Any] = {
        "id": "sub_1",
        "status": "active",
        "plan": "pro",
        "start_ms": PERIOD_MS,
        "end_ms": PERIOD_MS + 30 * 86_400_000,
        "anchor_ms": PERIOD_MS,
    }
    return SubscriptionState(**june | fields)


async def keep(kit: MeterKit, name: str, value: int, *, state: str = "parked", **fields: Any) -> Kept:
    """Have an intent of acme's in the store."""
    token, admin, keys = meter_token("requests"), await kit.store.admin(), kit.store.keys
    known = {
        "state": state,
        "customer": "acme",
        "stripe": "cus_acme",
        "meter": token,
        "event": "api_requests",
        "key": name,
        "period": f"{PERIOD_MS}",
        "value": f"{value}",
        "time": f"{STAMP_S}",
        "first": "0",
        "attempts": "0",
        "at": f"{NOW_MS}",
    }
    text = json.dumps(known | {field: f"{text}" for field, text in fields.items()})
    await admin.ask(admin.client.hset(keys.shard(0, "intents"), name, text))
    place = "parked" if state == "parked" else "outbox"
    await admin.ask(admin.client.zadd(keys.shard(0, place), {name: NOW_MS}))
    counted = f"{PERIOD_MS}|{token}{'k' if state == 'parked' else 'q'}"
    totals = keys.customer("acme").totals
    await admin.ask(admin.client.hincrby(totals, counted, value))
    await admin.ask(admin.client.expire(totals, 86_400))
    return Kept.read(name, 0, text.encode())
