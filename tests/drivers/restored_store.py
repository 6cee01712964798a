"""A store that came back with less, by the word of a test."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from operator import attrgetter
from typing import Any, Final

from drivers.delivery import Desk, desk

LAG: Final = timedelta(minutes=2)


@asynccontextmanager
async def linked(store_url: str, *customers: str, **settings: Any) -> AsyncGenerator[Desk]:
    """A desk of one shard that has been in one life so far, with customers that are linked."""
    async with desk(store_url, shards=1, **settings) as at:
        await at.link(*(customers or ("acme",)))
        await at.flush()
        yield at


async def begin_anew(at: Desk, **fields: Any) -> None:
    """Have the shard have been delivered from in another life of the server than this one."""
    admin = await at.kit.store.admin()
    attrgetter("_restarts._lives._checked")(at.flusher).clear()
    fields = {"known": "another life", **fields}
    await admin.ask(admin.client.hset(at.kit.store.keys.shard(0, "life"), mapping=fields))


async def come_back(at: Desk, after: timedelta = LAG) -> None:
    """Have the flusher meet the new life, and let that time pass."""
    assert (await at.flush(everything=True, timeout_s=0)).delivered == 0
    at.clock.advance(after)


async def parked_by_a_restore(at: Desk) -> int:
    """Have what waits compared after a restore; how many intents are parked by that."""
    await begin_anew(at)
    await come_back(at)
    return (await at.flush(everything=True, timeout_s=0)).parked


async def states(at: Desk) -> list[tuple[int, str]]:
    return sorted((one.quantity, one.state) for one in await at.kit.outbox.list())
