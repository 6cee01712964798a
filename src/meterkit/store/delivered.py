"""What was delivered of a shard in the last 36 days, delivery by delivery, as the store keeps it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin

__all__ = ["Delivered", "delivered_lately"]

_DAY_MS: Final = 86_400_000
_DAYS_KEPT: Final = 37
_DROPPED: Final = b"dropped|"
"""Begins the name of what was dropped, which only keeps its minute; see steer.lua."""


class Delivered(NamedTuple):
    """A delivery.

    Attributes:
        identifier: of the meter event.
        time_s: its timestamp in Unix seconds, a whole minute.
        value: in the meter's unit; 0: it was dropped.
    """

    identifier: str
    customer: str
    stripe_customer: str
    event_name: str
    time_s: int
    value: int


async def delivered_lately(admin: Admin, keys: Keys, shard: int) -> AsyncGenerator[Delivered]:
    """What was delivered or dropped.

    Raises:
        StoreError: the store does not answer.
    """
    for day in range(_DAYS_KEPT + 1):
        key = keys.delivered(shard, admin.now_ms() + _DAY_MS - day * _DAY_MS)
        for name, line in (await admin.ask(admin.client.hgetall(key))).items():
            customer, stripe_customer, event_name, time_s, value = json.loads(line)
            units = 0 if name.startswith(_DROPPED) else int(value)
            yield Delivered(name.decode(), customer, stripe_customer, event_name, int(time_s), units)
