"""The seats that a subscription pays for: how far the gauge of seats may grow. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Entitlement, Meter

__all__ = ["seat_meter", "with_seats"]

_SEATS: Final = "seats"
_UNITS: Final = frozenset({"seat", "seats"})


def seat_meter(meters: Mapping[str, Meter]) -> str | None:
    """The gauge that counts seats: the one named ``seats``, else the only one whose unit is a seat."""
    gauges = {name: meter.unit for name, meter in meters.items() if meter.kind == "gauge"}
    if _SEATS in gauges:
        return _SEATS
    found = [name for name, unit in gauges.items() if unit in _UNITS]
    return found[0] if len(found) == 1 else None


def with_seats(
    entitlements: Mapping[str, Entitlement], meters: Mapping[str, Meter], seats: int
) -> Mapping[str, Entitlement]:
    """The same entitlements, but no fewer seats than are paid for."""
    name = seat_meter(meters) if seats else None
    included = None if name is None else entitlements[name].included
    if name is None or included is None or included >= seats:
        return entitlements
    return {**entitlements, name: replace(entitlements[name], included=seats)}
