"""What goes into the emulator: a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterkit.testing.emulator.params import Params

__all__ = ["Call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One authenticated request.

    Attributes:
        now: the emulator's clock in Unix seconds.
        object_id: the id in the path, or an empty text.
        lose: whether a fault wants the event answered with 200 and not counted.
    """

    method: str
    path: str
    params: Params
    now: float
    livemode: bool
    idempotency_key: str | None
    object_id: str = ""
    lose: bool = False
