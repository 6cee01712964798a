"""Metrics of allotments: units granted, given back, and there to be used."""
# Internals: decisions are counted on their way to the store.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from drivers.app import hello, served
from drivers.plans import plans_text
from drivers.process_metrics import told
from faults.refusals import eventually
from meterkit.redis.event_loops import running_loop
from meterkit.store.views import PreparedDecision

if TYPE_CHECKING:
    from meterkit.redis.lane import Lane

pytestmark = pytest.mark.anyio

PLANS = plans_text("metrics_of_allotments")
SENT = 200


async def test_units_are_counted_as_granted_returned_and_unused(store_url: str) -> None:
    decided = 0

    async with served(hello, plans=PLANS, redis_url=store_url) as at:

        async def units() -> tuple[float, float, float]:
            found = await told(at.kit)
            granted, returned = found["allotments_granted_total"], found["allotments_returned_total"]
            return granted, returned, found["allotments_unused"]

        await at.client.get("/first")
        assert await units() == (0, 0, 0)
        lane: Lane = at.kit.store.lanes[running_loop()]
        call = lane.call

        def counting(asked: Any) -> Any:
            nonlocal decided
            decided += isinstance(asked, PreparedDecision)
            return call(asked)

        lane.call = counting
        for _ in range(SENT):
            await at.client.get("/x")
        by_units = SENT - decided
        assert by_units > 0
        granted, returned, unused = await units()
        assert granted - returned - unused == by_units
        assert lane.allotments is not None
        allotments = lane.allotments
        await eventually(lambda: allotments.unused == 0)
        granted, returned, unused = await units()
        assert (granted - returned, unused) == (by_units, 0)
        # The last allotment was not used up.
        assert returned > 0
