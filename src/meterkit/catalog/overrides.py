"""What one customer gets differently: entitlements laid over those of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from meterkit.catalog.document import DEPTH_MAX, Fields, Items, Node, Text
from meterkit.catalog.entitlements import EntitlementTable, build_entitlement
from meterkit.catalog.errors import Place, Problems, unknown

if TYPE_CHECKING:
    from meterkit.catalog.models import Catalog, Entitlement, Plan

_SOURCE: Final = "override"


def override(
    catalog: Catalog, plan: Plan, overrides: Mapping[str, Mapping[str, object]], *, strict: bool = False
) -> dict[str, Entitlement]:
    """A plan's entitlements with some replaced.

    Args:
        catalog: the catalog of the plan.
        plan: what is laid over.
        overrides: meter to an entitlement in the notation of the plans file; what it does not say stays
            as the plan has it.
        strict: whether to raise. Otherwise a meter whose override cannot be read stays as the plan has
            it: what was stored under one plans file must not break the decisions of the next.

    Raises:
        PlansError: something is wrong; with all that is wrong.
    """
    merged = dict(plan.entitlements)
    problems = Problems(_SOURCE)
    for name, given in overrides.items():
        place, found = Place(0, 0, "").child(name), Problems(_SOURCE)
        if name not in catalog.meters:
            found.refuse(place, unknown("meter", name, catalog.meters))
        elif (values := EntitlementTable.read(_node(given, place, 1), found)) is not None:
            built = build_entitlement(values, catalog.meters[name], base=plan.entitlements[name])
            if not found:
                merged[name] = built
        problems.extend(found)
    if strict and problems:
        raise problems.error()
    return merged


def _node(value: object, place: Place, depth: int) -> Node:
    """A value of Python in the notation of the plans file."""
    if depth > DEPTH_MAX:
        return Text(place, "…", quoted=True)
    if isinstance(value, Mapping):
        entries = {str(key): item for key, item in cast("Mapping[object, object]", value).items()}
        places = {key: place.child(key) for key in entries}
        return Fields(
            place, {key: _node(item, places[key], depth + 1) for key, item in entries.items()}, places
        )
    if isinstance(value, list | tuple):
        items = cast("list[object] | tuple[object, ...]", value)
        return Items(place, tuple(_node(item, place.item(i), depth + 1) for i, item in enumerate(items)))
    if value is None:
        return Text(place, "null", quoted=False)
    return Text(place, str(value).lower() if isinstance(value, bool) else str(value), quoted=True)
