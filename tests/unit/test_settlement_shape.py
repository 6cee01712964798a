"""What a bucket gives back of a quantity that it counted a while ago."""

from __future__ import annotations

import pytest

from meterkit.decisions.policies import SLIDING_WINDOW, TOKEN_BUCKET
from meterkit.store.settlement_shape import Rated


def rated(kind: int) -> Rated:
    """Ten a second."""
    return Rated(field="rate", meter="requests", source=None, terms=(kind, 1000, 10), is_corrected=True)


@pytest.mark.parametrize(
    ("passed_ms", "left"), [(-500, 8), (0, 8), (99, 8), (100, 7), (500, 3), (800, 0), (10_000, 0)]
)
def test_a_bucket_has_less_of_a_quantity_with_time(passed_ms: int, left: int) -> None:
    assert rated(TOKEN_BUCKET).unleaked(8, passed_ms) == left


def test_a_window_forgets_by_when_it_was_counted() -> None:
    assert rated(SLIDING_WINDOW).unleaked(8, 500) == 8
