"""Customers with many grants: what they cost others, how many there may be, and what is remembered."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from meterkit import MeterKit, MeterkitError
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from servers.stores import Server

pytestmark = pytest.mark.anyio

NOW = datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC)
PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  tokens: {unit: token}
  pages:  {unit: page}
credits: {ai: {costs: {tokens: 1 per 1}}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      tokens: {included: 0, overage: deny}
      pages:  {included: 0, overage: deny}
"""


@asynccontextmanager
async def kit_on(url: str, **settings: Any) -> AsyncGenerator[tuple[MeterKit, Clock]]:
    clock = Clock(NOW)
    given: dict[str, Any] = {"flush": False, "shards": 4, "store_timeout": 10.0} | settings
    async with MeterKit(loads(PLANS), clock=clock, redis_url=url, **given) as kit:
        yield kit, clock


async def test_many_grants_cost_decisions_no_more_commands(valkey: Server) -> None:
    """F-20: commands of the store, which no busy machine changes."""
    async with kit_on(valkey.url) as (kit, _):
        seen: list[set[str]] = []
        for customer, live in (("few", 1), ("many", 256)):
            for nth in range(live):
                await kit.grants.add(customer, {"ai": 1000}, grant_id=f"g{nth}")
            await kit.record(customer, "tokens", 1)
            valkey.command("CONFIG", "RESETSTAT")
            for _ in range(20):
                assert (await kit.consume(customer, "tokens", 2)).allowed
                assert (await kit.check(customer, "tokens")).allowed
                await kit.record(customer, "tokens", 3)
            stats = valkey.command("INFO", "commandstats")
            seen.append(set(stats))
            assert "cmdstat_hgetall" not in stats
            balance = (await kit.usage(customer))["balance"]["ai"]
            assert balance == live * 1000 - 1 - 20 * 5
        assert seen[0] == seen[1]


async def test_at_most_256_grants_are_live_and_the_next_is_refused(store_url: str) -> None:
    """F-20."""
    async with kit_on(store_url) as (kit, clock):
        for nth in range(255):
            expires_at = NOW + timedelta(hours=1) if nth == 7 else None
            await kit.grants.add("acme", {"ai": 10}, grant_id=f"g{nth}", expires_at=expires_at)
        with pytest.raises(
            MeterkitError, match=r"customer 'acme' has 255 .* at most 256.*nothing was granted"
        ):
            await kit.grants.add("acme", {"ai": 1, "pages": 1}, grant_id="two")
        await kit.grants.add("acme", {"ai": 10}, grant_id="g255")
        with pytest.raises(MeterkitError, match="has 256 grants"):
            await kit.grants.add("acme", {"pages": 1}, grant_id="one")
        await kit.grants.add("acme", {"ai": 10}, grant_id="g3")  # A repeat is none too many.
        assert (await kit.usage("acme"))["balance"] == {"ai": 2560}
        clock.advance(timedelta(hours=1))  # One has expired,
        await kit.grants.add("acme", {"pages": 1}, grant_id="one")
        await kit.grants.void("acme", "g9")  # one is void,
        await kit.grants.add("acme", {"pages": 1}, grant_id="two")
        await kit.record("acme", "tokens", 10)  # one is used up.
        await kit.grants.add("acme", {"pages": 1}, grant_id="three")
        with pytest.raises(MeterkitError, match="has 256 grants"):
            await kit.grants.add("acme", {"pages": 1}, grant_id="four")


async def test_a_grant_id_that_races_for_two_things_grants_one(store_url: str) -> None:
    """F-27."""
    async with kit_on(store_url) as (kit, _), kit_on(store_url) as (other, _):
        for nth in range(30):
            done = await asyncio.gather(
                kit.grants.add("acme", {"ai": 1}, grant_id=f"g{nth}"),
                other.grants.add("acme", {"pages": 1}, grant_id=f"g{nth}"),
                kit.grants.add("acme", {"pages": 1, "ai": 1}, grant_id=f"g{nth}"),
                return_exceptions=True,
            )
            refused = [error for error in done if error is not None]
            assert len(refused) == 2
            assert all("other meters or credits" in str(error) for error in refused)
        assert len(await kit.grants.list("acme")) in range(30, 61)
        for nth in range(30):
            lines = [line for line in await kit.grants.ledger("acme") if line.grant_id == f"g{nth}"]
            assert len(lines) in {1, 2}
