"""Intents in the store as if they had been sealed there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from delivering import NOW
from meterkit.decisions.keys import meter_token
from meterkit.store.kept_intents import Kept

if TYPE_CHECKING:
    from meterkit import MeterKit

__all__ = ["NOW_MS", "PERIOD_MS", "STAMP_S", "keep"]

NOW_MS: Final = int(NOW.timestamp()) * 1000
PERIOD_MS: Final = int(NOW.replace(day=1, hour=0, minute=0, second=0).timestamp()) * 1000
STAMP_S: Final = NOW_MS // 60_000 * 60 - 3 * 3_600
"""The minute of an intent."""


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
    await admin.ask(admin.client.hincrby(keys.customer("acme").totals, counted, value))
    return Kept.read(name, 0, text.encode())
