"""What waits in the sorted sets of all shards, counted at once."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

__all__ = ["count_members"]


async def count_members(
    store: Store, admin: Admin, names: Iterable[str], *, limit: str | int
) -> dict[tuple[int, Any], int]:
    """The sorted sets of all shards that have members up to a score, and how many: by shard and name.

    On a cluster each shard may be on another server; those of one that is away count as one: what is asked of
    them next says what is wrong, and the others go on.

    Args:
        store: whose shards.
        admin: asks them.
        names: of the sets in each shard.
        limit: the score, or ``+inf``.

    Raises:
        StoreError: the store does not answer.
    """
    places, keys = _of_all_shards(store.keys, tuple(names))
    if store.address.kind != "cluster":
        reply: list[int] = await admin.run(store.scripts["count"], keys, limit)
        return {places[nth - 1]: members for nth, members in zip(reply[::2], reply[1::2], strict=True)}
    pipe = admin.client.pipeline(transaction=False)
    for key in keys:
        pipe.zcount(key, "-inf", limit)
    replies: list[Any] = await admin.ask(pipe.execute(raise_on_error=False))
    found = [1 if isinstance(reply, Exception) else reply for reply in replies]
    return {place: members for place, members in zip(places, found, strict=True) if members}


@lru_cache(maxsize=64)
def _of_all_shards(keys: Keys, names: tuple[str, ...]) -> tuple[list[tuple[int, str]], list[str]]:
    """The sets of these names, by shard and name, and their keys: each pass of a flusher asks the same."""
    places = [(shard, name) for shard in range(keys.shards) for name in names]
    return places, [keys.shard(shard, name) for shard, name in places]
