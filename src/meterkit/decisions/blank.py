"""Decisions whose quantities are known only when they are made: all else of them is worked out once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.decisions.decision import Decision
    from meterkit.decisions.program import Program

__all__ = ["Blank", "Open"]


class Open(int):
    """A quantity that is not known yet when a program is compiled; its places in the numbers are.

    Attributes:
        meter: of which meter.
        least: the least that it is asked as.
    """

    meter: str
    least: int

    def __new__(cls, meter: str, *, least: int) -> Self:
        """A stand-in for a quantity of a meter; counts as 1 meanwhile."""
        self = super().__new__(cls, 1)
        self.meter, self.least = meter, least
        return self


class Blank:
    """A program whose reserved quantities are filled in for each decision.

    Args:
        program: compiled with :class:`Open` quantities of the reserved meters.
        consumed: a reserved meter to what its route consumes of it besides.
        preset: the refusal that follows from the state alone, or None.
        head: the packed request up to the terms.
        tail: the packed request behind them.

    Attributes:
        besides: meter to what is recorded besides the true quantities.
        is_exact: whether the numbers are all that the quantities change.
    """

    __slots__ = (
        *("_consumed", "_numbers", "_places", "besides", "head", "is_exact", "preset", "program", "tail"),
    )

    def __init__(
        self, program: Program, consumed: Mapping[str, int], preset: Decision | None, head: bytes, tail: bytes
    ) -> None:
        self.program = program
        self.preset = preset
        self.head = head
        self.tail = tail
        self.besides = {
            meter: consumed.get(meter, taken)
            for meter, taken in program.settled.items()
            if consumed.get(meter, taken)
        }
        # What is held of a meter without a ceiling stands beside the numbers.
        ceilings = {measure.policy.meter for measure in program.measures if measure.policy.kind == "period"}
        self.is_exact = all(meter in ceilings for meter in program.held if meter in consumed)
        self._consumed = consumed
        self._numbers = program.numbers
        self._places = [
            (place, number.meter, number.least)
            for place, number in enumerate(program.numbers)
            if isinstance(number, Open)
        ]

    def numbers(self, reserved: Mapping[str, int]) -> list[int]:
        """The program's numbers, where so much is reserved."""
        numbers = list(self._numbers)
        for place, meter, least in self._places:
            numbers[place] = max(least, reserved[meter] + self._consumed[meter])
        return numbers

    def quantities(self, held: Mapping[str, int], reserved: Mapping[str, int]) -> dict[str, int]:
        """What is held of each meter, where so much is reserved."""
        return {
            meter: reserved[meter] + self._consumed[meter] if meter in reserved else taken
            for meter, taken in held.items()
        }
