"""I3, I5, I6, I11 at length: everything is killed, cut and restarted at random, and the sums are exact.

Some seconds of it; ``make soak`` has ten minutes, by ``METERKIT_SOAK_S=600``, and prints its figures.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import pytest

from faults.soak import CUSTOMERS, HOT, INCLUDED, Soak

SPAN_S: Final = float(os.environ.get("METERKIT_SOAK_S", "3"))
# By customer and by shard; what a day or an event's id has goes by itself.
PER_CUSTOMER: Final = {"c": 1, "s": 1, "t": 1, "h": 1, "l": 1, "f": 1}

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(SPAN_S + 300)]


@pytest.mark.dear("all that a service consists of runs and is killed")
@pytest.mark.leaves_keys("it has a store of its own")
async def test_i3_i6_i11_whatever_is_killed_the_sums_are_exact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = await Soak(tmp_path, int(SPAN_S)).last(SPAN_S, every_s=0.6 if SPAN_S < 60 else 1.5)
    with capsys.disabled():
        hot = sum(figures.hot.values()), sum(served for served, _ in figures.bursts.values())
        bursts = f"of {len(figures.hot)} hot customers {hot[0]} calls recorded, {hot[1]} answered"
        sys.stdout.write(f"\n{SPAN_S:.0f} s: {figures}, {bursts}\n" if SPAN_S >= 60 else "")
    assert (figures.left, figures.recorded) == ([], figures.billed)
    # Each event was told again until it was told as recorded: once, whoever died in between.
    assert figures.recorded["events"] == figures.told
    assert figures.told > 0
    # With allotments, too, no customer gets more than is included; killed apps lose unsettled calls.
    assert figures.spared
    for customer, (served, unknown) in figures.bursts.items():
        assert served <= INCLUDED, customer
        assert figures.hot[customer] <= min(INCLUDED, served + unknown), customer
        # No app was killed that had served this one: nothing is lost.
        assert customer not in figures.spared or figures.hot[customer] >= served, customer
    # A killed app had settled all but what ended last. What is not settled is held: of each of those
    # customers no more than is included.
    kills = figures.faults.get("app", 0)
    answered = sum(served for served, _ in figures.bursts.values())
    assert sum(figures.hot.values()) + kills * HOT * INCLUDED >= answered
    for kind, most in PER_CUSTOMER.items():
        assert figures.keys.get(kind, 0) <= most * len(CUSTOMERS), kind
    assert not figures.keys.keys() & {"intents", "outbox", "parked", "dead", "compare", "dirty"}
    # A short one may end before an app has imported all that it needs.
    assert SPAN_S < 60 or figures.grown_kib < 20_000
