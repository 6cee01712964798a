"""A task of one process at a time: whoever has its lease does it, and keeps others from it."""

# Internals: leases of tasks, which run by themselves in kits.

from __future__ import annotations

from math import inf

import anyio
import pytest

from drivers.delivery import desk
from meterkit.store.tasks import TaskLease

pytestmark = [pytest.mark.anyio, pytest.mark.each_store]


async def test_one_has_it_at_a_time_and_gives_it_back_however_it_ends(any_store_url: str) -> None:
    async with desk(any_store_url) as at:
        key = at.kit.store.keys.shard(0, "closing")
        one, other = (TaskLease(at.kit.store, key, lasts_ms=60_000) for _ in range(2))
        with anyio.CancelScope() as scope:
            async with one.held() as is_held:
                assert is_held
                assert await one.take()  # It keeps it.
                async with other.held() as is_had:
                    assert not is_had
                assert not await other.take()
                scope.cancel()
                await anyio.sleep(60)
        assert await other.take()
        assert not await one.take()


async def test_it_is_waited_for_as_long_as_is_said(any_store_url: str) -> None:
    async with desk(any_store_url) as at:
        key = at.kit.store.keys.shard(0, "closing")
        one, other = (TaskLease(at.kit.store, key, lasts_ms=60_000) for _ in range(2))
        is_waiting, done = anyio.Event(), list[str]()

        async def wait() -> None:
            is_waiting.set()
            async with other.held(within_s=inf) as is_held:
                assert is_held
                done.append("other")

        async with anyio.create_task_group() as tasks, one.held():
            tasks.start_soon(wait)
            await is_waiting.wait()
            async with TaskLease(at.kit.store, key, lasts_ms=60_000).held(within_s=0.2) as is_held:
                assert not is_held
            done.append("one")
        assert done == ["one", "other"]
