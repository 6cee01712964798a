"""Rates counted in this process: where its clock goes back, and where the plans file changes a rate."""

from __future__ import annotations

from meterkit.decisions.in_process import advance
from meterkit.decisions.kinds import TOKEN_BUCKET

REFILL = 5  # Units in a hundred milliseconds.
WINDOW_MS = 100


def test_a_clock_that_goes_back_takes_nothing_from_a_bucket() -> None:
    found, used = advance(TOKEN_BUCKET, WINDOW_MS, REFILL, (10_000, 7, 0), 9_000)
    assert (found, used) == ((9_000, 7, 0), 7)


def test_a_rest_in_parts_of_another_rate_is_less_than_a_unit() -> None:
    found, used = advance(TOKEN_BUCKET, WINDOW_MS, REFILL, (10_000, 7, 9_999), 10_000)
    assert (found, used) == ((10_000, 7, WINDOW_MS - 1), 8)
