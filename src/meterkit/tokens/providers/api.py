"""What a reader of one API provides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.tokens.calls import Sighting
    from meterkit.tokens.shape import Table

__all__ = ["Api"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """How one API reports usage.

    Attributes:
        name: the word of the plans file.
        provider: as OpenTelemetry names it; None where each object has its own.
        see: what an event or document says about usage, None where it says nothing. With ``strict`` the
            whole of it must have the API's shape; without, a usage object of the right shape suffices.
        knows: whether an event or document is certainly the API's, with or without usage.
    """

    name: str
    provider: str | None
    see: Callable[[Table, bool], Sighting | None]
    knows: Callable[[Table], bool]
