"""Meters that are derived from others: which of them a quantity falls under. Pure."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Meter

__all__ = ["derived_from"]


def derived_from(
    meters: Mapping[str, Meter], source: str, dimensions: Mapping[str, str]
) -> tuple[Meter, ...]:
    """The meters that are derived from another and match some dimensions, in the file's order."""
    if not dimensions:
        return ()
    return tuple(
        meter
        for meter in meters.values()
        if meter.source == source
        and all(
            name in dimensions and fnmatchcase(dimensions[name], pattern)
            for name, pattern in meter.where.items()
        )
    )
