"""What kinds of policies there are, by the numbers that the scripts know them by."""

from __future__ import annotations

from typing import Final

__all__ = ["CEILING", "CONCURRENCY", "FIXED_WINDOW", "GAUGE", "SLIDING_WINDOW", "TOKEN_BUCKET"]

SLIDING_WINDOW: Final = 1
FIXED_WINDOW: Final = 2
TOKEN_BUCKET: Final = 3
CEILING: Final = 4
"""What a billing period admits: included, and beyond that up to a cap."""
CONCURRENCY: Final = 5
GAUGE: Final = 6
"""A level that may grow no further; the script has it apart."""
