"""Samples of parameters and of Hypothesis examples: the rest is run by `make field` and by `make soak`."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

__all__ = ["few_examples", "pairs", "some"]

_USUAL_EXAMPLES = 100


def some(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """Mark all cases whole but those kept."""
    return [case if case in kept else pytest.param(case, marks=pytest.mark.whole) for case in cases]


def pairs(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Each value of either sequence in a pair of the sample; all other pairs are marked whole."""
    count = max(len(first), len(second))
    kept = {(nth % len(first), nth % len(second)) for nth in range(count)}
    return [
        (one, other) if (at, by) in kept else pytest.param(one, other, marks=pytest.mark.whole)
        for (at, one), (by, other) in product(enumerate(first), enumerate(second))
    ]


def few_examples(percent: int) -> settings:
    """Settings with a share of the profile's examples; the soak profile has twenty times as many."""
    return settings(max_examples=max(1, settings().max_examples * percent // _USUAL_EXAMPLES))
