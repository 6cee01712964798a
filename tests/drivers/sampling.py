"""Parameters that `make test` leaves to `make field`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _pytest.mark import ParameterSet

__all__ = ["sample", "whole"]


def whole(*values: Any, id: str | None = None) -> ParameterSet:  # noqa: A002 - as pytest.param has it
    """One set of parameters that runs with ``--whole`` only."""
    return pytest.param(*values, marks=pytest.mark.whole, id=id)


def sample(values: Iterable[str], *kept: str) -> list[str | ParameterSet]:
    """Parameters of which all but those that are kept run with ``--whole`` only."""
    return [value if value in kept else whole(value) for value in values]
