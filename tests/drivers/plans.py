"""Plans files of the tests: ``tests/plans/NAME.yaml``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

__all__ = ["plans_text"]

_FOLDER: Final = Path(__file__).parents[1] / "plans"


@cache
def plans_text(name: str) -> str:
    """The text of a plans file; a test may replace parts of it."""
    return (_FOLDER / f"{name}.yaml").read_text("utf-8")
