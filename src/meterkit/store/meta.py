"""What a store says of itself: the format of what it keeps, and its number of shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.errors import SettingsError, StoreError
from meterkit.store.connection import ReplyError
from meterkit.store.keys import FORMAT

if TYPE_CHECKING:
    from meterkit.store.keys import Keys
    from meterkit.store.lane import Link
    from meterkit.store.url import Address

__all__ = ["agree"]


async def agree(link: Link, keys: Keys, address: Address) -> None:
    """Have a new store remember format and shards; see that one in use has ours.

    Raises:
        SettingsError: the store has another number of shards, or was written by a newer release.
        StoreError: the store refuses to serve.
    """
    link.ask("HSETNX", keys.meta, "format", FORMAT)
    link.ask("HSETNX", keys.meta, "shards", keys.shards)
    reply = await link.ask("HMGET", keys.meta, "format", "shards")
    if isinstance(reply, ReplyError):
        raise StoreError(f"the store at {address} refuses to serve: {reply}", executed=False)
    written, shards = (int(value) for value in reply)
    if written > FORMAT:
        raise SettingsError(
            "redis_url",
            f"the store at {address} was written by a newer release of meterkit (format {written}; "
            f"this release reads up to {FORMAT}); upgrade this process",
        )
    if shards != keys.shards:
        raise SettingsError(
            "shards",
            f"the store at {address} has {shards} shards and METERKIT_SHARDS is {keys.shards}; "
            f"the number is fixed once a store is in use: set it to {shards}",
        )
