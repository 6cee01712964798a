"""Synthetic histories of usage by the hour, with noise, days, weeks, jobs and growth."""

from __future__ import annotations

from math import exp, pi, sin, sqrt
from random import Random
from typing import Final

KINDS: Final = ("even", "by day", "in office hours", "in bursts", "a weekly job")


def history(seed: int, days: int) -> dict[int, int]:
    """Units by hour, of a customer that a seed draws; its kind is ``KINDS[seed % 5]``."""
    random = Random(seed)  # noqa: S311 - a history, not a secret
    base, noise = 10 ** random.uniform(0.3, 5), random.uniform(0.1, 0.6)
    weekend, growth = random.choice((1.0, 0.5, 0.1)), random.uniform(-0.2, 1.5) / 365
    job_at = random.randrange(24)
    found: dict[int, int] = {}
    for day in range(days):
        of_day = exp(random.gauss(0, noise / 3)) * (1 + growth * day) * (weekend if day % 7 > 4 else 1)
        for hour in range(24):
            shapes = (
                1.0,
                1 + 0.9 * sin((hour - 9) / 24 * 2 * pi),
                1.0 if 8 <= hour < 18 else 0.05,
                8.0 if random.random() < 0.03 else 0.0,
                20.0 if hour == job_at and day % 7 == 2 else 0.1,
            )
            usual = base * shapes[seed % 5] * of_day * exp(random.gauss(0, noise))
            found[day * 24 + hour] = max(0, int(random.gauss(usual, sqrt(usual))))
    return found
