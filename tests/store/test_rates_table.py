"""How a rate is brought forward to an instant: the script's function itself, case by case."""

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
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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


@pytest.mark.parametrize(
    ("sentence", "asked", "expected"),
    [
        ("what was never counted is empty", (SLIDING, 1000, 0, 5000, 0, 0, 0), [5, 0, 0, 0]),
        ("within its window a count stands", (SLIDING, 1000, 0, 5999, 5, 7, 0), [5, 7, 0, 7]),
        ("as the window turns all of it still counts", (SLIDING, 1000, 0, 6000, 5, 7, 0), [6, 0, 7, 7]),
        ("a millisecond later a little less, rounded up", (SLIDING, 1000, 0, 6001, 5, 7, 0), [6, 0, 7, 7]),
        ("at half of the window half of it, rounded up", (SLIDING, 1000, 0, 6500, 5, 7, 0), [6, 0, 7, 4]),
        ("in its last millisecond still one", (SLIDING, 1000, 0, 6999, 5, 7, 0), [6, 0, 7, 1]),
        ("two windows later nothing", (SLIDING, 1000, 0, 7000, 5, 7, 0), [7, 0, 0, 0]),
        ("the one before is added to this one", (SLIDING, 1000, 0, 6500, 6, 3, 8), [6, 3, 8, 7]),
        ("as the window turns the one before is forgotten", (SLIDING, 1000, 0, 7000, 6, 3, 8), [7, 0, 3, 3]),
        ("a window that has not begun counts nothing", (SLIDING, 1000, 0, 5000, 6, 3, 8), [5, 0, 0, 0]),
        (
            "25 hours move in milliseconds",
            (SLIDING, 25 * HOUR_MS, 0, 25 * HOUR_MS + 1, 0, 90_000_000, 0),
            [1, 0, 90_000_000, 89_999_999],
        ),
        (
            "26 hours move in seconds, and the second that has begun counts in full",
            (SLIDING, 26 * HOUR_MS, 0, 26 * HOUR_MS + 999, 0, 93_600, 0),
            [1, 0, 93_600, 93_600],
        ),
        (
            "26 hours have moved once the second is over",
            (SLIDING, 26 * HOUR_MS, 0, 26 * HOUR_MS + 1000, 0, 93_600, 0),
            [1, 0, 93_600, 93_599],
        ),
        (
            "the largest quantity over the longest window is exact",
            (SLIDING, 366 * DAY_MS, 0, 366 * DAY_MS + 1000, 0, QUANTITY_MAX, 0),
            [1, 0, QUANTITY_MAX, ceil(Fraction(QUANTITY_MAX * (366 * 86_400 - 1), 366 * 86_400))],
        ),
        ("a fixed window forgets as it turns", (FIXED, 1000, 0, 6000, 5, 7, 0), [6, 0, 7, 0]),
        ("a fixed window stands until then", (FIXED, 1000, 0, 5999, 5, 7, 9), [5, 7, 9, 7]),
        ("a bucket that was never used owes nothing", (BUCKET, 50, 1, 5000, 0, 0, 0), [5000, 0, 0, 0]),
        ("at the same instant a bucket owes the same", (BUCKET, 50, 1, 5000, 5000, 3, 7), [5000, 3, 7, 4]),
        ("a bucket runs by the millisecond", (BUCKET, 50, 1, 5001, 5000, 3, 7), [5001, 3, 6, 4]),
        ("its rest runs out first", (BUCKET, 50, 1, 5007, 5000, 3, 7), [5007, 3, 0, 3]),
        ("then a unit is broken", (BUCKET, 50, 1, 5008, 5000, 3, 7), [5008, 2, 49, 3]),
        ("it is empty when all has run out", (BUCKET, 50, 1, 5157, 5000, 3, 7), [5157, 0, 0, 0]),
        ("and stays so", (BUCKET, 50, 1, 5158, 5000, 3, 7), [5158, 0, 0, 0]),
        ("and after years", (BUCKET, 50, 1, 5000 + 9 * 366 * DAY_MS, 5000, 3, 7), [284601605000, 0, 0, 0]),
        (
            "several units run out in a millisecond",
            (BUCKET, 1000, 5001, 5001, 5000, 12, 0),
            [5001, 6, 999, 7],
        ),
        ("one unit more than a second's worth is owed", (BUCKET, 1, 5, 6000, 5000, 5001, 0), [6000, 1, 0, 1]),
        (
            "a rest owed at another refill is less than a unit",
            (BUCKET, 3, 1, 5000, 5000, 2, 3_599_999),
            [5000, 2, 2, 3],
        ),
    ],
)
def test_a_rate_is_brought_forward(
    advance: Advance, sentence: str, asked: tuple[int, ...], expected: list[int]
) -> None:
    assert expected == advance(*asked), sentence


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
def test_the_arithmetic_of_a_process_without_its_store_is_the_scripts(
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


def test_a_sliding_window_admits_less_than_twice_its_limit_in_any_hour(advance: Advance) -> None:
    """F-20h: at worst 199 of 100, as the documentation says."""
    limit, at_the_end_ms = 100, HOUR_MS - 1
    slot, *_ = advance(SLIDING, HOUR_MS, 0, at_the_end_ms, 0, 0, 0)
    # All of a slot at its last millisecond; the hour before `now` still has that millisecond.
    now_ms = 2 * HOUR_MS - 2
    *_, used = advance(SLIDING, HOUR_MS, 0, now_ms, slot, limit, 0)
    assert limit + (limit - used) == 199


@pytest.mark.parametrize(("limit", "admitted"), [(100, 99), (10, 9), (2, 1)])
def test_a_sliding_window_admits_even_traffic_one_short_of_its_limit(limit: int, admitted: int) -> None:
    """As the documentation says: the estimate is rounded up."""
    state, found = (0, 0, 0), 0
    for number in range(10 * limit):
        now_ms = DAY_MS + number * HOUR_MS // limit
        (slot, counted, before), used = in_process.advance(SLIDING, HOUR_MS, 0, state, now_ms)
        state = slot, counted + (used < limit), before
        if used < limit:
            found += number >= 2 * limit
    assert found == 8 * admitted
