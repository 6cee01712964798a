"""Where the master is: what most of the sentinels say."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from meterkit.errors import StoreError
from meterkit.redis.connection import ReplyError
from meterkit.redis.handshake import connect
from meterkit.redis.url import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.redis.url import Address

__all__ = ["master_of", "named_by"]


async def master_of(
    address: Address, *, timeout_s: float, clock: Callable[[], float], is_known: bool = False
) -> Address:
    """Ask all sentinels at once; as soon as more than half of them agree, they are believed.

    Where so many do not answer in time, what most of those say that do: one alone may have been cut off from
    the others, and not know of a failover.

    Args:
        address: of the kind ``sentinel``.
        timeout_s: how long a sentinel may take.
        clock: seconds since the epoch.
        is_known: whether the URL has led to the store before.

    Raises:
        StoreError: none of them knows the master; the message has the words of the last one.
    """
    asked = [
        asyncio.ensure_future(named_by(place, address, timeout_s=timeout_s, clock=clock, is_known=is_known))
        for place in address.places
    ]
    said: Counter[Place] = Counter()
    trouble: StoreError | None = None
    try:
        for answer in asyncio.as_completed(asked):
            try:
                place = await answer
            except StoreError as error:
                trouble = error
                continue
            said[place] += 1
            if 2 * said[place] > len(asked):
                break
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    if not said:
        raise StoreError(f"no sentinel of {address} names a master: {trouble}", executed=False) from trouble
    return address.at(said.most_common(1)[0][0])


async def named_by(
    place: Place, address: Address, *, timeout_s: float, clock: Callable[[], float], is_known: bool = False
) -> Place:
    """Where the master is by the word of one sentinel. Raises StoreError where it does not say so."""
    sentinel = address.sentinel_at(place)
    connection = await connect(
        sentinel,
        (),
        timeout_s=timeout_s,
        on_end=lambda _connection, _why, _unsent: None,
        clock=clock,
        is_known=is_known,
    )
    try:
        reply = await connection.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
    finally:
        await connection.close()
    if isinstance(reply, ReplyError):
        raise StoreError(f"the sentinel at {place} answers: {reply}", executed=False)
    if reply is None:
        raise StoreError(f"the sentinel at {place} knows no master {address.service!r}", executed=False)
    host, port = reply
    return Place(host.decode(), int(port))
