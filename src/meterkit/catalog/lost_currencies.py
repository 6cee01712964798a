"""A plans file in a currency that it lacks: it has no price of usage there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, TypeVar

_Catalog = TypeVar("_Catalog")
_KEPT_MAX: Final = 64
_known: dict[tuple[int, str], tuple[Any, Any]] = {}
"""Catalogs by the identity of the one that they were made of, which is kept so that no other one has it."""


def without_amounts(catalog: _Catalog, currency: str) -> _Catalog:
    """The catalog in a currency that the file lacks, such as one that has left it; the same one each time.

    Customers who are billed in it have the prices of their own subscription. No other price of usage is
    known in it, and none of another currency takes its place.
    """
    key = id(catalog), currency
    if key not in _known:
        if len(_known) >= _KEPT_MAX:
            _known.clear()
        given: Any = catalog
        own = replace(
            given,
            currency=currency,
            plans={name: without_prices(plan) for name, plan in given.plans.items()},
            former_plans={name: without_prices(plan) for name, plan in given.former_plans.items()},
            other_currencies={},
            has_amounts=False,
        )
        _known[key] = catalog, own
    found: _Catalog = _known[key][1]
    return found


def without_prices(plan: Any) -> Any:
    """The plan without prices of usage: none is known in this currency."""
    changed = {
        name: replace(given, overage=replace(given.overage, per=None, amount_cents=None))
        for name, given in plan.entitlements.items()
    }
    return replace(plan, entitlements=changed)
