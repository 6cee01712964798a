"""Binding: set the quantities of one request in a compiled program; and meters derived from others."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product
from typing import TYPE_CHECKING

from meterkit.decisions.policies import CEILING, GAUGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.catalog import Meter
    from meterkit.decisions.program import Program


class Binding:
    """What a program comes to with the quantities of one request.

    Args:
        program: compiled for one of each quantity that is bound.
        consumed: meter whose quantity is bound, to what is asked of it besides.

    Attributes:
        recorded: meter to what is recorded besides the true quantities.
        is_exact: whether its numbers say all; what is held of a meter without a limit stands beside them.
    """

    __slots__ = ("_consumed", "_program", "is_exact", "recorded")

    def __init__(self, program: Program, consumed: Mapping[str, int]) -> None:
        self._program = program
        self._consumed = consumed
        besides = {meter: consumed.get(meter, taken) for meter, taken in program.settled.items()}
        self.recorded = {meter: quantity for meter, quantity in besides.items() if quantity}
        own = program.measures[: len(program.measures) - sum(len(one.measures) for one in program.subjects)]
        limited = {measure.policy.meter for measure in own if measure.kind in {CEILING, GAUGE}}
        self.is_exact = all(meter in limited for meter in program.held if meter in consumed)

    def numbers(self, quantities: Mapping[str, int]) -> list[int]:
        """The program's numbers, where so much is bound of each meter."""
        numbers = list(self._program.numbers)
        for place, meter, least in self._program.asked:
            if meter in quantities:
                numbers[place] = max(least, quantities[meter] + self._consumed[meter])
        return numbers

    def held(self, quantities: Mapping[str, int]) -> dict[str, int]:
        """The hold of each meter for bound quantities."""
        return {
            meter: quantities[meter] + self._consumed[meter] if meter in quantities else taken
            for meter, taken in self._program.held.items()
        }


def with_derived(
    meters: Mapping[str, Meter], quantities: Mapping[str, int], models: Sequence[str]
) -> dict[str, int]:
    """Quantities, and those of the meters derived from them that match one of some models."""
    found = dict(quantities)
    for name, model in product(quantities, models):
        for derived in derived_from(meters, name, {"model": model}):
            found[derived.name] = quantities[name]
    return found


def derived_from(
    meters: Mapping[str, Meter], source: str, dimensions: Mapping[str, str]
) -> tuple[Meter, ...]:
    """The meters that are derived from another and match some dimensions, each followed by its own parts."""
    if not dimensions:
        return ()
    found: list[Meter] = []
    for meter in meters.values():
        if meter.source == source and not meter.is_row and _matches(meter, dimensions):
            found += (meter, *derived_from(meters, meter.name, dimensions))
    return tuple(found)


def _matches(derived: Meter, dimensions: Mapping[str, str]) -> bool:
    return all(
        dimensions.get(name) and fnmatchcase(dimensions[name], pattern)
        for name, pattern in derived.where.items()
    )
