"""Marks that this library leaves on objects at Stripe, to know them again."""

from __future__ import annotations

from typing import Final

__all__ = ["ENDED_HERE"]

ENDED_HERE: Final = "ended by meterkit: the last invoice is to be collected"
"""The comment of the ``cancellation_details`` of a subscription that we ended at once."""
