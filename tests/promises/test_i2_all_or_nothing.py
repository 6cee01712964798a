"""I2 and I7 off the request, on a server and within the process: nothing by halves, nothing for ever."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from drivers.delivery import NOW
from drivers.plans import free_plan
from drivers.store_keys import WITHOUT_TTL
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = [pytest.mark.anyio, pytest.mark.each_store]

PLANS = free_plan(
    """
  requests:      {unit: request}
  input_tokens:  {unit: token}
  output_tokens: {unit: token, stripe: {event_name: out}}""",
    """
      requests:      {rate: 3/hour}
      input_tokens:
        rate: {limit: 100/minute, algorithm: token-bucket, burst: 2000}
        included: 1000
        overage: deny
      output_tokens: {rate: {limit: 5000/hour, algorithm: fixed-window}, included: 100, overage: deny}
    grants: [{credit: ai, quantity: 1, every: period}]""",
    "credits: {ai: {costs: {input_tokens: 1 per 1000, output_tokens: 4 per 1000}}}",
)


def kit_on(url: str) -> MeterKit:
    return MeterKit(loads(PLANS), clock=Clock(NOW), redis_url=url, flush=False, shards=4, store_timeout=60.0)


async def kept(kit: MeterKit) -> dict[str, Any]:
    """All that is stored, but for when a customer was last seen and how long that is kept."""
    admin = await kit.store.admin()
    client: Any = admin.client
    found: dict[str, Any] = {}
    for key in await client.keys("*"):
        if await client.type(key) == b"hash":
            fields = await client.hgetall(key)
            found[key.decode()] = {name: fields[name] for name in sorted(fields) if name not in {b"t", b"x"}}
    return found


@pytest.mark.each_store(sampled=True)
@pytest.mark.parametrize(
    "asked",
    [
        {"requests": 1, "input_tokens": 10, "output_tokens": 352},  # More than a credit pays for.
        {"requests": 1, "input_tokens": 1010, "output_tokens": 350},  # Each alone would do.
        {"requests": 1, "input_tokens": 1999, "output_tokens": 1},  # The bucket has less left.
        {"requests": 3, "input_tokens": 1, "output_tokens": 1},  # The rate of requests has.
    ],
)
async def test_i2_what_one_of_many_limits_refuses_changes_nothing(
    any_store_url: str, asked: dict[str, int]
) -> None:
    async with kit_on(any_store_url) as kit:
        async with kit.reserve("acme", {"requests": 1, "input_tokens": 10, "output_tokens": 20}) as first:
            await first.capture({"requests": 1, "input_tokens": 10, "output_tokens": 20})
        before = await kept(kit)
        for _ in range(3):
            async with kit.reserve("acme", asked) as reservation:
                assert not reservation.decision.allowed
            assert before == await kept(kit)
        fits = {"requests": 2, "input_tokens": 990, "output_tokens": 80}
        async with kit.reserve("acme", fits) as reservation:
            assert reservation.decision.allowed


async def test_i7_every_key_has_a_ttl_or_is_listed_without(any_store_url: str) -> None:
    async with kit_on(any_store_url) as kit:
        for customer in ("acme", "zeta"):
            await kit.record(customer, "output_tokens", 300, event_id=customer)
            await kit.consume(customer, "requests")
        await kit.grants.add("zeta", {"ai": 1}, grant_id="g1", expires_at=NOW + timedelta(days=400))
        await kit.customers.link("zeta", "cus_zeta", force=True)
        await kit.record("zeta", "output_tokens", 300)
        admin = await kit.store.admin()
        client: Any = admin.client
        left = [key.decode() for key in await client.keys("*") if await client.pttl(key) == -1]
        assert left
        allowed = [re.compile(pattern) for pattern in WITHOUT_TTL]
        assert [key for key in left if not any(pattern.match(key) for pattern in allowed)] == []
        # Of a customer that nobody set up nothing stays for ever.
        assert [key for key in left if "acme" in key] == []
