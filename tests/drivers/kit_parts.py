"""The parts of a kit, for tests of what is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.background import BackgroundTasks

if TYPE_CHECKING:
    from meterkit import MeterKit
    from meterkit.assembly import Parts

__all__ = ["BackgroundTasks", "parts_of"]


def parts_of(kit: MeterKit) -> Parts:
    """The parts of a kit."""
    parts: Parts = vars(kit)["_parts"]
    return parts
