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


def pairs(*axes: Sequence[Any]) -> list[Any]:
    """Each value of each axis in one of the sample; all other combinations are marked whole."""
    count = max(map(len, axes))
    kept = {tuple(nth % len(axis) for axis in axes) for nth in range(count)}
    return [
        values if places in kept else pytest.param(*values, marks=pytest.mark.whole)
        for places, values in zip(product(*map(range, map(len, axes))), product(*axes), strict=True)
    ]


def few_examples(percent: int) -> settings:
    """Settings with a share of the profile's examples; the soak profile has twenty times as many."""
    return settings(max_examples=max(1, settings().max_examples * percent // _USUAL_EXAMPLES))
