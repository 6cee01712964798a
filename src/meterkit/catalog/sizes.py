"""Bytes for people: ``9.5 GB``. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

__all__ = ["size_text"]

_KILO: Final = 1000


def size_text(number: int) -> str:
    """Bytes as people write them, with three digits: ``9.5 GB``."""
    size, unit = Decimal(number), "byte" if number == 1 else "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if size < _KILO:
            break
        size, unit = size / _KILO, larger
    return f"{size:.3g} {unit}" if size < _KILO - 1 else f"{size:.0f} {unit}"
