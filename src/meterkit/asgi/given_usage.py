"""Token quantities that an app gives itself: priced as a response with the same figures."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meterkit.asgi.call_amounts import dimensions_of
from meterkit.catalog.argument_checks import check_quantity
from meterkit.catalog.units import UNIT_OF, USAGE_METERS, WHOLE_OF
from meterkit.decisions.periods import from_ms
from meterkit.store.hold import Used, add
from meterkit.tokens.call_usage import CallUsage, billed_units, within_wholes
from meterkit.tokens.charging import charged_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.store.compiled import CompiledCatalog

_Amount = TypeVar("_Amount", Fraction, Fraction | int)

_TOTAL: Final = "total_tokens"
_MODALITIES: Final = ("text", "audio", "image", "video")
_FIELDS: Final = {unit: name for name, unit in UNIT_OF.items()} | {
    name: name for name in ("input_tokens", "output_tokens", "cache_write_tokens")
}
"""Units that are fields of :class:`CallUsage`, with the field's name."""


def used_by_hand(
    quantities: Mapping[str, int],
    compiled: CompiledCatalog,
    *,
    model: str | None = None,
    provider: str | None = None,
    at_ms: int | None = None,
) -> Used:
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
    used = Used.of(recorded, **dimensions_of(model or None, provider or None))
    call = call_of_figures(quantities, compiled)
    if call is None:
        return used
    return _priced(used, replace(call, model=model or None, provider=provider or None), compiled, at_ms)


def price_tokens(
    used: Used, compiled: CompiledCatalog, name: Callable[[Sequence[CallUsage]], Sequence[CallUsage]]
) -> Used:
    """Add the cost and the charge of the tokens among the quantities that an app records in a request.

    Args:
        used: the quantities.
        compiled: knows the meters and prices.
        name: gives calls the model and provider of the request.
    """
    call = call_of_figures(used.rated, compiled) if compiled.charges else None
    return used if call is None else _priced(used, name([call])[0], compiled, None)


def _priced(used: Used, call: CallUsage, compiled: CompiledCatalog, at_ms: int | None) -> Used:
    if compiled.charges and not billed_units(call):
        compiled.alarms.total_alone()
    at = from_ms(compiled.now_ms() if at_ms is None else at_ms)
    costs = compiled.costs()
    charged, is_unpriced = charged_of(compiled.charges, call, at)
    return used._replace(
        charged=charged,
        unpriced={call.model or "": 1} if is_unpriced or compiled.lacks_price(call) else {},
        costs={} if costs is None else costs.of(call, at),
        version="" if costs is None else costs.version,
        units=call.units if compiled.settle_audited is not None else {},
    )


def join_used(first: Used, second: Used) -> Used:
    """One settlement of both: the dimensions are those of the first, and of its quantities."""
    return first._replace(
        recorded=add(second.recorded, first.recorded),
        rated=add(second.rated, first.rated),
        measured=first.rated,
        charged=_sum(first.charged, second.charged),
        costs=_sum(first.costs, second.costs),
        version=first.version or second.version,
        units=add(first.units, second.units),
        unpriced=add(first.unpriced, second.unpriced),
    )


def check_given(
    quantities: Mapping[str, int], compiled: CompiledCatalog, check: Callable[[Mapping[str, int]], None]
) -> None:
    """Refuse quantities that can be neither recorded nor charged.

    Where calls are charged, a unit of tokens needs no meter.

    Raises:
        QuantityError, UnknownMeterError: as ``check`` raises them.
    """
    charged = USAGE_METERS - compiled.catalog.meters.keys() if compiled.charges else frozenset[str]()
    for name, quantity in quantities.items():
        if name in charged:
            check_quantity(quantity)
    check({name: quantity for name, quantity in quantities.items() if name not in charged})


def _sum(first: Mapping[str, _Amount], second: Mapping[str, _Amount]) -> dict[str, _Amount]:
    found = dict(first)
    for meter, amount in second.items():
        found[meter] = found[meter] + amount if meter in found else amount
    return found


def call_of_figures(quantities: Mapping[str, int], compiled: CompiledCatalog) -> CallUsage | None:
    """One call with these figures; None: they are no tokens, or the app gives the amount of money itself."""
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
    bounded = within_wholes(units)
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
