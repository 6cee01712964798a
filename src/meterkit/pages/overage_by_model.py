"""Split of a meter's overage over its prices by model, in proportion to what each price has counted. Pure."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.model_prices import PriceRows


class SplitOverage(NamedTuple):
    """Overage in which each unit stands on the meter of its price.

    Attributes:
        units: meter to its overage; a meter whose prices go by model has none.
        unknown: meters whose units may have any of their prices: no overage has been counted by them yet.
        is_estimated: units were more, or fewer, than counted, and divided in proportion.
    """

    units: Mapping[str, int]
    unknown: Mapping[str, int]
    is_estimated: bool


def split_by_model(
    overage: Mapping[str, int], price_rows: Mapping[str, PriceRows], counted: Mapping[str, int]
) -> SplitOverage:
    """Divide the overage of meters over their prices by model.

    Args:
        overage: meter to its units, without meters of prices by model.
        price_rows: meter to its prices by model.
        counted: the overage that was counted so far, by the meters of these prices.
    """
    units, unknown, is_estimated = dict[str, int](), dict[str, int](), False
    for name, beyond in overage.items():
        if name not in price_rows:
            units[name] = beyond
            continue
        shares = {row: found for row in price_rows[name].all if (found := counted.get(row, 0)) > 0}
        known = sum(shares.values())
        if beyond and not known:
            unknown[name] = beyond
        elif known:
            ends = (beyond * end // known for end in accumulate(shares.values(), initial=0))
            units |= {row: end - start for row, (start, end) in zip(shares, pairwise(ends), strict=True)}
            is_estimated = is_estimated or (beyond not in {0, known} and len(shares) > 1)
    return SplitOverage(units, unknown, is_estimated)
