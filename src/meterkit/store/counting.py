"""Counts the members of many sorted sets at once, whichever servers have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store


async def count_at(store: Store, admin: Admin, keys: Sequence[str], *, limit: str | int) -> dict[int, int]:
    """Count members up to a score: by the place of a key in the list, those of empty sets left out.

    One script asks a single server. On a cluster each key may be on another server. A set whose server is
    away counts as one member: the next command to it raises the error, and the other sets are used.

    Args:
        store: whose keys they are.
        admin: asks them.
        keys: of sorted sets.
        limit: the score, or ``+inf``.

    Raises:
        StoreError: the store does not answer.
    """
    if store.address.kind != "cluster":
        reply: list[int] = await admin.run(store.scripts["count"], [*keys], limit)
        return {nth - 1: members for nth, members in zip(reply[::2], reply[1::2], strict=True)}
    pipe = admin.client.pipeline(transaction=False)
    for key in keys:
        pipe.zcount(key, "-inf", limit)
    replies: list[Any] = await admin.ask(pipe.execute(raise_on_error=False))
    found = [1 if isinstance(reply, Exception) else reply for reply in replies]
    return {nth: members for nth, members in enumerate(found) if members}
