"""What handlers are told."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CreditsLow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditsLow:
    """``credits.low``: a balance fell below the share of its last grant that ``low_balance`` names.

    Attributes:
        customer: whose.
        credit: of which credit of the plans file.
    """

    customer: str
    credit: str
