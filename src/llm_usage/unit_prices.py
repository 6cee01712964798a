"""Prices of one model by unit, compiled so that a call costs few steps, exactly.

A unit may be a part of another one: cached tokens are input tokens, too. Each token is priced once, by the
smallest of its units that has a price.
"""

from __future__ import annotations

from fractions import Fraction
from math import lcm
from operator import mul
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_usage.price_table import unit_dimensions
from llm_usage.units import WHOLE_OF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_REQUESTS: Final = "requests"
_ONE: Final = Fraction(1)
_NO_UNITS: Final[Mapping[str, int]] = {}
ALWAYS: Final = -1
"""Start of the tier that contains every call."""

Tiers = tuple[tuple[int, Fraction], ...]
"""Prices of a unit, each with the input tokens from beyond which all units of a call cost it."""


def _same_name(unit: str) -> str:
    return unit


class _PricedUnit(NamedTuple):
    """A priced unit: its tiers in whole numbers, and the places of the rows that are parts of it."""

    unit: str
    tiers: tuple[tuple[int, int], ...]
    parts: tuple[int, ...]


class UnitPrices:
    """Prices by unit, in micro-units of US dollars. A part without a price costs what its whole does.

    Args:
        prices: by unit of the table.
    """

    def __init__(self, prices: Mapping[str, Tiers]) -> None:
        dimensions = unit_dimensions()
        self.prices: Mapping[str, Tiers] = {unit: tiers for unit, tiers in prices.items() if tiers}
        self._divisor = lcm(*(price.denominator for tiers in prices.values() for _, price in tiers))
        ordered = sorted(
            (unit for unit in self.prices if unit != _REQUESTS),
            key=lambda unit: (-len(dimensions[unit]), unit),
        )
        self._rows = tuple(
            _PricedUnit(
                unit,
                self._scale_tiers(self.prices[unit]),
                tuple(
                    at
                    for at, other in enumerate(ordered)
                    if other != unit and dimensions[unit] <= dimensions[other]
                ),
            )
            for unit in ordered
        )
        self._names = tuple(ordered)
        self._having_parts = tuple((at, row.parts) for at, row in enumerate(self._rows) if row.parts)
        self._wholes = tuple(
            (whole, tuple(at for at, unit in enumerate(ordered) if WHOLE_OF.get(unit, unit) == whole))
            for whole in ("input_tokens", "output_tokens")
        )
        self._lacks_whole = any(whole not in self.prices for whole, _ in self._wholes)
        self._request = self._scale_tiers(self.prices.get(_REQUESTS, ()))
        self._tiered = any(len(tiers) > 1 for tiers in self.prices.values())
        self._amounts = self._prices_at(1)

    def _scale_tiers(self, tiers: Tiers) -> tuple[tuple[int, int], ...]:
        return tuple((start, int(price * self._divisor)) for start, price in tiers)

    def _prices_at(self, input_tokens: int) -> tuple[int, ...]:
        """Price of each row for a call of so many input tokens, and at last that of the request."""
        return (
            *(_price_at(row.tiers, input_tokens) for row in self._rows),
            _price_at(self._request, input_tokens),
        )

    def _prices_of(self, units: Mapping[str, int], *, is_sum: bool) -> tuple[int, ...]:
        if not self._tiered:
            return self._amounts
        return self._prices_at(0 if is_sum else units.get("input_tokens", 0))

    def cost(self, units: Mapping[str, int], factor: Fraction = _ONE, *, is_sum: bool = False) -> Fraction:
        """Cost of a call that used so many units, times a factor.

        Tiers go by its input tokens. Of a sum of several calls these are not known: the lowest tier counts.
        """
        amount = sum(map(mul, self._prices_of(units, is_sum=is_sum), self._split_units(units)))
        # One fraction at the end: each takes as long as the rest together.
        return Fraction(amount * factor.numerator, self._divisor * factor.denominator)

    def costs(
        self, units: Mapping[str, int], group: Callable[[str], str] = _same_name, *, is_sum: bool = False
    ) -> dict[str, Fraction]:
        """Cost of a call by unit: each without its priced parts; units that cost nothing are left out.

        Args:
            units: that the call used.
            group: what the costs of a unit are added to.
            is_sum: whether they are of several calls.
        """
        prices = self._prices_of(units, is_sum=is_sum)
        found: dict[str, int] = {}
        for unit, price, count in zip(
            (*self._names, _REQUESTS), prices, self._split_units(units), strict=True
        ):
            if price and count:
                name = group(unit)
                found[name] = found.get(name, 0) + price * count
        return {name: Fraction(amount, self._divisor) for name, amount in found.items()}

    def most(
        self, *, input_tokens: int, output_tokens: int, has_media: bool, others: Mapping[str, int] = _NO_UNITS
    ) -> Fraction:
        """Price a call of so many tokens at the most that it can cost, of whatever kind they are.

        Args:
            input_tokens: tokens that go in.
            output_tokens: tokens that come out.
            has_media: whether sound, images or video may be among those that go in.
            others: quantities of units that are no tokens.
        """
        amount, found = 0, {"input_tokens": 0, "output_tokens": 0}
        dimensions = unit_dimensions()
        for row in self._rows:
            whole = WHOLE_OF.get(row.unit, row.unit)
            modality = dict(dimensions[row.unit]).get("modality", "text")
            if whole in found and (has_media or modality == "text" or whole == "output_tokens"):
                found[whole] = max(found[whole], _price_at(row.tiers, input_tokens))
            elif row.unit in others:
                amount += others[row.unit] * _price_at(row.tiers, input_tokens)
        amount += input_tokens * found["input_tokens"] + output_tokens * found["output_tokens"]
        return Fraction(amount + _price_at(self._request, input_tokens), self._divisor)

    @property
    def is_free(self) -> bool:
        """Whether nothing has a price above 0."""
        return not any(price for tiers in self.prices.values() for _, price in tiers)

    def _split_units(self, units: Mapping[str, int]) -> list[int]:
        """Count the units of each row that have no priced part, and 1 request: each token counts once."""
        count_of = units.get
        counts = [count_of(unit, 0) for unit in self._names]
        may_exceed = self._lacks_whole
        for at, parts in self._having_parts:
            count = counts[at]
            for part in parts:
                count -= counts[part]
            if count < 0:
                count, may_exceed = 0, True
            counts[at] = count
        for whole, within in self._wholes if may_exceed else ():
            most = count_of(whole)
            if most is not None and sum([counts[at] for at in within]) > most:
                self._cap_counts(counts, within, most, units.get("input_tokens", 0))
        counts.append(1)
        return counts

    def _cap_counts(self, counts: list[int], within: Iterable[int], most: int, input_tokens: int) -> None:
        """Count no more tokens of a direction than there are: in doubt the dearest are not billed."""
        for at in sorted(within, key=lambda at: _price_at(self._rows[at].tiers, input_tokens)):
            counts[at] = min(counts[at], most)
            most -= counts[at]


def _price_at(tiers: tuple[tuple[int, int], ...], input_tokens: int) -> int:
    # A tier is for the whole call: with one token more, all of them cost its price.
    for start, price in reversed(tiers):
        if input_tokens > start:
            return price
    return 0


def at_any_length(price: Fraction) -> Tiers:
    """A price that does not depend on how long the input is."""
    return ((ALWAYS, price),)


def highest_prices(many: Iterable[Mapping[str, Tiers]]) -> UnitPrices:
    """The highest price of each unit, whatever the length of the input."""
    found: dict[str, Fraction] = {}
    for prices in many:
        for unit, tiers in prices.items():
            found[unit] = max(found.get(unit, Fraction(0)), *(price for _, price in tiers))
    return UnitPrices({unit: at_any_length(price) for unit, price in found.items()})
