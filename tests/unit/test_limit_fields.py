"""What clients are told in the short way is what they would be told in the long one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from faults.refusals import catalog
from meterkit import MeterKit
from meterkit.asgi.headers import EXPOSE, LimitFields, limit_field, merge
from meterkit.decisions.verdict import reset_ms

if TYPE_CHECKING:
    from meterkit.store.views import PreparedDecision

NOW_MS = 1_790_000_000_000
ORIGIN = [(b"host", b"a"), (b"origin", b"https://b")]


def call_of(rate: str, needed: int = 1) -> PreparedDecision:
    """The decision about a request that takes so much of one meter with one rate."""
    kit = MeterKit(
        catalog(f"""
schema: 1
currency: usd
default_plan: free
meters: {{pages: {{unit: page}}}}
routes: [{{match: "*", consume: {{pages: {needed}}}}}]
plans: {{free: {{price: {{amount_cents: 0, interval: month}}, meters: {{pages: {{rate: [{rate}]}}}}}}}}
"""),
        redis_url="memory://",
        flush=False,
    )
    return kit.store.cache.get("acme").prepare(kit.catalog.routes[0])


RATES = [call_of(rate, needed) for rate in ("7/minute", "1000/day", "5/7 days") for needed in (1, 3)]
"""The last window is too long for the short way."""


# The window before weighs a whole unit, to the millisecond.
@example(call=RATES[0], left=4, before=2, later_ms=(30_000 - NOW_MS) % 60_000)
@given(
    call=st.sampled_from(RATES),
    left=st.integers(-3, 1000),
    before=st.integers(0, 3000),
    later_ms=st.integers(0, 700_000_000),
)
def test_the_reset_of_a_sliding_window_is_the_same(
    call: PreparedDecision, left: int, before: int, later_ms: int
) -> None:
    (measure,) = call.program.measures
    now_ms = NOW_MS + later_ms
    rest = measure.window - now_ms % measure.window
    # What is left is what neither this window nor the rest of the one before has taken.
    left = min(left, measure.limit - -(-before * rest // measure.window))
    reset = reset_ms(measure, left, before, now_ms, call.period_end_ms(now_ms))
    assert reset is not None
    expected = limit_field(measure.policy.name, max(0, left), (reset + 999) // 1000)
    told = LimitFields(call.program, "ietf").add([], call, [0, now_ms, 1, left, before], [])
    assert dict(told)[b"ratelimit"] == expected


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-type", b"text/plain")],
        [(b"Access-Control-Expose-Headers", b"X-Own")],
        [(b"x", b"y"), (EXPOSE, b"a"), (EXPOSE, b"ratelimit")],
        [(b"RateLimit", b"the app's own")],
    ],
)
def test_to_scripts_of_other_origins_the_fields_are_shown(headers: list[tuple[bytes, bytes]]) -> None:
    call = RATES[0]
    told = LimitFields(call.program, "ietf").add(headers, call, [0, NOW_MS, 1, 4, 0], ORIGIN)
    ours = [pair for pair in told if pair[0] in {b"ratelimit", b"ratelimit-policy"}]
    assert len(ours) == 2
    assert told == merge(headers, ours, expose=True)
