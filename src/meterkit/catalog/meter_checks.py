"""Checks of meters, quantities and features that the app names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.errors import MeterkitError, QuantityError, UnknownFeatureError, UnknownMeterError

if TYPE_CHECKING:
    from collections.abc import Collection

    from meterkit.catalog.models import Meter


def check_feature(name: str, features: Collection[str]) -> None:
    """Check that the plans file has a feature of this name.

    Raises:
        UnknownFeatureError: it has not.
    """
    if name not in features:
        raise UnknownFeatureError.of(name, features)


def check_quantity(quantity: object) -> int:
    """Return the quantity.

    Raises:
        QuantityError: it is not an integer from 0 to 10^15 - 1; a bool or a float is none.
    """
    return _check_integer(quantity, 0)


def check_change(quantity: object) -> int:
    """Return by how much a level changes.

    Raises:
        QuantityError: it is not an integer of at most 15 digits; a bool or a float is none.
    """
    return _check_integer(quantity, -QUANTITY_MAX)


def _check_integer(quantity: object, least: int) -> int:
    if type(quantity) is int and least <= quantity <= QUANTITY_MAX:
        return quantity
    found = (
        repr(quantity) if isinstance(quantity, int | float) else f"a value of type {type(quantity).__name__}"
    )
    raise QuantityError(f"quantity: found {found:.40}; allowed is an integer from {least} to {QUANTITY_MAX}")


def check_quantities(quantities: Mapping[str, int], meters: Mapping[str, Meter]) -> None:
    """Check that each quantity is valid and its meter a counter of the app's.

    Raises:
        UnknownMeterError: a meter is not there, or is a gauge or derived.
        QuantityError: a quantity is not an integer from 0 to 10^15 - 1.
    """
    for name, quantity in quantities.items():
        check_counter(name, meters)
        check_quantity(quantity)


def collect_quantities(
    meter: str | Mapping[str, int], quantity: int | None, meters: Mapping[str, Meter]
) -> dict[str, int]:
    """Return quantities by meter, from a meter with its quantity or from a mapping.

    Raises:
        MeterkitError: a mapping is empty, or comes with a quantity.
        UnknownMeterError, QuantityError: as of :func:`check_quantities`.
    """
    if not isinstance(meter, Mapping):
        check_counter(meter, meters)
        return {meter: check_quantity(quantity)}
    if quantity is not None:
        raise MeterkitError(
            f"quantity: found {quantity!r:.40} beside a mapping of meters to quantities; leave it out"
        )
    if not meter:
        raise MeterkitError("quantities: found none; name at least one meter")
    check_quantities(meter, meters)
    return dict(meter)


def check_counter(name: object, meters: Mapping[str, Meter]) -> None:
    """Check that an app can count on a meter of this name.

    Raises:
        UnknownMeterError: there is none, or it is a gauge or derived.
    """
    countable = counters_of(meters)
    if not isinstance(name, str):
        raise UnknownMeterError.of(name, countable)
    if name not in countable:
        meter = meters.get(name)
        if meter is not None and meter.kind == "gauge":
            raise UnknownMeterError(
                name,
                f"meter: {name} is a gauge and cannot be counted; kit.gauges.set and kit.gauges.adjust"
                " change its level",
            )
        raise UnknownMeterError.of(name, countable)


def check_gauge(name: str, meters: Mapping[str, Meter]) -> None:
    """Check that a meter of this name is a gauge.

    Raises:
        UnknownMeterError: there is none, or it is a counter.
    """
    gauges = [meter.name for meter in meters.values() if meter.kind == "gauge"]
    if name in gauges:
        return
    if not gauges:
        raise UnknownMeterError(name, f"meter: found {name!r:.80}; the plans file has no gauges")
    raise UnknownMeterError.of(name, gauges, allowed="the gauges")


def counters_of(meters: Mapping[str, Meter]) -> frozenset[str]:
    """The meters that can be counted on: no gauges, none that are derived from another, nor what is spent."""
    return frozenset(
        name
        for name, meter in meters.items()
        if meter.kind == "counter" and meter.source is None and not meter.is_spend
    )
