"""Samples of parameters and of Hypothesis examples: the rest is run by `make field` and by `make soak`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import product
from typing import Any

import pytest
from _pytest.mark import ParameterSet
from hypothesis import settings

_USUAL_EXAMPLES = 100


def whole(*values: Any, id: str | None = None) -> ParameterSet:  # noqa: A002 - as pytest.param has it
    """One set of parameters that runs with ``--whole`` only."""
    return pytest.param(*values, marks=pytest.mark.whole, id=id)


def some(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """Mark all cases whole but those kept."""
    return [case if case in kept else whole(case) for case in cases]


def pairs(*axes: Sequence[Any]) -> list[Any]:
    """Each value of each axis in one of the sample; all other combinations are marked whole."""
    count = max(map(len, axes))
    kept = {tuple(nth % len(axis) for axis in axes) for nth in range(count)}
    return [
        values if places in kept else whole(*values)
        for places, values in zip(product(*map(range, map(len, axes))), product(*axes), strict=True)
    ]


def few_examples(percent: int) -> settings:
    """Settings with a share of the profile's examples; the soak profile has twenty times as many."""
    return settings(max_examples=max(1, settings().max_examples * percent // _USUAL_EXAMPLES))
