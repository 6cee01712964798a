"""Which subscriptions at Stripe differ from the plans file, as they were found last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.cli.doctor.findings import Finding, named
from meterkit.store.drifts import Drifts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit import MeterKit
    from meterkit.decisions.drift import Drift

__all__ = ["drifting", "look_at_subscriptions"]


async def look_at_subscriptions(kit: MeterKit) -> tuple[str, list[Finding]]:
    """How many differ, and which.

    Raises:
        StoreError: the store does not answer.
    """
    found = await Drifts(kit.store).all()
    return f"{len(found):,} differ", drifting(found)


def drifting(found: Mapping[str, Sequence[Drift]]) -> list[Finding]:
    """The customers whose subscriptions are not what the plans file says."""
    if not found:
        return []
    count = "1 subscription differs" if len(found) == 1 else f"{len(found):,} subscriptions differ"
    whose = named([f"of customer {customer} ({drifts[0].message})" for customer, drifts in found.items()])
    return [
        Finding(
            check="subscriptions",
            problem=f"{count} from the plans file: {whose}",
            cure="`meterkit subscriptions check` looks again and lists all; `meterkit subscriptions repair"
            " CUSTOMER` mends one, or says what a person has to decide",
        )
    ]
