"""Model of a call whose response names none: the dearest of those that its request names."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeAlias

from meterkit.decisions.periods import from_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from fractions import Fraction

    from meterkit.store.compiled_catalog import CompiledCatalog
    from meterkit.tokens.call_usage import CallUsage

RequestedModels: TypeAlias = "Callable[[], Sequence[str]]"
"""Gives the models that a request names."""


def name_calls(
    calls: Sequence[CallUsage],
    requested: RequestedModels,
    provider: str | None,
    compiled: CompiledCatalog,
) -> Sequence[CallUsage]:
    """Name the model of calls by their request, where the response names none.

    Args:
        calls: of one request.
        requested: the models that the request may be of; called only where a call has no model.
        provider: that the route names, over what the shape of an answer suggests; None: it names none.
        compiled: knows what models cost.
    """
    if provider is not None:
        calls = [replace(call, provider=provider) for call in calls]
    if all(call.model is not None for call in calls):
        return calls
    names = requested()
    return [
        call if call.model is not None else replace(call, model=dearest_name(call, names, compiled))
        for call in calls
    ]


def dearest_name(call: CallUsage, names: Sequence[str], compiled: CompiledCatalog) -> str | None:
    """Find the most expensive of the named models: a client may name more than one.

    If their prices are equal or unknown, it is one that derived meters count, otherwise the first. None: no
    model is named, or credits and overage have prices by model, which then take their highest.
    """
    if len(names) <= 1:
        return (names[0] or None) if names else None
    if compiled.has_model_prices and not compiled.charges:
        return None
    at = from_ms(compiled.now_ms())
    costs = compiled.call_costs()

    def cost_at(name: str) -> tuple[Fraction | int, int]:
        cost = 0 if costs is None else sum(costs.of(replace(call, model=name), at).values())
        return cost, _derived_meters(name, compiled)

    return max(names, key=cost_at)


def _derived_meters(name: str, compiled: CompiledCatalog) -> int:
    """Count the derived meters that a model is counted on."""
    patterns = (meter.where.get("model") for meter in compiled.catalog.meters.values())
    return sum(pattern is not None and fnmatchcase(name, pattern) for pattern in patterns)
