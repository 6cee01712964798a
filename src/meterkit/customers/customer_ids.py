"""Ids of all customers that have a record, read shard by shard."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin

_SHARDS_AT_ONCE: Final = 16


async def customers_set_up(admin: Admin, keys: Keys) -> AsyncGenerator[str]:
    """The ids of all customers that have a record, in no order, a few shards at once.

    Raises:
        StoreError: the store does not answer.
    """
    for first in range(0, keys.shards, _SHARDS_AT_ONCE):
        members = admin.client.pipeline(transaction=False)
        for shard in range(first, min(first + _SHARDS_AT_ONCE, keys.shards)):
            members.smembers(keys.shard(shard, "customers"))
        for found in await admin.ask(members.execute()):
            for member in found:
                yield member.decode()


async def pages_set_up(admin: Admin, keys: Keys, most: int) -> AsyncGenerator[list[str]]:
    """List the same ids in pages of at most so many.

    Raises:
        StoreError: the store does not answer.
    """
    page: list[str] = []
    async with aclosing(customers_set_up(admin, keys)) as customers:
        async for customer in customers:
            page.append(customer)
            if len(page) == most:
                yield page
                page = []
    if page:
        yield page
