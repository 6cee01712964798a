"""How far rates are used: what the scripts say of them, at any time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

PLANS = """\
schema: 1
currency: usd
default_plan: free
meters:
  slides: {{unit: request}}
routes:
  - {{match: "GET /slow", rate: 3/minute, consume: {{slides: 1}}}}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    meters: {{slides: {{rate: {rate}}}}}
"""


@pytest.mark.parametrize(
    "rate",
    [
        "20/minute",
        "20/2 days",
        "{limit: 20/minute, algorithm: fixed-window}",
        "{limit: 7/minute, algorithm: token-bucket, burst: 20}",
        "{limit: 700/second, algorithm: token-bucket, burst: 20}",
    ],
)
async def test_it_is_what_a_decision_says_at_every_moment(store_url: str, rate: str) -> None:
    clock = Clock(datetime(2099, 9, 10, 0, 0, 7, tzinfo=UTC))
    async with MeterKit(
        loads(PLANS.format(rate=rate)), redis_url=store_url, clock=clock, flush=False, key_prefix="r"
    ) as kit:
        (unused, route) = await kit.rates("ada")
        assert (20, 0, 20, timedelta(0)) == (
            *(unused["limit"], unused["used"], unused["remaining"]),
            unused["reset_after"],
        )
        assert ("route-1m", None, "GET /slow") == (route["policy"], route["meter"], route["route"])
        for step_s in (0, 1, 13, 40, 0, 29, 61, 200_000, 0.031, 7):
            clock.advance(timedelta(seconds=step_s))
            await kit.consume("ada", "slides", 6)
            decision = await kit.check("ada", "slides")
            found = (await kit.rates("ada"))[0]
            assert decision.limit == found["policy"]
            assert decision.remaining == found["remaining"]
            assert decision.reset_after == found["reset_after"]
            assert found["used"] >= 6
