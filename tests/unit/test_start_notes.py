"""A kit says once, in one line, what in its plans file may surprise."""

from __future__ import annotations

import pytest

from meterkit import MeterKit
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

PLANS = """\
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: r}}
routes:
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 5, interval: month}
"""


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "meterkit.plans"]


async def test_it_is_one_line_however_often_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    """F-60, F-26."""
    kit = MeterKit(loads(PLANS), redis_url="memory://")
    assert lines(caplog) == []
    for _ in range(2):
        async with kit:
            pass
    (line,) = lines(caplog)
    assert line == (
        "plans.yaml: billed from the first unit, as nothing is included: plans.free (line 9);"
        " `meterkit check` says more"
    )
