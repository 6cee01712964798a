"""The ledger where a plan's grant comes back under its name: that of a year, begun with a month of before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from servers.stores import Server

PLANS = """
schema: 1
currency: usd
default_plan: monthly
meters:
  tokens: {unit: token}
credits:
  ai: {costs: {tokens: 1 per 100}}
plans:
  monthly:
    price: {amount_cents: 0, interval: month}
    meters: {tokens: {included: 0, overage: deny}}
    grants: [{credit: ai, quantity: 3, every: period}]
  yearly:
    extends: monthly
    price: {amount_cents: 0, interval: year, included_per: interval}
    grants: [{credit: ai, quantity: 20, every: period}]
"""


@pytest.mark.anyio
async def test_the_ledger_adds_up_where_two_plans_share_a_grants_name(valkey: Server) -> None:
    clock = Clock(datetime(2031, 1, 10, tzinfo=UTC))
    async with MeterKit(
        loads(PLANS), clock=clock, redis_url=valkey.url, flush=False, shards=4, store_timeout=10.0
    ) as kit:

        async def left() -> int:
            return sum(entry.quantity for entry in await kit.grants.ledger("acme"))

        await kit.customers.set_plan("acme", "monthly")
        await kit.record("acme", "tokens", 100)
        assert await left() == 2 * 10**6
        clock.advance(timedelta(days=60))
        await kit.record("acme", "tokens", 50)  # January's is put away.
        await kit.customers.set_plan("acme", "yearly")
        expected = (20 + 3) * 10**6 - 500_000
        assert await left() == expected
        assert (await kit.usage("acme"))["balance"] == {"ai": expected // 10**6}
        await kit.record("acme", "tokens", 100)
        expected -= 10**6
        assert await left() == expected
        clock.advance(timedelta(days=365))
        await kit.record("acme", "tokens", 0)
        assert await left() == 20 * 10**6
        await kit.record("acme", "tokens", 100)
        assert await left() == 19 * 10**6
