"""The store within the process stands in for a real one."""

# Internals: what stands in for a connection shows nowhere else.

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from faults.refusals import Client, Echo, kit_at, metered, settled, used
from meterkit.redis import memory, scripts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meterkit.redis.memory import MemoryConnection

pytestmark = pytest.mark.anyio

RETIRE = scripts.load("fence", dialect="fake")


@pytest.fixture
def customer() -> str:
    """The store lives as long as the process: each test has a customer of its own."""
    return f"customer-{uuid4()}"


@pytest.fixture
async def connection() -> AsyncIterator[MemoryConnection]:
    connection = await memory.connect([RETIRE])
    yield connection
    await connection.close()


async def test_a_reply_that_nobody_waits_for_goes_back_to_its_call(
    connection: memory.MemoryConnection,
) -> None:
    call = Echo("cancelled")
    connection.call(call).cancel()
    await connection.ask("PING")
    assert call.orphans == [[0, b"cancelled"]]


async def test_requests_are_decided_and_settled(customer: str) -> None:
    async with kit_at("memory://") as kit:
        app = metered(kit)
        assert await asyncio.gather(*(Client(app).get(customer) for _ in range(20))) == [200] * 20
        await settled(kit)
        assert await used(kit, customer) == (20, 0)
        await kit.customers.set_plan(customer, "narrow")
        assert [await Client(app).get(customer) for _ in range(4)] == [200, 200, 200, 429]


async def test_scripts_that_were_flushed_are_loaded_again(customer: str) -> None:
    async with kit_at("memory://") as kit:
        app = metered(kit)
        await kit.record(customer, "tokens", 5)
        admin: Any = memory.admin_client()
        await admin.script_flush()
        await kit.record(customer, "tokens", 5)
        await admin.script_flush()
        assert await Client(app).get(customer, "/deny") == 200
        await admin.aclose()
        await settled(kit)
        assert await used(kit, customer, "tokens") == (10, 0)
