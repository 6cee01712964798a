"""Whole units of charged amounts: fractions are carried over to the next call."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterkit.store.hold import Used
    from meterkit.store.views import CustomerView


def in_whole_units(view: CustomerView, used: Used) -> Used:
    """The same usage, with whole units of charged amounts as recorded quantities."""
    remainders, tallies = view.cache.remainders, view.cache.tallies
    for model, calls in used.unpriced.items():
        if tallies is not None:
            tallies.add_unpriced(model, used.dimensions.get("provider"), calls)
        if view.cache.unpriced is not None:
            view.cache.unpriced.note(model, calls)
    exact = [Fraction(cost) for cost in used.costs.values() if isinstance(cost, Fraction)]
    if tallies is not None and (exact or used.charged):
        named = used.dimensions.get("model"), used.dimensions.get("provider")
        charged = sum(used.charged.values(), Fraction(0))
        tallies.called(*named, cost=sum(exact, Fraction(0)), charged=charged)
    units = {meter: remainders.whole(view.customer, meter, amount) for meter, amount in used.charged.items()}
    costs: dict[str, Fraction | int] = {}
    for meter, cost in used.costs.items() if used.recorded or units else ():
        # Each model's costs add up for themselves.
        of_model = f"{meter}\0{used.dimensions.get('model')}"
        costs[meter] = cost if isinstance(cost, int) else remainders.whole(view.customer, of_model, cost)
    return used._replace(
        recorded={**used.recorded, **units},
        rated={**used.rated, **units},
        charged={},
        costs=costs,
        unpriced={},
    )
