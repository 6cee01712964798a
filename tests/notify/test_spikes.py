"""A spike is found within its hour, and noise is hardly ever taken for one."""
# Internals: a pure table of hours and days.

from __future__ import annotations

import os
from random import Random
from typing import Final

import pytest

from drivers.synthetic_usage import history
from meterkit.notify.spikes import FLOOR, HOUR_MS, Pace, Spike, pace_of, spike_at

CUSTOMERS: Final = int(os.environ.get("METERKIT_SPIKE_CUSTOMERS", "10"))
DAYS: Final = 28 + (365 if CUSTOMERS >= 200 else 30)
EVEN: Final = dict.fromkeys(range(30 * 24), 100)


@pytest.mark.parametrize("seed", range(CUSTOMERS))
def test_noise_is_taken_for_a_spike_less_than_once_a_month(seed: int) -> None:
    hours, alarms, quiet = history(seed, DAYS), 0, -1
    for hour in range(28 * 24, DAYS * 24):
        if hour // 24 > quiet and spike_at(hours, hour * HOUR_MS):
            alarms, quiet = alarms + 1, hour // 24
    months = (DAYS - 28) / 30
    assert alarms < max(months, 1.01)


@pytest.mark.parametrize("seed", range(CUSTOMERS))
def test_a_runaway_client_is_found_within_the_hour(seed: int) -> None:
    hours, random = history(seed, 60), Random(seed)  # noqa: S311 - an hour, not a secret
    busiest = sorted(hours.values())[-3]
    for _ in range(4):
        hour = random.randrange(30 * 24, 59 * 24)
        usual = sorted(hours[hour - 24 * back] for back in range(1, 29))[14]
        true = hours[hour]
        hours[hour] = max(40 * usual, 4 * busiest, FLOOR)
        found = spike_at(hours, hour * HOUR_MS + 600_000)
        assert found is not None
        assert (found.span, found.used) == ("hour", hours[hour])
        hours[hour] = true


@pytest.mark.parametrize(
    ("used", "spike"),
    [
        (300, None),
        (301, Spike(span="hour", used=301, usual=100)),
    ],
)
def test_three_times_as_much_as_ever_is_one(used: int, spike: Spike | None) -> None:
    assert spike == spike_at({**EVEN, 29 * 24 + 5: used}, (29 * 24 + 5) * HOUR_MS)


def test_a_day_that_is_three_times_as_busy_is_one() -> None:
    hours = {**EVEN, **{29 * 24 + hour: 290 for hour in range(24)}}
    found = [spike_at(hours, (29 * 24 + hour) * HOUR_MS) for hour in range(24)]
    assert [None] * 24 == found
    hours |= {29 * 24 + hour: 299 for hour in range(23)} | {29 * 24 + 23: 400}
    hours |= {day * 24 + 23: 200 for day in range(29)}
    hours |= {day * 24 + hour: 95 for day in range(29) for hour in range(23)}
    last = spike_at(hours, (29 * 24 + 23) * HOUR_MS)
    assert last == Spike(span="day", used=23 * 299 + 400, usual=23 * 95 + 200)


@pytest.mark.parametrize("hour", [0, 13 * 24 + 23])
def test_without_two_weeks_there_is_nothing_to_compare_with(hour: int) -> None:
    assert spike_at({**dict.fromkeys(range(hour), 1), hour: 10**9}, hour * HOUR_MS) is None
    assert spike_at({}, hour * HOUR_MS) is None
    day_15 = 14 * 24
    assert spike_at({**dict.fromkeys(range(day_15), 1), day_15: 10**9}, day_15 * HOUR_MS) is not None


def test_what_happened_on_more_than_two_days_is_a_precedent() -> None:
    hour = 29 * 24 + 5
    hours = {**EVEN, hour: 5_000, hour - 24 * 3: 5_000, hour - 24 * 9: 5_000}
    assert spike_at(hours, hour * HOUR_MS) is not None
    assert spike_at({**hours, hour - 24 * 11: 5_000}, hour * HOUR_MS) is None


def test_the_pace_of_a_spike_is_that_of_four_weeks_like_it() -> None:
    hour = 29 * 24 + 5
    hours = {**EVEN, hour: 301, 0: 7, 23: 7, 24: 101}
    behind = 28 * 24 * 100 + 1
    assert pace_of(Spike(span="hour", used=301, usual=100), hours, hour * HOUR_MS + 5) == Pace(
        28 * 24 * 301, behind
    )
    assert pace_of(Spike(span="day", used=301, usual=100), hours, hour * HOUR_MS) == Pace(28 * 301, behind)
