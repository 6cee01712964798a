"""Quantities of model calls on the meters of the plans file, read off responses or given by the app. Pure."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

from llm_usage import CallUsage
from llm_usage.call_usage import billed_units, cap_parts
from llm_usage.units import UNIT_OF, WHOLE_OF
from meterkit.catalog.meters import check_quantity
from meterkit.catalog.models import QUANTITY_MAX
from meterkit.catalog.usage_meters import USAGE_METERS
from meterkit.decisions.model_charges import price_call
from meterkit.decisions.periods import from_ms
from meterkit.safe_text import plain_text
from meterkit.store.settlement_parts import UsedQuantities, add_quantities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meterkit.store.compiled_catalog import CompiledCatalog

_Key: TypeAlias = tuple[str | None, str | None]
"""Model and provider; both None for usage that is counted whatever it is of."""
Amounts: TypeAlias = dict[tuple[_Key, bool, str], int | Fraction]
"""Quantities by key, whether they are billed (otherwise rated), and meter; charges are exact."""

ALL_CALLS: Final[_Key] = (None, None)
_COST_OF: Final = "cost of "
"""Marks a cost: it stands before the name of the meter whose tokens cost it. No meter has such a name."""
_UNPRICED: Final = "unpriced "
"""Marks how many calls of a model have no price, likewise."""
_UNIT: Final = "unit "
"""Marks a counter of the price table, for the audit log, likewise."""
_EPOCH: Final = from_ms(0)


def used_by_model(calls: Iterable[CallUsage], compiled: CompiledCatalog) -> list[UsedQuantities]:
    """Add up the usage of calls, by model and provider where meters ask for them."""
    return used_of(amounts_of(calls, compiled), compiled)


_NAME_MAX: Final = 256
"""Characters of a name that are kept: it comes from outside, and a spool takes records of a megabyte."""


def dimensions_of(model: str | None, provider: str | None) -> dict[str, str]:
    """Model and provider as the conditions of derived meters know them."""
    named = (("model", model), ("provider", provider))
    return {name: value[:_NAME_MAX] for name, value in named if value is not None}


class _Parts(NamedTuple):
    recorded: dict[str, int]
    rated: dict[str, int]
    charged: dict[str, Fraction]
    costs: dict[str, Fraction]
    units: dict[str, int]
    unpriced: dict[str, int]


def used_of(amounts: Amounts, compiled: CompiledCatalog) -> list[UsedQuantities]:
    """Amounts as the store records them: one part for each model and provider."""
    found: dict[_Key, _Parts] = {}
    for (key, billed, meter), quantity in amounts.items():
        recorded, rated, charged, costs, units, unpriced = found.setdefault(
            key, _Parts({}, {}, {}, {}, {}, {})
        )
        if meter in compiled.counters and meter not in compiled.charges:
            (recorded if billed else rated)[meter] = int(quantity)
        elif meter.startswith(_COST_OF):
            costs[meter.removeprefix(_COST_OF)] = Fraction(quantity)
        elif meter.startswith(_UNIT):
            units[meter.removeprefix(_UNIT)] = int(quantity)
        elif meter.startswith(_UNPRICED):
            unpriced[meter.removeprefix(_UNPRICED)] = int(quantity)
        elif meter in compiled.charges:
            charged[meter] = Fraction(quantity)
        else:
            (recorded if billed else rated)[meter] = int(quantity)
    known = compiled.call_costs()
    version = "" if known is None else known.version
    return [
        UsedQuantities(
            parts.recorded,
            parts.rated,
            dimensions_of(*key),
            charged=parts.charged,
            costs=parts.costs,
            version=version,
            units=parts.units,
            unpriced=parts.unpriced,
        )
        for key, parts in found.items()
    ]


def amounts_of(
    calls: Iterable[CallUsage], compiled: CompiledCatalog, *, has_figures: bool = False
) -> Amounts:
    """Add up calls on the meters that are declared as plain counters, with what they cost.

    Usage that no meter counts is logged.

    Args:
        calls: the calls.
        compiled: knows the meters and prices.
        has_figures: whether ``usage_fields`` counts figures of the same response.
    """
    plain, by_model, sources = compiled.counters, compiled.by_model, compiled.catalog.billing.sources
    # A call without a model costs the highest price: a client may have hidden the model.
    unknown = "" if compiled.has_model_prices else None
    costs = compiled.call_costs()
    # Only prices need the time.
    at = from_ms(compiled.now_ms()) if compiled.charges or costs is not None else _EPOCH
    is_audited = compiled.settle_audited is not None
    found: Amounts = {}
    for call in calls:
        key = (call.model or unknown, call.provider or None) if by_model else ALL_CALLS
        counted = call if call.source in sources else call.snapshot
        if counted is not None and counted.source not in sources:
            counted = None
        used = call.quantities()
        billed_used = used if counted is call else {} if counted is None else counted.quantities()
        if plain.isdisjoint(used) and not (has_figures or compiled.charges):
            compiled.alarms.log_unmetered_usage(name for name, quantity in used.items() if quantity)
        for billed, quantities in ((True, billed_used), (False, used)):
            for meter, quantity in quantities.items():
                if quantity and meter in plain:
                    place = (key, billed, meter)
                    found[place] = min(found.get(place, 0) + quantity, QUANTITY_MAX)
        if counted is not None:
            charged, is_unpriced = price_call(compiled.charges, counted, at)
            for meter, amount in charged.items():
                found[key, True, meter] = found.get((key, True, meter), 0) + amount
            if is_unpriced or compiled.lacks_price(counted):
                place = (key, True, _UNPRICED + (call.model or ""))
                found[place] = found.get(place, 0) + 1
        for unit, count in counted.units.items() if counted is not None and is_audited else ():
            place = (key, True, _UNIT + unit)
            found[place] = found.get(place, 0) + count
        for meter, cost in costs.of(counted or call, at).items() if costs is not None else ():
            place = (key, True, _COST_OF + meter)
            found[place] = found.get(place, 0) + cost
    return found


def amounts_beyond(counted: Amounts, found: Amounts) -> Amounts:
    """Usage found beyond the usage counted: by key, and never more than over all keys together."""
    left: dict[tuple[bool, str], int | Fraction] = {}
    for amounts, sign in ((found, 1), (counted, -1)):
        for (_, billed, meter), quantity in amounts.items():
            left[billed, meter] = left.get((billed, meter), 0) + sign * quantity
    more: Amounts = {}
    for (key, billed, meter), quantity in found.items():
        place = (key, billed, meter)
        added = min(quantity - counted.get(place, 0), left[billed, meter])
        if added > 0:
            more[place] = added
            left[billed, meter] -= added
    return more


_Amount = TypeVar("_Amount", Fraction, Fraction | int)

_TOTAL: Final = "total_tokens"
_MODALITIES: Final = ("text", "audio", "image", "video")
_FIELDS: Final = {unit: name for name, unit in UNIT_OF.items()} | {
    name: name for name in ("input_tokens", "output_tokens", "cache_write_tokens")
}
"""Units that are fields of :class:`CallUsage`, with the field's name."""


