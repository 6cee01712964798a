"""What was used of several meters at once, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Used"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What is counted together.

    Attributes:
        recorded: meter to the quantity that is recorded.
        rated: meter to the quantity that rates count.
        dimensions: the model and the provider, for meters that are derived from others (``where:``).
    """

    recorded: Mapping[str, int]
    rated: Mapping[str, int]
    dimensions: Mapping[str, str]

    @classmethod
    def of(cls, quantities: Mapping[str, int], **dimensions: str) -> Self:
        """What is recorded and rated alike."""
        return cls(recorded=quantities, rated=quantities, dimensions=dimensions)
