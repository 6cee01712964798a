"""Costs of language model calls by the meter that counts them, at providers' prices and without markup."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from llm_usage.call_usage import billed_units
from llm_usage.price_table import table_version, unit_dimensions
from llm_usage.units import UNIT_OF
from meterkit.decisions.model_charges import ModelCharges, find_prices, find_reported_cost, require_table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from datetime import datetime
    from fractions import Fraction

    from llm_usage import CallUsage

_KEPT_MOST: Final = 1024
_TOTAL: Final = "total_tokens"
_CALLED: Final = {unit: name for name, unit in UNIT_OF.items()}


@cache
def _counted_by(unit: str) -> tuple[str, ...]:
    """The meters that may show a unit's cost: the first one that counts the unit, or a whole of it, does."""
    if unit == "requests":
        return "input_tokens", "output_tokens", _TOTAL
    dimensions = unit_dimensions()
    own = dimensions[unit]
    wholes = sorted(
        (other for other, known in dimensions.items() if known <= own),
        key=lambda other: -len(dimensions[other]),
    )
    named = [name for whole in wholes for name in (whole, _CALLED.get(whole)) if name is not None]
    return *named, _TOTAL


class CallCosts:
    """Providers' charges for calls, exactly, in micro-units of US dollars.

    Args:
        charges: what calls are charged, with the seller's own prices; None: they are not charged.
        meter: that counts what calls are charged; it shows the cost where no meter counts tokens.
        counters: the meters that are counted on.
        plans: the version of the plans file.
    """

    def __init__(
        self, charges: ModelCharges | None, meter: str | None, counters: Collection[str], plans: str
    ) -> None:
        require_table()
        self._charges = charges
        self._meter = meter
        self._named = tuple((name, UNIT_OF.get(name, name)) for name in counters if name != _TOTAL)
        self._counts_totals = _TOTAL in counters
        self._meters: dict[tuple[str, ...], _MetersOfUnits] = {}
        self._plans = plans
        self.version = f"{plans},{table_version()}"

    def of(self, call: CallUsage, at: datetime) -> dict[str, Fraction]:
        """The cost by meter, without markup; empty: no provider's price is known, or nothing was used."""
        units = billed_units(call)
        has_measure = call.billed_input_tokens is not None or call.billed_output_tokens is not None
        known = call.units if has_measure else units
        counted = tuple(name for name, unit in self._named if known.get(unit))
        if self._counts_totals and call.total_tokens:
            counted = *counted, _TOTAL
        meters = self._meters.get(counted)
        if meters is None:
            if len(self._meters) >= _KEPT_MOST:
                self._meters.clear()
            meters = self._meters[counted] = _MetersOfUnits(counted, self._meter)
        return find_costs(call, units, at, self._charges, meters.__getitem__) or {}


class _MetersOfUnits(dict[str, str]):
    """Unit to the meter that shows its cost, found once for the meters that a call counts on."""

    def __init__(self, counted: Collection[str], meter: str | None) -> None:
        super().__init__()
        self._counted = counted
        self._other = meter or next(iter(sorted(counted)), "")

    def __missing__(self, unit: str) -> str:
        found = next((name for name in _counted_by(unit) if name in self._counted), self._other)
        self[unit] = found
        return found


def make_call_costs(
    charges: Mapping[str, ModelCharges], counters: Collection[str], plans: str
) -> CallCosts | None:
    """Costs of calls; None: the package ``genai-prices`` is not installed."""
    if find_spec("genai_prices") is None:
        return None
    meter, one = next(iter(charges.items()), (None, None))
    return CallCosts(one, meter, counters, plans)


def find_costs(
    call: CallUsage,
    units: Mapping[str, int],
    at: datetime,
    charges: ModelCharges | None,
    group: Callable[[str], str],
) -> dict[str, Fraction] | None:
    """The cost of a call by group of units; None: nothing says what its model costs.

    The seller's own prices come first, then the amount that the provider reports, then list prices. The
    provider's amount stands under ``requests``.

    Args:
        call: the call.
        units: of it, as they are billed.
        at: when it was made (aware).
        charges: knows the seller's own prices; None: there are none.
        group: what the costs of a unit are added to.
    """
    reported = find_reported_cost(call, charges)
    if reported is not None:
        return {group("requests"): reported}
    found = find_prices(call, units, at, charges)
    return None if found is None else found.costs(units, group, is_sum="summed" in call.notes)