def price_quantities(
    quantities: Mapping[str, int],
    compiled: CompiledCatalog,
    *,
    model: str | None = None,
    provider: str | None = None,
    at_ms: int | None = None,
) -> UsedQuantities:
    """Usage by meter, with the cost and the charge of the tokens in it.

    An app that gives the amount of money itself is charged that amount, and nothing for the tokens.

    Args:
        quantities: by meter; units that the plans file declares no meter for are priced, not recorded.
        compiled: knows the meters and prices.
        model: of all these tokens.
        provider: likewise.
        at_ms: when the model was called; None: now.
    """
    recorded = {meter: count for meter, count in quantities.items() if meter in compiled.catalog.meters}
    used = UsedQuantities.of(recorded, **dimensions_of(model or None, provider or None))
    call = call_of_figures(quantities, compiled)
    if call is None:
        return used
    return _price_call(used, replace(call, model=model or None, provider=provider or None), compiled, at_ms)


def price_tokens(
    used: UsedQuantities,
    compiled: CompiledCatalog,
    name: Callable[[Sequence[CallUsage]], Sequence[CallUsage]],
) -> UsedQuantities:
    """Add the cost and the charge of the tokens among the quantities that an app records in a request.

    Args:
        used: the quantities.
        compiled: knows the meters and prices.
        name: gives calls the model and provider of the request.
    """
    call = call_of_figures(used.rated, compiled) if compiled.charges else None
    return used if call is None else _price_call(used, name([call])[0], compiled, None)


