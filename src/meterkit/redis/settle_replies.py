"""What the settle script answers, by the first number of its reply."""

from __future__ import annotations

from typing import Final

__all__ = ["DAMAGED", "DUPLICATE", "GAP", "OK", "REFUSED", "STALE"]

OK: Final = 0
DUPLICATE: Final = 1
GAP: Final = 2
STALE: Final = 4
REFUSED: Final = 6
DAMAGED: Final = 7
