"""How a rate is brought forward to an instant: the script's function itself, case by case."""

# Internals: the arithmetic of rates, in Lua and in Python.

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from meterkit.catalog import Rate
from meterkit.decisions import in_process
from meterkit.decisions.policies import rate_numbers
from meterkit.errors import PlansError
from meterkit.redis import scripts
from meterkit.redis.connection import pack
from store.script_wires import server_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers.stores import Server

    Advance = Callable[..., list[int]]

SLIDING, FIXED, BUCKET = 1, 2, 3
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
QUANTITY_MAX = 10**15 - 1
LINES = [
    *("local values = {}", "for i = 1, #ARGV do values[i] = tonumber(ARGV[i]) end"),
    "return {advance(unpack(values))}",
]
PROPERTY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def advance(valkey: Server) -> Iterator[Advance]:
    """``advance(kind, window, refill, now, a, b, c)`` on the server."""
    text = scripts.load("decide").text
    function = text[
        text.index("local function advance") : text.index("\nend\n", text.index("advance(kind")) + 5
    ]
    with server_wire(valkey) as wire:
        sha = wire(pack("SCRIPT", "LOAD", "\n".join((function, *LINES)))).decode()
        yield lambda *values: wire(pack("EVALSHA", sha, 0, *values))


@PROPERTY
@given(
    window_s=st.one_of(st.integers(1, 90_001), st.integers(90_000, 366 * 86_400)),
    n=st.integers(10, 60),
    passed=st.integers(0, 366 * DAY_MS),
    counted=st.integers(0, 9 * 10**15),
    previous=st.integers(0, 9 * 10**15),
)
def test_a_sliding_window_is_exact(
    advance: Advance, window_s: int, n: int, passed: int, counted: int, previous: int
) -> None:
    window = window_s * 1000
    passed %= window
    left = window - passed if window <= 25 * HOUR_MS else -(-(window - passed) // 1000) * 1000
    used = counted + ceil(Fraction(previous * left, window))
    assume(used < 2**53)
    assert [n, counted, previous, used] == advance(
        SLIDING, window, 0, n * window + passed, n, counted, previous
    )


@PROPERTY
@given(
    limit=st.one_of(st.integers(1, 5000), st.integers(1, QUANTITY_MAX)),
    window_s=st.one_of(st.integers(1, 3600), st.integers(1, 366 * 86_400)),
    burst=st.one_of(st.integers(1, 5000), st.integers(1, QUANTITY_MAX)),
    share=st.fractions(0, 1),
    times=st.lists(st.one_of(st.integers(0, 2000), st.integers(0, 366 * DAY_MS)), min_size=1, max_size=4),
)
def test_a_bucket_is_exact(
    advance: Advance, limit: int, window_s: int, burst: int, share: Fraction, times: list[int]
) -> None:
    rate = Rate(
        limit=limit, window_ms=window_s * 1000, algorithm="token-bucket", burst=burst, window=f"{window_s}s"
    )
    try:
        _, window, _, refill = rate_numbers(rate, "requests")
    except PlansError:
        assume(False)
        raise
    now, whole, rest = 1_800_000_000_000, floor(burst * share), 0
    owed = Fraction(whole)
    for passed in times:
        owed = max(Fraction(0), owed - Fraction(passed * refill, window))
        now, whole, rest, used = advance(BUCKET, window, refill, now + passed, now, whole, rest)
        assert (owed, ceil(owed)) == (whole + Fraction(rest, window), used)


@PROPERTY
@given(
    kind=st.sampled_from([SLIDING, FIXED, BUCKET]),
    window_ms=st.sampled_from([1000, 60_000, HOUR_MS, 30 * DAY_MS]),
    refill=st.integers(1, 10**6),
    before=st.integers(0, 5),
    passed_ms=st.integers(0, 70 * DAY_MS),
    counted=st.integers(0, 10**6),
    previous=st.integers(0, 10**6),
)
def test_rates_in_process_count_as_the_script_does(
    advance: Advance,
    kind: int,
    window_ms: int,
    refill: int,
    before: int,
    passed_ms: int,
    counted: int,
    previous: int,
) -> None:
    begun_ms = 1_800_000_000_000
    now_ms = begun_ms + passed_ms
    if kind == BUCKET:
        refill, slot, previous = min(refill, window_ms), begun_ms, previous % window_ms
    else:
        refill, slot = 0, begun_ms // window_ms - before % 2
    expected = advance(kind, window_ms, refill, now_ms, slot, counted, previous)
    found, used = in_process.advance(kind, window_ms, refill, (slot, counted, previous), now_ms)
    assert [*found, used] == expected


def test_a_sliding_window_admits_less_than_twice_its_limit(advance: Advance) -> None:
    """F-20h: at worst 199 of 100, as the documentation says."""
    limit, at_the_end_ms = 100, HOUR_MS - 1
    slot, *_ = advance(SLIDING, HOUR_MS, 0, at_the_end_ms, 0, 0, 0)
    # All of a slot at its last millisecond; the hour before `now` still has that millisecond.
    now_ms = 2 * HOUR_MS - 2
    *_, used = advance(SLIDING, HOUR_MS, 0, now_ms, slot, limit, 0)
    assert limit + (limit - used) == 199


@pytest.mark.parametrize(("limit", "admitted"), [(100, 99), (10, 9), (2, 1)])
def test_a_sliding_window_admits_even_traffic_one_short(limit: int, admitted: int) -> None:
    """As the documentation says: the estimate is rounded up."""
    state, found = (0, 0, 0), 0
    for number in range(10 * limit):
        now_ms = DAY_MS + number * HOUR_MS // limit
        (slot, counted, before), used = in_process.advance(SLIDING, HOUR_MS, 0, state, now_ms)
        state = slot, counted + (used < limit), before
        if used < limit:
            found += number >= 2 * limit
    assert found == 8 * admitted