def _price_call(
    used: UsedQuantities, call: CallUsage, compiled: CompiledCatalog, at_ms: int | None
) -> UsedQuantities:
    if compiled.charges and not billed_units(call):
        compiled.alarms.log_total_alone()
    at = from_ms(compiled.now_ms() if at_ms is None else at_ms)
    costs = compiled.call_costs()
    charged, is_unpriced = price_call(compiled.charges, call, at)
    return used._replace(
        charged=charged,
        unpriced={call.model or "": 1} if is_unpriced or compiled.lacks_price(call) else {},
        costs={} if costs is None else costs.of(call, at),
        version="" if costs is None else costs.version,
        units=call.units if compiled.settle_audited is not None else {},
    )


def join_used(first: UsedQuantities, second: UsedQuantities) -> UsedQuantities:
    """Join two usages to one settlement, with the dimensions of the first."""
    return first._replace(
        recorded=add_quantities(second.recorded, first.recorded),
        rated=add_quantities(second.rated, first.rated),
        measured=first.rated,
        charged=_add_amounts(first.charged, second.charged),
        costs=_add_amounts(first.costs, second.costs),
        version=first.version or second.version,
        units=add_quantities(first.units, second.units),
        unpriced=add_quantities(first.unpriced, second.unpriced),
    )


def check_captured(
    quantities: Mapping[str, int],
    compiled: CompiledCatalog,
    check: Callable[[Mapping[str, int]], Mapping[str, int]],
) -> Mapping[str, int]:
    """Return quantities by plain names; refuse those that can be neither recorded nor charged.

    Where calls are charged, a unit of tokens needs no meter.

    Raises:
        QuantityError, UnknownMeterError: as ``check`` raises them.
    """
    charged = USAGE_METERS - compiled.catalog.meters.keys() if compiled.charges else frozenset[str]()
    tokens = {plain_text(name): check_quantity(quantities[name]) for name in quantities if name in charged}
    return {**tokens, **check({name: quantities[name] for name in quantities if name not in charged})}


def _add_amounts(first: Mapping[str, _Amount], second: Mapping[str, _Amount]) -> dict[str, _Amount]:
    found = dict(first)
    for meter, amount in second.items():
        found[meter] = found[meter] + amount if meter in found else amount
    return found


def call_of_figures(quantities: Mapping[str, int], compiled: CompiledCatalog) -> CallUsage | None:
    """Make a call of token figures; None: there are no tokens, or the app gives the money itself."""
    figures = {name: count for name, count in quantities.items() if name in USAGE_METERS and count}
    if not figures or not compiled.charges.keys().isdisjoint(quantities):
        return None
    units = dict[str, int]()
    for name, count in figures.items():
        unit = UNIT_OF.get(name, name)
        units[unit] = max(count, units.get(unit, 0))
    total = units.pop(_TOTAL, None)
    for whole in ("input_tokens", "output_tokens"):
        _add_direction_total(units, whole)
    for known, other in (("input_tokens", "output_tokens"), ("output_tokens", "input_tokens")):
        if total is not None and known in units and other not in units:
            units[other] = max(0, total - units[known])
    bounded = cap_parts(units)
    fields: dict[str, Any] = {_FIELDS[unit]: bounded.pop(unit) for unit in units if unit in _FIELDS}
    return CallUsage(**fields, details=bounded, source="reported")


def _add_direction_total(units: dict[str, int], whole: str) -> None:
    """Add the tokens of a direction if only parts are given: the sum of modalities, or the largest part."""
    if whole in units:
        return
    parts = {unit: count for unit, count in units.items() if WHOLE_OF.get(unit) == whole}
    direction = whole.partition("_")[0]
    modalities = sum(parts.get(f"{direction}_{name}_tokens", 0) for name in _MODALITIES)
    if parts:
        units[whole] = max(modalities, *parts.values())
