"""Recurring grants of a period whose edges Stripe has moved. Pure; see ``move_grants.lua``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.grants import target_of
from meterkit.decisions.holdings import Holding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.decisions.periods import Bounds

SHORTEST_MS: Final = 120_000
"""A period that another one follows sooner goes on in it: counts stay (``close_period.lua``), grants too."""
_PLANS: Final = "p "


class MovedGrant(NamedTuple):
    """A change of a recurring grant on file.

    Attributes:
        name: of the grant.
        expires_ms: when it ends now.
        until_ms: when it leaves the store now.
        given_as: the name under which the plan would give it again; empty: it would not.
    """

    name: str
    expires_ms: int
    until_ms: int
    given_as: str = ""


def moved_grants(
    fields: Mapping[str, str], catalog: Catalog, before: Bounds, after: Bounds
) -> list[MovedGrant]:
    """Find the grants on file that end at another instant, or are given already in the moved period.

    A grant without a life of its own ends with its period: earlier where another period begins, later where
    the period is prolonged. A period that begins again within two minutes, or earlier than it was known to,
    is the same one.

    Args:
        fields: the hash of grants.
        catalog: says which grants have a life of their own.
        before: the period as it was known.
        after: the period now.
    """
    if before == after:
        return []
    lives = {
        f"{_PLANS}{target_of(grant.kind, grant.name)} {grant.key}": grant.expires_ms or 0
        for plan in catalog.plans.values()
        for grant in plan.grants
    }
    moved = list[MovedGrant]()
    for name, text in fields.items():
        prefix, _, start = name.rpartition(" ")
        if not name.startswith(_PLANS) or start not in {str(before.start_ms), str(after.start_ms)}:
            continue
        holding, ends_with_period = Holding.parse(name, text), lives.get(prefix) == 0
        if after.start_ms >= before.start_ms + SHORTEST_MS:
            if start == str(before.start_ms) and ends_with_period and holding.expires_ms > after.start_ms:
                moved.append(MovedGrant(name, after.start_ms, holding.until_ms))
            continue
        is_of_the_period = start == str(before.start_ms)
        expires_ms = after.end_ms if ends_with_period and is_of_the_period else holding.expires_ms
        again = f"{prefix} {after.start_ms}" if before.start_ms != after.start_ms else ""
        moved.append(
            MovedGrant(name, expires_ms, max(expires_ms, after.end_ms), again if is_of_the_period else "")
        )
    return moved
