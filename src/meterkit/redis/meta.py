"""What a store says of itself: the format of what it keeps, and its number of shards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meterkit.decisions.keys import FORMAT
from meterkit.errors import SettingsError, StoreError
from meterkit.redis.connection import ReplyError
from meterkit.redis.handshake import refused

if TYPE_CHECKING:
    from meterkit.decisions.keys import Keys
    from meterkit.redis.reconnect import Link
    from meterkit.redis.url import Address

__all__ = ["agree"]


async def agree(link: Link, keys: Keys, address: Address) -> None:
    """Have a new store remember format and shards; see that one in use has ours.

    Raises:
        SettingsError: the store has another number of shards, or another format.
        StoreError: the store refuses to serve.
    """
    # Written to each time, so that a server which takes no writes is told apart before it is used.
    replies = await asyncio.gather(
        link.ask("HSETNX", keys.meta, "format", FORMAT),
        link.ask("HSETNX", keys.meta, "shards", keys.shards),
        link.ask("HMGET", keys.meta, "format", "shards"),
    )
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise refused(address, reply)
    try:
        written, shards = (int(value) for value in replies[-1])
    except (TypeError, ValueError):
        raise StoreError(
            f"the store at {address} holds at {keys.meta} what meterkit did not write: {replies[-1]}",
            executed=False,
        ) from None
    if written > FORMAT:
        raise SettingsError(
            "redis_url",
            f"the store at {address} was written by a newer release of meterkit (format {written}; "
            f"this release reads up to {FORMAT}); upgrade this process",
        )
    if written < FORMAT:
        raise SettingsError(
            "redis_url",
            f"the store at {address} was written by an older release of meterkit (format {written}; this "
            f"release reads format {FORMAT} only); deliver what is pending with that release (`meterkit "
            "flush`), then give this one an empty database or another key prefix",
        )
    if shards != keys.shards:
        raise SettingsError(
            "shards",
            f"the store at {address} has {shards} shards and METERKIT_SHARDS is {keys.shards}; "
            f"the number is fixed once a store is in use: set it to {shards}",
        )
