"""What has happened in the account is entered, with the object as it was, and can be read for 30 days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from drivers.emulated_account import account
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECOND = int(NOW.timestamp())


async def test_events_are_found_by_type_and_time() -> None:
    """https://docs.stripe.com/api/events/list: ``types`` holds at most 20 and does not go with ``type``."""
    clock = Clock(NOW)
    async with account(StripeEmulator(clock=clock)) as client:
        made = [await client.v1.customers.create_async({"name": str(n)}) for n in range(3)]
        clock.advance(timedelta(seconds=1))
        await client.v1.customers.update_async(made[0].id, {"name": "x"})

        async def found(params: Any) -> list[str]:
            return [
                event.type async for event in (await client.v1.events.list_async(params)).auto_paging_iter()
            ]

        assert await found({"limit": 2}) == ["customer.updated", *["customer.created"] * 3]
        assert await found({"type": "customer.updated"}) == ["customer.updated"]
        assert len(await found({"type": "customer.*"})) == 4
        assert len(await found({"types": ["customer.updated", "customer.created"]})) == 4
        assert len(await found({"types": ["customer.created"]})) == 3
        assert await found({"created": {"gt": SECOND}}) == ["customer.updated"]
        assert len(await found({"created": {"gte": SECOND, "lt": SECOND + 1}})) == 3
        assert len(await found({"created": SECOND})) == 3
        assert len(await found({"delivery_success": True})) == 4
        assert await found({"delivery_success": False}) == []
        for params, message in (
            ({"type": "a", "types": ["b"]}, "only specify one"),
            ({"types": [f"t{n}" for n in range(21)]}, "at most 20"),
            ({"created": {"at": 1}}, "unknown parameter"),
            ({"delivery_success": "perhaps"}, "Invalid boolean"),
        ):
            with pytest.raises(stripe.InvalidRequestError, match=message):
                await found(params)


async def test_events_are_read_for_30_days() -> None:
    """https://docs.stripe.com/api/events: through the API for 30 days."""
    clock = Clock(NOW)
    async with account(StripeEmulator(clock=clock)) as client:
        await client.v1.customers.create_async({})
        (event,) = (await client.v1.events.list_async()).data
        clock.advance(timedelta(days=30) - timedelta(seconds=1))
        assert (await client.v1.events.retrieve_async(event.id)).id == event.id
        clock.advance(timedelta(seconds=1))
        assert (await client.v1.events.list_async()).data == []
        with pytest.raises(stripe.InvalidRequestError, match=f"No such event: '{event.id}'") as caught:
            await client.v1.events.retrieve_async(event.id)
        assert caught.value.http_status == 404
