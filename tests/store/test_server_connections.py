"""Plain commands and scripts beside the hot path: how many connections they take, and who waits for whom."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import desk

if TYPE_CHECKING:
    from servers.stores import Server

pytestmark = pytest.mark.anyio

AT_ONCE = 400
AT_ONCE_SERVED = 16


@pytest.mark.dear("more queries than connections")
async def test_a_query_waits_while_all_connections_are_in_use(store_url: str) -> None:
    # F-5b: 100 at once were more than the pool had connections, and 36 of them failed.
    async with desk(store_url) as at:
        await at.kit.record("acme", "requests", 7)
        found = await asyncio.gather(*(at.kit.usage("acme") for _ in range(AT_ONCE)))
    assert [usage["meters"]["requests"]["used"] for usage in found] == [7] * AT_ONCE


async def test_delivery_does_not_wait_for_what_the_app_asks(store_url: str, valkey: Server) -> None:
    # F-5b: the flusher had to take its connections from the same pool.
    async with desk(store_url, store_timeout=60.0) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 7)
        client: Any = (await at.kit.store.admin()).client
        waiting = [asyncio.create_task(_wait(client)) for _ in range(AT_ONCE)]
        while valkey.command("INFO", "clients")["blocked_clients"] < AT_ONCE_SERVED:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        try:
            await at.flush(everything=True)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        assert at.accepted("acme") == 7


async def _wait(client: Any) -> None:
    await client.blpop(["nothing"], timeout=0)
