"""The size of the next allotment follows what was used of the one before."""

from __future__ import annotations

import pytest

from meterkit.store.allotment import next_size


@pytest.mark.parametrize(
    ("asked", "granted", "unused", "is_early", "size"),
    [
        # Little was left before half of the term was over: twice as many.
        (16, 16, 0, True, 32),
        (16, 16, 4, True, 32),
        (64, 8, 2, True, 128),
        # It lasted: as many again.
        (16, 16, 0, False, 16),
        (16, 16, 4, False, 16),
        (64, 8, 2, False, 64),
        # More than a quarter of the granted units is unused: half as many.
        (16, 16, 5, False, 8),
        (16, 16, 16, False, 8),
        (16, 16, 5, True, 8),
        (64, 8, 3, False, 32),
        (4096, 4096, 1025, False, 2048),
        # Never fewer than 4, never more than 4096.
        (9, 9, 9, False, 4),
        (7, 7, 7, False, 4),
        (4, 4, 4, False, 4),
        (4, 4, 0, False, 4),
        (2048, 2048, 0, True, 4096),
        (2049, 2049, 0, True, 4096),
        (4096, 4096, 0, True, 4096),
    ],
)
def test_the_next_size_is_exact(asked: int, granted: int, unused: int, is_early: bool, size: int) -> None:
    assert next_size(asked, granted, unused, is_early=is_early) == size


def test_sizes_grow_to_the_most_and_shrink_to_the_least() -> None:
    grown, shrunk = [16], [4096]
    for _ in range(9):
        grown.append(next_size(grown[-1], grown[-1], 0, is_early=True))
    for _ in range(11):
        shrunk.append(next_size(shrunk[-1], shrunk[-1], shrunk[-1], is_early=False))
    assert grown == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 4096]
    assert shrunk == [4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 4]
