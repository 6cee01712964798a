"""What is allowed in a plans file, and may surprise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.catalog.coverage import covers
from meterkit.catalog.entitlements import INCLUDED, OVERAGE
from meterkit.catalog.match import parse_match

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.catalog.coverage import Match
    from meterkit.catalog.models import Entitlement, Meter
    from meterkit.catalog.report import Place, Problems
    from meterkit.catalog.shapes import Values

__all__ = ["note_entitlement", "note_unreachable"]

COMPARED_MAX: Final = 300
"""So many lines are compared with each other, so that no file takes long."""


def note_entitlement(
    entitlement: Entitlement, meter: Meter, written: Values | None, plan: Place, problems: Problems
) -> None:
    """Say so where a plan bills a meter from the first unit, or limits a gauge that nothing fills.

    Args:
        entitlement: what the plan gives, defaults applied.
        meter: of which.
        written: what the plan says of the meter; None where it leaves it out.
        plan: where the plan stands.
        problems: where it is said.
    """
    if meter.kind == "gauge":
        if written is not None:
            message = f"has no effect yet: {meter.name} is a gauge, and nothing asks for its limit"
            problems.note(written.node.place, "without_effect", message)
        return
    stripe = meter.stripe
    says = written is not None and (written.has(INCLUDED) or written.has(OVERAGE))
    if says or stripe is None or stripe.report == "none" or entitlement.overage.mode != "bill":
        return
    subject = f"{meter.name} is left out" if written is None else f"{meter.name} has no `included`"
    problems.note(
        plan if written is None else written.node.place,
        "billed_from_first_unit",
        f"{subject}: unlimited, and billed from the first unit as {stripe.event_name!r}; write"
        f" `{meter.name}: {{included: N}}` to include a quantity and refuse more, or"
        f" `{meter.name}: {{included: 0, overage: bill}}` if it is meant so",
    )


def note_unreachable(matches: Sequence[tuple[str, Place]], problems: Problems) -> None:
    """Say so where an earlier line takes every request of a later one.

    Args:
        matches: the ``match`` lines of the file in its order, with their places.
        problems: where it is said.
    """
    earlier: list[tuple[Match, Place]] = []
    for written, place in matches[:COMPARED_MAX]:
        match = parse_match(written)
        found = next((line for pattern, line in earlier if covers(pattern, match)), None)
        if found is not None:
            message = f"never reached: the route in line {found.line} takes all of it; move this one up"
            problems.note(place, "never_reached", message)
        earlier.append((match, place))
