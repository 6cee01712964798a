"""What an allowed answer promises of rates: after `reset_after` there is more; and what is shown of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from typing import TYPE_CHECKING

import pytest

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from meterkit import Decision

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  units: {unit: unit}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      units: {rate: RATE}
"""
# Each with its limit, and about how many seconds a limit's worth of units keeps counting.
RATES = {
    "{limit: 3/10 seconds}": (3, 10),
    "{limit: 50/minute}": (50, 60),
    "{limit: 1_000/26 hours}": (1_000, 93_600),
    "{limit: 20/minute, algorithm: fixed-window}": (20, 60),
    "{limit: 5/3 seconds, algorithm: token-bucket, burst: 9}": (9, 5),
    "{limit: 300/second, algorithm: token-bucket, burst: 40}": (40, 1),
}
MILLISECOND = timedelta(milliseconds=1)
_numbers = count()


@pytest.mark.parametrize("rate", RATES)
async def test_after_it_one_unit_more_is_admitted_or_what_was_asked(store_url: str, rate: str) -> None:
    """F-61: of sliding windows it was the end of the window, which frees nothing by itself."""
    start = datetime(2031, 1, 5, 12, tzinfo=UTC)
    random, clock = Random(0), Clock(start)  # noqa: S311 - repeatable
    kit = MeterKit(
        loads(PLANS.replace("RATE", rate)), clock=clock, redis_url=store_url, flush=False,
        key_prefix=f"reset{next(_numbers)}",
    )  # fmt: skip
    (limit, span_s), promised = RATES[rate], 0
    async with kit:
        for _ in range(60):
            quantity = min(limit, random.choice((1, 1, 2, random.randint(1, limit))))
            decision = await kit.consume("acme", "units", quantity)
            if decision.allowed and random.random() < 0.5:
                promised += 1
                await _check_promise(kit, clock, decision, quantity, limit)
            # Whole milliseconds, as the store counts.
            clock.advance(MILLISECOND * random.randrange(random.choice((1, 2, 100 * span_s, 700 * span_s))))
    assert promised > 5


async def _check_promise(kit: MeterKit, clock: Clock, decision: Decision, quantity: int, limit: int) -> None:
    assert decision.remaining is not None
    assert decision.reset_after is not None
    wanted = min(limit, max(decision.remaining + 1, quantity))
    clock.advance(decision.reset_after - MILLISECOND)
    assert not (await kit.check("acme", "units", wanted)).allowed, (decision, wanted)
    clock.advance(MILLISECOND)
    assert (await kit.check("acme", "units", wanted)).allowed, (decision, wanted)


DECIDED = """\
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
        "{limit: 20/minute, algorithm: fixed-window}",
        "{limit: 7/minute, algorithm: token-bucket, burst: 20}",
    ],
)
async def test_it_is_what_a_decision_says_at_every_moment(store_url: str, rate: str) -> None:
    clock = Clock(datetime(2099, 9, 10, 0, 0, 7, tzinfo=UTC))
    async with MeterKit(
        loads(DECIDED.format(rate=rate)), redis_url=store_url, clock=clock, flush=False, key_prefix="r"
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
