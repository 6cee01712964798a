"""What scripts read besides numbers and fields: one JSON object, put together from parts as text. Pure."""

from __future__ import annotations

__all__ = ["joined"]


def joined(first: str, second: str) -> str:
    """Two JSON objects with members of their own as one; either may be the empty text: nothing."""
    return f"{first[:-1]},{second[1:]}" if first and second else first or second
