"""A program whose quantities are known with each request only: compiled once, bound many times. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.decisions.kinds import CEILING, GAUGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.decisions.program import Program

__all__ = ["Binding"]


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
        limited = {measure.policy.meter for measure in program.measures if measure.kind in {CEILING, GAUGE}}
        self.is_exact = all(meter in limited for meter in program.held if meter in consumed)

    def numbers(self, quantities: Mapping[str, int]) -> list[int]:
        """The program's numbers, where so much is bound of each meter."""
        numbers = list(self._program.numbers)
        for place, meter, least in self._program.asked:
            if meter in quantities:
                numbers[place] = max(least, quantities[meter] + self._consumed[meter])
        return numbers

    def held(self, quantities: Mapping[str, int]) -> dict[str, int]:
        """What is held of each meter, where so much is bound."""
        return {
            meter: quantities[meter] + self._consumed[meter] if meter in quantities else taken
            for meter, taken in self._program.held.items()
        }
