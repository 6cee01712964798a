"""What the clock alone changes for customers, entered into their ledgers and told to handlers soon after."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from meterkit.errors import MeterkitError, StoreError
from meterkit.store.state_changes import States

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

__all__ = ["follow_turns", "sweep_turns"]

_LOOK_EVERY_S: Final = 15.0
_SHARDS_AT_ONCE: Final = 16
_PAGE: Final = 100


async def follow_turns(store: Store, *, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Look for what the clock has changed, four times a minute, until cancelled.

    Decisions do not wait for that: what is scheduled binds them at its millisecond.

    Args:
        store: where the customers are.
        is_wanted: whether this process is to look; asked each time.

    Raises:
        StoreError: the store does not answer.
    """
    while True:
        if is_wanted():
            await sweep_turns(store)
        await asyncio.sleep(_LOOK_EVERY_S)


async def sweep_turns(store: Store) -> int:
    """Enter and tell, once, what the clock has changed; of how many customers.

    Raises:
        StoreError: the store does not answer.
    """
    admin, states, caught_up = await store.admin(), States(store), 0
    for first in range(0, store.keys.shards, _SHARDS_AT_ONCE):
        shards = range(first, min(first + _SHARDS_AT_ONCE, store.keys.shards))
        due = admin.client.pipeline(transaction=False)
        for shard in shards:
            due.zrangebyscore(store.keys.turns(shard), "-inf", store.now_ms(), start=0, num=_PAGE)
        for found in await admin.ask(due.execute()):
            for member in found:
                caught_up += await _catch_up(admin, states, member.decode())
    return caught_up


async def _catch_up(admin: Admin, states: States, customer: str) -> bool:
    try:
        await states.catch_up(customer)
    except StoreError:
        raise
    except (ValueError, TypeError, MeterkitError) as error:  # Another release wrote it, or nobody of us.
        admin.say_once(f"what the clock changes for customer {customer!r} cannot be entered: {error}")
        return False
    return True
